//! `keygate keys export`: all keys as lines that `import` takes.

use super::Desk;
use crate::cli::Failure;
use crate::policy::id::{KeyId, WorkspaceId};
use crate::store::{Change, Credential, KeyFilter, KeyRecord, PageRequest, Version};
use clap::Args;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, Write};
use tokio::sync::mpsc;

/// Workspaces fetched at once.
const PAGE: u32 = 500;

/// Arguments of `keygate keys export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Only this workspace; without it all of them
    #[arg(long, value_name = "ID")]
    workspace: Option<WorkspaceId>,
}

pub(super) fn run(desk: &Desk, args: &ExportArgs) -> Result<(), Failure> {
    let credentials = credentials(desk)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for workspace in workspaces(desk, args)? {
        desk.each_key(&workspace, &KeyFilter::default(), |record| {
            // A key whose row cannot be understood has no credential in the feed; it is reported there.
            let Some(credential) = credentials.get(&record.key.id) else { return Ok(()) };
            writeln!(out, "{}", line(desk, &record, credential)).map_err(Failure::failed)
        })?;
    }
    out.flush().map_err(Failure::failed)
}

fn workspaces(desk: &Desk, args: &ExportArgs) -> Result<Vec<WorkspaceId>, Failure> {
    if let Some(one) = &args.workspace {
        return Ok(vec![one.clone()]);
    }
    let mut all = Vec::new();
    for page in 1.. {
        let found = desk.wait(desk.store.workspaces(PageRequest { page, pagesize: PAGE }))?;
        if found.items.is_empty() {
            break;
        }
        all.extend(found.items.into_iter().map(|w| w.id));
    }
    Ok(all)
}

/// The current credential of every key, as the change feed carries it.
fn credentials(desk: &Desk) -> Result<HashMap<KeyId, Credential>, Failure> {
    let (to, mut batches) = mpsc::channel(4);
    let read = desk.store.changes(Version::default(), to);
    let collected = async {
        let mut all = HashMap::new();
        while let Some(batch) = batches.recv().await {
            for change in batch {
                match change {
                    Change::Key(change) => {
                        let current = change.credentials.iter().find(|c| c.valid_until.is_none());
                        all.extend(current.map(|c| (change.key.id, *c)));
                    }
                    Change::Broken { table, id, why } => eprintln!("keygate: {table} {id}: {why}"),
                    _ => {}
                }
            }
        }
        all
    };
    let (read, all) = desk.runtime.block_on(async { tokio::join!(read, collected) });
    read.map_err(Failure::failed)?;
    Ok(all)
}

/// Which pepper of that version, so that no other installation takes it for its own.
fn check_of(desk: &Desk, version: u32) -> Option<String> {
    desk.peppers.iter().find(|p| p.version() == version).map(|p| hex::encode(p.check()))
}

fn line(desk: &Desk, record: &KeyRecord, credential: &Credential) -> Value {
    let key = &record.key;
    let own = &key.ceilings;
    let limits: Vec<_> = own
        .limits
        .iter()
        .map(|c| json!({ "count": c.count.as_str(), "per": c.per.as_str(), "max": c.max }))
        .collect();
    json!({
        "id": key.id.to_string(),
        "workspace_id": key.workspace_id.as_str(),
        "name": record.name,
        "description": record.description,
        "type": key.kind.as_str(),
        "scopes": key.scopes.iter().map(crate::policy::key::Scope::as_str).collect::<Vec<_>>(),
        "resource_id": key.resource_id,
        "rate_limit": own.rate_limit,
        "rate_burst": own.rate_burst,
        "daily_request_limit": own.daily_request_limit,
        "quota_limit": own.quota_limit,
        "concurrency_limit": own.concurrency_limit,
        "limits": limits,
        "expires_at": key.expires_at.map(crate::clock::Timestamp::as_millis),
        "allowed_ips": key.allowed_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "metadata": record.metadata,
        "is_active": key.is_active,
        "hint": record.hint,
        "digest": hex::encode(credential.digest.0),
        "pepper_version": credential.pepper_version,
        "pepper_check": check_of(desk, credential.pepper_version),
    })
}
