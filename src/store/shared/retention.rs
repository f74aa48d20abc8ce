//! Retention: deletes records that are older than their workspace's plan allows, roll-ups of minutes and hours that are
//! older than charts show, and the digests of deleted keys that can no longer be restored. Totals of days and of whole
//! lives are kept for ever.
//!
//! Must not know SQL: a backend provides the steps, each of which is one short transaction, so that nobody waits long for a
//! writer. First the old records of a plan are hidden (`workspaces.usage_kept_from`), then deleted, then this is noted; an
//! interrupted run is continued by the next one.
//!
//! *Invariant:* hidden records stay hidden, also when the plan later gets a longer retention: totals agree with rows.
//! *Invariant:* nothing is deleted because of a clock that the ledger itself does not confirm ([`RetentionClock`]).

use super::rollup::WindowWidth;
use crate::clock::Timestamp;
use crate::model::id::{KeyId, PlanId, RequestId};
use crate::store::usage::MaintenanceReport;
use crate::store::{LogCursor, StoreError, Version};
use async_trait::async_trait;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

const DAY: Duration = Duration::from_hours(24);
/// A day with records this long after the previous one may be due to a wrong clock, until there is another such day.
const LEAP: Duration = Duration::from_hours(7 * 24);
/// How long roll-ups of minutes are kept: a chart of minutes has at most 10 000 points, which are almost seven days.
pub(in crate::store) const MINUTES_FOR: Duration = Duration::from_hours(8 * 24);
/// How long roll-ups of hours are kept.
const HOURS_FOR: Duration = Duration::from_hours(100 * 24);
/// How long before a pruned day late records may still have arrived for.
pub(in crate::store) const LATE_BY: Duration = Duration::from_hours(48);
/// Records or roll-ups deleted in one transaction.
pub(in crate::store) const STEP: u64 = 2_000;
/// Days of keys examined in one transaction.
pub(in crate::store) const LOOKED_AT: u64 = 1_000;

/// A plan in use with limited retention.
#[derive(Clone, Debug)]
pub(in crate::store) struct RetentionPlan {
    pub(in crate::store) plan: PlanId,
    pub(in crate::store) days: u32,
    /// The time from which the first of its workspaces may still have records.
    pub(in crate::store) since: Timestamp,
    /// The newest version at that time.
    pub(in crate::store) known_at: Version,
}

/// The current time, as far as the ledger confirms a clock: it may be later than the newest day with records only by the
/// uptime of this process. Otherwise a wrong clock at one start would empty the ledger.
#[derive(Debug, Default)]
pub(in crate::store) struct RetentionClock(OnceLock<(Timestamp, Instant)>);

/// A day on which a key was used, ordered by day and then by key.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct KeyDay {
    pub(in crate::store) start: Timestamp,
    pub(in crate::store) key: KeyId,
    /// Whether its records are to be deleted.
    pub(in crate::store) is_due: bool,
}

/// The steps that a backend provides.
#[async_trait]
pub(in crate::store) trait RetentionSteps: Sync {
    /// The clock state of this process.
    fn calendar(&self) -> &RetentionClock;
    /// The newest day before `before` that has records.
    async fn day_with_records(&self, before: Timestamp) -> Result<Option<Timestamp>, StoreError>;
    /// Reverts what was hidden and noted up to an instant later than `now`, which was due to a wrong clock.
    async fn take_back(&self, now: Timestamp) -> Result<(), StoreError>;
    /// Plans in use that limit retention.
    async fn limited(&self) -> Result<Vec<RetentionPlan>, StoreError>;
    /// Hides everything of the plan's workspaces before `floor`.
    async fn hide(&self, plan: &PlanId, floor: Timestamp) -> Result<(), StoreError>;
    /// Days of keys before `floor`, at most [`LOOKED_AT`], after `after`.
    async fn key_days(
        &self,
        of: &RetentionPlan,
        floor: Timestamp,
        after: LogCursor,
    ) -> Result<Vec<KeyDay>, StoreError>;
    /// Deletes at most [`STEP`] records of a key's day; returns how many.
    async fn delete_records(&self, key: KeyId, day: Timestamp) -> Result<u64, StoreError>;
    /// Notes that nothing before `floor` is left of the workspaces that had this plan when it was read and have not changed
    /// since.
    async fn note_pruned(&self, of: &RetentionPlan, floor: Timestamp) -> Result<(), StoreError>;
    /// Erases the digests of at most [`STEP`] keys that can no longer be restored at `now`; returns of how many.
    async fn erase_deleted_keys(&self, now: Timestamp) -> Result<u64, StoreError>;
    /// Deletes at most [`STEP`] roll-ups of this width that begin before `before`; returns how many.
    async fn delete_rollups(&self, width: WindowWidth, before: Timestamp) -> Result<u64, StoreError>;
    /// Drops partitions whose rows are all hidden; returns how many. Skips one that is locked: its rows are deleted by the
    /// other steps, or in the next run.
    async fn drop_whole_days(&self) -> u64;
}

