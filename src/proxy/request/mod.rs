//! The request's side: decided, read, changed for its upstream, and sent to a server.

pub(super) mod attempt;
pub(super) mod body;
pub(super) mod decide;
pub(super) mod forward;
pub(super) mod preflight;
pub(super) mod rewind;
pub(super) mod tunnel;
