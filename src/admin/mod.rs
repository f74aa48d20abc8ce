//! The admin API: keys, plans, workspaces, end users, usage and the audit log over HTTP. Contract 5 and 4.6.
//!
//! Must not know: the proxy, or which store it uses. While the store is unreachable, reads and writes return 503 within the
//! write timeout; health, metrics and documents still work.
//!
//! *Invariant:* a handler gets a workspace only from `caller`, which has verified the token.
//! *Invariant:* every answer is written by `envelope`; handlers and errors only say what happened.

mod apikeys;
mod audit;
mod auth;
mod caller;
mod client_credentials;
mod codes;
mod console;
mod context;
mod cursor;
mod document;
mod endusers;
mod envelope;
mod error;
mod extract;
mod grants;
mod health;
mod idempotency;
mod imports;
mod in_process;
pub mod input;
mod introspection;
mod jwks;
mod jwt;
mod key_list;
mod limit_usage;
mod logs;
mod lookup;
mod oidc;
mod outside;
mod page;
mod plans;
mod prices;
mod propagation;
mod reload;
mod router;
mod schema;
mod server;
#[cfg(test)]
mod tests;
mod upstreams;
mod usage;
mod usage_totals;
mod workspaces;

pub use auth::{Algorithm, Auth, AuthClaims, AuthConfig, AuthKeys, BadAuth, Role};
pub use caller::LocalCaller;
pub use client_credentials::ClientCredentials;
pub use codes::SignInCodes;
pub use context::{AdminDeps, Backends, HeldUnits, MetricsToken, Readiness, ReadinessCheck};
pub use context::{Reload, ReloadError, Reloaded};
pub use in_process::InProcessApi;
pub use introspection::{Introspection, IntrospectionOptions};
pub use jwks::{JwksOptions, RemoteJwks, read_key_set};
pub use oidc::{GroupGrant, Oidc, OidcClaims, OidcOptions};
pub use router::{openapi, router};
pub use server::{AdminServer, AdminSocketListener, ServerLimits, ServerState};
