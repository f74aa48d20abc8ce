//! `keygate keys create`

use super::{InWorkspace, KeyCommand, told};
use crate::admin::input::{CreateKeyInput, credential};
use crate::cli::{Failure, say};
use crate::model::id::KeyId;
use crate::model::key::KeyType;
use crate::policy::keys::secret::Secret;
use crate::store::Actor;
use clap::Args;
use serde_json::{Map, Value, json};

/// Arguments of `keygate keys create`. They are checked by the same rules as `POST /apikeys`.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    within: InWorkspace,
    /// The name; unique among the live keys of its resource
    #[arg(long)]
    name: String,
    /// The type: `app`, `rag`, `memory`, `agent`, `multi_agent`, `workflow`, `pure_workflow` or `service`
    #[arg(long = "type", value_name = "TYPE", default_value = "service")]
    kind: KeyType,
    /// The resource it is bound to; required unless the type is service
    #[arg(long, value_name = "ID")]
    resource_id: Option<String>,
    /// A description
    #[arg(long)]
    description: Option<String>,
    /// The scopes it grants, separated by commas: `orders:read,orders:*`. Required for a service key, where '' grants
    /// nothing; the default for other types is the scope of the type
    #[arg(long, value_delimiter = ',')]
    scopes: Option<Vec<String>>,
    /// Requests per second
    #[arg(long, value_name = "N")]
    rate_limit: Option<u64>,
    /// Requests that may come at once
    #[arg(long, value_name = "N")]
    rate_burst: Option<u64>,
    /// Requests per day
    #[arg(long, value_name = "N")]
    daily_request_limit: Option<u64>,
    /// Requests in its life
    #[arg(long, value_name = "N")]
    quota_limit: Option<u64>,
    /// Requests in flight
    #[arg(long, value_name = "N")]
    concurrency_limit: Option<u64>,
    /// Expiry: epoch seconds or milliseconds, or RFC 3339
    #[arg(long, value_name = "INSTANT")]
    expires_at: Option<String>,
    /// Addresses or networks from which it may be used; several with commas
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    allowed_ips: Vec<String>,
    /// The end user it is bound to, by your own id
    #[arg(long, value_name = "ID")]
    end_user: Option<String>,
}

pub(super) fn run(command: &KeyCommand, args: CreateArgs) -> Result<(), Failure> {
    let workspace = args.within.workspace.clone();
    let plan = command.plan_of(&workspace)?;
    let input =
        CreateKeyInput::read(&fields(args), &workspace, command.now).map_err(|e| Failure::Usage(told(&e)))?;
    let prefix = &command.config.secrets.prefix;
    let secret = Secret::generate(prefix, input.kind);
    let issued = credential(&secret, prefix, &command.peppers);
    let key =
        input.into_new_key(KeyId::new(command.now), workspace, &plan, issued).map_err(Failure::failed)?;
    let written = command.wait(command.store.create_key(key, &Actor::cli(), command.now))?;
    eprintln!("created {}; its secret is shown this once:", written.value.key.id);
    say(format_args!("{}", secret.expose()))
}

fn fields(args: CreateArgs) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.into(), value);
        }
    };
    set("name", json!(args.name));
    set("type", json!(args.kind.as_str()));
    set("resource_id", json!(args.resource_id));
    set("description", json!(args.description));
    let words = |list: Vec<String>| list.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>();
    set("scopes", args.scopes.map_or(Value::Null, |list| json!(words(list))));
    set("rate_limit", json!(args.rate_limit));
    set("rate_burst", json!(args.rate_burst));
    set("daily_request_limit", json!(args.daily_request_limit));
    set("quota_limit", json!(args.quota_limit));
    set("concurrency_limit", json!(args.concurrency_limit));
    set(
        "expires_at",
        args.expires_at.map_or(Value::Null, |t| t.parse::<i64>().map_or(json!(t), |n| json!(n))),
    );
    set("allowed_ips", if args.allowed_ips.is_empty() { Value::Null } else { json!(args.allowed_ips) });
    set("end_user", json!(args.end_user));
    fields
}
