//! The audit log: one line per administrative write, in the same transaction.

use super::tx::Tx;
use super::{PgStore, StoreError};
use crate::clock::Timestamp;
use crate::model::id::{AuditId, WorkspaceId};
use crate::store::shared::audit::{audit_columns, read_audit};
use crate::store::shared::fields::int;
use crate::store::shared::rules::{self, AuditLine, without_nul};
use crate::store::shared::writes;
use crate::store::{Actor, Audit, AuditFilter, AuditRecord, Page, PageRequest, SignIn, Version};
use async_trait::async_trait;
use serde_json::{Map, Value};

/// Adds a line.
pub(super) async fn add(
    tx: &Tx<'_>,
    version: Version,
    by: &Actor,
    at: Timestamp,
    line: AuditLine<'_>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO audit (id, version, at, platform, workspace_id, subject, role, address, request_id, action,
                   target, changes)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    let platform = line.is_of_platform();
    tx.execute(
        sql,
        &[
            &AuditId::new(at).0,
            &int(version.0),
            &at.as_micros(),
            &platform,
            &line.workspace.map(WorkspaceId::as_str),
            &without_nul(&by.subject),
            &by.role,
            &by.address.map(|a| a.to_string()),
            &by.request_id.as_deref().map(without_nul),
            &line.action,
            &line.target,
            &Value::Object(line.changes).to_string(),
        ],
    )
    .await?;
    Ok(())
}

/// The filter. Without a workspace, the lines of the platform; `$1` is bound in both cases, so that the values are the
/// same.
macro_rules! filtered {
    ($select:expr) => {
        concat!(
            "SELECT ",
            $select,
            " FROM audit WHERE CASE WHEN $1::text IS NULL THEN platform ELSE workspace_id = $1 END
               AND ($2::text IS NULL OR action = $2) AND ($3::text IS NULL OR target = $3)
               AND at >= $4 AND at < $5"
        )
    };
}

#[async_trait]
impl Audit for PgStore {
    async fn note_reload(
        &self,
        node: &str,
        changes: Map<String, Value>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let (node, by) = (node.to_owned(), by.clone());
        self.write(move |tx| Box::pin(async move { writes::note_reload(tx, &node, changes, &by, at).await }))
            .await
    }

    async fn note_sign_in(
        &self,
        workspace: Option<&WorkspaceId>,
        ended: &SignIn,
        by: &Actor,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let (workspace, ended, by) = (workspace.cloned(), ended.clone(), by.clone());
        self.write(move |tx| {
            Box::pin(async move { writes::note_sign_in(tx, workspace.as_ref(), &ended, &by, at).await })
        })
        .await
    }

    async fn audit(
        &self,
        workspace: Option<&WorkspaceId>,
        filter: &AuditFilter,
        page: PageRequest,
    ) -> Result<Page<AuditRecord>, StoreError> {
        if rules::hold_nul([filter.action.as_deref(), filter.target.as_deref()]) {
            return Ok(Page::complete(Vec::new(), 0));
        }
        let (workspace, filter) = (workspace.cloned(), filter.clone());
        self.read(move |tx| Box::pin(async move { list(tx, workspace.as_ref(), &filter, page).await })).await
    }
}

async fn list(
    tx: &Tx<'_>,
    workspace: Option<&WorkspaceId>,
    filter: &AuditFilter,
    page: PageRequest,
) -> Result<Page<AuditRecord>, StoreError> {
    let scope = workspace.map(WorkspaceId::as_str);
    let from = filter.from.map_or(i64::MIN, Timestamp::as_micros);
    let to = filter.to.map_or(i64::MAX, Timestamp::as_micros);
    let total =
        tx.count(filtered!("count(*)"), &[&scope, &filter.action, &filter.target, &from, &to]).await?;
    let select = concat!(filtered!(audit_columns!()), " ORDER BY version DESC LIMIT $6 OFFSET $7");
    let (limit, offset) = (i64::from(page.pagesize), int(page.offset()));
    let values: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
        &[&scope, &filter.action, &filter.target, &from, &to, &limit, &offset];
    let items = tx.all(select, values, read_audit).await?;
    Ok(Page::complete(items, total))
}
