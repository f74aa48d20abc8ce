//! What a node does by itself while Redis cannot be asked, and what it fills an emptied Redis with.
//!
//! Must not know: how Redis is asked. When the ledger is gone as well, a node knows only what it has seen.

use super::{Leases, OnFailure, Subject, Unit};
use crate::clock::Timestamp;
use crate::counter::lease::{Adjustment, Ask};
use crate::counter::local::Taken;
use crate::counter::script::{Ledgered, Subjects};
use crate::counter::share::{Known, WINDOWS, share};
use crate::counter::{Charge, Charged, Declined, Left, Refusal};
use crate::policy::limit::{RetryAfter, window_start};
use crate::store::{SpentBy, SpentRow};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How far the ledger may lag behind; `lease.lua` has the same number.
const LEDGER_LAG: Duration = Duration::from_secs(2);
/// A share of nothing may be more when Redis is back, which is looked for about this often.
const SHARE_RETRY: Duration = Duration::from_secs(1);

impl Leases {
    /// Decides by this node alone.
    pub(super) async fn alone(
        &self,
        subject: &Arc<Subject>,
        charge: &Charge<'_>,
        deadline: Instant,
    ) -> Result<Charged, Declined> {
        self.config.metrics.counters_degraded.inc();
        let nodes = u64::try_from((self.config.nodes)()).unwrap_or(u64::MAX).max(1);
        let (taken, left) = match self.config.on_failure {
            OnFailure::Deny => return Err(Declined::Unavailable),
            OnFailure::Allow => {
                let now = self.config.clock.now();
                (self.local.note(charge, now), subject.lock().lease.left(now.steady_ns))
            }
            OnFailure::Share => {
                self.remember(subject, charge, deadline).await;
                let shared = self.share(subject, charge, nodes);
                shared.map_err(|refusal| Declined::Limit { refusal, degraded: true })?
            }
        };
        let now = self.config.clock.now();
        let at_us = subject.lock().lease.owe(now.steady_ns, now.wall);
        subject.list();
        let unit = Unit { subject: Arc::clone(subject), at_us, ended: false };
        Ok(Charged { taken, unit: Some(unit), left, degraded: true })
    }

    /// Charges this node's share of every limit.
    fn share(
        &self,
        subject: &Subject,
        charge: &Charge<'_>,
        nodes: u64,
    ) -> Result<(Taken, Left), Box<Refusal>> {
        let now = self.config.clock.now();
        let (known, since_ns) = {
            let state = subject.lock();
            (state.known, state.trouble_since_ns.unwrap_or_else(|| self.link.last_well_ns()))
        };
        let workspace_known = self.workspaces.get(charge.workspace).map(|k| *k);
        let own = Charge {
            key_limits: &share(charge.key_limits, nodes, known.as_ref(), now.wall),
            workspace_limits: &share(charge.workspace_limits, nodes, workspace_known.as_ref(), now.wall),
            ..*charge
        };
        // One node alone has spent all that was spent, and knows it.
        let empty_at_ns = (nodes > 1).then_some(since_ns);
        let told = |left: &mut Left| {
            let whole = charge.key_limits.iter().chain(charge.workspace_limits);
            left.iter_mut().zip(whole).for_each(|(shown, limit)| shown.0 = *limit);
        };
        match self.local.charge(&own, now, empty_at_ns) {
            Ok((taken, mut left)) => {
                told(&mut left);
                Ok((taken, left))
            }
            Err(mut refusal) => {
                told(&mut refusal.left);
                let name = refusal.refused.limit.name;
                if let Some((limit, _)) = refusal.left.iter().find(|(l, _)| l.name == name) {
                    refusal.refused.limit = *limit;
                }
                if refusal.refused.retry == RetryAfter::Never && refusal.refused.limit.max() > 0 {
                    refusal.refused.retry = RetryAfter::Wait(SHARE_RETRY);
                }
                Err(refusal)
            }
        }
    }

