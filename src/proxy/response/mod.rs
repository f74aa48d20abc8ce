//! Keygate's own responses: refusals and errors.

pub(super) mod error_body;
pub(super) mod reply;
