//! Decodes lines of the audit log.

use super::fields::RowReader;
use crate::model::id::AuditId;
use crate::store::{AuditRecord, StoreError};

/// The columns for [`read_audit`].
macro_rules! audit_columns {
    () => {
        "id, at, workspace_id, subject, role, address, request_id, action, target, changes"
    };
}
pub(in crate::store) use audit_columns;

pub(in crate::store) fn read_audit(f: &mut RowReader<'_>) -> Result<AuditRecord, StoreError> {
    Ok(AuditRecord {
        id: AuditId(f.uuid("id")?),
        at: f.instant("at")?,
        workspace_id: f.maybe_parsed("workspace_id")?,
        subject: f.text("subject")?.to_owned(),
        role: f.text("role")?.to_owned(),
        address: f.maybe_parsed("address")?,
        request_id: f.maybe_text("request_id")?.map(str::to_owned),
        action: f.text("action")?.to_owned(),
        target: f.text("target")?.to_owned(),
        changes: f.read("changes", serde_json::from_str)?,
    })
}
