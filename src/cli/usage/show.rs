//! `keygate usage show`: totals of a workspace, by the admin API.

use crate::cli::Failure;
use crate::cli::gateway::{ApiPath, Gateway};
use crate::cli::keys::InWorkspace;
use crate::cli::output::{Column, Output, shown};
use clap::{Args, ValueEnum};
use serde_json::Value;

/// Arguments of `keygate usage show`.
#[derive(Debug, Args)]
pub(super) struct UsageShowArgs {
    #[command(flatten)]
    within: InWorkspace,
    /// A line for each of these; without this argument only the totals of the workspace
    #[arg(long, value_name = "WHAT")]
    by: Option<By>,
    /// Only keys of this resource
    #[arg(long, value_name = "ID")]
    resource_id: Option<String>,
    /// The first instant: epoch seconds or milliseconds, or RFC 3339; totals begin with its UTC day
    #[arg(long, value_name = "INSTANT")]
    from: Option<String>,
    /// The first instant after the range
    #[arg(long, value_name = "INSTANT")]
    to: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum By {
    Key,
    Resource,
    EndUser,
    Route,
    Model,
}

const COLUMNS: &[Column] = &[
    Column { head: "REQUESTS", cell: |total| shown(&total["total_requests"]) },
    Column { head: "DENIED", cell: |total| shown(&total["denied"]) },
    Column { head: "ERRORS", cell: |total| shown(&total["errors"]) },
    Column { head: "TOKENS", cell: |total| shown(&total["tokens_used"]) },
    Column { head: "COST", cell: |total| cost(&total["cost_nano"]) },
    Column { head: "MEAN MS", cell: |total| shown(&total["avg_response_time"]) },
    Column { head: "OF", cell: whose },
];

/// The names of a group, the one for people last.
fn whose(total: &Value) -> String {
    let names = ["key_id", "resource_id", "end_user_id", "other_id", "route", "model", "name"];
    let names = names.iter().filter_map(|name| total.get(*name)).filter(|value| !value.is_null());
    names.map(shown).collect::<Vec<_>>().join(" ")
}

/// An amount in billionths of the currency unit.
fn cost(amount: &Value) -> String {
    let Some(nano) = amount.as_u64() else { return shown(amount) };
    format!("{}.{:06}", nano / 1_000_000_000, nano % 1_000_000_000 / 1_000)
}

pub(super) fn run(gateway: &mut Gateway, output: &mut Output, args: &UsageShowArgs) -> Result<(), Failure> {
    args.within.enter(gateway);
    let path = ApiPath::of(&["usage"])
        .with_some("resource_id", args.resource_id.as_ref())
        .with_some("from", args.from.as_ref())
        .with_some("to", args.to.as_ref());
    let Some(by) = args.by else {
        let usage = gateway.get(&path)?;
        return output.object(&usage["totals"]);
    };
    let by = by.to_possible_value().map(|by| by.get_name().to_owned());
    let path = path.with_some("group_by", by);
    let mut table = output.table(COLUMNS);
    gateway.pages(&path, |groups| table.rows(&groups))
}
