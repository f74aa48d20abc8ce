//! Removes and adds header fields of a request before it is forwarded. Contract 4.5.

use super::fields::ValueBuffer;
use crate::gate::Admission;
use crate::policy::http::field_lines::EditFields;
use crate::policy::http::trace::TraceContext;
use crate::policy::keys::claims::{CLAIMS, dashed, is_claim, prefix};
use crate::policy::keys::credential::SecretPlace;
use crate::policy::routing::route::Route;
use http::HeaderMap;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::net::IpAddr;

/// Hop-by-hop fields (RFC 9110, 7.6.1) that a backend's response may still contain.
static HOP_BY_HOP: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
];
/// Fields that frame a response: they have their own meaning at each hop, whatever `Connection` names.
const FRAMING: [HeaderName; 2] = [CONTENT_LENGTH, TRANSFER_ENCODING];

/// The request id for client and backend.
pub(in crate::proxy) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_KEYGATE_KEY_ID: HeaderName = HeaderName::from_static("x-keygate-key-id");
const X_KEYGATE_WORKSPACE_ID: HeaderName = HeaderName::from_static("x-keygate-workspace-id");
const X_KEYGATE_KEY_TYPE: HeaderName = HeaderName::from_static("x-keygate-key-type");
const X_KEYGATE_SCOPES: HeaderName = HeaderName::from_static("x-keygate-scopes");
const X_KEYGATE_RESOURCE_ID: HeaderName = HeaderName::from_static("x-keygate-resource-id");
const X_KEYGATE_END_USER_ID: HeaderName = HeaderName::from_static("x-keygate-end-user-id");
const X_KEYGATE_END_USER_OTHER_ID: HeaderName = HeaderName::from_static("x-keygate-end-user-other-id");
const X_KEYGATE_KEY_CREATED_BY: HeaderName = HeaderName::from_static("x-keygate-key-created-by");
/// Everything that [`identify`] may set.
static IDENTITY: [HeaderName; 8] = [
    X_KEYGATE_KEY_ID,
    X_KEYGATE_WORKSPACE_ID,
    X_KEYGATE_KEY_TYPE,
    X_KEYGATE_SCOPES,
    X_KEYGATE_RESOURCE_ID,
    X_KEYGATE_END_USER_ID,
    X_KEYGATE_END_USER_OTHER_ID,
    X_KEYGATE_KEY_CREATED_BY,
];
pub(in crate::proxy) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(in crate::proxy) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(in crate::proxy) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The prefix of names that only Keygate may set.
const OWN: &str = "x-keygate-";
/// The prefix of names of which a trusted proxy may set those that Keygate does not set.
const FAMILY: &str = "x-forwarded-";
/// Prefixes of further fields that only Keygate sends to clients.
const OWN_TO_CLIENTS: [&str; 3] = [OWN, "x-ratelimit-", "ratelimit"];
/// Longest value of metadata that is told, in bytes; longer ones are left out.
const METADATA_MAX: usize = 1_024;
/// The usual size of their values, in bytes.
const ADDED_BYTES: usize = 384;

/// Names with a meaning for Keygate, of which no other spelling may reach a backend.
#[derive(Clone, Debug)]
pub struct HeaderPolicy {
    /// The headers that carry secrets on routes without a rule of their own.
    secret_places: Box<[SecretPlace]>,
    /// Names whose other spellings some servers treat as the same name.
    guarded: Box<[Box<str>]>,
    /// First letters of names that may have to be removed: most fields have none of them, which is checked at once.
    initials: u128,
}

/// A credential for the backend.
#[derive(Debug, Default)]
pub(in crate::proxy) struct BackendCredential {
    /// The fields of all credentials of the upstream. Clients cannot set them.
    pub fields: SmallVec<[HeaderName; 2]>,
    /// The one that the request gets.
    pub sent: Option<(HeaderName, HeaderValue)>,
}

/// What the backend is told about a request.
#[derive(Debug)]
pub(in crate::proxy) struct ForwardContext<'r> {
    /// Proof that it may be forwarded; none: it has no key.
    pub admission: Option<&'r Admission>,
    /// Whether it is a preflight.
    pub is_preflight: bool,
    /// The route.
    pub route: &'r Route,
    /// The credential for the backend.
    pub credential: BackendCredential,
    /// The request id.
    pub request_id: &'r HeaderValue,
    /// The client's address.
    pub address: IpAddr,
    /// Whether a trusted proxy sent it.
    pub trusted: bool,
    /// Whether the client's connection is encrypted.
    pub secure: bool,
    /// The client's path and the one for the backend, if they differ.
    pub rewritten: Option<(&'r str, &'r str)>,
    /// The trace context, if it differs from the client's, or the client sent none.
    pub trace: Option<TraceContext>,
}

