//! Answers to what never became a request: written by hand, in the contract's envelope, before the connection closes.

use crate::clock::{Now, Timestamp};
use crate::envelope::Envelope;
use crate::policy::denial::{BadRequest, Denial};
use crate::policy::fault::{Fault, Lang};
use crate::policy::head::{BadHead, Glimpse};
use crate::policy::id::RequestId;
use http::StatusCode;
use std::fmt::Write as _;

/// What is said about a head that is refused.
pub(super) fn denial_of(bad: BadHead) -> Denial {
    match bad {
        BadHead::Syntax => Denial::BadRequest(BadRequest::Syntax),
        BadHead::Framing => Denial::BadRequest(BadRequest::Framing),
        BadHead::Host => Denial::BadRequest(BadRequest::Host),
        BadHead::Connection => Denial::BadRequest(BadRequest::Connection),
        BadHead::Target(bad_path) => Denial::BadRequest(BadRequest::Path(bad_path)),
        BadHead::Coding | BadHead::Connect => Denial::Plain(Fault::NotImplemented),
        BadHead::Fields => Denial::Plain(Fault::HeadersTooLarge),
    }
}

/// A refusal, and what can be made out of the request it answers.
pub(super) struct Refusal<'h> {
    pub(super) denial: &'h Denial,
    pub(super) seen: Glimpse<'h>,
    pub(super) request_id: RequestId,
    pub(super) now: Now,
}

impl Refusal<'_> {
    /// The whole answer.
    pub(super) fn answer(&self) -> Vec<u8> {
        let fault = self.denial.fault();
        let lang = Lang::preferred(self.seen.languages);
        let envelope = Envelope::fault(fault, self.denial.message(lang), self.denial.detail(), self.now.wall);
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
            self.request_id.0,
            date(self.now.wall),
        );
        debug_assert!(written.is_ok());
        let mut bytes = text.into_bytes();
        if self.seen.method != "HEAD" {
            bytes.extend_from_slice(&body);
        }
        bytes
    }
}

/// As RFC 9110 writes it.
fn date(at: Timestamp) -> String {
    chrono::DateTime::from_timestamp_millis(at.as_millis())
        .map(|date| date.format("%a, %d %b %Y %H:%M:%S GMT").to_string())
        .unwrap_or_default()
}
