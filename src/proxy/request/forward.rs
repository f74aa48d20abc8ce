//! What a route changes about a message on its way, and which answers are not passed on.
//!
//! Must not know: why. Keygate's own fields are written after these rules, so that none can undo them.

use crate::policy::http::field_lines::EditFields;
use crate::policy::http::head::content_length;
use crate::policy::routing::forward::{FieldRules, HostRule};
use crate::proxy::upstream::Server;
use http::header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Uri};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{Error, ErrorType, OrErr};

const NO_URI: &str = "rewritten path is not a valid URI";

/// Gives the request the path that its route has made of it. The query stays.
pub(in crate::proxy) fn set_path(request: &mut RequestHeader, path: &str) -> pingora::Result<()> {
    let mut target = path.to_owned();
    if let Some(query) = request.uri.query() {
        target.extend(["?", query]);
    }
    // Over HTTP/2 the authority is a part of it.
    let mut parts = request.uri.clone().into_parts();
    parts.path_and_query = Some(target.parse().or_err(ErrorType::InternalError, NO_URI)?);
    request.set_uri(Uri::from_parts(parts).or_err(ErrorType::InternalError, NO_URI)?);
    Ok(())
}

/// Gives the request the `Host` that its route says.
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

/// Several `Cookie` fields, as HTTP/2 may bring them, are one for whoever reads HTTP/1.1 (RFC 9113, 8.2.3).
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

/// Applies the rules: what is removed, then what is set, then what is added.
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

/// Whether the head of an answer says in one way, and once, where its body ends. Pingora reads several lengths that agree as
/// one and passes them on, where the next reader may take another.
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