impl HeaderPolicy {
    /// `secret_headers` may carry a secret; `named` are further headers that routes read.
    pub fn new(secret_headers: &[HeaderName], named: impl Iterator<Item = HeaderName>) -> Self {
        let configured = secret_headers.iter().cloned().chain(named).map(|n| Box::from(n.as_str()));
        let mut guarded: Vec<Box<str>> = configured.chain([X_REQUEST_ID.as_str().into()]).collect();
        guarded.sort_unstable();
        guarded.dedup();
        let beginnings = guarded.iter().map(|name| &**name).chain(CLAIMS).chain([OWN]);
        let initials = beginnings.fold(0, |all, name| all | initial(name));
        let secret_places = secret_headers.iter().cloned().map(SecretPlace::Header).collect();
        Self { secret_places, guarded: guarded.into(), initials }
    }

    /// Rewrites the fields of a request for the backend.
    pub(in crate::proxy) fn to_backend(
        &self,
        fields: &mut impl EditFields,
        context: &ForwardContext<'_>,
    ) -> pingora::Result<()> {
        self.clean(fields, context.route, context.trusted);
        authenticate(fields, &context.credential);
        let mut values = ValueBuffer::new(ADDED_BYTES);
        match context.admission {
            Some(admission) => {
                identify(fields, admission, &mut values)?;
                tell_metadata(fields, admission, &context.route.forward.metadata, &mut values)?;
            }
            None if context.is_preflight => self.remove_identity(fields),
            None => {}
        }
        fields.insert(X_REQUEST_ID, context.request_id.clone());
        forwarded(fields, context, &mut values)?;
        trace(fields, context, &mut values)
    }

    /// Removes what a client may not tell the backend of `route`, and the key unless the route keeps it. `trusted`: a trusted proxy
    /// sent the request.
    pub(in crate::proxy) fn clean(&self, fields: &mut impl EditFields, route: &Route, trusted: bool) {
        self.remove_spoofable(fields, trusted, &route.forward.pass);
        if !route.keep_credential {
            self.remove_credential(fields, &route.secret_from);
        }
    }

    /// Removes fields that only Keygate may set and fields that backends trust. Of the latter, those stay that the route
    /// passes on, and of `X-Forwarded-…` those from a trusted proxy. What Keygate sets is set afterwards.
    fn remove_spoofable(&self, fields: &mut impl EditFields, trusted: bool, passed: &[HeaderName]) {
        fields.remove_if(|text| {
            if self.initials & initial(text) == 0 {
                return false;
            }
            let spelled = dashed(text);
            if spelled.starts_with(OWN) {
                return true;
            }
            if spelled != text {
                return is_claim(&spelled) || self.guarded.binary_search_by(|g| (**g).cmp(&spelled)).is_ok();
            }
            is_claim(text)
                && !(trusted && text.starts_with(FAMILY))
                && !passed.iter().any(|name| name == text)
        });
    }

    /// Removes from a preflight what no browser sends in one, and what would identify the sender to a backend.
    fn remove_identity(&self, fields: &mut impl EditFields) {
        let names_somebody = |text: &str| self.guarded.binary_search_by(|g| (**g).cmp(text)).is_ok();
        fields.remove_if(|text| {
            names_somebody(text) || [AUTHORIZATION, COOKIE].iter().any(|name| name == text)
        });
    }

    /// Removes the secret from `places`, those of the route. A copy of it in another header that usually carries one is
    /// removed as well.
    fn remove_credential(&self, fields: &mut impl EditFields, places: &[SecretPlace]) {
        for other in self.secret_places.iter().filter(|other| !places.contains(other)) {
            let secrets = places.iter().flat_map(|place| secrets_in(fields, place));
            let secrets: Vec<_> = secrets.filter(|secret| !secret.is_empty()).collect();
            if secrets_in(fields, other).any(|secret| secrets.contains(&secret)) {
                drop(secrets);
                fields.remove(other.header());
            }
        }
        for place in places {
            remove_secret(fields, place);
        }
    }
}

fn secrets_in<'f>(
    fields: &'f impl EditFields,
    place: &'f SecretPlace,
) -> impl Iterator<Item = Cow<'f, [u8]>> {
    fields.values(place.header()).filter_map(|value| place.secret_in(value.trim_ascii()))
}

