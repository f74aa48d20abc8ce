//! End users, and the atomic creation of new ones.

use super::tx::Tx;
use super::{PgStore, StoreError};
use crate::clock::Timestamp;
use crate::model::id::{EndUserId, WorkspaceId};
use crate::store::shared::decode::{end_user_columns, read_end_user, sound_end_user};
use crate::store::shared::fields::int;
use crate::store::shared::rules;
use crate::store::shared::writes;
use crate::store::shared::writes::end_users::EndUserRows;
use crate::store::{Actor, EndUserAdmission, EndUserRecord, EndUsers, Page, PageRequest, Version, Written};
use async_trait::async_trait;

#[async_trait]
impl EndUsers for PgStore {
    async fn admit_end_user_as(
        &self,
        workspace: &WorkspaceId,
        other_id: &str,
        id: EndUserId,
        at: Timestamp,
    ) -> Result<EndUserAdmission, StoreError> {
        rules::check_text("other_id", other_id)?;
        let (workspace, other_id) = (workspace.clone(), other_id.to_owned());
        // A known one passes whatever the quota, so it does not wait for the creation of others in its workspace.
        let (known_workspace, known_id) = (workspace.clone(), other_id.clone());
        let looked =
            self.read(move |tx| Box::pin(async move { known(tx, &known_workspace, &known_id).await }));
        if let Some(id) = looked.await? {
            return Ok(EndUserAdmission::Admitted(id));
        }
        self.write_again(move |tx| {
            let (workspace, other_id) = (workspace.clone(), other_id.clone());
            Box::pin(async move { writes::end_users::admit(tx, &workspace, &other_id, id, at).await })
        })
        .await
        .map_err(|broken| broken.error)
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
        self.write(move |tx| {
            Box::pin(async move { writes::end_users::restore(tx, &workspace, &users, &by, at).await })
        })
        .await
    }

    async fn end_users(
        &self,
        workspace: &WorkspaceId,
        other_id: Option<&str>,
        page: PageRequest,
    ) -> Result<Page<EndUserRecord>, StoreError> {
        if rules::hold_nul([other_id]) {
            return Ok(Page::complete(Vec::new(), 0));
        }
        let (workspace, other_id) = (workspace.clone(), other_id.map(str::to_owned));
        self.read(move |tx| {
            Box::pin(async move {
                match other_id {
                    Some(other_id) => named(tx, &workspace, &other_id, page).await,
                    None => list(tx, &workspace, page).await,
                }
            })
        })
        .await
    }

    async fn end_user(
        &self,
        workspace: &WorkspaceId,
        id: EndUserId,
    ) -> Result<Option<EndUserRecord>, StoreError> {
        let workspace = workspace.clone();
        self.read(move |tx| Box::pin(async move { end_user_record(tx, &workspace, id).await })).await
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
            Box::pin(async move { writes::end_users::delete(tx, &workspace, id, &by, at).await })
        })
        .await
    }
}

