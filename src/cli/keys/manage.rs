//! The commands about keys that call the admin API.

use super::fields::{KeyFields, body};
use super::{InWorkspace, OneKey};
use crate::cli::Failure;
use crate::cli::gateway::{ApiPath, Gateway};
use crate::cli::output::{Column, Output, instant, shown};
use crate::model::key::KeyType;
use clap::Args;
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    within: InWorkspace,
    /// Include disabled keys
    #[arg(long)]
    all: bool,
    /// List deleted keys that can be restored instead
    #[arg(long)]
    deleted: bool,
    /// Only keys of this type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<KeyType>,
    /// Only keys of this resource
    #[arg(long, value_name = "ID")]
    resource_id: Option<String>,
    /// Only the key with this id in another system
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// Only keys whose name, description or hint contains this, ignoring case
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
}

/// Arguments of `keygate keys create`.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    within: InWorkspace,
    /// The name; unique among the live keys of its resource
    #[arg(long)]
    name: String,
    /// The type: `app`, `rag`, `memory`, `agent`, `multi_agent`, `workflow`, `pure_workflow` or `service`. A service key needs
    /// --scopes; the default for other types is the scope of the type
    #[arg(long = "type", value_name = "TYPE", default_value = "service")]
    kind: KeyType,
    /// The resource it is bound to; required unless the type is service
    #[arg(long, value_name = "ID")]
    resource_id: Option<String>,
    /// The end user it is bound to, by your own id
    #[arg(long, value_name = "ID")]
    end_user: Option<String>,
    /// A name for this call, so that it can be repeated after a failure and makes one key only (24 hours)
    #[arg(long, value_name = "NAME")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    fields: KeyFields,
}

#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    #[command(flatten)]
    key: OneKey,
    /// The name
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    fields: KeyFields,
}

#[derive(Debug, Args)]
pub(super) struct RegenerateArgs {
    #[command(flatten)]
    key: OneKey,
    /// How long the old secret stays valid, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=2_592_000))]
    grace_period_seconds: u32,
}

const COLUMNS: &[Column] = &[
    Column { head: "ID", cell: |key| shown(&key["id"]) },
    Column { head: "STATE", cell: |key| state(key).to_owned() },
    Column { head: "TYPE", cell: |key| shown(&key["type"]) },
    Column { head: "RESOURCE", cell: |key| shown(&key["resource_id"]) },
    Column { head: "HINT", cell: |key| shown(&key["hint"]) },
    Column { head: "LAST USED", cell: |key| instant(&key["last_used_at"]) },
    Column { head: "NAME", cell: |key| shown(&key["name"]) },
];

/// How a key is, in a word.
fn state(key: &Value) -> &'static str {
    if !key["deleted_at"].is_null() {
        "deleted"
    } else if key["is_active"] == false {
        "disabled"
    } else if key["is_expired"] == true {
        "expired"
    } else {
        "active"
    }
}

pub(super) fn list(gateway: &mut Gateway, output: &mut Output, args: &ListArgs) -> Result<(), Failure> {
    args.within.enter(gateway);
    let path = ApiPath::of(&["apikeys"])
        .with_some("type", args.kind.map(KeyType::as_str))
        .with_some("is_active", args.all.then_some("any"))
        .with_some("is_deleted", args.deleted.then_some("true"))
        .with_some("resource_id", args.resource_id.as_ref())
        .with_some("external_id", args.external_id.as_ref())
        .with_some("search", args.search.as_ref());
    let mut table = output.table(COLUMNS);
    gateway.pages(&path, |keys| table.rows(&keys))
}

pub(super) fn get(gateway: &mut Gateway, output: &mut Output, key: &OneKey) -> Result<(), Failure> {
    let path = key.path(gateway, None);
    let found = gateway.get(&path)?;
    output.object(&found)
}

