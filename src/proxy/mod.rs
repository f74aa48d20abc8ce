//! THE PINGORA EDGE: from bytes on a socket to [`crate::gate`] and on to a backend.
//!
//! Must not know: how a decision is made, who stores what, the admin API. When a backend is gone the client gets the
//! contract's envelope and the charge is given back.

pub mod connection;
mod ctx;
mod exchange;
mod holds;
mod message;
mod meter;
pub mod observe;
mod request;
mod response;
pub mod series;
pub mod server;
mod service;
mod snapshot;
mod state;
pub mod upstream;
mod verified;

pub use message::headers::HeaderPolicy;
pub use message::ratelimit::RateLimitFamilies;
pub use observe::traces::Tracing;
pub use service::Phases;
pub use snapshot::RoutingSnapshot;
pub use state::{Applications, HealthPath, Proxy, ProxyLimits};
pub use verified::VerifiedHolds;