impl EndUserRows for Tx<'_> {
    async fn lock_workspace(&self, id: &WorkspaceId) -> Result<Option<u64>, StoreError> {
        let sql = "SELECT end_users FROM workspaces WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE";
        self.one(sql, &[&id.as_str()], |f| f.int("end_users")).await
    }

    async fn count_end_users(&self, workspace: &WorkspaceId, more: i64) -> Result<(), StoreError> {
        let sql = "UPDATE workspaces SET end_users = end_users + $2 WHERE id = $1";
        self.change(sql, &[&workspace.as_str(), &more]).await
    }

    async fn end_user_named(
        &self,
        workspace: &WorkspaceId,
        other_id: &str,
    ) -> Result<Option<EndUserId>, StoreError> {
        known(self, workspace, other_id).await
    }

    async fn end_user(
        &self,
        workspace: &WorkspaceId,
        id: EndUserId,
    ) -> Result<Option<EndUserRecord>, StoreError> {
        end_user_record(self, workspace, id).await
    }

    async fn insert_end_user(
        &self,
        workspace: &WorkspaceId,
        other_id: &str,
        id: EndUserId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO end_users (id, workspace_id, other_id, created_at) VALUES ($1, $2, $3, $4)";
        self.change(sql, &[&id.0, &workspace.as_str(), &other_id, &at.as_micros()]).await
    }

    async fn insert_missing_end_users(
        &self,
        workspace: &WorkspaceId,
        users: &[EndUserRecord],
    ) -> Result<u64, StoreError> {
        let ids: Vec<_> = users.iter().map(|user| user.id.0).collect();
        let names: Vec<_> = users.iter().map(|user| user.other_id.as_str()).collect();
        let instants: Vec<_> = users.iter().map(|user| user.created_at.as_micros()).collect();
        let sql = "INSERT INTO end_users (id, workspace_id, other_id, created_at)
                   SELECT id, $1, other_id, created_at
                   FROM unnest($2::uuid[], $3::text[], $4::bigint[]) AS moved (id, other_id, created_at)
                   ON CONFLICT DO NOTHING";
        self.execute(sql, &[&workspace.as_str(), &ids, &names, &instants]).await
    }

    async fn bury_end_user(
        &self,
        workspace: &WorkspaceId,
        user: &EndUserRecord,
        version: Version,
    ) -> Result<(), StoreError> {
        self.execute("DELETE FROM end_users WHERE id = $1", &[&user.id.0]).await?;
        let tombstone =
            "INSERT INTO end_user_tombstones (workspace_id, other_id, version) VALUES ($1, $2, $3)
                         ON CONFLICT (workspace_id, other_id) DO UPDATE SET version = excluded.version";
        self.change(tombstone, &[&workspace.as_str(), &user.other_id, &int(version.0)]).await
    }
}

/// Makes all end users of a workspace tombstones.
pub(super) async fn bury_all(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    version: Version,
) -> Result<(), StoreError> {
    let tombstones = "INSERT INTO end_user_tombstones (workspace_id, other_id, version)
                      SELECT workspace_id, other_id, $2::bigint FROM end_users WHERE workspace_id = $1
                      ON CONFLICT (workspace_id, other_id) DO UPDATE SET version = excluded.version";
    tx.execute(tombstones, &[&workspace.as_str(), &int(version.0)]).await?;
    tx.change("DELETE FROM end_users WHERE workspace_id = $1", &[&workspace.as_str()]).await
}

async fn known(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    other_id: &str,
) -> Result<Option<EndUserId>, StoreError> {
    let sql = "SELECT id FROM end_users WHERE workspace_id = $1 AND other_id = $2";
    tx.one(sql, &[&workspace.as_str(), &other_id], |f| Ok(EndUserId(f.uuid("id")?))).await
}

/// At most one, found by the index on names.
async fn named(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    other_id: &str,
    page: PageRequest,
) -> Result<Page<EndUserRecord>, StoreError> {
    let sql =
        concat!("SELECT ", end_user_columns!(), " FROM end_users WHERE workspace_id = $1 AND other_id = $2");
    let found = tx.one(sql, &[&workspace.as_str(), &other_id], read_end_user).await?;
    let total = u64::from(found.is_some());
    let is_on_page = page.offset() == 0 && page.pagesize > 0;
    Ok(Page::complete(found.into_iter().filter(|_| is_on_page).collect(), total))
}

async fn list(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    page: PageRequest,
) -> Result<Page<EndUserRecord>, StoreError> {
    let count = "SELECT count(*) FROM end_users WHERE workspace_id = $1";
    let total = tx.count(count, &[&workspace.as_str()]).await?;
    let sql = concat!(
        "SELECT ",
        end_user_columns!(),
        " FROM end_users WHERE workspace_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3"
    );
    let (limit, offset) = (i64::from(page.pagesize), int(page.offset()));
    let items = tx.all(sql, &[&workspace.as_str(), &limit, &offset], sound_end_user).await?;
    Ok(Page::of_readable(items, total))
}

async fn end_user_record(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    id: EndUserId,
) -> Result<Option<EndUserRecord>, StoreError> {
    let sql = concat!("SELECT ", end_user_columns!(), " FROM end_users WHERE workspace_id = $1 AND id = $2");
    tx.one(sql, &[&workspace.as_str(), &id.0], read_end_user).await
}