/// One run at the instant `at`; the store's own clock says `clock`.
pub(in crate::store) async fn prune(
    store: &impl RetentionSteps,
    at: Timestamp,
    clock: Timestamp,
) -> Result<MaintenanceReport, StoreError> {
    let mut done = MaintenanceReport::default();
    store.take_back(clock).await?;
    let newest = newest_day(store).await?;
    let now = newest.map(|newest| store.calendar().believe(at.min(clock), newest, Instant::now()));
    while store.erase_deleted_keys(now.unwrap_or(at.min(clock))).await? == STEP {}
    // Without records there is nothing to prune.
    let Some(now) = now else { return Ok(done) };
    let limited = store.limited().await?;
    let floor_of = |of: &RetentionPlan| WindowWidth::Day.start(now).minus(DAY * of.days);
    for of in &limited {
        store.hide(&of.plan, floor_of(of)).await?;
    }
    done.partitions_dropped = store.drop_whole_days().await;
    for of in &limited {
        done.records_deleted += prune_plan(store, of, floor_of(of)).await?;
    }
    for (width, kept_for) in [(WindowWidth::Minute, MINUTES_FOR), (WindowWidth::Hour, HOURS_FOR)] {
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

async fn prune_plan(
    store: &impl RetentionSteps,
    of: &RetentionPlan,
    floor: Timestamp,
) -> Result<u64, StoreError> {
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
    store.note_pruned(of, floor).await?;
    Ok(deleted)
}

/// The newest day with records that is confirmed by another one.
async fn newest_day(store: &impl RetentionSteps) -> Result<Option<Timestamp>, StoreError> {
    let Some(newest) = store.day_with_records(Timestamp::MAX).await? else { return Ok(None) };
    let before = store.day_with_records(newest).await?;
    Ok(before.filter(|before| newest.since(*before) > LEAP).or(Some(newest)))
}

// === impl RetentionClock ===

impl RetentionClock {
    /// The latest time that is believed if a clock says `clock`, the newest day with records is `day`, and it is `now`
    /// here.
    fn believe(&self, clock: Timestamp, day: Timestamp, now: Instant) -> Timestamp {
        let borne_out = day.plus(DAY);
        let (first, then) = *self.0.get_or_init(|| (borne_out, now));
        clock.min(borne_out.max(first.plus(now.duration_since(then))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_believed_as_far_as_records_or_the_time_that_went_by_bear_it_out() {
        let calendar = RetentionClock::default();
        let (begun, day) = (Instant::now(), |n: u32| Timestamp::default().plus(DAY * n));
        let after = |days: u32| begun + DAY * days;
        assert_eq!(calendar.believe(day(400), day(10), begun), day(11), "ahead");
        assert_eq!(calendar.believe(day(3), day(10), begun), day(3), "behind");
        assert_eq!(calendar.believe(day(40), day(10), after(30)), day(40), "nobody came for a month");
        assert_eq!(calendar.believe(day(400), day(39), after(30)), day(41), "ahead again");
        assert_eq!(calendar.believe(day(41), day(40), after(30)), day(41));
    }
}
