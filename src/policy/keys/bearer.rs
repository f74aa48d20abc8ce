//! A token of which only the hash is kept.

use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::sync::Arc;

/// A token that can be replaced while it is in use.
pub struct BearerToken(ArcSwap<[u8; 32]>);

impl BearerToken {
    /// The token with this text.
    pub fn new(text: &str) -> Self {
        Self(ArcSwap::from_pointee(Sha256::digest(text).into()))
    }

    /// Replaces the token.
    pub fn replace(&self, text: &str) {
        self.0.store(Arc::new(Sha256::digest(text).into()));
    }

    /// Whether `text` is the token. Compares hashes, so the time does not depend on the text.
    pub fn admits(&self, text: &str) -> bool {
        <[u8; 32]>::from(Sha256::digest(text)) == **self.0.load()
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(…)")
    }
}