/// Removes what `place` carries.
fn remove_secret(fields: &mut impl EditFields, place: &SecretPlace) {
    // A value without a secret never was our credential, such as `Authorization` with another scheme; it is for the
    // backend.
    if secrets_in(fields, place).next().is_none() {
        return;
    }
    let name = place.header();
    let SecretPlace::Subprotocol { prefix } = place else { return fields.remove(name) };
    let entries = fields.values(name).flat_map(|value| value.split(|byte| *byte == b','));
    let others = entries.map(<[u8]>::trim_ascii).filter(|entry| !entry.starts_with(prefix.as_bytes()));
    let others = HeaderValue::from_bytes(&others.collect::<Vec<_>>().join(&b", "[..]));
    fields.remove(name);
    if let Some(others) = others.ok().filter(|others| !others.is_empty()) {
        fields.append(name.clone(), others);
    }
}

/// A bit for the first letter of a name, the same for all its spellings; other names may share it.
fn initial(name: &str) -> u128 {
    let [first, second, ..] = name.as_bytes() else { return 0 };
    let second = if second.is_ascii_alphanumeric() { *second } else { b'-' };
    1 << ((first.wrapping_mul(5) ^ second) & 127)
}

fn identify(
    fields: &mut impl EditFields,
    admission: &Admission,
    values: &mut ValueBuffer,
) -> pingora::Result<()> {
    let key = &admission.entry().key;
    let mut id = [0_u8; uuid::fmt::Hyphenated::LENGTH];
    fields.insert(X_KEYGATE_KEY_ID, values.text(key.id.0.hyphenated().encode_lower(&mut id)).take()?);
    fields.insert(X_KEYGATE_WORKSPACE_ID, values.text(key.workspace_id.as_str()).take()?);
    fields.insert(X_KEYGATE_KEY_TYPE, HeaderValue::from_static(key.kind.as_str()));
    fields.insert(X_KEYGATE_SCOPES, values.text(key.scopes.joined()).take()?);
    fields.insert(X_KEYGATE_RESOURCE_ID, values.text(&ascii(&key.resource_id)).take()?);
    let created_by = &admission.entry().details.created_by;
    fields.insert(X_KEYGATE_KEY_CREATED_BY, values.text(&escaped(created_by)).take()?);
    if let (Some(end_user), Some(name)) = (admission.end_user(), admission.end_user_name()) {
        let id = end_user.0.hyphenated().encode_lower(&mut id);
        fields.insert(X_KEYGATE_END_USER_ID, values.text(id).take()?);
        fields.insert(X_KEYGATE_END_USER_OTHER_ID, values.text(&escaped(name)).take()?);
    }
    Ok(())
}

/// Tells who sent a request, for somebody else who forwards it. What is not known is told as empty, so that whoever copies all
/// fields overwrites what a client claims to be.
pub(in crate::proxy) fn tell_identity(
    fields: &mut impl EditFields,
    admission: Option<&Admission>,
    route: &Route,
) -> pingora::Result<()> {
    let metadata = &route.forward.metadata;
    for name in IDENTITY.iter().chain(metadata.iter().map(|(_, name)| name)) {
        fields.insert(name.clone(), HeaderValue::from_static(""));
    }
    let Some(admission) = admission else { return Ok(()) };
    let mut values = ValueBuffer::new(ADDED_BYTES);
    identify(fields, admission, &mut values)?;
    tell_metadata(fields, admission, metadata, &mut values)
}

/// Sets the credential for the backend. What a client sent in the fields of credentials is removed, whichever it gets.
fn authenticate(fields: &mut impl EditFields, credential: &BackendCredential) {
    for name in &credential.fields {
        fields.remove(name);
    }
    if let Some((name, value)) = &credential.sent {
        fields.insert(name.clone(), value.clone());
    }
}

/// The entries of the key's metadata that the route names, as far as the key has them.
fn tell_metadata(
    fields: &mut impl EditFields,
    admission: &Admission,
    named: &[(Box<str>, HeaderName)],
    values: &mut ValueBuffer,
) -> pingora::Result<()> {
    for (entry, name) in named {
        if let Some(value) = admission.entry().details.metadata(entry).filter(|v| v.len() <= METADATA_MAX) {
            fields.insert(name.clone(), values.text(&escaped(value)).take()?);
        }
    }
    Ok(())
}

