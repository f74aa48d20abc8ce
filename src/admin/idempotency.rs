//! `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): which request is the same one, sent again.
//!
//! Must not know: what the request makes. The store remembers requests with what they have made, in one transaction; here are
//! only those that this node is processing.

use super::error::AdminError;
use crate::model::fault::Fault;
use crate::model::id::WorkspaceId;
use crate::store::{Actor, IdempotencyClaim};
use axum::http::{HeaderMap, HeaderName};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const NAME: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest name of a request, in bytes.
const LENGTH_MAX: usize = 255;

/// Requests that are being processed.
#[derive(Clone, Default)]
pub(super) struct RequestsInFlight(Arc<Mutex<HashSet<[u8; 32]>>>);

/// One of them, until it is dropped.
pub(super) struct InFlightRequest {
    all: RequestsInFlight,
    id: [u8; 32],
}

impl RequestsInFlight {
    /// Adds a request; refuses one that is there already.
    pub(super) fn enter(&self, id: [u8; 32]) -> Result<InFlightRequest, AdminError> {
        if self.ids().insert(id) {
            return Ok(InFlightRequest { all: self.clone(), id });
        }
        Err(AdminError::of(Fault::IdempotencyKeyInUse))
    }

    fn ids(&self) -> MutexGuard<'_, HashSet<[u8; 32]>> {
        // The set is valid whatever happened to the thread that held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.all.ids().remove(&self.id);
    }
}

/// The claim of a request of `by` about `workspace`, if it has a name. Names of different callers are different.
pub(super) fn claim(
    headers: &HeaderMap,
    by: &Actor,
    workspace: &WorkspaceId,
    body: &Map<String, Value>,
) -> Result<Option<IdempotencyClaim>, AdminError> {
    let mut values = headers.get_all(NAME).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refused = |why: &str| AdminError::parameter("Idempotency-Key", why);
    if values.next().is_some() {
        return Err(refused("must be given once"));
    }
    let text = value.to_str().unwrap_or_default();
    let name = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    if !(1..=LENGTH_MAX).contains(&name.len()) || !name.bytes().all(|b| b.is_ascii_graphic() && b != b'"') {
        return Err(refused("must be 1 to 255 visible ASCII characters, with or without quotes around them"));
    }
    let id = digest(&[by.subject.as_bytes(), workspace.as_str().as_bytes(), name.as_bytes()]);
    // The fields of an object are in alphabetical order, however they were sent.
    let fingerprint = digest(&[serde_json::to_string(body).unwrap_or_default().as_bytes()]);
    Ok(Some(IdempotencyClaim { id, fingerprint }))
}

/// A digest of texts; the length before each keeps them apart.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut all = Sha256::new();
    for part in parts {
        all.update((part.len() as u64).to_be_bytes());
        all.update(part);
    }
    all.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_being_processed_is_refused_until_it_has_ended() {
        let all = RequestsInFlight::default();
        let first = all.enter([1; 32]).ok();
        assert!(first.is_some());
        let refused = all.enter([1; 32]).err().expect("it is there");
        assert_eq!(refused.fault(), Fault::IdempotencyKeyInUse);
        assert!(all.enter([2; 32]).is_ok());
        drop(first);
        assert!(all.enter([1; 32]).is_ok());
    }

    #[test]
    fn a_name_belongs_to_its_caller_and_its_workspace() {
        let by =
            |subject: &str| Actor { subject: subject.into(), role: "admin", address: None, request_id: None };
        let (ada, bob) = (by("ada"), by("bob"));
        let (here, there): (WorkspaceId, WorkspaceId) = ("w".parse().expect("id"), "v".parse().expect("id"));
        let read = |name: &str, by: &Actor, workspace: &WorkspaceId, body: &str| {
            let headers = HeaderMap::from_iter([(NAME, name.parse().expect("a value"))]);
            let body: Map<String, Value> = serde_json::from_str(body).expect("an object");
            claim(&headers, by, workspace, &body)
        };
        let one = read("n", &ada, &here, r#"{"a": 1, "b": 2}"#).expect("right").expect("there");
        let same = read("\"n\"", &ada, &here, r#"{"b": 2, "a": 1}"#).expect("right").expect("there");
        assert_eq!(one, same, "quotes and the order of fields say nothing");
        for (name, by, workspace) in [("m", &ada, &here), ("n", &bob, &here), ("n", &ada, &there)] {
            let other = read(name, by, workspace, r#"{"a": 1, "b": 2}"#).expect("right").expect("there");
            assert_ne!(one.id, other.id, "{name}");
        }
        let other = read("n", &ada, &here, r#"{"a": 1}"#).expect("right").expect("there");
        assert!(one.id == other.id && one.fingerprint != other.fingerprint);
        for bad in ["", "\"\"", "a b", &"n".repeat(256)] {
            assert!(read(bad, &ada, &here, "{}").is_err(), "{bad}");
        }
        assert_eq!(claim(&HeaderMap::new(), &ada, &here, &Map::new()).expect("none is right"), None);
    }
}
