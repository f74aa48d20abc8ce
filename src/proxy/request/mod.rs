//! The request side of the proxy: decides, reads, rewrites and sends requests, and ends them.

pub(super) mod ahead;
pub(super) mod attempt;
pub(super) mod body;
pub(super) mod decide;
pub(super) mod forward;
pub(super) mod listener;
pub(super) mod outcome;
pub(super) mod preflight;
pub(super) mod rewind;
pub(super) mod rewrite;
pub(super) mod tunnel;
