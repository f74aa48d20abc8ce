//! What has to change so that the gateway is what the files say.

use super::files::{Desired, check_new_plan};
use super::{OWNER, SECRET, marked, prune};
use crate::admin::input::{FieldError, UpdateKeyInput, UpdatePlanInput, UpdateWorkspaceInput};
use crate::cli::Failure;
use crate::cli::gateway::{ApiPath, Gateway};
use crate::cli::output::{Output, harmless};
use crate::clock::Timestamp;
use http::Method;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Everything that has to change, in the order in which it can.
pub(super) struct Planned {
    pub(super) changes: Vec<Change>,
    /// What the files do not name and stays all the same, with the reason.
    pub(super) kept: Vec<String>,
}

/// What goes although no file says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prune {
    Nothing,
    /// Keys of the owner that the files do not name.
    Keys,
    /// Also workspaces and plans that the files do not name and nothing uses.
    KeysAndEmpty,
}

/// One change.
pub(super) struct Change {
    pub(super) verb: Verb,
    /// `plan`, `workspace` or `key`.
    pub(super) kind: &'static str,
    /// Of a key; else empty.
    pub(super) workspace: String,
    /// The id; of a key its `external_id`.
    pub(super) id: String,
    pub(super) path: ApiPath,
    /// How it is created.
    pub(super) create_by: Method,
    pub(super) body: Map<String, Value>,
    /// Of a key, without the entries of its owner.
    pub(super) metadata: Map<String, Value>,
    /// Of a new key: whether it can be used once its secret is on disk.
    pub(super) is_active: bool,
    /// Field, before, after.
    fields: Vec<(String, Value, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Change,
    /// The secret of a key was never written: it gets a new one.
    Secret,
    Delete,
}

/// Fields of a key that never change.
const FIXED: &[&str] = &["type", "resource_id", "end_user"];

/// Whether two values of a field mean the same; the error is why one is not valid.
type Same = fn(&Map<String, Value>, &Map<String, Value>) -> Result<bool, Vec<FieldError>>;

pub(super) fn plan(
    gateway: &mut Gateway,
    desired: &Desired,
    owner: &str,
    prune: Prune,
) -> Result<Planned, Failure> {
    let mut changes = Vec::new();
    for (id, fields) in &desired.plans {
        let path = ApiPath::of(&["plans", id]);
        let same: Same = |a, b| Ok(UpdatePlanInput::read(a)? == UpdatePlanInput::read(b)?);
        if let Some(found) = gateway.find(&path)? {
            changes.extend(changed("plan", id, path, fields, &found, same));
            continue;
        }
        check_new_plan(id, fields).map_err(|why| Failure::Usage(format!("plan {id}: {why}")))?;
        let mut body = fields.clone();
        body.insert("id".into(), json!(id));
        changes.push(Change::create("plan", id, ApiPath::of(&["plans"]), Method::POST, body));
    }
    let mut new_workspaces = BTreeSet::new();
    for (id, fields) in &desired.workspaces {
        let path = ApiPath::of(&["workspaces", id]);
        let same: Same = |a, b| Ok(UpdateWorkspaceInput::read(a)? == UpdateWorkspaceInput::read(b)?);
        if let Some(found) = gateway.find(&path)? {
            changes.extend(changed("workspace", id, path, fields, &found, same));
        } else {
            new_workspaces.insert(id.as_str());
            changes.push(Change::create("workspace", id, path, Method::PUT, fields.clone()));
        }
    }
    for ((workspace, external), fields) in &desired.keys {
        let is_new = new_workspaces.contains(workspace.as_str());
        let found = if is_new { None } else { find_key(gateway, workspace, external)? };
        key(workspace, external, fields, found, owner, &mut changes)?;
    }
    let mut kept = Vec::new();
    if prune != Prune::Nothing {
        let workspaces = prune::keys(gateway, desired, owner, &mut changes)?;
        if prune == Prune::KeysAndEmpty {
            prune::empty(gateway, desired, &workspaces, &mut changes, &mut kept)?;
        }
    }
    gateway.workspace = None;
    Ok(Planned { changes, kept })
}

fn find_key(gateway: &mut Gateway, workspace: &str, external: &str) -> Result<Option<Value>, Failure> {
    gateway.workspace = Some(workspace.to_owned());
    let path = ApiPath::of(&["apikeys"]).with("external_id", external).with("is_active", "any");
    let mut found = None;
    gateway.pages(&path, |keys| {
        found = keys.into_iter().next();
        Ok(false)
    })?;
    Ok(found)
}

/// The changes of one key.
fn key(
    workspace: &str,
    external: &str,
    fields: &Map<String, Value>,
    found: Option<Value>,
    owner: &str,
    changes: &mut Vec<Change>,
) -> Result<(), Failure> {
    let told = format!("key {workspace}/{external}");
    let metadata = fields.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(name) = [OWNER, SECRET].into_iter().find(|name| metadata.contains_key(*name)) {
        return Err(Failure::Usage(format!("{told}: metadata.{name}: is set by apply")));
    }
    let Some(found) = found else {
        let mut body = fields.clone();
        let is_active = body.remove("is_active").is_none_or(|is_active| is_active == true);
        body.insert("external_id".into(), json!(external));
        let path = ApiPath::of(&["apikeys"]);
        let change = Change::create("key", external, path, Method::POST, body);
        changes.push(Change { workspace: workspace.to_owned(), metadata, is_active, ..change });
        return Ok(());
    };
    for name in FIXED {
        let wanted = fields.get(*name).filter(|wanted| !wanted.is_null());
        if wanted.is_some_and(|wanted| *wanted != found[*name]) {
            return Err(Failure::Failed(format!(
                "{told}: {name}: cannot be changed; give the new key another external_id"
            )));
        }
    }
    let current = found["metadata"].as_object().cloned().unwrap_or_default();
    if let Some(other) = current.get(OWNER).and_then(Value::as_str).filter(|other| *other != owner) {
        return Err(Failure::Failed(format!("{told}: belongs to the owner {other}")));
    }
    let is_pending = current.contains_key(SECRET);
    // Files without metadata leave what others have written there.
    let mut own = current.clone();
    own.remove(OWNER);
    own.remove(SECRET);
    let metadata = if fields.contains_key("metadata") { metadata } else { own };
    let mut wanted: Map<String, Value> = fields
        .iter()
        .filter(|(name, _)| !FIXED.contains(&name.as_str()))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    wanted.insert("metadata".into(), Value::Object(marked(&metadata, owner, is_pending)));
    let id = found["id"].as_str().unwrap_or_default();
    let same: Same = |a, b| {
        let read = |fields| UpdateKeyInput::read(fields, None, Timestamp::default());
        Ok(read(a)? == read(b)?)
    };
    let change = changed("key", external, ApiPath::of(&["apikeys", id]), &wanted, &found, same);
    changes.extend(change.map(|change| Change { workspace: workspace.to_owned(), ..change }));
    if is_pending {
        changes.push(Change {
            verb: Verb::Secret,
            workspace: workspace.to_owned(),
            metadata,
            ..Change::create(
                "key",
                external,
                ApiPath::of(&["apikeys", id, "regenerate"]),
                Method::POST,
                Map::new(),
            )
        });
    }
    Ok(())
}

/// The change of something that is there; none: it is what the files say. Fields that they do not name stay.
fn changed(
    kind: &'static str,
    id: &str,
    path: ApiPath,
    wanted: &Map<String, Value>,
    found: &Value,
    same: Same,
) -> Option<Change> {
    let (mut body, mut fields) = (Map::new(), Vec::new());
    for (name, value) in wanted {
        let before = found.get(name).cloned().unwrap_or_default();
        let alone = |value: &Value| Map::from_iter([(name.clone(), value.clone())]);
        // What the gateway shows is valid; what cannot be read is different.
        if before == *value || same(&alone(value), &alone(&before)).unwrap_or(false) {
            continue;
        }
        body.insert(name.clone(), value.clone());
        fields.push((name.clone(), before, value.clone()));
    }
    if body.is_empty() {
        return None;
    }
    let change = Change::create(kind, id, path, Method::PUT, body);
    Some(Change { verb: Verb::Change, fields, ..change })
}

// === impl Change ===

impl Change {
    pub(super) fn create(
        kind: &'static str,
        id: &str,
        path: ApiPath,
        create_by: Method,
        body: Map<String, Value>,
    ) -> Self {
        Self {
            verb: Verb::Create,
            kind,
            workspace: String::new(),
            id: id.to_owned(),
            path,
            create_by,
            body,
            metadata: Map::new(),
            is_active: true,
            fields: Vec::new(),
        }
    }

