//! The content of a request head, whoever has parsed it.
//!
//! Must not know: what happens to the request.

pub(super) mod fields;
pub(super) mod headers;
pub(super) mod ratelimit;

use crate::policy::http::fields::HeaderFields;
use http::header::CONTENT_LENGTH;
use http::{Method, Version};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

/// A head.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestMessage<'r> {
    pub(super) method: &'r Method,
    /// As sent.
    pub(super) target: &'r [u8],
    pub(super) path: &'r str,
    /// Over HTTP/2.
    pub(super) authority: Option<&'r str>,
    pub(super) version: Version,
    pub(super) fields: HeaderFields<'r>,
    pub(super) has_body: bool,
}

impl<'r> RequestMessage<'r> {
    /// From Pingora's representation.
    pub(super) fn of(header: &'r RequestHeader, has_body: bool) -> Self {
        Self {
            method: &header.method,
            target: header.raw_path(),
            path: header.uri.path(),
            authority: header.uri.authority().map(http::uri::Authority::as_str),
            version: header.version,
            fields: HeaderFields::Map(&header.headers),
            has_body,
        }
    }

    /// The declared length of the body.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.fields.text(&CONTENT_LENGTH)?.parse().ok()
    }
}

/// The declared length of the body.
pub(super) fn content_length(session: &Session) -> Option<u64> {
    session.req_header().headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