fn forwarded(
    fields: &mut impl EditFields,
    context: &ForwardContext<'_>,
    values: &mut ValueBuffer,
) -> pingora::Result<()> {
    fields.insert(X_FORWARDED_FOR, values.address(context.address).take()?);
    fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if context.secure { "https" } else { "http" }));
    if let Some(host) = fields.first(&HOST) {
        let host = values.bytes(host).take()?;
        fields.insert(X_FORWARDED_HOST, host);
    } else {
        fields.remove(&X_FORWARDED_HOST);
    }
    if let Some(own) = context.rewritten.and_then(|(path, rewritten)| prefix(path, rewritten)) {
        // After a proxy that has removed a prefix, ours comes after that one.
        if let Some(outer) = fields.first(&X_FORWARDED_PREFIX).filter(|outer| outer.starts_with(b"/")) {
            values.bytes(outer.strip_suffix(b"/").unwrap_or(outer));
        }
        fields.insert(X_FORWARDED_PREFIX, values.text(own).take()?);
    }
    Ok(())
}

/// W3C trace context. The `tracestate` belongs to the client's trace, and not to a new one.
fn trace(
    fields: &mut impl EditFields,
    context: &ForwardContext<'_>,
    values: &mut ValueBuffer,
) -> pingora::Result<()> {
    let Some(context) = context.trace else { return Ok(()) };
    let given = TraceContext::only(fields.values(&TRACEPARENT));
    if given.is_none_or(|given| given.trace_id != context.trace_id) {
        fields.remove(&TRACESTATE);
    }
    fields.insert(TRACEPARENT, values.bytes(&context.to_text()).take()?);
    Ok(())
}

/// A text that people choose, for a header field: everything but visible ASCII is percent-encoded, and `%` itself.
fn escaped(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|b| b.is_ascii_graphic() && b != b'%') {
        text.into()
    } else {
        percent_encoded(text).into()
    }
}

/// Header fields contain ASCII; other characters of a resource id are percent-encoded.
fn ascii(text: &str) -> std::borrow::Cow<'_, str> {
    if text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        return text.into();
    }
    percent_encoded(text).into()
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0').to_ascii_uppercase();
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    out
}

/// Removes hop-by-hop fields from a backend's response: those that HTTP defines, and those that its `Connection` names.
/// `is_upgrade`: it is a 101, whose `Upgrade` is for the client.
pub(in crate::proxy) fn end_hop(fields: &mut impl EditFields, is_upgrade: bool) {
    if fields.has(&CONNECTION) {
        for name in nominated(fields) {
            fields.remove(&name);
        }
        fields.remove(&CONNECTION);
    }
    for name in &HOP_BY_HOP {
        fields.remove(name);
    }
    if is_upgrade {
        fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    } else {
        fields.remove(&UPGRADE);
    }
}

/// The fields that `Connection` names, except those for framing or upgrades.
fn nominated(fields: &impl EditFields) -> Vec<HeaderName> {
    let is_kept = |name: &HeaderName| FRAMING.contains(name) || *name == UPGRADE;
    let names = fields.values(&CONNECTION).flat_map(|value| value.split(|b| *b == b','));
    let names = names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    names.filter(|name| fields.has(name) && !is_kept(name)).collect()
}

