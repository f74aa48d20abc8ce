//! `keygate keys export`: all keys as lines that `import` reads.

use super::KeyCommand;
use crate::cli::Failure;
use crate::clock::Timestamp;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::Ceiling;
use crate::store::{Change, Credential, KeyFilter, KeyRecord, PageRequest, Version};
use clap::Args;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, Write};
use tokio::sync::mpsc;

/// Workspaces per page.
const PAGE: u32 = 500;

/// Arguments of `keygate keys export`.
#[derive(Debug, Args)]
pub(super) struct KeysExportArgs {
    /// Only this workspace; the default is all
    #[arg(long, value_name = "ID")]
    workspace: Option<WorkspaceId>,
}

pub(super) fn run(command: &KeyCommand, args: &KeysExportArgs) -> Result<(), Failure> {
    let credentials = credentials(command)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for workspace in workspaces(command, args.workspace.as_ref())? {
        command.each_key(&workspace, &KeyFilter::default(), |record| {
            let Some(line) = line(command, &record, &credentials) else { return Ok(()) };
            writeln!(out, "{line}").map_err(Failure::failed)
        })?;
    }
    out.flush().map_err(Failure::failed)
}

fn workspaces(command: &KeyCommand, only: Option<&WorkspaceId>) -> Result<Vec<WorkspaceId>, Failure> {
    if let Some(one) = only {
        return Ok(vec![one.clone()]);
    }
    let mut all = Vec::new();
    for page in 1.. {
        let found = command.wait(command.store.workspaces(PageRequest { page, pagesize: PAGE }))?;
        if found.items.is_empty() {
            break;
        }
        all.extend(found.items.into_iter().map(|w| w.id));
    }
    Ok(all)
}

/// The valid credentials of every key, from the change feed: the current one first.
pub(in crate::cli) type KeyCredentials = HashMap<KeyId, crate::store::Credentials>;

pub(in crate::cli) fn credentials(command: &KeyCommand) -> Result<KeyCredentials, Failure> {
    let (to, mut batches) = mpsc::channel(4);
    let read = command.store.changes(Version::default(), to);
    let collected = async {
        let mut all = HashMap::new();
        while let Some(batch) = batches.recv().await {
            for change in batch {
                match change {
                    Change::Key(change) => drop(all.insert(change.key.id, change.credentials)),
                    Change::Broken { table, id, why, .. } => eprintln!("keygate: {table} {id}: {why}"),
                    _ => {}
                }
            }
        }
        all
    };
    let (read, all) = command.runtime.block_on(async { tokio::join!(read, collected) });
    read.map_err(Failure::failed)?;
    Ok(all)
}

/// Identifies the pepper of this version, so that another installation cannot mistake it for its own.
fn check_of(command: &KeyCommand, version: u32) -> Option<String> {
    command.peppers.iter().find(|p| p.version() == version).map(|p| hex::encode(p.check()))
}

/// A replaced credential that is valid until its grace period ends.
fn old(command: &KeyCommand, credentials: &[Credential]) -> Option<Value> {
    let old = credentials.iter().find(|c| c.valid_until.is_some_and(|until| until > command.now))?;
    Some(json!({
        "digest": hex::encode(old.digest.0),
        "pepper_version": old.pepper_version,
        "pepper_check": check_of(command, old.pepper_version),
        "secret_id": old.secret.0,
        "valid_until": old.valid_until.map(Timestamp::as_millis),
    }))
}

fn ceilings(all: &[Ceiling]) -> Vec<Value> {
    all.iter().map(|c| json!({ "count": c.count.as_str(), "per": c.per.as_str(), "max": c.max })).collect()
}

/// The same of a plan.
pub(in crate::cli) fn plan_ceilings(all: &[Ceiling]) -> Vec<Value> {
    let one = |c: &Ceiling| json!({ "of": c.of.as_str(), "count": c.count.as_str(), "per": c.per.as_str(), "max": c.max });
    all.iter().map(one).collect()
}

/// A key in the format of `import`; none for a key without a valid credential, which the feed has reported.
pub(in crate::cli) fn line(
    command: &KeyCommand,
    record: &KeyRecord,
    credentials: &KeyCredentials,
) -> Option<Value> {
    let found = credentials.get(&record.key.id)?;
    let current = found.iter().find(|c| c.valid_until.is_none())?;
    let key = &record.key;
    let own = &key.ceilings;
    Some(json!({
        "id": key.id.to_string(),
        "workspace_id": key.workspace_id.as_str(),
        "name": record.name,
        "description": record.description,
        "type": key.kind.as_str(),
        "scopes": key.scopes.iter().collect::<Vec<_>>(),
        "resource_id": key.resource_id,
        "rate_limit": own.rate_limit,
        "rate_burst": own.rate_burst,
        "daily_request_limit": own.daily_request_limit,
        "quota_limit": own.quota_limit,
        "concurrency_limit": own.concurrency_limit,
        "limits": ceilings(&own.limits),
        "expires_at": key.expires_at.map(Timestamp::as_millis),
        "allowed_ips": key.allowed_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "end_user": key.end_user,
        "external_id": record.external_id,
        "metadata": record.metadata,
        "is_active": key.is_active,
        "created_by": record.created_by,
        "created_at": record.created_at.as_millis(),
        "updated_at": record.updated_at.as_millis(),
        "hint": record.hint,
        "digest": hex::encode(current.digest.0),
        "pepper_version": current.pepper_version,
        "pepper_check": check_of(command, current.pepper_version),
        "secret_id": current.secret.0,
        "old": old(command, found),
    }))
}
