//! The change feed, and the agreement on peppers.

use super::row;
use super::{SqliteStore, StoreError, current_version};
use crate::store::shared::decode::{BATCH_MAX, SOURCES, feed_after};
use crate::store::shared::rules;
use crate::store::{Change, Feed, Version};
use async_trait::async_trait;
use rusqlite::{Transaction, params};
use tokio::sync::mpsc;

#[async_trait]
impl Feed for SqliteStore {
    async fn changes(&self, after: Version, to: mpsc::Sender<Vec<Change>>) -> Result<Version, StoreError> {
        self.read(move |tx| {
            let reached = current_version(tx)?;
            let mut batches = ChangeBatches { to, batch: Vec::new() };
            for source in SOURCES {
                row::each(tx, source.sql, [feed_after(after)], |fields| {
                    batches.push(source.change(fields, reached)?)
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

/// Batches for the follower.
struct ChangeBatches {
    to: mpsc::Sender<Vec<Change>>,
    batch: Vec<Change>,
}

// === impl ChangeBatches ===

impl ChangeBatches {
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
        Ok((f.int("version")?, f.digest("check_value")?))
    })?;
    let used = "SELECT count(*) FROM keys
                WHERE deleted_at IS NULL AND (pepper_version = ?1 OR old_pepper_version = ?1)";
    for missing in rules::missing_peppers(&remembered, given)? {
        rules::check_pepper_unused(missing, row::count(tx, used, [missing])?)?;
    }
    let sql = "INSERT INTO peppers (version, check_value) VALUES (?1, ?2) ON CONFLICT (version) DO NOTHING";
    for (version, check) in given {
        row::execute(tx, sql, params![version, check])?;
    }
    Ok(())
}
