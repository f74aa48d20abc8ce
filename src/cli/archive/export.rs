//! `keygate export`

use super::{FORMAT, Thing};
use crate::cli::keys::Desk;
use crate::cli::keys::export::{ceilings, credentials, line};
use crate::cli::{ConfigArgs, Environment, Failure, inline_secrets, load, log};
use crate::model::id::WorkspaceId;
use crate::model::key::Plan;
use crate::store::{EndUserRecord, KeyFilter, Page, PageRequest, PlanRecord, WorkspaceRecord};
use clap::Args;
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// Rows fetched at once. Each page walks past those before it, so few large ones are far quicker than many small ones.
const PAGE: u32 = 10_000;

/// Arguments of `keygate export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The file to write; it must not be there yet. It holds digests of secrets, so only you may read it
    file: PathBuf,
}

pub(in crate::cli) fn run(args: &ExportArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    log::init(&config.log);
    let failed = |error: std::io::Error| Failure::Failed(format!("{}: {error}", args.file.display()));
    let desk = Desk::open(config, inline_secrets(environment).peppers)?;
    let file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.file).map_err(failed)?;
    let mut export = Export { desk: &desk, out: BufWriter::new(file), counts: [0; 4] };
    let written = export.everything();
    desk.runtime.block_on(desk.store.close());
    written?;
    let Export { out, counts, .. } = export;
    out.into_inner().map_err(Failure::failed)?.sync_all().map_err(failed)?;
    let told: Vec<_> =
        Thing::ALL.iter().zip(counts).map(|(thing, n)| format!("{n} {}s", thing.name())).collect();
    eprintln!("exported {} to {}", told.join(", ").replace('_', " "), args.file.display());
    Ok(())
}

/// An export under way.
struct Export<'d> {
    desk: &'d Desk,
    out: BufWriter<File>,
    /// Of each [`Thing`].
    counts: [u64; 4],
}

impl Export<'_> {
    fn everything(&mut self) -> Result<(), Failure> {
        let desk = self.desk;
        let head =
            json!({ "format": FORMAT, "version": env!("CARGO_PKG_VERSION"), "at": desk.now.as_millis() });
        self.write(&json!({ "keygate": head }))?;
        self.pages(
            |page| desk.wait(desk.store.plans(page)),
            |export, plan| export.put(Thing::Plan, plan_line(plan)),
        )?;
        let mut workspaces = Vec::new();
        self.pages(
            |page| desk.wait(desk.store.workspaces(page)),
            |_, workspace| {
                workspaces.push(workspace);
                Ok(())
            },
        )?;
        // Newest first is how they are listed; oldest first is how they came.
        workspaces.reverse();
        for workspace in &workspaces {
            self.put(Thing::Workspace, workspace_line(workspace))?;
        }
        let credentials = credentials(desk)?;
        for WorkspaceRecord { id, .. } in &workspaces {
            let all = KeyFilter::default();
            self.pages(
                |page| desk.wait(desk.store.keys(id, &all, page)),
                |export, record| match line(desk, &record, &credentials) {
                    Some(line) => export.put(Thing::Key, line),
                    None => Ok(()),
                },
            )?;
        }
        for WorkspaceRecord { id, .. } in &workspaces {
            self.pages(
                |page| desk.wait(desk.store.end_users(id, None, page)),
                |export, user| export.put(Thing::EndUser, end_user_line(id, &user)),
            )?;
        }
        let counts: Map<String, Value> =
            Thing::ALL.iter().zip(self.counts).map(|(thing, n)| (thing.name().into(), json!(n))).collect();
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

    fn put(&mut self, thing: Thing, fields: Value) -> Result<(), Failure> {
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
    let PlanRecord { plan, description, usage_retention_days, created_at: _, updated_at: _ } = record;
    let Plan { id, api_ops_rate_limit, end_user_quota, default_daily_request_limit, limits } = plan;
    json!({
        "id": id.as_str(),
        "description": description,
        "api_ops_rate_limit": api_ops_rate_limit,
        "end_user_quota": end_user_quota,
        "default_daily_request_limit": default_daily_request_limit,
        "limits": ceilings(&limits),
        "usage_retention_days": usage_retention_days,
    })
}

fn workspace_line(record: &WorkspaceRecord) -> Value {
    let WorkspaceRecord { id, name, plan_id, end_users: _, created_at: _, updated_at: _ } = record;
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
