//! THE PINGORA EDGE: from bytes on a socket to [`crate::gate`] and on to a backend.
//!
//! Must not know: how a decision is made, who stores what, the admin API. When a backend is gone the client gets the
//! contract's envelope and the charge is given back.

pub mod access;
mod body;
pub mod connection;
pub mod connections;
mod cors;
mod ctx;
mod decide;
mod fields;
mod forward;
mod front;
pub mod guesses;
mod headers;
mod http1;
mod http2;
pub mod listen;
mod message;
mod ratelimit;
mod reply;
mod rewind;
mod service;
mod site;
mod socket;
mod stream;
pub mod tls;
mod traces;
mod trip;
mod tunnel;
pub mod upstream;
mod wire;

pub use headers::HeaderPolicy;
pub use ratelimit::Families;
pub use service::{Phases, Proxy, ProxyLimits};
pub use site::Site;
pub use traces::Tracing;