    /// Reads from the ledger what other nodes may have spent since Redis last told, once per outage, if there is time.
    async fn remember(&self, subject: &Arc<Subject>, charge: &Charge<'_>, deadline: Instant) {
        if subject.lock().trouble_since_ns.is_some() {
            return;
        }
        if let (Some(me), Ok(permit)) = (self.me.upgrade(), Arc::clone(&self.calls).try_acquire_owned()) {
            let (reader, counted) = (Arc::clone(subject), !charge.workspace_limits.is_empty());
            let read = self.config.io.spawn(async move {
                me.read_ledger(&reader, counted).await;
                drop(permit);
            });
            if tokio::time::timeout_at(deadline, read).await.is_err() {
                tracing::debug!(key = %subject.key, "counters: the ledger tells too late what was spent");
            }
        }
        // Nobody else waits for it; what it tells later counts from then on.
        subject.lock().trouble_since_ns.get_or_insert_with(|| self.link.last_well_ns());
    }

    async fn read_ledger(&self, subject: &Subject, counted: bool) {
        let at = self.config.clock.now().wall;
        let Some(rows) = self.rows(subject, counted, at).await else { return };
        if let Some(row) = rows.first() {
            let mut state = subject.lock();
            let in_hand = state.lease.units();
            state.known = Some(self.known(row, state.known.as_ref(), in_hand, at));
        }
        if let Some(row) = rows.get(1) {
            let seen = self.workspaces.get(&subject.workspace).map(|k| *k);
            self.workspaces.insert(subject.workspace.clone(), self.known(row, seen.as_ref(), 0, at));
        }
    }

    /// What is known when the ledger tells `row`, and Redis told what was `seen`.
    fn known(&self, row: &SpentRow, seen: Option<&Known>, in_hand: u64, at: Timestamp) -> Known {
        let own = self.local.used(&row.subject, at).map(|used| used.saturating_add(in_hand));
        let mut used = [row.minute, row.hour, row.day, row.month, row.total];
        for (window, (used, per)) in used.iter_mut().zip(WINDOWS).enumerate() {
            let Some(seen) = seen.filter(|s| window_start(per, s.at) == window_start(per, at)) else {
                continue;
            };
            let since = own[window].saturating_sub(seen.own[window]);
            *used = (*used).max(seen.used[window].saturating_add(since));
        }
        Known { at, used, own }
    }

    /// What the ledger knows, and what this node has seen beyond that.
    pub(super) async fn ledgered(
        &self,
        subject: &Subject,
        subjects: &Subjects<'_>,
        ask: &Ask,
    ) -> Option<Ledgered> {
        let at = self.config.clock.now().wall;
        let mut rows = self.rows(subject, subjects.workspace.1, at).await?;
        let seen = [subject.lock().known, self.workspaces.get(&subject.workspace).map(|k| *k)];
        for (row, seen) in rows.iter_mut().zip(seen) {
            raise(row, seen.as_ref(), &ask.adjustments, at);
        }
        Some(Ledgered { at, rows })
    }

    async fn rows(&self, subject: &Subject, counted: bool, at: Timestamp) -> Option<Vec<SpentRow>> {
        let mut rows = vec![self.config.ledger.spent_of(&SpentBy::Key(subject.key), at).await?];
        if counted {
            let workspace = SpentBy::Workspace(subject.workspace.clone());
            rows.push(self.config.ledger.spent_of(&workspace, at).await?);
        }
        Some(rows)
    }
}

/// The ledger lags a moment behind: this node may have seen more, and what it spent without Redis may not be in it.
fn raise(row: &mut SpentRow, seen: Option<&Known>, owed: &[Adjustment], at: Timestamp) {
    let used = [&mut row.minute, &mut row.hour, &mut row.day, &mut row.month, &mut row.total];
    for (window, (used, per)) in used.into_iter().zip(WINDOWS).enumerate() {
        let start = window_start(per, at);
        let seen = seen.filter(|s| window_start(per, s.at) == start).map_or(0, |s| s.used[window]);
        // The script adds what is younger than that by itself.
        let old = |a: &&Adjustment| Timestamp::from_micros(a.at_us) < at.minus(LEDGER_LAG);
        let here = |a: &&Adjustment| old(a) && window_start(per, Timestamp::from_micros(a.at_us)) == start;
        let owed: u64 = owed.iter().filter(here).filter_map(|a| u64::try_from(a.units).ok()).sum();
        *used = (*used).max(seen.saturating_add(owed));
    }
}
