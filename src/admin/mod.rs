//! The admin API: keys, plans, workspaces, end users, usage and the audit trail over HTTP. Contract 5 and 4.6.
//!
//! Must not know: the data plane, or which store it talks to. When the store is gone, reads and writes answer 503 within
//! the write timeout; health, metrics and the documents go on.
//!
//! *Invariant:* a handler gets a workspace only from `caller`, which has checked the token.
//! *Invariant:* every answer is rendered in `envelope`; handlers and errors only say what happened.

mod apikeys;
mod audit;
mod auth;
mod caller;
mod context;
mod document;
mod endusers;
mod envelope;
mod error;
mod extract;
mod health;
pub mod input;
mod jwt;
mod logs;
mod page;
mod plans;
mod propagation;
mod reload;
mod router;
mod schema;
mod server;
#[cfg(test)]
mod tests;
mod usage;
mod workspaces;

pub use auth::{Algorithm, Auth, AuthClaims, AuthConfig, AuthKeys, BadAuth, Role};
pub use context::{AdminDeps, MetricsToken, Readiness, ReadinessCheck};
pub use reload::{Reload, ReloadError, Reloaded};
pub use router::{openapi, router};
pub use server::{AdminServer, ServerLimits, ServerState};
