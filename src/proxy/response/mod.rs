//! Keygate's own responses: refusals and errors.

pub(super) mod reply;
