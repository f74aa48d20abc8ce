//! Routes: which one matches a request, and what it changes about messages.

pub mod counted;
pub mod forward;
pub mod rewrite;
pub mod route;
