//! What Redis should hear though nobody waits: units that were not spent, spending it missed, places that are still held.
//!
//! Must not know: requests. When Redis is gone, all of it waits.

use super::{LEDGER_LAG, Leases, Purpose, Subject, nanos};
use crate::policy::id::KeyId;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

/// How often what is unspent is looked through.
const SWEEP_EVERY: Duration = Duration::from_millis(50);
/// Most keys looked through in one sweep.
const SWEPT_MAX: usize = 4_096;
/// How long before Redis was lost it must have told something for it to hear that again. By then the ledger has the rest.
const TOLD_BEFORE: Duration = Duration::from_secs(10);
/// A key that it told of so lately, Redis has not forgotten by itself: it keeps them for two days.
const REMEMBERED_FOR: Duration = Duration::from_hours(24);
/// How long the last give-back may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

impl Leases {
    /// Gives back all that is unspent.
    pub(in crate::counter) async fn close(&self) {
        let keys: Vec<Arc<super::Subject>> = self.keys.iter().map(|k| Arc::clone(k.value())).collect();
        let give_back = async {
            for subject in keys {
                let ask = {
                    let mut state = subject.lock();
                    state.lease.retire();
                    state.lease.settle(false, self.now_ns())
                };
                let Some(ask) = ask else { continue };
                if !self.link.is_up() || self.put(&subject, &ask).await.is_err() {
                    tracing::warn!(key = %subject.key, "counters: unspent units could not be given back");
                }
            }
        };
        if tokio::time::timeout(CLOSE_WITHIN, give_back).await.is_err() {
            tracing::warn!("counters: not all unspent units could be given back in time");
        }
    }

    /// Settles the keys that nobody asked for lately, first come first served, a few at a time: those that wait go first,
    /// and a Redis that has just come back is not run over.
    async fn settle(&self) {
        let listed: Vec<KeyId> = {
            let mut all = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
            let some = all.len().min(SWEPT_MAX);
            all.drain(..some).collect()
        };
        for key in listed {
            let Some(subject) = self.keys.get(&key).map(|s| Arc::clone(&s)) else { continue };
            subject.listed.store(false, Ordering::Release);
            if self.is_due(&subject) && self.link.is_up() {
                // Never closed.
                let Ok(leave) = Arc::clone(&self.settling).acquire_owned().await else { return };
                let now_ns = self.now_ns();
                let mut state = subject.lock();
                if self.can_ask(&subject, &state, now_ns) && !state.is_asking(now_ns) {
                    self.begin(&subject, &mut state, Purpose::Settle(leave), now_ns);
                }
            }
            subject.list();
        }
    }

    fn is_due(&self, subject: &Subject) -> bool {
        let state = subject.lock();
        state.untold || state.lease.is_due(self.now_ns())
    }
}

impl Leases {
    /// Redis was lost and found, and may be another, or it has forgotten. What it told this node shortly before, it hears
    /// again, so that nothing is spent twice.
    fn tell_again(&self, lost_ns: u64) {
        self.told_again_ns.store(self.now_ns(), Ordering::Relaxed);
        let since_ns = lost_ns.saturating_sub(nanos(TOLD_BEFORE + self.lag()));
        for subject in &self.keys {
            let mut state = subject.lock();
            if state.known.is_some_and(|known| known.at_ns >= since_ns) {
                state.untold = true;
                drop(state);
                subject.list();
            }
        }
    }

    /// Redis does not know a key at this moment. If it told of it not long ago, it has been emptied: of this all other keys
    /// hear, once.
    pub(super) fn is_unknown(&self, subject: &Subject) {
        let Some(known) = subject.lock().known else { return };
        let since_ns = self.now_ns().saturating_sub(nanos(REMEMBERED_FOR));
        if known.at_ns > since_ns.max(self.told_again_ns.load(Ordering::Relaxed)) {
            self.link.has_forgotten();
        }
    }

    /// Follows how far the ledger is behind; what was not stored lately may not have been told by it either.
    fn follow_ledger(&self, passed: Duration) {
        let lag = self.config.ledger.behind().max(self.lag().saturating_sub(passed)).max(LEDGER_LAG);
        self.lag_ns.store(nanos(lag), Ordering::Relaxed);
    }
}

pub(super) async fn sweep(leases: Weak<Leases>) {
    let (mut made, mut forgotten, mut at_ns) = (0, 0, 0);
    let (mut well_ns, mut server) = (0, String::new());
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
            // The same process has its mark, unless it was emptied. Of a cluster nobody knows.
            is_told &= !server_now.is_empty() && server_now == server;
            (made, server) = (made_now, server_now);
        }
        if !is_told {
            leases.tell_again(well_ns);
        }
        if leases.link.is_up() {
            well_ns = leases.link.last_well_ns();
        }
        leases.settle().await;
    }
}
