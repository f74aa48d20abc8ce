//! The audit log: one line per administrative write, in the same transaction.

use super::row;
use super::writes::at_once;
use super::{SqliteStore, StoreError};
use crate::clock::Timestamp;
use crate::model::id::{AuditId, WorkspaceId};
use crate::store::shared::audit::{audit_columns, read_audit};
use crate::store::shared::rules::{AuditLine, without_nul};
use crate::store::shared::writes;
use crate::store::{Actor, Audit, AuditFilter, AuditRecord, Page, PageRequest, SignIn, Version};
use async_trait::async_trait;
use rusqlite::{Transaction, named_params};
use serde_json::{Map, Value};

/// Adds a line. Lines about plans and workspaces themselves belong to the platform.
pub(super) fn add(
    tx: &Transaction<'_>,
    version: Version,
    by: &Actor,
    at: Timestamp,
    line: AuditLine<'_>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO audit (id, version, at, platform, workspace_id, subject, role, address, request_id,
                   action, target, changes)
               VALUES (:id, :version, :at, :platform, :workspace, :subject, :role, :address, :request, :action,
                   :target, :changes)";
    row::execute(
        tx,
        sql,
        named_params! {
            ":id": AuditId::new(at).0.as_bytes(),
            ":version": row::int(version.0),
            ":at": at.as_micros(),
            ":platform": line.is_of_platform(),
            ":workspace": line.workspace.map(WorkspaceId::as_str),
            ":subject": without_nul(&by.subject),
            ":role": by.role,
            ":address": by.address.map(|a| a.to_string()),
            ":request": by.request_id.as_deref().map(without_nul),
            ":action": line.action,
            ":target": line.target,
            ":changes": Value::Object(line.changes).to_string(),
        },
    )?;
    Ok(())
}

macro_rules! filtered {
    ($select:expr, $scope:literal) => {
        concat!(
            "SELECT ",
            $select,
            " FROM audit WHERE ",
            $scope,
            " AND (:action IS NULL OR action = :action) AND (:target IS NULL OR target = :target)",
            " AND at >= :from AND at < :to"
        )
    };
}

macro_rules! lines {
    ($scope:literal) => {
        concat!(filtered!(audit_columns!(), $scope), " ORDER BY version DESC LIMIT :limit OFFSET :offset")
    };
}

#[async_trait]
impl Audit for SqliteStore {
    async fn note_reload(
        &self,
        node: &str,
        changes: Map<String, Value>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let (node, by) = (node.to_owned(), by.clone());
        self.write(move |tx| at_once(writes::note_reload(tx, &node, changes, &by, at))).await
    }

    async fn note_sign_in(
        &self,
        workspace: Option<&WorkspaceId>,
        ended: &SignIn,
        by: &Actor,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let (workspace, ended, by) = (workspace.cloned(), ended.clone(), by.clone());
        self.write(move |tx| at_once(writes::note_sign_in(tx, workspace.as_ref(), &ended, &by, at))).await
    }

    async fn audit(
        &self,
        workspace: Option<&WorkspaceId>,
        filter: &AuditFilter,
        page: PageRequest,
    ) -> Result<Page<AuditRecord>, StoreError> {
        let (workspace, filter) = (workspace.cloned(), filter.clone());
        self.read(move |tx| {
            let (count, select) = match &workspace {
                Some(_) => (filtered!("count(*)", "workspace_id = :scope"), lines!("workspace_id = :scope")),
                // `:scope` is bound in both cases, so that the parameters are the same.
                None => (
                    filtered!("count(*)", "platform = 1 AND :scope IS NULL"),
                    lines!("platform = 1 AND :scope IS NULL"),
                ),
            };
            let scope = workspace.as_ref().map(WorkspaceId::as_str);
            let from = filter.from.map_or(i64::MIN, Timestamp::as_micros);
            let to = filter.to.map_or(i64::MAX, Timestamp::as_micros);
            let total = row::count(
                tx,
                count,
                named_params! {
                    ":scope": scope, ":action": filter.action, ":target": filter.target, ":from": from, ":to": to,
                },
            )?;
            let items = row::all(
                tx,
                select,
                named_params! {
                    ":scope": scope, ":action": filter.action, ":target": filter.target, ":from": from, ":to": to,
                    ":limit": page.pagesize, ":offset": row::int(page.offset()),
                },
                read_audit,
            )?;
            Ok(Page::complete(items, total))
        })
        .await
    }
}