pub(super) fn create(gateway: &mut Gateway, output: &mut Output, args: CreateArgs) -> Result<(), Failure> {
    args.within.enter(gateway);
    let fields = [
        ("name", Some(json!(args.name))),
        ("type", Some(json!(args.kind.as_str()))),
        ("resource_id", args.resource_id.map(|id| json!(id))),
        ("end_user", args.end_user.map(|id| json!(id))),
    ];
    let key = Value::Object(body(fields, Some(args.fields.into_body()?))?);
    let name = match &args.idempotency_key {
        Some(name) => {
            let value = HeaderValue::from_str(name);
            let value = value.map_err(|_| Failure::Usage("--idempotency-key: must be ASCII".into()))?;
            vec![(HeaderName::from_static("idempotency-key"), value)]
        }
        None => Vec::new(),
    };
    let made = gateway.attempt(&Method::POST, &ApiPath::of(&["apikeys"]), Some(&key), &name)??;
    if made["api_key"].is_null() {
        let id = shown(&made["id"]);
        return Err(Failure::Failed(format!(
            "an earlier call has made key {id}, and its answer had the secret; `keygate keys regenerate {id}` makes a new one"
        )));
    }
    secret(output, "created", &made)
}

pub(super) fn update(gateway: &mut Gateway, output: &mut Output, args: UpdateArgs) -> Result<(), Failure> {
    let fields = body([("name", args.name.map(|name| json!(name)))], Some(args.fields.into_body()?))?;
    if fields.is_empty() {
        return Err(Failure::Usage("name what to change".into()));
    }
    change(gateway, output, &args.key, &Value::Object(fields), "changed")
}

pub(super) fn enable(
    gateway: &mut Gateway,
    output: &mut Output,
    key: &OneKey,
    is_active: bool,
) -> Result<(), Failure> {
    let told = if is_active { "enabled" } else { "disabled" };
    change(gateway, output, key, &json!({"is_active": is_active}), told)
}

pub(super) fn regenerate(
    gateway: &mut Gateway,
    output: &mut Output,
    args: &RegenerateArgs,
) -> Result<(), Failure> {
    let path = args.key.path(gateway, Some("regenerate"));
    let grace = json!({"grace_period_seconds": args.grace_period_seconds});
    let made = gateway.call(&Method::POST, &path, Some(&grace))?;
    secret(output, "gave a new secret to", &made)
}

pub(super) fn delete(gateway: &mut Gateway, output: &mut Output, key: &OneKey) -> Result<(), Failure> {
    let path = key.path(gateway, None);
    let deleted = gateway.call(&Method::DELETE, &path, None)?;
    done(output, &key.id, "deleted", &deleted)
}

pub(super) fn restore(gateway: &mut Gateway, output: &mut Output, key: &OneKey) -> Result<(), Failure> {
    let path = key.path(gateway, Some("restore"));
    let restored = gateway.call(&Method::POST, &path, None)?;
    done(output, &key.id, "restored", &restored)
}

fn change(
    gateway: &mut Gateway,
    output: &mut Output,
    key: &OneKey,
    fields: &Value,
    told: &str,
) -> Result<(), Failure> {
    let path = key.path(gateway, None);
    let changed = gateway.call(&Method::PUT, &path, Some(fields))?;
    done(output, &key.id, told, &changed)
}

/// What was done: for people on standard error, for programs the answer.
pub(in crate::cli) fn done(
    output: &mut Output,
    id: &impl ToString,
    told: &str,
    answer: &Value,
) -> Result<(), Failure> {
    eprintln!("{} is {told}", id.to_string());
    if output.json { output.object(answer) } else { Ok(()) }
}

/// Prints a secret, this once: alone on standard output, or in the answer.
fn secret(output: &mut Output, told: &str, made: &Value) -> Result<(), Failure> {
    eprintln!("{told} {}; its secret is shown this once:", shown(&made["id"]));
    if output.json { output.object(made) } else { output.line(made["api_key"].as_str().unwrap_or_default()) }
}

impl OneKey {
    /// The path of the key's resource, or of one below it; the gateway's calls are about its workspace.
    fn path(&self, gateway: &mut Gateway, below: Option<&str>) -> ApiPath {
        self.within.enter(gateway);
        let id = self.id.to_string();
        match below {
            Some(below) => ApiPath::of(&["apikeys", &id, below]),
            None => ApiPath::of(&["apikeys", &id]),
        }
    }
}
