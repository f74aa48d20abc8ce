//! The admin API of a store that no gateway has open, in this process.

use super::Transport;
use crate::admin::{
    AdminDeps, Auth, AuthClaims, AuthConfig, AuthKeys, Backends, InProcessApi, Readiness, Reload,
    ReloadError, Reloaded,
};
use crate::cli::keys::KeyCommand;
use crate::cli::{Environment, Failure, inline_secrets, log};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::keyring::Keyring;
use crate::metrics::Metrics;
use crate::model::fault::ErrorText;
use crate::model::id::{CredentialId, PlanId};
use crate::model::key::Measure;
use crate::model::scope::Scopes;
use crate::policy::routing::counted::why_uncounted;
use crate::policy::upstream::encryption::EncryptionKeys;
use crate::store::Actor;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Longest wait of one call for the store.
const STORE_PATIENCE: Duration = Duration::from_secs(50);
/// Largest body of a call, in bytes.
const BODY_MAX: usize = 64 << 20;

/// There is no gateway whose config could be reloaded; what the config file says of plans and routes is known all the same.
struct NoGateway {
    managed: Vec<PlanId>,
    config: Config,
}

/// Opens the store of `config`.
pub(super) fn open(config: Config, environment: Environment<'_>) -> Result<(Runtime, Transport), Failure> {
    log::init(&config.log);
    let command = KeyCommand::open(config, inline_secrets(environment).peppers)?;
    let (runtime, config, store, peppers) = command.into_parts();
    let managed = config.plans.iter().filter(|plan| plan.managed).map(|plan| plan.plan.id.clone()).collect();
    let no_gateway = Arc::new(NoGateway { managed, config: config.clone() });
    let deps = AdminDeps {
        store: Arc::clone(&store),
        keyring: Arc::new(Keyring::detached()),
        peppers,
        secret_prefix: config.secrets.prefix.as_str().into(),
        clock: Arc::new(SystemClock::new()),
        auth: Arc::new(no_tokens()?),
        jwks: None,
        introspection: None,
        oidc: None,
        metrics: Arc::new(Metrics::new().map_err(Failure::failed)?),
        readiness: Arc::new(|| Readiness { ready: false, checks: Vec::new() }),
        reload: Arc::clone(&no_gateway) as Arc<dyn Reload>,
        held: Arc::new(|_, _| Default::default()),
        backends: no_gateway,
        default_plan: config.admin.default_plan.clone(),
        create_workspaces: config.admin.create_workspaces,
        metrics_token: None,
        max_body_bytes: BODY_MAX,
        write_timeout: STORE_PATIENCE,
        base_path: String::new(),
        error_text: ErrorText::Name,
        cors: None,
        sign_in_codes: None,
    };
    let api = Box::new(InProcessApi::new(deps, "cli"));
    Ok((runtime, Transport::Local { api, store }))
}

/// Nobody calls with a token.
fn no_tokens() -> Result<Auth, Failure> {
    let config = AuthConfig {
        keys: AuthKeys::Unread,
        algorithms: Vec::new(),
        issuer: None,
        audience: None,
        require: Vec::new(),
        roles: Vec::new(),
        default_role: None,
        workspace_header_subjects: Vec::new(),
        leeway: Duration::ZERO,
        claims: AuthClaims::default(),
    };
    Auth::new(config).map_err(Failure::failed)
}

#[async_trait]
impl Reload for NoGateway {
    async fn reload(&self, _: &Actor) -> Result<Reloaded, ReloadError> {
        Err(ReloadError::Mistakes(vec!["no gateway runs".into()]))
    }

    fn is_managed(&self, plan: &PlanId) -> bool {
        self.managed.contains(plan)
    }
}

impl Backends for NoGateway {
    fn has_upstream(&self, _: &str) -> bool {
        false
    }

    fn why_uncounted(&self, measure: Measure, granted: Option<&Scopes>) -> Option<String> {
        why_uncounted(self.config.key_routes(), measure, granted)
    }

    fn encryption_keys(&self) -> Option<&EncryptionKeys> {
        None
    }

    fn is_usable(&self, _: CredentialId) -> bool {
        false
    }
}
