//! End users, and the atomic creation of new ones.

use super::audit;
use super::row;
use super::tenants::plan_of;
use super::{SqliteStore, StoreError, next_version};
use crate::clock::Timestamp;
use crate::model::id::{EndUserId, WorkspaceId};
use crate::store::shared::decode::{end_user_columns, read_end_user, sound_end_user};
use crate::store::shared::rules;
use crate::store::{Actor, EndUserAdmission, EndUserRecord, EndUsers, Page, PageRequest, Written};
use async_trait::async_trait;
use rusqlite::{Transaction, params};
use serde_json::json;

#[async_trait]
impl EndUsers for SqliteStore {
    async fn admit_end_user_as(
        &self,
        workspace: &WorkspaceId,
        other_id: &str,
        id: EndUserId,
        at: Timestamp,
    ) -> Result<EndUserAdmission, StoreError> {
        rules::check_text("other_id", other_id)?;
        let (workspace, other_id) = (workspace.clone(), other_id.to_owned());
        // A known one passes whatever the quota, so it does not wait for the writer.
        let (known_workspace, known_id) = (workspace.clone(), other_id.clone());
        if let Some(id) = self.read(move |tx| known(tx, &known_workspace, &known_id)).await? {
            return Ok(EndUserAdmission::Admitted(id));
        }
        self.write(move |tx| admit(tx, &workspace, &other_id, id, at)).await
    }

    async fn restore_end_users(
        &self,
        workspace: &WorkspaceId,
        users: Vec<EndUserRecord>,
    ) -> Result<u64, StoreError> {
        users.iter().try_for_each(|user| rules::check_text("other_id", &user.other_id))?;
        let workspace = workspace.clone();
        self.write(move |tx| restore(tx, &workspace, &users)).await
    }

    async fn end_users(
        &self,
        workspace: &WorkspaceId,
        other_id: Option<&str>,
        page: PageRequest,
    ) -> Result<Page<EndUserRecord>, StoreError> {
        let (workspace, other_id) = (workspace.clone(), other_id.map(str::to_owned));
        self.read(move |tx| match other_id {
            Some(other_id) => named(tx, &workspace, &other_id, page),
            None => list(tx, &workspace, page),
        })
        .await
    }

    async fn end_user(
        &self,
        workspace: &WorkspaceId,
        id: EndUserId,
    ) -> Result<Option<EndUserRecord>, StoreError> {
        let workspace = workspace.clone();
        self.read(move |tx| end_user_record(tx, &workspace, id)).await
    }

