//! THE PINGORA EDGE: from bytes on a socket to [`crate::gate`] and on to a backend.
//!
//! Must not know: how a decision is made, who stores what, the admin API. When a backend is gone the client gets the
//! contract's envelope and the charge is given back.

mod body;
mod ctx;
mod decide;
mod headers;
pub mod listen;
mod ratelimit;
mod reply;
mod service;
mod trip;
pub mod upstream;

pub use headers::HeaderPolicy;
pub use ratelimit::Families;
pub use service::{Proxy, ProxyLimits};
