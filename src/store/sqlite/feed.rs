//! The change feed, and the agreement on peppers.

use super::key_rows::{key_columns, read_key};
use super::row::{self, Fields};
use super::tenants::{plan_columns, read_plan};
use super::{SqliteStore, StoreError, current_version};
use crate::policy::id::KeyId;
use crate::store::{Change, Credential, Digest, Feed, KeyChange, Version};
use async_trait::async_trait;
use rusqlite::{Transaction, params};
use smallvec::SmallVec;
use tokio::sync::mpsc;

/// Changes in one batch, at most.
const BATCH_MAX: usize = 1_000;

#[async_trait]
impl Feed for SqliteStore {
    async fn changes(&self, after: Version, to: mpsc::Sender<Vec<Change>>) -> Result<Version, StoreError> {
        self.read(move |tx| {
            let reached = current_version(tx)?;
            let mut batches = Batches { to, batch: Vec::new() };
            for source in SOURCES {
                row::each(tx, source.sql, [row::int(after.0)], |fields| {
                    batches.push(source.change(fields)?)
                })?;
            }
            batches.send()?;
            Ok(reached)
        })
        .await
    }

    async fn version(&self) -> Result<Version, StoreError> {
        self.read(current_version).await
    }

    async fn agree_on_peppers(&self, peppers: &[(u32, [u8; 32])]) -> Result<(), StoreError> {
        let given = peppers.to_vec();
        self.write(move |tx| agree(tx, &given)).await
    }
}

// === changes ===

/// One query of the feed. The first column of each is the row's id.
struct Source {
    table: &'static str,
    sql: &'static str,
    read: fn(&mut Fields<'_>) -> Result<Change, StoreError>,
}

/// In the order in which a keyring can take them in: what is pointed at comes before what points, and a plan goes only
/// after the workspaces that left it.
const SOURCES: &[Source] = &[
    Source {
        table: "plans",
        sql: concat!(
            "SELECT ",
            plan_columns!(),
            " FROM plans p WHERE p.version > ?1 AND p.deleted_at IS NULL ORDER BY p.version"
        ),
        read: |f| Ok(Change::Plan(read_plan(f)?)),
    },
    Source {
        table: "workspaces",
        sql: "SELECT id, plan_id FROM workspaces WHERE version > ?1 ORDER BY version",
        read: |f| Ok(Change::Workspace { id: f.parsed("id")?, plan_id: f.parsed("plan_id")? }),
    },
    Source {
        table: "keys",
        sql: concat!(
            "SELECT ",
            key_columns!(),
            ", k.version, k.digest, k.pepper_version, k.old_digest, k.old_pepper_version, k.old_valid_until
             FROM keys k WHERE k.version > ?1 AND k.deleted_at IS NULL ORDER BY k.version"
        ),
        read: read_key_change,
    },
    Source {
        table: "keys",
        sql: "SELECT id, version FROM keys WHERE version > ?1 AND deleted_at IS NOT NULL ORDER BY version",
        read: |f| Ok(Change::KeyRemoved { id: KeyId(f.uuid("id")?), version: Version(f.int("version")?) }),
    },
    Source {
        table: "end_user_tombstones",
        sql: "SELECT other_id, workspace_id FROM end_user_tombstones WHERE version > ?1 ORDER BY version",
        read: |f| {
            let other_id = f.text("other_id")?.into();
            Ok(Change::EndUserRemoved { workspace_id: f.parsed("workspace_id")?, other_id })
        },
    },
    Source {
        table: "plans",
        sql: "SELECT id FROM plans WHERE version > ?1 AND deleted_at IS NOT NULL ORDER BY version",
        read: |f| Ok(Change::PlanRemoved(f.parsed("id")?)),
    },
];

/// Batches on their way to whoever follows.
struct Batches {
    to: mpsc::Sender<Vec<Change>>,
    batch: Vec<Change>,
}

fn read_key_change(f: &mut Fields<'_>) -> Result<Change, StoreError> {
    let key = read_key(f)?;
    let version = Version(f.int("version")?);
    let current = Credential {
        digest: Digest(f.digest("digest")?),
        pepper_version: f.int("pepper_version")?,
        valid_until: None,
    };
    let mut credentials = SmallVec::from_iter([current]);
    if let Some(old) = f.maybe_digest("old_digest")? {
        credentials.push(Credential {
            digest: Digest(old),
            pepper_version: f.int("old_pepper_version")?,
            valid_until: Some(f.instant("old_valid_until")?),
        });
    }
    Ok(Change::Key(KeyChange { key, credentials, version }))
}

// === impl Source ===

impl Source {
    /// A row that cannot be understood is a change too: what it stood for must not be served.
    fn change(&self, fields: &mut Fields<'_>) -> Result<Change, StoreError> {
        match (self.read)(fields) {
            Err(StoreError::Corrupt(why)) => {
                Ok(Change::Broken { table: self.table, id: fields.id_for_people(), why })
            }
            other => other,
        }
    }
}

// === impl Batches ===

impl Batches {
    fn push(&mut self, change: Change) -> Result<(), StoreError> {
        self.batch.push(change);
        if self.batch.len() == BATCH_MAX { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), StoreError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.to.blocking_send(batch).map_err(|_| StoreError::Cancelled)
    }
}

// === peppers ===

fn agree(tx: &Transaction<'_>, given: &[(u32, [u8; 32])]) -> Result<(), StoreError> {
    let remembered = row::all(tx, "SELECT version, check_value FROM peppers ORDER BY version", [], |f| {
        Ok((f.int::<u32>("version")?, f.digest("check_value")?))
    })?;
    for (version, check) in &remembered {
        match given.iter().find(|(v, _)| v == version) {
            Some((_, same)) if same == check => {}
            Some(_) => {
                return Err(StoreError::WrongPepper(format!(
                    "pepper {version} is not the one that this database's keys were made with; give the one from before, \
                 or give the new one a version of its own"
                )));
            }
            None => require_unused(tx, *version)?,
        }
    }
    let sql = "INSERT INTO peppers (version, check_value) VALUES (?1, ?2) ON CONFLICT (version) DO NOTHING";
    for (version, check) in given {
        row::execute(tx, sql, params![version, check])?;
    }
    Ok(())
}

fn require_unused(tx: &Transaction<'_>, version: u32) -> Result<(), StoreError> {
    let sql = "SELECT count(*) FROM keys
               WHERE deleted_at IS NULL AND (pepper_version = ?1 OR old_pepper_version = ?1)";
    let keys = row::count(tx, sql, [version])?;
    if keys == 0 {
        return Ok(());
    }
    Err(StoreError::WrongPepper(format!(
        "pepper {version} is missing, but the secrets of {keys} keys can only be checked with it; give it as well, \
         after the current one"
    )))
}
