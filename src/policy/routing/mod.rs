//! Routes: which one a request takes, and what it changes about the message.

pub mod forward;
pub mod rewrite;
pub mod route;
