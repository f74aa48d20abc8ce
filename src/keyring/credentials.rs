//! Encrypted credentials for backends: kept for the snapshot; requests use those that the follower hands on.

use super::Entry;
use crate::model::credential::SealedCredential;
use crate::model::id::{CredentialId, WorkspaceId};
use crate::model::key::KeyDetails;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// All of them. The store bounds their number.
#[derive(Debug, Default)]
pub(super) struct SealedCredentials(Mutex<HashMap<CredentialId, SealedCredential>>);

impl Entry {
    /// What decides which credential for the backend its requests get.
    pub fn of_request(&self) -> (&WorkspaceId, &KeyDetails) {
        (&self.key.workspace_id, &self.details)
    }
}

impl SealedCredentials {
    pub(super) fn put(&self, credential: SealedCredential) {
        self.all().insert(credential.id, credential);
    }

    pub(super) fn remove(&self, id: CredentialId) {
        self.all().remove(&id);
    }

    pub(super) fn list(&self) -> Vec<SealedCredential> {
        self.all().values().cloned().collect()
    }

    /// Removes every one that is not in `there`, and returns the removed ones.
    pub(super) fn keep_only(&self, there: &HashSet<CredentialId>) -> Vec<CredentialId> {
        let mut all = self.all();
        let gone: Vec<_> = all.keys().filter(|id| !there.contains(id)).copied().collect();
        for id in &gone {
            all.remove(id);
        }
        gone
    }

    fn all(&self) -> MutexGuard<'_, HashMap<CredentialId, SealedCredential>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
