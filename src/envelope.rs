//! The shape of every answer that Keygate itself writes, on both listeners. Contract 4.6.

use crate::clock::Timestamp;
use crate::model::fault::{Fault, Lang};
use crate::model::id::RequestId;
use crate::policy::http::head::PartialHead;
use crate::policy::keys::denial::Denial;
use http::StatusCode;
use serde::Serialize;
use std::borrow::Cow;
use std::fmt::Write as _;
use utoipa::ToSchema;

/// `{"code":0,"msg":"OK","data":{},"error":"","time":<epoch ms>}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Envelope<T> {
    /// 0 on success, otherwise a code of the table of errors.
    #[schema(example = 0)]
    pub code: u32,
    /// For people, in English or Chinese.
    #[schema(example = "OK")]
    pub msg: Cow<'static, str>,
    /// The result, or details of a failure for programs.
    pub data: T,
    /// Empty on success, otherwise a stable name such as `validation_failed`.
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

/// The whole HTTP/1.1 answer to something that is not a valid request, before its connection is closed.
pub fn last_answer(denial: &Denial, seen: PartialHead<'_>, request_id: RequestId, at: Timestamp) -> Vec<u8> {
    let fault = denial.fault();
    let envelope =
        Envelope::fault(fault, denial.message(Lang::preferred(seen.languages)), denial.detail(), at);
    let body = serde_json::to_vec(&envelope).unwrap_or_default();
    let status = StatusCode::from_u16(fault.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut text = String::with_capacity(512);
    // Writing to a String cannot fail.
    let written = write!(
        text,
        "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Request-Id: {}\r\nDate: {}\r\nConnection: close\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or(""),
        body.len(),
        request_id.0,
        date(at),
    );
    debug_assert!(written.is_ok());
    let mut bytes = text.into_bytes();
    if seen.method != "HEAD" {
        bytes.extend_from_slice(&body);
    }
    bytes
}

/// A date as RFC 9110 writes it.
fn date(at: Timestamp) -> String {
    chrono::DateTime::from_timestamp_millis(at.as_millis())
        .map(|date| date.format("%a, %d %b %Y %H:%M:%S GMT").to_string())
        .unwrap_or_default()
}
