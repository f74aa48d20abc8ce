//! The shape of every answer that Keygate itself writes, on both listeners. Contract 4.6.

use crate::clock::Timestamp;
use crate::policy::fault::Fault;
use serde::Serialize;
use std::borrow::Cow;
use utoipa::ToSchema;

/// `{"code":0,"msg":"OK","data":{},"error":"","time":<epoch ms>}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Envelope<T> {
    /// 0 on success, else a code of the table of errors.
    #[schema(example = 0)]
    pub code: u32,
    /// For people, in English or Chinese.
    #[schema(example = "OK")]
    pub msg: Cow<'static, str>,
    /// What was asked for, or machine-readable detail of a failure.
    pub data: T,
    /// Empty on success, else a stable name such as `validation_failed`.
    #[schema(example = "")]
    pub error: &'static str,
    /// When the answer was written, in epoch milliseconds.
    pub time: i64,
}

impl<T> Envelope<T> {
    /// Success.
    pub const fn ok(data: T, at: Timestamp) -> Self {
        Self { code: 0, msg: Cow::Borrowed("OK"), data, error: "", time: at.as_millis() }
    }

    /// Failure.
    pub const fn fault(fault: Fault, msg: Cow<'static, str>, data: T, at: Timestamp) -> Self {
        Self { code: fault.code(), msg, data, error: fault.name(), time: at.as_millis() }
    }
}
