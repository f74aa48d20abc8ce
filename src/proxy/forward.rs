//! What a route changes about a message on its way.
//!
//! Must not know: why. Keygate's own fields are written after these rules, so that none can undo them.

use super::upstream::Server;
use crate::policy::forward::{FieldRules, HostRule};
use http::header::HOST;
use http::{HeaderName, HeaderValue, Uri};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{ErrorType, OrErr};

const NO_URI: &str = "a rewritten path is no URI";

/// Gives the request the path that its route has made of it. The query stays.
pub(super) fn retarget(request: &mut RequestHeader, path: &str) -> pingora::Result<()> {
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
pub(super) fn rehost(
    request: &mut RequestHeader,
    rule: &HostRule,
    server: Option<&Server>,
) -> pingora::Result<()> {
    match (rule, server) {
        (HostRule::Client, _) | (HostRule::Server, None) => Ok(()),
        (HostRule::Server, Some(server)) => request.insert_header(HOST, &*server.authority),
        (HostRule::Fixed(host), _) => request.insert_header(HOST, host),
    }
}

/// The fields of a message, whichever way it goes.
pub(super) trait Message {
    fn take_off(&mut self, name: &HeaderName);
    fn put(&mut self, name: &HeaderName, value: &HeaderValue) -> pingora::Result<()>;
    fn put_beside(&mut self, name: &HeaderName, value: &HeaderValue) -> pingora::Result<()>;
}

/// Applies the rules: what is removed, then what is set, then what is added.
pub(super) fn apply(message: &mut impl Message, rules: &FieldRules) -> pingora::Result<()> {
    for name in &rules.remove {
        message.take_off(name);
    }
    for (name, value) in &rules.set {
        message.put(name, value)?;
    }
    for (name, value) in &rules.add {
        message.put_beside(name, value)?;
    }
    Ok(())
}

macro_rules! message {
    ($header:ty) => {
        impl Message for $header {
            fn take_off(&mut self, name: &HeaderName) {
                self.remove_header(name);
            }

            fn put(&mut self, name: &HeaderName, value: &HeaderValue) -> pingora::Result<()> {
                self.insert_header(name.clone(), value.clone()).map(|_| ())
            }

            fn put_beside(&mut self, name: &HeaderName, value: &HeaderValue) -> pingora::Result<()> {
                self.append_header(name.clone(), value.clone()).map(|_| ())
            }
        }
    };
}
message!(RequestHeader);
message!(ResponseHeader);
