//! `keygate token`

use super::{ConfigArgs, Environment, Failure, inline_secrets, load, say};
use crate::admin::Role;
use crate::app;
use crate::app::StartError;
use crate::clock::{Clock as _, SystemClock};
use crate::config::{Config, JwtKeys};
use crate::model::id::WorkspaceId;
use clap::Args;
use std::time::Duration;

/// Longest life of a token.
const TTL_MAX: Duration = Duration::from_hours(365 * 24);

/// Arguments of `keygate token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The subject of the token: the `sub` claim, shown in the audit log
    #[arg(long, default_value = "admin")]
    subject: String,
    /// The workspace of the token. A platform token may omit it and name one per call in X-Workspace-Id
    #[arg(long, value_name = "ID")]
    workspace: Option<WorkspaceId>,
    /// viewer (read), admin (read and write in its workspace) or platform (plans, workspaces, every workspace)
    #[arg(long, default_value = "admin", value_parser = role)]
    role: Role,
    /// Lifetime, e.g. 15m, 12h, 30d (at most 365d)
    #[arg(long, default_value = "12h", value_parser = ttl)]
    ttl: Duration,
}

pub(super) fn run(args: &TokenArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment)?;
    if args.workspace.is_none() && args.role != Role::Platform {
        return Err(Failure::Usage(format!("a token of role {} needs --workspace", args.role.as_str())));
    }
    let inline = inline_secrets(environment).signing;
    let auth = app::signer(&config, inline).map_err(|error| no_secret(&config, &error))?;
    let now = SystemClock::new().now().wall;
    let token = auth
        .mint(&args.subject, args.workspace.as_ref(), args.role, args.ttl, now)
        .map_err(Failure::failed)?;
    match (inline, &config.admin.jwt.keys) {
        (None, JwtKeys::SharedSecretFile(path)) => eprintln!("signed with the secret in {}", path.display()),
        _ => eprintln!("signed with the secret of the environment"),
    }
    say(format_args!("{token}"))
}

/// The usual reason is another folder than the gateway's.
fn no_secret(config: &Config, error: &StartError) -> Failure {
    let JwtKeys::SharedSecretFile(path) = &config.admin.jwt.keys else { return Failure::failed(error) };
    if path.exists() {
        return Failure::failed(error);
    }
    Failure::Failed(format!(
        "{error}; the first start of the gateway creates it: run this command in the folder of the gateway, or name its \
         config with --config"
    ))
}

fn role(text: &str) -> Result<Role, String> {
    text.parse().map_err(|_| format!("must be one of: {}", Role::WORDS.join(", ")))
}

fn ttl(text: &str) -> Result<Duration, String> {
    let unit = |c| match c {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3_600),
        'd' => Some(86_400),
        _ => None,
    };
    let parsed = text.char_indices().next_back().and_then(|(at, c)| {
        let count: u64 = text[..at].parse().ok()?;
        Some(Duration::from_secs(count.checked_mul(unit(c)?)?))
    });
    parsed
        .filter(|d| (Duration::from_secs(1)..=TTL_MAX).contains(d))
        .ok_or_else(|| "must be a number of s, m, h or d, from 1s to 365d, as in 12h".into())
}
