//! `keygate prices`: prices of models from a published table.

use super::gateway::{self, ApiPath, GatewayArgs};
use super::{Environment, Failure, say};
use crate::fileio;
use crate::policy::prices::import::{ImportedPrices, read};
use crate::policy::prices::json::to_json;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Most mistakes that are printed.
const MISTAKES_SHOWN: usize = 100;

/// Arguments of `keygate prices`.
#[derive(Debug, Args)]
pub struct PricesArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(subcommand)]
    command: PricesCommand,
}

/// What to do with prices.
#[derive(Debug, Subcommand)]
enum PricesCommand {
    /// Replace the prices in the store by those of a table that LiteLLM or models.dev publishes
    Import(PricesImportArgs),
}

/// Arguments of `keygate prices import`.
#[derive(Debug, Args)]
struct PricesImportArgs {
    /// LiteLLM's `model_prices_and_context_window.json`, or the `api.json` of models.dev
    file: PathBuf,
    /// Only the prices of this provider. Without it, models of models.dev are named `provider/model`
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Print the body for `PUT /prices` on standard output and store nothing
    #[arg(long)]
    print: bool,
}

pub(super) fn run(args: PricesArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let PricesCommand::Import(import) = args.command;
    let ImportedPrices { prices, left_out } = table(&import)?;
    let count = prices.len();
    let body = json!({ "prices": to_json(&prices) });
    if import.print {
        say(format_args!("{body}"))?;
    } else {
        gateway::with(&args.gateway, environment, |gateway, _| {
            gateway.call(&Method::PUT, &ApiPath::of(&["prices"]), Some(&body))
        })?;
    }
    let done = if import.print { "printed" } else { "imported" };
    eprintln!("{done} {count} prices; left out, as they have no price of tokens: {left_out}");
    Ok(())
}

fn table(args: &PricesImportArgs) -> Result<ImportedPrices, Failure> {
    let file = args.file.display();
    let failed = |why: &dyn std::fmt::Display| Failure::Failed(format!("{file}: {why}"));
    let bytes = fileio::read(&args.file).map_err(|error| failed(&error))?;
    let text = String::from_utf8(bytes).map_err(|error| failed(&error))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let table: Value = serde_json::from_str(text).map_err(|error| failed(&error))?;
    read(&table, args.provider.as_deref()).map_err(|mistakes| {
        let lines = mistakes.iter().take(MISTAKES_SHOWN).map(|mistake| format!("{file}: {mistake}"));
        Failure::Failed(lines.collect::<Vec<_>>().join("\n"))
    })
}
