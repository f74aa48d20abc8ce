//! Reports to Redis without a waiting request: returned units, spending that it missed, requests still in flight.
//!
//! Must not know: requests. While Redis is unreachable, all of it waits.

use super::call::Batch;
use super::pool::{PROMISE, SubjectPool};
use super::subject::{LeaseState, Subject, WorkspaceGroup};
use super::{LEDGER_LAG, Leases, nanos};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

/// How often keys are checked for unspent units.
const SWEEP_EVERY: Duration = Duration::from_millis(50);
/// How long an end user without a request is remembered.
const END_USER_IDLE: Duration = Duration::from_mins(1);
/// Most keys checked in one sweep.
const SWEPT_MAX: usize = 4_096;
/// How long before the loss of Redis a report must have been made to be repeated. The ledger has everything older.
const REPORTED_BEFORE: Duration = Duration::from_secs(10);
/// A subject that was used this recently has not expired in Redis, which keeps it for two days.
const REMEMBERED_FOR: Duration = Duration::from_hours(24);
/// Longest time for returning units at shutdown.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// Keys in one call at shutdown.
const CLOSED_AT_ONCE: usize = 16;

impl Leases {
    /// Returns everything that is unspent.
    pub(in crate::counter) async fn close(&self) {
        let groups: Vec<Arc<WorkspaceGroup>> = self.groups.iter().map(|g| Arc::clone(g.value())).collect();
        let give_back = async {
            for group in groups {
                let promised_since_ns = self.now_ns().saturating_sub(nanos(PROMISE));
                let leave = |state: &mut LeaseState| {
                    state.pools().for_each(|(_, pool)| pool.leave());
                    state.was_heard_since(promised_since_ns)
                };
                let mut subjects = self.subjects_of(&group);
                let is_heard = group.lock_if_counted().is_some_and(|mut w| leave(&mut w));
                subjects.retain(|subject| leave(&mut subject.lock()) || self.needs_call(subject));
                if subjects.is_empty() && !is_heard {
                    continue;
                }
                for some in subjects.chunks(CLOSED_AT_ONCE) {
                    if !self.link.is_up() || self.call(&group, Batch::of(some)).await.is_err() {
                        tracing::warn!(workspace = %group.id, "counters: cannot return unspent units to Redis");
                    }
                }
            }
        };
        if tokio::time::timeout(CLOSE_WITHIN, give_back).await.is_err() {
            tracing::warn!("counters: shutdown timeout reached, some unspent units not returned to Redis");
        }
    }

    fn subjects_of(&self, group: &Arc<WorkspaceGroup>) -> Vec<Arc<Subject>> {
        self.all_subjects().into_iter().filter(|subject| Arc::ptr_eq(&subject.group, group)).collect()
    }

    fn all_subjects(&self) -> Vec<Arc<Subject>> {
        let keys = self.keys.iter().map(|entry| Arc::clone(entry.value()));
        keys.chain(self.end_users.iter().map(|entry| Arc::clone(entry.value()))).collect()
    }

    /// Reports subjects without recent requests, in order.
    fn settle(&self) {
        let listed: Vec<Arc<Subject>> = {
            let mut all = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
            let some = all.len().min(SWEPT_MAX);
            all.drain(..some).collect()
        };
        for subject in listed {
            subject.is_listed.store(false, Ordering::Release);
            let now_ns = self.now_ns();
            if self.needs_call(&subject) && self.can_call_redis(&subject, now_ns) {
                self.enqueue(&subject, now_ns);
            }
            subject.list();
        }
    }

    fn needs_call(&self, subject: &Subject) -> bool {
        let now_ns = self.now_ns();
        subject.lock().needs_call(now_ns)
            || subject.group.lock_if_counted().is_some_and(|mut w| w.needs_call(now_ns))
    }

    /// Redis was lost and reconnected, may be another server, or has lost its data. Recent reports are repeated, so that
    /// nothing is spent twice.
    fn report_again(&self, lost_ns: u64) {
        self.reported_again_ns.store(self.now_ns(), Ordering::Relaxed);
        let since_ns = lost_ns.saturating_sub(nanos(REPORTED_BEFORE + self.lag()));
        let report_again = |state: &mut LeaseState| {
            let recent = state.pools().filter(|(_, pool)| pool.was_heard_since(since_ns));
            recent.for_each(|(_, pool)| pool.report_again());
        };
        for group in &self.groups {
            report_again(&mut group.lock());
        }
        for subject in self.all_subjects() {
            report_again(&mut subject.lock());
            subject.list();
        }
    }

    /// Removes end users that were not used lately; what Redis knows of them is found again by their name.
    fn forget_end_users(&self) {
        let since_ns = self.now_ns().saturating_sub(nanos(END_USER_IDLE + self.lag()));
        self.end_users.retain(|_, subject| {
            let is_used = Arc::strong_count(subject) > 1;
            is_used || subject.owes() || subject.lock().was_heard_since(since_ns)
        });
    }

    /// Redis does not know a subject. If it answered for it recently, it has been emptied; then everything is reported
    /// again, once.
    pub(super) fn on_unknown_subject(&self, pool: &SubjectPool) {
        let since_ns = self.now_ns().saturating_sub(nanos(REMEMBERED_FOR));
        if pool.was_heard_since(since_ns.max(self.reported_again_ns.load(Ordering::Relaxed) + 1)) {
            self.link.mark_forgotten();
        }
    }

    /// Tracks the lag of the ledger: records that were not stored recently may be missing in its totals.
    fn follow_ledger(&self, passed: Duration) {
        let lag = self.config.ledger.behind().max(self.lag().saturating_sub(passed)).max(LEDGER_LAG);
        self.lag_ns.store(nanos(lag), Ordering::Relaxed);
    }
}

pub(super) async fn sweep(leases: Weak<Leases>) {
    let (mut made, mut forgotten, mut at_ns) = (0, 0, 0);
    let (mut well_ns, mut server, mut tidied_ns) = (0, String::new(), 0);
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(leases) = leases.upgrade() else { return };
        let now_ns = leases.now_ns();
        leases.follow_ledger(Duration::from_nanos(now_ns.saturating_sub(at_ns)));
        at_ns = now_ns;
        let (made_now, forgotten_now) = (leases.link.made(), leases.link.forgotten());
        let mut is_told = forgotten_now == forgotten;
        forgotten = forgotten_now;
        if made_now != made {
            let server_now = leases.link.server();
            // The same process has its mark, unless it was emptied. For a cluster this is unknown.
            is_told &= !server_now.is_empty() && server_now == server;
            (made, server) = (made_now, server_now);
        }
        if !is_told {
            leases.report_again(well_ns);
        }
        if leases.link.is_up() {
            well_ns = leases.link.last_well_ns();
        }
        leases.settle();
        if now_ns.saturating_sub(tidied_ns) >= nanos(END_USER_IDLE) {
            tidied_ns = now_ns;
            leases.forget_end_users();
        }
    }
}
