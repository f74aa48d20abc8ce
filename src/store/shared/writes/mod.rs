//! Writes of keys, tenants and end users: the steps of each, in their order, the same for every backend.
//!
//! Must not know SQL. A backend implements the operations on rows ([`WriteTx`] and the traits beside it) for its transaction and runs
//! a write in one; it commits only if the write succeeds.
//!
//! *Invariant:* an administrative write draws its version before it reads or changes any other row. This takes the write lock, so no
//! row changes between its steps, and two writes cannot wait for each other. Its last step is its audit line.

pub(in crate::store) mod credentials;
pub(in crate::store) mod end_users;
pub(in crate::store) mod keys;
pub(in crate::store) mod prices;
pub(in crate::store) mod tenants;

use super::rules::{AuditFields, AuditLine};
use crate::clock::Timestamp;
use crate::model::id::WorkspaceId;
use crate::model::key::Plan;
use crate::store::{Actor, SignIn, StoreError, Version};

/// The future of an operation on rows.
pub(in crate::store) trait Rows<T>: Future<Output = Result<T, StoreError>> + Send {}

impl<T, F: Future<Output = Result<T, StoreError>> + Send> Rows<T> for F {}

/// The operations that every write needs.
pub(in crate::store) trait WriteTx: Sized {
    /// Draws the next version, which takes the write lock.
    fn next_version(&self) -> impl Rows<Version>;

    /// Rolls this transaction back although the write succeeds.
    fn undo(&self) -> impl Rows<()>;

    /// Adds a line to the audit log.
    fn add_audit_line(
        &self,
        version: Version,
        by: &Actor,
        at: Timestamp,
        line: AuditLine<'_>,
    ) -> impl Rows<()>;

    /// The plan of a workspace, raised by its grants at the instant `at`; none if there is no such workspace.
    fn plan_of(&self, workspace: &WorkspaceId, at: Timestamp) -> impl Rows<Option<Plan>>;
}

/// Records that a node has another config in force.
pub(in crate::store) async fn note_reload(
    tx: &impl WriteTx,
    node: &str,
    changes: AuditFields,
    by: &Actor,
    at: Timestamp,
) -> Result<(), StoreError> {
    let version = tx.next_version().await?;
    tx.add_audit_line(version, by, at, AuditLine::reload(node, changes)).await
}

/// Records how a sign-in to the console ended.
pub(in crate::store) async fn note_sign_in(
    tx: &impl WriteTx,
    workspace: Option<&WorkspaceId>,
    ended: &SignIn,
    by: &Actor,
    at: Timestamp,
) -> Result<(), StoreError> {
    let version = tx.next_version().await?;
    tx.add_audit_line(version, by, at, AuditLine::sign_in(workspace, ended, by)).await
}
