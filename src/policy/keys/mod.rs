//! Keys: which secret was presented, what it grants, its limits, and how it is refused.

pub mod authorize;
pub mod bearer;
pub mod calendar;
pub mod claims;
pub mod credential;
pub mod denial;
pub mod limit;
pub mod secret;
