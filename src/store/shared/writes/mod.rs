//! Writes of keys, tenants and end users: which steps each has and in which order, told once for every backend.
//!
//! Must not know SQL. A backend gives its transaction the operations on rows that the steps consist of ([`WriteTx`] and the traits
//! beside it) and runs a write in it; the transaction is kept only when the write succeeds.
//!
//! *Invariant:* an administrative write draws its version before it looks at anything: from then on no other one runs until this one
//! is kept or undone, so what a step has seen is still so at the next. Its last step is its line in the audit trail.

pub(in crate::store) mod end_users;
pub(in crate::store) mod keys;
pub(in crate::store) mod tenants;

use super::rules::{AuditFields, AuditLine};
use crate::clock::Timestamp;
use crate::model::id::WorkspaceId;
use crate::model::key::Plan;
use crate::store::{Actor, StoreError, Version};

/// What an operation on rows answers, now or later.
pub(in crate::store) trait Rows<T>: Future<Output = Result<T, StoreError>> + Send {}

impl<T, F: Future<Output = Result<T, StoreError>> + Send> Rows<T> for F {}

/// What every write needs of its transaction.
pub(in crate::store) trait WriteTx: Sized {
    /// Draws the next version, and keeps other writes out.
    fn next_version(&self) -> impl Rows<Version>;

    /// Nothing of this transaction is to be kept, although the write succeeds.
    fn undo(&self) -> impl Rows<()>;

    /// Adds a line to the audit trail.
    fn add_audit_line(
        &self,
        version: Version,
        by: &Actor,
        at: Timestamp,
        line: AuditLine<'_>,
    ) -> impl Rows<()>;

    /// The plan that a workspace is on; none when there is no such workspace.
    fn plan_of(&self, workspace: &WorkspaceId) -> impl Rows<Option<Plan>>;
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
