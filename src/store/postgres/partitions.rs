//! The ledger's partitions: one for each UTC day, created before or with its first row.
//!
//! A row whose day has none, because it is of 1970, of the year 9999, or later than retention reaches, goes into the
//! default partition, so that no row is refused for its day. When such a day gets a partition later, its rows are moved
//! there.
//!
//! *Invariant:* the database's clock decides which days are plausible; a node whose clock is wrong creates no partitions.

use super::tx::Tx;
use super::{PgStore, StoreError};
use crate::clock::Timestamp;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// Days that this process has checked.
#[derive(Debug, Default)]
pub(super) struct KnownPartitions(Mutex<HashSet<i64>>);

/// Days in advance for which partitions are created; a node's clock may be wrong by as much.
const AHEAD: i64 = 3;
/// Days back for which a late row gets a partition.
const BACK: i64 = 400;
/// µs in a day.
pub(super) const DAY_US: i64 = 86_400_000_000;
/// "KyGp": the advisory lock for creating or dropping partitions.
pub(super) const LOCK: i64 = 0x4b79_4770;
/// Most partitions created at once; rows of further days wait in the default one.
const MADE_MAX: usize = 16;

/// Days since the epoch.
pub(super) fn day_of(at: Timestamp) -> i64 {
    at.as_micros().div_euclid(DAY_US)
}

impl PgStore {
    /// Creates the partitions of `days` if these are plausible. On failure this waits for the next maintenance run; the
    /// rows do not.
    pub(super) async fn make_days(&self, days: impl IntoIterator<Item = i64> + Send) {
        let new: Vec<i64> = self.days.unknown(days);
        if new.is_empty() {
            return;
        }
        let wanted = new.clone();
        match self.write(move |tx| Box::pin(async move { make(tx, &wanted).await })).await {
            Ok(made) if made > 0 => tracing::info!(made, "usage partitions created"),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot create usage partitions, rows go to the default partition");
            }
        }
        self.days.seen(new);
    }

    /// Creates the partitions around and after today. Returns how many were created.
    pub(super) async fn make_days_ahead(&self) -> Result<u64, StoreError> {
        self.write(|tx| {
            Box::pin(async move {
                let today = today(tx).await?;
                let days: Vec<i64> = (today - 1..=today + AHEAD).collect();
                make(tx, &days).await
            })
        })
        .await
    }
}

/// Today by the database's clock.
pub(super) async fn today(tx: &Tx<'_>) -> Result<i64, StoreError> {
    let sql = "SELECT floor(extract(epoch FROM now()) / 86400)::bigint";
    tx.one(sql, &[], |f| f.int("today")).await?.ok_or_else(|| StoreError::Corrupt("no clock".into()))
}

/// The days that have partitions.
pub(super) async fn existing(tx: &Tx<'_>) -> Result<Vec<i64>, StoreError> {
    let sql = "SELECT (to_date(right(c.relname, 8), 'YYYYMMDD') - date '1970-01-01')::bigint
               FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'usage'::regclass AND c.relname ~ '^usage_p[0-9]{8}$' ORDER BY 1";
    tx.all(sql, &[], |f| f.int("day")).await
}

/// The name of the partition of a day.
pub(super) fn name(day: i64) -> String {
    let start = chrono::DateTime::from_timestamp(day * 86_400, 0).unwrap_or_default();
    format!("usage_p{}", start.format("%Y%m%d"))
}

/// Creates the missing partitions of plausible `days`.
async fn make(tx: &Tx<'_>, days: &[i64]) -> Result<u64, StoreError> {
    let today = today(tx).await?;
    let plausible = |day: &i64| (today - BACK..=today + AHEAD).contains(day);
    if !days.iter().any(plausible) {
        return Ok(0);
    }
    // One node at a time, with a short wait, because reads of the default partition queue behind this lock.
    tx.control(&format!("SET LOCAL lock_timeout = '1s'; SELECT pg_advisory_xact_lock({LOCK})")).await?;
    let there: HashSet<i64> = existing(tx).await?.into_iter().collect();
    let missing = days.iter().filter(|day| plausible(day) && !there.contains(day)).take(MADE_MAX);
    let mut made = 0;
    for day in missing {
        let (name, from, to) = (name(*day), day * DAY_US, (day + 1) * DAY_US);
        tx.control(&format!(
            "CREATE TABLE {name} (LIKE usage INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
             WITH moved AS (DELETE FROM usage_odd WHERE at >= {from} AND at < {to} RETURNING *)
                 INSERT INTO {name} SELECT * FROM moved;
             ALTER TABLE usage ATTACH PARTITION {name} FOR VALUES FROM ({from}) TO ({to})"
        ))
        .await?;
        made += 1;
    }
    Ok(made)
}

// === impl KnownPartitions ===

impl KnownPartitions {
    fn unknown(&self, days: impl IntoIterator<Item = i64>) -> Vec<i64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new: Vec<i64> = days.into_iter().filter(|day| !known.contains(day)).collect();
        new.sort_unstable();
        new.dedup();
        new
    }

    fn seen(&self, days: Vec<i64>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A ledger of odd days must not grow this without limit.
        if known.len() > 10_000 {
            known.clear();
        }
        known.extend(days);
    }
}