    /// `key acme/reports`
    pub(super) fn told(&self) -> String {
        let separator = if self.workspace.is_empty() { "" } else { "/" };
        harmless(&format!("{} {}{separator}{}", self.kind, self.workspace, self.id))
    }

    /// Whether it makes a secret.
    pub(super) fn makes_secret(&self) -> bool {
        self.kind == "key" && matches!(self.verb, Verb::Create | Verb::Secret)
    }

    fn lines(&self) -> Vec<String> {
        let told = self.told();
        match self.verb {
            Verb::Create => vec![format!("+ {told}")],
            Verb::Delete => vec![format!("- {told}")],
            Verb::Secret => {
                vec![format!("! {told}: its secret may never have been written; it gets a new one")]
            }
            Verb::Change => {
                let field = |(name, before, after): &(String, Value, Value)| {
                    harmless(&format!("    {name}: {before} -> {after}"))
                };
                std::iter::once(format!("~ {told}")).chain(self.fields.iter().map(field)).collect()
            }
        }
    }

    fn to_json(&self) -> Value {
        let fields = self
            .fields
            .iter()
            .map(|(name, before, after)| (name.clone(), json!({"before": before, "after": after})));
        let workspace = Some(&self.workspace).filter(|id| !id.is_empty());
        json!({
            "action": self.verb.as_str(),
            "kind": self.kind,
            "workspace_id": workspace,
            "id": self.id,
            "fields": fields.collect::<Map<_, _>>(),
        })
    }
}

impl Verb {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Secret => "regenerate",
            Self::Delete => "delete",
        }
    }
}

impl Planned {
    /// Prints the changes.
    pub(super) fn show(&self, output: &mut Output) -> Result<(), Failure> {
        for change in &self.changes {
            if output.json {
                output.line(&change.to_json().to_string())?;
                continue;
            }
            for line in change.lines() {
                output.line(&line)?;
            }
        }
        if output.json {
            return Ok(());
        }
        for kept in &self.kept {
            output.line(&harmless(&format!("= {kept}")))?;
        }
        let count = |verb| self.changes.iter().filter(|change| change.verb == verb).count();
        if self.changes.is_empty() {
            return output.line("nothing to change");
        }
        output.line(&format!(
            "{} to create, {} to change, {} to get a new secret, {} to delete",
            count(Verb::Create),
            count(Verb::Change),
            count(Verb::Secret),
            count(Verb::Delete)
        ))
    }
}