/// Removes fields from a backend's trailers that must not be forwarded: hop-by-hop fields, framing, and fields that only
/// Keygate sends to clients.
pub(in crate::proxy) fn clean_trailers(trailers: &mut HeaderMap) {
    let is_own = |name: &HeaderName| {
        let text = name.as_str();
        *name == X_REQUEST_ID || OWN_TO_CLIENTS.iter().any(|front| text.starts_with(front))
    };
    let of_hop = |name: &HeaderName| {
        HOP_BY_HOP.contains(name) || FRAMING.contains(name) || [CONNECTION, UPGRADE, HOST].contains(name)
    };
    let found: Vec<HeaderName> =
        trailers.keys().filter(|name| is_own(name) || of_hop(name)).cloned().collect();
    for name in found {
        trailers.remove(&name);
    }
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

    fn left(rows: &[(&str, &'static str)], trusted: bool, passed: &[HeaderName]) -> Vec<String> {
        let mut header = request(rows);
        policy().remove_spoofable(&mut header, trusted, passed);
        let mut names: Vec<_> = header.keys().map(ToString::to_string).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn spoofed_spellings_go_and_the_rest_stays() {
        let rows = [
            ("x-keygate-key-id", "1"),
            ("x_keygate_key_id", "1"),
            ("x-keygate_key-id", "1"),
            ("X-Keygate-Anything", "1"),
            ("x_forwarded_for", "1"),
            ("x-forwarded-for", "1"),
            ("x-forwarded-prefix", "1"),
            ("x_forwarded.prefix", "1"),
            ("forwarded", "1"),
            ("remote_user", "1"),
            ("x_api_key", "1"),
            ("x_app_id", "1"),
            ("x_request_id", "1"),
            ("x-app-id", "stays"),
            ("my_header", "stays"),
            ("x-requested-with", "stays"),
        ];
        assert_eq!(left(&rows, false, &[]), ["my_header", "x-app-id", "x-requested-with"]);
        let passed = [HeaderName::from_static("x-forwarded-prefix")];
        assert_eq!(
            left(&rows, false, &passed),
            ["my_header", "x-app-id", "x-forwarded-prefix", "x-requested-with"]
        );
        // A trusted proxy may set fields of `X-Forwarded-…`, in that spelling, and nothing else.
        assert_eq!(
            left(&rows, true, &[]),
            ["my_header", "x-app-id", "x-forwarded-for", "x-forwarded-prefix", "x-requested-with"]
        );
    }

    #[test]
    fn fields_named_in_connection_are_hop_by_hop_except_framing() {
        let answer = || {
            let mut fields = request(&[
                ("connection", "close, X-Debug-Node, content-length"),
                ("x-debug-node", "1"),
                ("x-other", "2"),
                ("content-length", "3"),
                ("keep-alive", "4"),
                ("upgrade", "h2c"),
                ("x-debug-node-2", "5"),
            ]);
            fields.append(CONNECTION, HeaderValue::from_static("Transfer-Encoding , x-other, , (bad)"));
            fields
        };
        let mut fields = answer();
        end_hop(&mut fields, false);
        assert_eq!(fields, request(&[("content-length", "3"), ("x-debug-node-2", "5")]));
        let mut fields = answer();
        end_hop(&mut fields, true);
        assert_eq!(
            (&fields["connection"], &fields["upgrade"], fields.len()),
            (&HeaderValue::from_static("Upgrade"), &HeaderValue::from_static("h2c"), 4)
        );
    }

    #[test]
    fn the_credential_goes_and_foreign_authorization_stays() {
        let usual = [AUTHORIZATION, HeaderName::from_static("x-api-key")].map(SecretPlace::Header);
        let mut header = request(&[("authorization", "Bearer x"), ("x-api-key", "x")]);
        policy().remove_credential(&mut header, &usual);
        assert!(header.is_empty());
        let mut header = request(&[("authorization", "Basic x"), ("x-api-key", "x")]);
        policy().remove_credential(&mut header, &usual);
        assert_eq!(header.len(), 1);
    }

    #[test]
    fn where_a_route_reads_the_secret_elsewhere_other_headers_are_for_the_backend() {
        let subprotocol = [SecretPlace::Subprotocol { prefix: "key.".into() }];
        let removed = |rows: &[(&str, &'static str)], places: &[SecretPlace]| {
            let mut header = request(rows);
            policy().remove_credential(&mut header, places);
            header
        };
        let of_backend = [("authorization", "Bearer x"), ("x-api-key", "y")];
        let offered = ("sec-websocket-protocol", "chat, key.s, v2");
        let left = removed(&[of_backend[0], of_backend[1], offered], &subprotocol);
        assert_eq!(left, request(&[of_backend[0], of_backend[1], ("sec-websocket-protocol", "chat, v2")]));
        let copied = ("x-api-key", "s");
        assert_eq!(
            removed(&[of_backend[0], copied, ("sec-websocket-protocol", "key.s")], &subprotocol),
            request(&of_backend[..1]),
            "a copy of the secret is not forwarded"
        );
        let user = [SecretPlace::BasicUser];
        assert_eq!(removed(&of_backend, &user), request(&of_backend));
        // "s:" in Base64.
        assert_eq!(removed(&[("authorization", "Basic czo="), copied], &user), request(&[]));
    }

    #[test]
    fn a_resource_id_fits_a_header() {
        assert_eq!(ascii("app-1"), "app-1");
        assert_eq!(ascii("é%"), "%C3%A9%25");
    }

    #[test]
    fn free_text_is_escaped_reversibly() {
        for (text, field) in
            [("", ""), ("ada@example.org", "ada@example.org"), ("Ann B", "Ann%20B"), ("100%", "100%25")]
        {
            assert_eq!(escaped(text), field);
        }
        assert_eq!(escaped("é\r\nx: y"), "%C3%A9%0D%0Ax:%20y");
    }
}
