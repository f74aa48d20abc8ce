//! What a route changes about a message on its way: its path, its `Host`, its header fields.
//!
//! Must not know: how a message is held. Keygate's own fields are not among those that a rule may name; the config sees
//! to that.

use super::rewrite::Rewrite;
use http::{HeaderName, HeaderValue};

/// What happens to requests on the way to the backend, and to answers on the way back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardRules {
    /// The path that the backend gets; none for the client's.
    pub rewrite: Option<Rewrite>,
    /// The `Host` that it gets.
    pub host: HostRule,
    /// What backends believe of proxies and this route passes on from any client.
    pub pass: Box<[HeaderName]>,
    /// Fields of requests.
    pub request: FieldRules,
    /// Fields of answers, but for those that Keygate gives by itself.
    pub response: FieldRules,
}

/// Which `Host` a backend gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostRule {
    /// The client's.
    #[default]
    Client,
    /// The server's own, as the config names it.
    Server,
    /// This.
    Fixed(HeaderValue),
}

/// Fields that are removed, then set, then added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldRules {
    /// Taken off.
    pub remove: Box<[HeaderName]>,
    /// Put in place of whatever is there.
    pub set: Box<[(HeaderName, HeaderValue)]>,
    /// Put beside whatever is there.
    pub add: Box<[(HeaderName, HeaderValue)]>,
}
