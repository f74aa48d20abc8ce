//! The steps of retention. The database's clock decides: a node with a wrong clock must not empty the ledger.

use super::partitions::{DAY_US, LOCK, existing, name, today};
use super::{PgStore, StoreError};
use crate::clock::Timestamp;
use crate::model::id::{KeyId, PlanId};
use crate::store::shared::fields::int;
use crate::store::shared::retention::{
    KeyDay, LATE_BY, LOOKED_AT, RetentionClock, RetentionPlan, RetentionSteps, STEP,
};
use crate::store::shared::rollup::WindowWidth;
use crate::store::{LogCursor, Version};
use async_trait::async_trait;
use tokio_postgres::types::ToSql;

#[async_trait]
impl RetentionSteps for PgStore {
    fn calendar(&self) -> &RetentionClock {
        &self.calendar
    }

    async fn day_with_records(&self, before: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        self.read(move |tx| {
            Box::pin(async move {
                let sql = "SELECT start FROM usage_rollups WHERE width = 86400 AND start < $1 ORDER BY start DESC LIMIT 1";
                tx.one(sql, &[&before.as_micros()], |f| f.instant("start")).await
            })
        })
        .await
    }

    async fn take_back(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let sql =
                    "UPDATE workspaces SET usage_kept_from = CASE WHEN usage_kept_from > $1 THEN 0 ELSE usage_kept_from END,
                           usage_pruned_to = CASE WHEN usage_pruned_to > $1 THEN 0 ELSE usage_pruned_to END
                       WHERE usage_kept_from > $1 OR usage_pruned_to > $1";
                tx.execute(sql, &[&now.as_micros()]).await?;
                Ok(())
            })
        })
        .await
    }

    async fn limited(&self) -> Result<Vec<RetentionPlan>, StoreError> {
        self.read(|tx| {
            Box::pin(async move {
                let sql =
                    "SELECT p.id, p.usage_retention_days, min(greatest(w.usage_pruned_to, w.created_at)),
                               (SELECT value FROM change_seq WHERE one = 1)
                           FROM plans p JOIN workspaces w ON w.plan_id = p.id
                           WHERE p.usage_retention_days > 0 GROUP BY p.id";
                tx.all(sql, &[], |f| {
                    Ok(RetentionPlan {
                        plan: f.parsed("id")?,
                        days: f.int("usage_retention_days")?,
                        since: f.instant("since")?,
                        known_at: Version(f.int("known_at")?),
                    })
                })
                .await
            })
        })
        .await
    }

    async fn hide(&self, plan: &PlanId, floor: Timestamp) -> Result<(), StoreError> {
        let sql = "UPDATE workspaces SET usage_kept_from = $2 WHERE plan_id = $1 AND usage_kept_from < $2";
        let plan = plan.clone();
        self.write(move |tx| {
            Box::pin(async move {
                tx.execute(sql, &[&plan.as_str(), &floor.as_micros()]).await?;
                Ok(())
            })
        })
        .await
    }

    async fn note_pruned(&self, of: &RetentionPlan, floor: Timestamp) -> Result<(), StoreError> {
        let of = of.clone();
        self.write(move |tx| {
            Box::pin(async move {
                let sql = "UPDATE workspaces SET usage_pruned_to = $2
                           WHERE plan_id = $1 AND usage_pruned_to < $2 AND version <= $3";
                tx.execute(sql, &[&of.plan.as_str(), &floor.as_micros(), &int(of.known_at.0)]).await?;
                Ok(())
            })
        })
        .await
    }

    async fn key_days(
        &self,
        of: &RetentionPlan,
        floor: Timestamp,
        after: LogCursor,
    ) -> Result<Vec<KeyDay>, StoreError> {
        let plan = of.plan.clone();
        self.read(move |tx| {
            Box::pin(async move {
                // Records that were imported may be of keys that were not; then the record says which workspace it belongs
                // to. Records without a key belong to none: they go once no workspace keeps records of their day.
                let sql = "SELECT s.start, s.key, CASE WHEN s.key = '00000000-0000-0000-0000-000000000000'
                               THEN s.start < (SELECT min(usage_kept_from) FROM workspaces)
                               ELSE coalesce(w.plan_id = $1 AND s.start >= w.usage_pruned_to - $5, false) END
                           FROM (SELECT start, encode(subject_id, 'hex')::uuid AS key FROM usage_rollups
                               WHERE width = 86400 AND subject_kind = 1 AND start < $2 AND start >= $3
                                   AND (start, subject_id) > ($3, uuid_send($4))
                               ORDER BY start, subject_id LIMIT $6) AS s
                           LEFT JOIN keys k ON k.id = s.key LEFT JOIN workspaces w ON w.id = coalesce(k.workspace_id,
                               (SELECT u.workspace_id FROM usage u WHERE u.api_key_id = s.key AND u.at >= s.start
                                    AND u.at < s.start + 86400000000 LIMIT 1))
                           ORDER BY s.start, s.key";
                let late = i64::try_from(LATE_BY.as_micros()).unwrap_or(i64::MAX);
                let values: &[&(dyn ToSql + Sync)] = &[
                    &plan.as_str(),
                    &floor.as_micros(),
                    &after.at.as_micros(),
                    &after.id.0,
                    &late,
                    &int(LOOKED_AT),
                ];
                tx.all(sql, values, |f| {
                    let (start, key) = (f.instant("start")?, KeyId(f.uuid("key")?));
                    Ok(KeyDay { start, key, is_due: f.bool("due")? })
                })
                .await
            })
        })
        .await
    }

    async fn delete_records(&self, key: KeyId, day: Timestamp) -> Result<u64, StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let sql = "WITH doomed AS (SELECT id, at FROM usage WHERE api_key_id = $1 AND at >= $2 AND at < $3 LIMIT $4)
                           DELETE FROM usage u USING doomed d
                           WHERE u.id = d.id AND u.at = d.at AND u.at >= $2 AND u.at < $3";
                let from = day.as_micros();
                tx.execute(sql, &[&key.0, &from, &(from + DAY_US), &int(STEP)]).await
            })
        })
        .await
    }

    async fn erase_deleted_keys(&self, now: Timestamp) -> Result<u64, StoreError> {
        self.erase_deleted(now).await
    }

    async fn delete_rollups(&self, width: WindowWidth, before: Timestamp) -> Result<u64, StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let sql = "DELETE FROM usage_rollups WHERE ctid = ANY (ARRAY(
                               SELECT ctid FROM usage_rollups WHERE width = $1 AND start < $2 ORDER BY start LIMIT $3))";
                tx.execute(sql, &[&width.seconds(), &before.as_micros(), &int(STEP)]).await
            })
        })
        .await
    }

    async fn drop_whole_days(&self) -> u64 {
        let mut dropped = 0;
        loop {
            match self.drop_one_day().await {
                Ok(true) => dropped += 1,
                Ok(false) => return dropped,
                Err(error) => {
                    tracing::warn!(%error, "cannot drop usage partition, retrying in the next round");
                    return dropped;
                }
            }
        }
    }
}

impl PgStore {
    /// Drops the oldest partition that no workspace may see any more. False: there is none.
    async fn drop_one_day(&self) -> Result<bool, StoreError> {
        self.write(|tx| {
            Box::pin(async move {
                let sql = "SELECT min(usage_kept_from) FROM workspaces";
                let kept_from = tx.one(sql, &[], |f| f.maybe_int::<i64>("kept_from")).await?.flatten();
                let kept_from = kept_from.unwrap_or(0).div_euclid(DAY_US).min(today(tx).await?);
                // Reads of the ledger queue behind a drop, so this waits only briefly.
                tx.control(&format!("SET LOCAL lock_timeout = '1s'; SELECT pg_advisory_xact_lock({LOCK})"))
                    .await?;
                let days = existing(tx).await?;
                let Some(day) = days.first().filter(|day| **day < kept_from) else { return Ok(false) };
                tx.control(&format!("DROP TABLE {}", name(*day))).await?;
                Ok(true)
            })
        })
        .await
    }
}
