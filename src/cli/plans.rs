//! `keygate plans`: the plans that workspaces are on, by the admin API.

use super::gateway::{self, ApiPath, Gateway, GatewayArgs};
use super::keys::fields::{body, number, object};
use super::keys::manage::done;
use super::output::{Column, Output, shown};
use super::{Environment, Failure};
use crate::model::id::PlanId;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Map, Value, json};

/// Arguments of `keygate plans`.
#[derive(Debug, Args)]
pub struct PlansArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(subcommand)]
    command: PlansCommand,
}

#[derive(Debug, Subcommand)]
enum PlansCommand {
    /// List the plans
    List,
    /// Show a plan
    Get(OnePlan),
    /// Change a plan, or create it; what is not named stays
    Set(PlanSetArgs),
    /// Delete a plan that no workspace is on
    Delete(OnePlan),
}

#[derive(Debug, Args)]
struct OnePlan {
    /// The plan's id
    id: PlanId,
}

#[derive(Debug, Args)]
struct PlanSetArgs {
    #[command(flatten)]
    plan: OnePlan,
    /// A description
    #[arg(long)]
    description: Option<String>,
    /// The highest rate of one key, in requests per second; required for a new plan
    #[arg(long, value_name = "N")]
    api_ops_rate_limit: Option<u64>,
    /// The most end users of a workspace; required for a new plan
    #[arg(long, value_name = "N")]
    end_user_quota: Option<u64>,
    /// Requests per day for keys created without a daily limit
    #[arg(long, value_name = "N|none", value_parser = number)]
    default_daily_request_limit: Option<Value>,
    /// How many whole UTC days before today usage records are kept; none: for ever
    #[arg(long, value_name = "DAYS|none", value_parser = number)]
    usage_retention_days: Option<Value>,
    /// For how many days after its deletion a key can be restored
    #[arg(long, value_name = "DAYS")]
    deleted_keys_days: Option<u32>,
    /// Further fields as in the API, such as '{"limits": [{"of": "workspace", "count": "tokens", "per": "month", "max": 5000000}]}'
    #[arg(long, value_name = "JSON", value_parser = object)]
    fields: Option<Map<String, Value>>,
}

const COLUMNS: &[Column] = &[
    Column { head: "ID", cell: |plan| shown(&plan["id"]) },
    Column { head: "RATE", cell: |plan| shown(&plan["api_ops_rate_limit"]) },
    Column { head: "PER DAY", cell: |plan| shown(&plan["default_daily_request_limit"]) },
    Column { head: "END USERS", cell: |plan| shown(&plan["end_user_quota"]) },
    Column { head: "LIMITS", cell: |plan| plan["limits"].as_array().map_or(0, Vec::len).to_string() },
    Column { head: "DESCRIPTION", cell: |plan| shown(&plan["description"]) },
];

pub(super) fn run(args: PlansArgs, environment: Environment<'_>) -> Result<(), Failure> {
    gateway::with(&args.gateway, environment, |gateway, output| match args.command {
        PlansCommand::List => {
            let mut table = output.table(COLUMNS);
            gateway.pages(&ApiPath::of(&["plans"]), |plans| table.rows(&plans))
        }
        PlansCommand::Get(plan) => {
            let found = gateway.get(&plan.path())?;
            output.object(&found)
        }
        PlansCommand::Set(args) => set(gateway, output, args),
        PlansCommand::Delete(plan) => {
            let deleted = gateway.call(&Method::DELETE, &plan.path(), None)?;
            done(output, &plan.id, "deleted", &deleted)
        }
    })
}

fn set(gateway: &mut Gateway, output: &mut Output, args: PlanSetArgs) -> Result<(), Failure> {
    let fields = [
        ("description", args.description.map(|text| json!(text))),
        ("api_ops_rate_limit", args.api_ops_rate_limit.map(|n| json!(n))),
        ("end_user_quota", args.end_user_quota.map(|n| json!(n))),
        ("default_daily_request_limit", args.default_daily_request_limit),
        ("usage_retention_days", args.usage_retention_days),
        ("deleted_keys_days", args.deleted_keys_days.map(|n| json!(n))),
    ];
    let mut fields = body(fields, args.fields)?;
    let path = args.plan.path();
    if gateway.find(&path)?.is_some() {
        let changed = gateway.call(&Method::PUT, &path, Some(&Value::Object(fields)))?;
        return done(output, &args.plan.id, "changed", &changed);
    }
    fields.insert("id".into(), json!(args.plan.id.as_str()));
    let made = gateway.call(&Method::POST, &ApiPath::of(&["plans"]), Some(&Value::Object(fields)))?;
    done(output, &args.plan.id, "created", &made)
}

impl OnePlan {
    fn path(&self) -> ApiPath {
        ApiPath::of(&["plans", self.id.as_str()])
    }
}
