//! A route's changes to a message, and the check of a response's framing.
//!
//! Must not know: why. Keygate writes its own fields after these rules, so that no rule can change them.

use crate::policy::http::field_lines::EditFields;
use crate::policy::http::head::content_length;
use crate::policy::routing::forward::{FieldRules, HostRule};
use crate::proxy::upstream::Server;
use http::header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Uri};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{Error, ErrorType, OrErr};

const NO_URI: &str = "rewritten path is not a valid URI";

/// Sets the path that the route has rewritten. The query is kept.
pub(in crate::proxy) fn set_path(request: &mut RequestHeader, path: &str) -> pingora::Result<()> {
    let mut target = path.to_owned();
    if let Some(query) = request.uri.query() {
        target.extend(["?", query]);
    }
    // Over HTTP/2 the URI includes the authority.
    let mut parts = request.uri.clone().into_parts();
    parts.path_and_query = Some(target.parse().or_err(ErrorType::InternalError, NO_URI)?);
    request.set_uri(Uri::from_parts(parts).or_err(ErrorType::InternalError, NO_URI)?);
    Ok(())
}

/// Sets `Host` as the route's rule says.
pub(in crate::proxy) fn set_host(
    fields: &mut impl EditFields,
    rule: &HostRule,
    server: Option<&Server>,
) -> pingora::Result<()> {
    let host = match (rule, server) {
        (HostRule::Client, _) | (HostRule::Server, None) => return Ok(()),
        (HostRule::Server, Some(server)) => HeaderValue::from_str(&server.authority)
            .or_err(ErrorType::InternalError, "server name is not a valid Host")?,
        (HostRule::Fixed(host), _) => host.clone(),
    };
    fields.insert(HOST, host);
    Ok(())
}

/// Joins several `Cookie` fields, which HTTP/2 allows, into one for HTTP/1.1 (RFC 9113, 8.2.3).
pub(in crate::proxy) fn join_cookies(fields: &mut HeaderMap) -> pingora::Result<()> {
    let mut all = fields.get_all(COOKIE).iter();
    if all.next().is_none() || all.next().is_none() {
        return Ok(());
    }
    let all: Vec<&[u8]> = fields.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let one = HeaderValue::from_bytes(&all.join(&b"; "[..]));
    fields.insert(COOKIE, one.or_err(ErrorType::InternalError, "cannot join Cookie fields")?);
    Ok(())
}

/// Applies the rules: first remove, then set, then add.
pub(in crate::proxy) fn apply(fields: &mut impl EditFields, rules: &FieldRules) {
    for name in &rules.remove {
        fields.remove(name);
    }
    for (name, value) in &rules.set {
        fields.insert(name.clone(), value.clone());
    }
    for (name, value) in &rules.add {
        fields.append(name.clone(), value.clone());
    }
}

/// Checks that the head of a response frames the body in exactly one way. Pingora accepts several equal
/// `Content-Length` fields and passes them on; another parser may not read them as one (request smuggling).
pub(in crate::proxy) fn check_framing(answer: &ResponseHeader) -> pingora::Result<()> {
    let mut lengths = answer.headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    let mut codings = answer.headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let is_sound = lengths.next().is_none()
        && codings.next().is_none()
        && length.is_none_or(|value| content_length(value.as_bytes()).is_some())
        && coding.is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && (length.is_none() || coding.is_none());
    if is_sound {
        return Ok(());
    }
    Err(Error::explain(ErrorType::InvalidHTTPHeader, "an answer whose length is not plain").into_up())
}
