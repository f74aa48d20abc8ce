//! Keygate's own answers: refusals of requests, and of what is no request.

pub(super) mod reply;
