//! The shape of every answer that Keygate itself writes, on both listeners. Contract 4.6.

use crate::clock::Timestamp;
use crate::policy::fault::Fault;
use serde::Serialize;

/// `{"code":0,"msg":"OK","data":{},"error":"","time":<epoch ms>}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Envelope<'a, T> {
    /// 0, or the code of the table of errors.
    pub code: u32,
    /// For people.
    pub msg: &'a str,
    /// What was asked for, or machine-readable detail of a failure.
    pub data: T,
    /// Empty, or the stable name of the failure.
    pub error: &'static str,
    /// When it was written, in epoch milliseconds.
    pub time: i64,
}

impl<'a, T> Envelope<'a, T> {
    /// Success.
    pub const fn ok(data: T, at: Timestamp) -> Self {
        Self { code: 0, msg: "OK", data, error: "", time: at.as_millis() }
    }

    /// Failure.
    pub const fn fault(fault: Fault, msg: &'a str, data: T, at: Timestamp) -> Self {
        Self { code: fault.code(), msg, data, error: fault.name(), time: at.as_millis() }
    }
}
