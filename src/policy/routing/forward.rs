//! What a route changes about messages: path, `Host`, header fields.
//!
//! Must not know: how a message is represented. The config refuses rules for Keygate's own fields.

use super::rewrite::Rewrite;
use http::{HeaderName, HeaderValue};

/// Changes to requests for the backend, and to its responses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardRules {
    /// The path for the backend; none: the client's.
    pub rewrite: Option<Rewrite>,
    /// The `Host` for the backend.
    pub host: HostRule,
    /// Fields that backends trust and that this route passes on from any client.
    pub pass: Box<[HeaderName]>,
    /// Entries of the key's metadata that the backend is told, each with its field.
    pub metadata: Box<[(Box<str>, HeaderName)]>,
    /// Fields of requests.
    pub request: FieldRules,
    /// Fields of responses, except those that Keygate sets.
    pub response: FieldRules,
}

/// The `Host` for the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostRule {
    /// The client's.
    #[default]
    Client,
    /// The server's own, as in the config.
    Server,
    /// This value.
    Fixed(HeaderValue),
}

/// Fields that are removed, then set, then added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldRules {
    /// Fields to remove.
    pub remove: Box<[HeaderName]>,
    /// Fields to set, replacing existing values.
    pub set: Box<[(HeaderName, HeaderValue)]>,
    /// Fields to add to existing values.
    pub add: Box<[(HeaderName, HeaderValue)]>,
}
