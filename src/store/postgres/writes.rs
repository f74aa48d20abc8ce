//! The operations that every write needs.

use super::tx::Tx;
use super::{StoreError, audit, next_version, tenants};
use crate::clock::Timestamp;
use crate::model::id::WorkspaceId;
use crate::model::key::Plan;
use crate::store::shared::rules::AuditLine;
use crate::store::shared::writes::WriteTx;
use crate::store::{Actor, Version};

impl WriteTx for Tx<'_> {
    async fn next_version(&self) -> Result<Version, StoreError> {
        next_version(self).await
    }

    async fn undo(&self) -> Result<(), StoreError> {
        Tx::undo(self);
        Ok(())
    }

    async fn add_audit_line(
        &self,
        version: Version,
        by: &Actor,
        at: Timestamp,
        line: AuditLine<'_>,
    ) -> Result<(), StoreError> {
        audit::add(self, version, by, at, line).await
    }

    async fn plan_of(&self, workspace: &WorkspaceId, at: Timestamp) -> Result<Option<Plan>, StoreError> {
        tenants::plan_of(self, workspace, at).await
    }
}
