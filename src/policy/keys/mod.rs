//! Keys and what they may do: which secret was presented, what it grants, what it may spend, how it is refused.

pub mod authorize;
pub mod calendar;
pub mod claims;
pub mod credential;
pub mod denial;
pub mod limit;
pub mod secret;
