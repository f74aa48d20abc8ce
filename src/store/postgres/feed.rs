//! The change feed, and the agreement on peppers.

use super::tx::Tx;
use super::{PgStore, StoreError, current_version, next_version};
use crate::store::decode::{BATCH_MAX, SOURCES};
use crate::store::fields::{Fields, int};
use crate::store::{Change, Feed, Version, rules};
use async_trait::async_trait;
use tokio::sync::mpsc;

#[async_trait]
impl Feed for PgStore {
    async fn changes(&self, after: Version, to: mpsc::Sender<Vec<Change>>) -> Result<Version, StoreError> {
        self.read(move |tx| Box::pin(async move { send_changes(tx, after, &to).await })).await
    }

    async fn version(&self) -> Result<Version, StoreError> {
        self.read(|tx| Box::pin(current_version(tx))).await
    }

    async fn changed(&self) {
        self.listener.heard().await;
    }

    async fn agree_on_peppers(&self, peppers: &[(u32, [u8; 32])]) -> Result<(), StoreError> {
        let given = peppers.to_vec();
        self.write(move |tx| Box::pin(async move { agree(tx, &given).await })).await
    }
}

async fn send_changes(
    tx: &Tx<'_>,
    after: Version,
    to: &mpsc::Sender<Vec<Change>>,
) -> Result<Version, StoreError> {
    let reached = current_version(tx).await?;
    // Nearly always there is nothing new, and one look tells.
    if reached <= after {
        return Ok(reached);
    }
    for source in SOURCES {
        let mut parts = tx.parts(source.sql, &[&int(after.0)], BATCH_MAX).await?;
        while let Some(rows) = parts.next().await? {
            let mut batch = Vec::with_capacity(rows.len());
            for row in &rows {
                batch.push(source.change(&mut Fields::of(row))?);
            }
            to.send(batch).await.map_err(|_| StoreError::Cancelled)?;
        }
    }
    Ok(reached)
}

/// Takes turns with all other writes, so that two nodes that start at once agree with each other too.
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
