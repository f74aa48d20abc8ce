//! What is taken off a request and what is put on it before it goes to a backend. Contract 4.5.

use crate::gate::Admission;
use crate::policy::credential::bearer;
use crate::policy::trace::TraceContext;
use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use std::net::IpAddr;

/// What a client may not say about itself: set by Keygate, or removed.
const OWN: &[&str] = &[
    "x-keygate-key-id",
    "x-keygate-workspace-id",
    "x-keygate-key-type",
    "x-keygate-scopes",
    "x-keygate-resource-id",
    "x-keygate-end-user-id",
    "x-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
    "forwarded",
];

/// Fields that end at the next hop (RFC 9110, 7.6.1) and that a backend's answer may still carry.
const HOP_BY_HOP: &[&str] = &["keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer"];

/// Which names mean something to Keygate, so that no second spelling of them reaches a backend.
#[derive(Clone, Debug)]
pub struct HeaderPolicy {
    secret_headers: Box<[HeaderName]>,
    /// Names whose spelling with `_` some servers read as the same name.
    guarded: Box<[Box<str>]>,
}

/// What is told to the backend about a request.
#[derive(Debug)]
pub struct Told<'r> {
    /// Proof that it may be forwarded, and for whom.
    pub admission: &'r Admission,
    /// What the request is known by.
    pub request_id: &'r HeaderValue,
    /// From where it came.
    pub address: IpAddr,
    /// Whether it came encrypted.
    pub secure: bool,
    /// Its place in a trace, where that is another than the client's, or the client gave none.
    pub trace: Option<TraceContext>,
    /// Whether the secret goes along.
    pub keep_credential: bool,
}

impl HeaderPolicy {
    /// `secret_headers` may carry a secret; `named` are further headers that routes read.
    pub fn new(secret_headers: &[HeaderName], named: impl Iterator<Item = HeaderName>) -> Self {
        let own = OWN.iter().map(|n| Box::<str>::from(*n));
        let configured = secret_headers.iter().cloned().chain(named).map(|n| Box::from(n.as_str()));
        let mut guarded: Vec<Box<str>> = own.chain(configured).collect();
        guarded.sort_unstable();
        guarded.dedup();
        Self { secret_headers: secret_headers.into(), guarded: guarded.into() }
    }

    /// Rewrites `header` for the backend.
    pub fn to_backend(&self, header: &mut RequestHeader, told: &Told<'_>) -> pingora::Result<()> {
        self.remove_spoofable(header);
        if !told.keep_credential {
            self.remove_credential(header);
        }
        identify(header, told)?;
        forwarded(header, told)?;
        trace(header, told)
    }

    fn remove_spoofable(&self, header: &mut RequestHeader) {
        let spoofable = |name: &HeaderName| {
            let text = name.as_str();
            if text.starts_with("x-keygate-") || OWN.contains(&text) {
                return true;
            }
            text.contains('_') && self.is_guarded(&text.replace('_', "-"))
        };
        // Usually there is none, and collecting none allocates nothing.
        let found: Vec<HeaderName> = header.headers.keys().filter(|n| spoofable(n)).cloned().collect();
        for name in found {
            header.remove_header(&name);
        }
    }

    fn is_guarded(&self, dashed: &str) -> bool {
        dashed.starts_with("x-keygate-") || self.guarded.binary_search_by(|g| (**g).cmp(dashed)).is_ok()
    }

    fn remove_credential(&self, header: &mut RequestHeader) {
        for name in &self.secret_headers {
            // `Authorization` of another scheme never was our credential; it is the backend's.
            let foreign = *name == AUTHORIZATION
                && header.headers.get_all(name).iter().all(|v| bearer(v.as_bytes().trim_ascii()).is_none());
            if !foreign {
                header.remove_header(name);
            }
        }
    }
}

