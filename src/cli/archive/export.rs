//! `keygate export`

use super::entries::{credential_line, grant_line};
use super::{ArchiveEntry, FORMAT, KINDS};
use crate::cli::keys::KeyCommand;
use crate::cli::keys::export::{credentials, line, plan_ceilings};
use crate::cli::{ConfigArgs, Environment, Failure, inline_secrets, load, log};
use crate::model::calendar::Calendar;
use crate::model::id::WorkspaceId;
use crate::model::key::Plan;
use crate::policy::prices::json::to_json as prices_json;
use crate::store::{EndUserRecord, KeyFilter, Page, PageRequest, PlanRecord, WorkspaceRecord};
use clap::Args;
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// Rows per page. Each page skips those before it, so few large pages are much faster.
const PAGE: u32 = 10_000;

/// Arguments of `keygate export`.
#[derive(Debug, Args)]
pub struct ArchiveExportArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The file to write; it must not exist yet. It contains digests of secrets, so only you may read it
    file: PathBuf,
}

pub(in crate::cli) fn run(args: &ArchiveExportArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    log::init(&config.log);
    let failed = |error: std::io::Error| Failure::Failed(format!("{}: {error}", args.file.display()));
    let command = KeyCommand::open(config, inline_secrets(environment).peppers)?;
    let file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.file).map_err(failed)?;
    let mut export = ArchiveExport { command: &command, out: BufWriter::new(file), counts: [0; KINDS] };
    let written = export.everything();
    command.runtime.block_on(command.store.close());
    written?;
    let ArchiveExport { out, counts, .. } = export;
    out.into_inner().map_err(Failure::failed)?.sync_all().map_err(failed)?;
    let told: Vec<_> =
        ArchiveEntry::ALL.iter().zip(counts).map(|(thing, n)| format!("{n} {}s", thing.name())).collect();
    eprintln!("exported {} to {}", told.join(", ").replace('_', " "), args.file.display());
    Ok(())
}

/// A running export.
struct ArchiveExport<'d> {
    command: &'d KeyCommand,
    out: BufWriter<File>,
    /// One per [`ArchiveEntry`].
    counts: [u64; KINDS],
}

impl ArchiveExport<'_> {
    fn everything(&mut self) -> Result<(), Failure> {
        let command = self.command;
        let head =
            json!({ "format": FORMAT, "version": env!("CARGO_PKG_VERSION"), "at": command.now.as_millis() });
        self.write(&json!({ "keygate": head }))?;
        self.pages(
            |page| command.wait(command.store.plans(page)),
            |export, plan| export.put(ArchiveEntry::Plan, plan_line(plan)),
        )?;
        let mut workspaces = Vec::new();
        self.pages(
            |page| command.wait(command.store.workspaces(page)),
            |_, workspace| {
                workspaces.push(workspace);
                Ok(())
            },
        )?;
        // They are listed newest first; the file has them oldest first.
        workspaces.reverse();
        for workspace in &workspaces {
            self.put(ArchiveEntry::Workspace, workspace_line(workspace))?;
        }
        for WorkspaceRecord { id, grants, .. } in &workspaces {
            for grant in grants {
                self.put(ArchiveEntry::Grant, grant_line(id, grant))?;
            }
        }
        self.pages(
            |page| command.wait(command.store.deleted_workspaces(page)),
            |export, id| export.put(ArchiveEntry::DeletedWorkspace, json!({ "id": id.as_str() })),
        )?;
        let prices = command.wait(command.store.price_list())?.prices;
        if let Value::Array(prices) = prices_json(&prices) {
            for price in prices {
                self.put(ArchiveEntry::Price, price)?;
            }
        }
        for record in command.wait(command.store.credentials(None))? {
            self.put(ArchiveEntry::Credential, credential_line(&record.credential))?;
        }
        let credentials = credentials(command)?;
        for WorkspaceRecord { id, .. } in &workspaces {
            let all = KeyFilter::default();
            self.pages(
                |page| command.wait(command.store.keys(id, &all, page)),
                |export, record| match line(command, &record, &credentials) {
                    Some(line) => export.put(ArchiveEntry::Key, line),
                    None => Ok(()),
                },
            )?;
        }
        for WorkspaceRecord { id, .. } in &workspaces {
            self.pages(
                |page| command.wait(command.store.end_users(id, None, page)),
                |export, user| export.put(ArchiveEntry::EndUser, end_user_line(id, &user)),
            )?;
        }
        let counts: Map<String, Value> = ArchiveEntry::ALL
            .iter()
            .zip(self.counts)
            .map(|(thing, n)| (thing.name().into(), json!(n)))
            .collect();
        self.write(&json!({ "end": counts }))
    }

    fn pages<T>(
        &mut self,
        fetch: impl Fn(PageRequest) -> Result<Page<T>, Failure>,
        mut each: impl FnMut(&mut Self, T) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for page in 1.. {
            let found = fetch(PageRequest { page, pagesize: PAGE })?;
            if found.items.is_empty() {
                break;
            }
            for item in found.items {
                each(self, item)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, thing: ArchiveEntry, fields: Value) -> Result<(), Failure> {
        self.counts[thing as usize] += 1;
        let mut line = Map::new();
        line.insert(thing.name().into(), fields);
        self.write(&Value::Object(line))
    }

    fn write(&mut self, line: &Value) -> Result<(), Failure> {
        writeln!(self.out, "{line}").map_err(Failure::failed)
    }
}

fn plan_line(record: PlanRecord) -> Value {
    let PlanRecord {
        plan,
        description,
        usage_retention_days,
        deleted_keys_days,
        created_at: _,
        updated_at: _,
    } = record;
    let Plan { id, api_ops_rate_limit, end_user_quota, default_daily_request_limit, limits, calendar } = plan;
    let Calendar { zone, month_day, week_day } = calendar;
    json!({
        "id": id.as_str(),
        "description": description,
        "api_ops_rate_limit": api_ops_rate_limit,
        "end_user_quota": end_user_quota,
        "default_daily_request_limit": default_daily_request_limit,
        "limits": plan_ceilings(&limits),
        "calendar": { "zone": zone.name(), "month_day": month_day, "week_day": week_day.as_str() },
        "usage_retention_days": usage_retention_days,
        "deleted_keys_days": deleted_keys_days,
    })
}

fn workspace_line(record: &WorkspaceRecord) -> Value {
    let WorkspaceRecord { id, name, plan_id, end_users: _, grants: _, created_at: _, updated_at: _ } = record;
    json!({ "id": id.as_str(), "name": name, "plan_id": plan_id.as_str() })
}

fn end_user_line(workspace: &WorkspaceId, record: &EndUserRecord) -> Value {
    let EndUserRecord { id, workspace_id: _, other_id, created_at } = record;
    json!({
        "id": id.to_string(),
        "workspace_id": workspace.as_str(),
        "other_id": other_id,
        "created_at": created_at.as_millis(),
    })
}
