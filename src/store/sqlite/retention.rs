//! The steps of retention, each briefly on the writer's thread.

use super::{SqliteStore, StoreError, row};
use crate::clock::Timestamp;
use crate::model::id::{KeyId, PlanId};
use crate::store::shared::retention::{
    KeyDay, LATE_BY, LOOKED_AT, RetentionClock, RetentionPlan, RetentionSteps, STEP,
};
use crate::store::shared::rollup::WindowWidth;
use crate::store::{LogCursor, Version};
use async_trait::async_trait;
use rusqlite::params;
use std::time::Duration;

#[async_trait]
impl RetentionSteps for SqliteStore {
    fn calendar(&self) -> &RetentionClock {
        &self.calendar
    }

    async fn day_with_records(&self, before: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        self.read(move |tx| {
            let sql = "SELECT start FROM usage_rollups WHERE width = 86400 AND start < ?1 ORDER BY start DESC LIMIT 1";
            row::one(tx, sql, [before.as_micros()], |f| f.instant("start"))
        })
        .await
    }

    async fn take_back(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |tx| {
            let sql =
                "UPDATE workspaces SET usage_kept_from = CASE WHEN usage_kept_from > ?1 THEN 0 ELSE usage_kept_from END,
                           usage_pruned_to = CASE WHEN usage_pruned_to > ?1 THEN 0 ELSE usage_pruned_to END
                       WHERE usage_kept_from > ?1 OR usage_pruned_to > ?1";
            row::execute(tx, sql, [now.as_micros()])?;
            Ok(())
        })
        .await
    }

    async fn limited(&self) -> Result<Vec<RetentionPlan>, StoreError> {
        self.read(|tx| {
            let sql = "SELECT p.id, p.usage_retention_days, min(max(w.usage_pruned_to, w.created_at)),
                           (SELECT value FROM change_seq WHERE one = 1)
                       FROM plans p JOIN workspaces w ON w.plan_id = p.id
                       WHERE p.usage_retention_days > 0 GROUP BY p.id";
            row::all(tx, sql, [], |f| {
                Ok(RetentionPlan {
                    plan: f.parsed("id")?,
                    days: f.int("usage_retention_days")?,
                    since: f.instant("since")?,
                    known_at: Version(f.int("known_at")?),
                })
            })
        })
        .await
    }

    async fn hide(&self, plan: &PlanId, floor: Timestamp) -> Result<(), StoreError> {
        let sql = "UPDATE workspaces SET usage_kept_from = ?2 WHERE plan_id = ?1 AND usage_kept_from < ?2";
        let plan = plan.clone();
        self.write(move |tx| {
            row::execute(tx, sql, params![plan.as_str(), floor.as_micros()])?;
            Ok(())
        })
        .await
    }

    async fn note_pruned(&self, of: &RetentionPlan, floor: Timestamp) -> Result<(), StoreError> {
        let of = of.clone();
        self.write(move |tx| {
            let sql = "UPDATE workspaces SET usage_pruned_to = ?2
                       WHERE plan_id = ?1 AND usage_pruned_to < ?2 AND version <= ?3";
            row::execute(tx, sql, params![of.plan.as_str(), floor.as_micros(), row::int(of.known_at.0)])?;
            Ok(())
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
            // Records that were imported may be of keys that were not; then the record says which workspace it belongs to.
            // Records without a key belong to none: they go once no workspace keeps records of their day.
            let sql =
                "SELECT s.start, s.key, CASE WHEN s.key = zeroblob(16) THEN s.start < (SELECT min(usage_kept_from) FROM workspaces)
                           ELSE coalesce(w.plan_id = ?1 AND s.start >= w.usage_pruned_to - ?5, 0) END
                       FROM (SELECT start, subject_id AS key FROM usage_rollups
                           WHERE width = 86400 AND subject_kind = 1 AND start < ?2 AND start >= ?3
                               AND (start, subject_id) > (?3, ?4)
                           ORDER BY start, subject_id LIMIT ?6) AS s
                       LEFT JOIN keys k ON k.id = s.key LEFT JOIN workspaces w ON w.id = coalesce(k.workspace_id,
                           (SELECT u.workspace_id FROM usage u WHERE u.api_key_id = s.key AND u.at >= s.start
                                AND u.at < s.start + 86400000000 LIMIT 1))
                       ORDER BY s.start, s.key";
            let late = i64::try_from(LATE_BY.as_micros()).unwrap_or(i64::MAX);
            let values = params![
                plan.as_str(),
                floor.as_micros(),
                after.at.as_micros(),
                after.id.0.as_bytes(),
                late,
                row::int(LOOKED_AT)
            ];
            row::all(tx, sql, values, |f| {
                let (start, key) = (f.instant("start")?, KeyId(f.uuid("key")?));
                Ok(KeyDay { start, key, is_due: f.bool("due")? })
            })
        })
        .await
    }

    async fn delete_records(&self, key: KeyId, day: Timestamp) -> Result<u64, StoreError> {
        self.write(move |tx| {
            let sql = "DELETE FROM usage WHERE id IN
                           (SELECT id FROM usage WHERE api_key_id = ?1 AND at >= ?2 AND at < ?3 LIMIT ?4)";
            let end = day.plus(Duration::from_hours(24)).as_micros();
            let deleted =
                row::execute(tx, sql, params![key.0.as_bytes(), day.as_micros(), end, row::int(STEP)])?;
            Ok(u64::try_from(deleted).unwrap_or(u64::MAX))
        })
        .await
    }

    async fn erase_deleted_keys(&self, now: Timestamp) -> Result<u64, StoreError> {
        self.erase_deleted(now).await
    }

    async fn delete_rollups(&self, width: WindowWidth, before: Timestamp) -> Result<u64, StoreError> {
        self.write(move |tx| {
            let sql = "DELETE FROM usage_rollups WHERE (subject_kind, subject_id, width, start) IN
                           (SELECT subject_kind, subject_id, width, start FROM usage_rollups
                            WHERE width = ?1 AND start < ?2 ORDER BY start LIMIT ?3)";
            let deleted =
                row::execute(tx, sql, params![width.seconds(), before.as_micros(), row::int(STEP)])?;
            Ok(u64::try_from(deleted).unwrap_or(u64::MAX))
        })
        .await
    }

    /// There are no partitions here.
    async fn drop_whole_days(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::calendar::Calendar;
    use crate::model::id::WorkspaceId;
    use crate::model::key::Plan;
    use crate::store::sqlite::SqliteOptions;
    use crate::store::{Actor, PlanRecord, Store as _, Tenants as _, WorkspacePatch};

    #[tokio::test]
    async fn a_workspace_that_comes_onto_a_plan_during_a_round_is_not_noted_as_pruned() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("k.db"), &SqliteOptions::default()).unwrap();
        let (by, at) = (Actor::keygate(), Timestamp::from_secs(1));
        let plan_of = |name: &str, days| {
            let plan = Plan {
                id: name.parse().unwrap(),
                api_ops_rate_limit: 1,
                end_user_quota: 1,
                default_daily_request_limit: None,
                limits: [].into(),
                calendar: Calendar::UTC,
            };
            PlanRecord {
                plan,
                description: String::new(),
                usage_retention_days: days,
                deleted_keys_days: 0,
                created_at: at,
                updated_at: at,
            }
        };
        let (short, free) = (plan_of("short", Some(1)), plan_of("free", None));
        for plan in [&short, &free] {
            store.create_plan(plan.clone(), &by, at).await.unwrap();
        }
        let [stays, comes]: [WorkspaceId; 2] = ["stays", "comes"].map(|id| id.parse().unwrap());
        store.ensure_workspace(&stays, &short.plan.id, &by, at).await.unwrap();
        store.ensure_workspace(&comes, &free.plan.id, &by, at).await.unwrap();
        let limited = store.limited().await.unwrap().remove(0);
        let onto = WorkspacePatch { plan_id: Some(short.plan.id.clone()), ..WorkspacePatch::default() };
        store.put_workspace(&comes, onto, &free.plan.id, &by, at).await.unwrap();
        store.note_pruned(&limited, Timestamp::from_secs(100)).await.unwrap();
        let noted = store
            .read(|tx| {
                let sql = "SELECT id FROM workspaces WHERE usage_pruned_to > 0";
                row::all(tx, sql, [], |f| f.parsed::<WorkspaceId>("id"))
            })
            .await
            .unwrap();
        assert_eq!(noted, [stays]);
        store.close().await;
    }
}