fn identify(header: &mut RequestHeader, told: &Told<'_>) -> pingora::Result<()> {
    let key = &told.admission.entry().key;
    let mut id = [0_u8; uuid::fmt::Hyphenated::LENGTH];
    header.insert_header("X-Keygate-Key-Id", &*key.id.0.hyphenated().encode_lower(&mut id))?;
    header.insert_header("X-Keygate-Workspace-Id", key.workspace_id.as_str())?;
    header.insert_header("X-Keygate-Key-Type", key.kind.as_str())?;
    header.insert_header("X-Keygate-Scopes", key.scopes.joined())?;
    header.insert_header("X-Keygate-Resource-Id", ascii(&key.resource_id).as_ref())?;
    if let Some(end_user) = told.admission.end_user() {
        header.insert_header("X-Keygate-End-User-Id", &*end_user.0.hyphenated().encode_lower(&mut id))?;
    }
    header.insert_header("X-Request-Id", told.request_id)?;
    Ok(())
}

fn forwarded(header: &mut RequestHeader, told: &Told<'_>) -> pingora::Result<()> {
    header.insert_header("X-Forwarded-For", told.address.to_canonical().to_string())?;
    header.insert_header("X-Forwarded-Proto", if told.secure { "https" } else { "http" })?;
    if let Some(host) = header.headers.get(HOST).cloned() {
        header.insert_header("X-Forwarded-Host", host)?;
    }
    Ok(())
}

/// W3C trace context. What others have added to a trace stays with it, and does not belong to one that begins here.
fn trace(header: &mut RequestHeader, told: &Told<'_>) -> pingora::Result<()> {
    let Some(context) = told.trace else { return Ok(()) };
    let goes_on = TraceContext::of(&header.headers).is_some_and(|given| given.trace_id == context.trace_id);
    if !goes_on {
        header.remove_header("tracestate");
    }
    header.insert_header("traceparent", &context.to_text()[..])?;
    Ok(())
}

/// Header fields carry ASCII; other characters of a resource id are percent-escaped.
fn ascii(text: &str) -> std::borrow::Cow<'_, str> {
    if text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0').to_ascii_uppercase();
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    out.into()
}

/// Takes off a backend's answer what was meant for the hop before us.
pub(super) fn from_backend(header: &mut ResponseHeader, request_id: &HeaderValue) -> pingora::Result<()> {
    for name in HOP_BY_HOP {
        header.remove_header(*name);
    }
    header.insert_header("X-Request-Id", request_id)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(rows: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut header = RequestHeader::build("GET", b"/", None).expect("a request");
        for (name, value) in rows {
            header.append_header(*name, *value).expect("a field");
        }
        header
    }

    fn policy() -> HeaderPolicy {
        let secrets = [AUTHORIZATION, HeaderName::from_static("x-api-key")];
        HeaderPolicy::new(&secrets, [HeaderName::from_static("x-app-id")].into_iter())
    }

    #[test]
    fn spoofed_spellings_go_and_the_rest_stays() {
        let mut header = request(&[
            ("x-keygate-key-id", "1"),
            ("x_keygate_key_id", "1"),
            ("x-keygate_key-id", "1"),
            ("X-Keygate-Anything", "1"),
            ("x_forwarded_for", "1"),
            ("x-forwarded-for", "1"),
            ("forwarded", "1"),
            ("x_api_key", "1"),
            ("x_app_id", "1"),
            ("x-app-id", "stays"),
            ("my_header", "stays"),
        ]);
        policy().remove_spoofable(&mut header);
        let mut names: Vec<_> = header.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["my_header", "x-app-id"]);
    }

    #[test]
    fn the_credential_goes_and_foreign_authorization_stays() {
        let mut header = request(&[("authorization", "Bearer x"), ("x-api-key", "x")]);
        policy().remove_credential(&mut header);
        assert!(header.headers.is_empty());
        let mut header = request(&[("authorization", "Basic x"), ("x-api-key", "x")]);
        policy().remove_credential(&mut header);
        assert_eq!(header.headers.len(), 1);
    }

    #[test]
    fn a_resource_id_fits_a_header() {
        assert_eq!(ascii("app-1"), "app-1");
        assert_eq!(ascii("é%"), "%C3%A9%25");
    }
}
