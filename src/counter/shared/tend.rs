//! What Redis should hear though nobody waits: units that were not spent, spending it missed, places that are still held.
//!
//! Must not know: requests. When Redis is gone, all of it waits.

use super::{Leases, Purpose};
use crate::policy::id::KeyId;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

/// How often what is unspent is looked through.
const SWEEP_EVERY: Duration = Duration::from_millis(50);
/// Most keys settled in one sweep: when Redis comes back, it is not run over.
const SWEPT_MAX: usize = 256;
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
                    state.lease.settle(self.now_ns())
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

    /// Settles the keys that nobody asked for lately, first come first served.
    fn settle(&self) {
        if !self.link.is_up() {
            return;
        }
        let now_ns = self.now_ns();
        let listed: Vec<KeyId> = {
            let mut all = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
            let some = all.len().min(SWEPT_MAX);
            all.drain(..some).collect()
        };
        for key in listed {
            let Some(subject) = self.keys.get(&key).map(|s| Arc::clone(&s)) else { continue };
            subject.listed.store(false, Ordering::Release);
            let mut state = subject.lock();
            let asked = self.can_ask(&state, now_ns)
                && !state.is_asking(now_ns)
                && state.lease.is_due(now_ns)
                && self.begin(&subject, &mut state, Purpose::Settle, now_ns);
            drop(state);
            if !asked {
                subject.list();
            }
        }
    }
}

pub(super) async fn sweep(leases: Weak<Leases>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(leases) = leases.upgrade() else { return };
        leases.settle();
    }
}
