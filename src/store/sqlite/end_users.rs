//! End users, and the atomic creation of new ones.

use super::row;
use super::writes::at_once;
use super::{SqliteStore, StoreError};
use crate::clock::Timestamp;
use crate::model::id::{EndUserId, WorkspaceId};
use crate::store::shared::decode::{end_user_columns, read_end_user, sound_end_user};
use crate::store::shared::rules;
use crate::store::shared::writes::end_users::EndUserRows;
use crate::store::shared::writes::{self, Rows};
use crate::store::{Actor, EndUserAdmission, EndUserRecord, EndUsers, Page, PageRequest, Version, Written};
use async_trait::async_trait;
use rusqlite::{Transaction, params};
use std::future::ready;

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
        self.write(move |tx| at_once(writes::end_users::admit(tx, &workspace, &other_id, id, at))).await
    }

    async fn restore_end_users(
        &self,
        workspace: &WorkspaceId,
        users: Vec<EndUserRecord>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<u64, StoreError> {
        users.iter().try_for_each(|user| rules::check_text("other_id", &user.other_id))?;
        let (workspace, by) = (workspace.clone(), by.clone());
        self.write(move |tx| at_once(writes::end_users::restore(tx, &workspace, &users, &by, at))).await
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
        self.write(move |tx| at_once(writes::end_users::delete(tx, &workspace, id, &by, at))).await
    }
}

impl EndUserRows for Transaction<'_> {
    /// The write lock is held already.
    fn lock_workspace(&self, id: &WorkspaceId) -> impl Rows<Option<u64>> {
        let sql = "SELECT end_users FROM workspaces WHERE id = ?1 AND deleted_at IS NULL";
        ready(row::one(self, sql, [id.as_str()], |f| f.int("end_users")))
    }

    fn count_end_users(&self, workspace: &WorkspaceId, more: i64) -> impl Rows<()> {
        let sql = "UPDATE workspaces SET end_users = end_users + ?2 WHERE id = ?1";
        ready(row::change(self, sql, params![workspace.as_str(), more]))
    }

    fn end_user_named(&self, workspace: &WorkspaceId, other_id: &str) -> impl Rows<Option<EndUserId>> {
        ready(known(self, workspace, other_id))
    }

    fn end_user(&self, workspace: &WorkspaceId, id: EndUserId) -> impl Rows<Option<EndUserRecord>> {
        ready(end_user_record(self, workspace, id))
    }

    fn insert_end_user(
        &self,
        workspace: &WorkspaceId,
        other_id: &str,
        id: EndUserId,
        at: Timestamp,
    ) -> impl Rows<()> {
        let sql = "INSERT INTO end_users (id, workspace_id, other_id, created_at) VALUES (?1, ?2, ?3, ?4)";
        let values = params![id.0.as_bytes(), workspace.as_str(), other_id, at.as_micros()];
        ready(row::change(self, sql, values))
    }

    fn insert_missing_end_users(&self, workspace: &WorkspaceId, users: &[EndUserRecord]) -> impl Rows<u64> {
        ready(insert_missing(self, workspace, users))
    }

    fn bury_end_user(
        &self,
        workspace: &WorkspaceId,
        user: &EndUserRecord,
        version: Version,
    ) -> impl Rows<()> {
        ready(bury(self, workspace, user, version))
    }
}

fn insert_missing(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    users: &[EndUserRecord],
) -> Result<u64, StoreError> {
    let insert = "INSERT INTO end_users (id, workspace_id, other_id, created_at) VALUES (?1, ?2, ?3, ?4)
                  ON CONFLICT DO NOTHING";
    let mut new = 0;
    for user in users {
        let values =
            params![user.id.0.as_bytes(), workspace.as_str(), user.other_id, user.created_at.as_micros()];
        new += u64::try_from(row::execute(tx, insert, values)?).unwrap_or(0);
    }
    Ok(new)
}

fn bury(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    user: &EndUserRecord,
    version: Version,
) -> Result<(), StoreError> {
    row::execute(tx, "DELETE FROM end_users WHERE id = ?1", [user.id.0.as_bytes()])?;
    let tombstone = "INSERT INTO end_user_tombstones (workspace_id, other_id, version) VALUES (?1, ?2, ?3)
                     ON CONFLICT (workspace_id, other_id) DO UPDATE SET version = excluded.version";
    row::change(tx, tombstone, params![workspace.as_str(), user.other_id, row::int(version.0)])
}

/// Makes all end users of a workspace tombstones.
pub(super) fn bury_all(
    tx: &Transaction<'_>,
    workspace: &WorkspaceId,
    version: Version,
) -> Result<(), StoreError> {
    // SQLite needs the WHERE to tell ON CONFLICT from a join.
    let tombstones = "INSERT INTO end_user_tombstones (workspace_id, other_id, version)
                      SELECT workspace_id, other_id, ?2 FROM end_users WHERE workspace_id = ?1
                      ON CONFLICT (workspace_id, other_id) DO UPDATE SET version = excluded.version";
    row::execute(tx, tombstones, params![workspace.as_str(), row::int(version.0)])?;
    row::change(tx, "DELETE FROM end_users WHERE workspace_id = ?1", [workspace.as_str()])
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
