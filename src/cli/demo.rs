//! `keygate demo`: a complete gateway to try out, without any preparation.

use super::{Environment, Failure, echo, log, ready, say};
use crate::admin::input::{CreateKeyInput, credential};
use crate::admin::{Role, SignInCodes};
use crate::app::{self, InlineSecrets, ProcessContext, Running, Signals, StartError};
use crate::config::Config;
use crate::model::id::{KeyId, WorkspaceId};
use crate::policy::keys::secret::Secret;
use crate::store::{Actor, StoreError};
use clap::Args;
use serde_json::{Map, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The workspace of the demo's key and token.
const WORKSPACE: &str = "demo";
/// How long the demo's admin token is valid.
const TOKEN_TTL: Duration = Duration::from_hours(24);
/// Where the random part of an id begins that tells the keys of demos apart.
const NAME_FROM: usize = 24;
/// The kinds of backends, and the path segments under which they are reached.
const KINDS: [&str; 3] = ["app", "rag", "memory"];

/// Arguments of `keygate demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Print one line of JSON on standard output once every listener accepts, instead of the welcome
    #[arg(long)]
    ready_json: bool,
    /// Keep keys and usage here; the default is a temporary folder that is removed at the end
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The address of the proxy; port 0 picks a free one. The default is port 8080, or a free one
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// The address of the admin API; port 0 picks a free one. The default is port 8081, or a free one
    #[arg(long, value_name = "IP:PORT")]
    admin_listen: Option<SocketAddr>,
}

pub(super) fn run(args: &DemoArgs, _environment: Environment<'_>) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(Failure::failed)?;
    let temporary = match &args.data_dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("keygate-demo-").tempdir().map_err(Failure::failed)?),
    };
    let folder = args.data_dir.as_deref().or(temporary.as_ref().map(tempfile::TempDir::path));
    let folder = folder.ok_or_else(|| Failure::Failed("there is no folder for the demo's data".into()))?;
    let backend = echo::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).map_err(Failure::failed)?;
    let config = config(args, folder, backend)?;
    log::init(&config.log);
    let codes = Arc::new(SignInCodes::default());
    let sign_in_codes = Some(Arc::clone(&codes));
    let around = ProcessContext { signals: Some(&mut signals), sign_in_codes, ..ProcessContext::default() };
    let running = match app::start(&config, None, InlineSecrets::default(), around) {
        Ok(running) => running,
        Err(StartError::Stopped) => return Ok(()),
        Err(error) => return Err(Failure::failed(error)),
    };
    let (secret, token) = running.block_on(first_key(&running, &config))?;
    let code = codes.issue(&token, running.clock.now().wall);
    let console = format!("http://{}/console/sign-in/{code}", running.admin);
    if args.ready_json {
        let mut more = Map::new();
        more.insert("admin_token".into(), json!(token));
        more.insert("api_key".into(), json!(secret.expose()));
        more.insert("console".into(), json!(console));
        more.insert("workspace_id".into(), json!(WORKSPACE));
        ready::print(&running, more)?;
    } else {
        welcome(&running, &secret, &token, &console, args.data_dir.as_deref())?;
    }
    let why = running.block_on(signals.asked_to_stop(Some(&running)));
    running.stop(why);
    Ok(())
}

fn config(args: &DemoArgs, folder: &Path, backend: SocketAddr) -> Result<Config, Failure> {
    let routes = KINDS.map(|kind| {
        format!(
            "[[upstreams]]\nname = \"{kind}\"\nservers = [\"{backend}\"]\n\
             [[routes]]\nname = \"{kind}\"\npath = \"/v1/{kind}/{{rest*}}\"\nupstream = \"{kind}\"\nscopes = [\"{kind}\"]\nresource = \"any\"\n"
        )
    });
    let text = format!("[log]\nlevel = \"warn\"\n{}", routes.concat());
    let mut config = Config::parse(&text, "demo", &[], "demo").map_err(Failure::Config)?;
    config.proxy.listen = vec![args.listen.unwrap_or_else(|| free_or_any(8080))];
    config.admin.listen = args.admin_listen.unwrap_or_else(|| free_or_any(8081));
    config.store.location = crate::config::StoreLocation::Sqlite(folder.join("keygate.db"));
    config.secrets.pepper_file = folder.join("pepper");
    config.admin.jwt.keys = crate::config::JwtKeys::SharedSecretFile(folder.join("admin.jwt.secret"));
    config.usage.journal_dir = folder.join("journal");
    config.proxy.drain_timeout = Duration::from_secs(2);
    Ok(config)
}

