//! Credentials for backends as the store has them: encrypted, with what they are for.

use super::id::{CredentialId, WorkspaceId};
use std::fmt;
use std::sync::Arc;

/// The requests that get a credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CredentialSelector {
    /// The name of the upstream.
    pub upstream: Box<str>,
    /// The workspace whose requests get it; none: any.
    pub workspace: Option<WorkspaceId>,
    /// An entry of the key's metadata and the value that it must have; none: any key.
    pub metadata: Option<MetadataEntry>,
}

/// An entry of a key's metadata and its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MetadataEntry {
    /// The name.
    pub name: Box<str>,
    /// The value, as text.
    pub value: Box<str>,
}

/// An encrypted credential.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedCredential {
    /// The id: the same as long as there is one for these requests.
    pub id: CredentialId,
    /// The requests that get it.
    pub selector: CredentialSelector,
    /// The field that carries it, in lower case.
    pub header: Box<str>,
    /// The authentication scheme before it; none: it stands alone.
    pub scheme: Option<Box<str>>,
    /// The version of the encryption key.
    pub key_version: u32,
    /// The encrypted secret.
    pub sealed: Arc<[u8]>,
}

/// Longest text of a [`MetadataEntry`], in characters.
const ENTRY_MAX: usize = 512;

impl MetadataEntry {
    /// Parses `NAME=VALUE`.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, value) = text.split_once('=')?;
        let fits =
            !name.is_empty() && text.chars().count() <= ENTRY_MAX && !text.chars().any(char::is_control);
        fits.then(|| Self { name: name.into(), value: value.into() })
    }
}

impl fmt::Display for MetadataEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl CredentialSelector {
    /// The workspace as a column: empty for any.
    pub fn workspace_text(&self) -> &str {
        self.workspace.as_ref().map_or("", WorkspaceId::as_str)
    }

    /// The entry of the metadata as a column: empty for any key.
    pub fn metadata_text(&self) -> String {
        self.metadata.as_ref().map(ToString::to_string).unwrap_or_default()
    }
}

impl fmt::Debug for SealedCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedCredential")
            .field("id", &self.id)
            .field("selector", &self.selector)
            .field("header", &self.header)
            .field("key_version", &self.key_version)
            .finish_non_exhaustive()
    }
}
