//! Credentials for backends that the store keeps: decrypted once, when the change feed brings them.
//!
//! Must not know: the store. One that cannot be decrypted is remembered, so that its requests are refused and do not get
//! another one.

use super::UpstreamSettings;
use crate::model::credential::SealedCredential;
use crate::model::id::{CredentialId, WorkspaceId};
use crate::policy::upstream::credential::{KeyOfRequest, UpstreamCredential, field_value};
use crate::policy::upstream::encryption::EncryptionKeys;
use crate::proxy::message::headers::BackendCredential;
use arc_swap::ArcSwap;
use dashmap::DashMap;
use http::{HeaderName, HeaderValue};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The stored credentials of all upstreams.
#[derive(Debug, Default)]
pub struct StoredCredentials {
    /// None: this node has no encryption key.
    keys: Option<EncryptionKeys>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    upstreams: HashMap<Box<str>, Arc<CredentialSet>>,
    placed: HashMap<CredentialId, Placed>,
}

/// Where a credential is.
#[derive(Debug)]
struct Placed {
    upstream: Box<str>,
    workspace: Option<WorkspaceId>,
    header: HeaderName,
    is_usable: bool,
}

/// The stored credentials of one upstream. Without any, a request pays one load.
#[derive(Debug, Default)]
pub struct CredentialSet {
    by_workspace: DashMap<Option<WorkspaceId>, Arc<[Entry]>>,
    /// The fields that carry them.
    headers: ArcSwap<Vec<HeaderName>>,
}

#[derive(Clone, Debug)]
struct Entry {
    id: CredentialId,
    credential: UpstreamCredential,
}

/// The field of a credential, and its value unless it cannot be decrypted.
type FoundCredential = (HeaderName, Option<HeaderValue>);

impl UpstreamSettings {
    /// What requests with this key get: a stored credential, or the first of the config that is for it; a preflight gets none.
    /// None: it cannot be decrypted, and the request must not be forwarded.
    pub(in crate::proxy) fn credential_for(
        &self,
        key: KeyOfRequest<'_>,
        is_preflight: bool,
    ) -> Option<BackendCredential> {
        let stored = self.stored.headers.load();
        let fields = self.credentials.iter().map(|credential| &credential.header).chain(&**stored);
        let mut credential = BackendCredential { fields: fields.cloned().collect(), sent: None };
        if credential.fields.is_empty() || is_preflight {
            return Some(credential);
        }
        let found = self.stored.find(key).or_else(|| {
            let found = self.credentials.iter().find(|credential| credential.is_for(key))?;
            Some((found.header.clone(), found.value.clone()))
        });
        credential.sent = match found {
            Some((name, value)) => Some((name, value?)),
            None => None,
        };
        Some(credential)
    }

    /// Whether requests with this key cannot be forwarded, because their credential cannot be decrypted.
    pub(in crate::proxy) fn lacks_credential_for(&self, key: KeyOfRequest<'_>) -> bool {
        matches!(self.stored.find(key), Some((_, None)))
    }
}

// === impl StoredCredentials ===

impl StoredCredentials {
    /// Without credentials yet.
    pub fn new(keys: Option<EncryptionKeys>) -> Self {
        Self { keys, inner: Mutex::default() }
    }

    /// The keys of this node, if it has any.
    pub fn keys(&self) -> Option<&EncryptionKeys> {
        self.keys.as_ref()
    }

    /// Whether this node knows a credential and can decrypt it.
    pub fn is_usable(&self, id: CredentialId) -> bool {
        self.inner().placed.get(&id).is_some_and(|placed| placed.is_usable)
    }

