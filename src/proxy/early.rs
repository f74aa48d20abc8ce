//! Answers to what never became a request: written by hand, in the contract's envelope, before the connection closes.

use crate::clock::{Now, Timestamp};
use crate::envelope::Envelope;
use crate::policy::denial::{BadRequest, Denial};
use crate::policy::fault::{Fault, Lang};
use crate::policy::head::BadHead;
use crate::policy::id::RequestId;
use http::StatusCode;
use std::fmt::Write as _;

/// What is said about a head that is refused.
pub(super) fn denial_of(bad: BadHead) -> Denial {
    match bad {
        BadHead::Syntax => Denial::BadRequest(BadRequest::Syntax),
        BadHead::Framing => Denial::BadRequest(BadRequest::Framing),
        BadHead::Host => Denial::BadRequest(BadRequest::Host),
        BadHead::Target(bad_path) => Denial::BadRequest(BadRequest::Path(bad_path)),
        BadHead::Coding | BadHead::Connect => Denial::Plain(Fault::NotImplemented),
        BadHead::Fields => Denial::Plain(Fault::HeadersTooLarge),
    }
}

/// The whole answer. `head` is what is known of the request: one to `HEAD` gets no body.
pub(super) fn answer(denial: &Denial, head: &[u8], now: Now) -> Vec<u8> {
    let fault = denial.fault();
    let envelope = Envelope::fault(fault, denial.message(Lang::En), denial.detail(), now.wall);
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
        RequestId::new(now.wall).0,
        date(now.wall),
    );
    debug_assert!(written.is_ok());
    let mut bytes = text.into_bytes();
    if !head.starts_with(b"HEAD ") {
        bytes.extend_from_slice(&body);
    }
    bytes
}

/// As RFC 9110 writes it.
fn date(at: Timestamp) -> String {
    chrono::DateTime::from_timestamp_millis(at.as_millis())
        .map(|date| date.format("%a, %d %b %Y %H:%M:%S GMT").to_string())
        .unwrap_or_default()
}