    async fn delete_end_user(
        &self,
        workspace: &WorkspaceId,
        id: EndUserId,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<()>, StoreError> {
        let (workspace, by) = (workspace.clone(), by.clone());
        self.write(move |tx| {
            let gone = end_user_record(tx, &workspace, id)?.ok_or(StoreError::NotFound("end user"))?;
            let version = next_version(tx)?;
            row::execute(tx, "DELETE FROM end_users WHERE id = ?1", [id.0.as_bytes()])?;
            let room = "UPDATE workspaces SET end_users = end_users - 1 WHERE id = ?1";
            row::execute(tx, room, [workspace.as_str()])?;
            let tombstone =
                "INSERT INTO end_user_tombstones (workspace_id, other_id, version) VALUES (?1, ?2, ?3)
                             ON CONFLICT (workspace_id, other_id) DO UPDATE SET version = excluded.version";
            row::execute(tx, tombstone, params![workspace.as_str(), gone.other_id, row::int(version.0)])?;
            let line = rules::AuditLine {
                action: "enduser.delete",
                workspace: Some(&workspace),
                target: id.to_string(),
                changes: rules::fields([("other_id", json!(gone.other_id))]),
            };
            audit::add(tx, version, &by, at, line)?;
            Ok(Written { value: (), version })
        })
        .await
    }
}

/// One transaction, and writes are serialized: between the look-up and the insert nobody else inserts.
fn admit(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    other_id: &str,
    id: EndUserId,
    at: Timestamp,
) -> Result<EndUserAdmission, StoreError> {
    if let Some(id) = known(tx, workspace, other_id)? {
        return Ok(EndUserAdmission::Admitted(id));
    }
    let quota = plan_of(tx, workspace)?.ok_or(StoreError::NotFound("workspace"))?.end_user_quota;
    let sql = "UPDATE workspaces SET end_users = end_users + 1 WHERE id = ?1 AND end_users < ?2";
    if row::execute(tx, sql, params![workspace.as_str(), row::int(quota)])? == 0 {
        return Ok(EndUserAdmission::Full { quota });
    }
    let insert = "INSERT INTO end_users (id, workspace_id, other_id, created_at) VALUES (?1, ?2, ?3, ?4)";
    row::execute(tx, insert, params![id.0.as_bytes(), workspace.as_str(), other_id, at.as_micros()])?;
    Ok(EndUserAdmission::Admitted(id))
}

fn restore(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    users: &[EndUserRecord],
) -> Result<u64, StoreError> {
    plan_of(tx, workspace)?.ok_or(StoreError::NotFound("workspace"))?;
    let insert = "INSERT INTO end_users (id, workspace_id, other_id, created_at) VALUES (?1, ?2, ?3, ?4)
                  ON CONFLICT DO NOTHING";
    let mut new = 0;
    for user in users {
        let values =
            params![user.id.0.as_bytes(), workspace.as_str(), user.other_id, user.created_at.as_micros()];
        new += u64::try_from(row::execute(tx, insert, values)?).unwrap_or(0);
    }
    let room = "UPDATE workspaces SET end_users = end_users + ?2 WHERE id = ?1";
    row::execute(tx, room, params![workspace.as_str(), row::int(new)])?;
    Ok(new)
}

fn known(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    other_id: &str,
) -> Result<Option<EndUserId>, StoreError> {
    let sql = "SELECT id FROM end_users WHERE workspace_id = ?1 AND other_id = ?2";
    row::one(tx, sql, params![workspace.as_str(), other_id], |f| Ok(EndUserId(f.uuid("id")?)))
}

/// At most one, found by the index on names.
fn named(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    other_id: &str,
    page: PageRequest,
) -> Result<Page<EndUserRecord>, StoreError> {
    let sql = concat!(
        "SELECT ",
        end_user_columns!(),
        " FROM end_users
               WHERE workspace_id = ?1 AND other_id = ?2"
    );
    let found = row::one(tx, sql, params![workspace.as_str(), other_id], read_end_user)?;
    let total = u64::from(found.is_some());
    let is_on_page = page.offset() == 0 && page.pagesize > 0;
    Ok(Page::complete(found.into_iter().filter(|_| is_on_page).collect(), total))
}

fn list(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    page: PageRequest,
) -> Result<Page<EndUserRecord>, StoreError> {
    let total =
        row::count(tx, "SELECT count(*) FROM end_users WHERE workspace_id = ?1", [workspace.as_str()])?;
    let sql = concat!(
        "SELECT ",
        end_user_columns!(),
        " FROM end_users WHERE workspace_id = ?1
               ORDER BY created_at DESC, id DESC LIMIT ?2 OFFSET ?3"
    );
    let values = params![workspace.as_str(), page.pagesize, row::int(page.offset())];
    let items = row::all(tx, sql, values, sound_end_user)?;
    Ok(Page::of_readable(items, total))
}

fn end_user_record(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    id: EndUserId,
) -> Result<Option<EndUserRecord>, StoreError> {
    let sql = concat!("SELECT ", end_user_columns!(), " FROM end_users WHERE workspace_id = ?1 AND id = ?2");
    row::one(tx, sql, params![workspace.as_str(), id.0.as_bytes()], read_end_user)
}