    /// Adds or replaces a credential. Returns why it cannot be used, if so.
    pub fn put(&self, sealed: &SealedCredential) -> Result<(), String> {
        let value = self.value_of(sealed);
        // A name that is no header's is refused when a credential is stored.
        let header = HeaderName::from_bytes(sealed.header.as_bytes());
        let header = header.map_err(|_| "its header has no valid name".to_owned())?;
        let selector = &sealed.selector;
        let entry = Entry {
            id: sealed.id,
            credential: UpstreamCredential {
                workspace: selector.workspace.clone(),
                metadata: selector.metadata.clone(),
                header: header.clone(),
                value: value.as_ref().ok().cloned(),
            },
        };
        let mut inner = self.inner();
        let set = inner.set(&selector.upstream);
        set.change(selector.workspace.as_ref(), |entries| {
            entries.retain(|known| known.id != entry.id);
            // The more specific ones come first.
            let at = if entry.credential.metadata.is_some() { 0 } else { entries.len() };
            entries.insert(at, entry);
            entries.sort_by_key(rank);
        });
        let (upstream, workspace) = (selector.upstream.clone(), selector.workspace.clone());
        let is_usable = value.is_ok();
        let before =
            inner.placed.insert(sealed.id, Placed { upstream, workspace, header: header.clone(), is_usable });
        if before.is_some_and(|before| before.header != header) || !set.headers.load().contains(&header) {
            inner.update_headers(&selector.upstream);
        }
        value.map(drop)
    }

    /// Removes a credential.
    pub fn remove(&self, id: CredentialId) {
        let mut inner = self.inner();
        let Some(placed) = inner.placed.remove(&id) else { return };
        let set = inner.set(&placed.upstream);
        set.change(placed.workspace.as_ref(), |entries| entries.retain(|known| known.id != id));
        inner.update_headers(&placed.upstream);
    }

    /// Those of an upstream, also of later changes.
    pub fn of(&self, upstream: &str) -> Arc<CredentialSet> {
        self.inner().set(upstream)
    }

    fn value_of(&self, sealed: &SealedCredential) -> Result<HeaderValue, String> {
        let keys = self.keys.as_ref().ok_or("this node has no encryption key")?;
        let secret = keys.open(sealed).map_err(|error| error.to_string())?;
        let value = field_value(sealed.scheme.as_deref(), &secret);
        value.ok_or_else(|| "its secret is no value of a header".to_owned())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The order in which entries of one workspace are tried.
fn rank(entry: &Entry) -> (bool, Option<String>) {
    let metadata = entry.credential.metadata.as_ref();
    (metadata.is_none(), metadata.map(ToString::to_string))
}

impl Inner {
    fn set(&mut self, upstream: &str) -> Arc<CredentialSet> {
        if let Some(known) = self.upstreams.get(upstream) {
            return Arc::clone(known);
        }
        Arc::clone(self.upstreams.entry(upstream.into()).or_default())
    }

    fn update_headers(&mut self, upstream: &str) {
        let mut headers: Vec<HeaderName> = Vec::new();
        for placed in self.placed.values().filter(|placed| *placed.upstream == *upstream) {
            if !headers.contains(&placed.header) {
                headers.push(placed.header.clone());
            }
        }
        self.set(upstream).headers.store(Arc::new(headers));
    }
}

// === impl CredentialSet ===

impl CredentialSet {
    /// The field of the credential for requests with this key, and its value unless it cannot be decrypted: one for its
    /// workspace before one for any, and one for an entry of its metadata before one for any key.
    fn find(&self, key: KeyOfRequest<'_>) -> Option<FoundCredential> {
        if self.headers.load().is_empty() {
            return None;
        }
        let of_workspace = key.and_then(|(workspace, _)| self.first(Some(workspace), key));
        of_workspace.or_else(|| self.first(None, key))
    }

    fn first(&self, workspace: Option<&WorkspaceId>, key: KeyOfRequest<'_>) -> Option<FoundCredential> {
        let entries = Arc::clone(self.by_workspace.get(&workspace.cloned())?.value());
        let found = entries.iter().find(|entry| entry.credential.is_for(key))?;
        Some((found.credential.header.clone(), found.credential.value.clone()))
    }

    fn change(&self, workspace: Option<&WorkspaceId>, change: impl FnOnce(&mut Vec<Entry>)) {
        let workspace = workspace.cloned();
        let before = self.by_workspace.get(&workspace).map(|entries| entries.to_vec());
        let mut entries = before.unwrap_or_default();
        change(&mut entries);
        if entries.is_empty() {
            self.by_workspace.remove(&workspace);
        } else {
            self.by_workspace.insert(workspace, entries.into());
        }
    }
}
