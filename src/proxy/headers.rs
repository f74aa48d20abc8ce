//! What is taken off a request and what is put on it before it goes to a backend. Contract 4.5.

use super::fields::Values;
use crate::gate::Admission;
use crate::policy::credential::bearer;
use crate::policy::trace::TraceContext;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, TE, TRAILER};
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
static HOP_BY_HOP: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
];

/// What the request is known by, to client and backend.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_KEYGATE_KEY_ID: HeaderName = HeaderName::from_static("x-keygate-key-id");
const X_KEYGATE_WORKSPACE_ID: HeaderName = HeaderName::from_static("x-keygate-workspace-id");
const X_KEYGATE_KEY_TYPE: HeaderName = HeaderName::from_static("x-keygate-key-type");
const X_KEYGATE_SCOPES: HeaderName = HeaderName::from_static("x-keygate-scopes");
const X_KEYGATE_RESOURCE_ID: HeaderName = HeaderName::from_static("x-keygate-resource-id");
const X_KEYGATE_END_USER_ID: HeaderName = HeaderName::from_static("x-keygate-end-user-id");
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// How many of these a request gets.
const ADDED: usize = 11;
/// What their values usually come to, in bytes.
const ADDED_BYTES: usize = 320;

/// Which names mean something to Keygate, so that no second spelling of them reaches a backend.
#[derive(Clone, Debug)]
pub struct HeaderPolicy {
    secret_headers: Box<[HeaderName]>,
    /// Names whose spelling with `_` some servers read as the same name.
    guarded: Box<[Box<str>]>,
}

/// What is told to the backend about a request.
#[derive(Debug)]
pub(super) struct Told<'r> {
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

    /// Rewrites the fields of a request for the backend.
    pub(super) fn to_backend(&self, fields: &mut HeaderMap, told: &Told<'_>) -> pingora::Result<()> {
        self.remove_spoofable(fields);
        if !told.keep_credential {
            self.remove_credential(fields);
        }
        fields.reserve(ADDED);
        let mut values = Values::new(ADDED_BYTES);
        identify(fields, told, &mut values)?;
        forwarded(fields, told, &mut values)?;
        trace(fields, told, &mut values)
    }

    fn remove_spoofable(&self, fields: &mut HeaderMap) {
        let spoofable = |name: &HeaderName| {
            let text = name.as_str();
            match text.as_bytes().first() {
                Some(b'x') if text.starts_with("x-keygate-") => true,
                Some(b'x' | b'f') if OWN.contains(&text) => true,
                _ => text.contains('_') && self.is_guarded(&text.replace('_', "-")),
            }
        };
        // Usually there is none, and collecting none allocates nothing.
        let found: Vec<HeaderName> = fields.keys().filter(|n| spoofable(n)).cloned().collect();
        for name in found {
            fields.remove(&name);
        }
    }

    fn is_guarded(&self, dashed: &str) -> bool {
        dashed.starts_with("x-keygate-") || self.guarded.binary_search_by(|g| (**g).cmp(dashed)).is_ok()
    }

    fn remove_credential(&self, fields: &mut HeaderMap) {
        for name in &self.secret_headers {
            // `Authorization` of another scheme never was our credential; it is the backend's.
            let foreign = *name == AUTHORIZATION
                && fields.get_all(name).iter().all(|v| bearer(v.as_bytes().trim_ascii()).is_none());
            if !foreign {
                fields.remove(name);
            }
        }
    }
}

fn identify(fields: &mut HeaderMap, told: &Told<'_>, values: &mut Values) -> pingora::Result<()> {
    let key = &told.admission.entry().key;
    let mut id = [0_u8; uuid::fmt::Hyphenated::LENGTH];
    fields.insert(X_KEYGATE_KEY_ID, values.text(key.id.0.hyphenated().encode_lower(&mut id)).take()?);
    fields.insert(X_KEYGATE_WORKSPACE_ID, values.text(key.workspace_id.as_str()).take()?);
    fields.insert(X_KEYGATE_KEY_TYPE, HeaderValue::from_static(key.kind.as_str()));
    fields.insert(X_KEYGATE_SCOPES, values.text(key.scopes.joined()).take()?);
    fields.insert(X_KEYGATE_RESOURCE_ID, values.text(&ascii(&key.resource_id)).take()?);
    if let Some(end_user) = told.admission.end_user() {
        let id = end_user.0.hyphenated().encode_lower(&mut id);
        fields.insert(X_KEYGATE_END_USER_ID, values.text(id).take()?);
    }
    fields.insert(X_REQUEST_ID, told.request_id.clone());
    Ok(())
}

fn forwarded(fields: &mut HeaderMap, told: &Told<'_>, values: &mut Values) -> pingora::Result<()> {
    fields.insert(X_FORWARDED_FOR, values.address(told.address).take()?);
    fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if told.secure { "https" } else { "http" }));
    if let Some(host) = fields.get(HOST).cloned() {
        fields.insert(X_FORWARDED_HOST, host);
    }
    Ok(())
}

/// W3C trace context. What others have added to a trace stays with it, and does not belong to one that begins here.
fn trace(fields: &mut HeaderMap, told: &Told<'_>, values: &mut Values) -> pingora::Result<()> {
    let Some(context) = told.trace else { return Ok(()) };
    let goes_on = TraceContext::of(&*fields).is_some_and(|given| given.trace_id == context.trace_id);
    if !goes_on {
        fields.remove(TRACESTATE);
    }
    fields.insert(TRACEPARENT, values.bytes(&context.to_text()).take()?);
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
pub(super) fn from_backend(fields: &mut HeaderMap, request_id: &HeaderValue) {
    for name in &HOP_BY_HOP {
        fields.remove(name);
    }
    fields.insert(X_REQUEST_ID, request_id.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(rows: &[(&str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &'static str)| {
            (HeaderName::from_bytes(name.as_bytes()).expect("a name"), HeaderValue::from_static(value))
        };
        rows.iter().map(field).collect()
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
        let mut names: Vec<_> = header.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["my_header", "x-app-id"]);
    }

    #[test]
    fn the_credential_goes_and_foreign_authorization_stays() {
        let mut header = request(&[("authorization", "Bearer x"), ("x-api-key", "x")]);
        policy().remove_credential(&mut header);
        assert!(header.is_empty());
        let mut header = request(&[("authorization", "Basic x"), ("x-api-key", "x")]);
        policy().remove_credential(&mut header);
        assert_eq!(header.len(), 1);
    }

    #[test]
    fn a_resource_id_fits_a_header() {
        assert_eq!(ascii("app-1"), "app-1");
        assert_eq!(ascii("é%"), "%C3%A9%25");
    }
}
