//! The credentials with which this gateway presents itself to an identity provider (RFC 6749, 2.3.1).
//!
//! *Invariant:* the secret is in no log and no error.

use crate::policy::text::form::percent_encoded;
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderValue;
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// A client's id and secret.
pub struct ClientCredentials {
    id: String,
    secret: ArcSwap<Zeroizing<String>>,
}

impl ClientCredentials {
    /// The client `id` with this secret.
    pub fn new(id: &str, secret: &str) -> Self {
        let secret = ArcSwap::from_pointee(Zeroizing::new(secret.to_owned()));
        Self { id: id.to_owned(), secret }
    }

    /// Replaces the secret.
    pub fn replace(&self, secret: &str) {
        self.secret.store(Arc::new(Zeroizing::new(secret.to_owned())));
    }

    /// HTTP Basic: id and secret are form-encoded first.
    pub(super) fn basic(&self) -> HeaderValue {
        let (id, secret) = (percent_encoded(&self.id), Zeroizing::new(percent_encoded(&self.secret.load())));
        let both = Zeroizing::new(format!("{id}:{}", *secret));
        let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(&*both)));
        sensitive(&text).unwrap_or_else(|| HeaderValue::from_static(""))
    }

    /// The secret as a field of a form.
    pub(super) fn form_field(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(percent_encoded(&self.secret.load()));
        Zeroizing::new(format!("client_secret={}", *secret))
    }
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A header value that is a secret.
pub(super) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
