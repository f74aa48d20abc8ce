//! `keygate token`

use super::{ConfigArgs, Environment, Failure, inline_secrets, load, say};
use crate::admin::Role;
use crate::app;
use crate::clock::{Clock, SystemClock};
use crate::model::id::WorkspaceId;
use clap::Args;
use std::sync::Arc;
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
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let auth = app::auth(&config, inline_secrets(environment).signing, &clock).map_err(Failure::failed)?;
    let now = clock.now().wall;
    let token = auth
        .mint(&args.subject, args.workspace.as_ref(), args.role, args.ttl, now)
        .map_err(Failure::failed)?;
    say(format_args!("{token}"))
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
