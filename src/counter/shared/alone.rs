//! What a node does by itself while Redis cannot be asked, and what it fills an emptied Redis with.
//!
//! Must not know: how Redis is asked. When the ledger is gone as well, a node knows only what it has seen.

use super::{Leases, OnFailure, Outage, PATIENCE, Subject, Unit, nanos};
use crate::clock::Timestamp;
use crate::counter::local::Taken;
use crate::counter::script::{Ledgered, Subjects};
use crate::counter::share::{Known, less, share};
use crate::counter::{Charge, Charged, Declined, Left, Refusal};
use crate::policy::id::{KeyId, WorkspaceId};
use crate::policy::limit::RetryAfter;
use crate::store::{SpentBy, SpentRow};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A share of nothing may be more when Redis is back, which is looked for about this often.
const SHARE_RETRY: Duration = Duration::from_secs(1);
/// When the ledger did not tell, it is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Leases {
    /// Decides by this node alone.
    pub(super) async fn alone(
        &self,
        subject: &Arc<Subject>,
        charge: &Charge<'_>,
        deadline: Instant,
    ) -> Result<Charged, Declined> {
        self.config.metrics.counters_degraded.inc();
        let (taken, left) = match self.config.on_failure {
            OnFailure::Deny => return Err(Declined::Unavailable),
            OnFailure::Allow => {
                subject.unsettled.owe(1);
                let now = self.now();
                (self.local.note(charge, now), subject.lock().lease.left(now.steady_ns))
            }
            OnFailure::Share => {
                self.remember(subject, charge, deadline).await;
                subject.unsettled.owe(1);
                self.share(subject, charge).map_err(|refusal| {
                    subject.unsettled.settle(1);
                    Declined::Limit { refusal, degraded: true }
                })?
            }
        };
        let now = self.now();
        let at_us = subject.lock().lease.owe(now.steady_ns, now.wall);
        subject.list();
        let unit = Unit { subject: Arc::clone(subject), at_us, ended: false };
        Ok(Charged { taken, unit: Some(unit), left, degraded: true })
    }

    /// Charges this node's share of every limit.
    fn share(&self, subject: &Subject, charge: &Charge<'_>) -> Result<(Taken, Left), Box<Refusal>> {
        let now = self.now();
        let nodes = self.nodes();
        let (known, since_ns, noticed_ns, may_come) = {
            let state = subject.lock();
            // What a question about this key brings pays for what the key is admitted with meanwhile.
            let may_come = subject.unsettled.asked().saturating_sub(state.asked);
            let outage = state.outage.as_ref();
            let (since_ns, noticed_ns) = outage
                .map_or_else(|| (self.link.last_well_ns(), now.steady_ns), |o| (o.since_ns, o.noticed_ns));
            (state.known, since_ns, noticed_ns, may_come)
        };
        let of_workspace = self.workspaces.get(charge.workspace).and_then(|w| w.known);
        let share_of = |limits, known: Option<&Known>| share(limits, nodes, known, noticed_ns, now.wall);
        let own = Charge {
            key_limits: &share_of(charge.key_limits, known.as_ref()),
            workspace_limits: &less(share_of(charge.workspace_limits, of_workspace.as_ref()), may_come),
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

    /// Has the ledger asked what other nodes had spent: when a key first finds Redis gone, for which the requests of that
    /// moment wait while there is time, and once more when the ledger has caught up.
    async fn remember(&self, subject: &Arc<Subject>, charge: &Charge<'_>, deadline: Instant) {
        let now_ns = self.now_ns();
        let settled_ns = nanos(self.lag() + PATIENCE);
        let counted = !charge.workspace_limits.is_empty();
        let mut reading = {
            let mut state = subject.lock();
            match &mut state.outage {
                None => {
                    let since_ns = self.link.last_well_ns();
                    let reading = self.ask_ledger(subject, counted, false);
                    state.outage = Some(Outage {
                        since_ns,
                        noticed_ns: now_ns,
                        reading: reading.clone(),
                        settle_at_ns: now_ns + settled_ns,
                    });
                    reading
                }
                Some(outage) if now_ns >= outage.settle_at_ns => {
                    outage.settle_at_ns = now_ns + nanos(ASK_AGAIN);
                    drop(self.ask_ledger(subject, counted, true));
                    return;
                }
                Some(outage) if now_ns < outage.noticed_ns + nanos(PATIENCE) => outage.reading.clone(),
                Some(_) => return,
            }
        };
        if tokio::time::timeout_at(deadline, reading.wait_for(|told| *told)).await.is_err() {
            tracing::debug!(key = %subject.key, "counters: the ledger tells too late what was spent");
        }
    }

    /// Asks the ledger for one key; what it tells counts from then on, whoever waits for it.
    fn ask_ledger(&self, subject: &Arc<Subject>, counted: bool, settled: bool) -> watch::Receiver<bool> {
        let (told, reading) = watch::channel(false);
        if let (Some(me), Ok(permit)) = (self.me.upgrade(), Arc::clone(&self.calls).try_acquire_owned()) {
            let reader = Arc::clone(subject);
            self.config.io.spawn(async move {
                me.read_ledger(&reader, counted, settled).await;
                drop(permit);
                told.send_replace(true);
            });
        }
        reading
    }

    async fn read_ledger(&self, subject: &Subject, counted: bool, settled: bool) {
        let asked = self.now();
        let workspace = counted.then_some(&subject.workspace);
        let Some(rows) = self.rows(subject.key, workspace, asked.wall).await else { return };
        // So much it knows for certain; everything, once it has caught up.
        let until_ns = if settled { u64::MAX } else { asked.steady_ns.saturating_sub(nanos(self.lag())) };
        let raised = |row: &SpentRow, known: Option<&Known>| {
            let used = [row.minute, row.hour, row.day, row.month, row.total];
            Known::raised(known, used, self.local.used(&row.subject, asked.wall), until_ns, asked.wall)
        };
        if let Some(row) = rows.first() {
            let mut state = subject.lock();
            state.known = Some(raised(row, state.known.as_ref()));
            if settled && let Some(outage) = &mut state.outage {
                outage.settle_at_ns = u64::MAX;
            }
        }
        if let Some(row) = rows.get(1) {
            let mut of_workspace = self.workspaces.entry(subject.workspace.clone()).or_default();
            // Once per outage, not once per key: what this node spends meanwhile is in the ledger sooner or later.
            let asked = Some((self.link.made(), settled));
            if of_workspace.asked != asked && of_workspace.asked != Some((self.link.made(), true)) {
                of_workspace.known = Some(raised(row, of_workspace.known.as_ref()));
                of_workspace.asked = asked;
            }
        }
    }

    /// What the ledger knows of those that Redis does not know.
    pub(super) async fn ledgered(&self, subjects: &Subjects<'_>, at: Timestamp) -> Option<Ledgered> {
        let (workspace, counted) = subjects.workspace;
        let rows = self.rows(subjects.key, counted.then_some(workspace), at).await?;
        Some(Ledgered { at, rows })
    }

    async fn rows(
        &self,
        key: KeyId,
        workspace: Option<&WorkspaceId>,
        at: Timestamp,
    ) -> Option<Vec<SpentRow>> {
        let mut rows = vec![self.config.ledger.spent_of(&SpentBy::Key(key), at).await?];
        if let Some(workspace) = workspace {
            rows.push(self.config.ledger.spent_of(&SpentBy::Workspace(workspace.clone()), at).await?);
        }
        Some(rows)
    }
}
