//! What a ledger does not keep: records longer than their workspace's plan says, roll-ups of minutes and hours longer than
//! charts reach back. Days and life-times are kept for ever.
//!
//! Must not know SQL: a backend brings the steps, each of which is one short transaction, so that nobody waits long for a
//! writer. First a plan's old records are hidden (`workspaces.usage_kept_from`), then they go, then it is noted that they
//! are gone; whatever breaks off in between is taken up by the next round.
//!
//! *Invariant:* what is hidden stays hidden, also when the plan is later given a longer retention: totals agree with rows.

use super::rollup::Width;
use super::usage::Upkeep;
use super::{LogCursor, StoreError};
use crate::clock::Timestamp;
use crate::policy::id::{KeyId, PlanId, RequestId};
use async_trait::async_trait;
use std::time::Duration;
use uuid::Uuid;

/// How long roll-ups of minutes are kept: a chart of minutes has 10 000 points at most, which are not quite seven days.
const MINUTES_FOR: Duration = Duration::from_hours(8 * 24);
/// How long roll-ups of hours are kept.
const HOURS_FOR: Duration = Duration::from_hours(100 * 24);
/// How long before a day that was pruned late records may still have come for.
pub(super) const LATE_BY: Duration = Duration::from_hours(48);
/// Records or roll-ups that go in one transaction.
pub(super) const STEP: u64 = 2_000;
/// Days of keys that are looked at in one.
pub(super) const LOOKED_AT: u64 = 1_000;

/// A plan that workspaces are on and that does not keep records for ever.
#[derive(Clone, Debug)]
pub(super) struct Limited {
    pub(super) plan: PlanId,
    pub(super) days: u32,
    /// From when on the first of its workspaces may still have records.
    pub(super) since: Timestamp,
}

/// A day on which a key was used, in the order of days and then keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyDay {
    pub(super) start: Timestamp,
    pub(super) key: KeyId,
    /// Whether its records are to go.
    pub(super) is_due: bool,
}

/// The steps of a backend.
#[async_trait]
pub(super) trait Pruned: Sync {
    /// Plans in use that limit retention.
    async fn limited(&self) -> Result<Vec<Limited>, StoreError>;
    /// Nothing of the plan's workspaces is shown from before `floor` any more.
    async fn hide(&self, plan: &PlanId, floor: Timestamp) -> Result<(), StoreError>;
    /// Days of keys before `floor`, at most [`LOOKED_AT`], behind `after`.
    async fn key_days(
        &self,
        of: &Limited,
        floor: Timestamp,
        after: LogCursor,
    ) -> Result<Vec<KeyDay>, StoreError>;
    /// Deletes at most [`STEP`] records of a key's day; answers how many.
    async fn delete_records(&self, key: KeyId, day: Timestamp) -> Result<u64, StoreError>;
    /// There is nothing of the plan's workspaces from before `floor` any more.
    async fn note_pruned(&self, plan: &PlanId, floor: Timestamp) -> Result<(), StoreError>;
    /// Deletes at most [`STEP`] roll-ups of that width that begin before `before`; answers how many.
    async fn delete_rollups(&self, width: Width, before: Timestamp) -> Result<u64, StoreError>;
    /// Drops what can go as a whole, once what is in it is hidden; answers how many partitions that were.
    async fn drop_whole_days(&self) -> Result<u64, StoreError>;
}

/// One round at the instant `now`.
pub(super) async fn prune(store: &impl Pruned, now: Timestamp) -> Result<Upkeep, StoreError> {
    let mut done = Upkeep::default();
    let limited = store.limited().await?;
    let floor_of = |of: &Limited| Width::Day.start(now).minus(Duration::from_hours(24) * of.days);
    for of in &limited {
        store.hide(&of.plan, floor_of(of)).await?;
    }
    done.partitions_dropped = store.drop_whole_days().await?;
    for of in &limited {
        done.records_deleted += prune_plan(store, of, floor_of(of)).await?;
    }
    for (width, kept_for) in [(Width::Minute, MINUTES_FOR), (Width::Hour, HOURS_FOR)] {
        loop {
            let deleted = store.delete_rollups(width, now.minus(kept_for)).await?;
            done.rollups_deleted += deleted;
            if deleted < STEP {
                break;
            }
        }
    }
    Ok(done)
}

async fn prune_plan(store: &impl Pruned, of: &Limited, floor: Timestamp) -> Result<u64, StoreError> {
    let mut deleted = 0;
    let mut after = LogCursor { at: of.since.minus(LATE_BY), id: RequestId(Uuid::nil()) };
    loop {
        let days = store.key_days(of, floor, after).await?;
        for day in days.iter().filter(|day| day.is_due) {
            loop {
                let gone = store.delete_records(day.key, day.start).await?;
                deleted += gone;
                if gone < STEP {
                    break;
                }
            }
        }
        match days.last() {
            Some(last) if days.len() as u64 == LOOKED_AT => {
                after = LogCursor { at: last.start, id: RequestId(last.key.0) };
            }
            _ => break,
        }
    }
    store.note_pruned(&of.plan, floor).await?;
    Ok(deleted)
}
