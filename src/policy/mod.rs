//! What is right: the pure rules of keys, secrets, routes, limits and denials.
//!
//! Must not know: I/O, tasks, the time (it is an argument), any store or server.
//!
//! *Invariant:* nothing in here is `async`, holds a trait object or asks what time it is.

pub mod authorize;
pub mod balance;
pub mod cell;
pub mod chunks;
pub mod claims;
pub mod coding;
pub mod cors;
pub mod credential;
pub mod denial;
pub mod fault;
pub mod fields;
pub mod forward;
pub mod head;
pub mod health;
pub mod id;
pub mod key;
pub mod limit;
pub mod path;
pub mod renewal;
pub mod retry;
pub mod rewrite;
pub mod route;
pub mod scope;
pub mod secret;
pub mod source;
pub mod trace;
pub mod value;
pub mod websocket;
