//! The change feed, and the agreement on peppers.

use super::tx::{Tx, TxKind};
use super::{NEWEST, PgStore, StoreError, broken_off, current_version, error, next_version, no_sequence};
use crate::store::shared::decode::{BATCH_MAX, SOURCES, feed_after};
use crate::store::shared::fields::RowReader;
use crate::store::shared::rules;
use crate::store::{Change, Feed, Version};
use async_trait::async_trait;
use deadpool_postgres::Object;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a read of the newest version may take before it is also tried on another connection.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);

#[async_trait]
impl Feed for PgStore {
    async fn changes(&self, after: Version, to: mpsc::Sender<Vec<Change>>) -> Result<Version, StoreError> {
        // Nearly always there is nothing new, and one query is enough.
        let reached = self.read_changes().await?;
        if reached <= after {
            return Ok(reached);
        }
        self.follow(TxKind::Read, move |tx| Box::pin(async move { send_changes(tx, after, &to).await })).await
    }

    async fn version(&self) -> Result<Version, StoreError> {
        self.read_changes().await
    }

    async fn changed(&self) {
        self.listener.heard().await;
    }

    async fn agree_on_peppers(&self, peppers: &[(u32, [u8; 32])]) -> Result<(), StoreError> {
        let given = peppers.to_vec();
        self.write(move |tx| Box::pin(async move { agree(tx, &given).await })).await
    }
}

impl PgStore {
    /// The version of the newest write. After [`LOOK_AGAIN_AFTER`] without an answer, a second connection is tried: the
    /// first may be dead without an error, and so may other idle ones.
    async fn read_changes(&self) -> Result<Version, StoreError> {
        let mut first = pin!(self.read_changes_once());
        if let Ok(answer) = tokio::time::timeout(LOOK_AGAIN_AFTER, &mut first).await {
            return answer;
        }
        self.feed_pool.retain(|_, _| false);
        tokio::select! {
            Ok(version) = &mut first => Ok(version),
            answer = self.read_changes_once() => answer,
        }
    }

    /// A single statement without a transaction: one round trip.
    async fn read_changes_once(&self) -> Result<Version, StoreError> {
        let running = self.running().await?;
        let (pool, patience) = (self.feed_pool.clone(), self.patience);
        let looking = async move {
            let connection = pool.get().await.map_err(|failed| error::of_pool(&failed))?;
            let asked = async {
                let statement = connection.prepare_cached(NEWEST).await?;
                connection.query(&statement, &[]).await
            };
            let answer = tokio::time::timeout(patience, asked).await;
            drop(running);
            let Ok(rows) = answer else {
                drop(Object::take(connection));
                return Err(StoreError::Unavailable("the database did not answer in time".into()));
            };
            let rows = rows?;
            let row = rows.first().ok_or_else(no_sequence)?;
            Ok(Version(RowReader::of(row).int("value")?))
        };
        self.runtime.spawn(looking).await.map_err(|_| broken_off())?
    }
}

async fn send_changes(
    tx: &Tx<'_>,
    after: Version,
    to: &mpsc::Sender<Vec<Change>>,
) -> Result<Version, StoreError> {
    let reached = current_version(tx).await?;
    for source in SOURCES {
        let mut parts = tx.parts(source.sql, &[&feed_after(after)], BATCH_MAX).await?;
        while let Some(rows) = parts.next().await? {
            let mut batch = Vec::with_capacity(rows.len());
            for row in &rows {
                batch.push(source.change(&mut RowReader::of(row), reached)?);
            }
            to.send(batch).await.map_err(|_| StoreError::Cancelled)?;
        }
    }
    Ok(reached)
}

/// Serialized with all other writes, so that two nodes that start at once also agree with each other.
async fn agree(tx: &Tx<'_>, given: &[(u32, [u8; 32])]) -> Result<(), StoreError> {
    next_version(tx).await?;
    let read = "SELECT version, check_value FROM peppers ORDER BY version";
    let remembered = tx.all(read, &[], |f| Ok((f.int::<u32>("version")?, f.digest("check_value")?))).await?;
    let used = "SELECT count(*) FROM keys
                WHERE deleted_at IS NULL AND (pepper_version = $1 OR old_pepper_version = $1)";
    for missing in rules::missing_peppers(&remembered, given)? {
        let keys = tx.count(used, &[&i64::from(missing)]).await?;
        rules::check_pepper_unused(missing, keys)?;
    }
    let new = given.iter().filter(|(version, _)| !remembered.iter().any(|(known, _)| known == version));
    let sql = "INSERT INTO peppers (version, check_value) VALUES ($1, $2)";
    let mut is_new = false;
    for (version, check) in new {
        tx.execute(sql, &[&i64::from(*version), &check.as_slice()]).await?;
        is_new = true;
    }
    if !is_new {
        tx.undo();
    }
    Ok(())
}