/// `port` if it is free, otherwise any free one: the first try of a new user must not fail because of a port.
fn free_or_any(port: u16) -> SocketAddr {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let is_free = std::net::TcpListener::bind(wanted).is_ok();
    SocketAddr::from((Ipv4Addr::LOCALHOST, if is_free { port } else { 0 }))
}

async fn first_key(running: &Running, config: &Config) -> Result<(Secret, String), Failure> {
    let workspace: WorkspaceId = WORKSPACE.parse().map_err(Failure::failed)?;
    let now = running.clock.now().wall;
    let by = Actor::keygate();
    let ensured = running.store.ensure_workspace(&workspace, &config.admin.default_plan, &by, now).await;
    let plan_id = ensured.map_err(Failure::failed)?.value.plan_id;
    let plan = running.store.plan(&plan_id).await.map_err(Failure::failed)?;
    let plan = plan.ok_or_else(|| Failure::failed(StoreError::NotFound("plan")))?.plan;
    let mut wanted = Map::new();
    let id = KeyId::new(now);
    // However soon the demo is started again on the same data, its name must be another.
    let name = id.0.simple().to_string().split_off(NAME_FROM);
    wanted.insert("name".into(), json!(format!("demo {name}")));
    wanted.insert("scopes".into(), json!(KINDS));
    wanted.insert("rate_limit".into(), json!(5));
    wanted.insert("description".into(), json!("made by keygate demo"));
    let input = CreateKeyInput::read(&wanted, &workspace, now)
        .map_err(|errors| Failure::Failed(format!("the demo's key: {errors:?}")))?;
    let prefix = &config.secrets.prefix;
    let secret = Secret::generate(prefix, input.kind);
    let stored = credential(&secret, prefix, &running.peppers);
    let key = input.into_new_key(id, workspace.clone(), &plan, stored).map_err(Failure::failed)?;
    let version = running.store.create_key(key, &by, now).await.map_err(Failure::failed)?.version;
    if !running.keyring.reach(version).await {
        return Err(Failure::Failed("the first key did not reach the keyring".into()));
    }
    let token = running
        .auth
        .mint("demo", Some(&workspace), Role::Platform, TOKEN_TTL, now)
        .map_err(|e| Failure::failed(StartError::from(e)))?;
    Ok((secret, token))
}

fn welcome(
    running: &Running,
    secret: &Secret,
    token: &str,
    console: &str,
    kept: Option<&Path>,
) -> Result<(), Failure> {
    let proxy = running.proxy.first().copied().unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let admin = running.admin;
    let data = kept.map_or("nowhere: it goes away when you stop".into(), |d| d.display().to_string());
    say(format_args!(
        "Keygate is running. It guards an echo backend under /v1/app/, /v1/rag/ and /v1/memory/.

Try the first key (5 requests per second):

  curl -i -H 'Authorization: Bearer {secret}' http://{proxy}/v1/app/hello

Look at it in a browser (this link signs in once, within ten minutes):

  {console}

Or create a key of your own with the admin API:

  curl -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' \\
    -d '{{\"name\":\"mine\",\"type\":\"app\",\"resource_id\":\"app-1\"}}' http://{admin}/apikeys

Admin API: http://{admin}/docs   metrics: http://{admin}/metrics   data: {data}
Stop with Ctrl-C.",
        secret = secret.expose(),
    ))
}
