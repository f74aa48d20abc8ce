//! What goes because no file names it any longer.
//!
//! A key has an owner, so only the owner's own keys go. Workspaces and plans have none: they go only if nothing uses them, and
//! only when that is asked for.

use super::OWNER;
use super::changes::{Change, Verb};
use super::files::Desired;
use crate::cli::Failure;
use crate::cli::gateway::{ApiPath, Gateway};
use http::Method;
use serde_json::Map;
use std::collections::BTreeMap;

/// The workspace of calls that name none.
const DEFAULT: &str = "default";

/// A workspace as it is before the changes.
pub(super) struct FoundWorkspace {
    plan: String,
    end_users: u64,
    /// Keys, without those that go.
    keys: u64,
}

/// Adds the deletion of the owner's keys that the files do not name. Returns all workspaces.
pub(super) fn keys(
    gateway: &mut Gateway,
    desired: &Desired,
    owner: &str,
    changes: &mut Vec<Change>,
) -> Result<BTreeMap<String, FoundWorkspace>, Failure> {
    let mut workspaces = BTreeMap::new();
    gateway.workspace = None;
    gateway.pages(&ApiPath::of(&["workspaces"]), |items| {
        for item in items {
            let Some(id) = item["id"].as_str() else { continue };
            let plan = item["plan_id"].as_str().unwrap_or_default().to_owned();
            let end_users = item["end_users"].as_u64().unwrap_or_default();
            workspaces.insert(id.to_owned(), FoundWorkspace { plan, end_users, keys: 0 });
        }
        Ok(true)
    })?;
    for (workspace, found) in &mut workspaces {
        gateway.workspace = Some(workspace.clone());
        let path = ApiPath::of(&["apikeys"]).with("is_active", "any");
        gateway.pages(&path, |keys| {
            for key in keys {
                let (id, external) = (key["id"].as_str(), key["external_id"].as_str());
                let is_named =
                    |external: &str| desired.keys.contains_key(&(workspace.clone(), external.to_owned()));
                match (id, external) {
                    (Some(id), Some(external)) if key["metadata"][OWNER] == owner && !is_named(external) => {
                        let path = ApiPath::of(&["apikeys", id]);
                        let mut change = deletion("key", external, path);
                        change.workspace.clone_from(workspace);
                        changes.push(change);
                    }
                    _ => found.keys += 1,
                }
            }
            Ok(true)
        })?;
    }
    Ok(workspaces)
}

/// Adds the deletion of workspaces and plans that the files do not name and nothing uses; the others are `kept`.
pub(super) fn empty(
    gateway: &mut Gateway,
    desired: &Desired,
    workspaces: &BTreeMap<String, FoundWorkspace>,
    changes: &mut Vec<Change>,
    kept: &mut Vec<String>,
) -> Result<(), Failure> {
    let mut used: BTreeMap<String, u64> = BTreeMap::new();
    let wanted_plan =
        |id: &str| desired.workspaces.get(id).and_then(|fields| fields.get("plan_id")?.as_str());
    for (id, found) in workspaces {
        let is_named = desired.workspaces.contains_key(id) || desired.keys.keys().any(|(of, _)| of == id);
        if !is_named && id == DEFAULT {
            kept.push(format!("workspace {id} stays: calls that name no workspace use it"));
        } else if !is_named && found.keys == 0 && found.end_users == 0 {
            changes.push(deletion("workspace", id, ApiPath::of(&["workspaces", id])));
            continue;
        } else if !is_named {
            let FoundWorkspace { keys, end_users, .. } = found;
            kept.push(format!("workspace {id} stays: it has {keys} keys and {end_users} end users"));
        }
        *used.entry(wanted_plan(id).unwrap_or(&found.plan).to_owned()).or_default() += 1;
    }
    let new = desired.workspaces.keys().filter(|id| !workspaces.contains_key(*id));
    for plan in new.filter_map(|id| wanted_plan(id)) {
        *used.entry(plan.to_owned()).or_default() += 1;
    }
    gateway.workspace = None;
    gateway.pages(&ApiPath::of(&["plans"]), |plans| {
        for plan in plans {
            let Some(id) = plan["id"].as_str().filter(|id| !desired.plans.contains_key(*id)) else {
                continue;
            };
            match used.get(id) {
                Some(workspaces) => kept.push(format!("plan {id} stays: {workspaces} workspaces use it")),
                None => changes.push(deletion("plan", id, ApiPath::of(&["plans", id]))),
            }
        }
        Ok(true)
    })
}

/// Whether the gateway may refuse this deletion without harm: it knows of uses that no list shows, such as the plan of new
/// workspaces.
pub(super) fn may_be_refused(change: &Change) -> bool {
    change.verb == Verb::Delete && change.kind != "key"
}

fn deletion(kind: &'static str, id: &str, path: ApiPath) -> Change {
    let mut change = Change::create(kind, id, path, Method::DELETE, Map::new());
    change.verb = Verb::Delete;
    change
}
