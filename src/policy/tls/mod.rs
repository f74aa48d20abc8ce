//! Certificates: when one is renewed.

pub mod renewal;
