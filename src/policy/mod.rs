//! The pure rules of keys, secrets, routes, limits and denials.
//!
//! Must not know: I/O, tasks, the time (it is an argument), any store or server.
//!
//! *Invariant:* nothing in here is `async`, holds a trait object or asks what time it is.

pub mod http;
pub mod keys;
pub mod meter;
pub mod prices;
pub mod routing;
pub mod text;
pub mod tls;
pub mod upstream;
