//! Asking Redis for one key: who asks, what becomes of the answer, who is told.
//!
//! Must not know: where requests come from. Without an answer, those who wait decide alone.

use super::{BROKEN_FOR, Leases, PATIENCE, Purpose, State, Subject, Undelivered, Unit, Verdict, nanos};
use crate::clock::Timestamp;
use crate::counter::lease::{Ask, Grant};
use crate::counter::place::{ANSWER_WITHIN, Trouble};
use crate::counter::script::{self, Answer, Heard, Ledgered, Subjects};
use crate::counter::share::Known;
use crate::store::SpentBy;
use smallvec::SmallVec;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// What was granted, and what is debited of the key and of its workspace.
pub(super) type Granted = (Grant, SmallVec<[Heard; 2]>);

/// Why there is no answer.
pub(super) enum Failed {
    /// Nothing was done: the ledger could not tell what to fill Redis with.
    Unheard,
    Trouble(Trouble),
}

impl Leases {
    /// Sends somebody to ask, unless somebody is on the way or too many are. Answers whether somebody is on the way now.
    pub(super) fn begin(
        &self,
        subject: &Arc<Subject>,
        state: &mut State,
        purpose: Purpose,
        now_ns: u64,
    ) -> bool {
        if state.is_asking(now_ns) {
            return true;
        }
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else { return false };
        let Some(me) = self.me.upgrade() else { return false };
        state.turn += 1;
        state.asking_since_ns = Some(now_ns);
        self.config.metrics.counter_asking.inc();
        self.config.io.spawn(me.serve(Arc::clone(subject), state.turn, purpose, permit));
        true
    }

    /// Asks until nobody waits.
    async fn serve(
        self: Arc<Self>,
        subject: Arc<Subject>,
        turn: u64,
        purpose: Purpose,
        permit: OwnedSemaphorePermit,
    ) {
        let mut first = true;
        loop {
            let (ask, sent_ns) = {
                let now_ns = self.now_ns();
                let mut state = subject.lock();
                if state.turn != turn {
                    break;
                }
                state.waiting.retain(|w| !w.is_closed());
                let waiting = u64::try_from(state.waiting.len()).unwrap_or(u64::MAX);
                let ask = match (&purpose, waiting) {
                    (Purpose::Settle(_), 0) if first => {
                        let tell = state.untold;
                        state.lease.settle(tell, now_ns)
                    }
                    (_, 0) if !first => None,
                    _ => Some(state.lease.ask(waiting, now_ns)),
                };
                let Some(mut ask) = ask else {
                    state.asking_since_ns = None;
                    break;
                };
                state.asking_since_ns = Some(now_ns);
                state.asked += ask.may_bring();
                subject.unsettled.ask(ask.may_bring());
                ask.others_owe = subject.unsettled.owed().saturating_sub(ask.owed());
                (ask, now_ns)
            };
            first = false;
            let answer = self.put(&subject, &ask).await;
            let more = self.take_in(&subject, turn, &ask, sent_ns, answer);
            if !more {
                break;
            }
        }
        drop(permit);
        self.config.metrics.counter_asking.dec();
        subject.list();
    }

    /// Asks once; fills Redis from the ledger first if it has forgotten the key.
    pub(super) async fn put(&self, subject: &Subject, ask: &Ask) -> Result<Granted, Failed> {
        let server = self.link.server();
        let subjects = self.subjects(subject, ask, &server);
        let answer = match self.call(subject.part, &subjects, ask, None).await? {
            Answer::Unknown { at, key } => {
                if key {
                    self.is_unknown(subject);
                }
                let ledger = self.ledgered(&subjects, at).await.ok_or(Failed::Unheard)?;
                self.call(subject.part, &subjects, ask, Some(&ledger)).await?
            }
            known @ Answer::Grant(..) => known,
        };
        let Answer::Grant(grant, heard) = answer else {
            return Err(Failed::Trouble(Trouble::Link("does not keep what it is given".into())));
        };
        let returned = ask.adjustments.iter().filter(|a| a.units < 0).map(|a| a.units.unsigned_abs()).sum();
        self.config.metrics.counter_units_returned.inc_by(returned);
        self.config.metrics.counter_units_granted.inc_by(grant.units);
        Ok((grant, heard))
    }

    async fn call(
        &self,
        part: u32,
        subjects: &Subjects<'_>,
        ask: &Ask,
        ledger: Option<&Ledgered>,
    ) -> Result<Answer, Failed> {
        self.config.metrics.counter_calls.inc();
        let command = script::command(subjects, ask, ledger, true);
        let value = match self.link.ask(part, &command, PATIENCE).await {
            Err(trouble) if trouble.is_no_script() => {
                self.link.ask(part, &script::command(subjects, ask, ledger, false), PATIENCE).await
            }
            answered => answered,
        };
        let value = value.map_err(Failed::Trouble)?;
        script::read(&value, ask, subjects).ok_or_else(|| {
            let why = "answers what is no answer";
            self.link.lose(part, why);
            Failed::Trouble(Trouble::Link(why.into()))
        })
    }

    /// Takes in an answer and tells those who wait. Answers whether to ask again.
    fn take_in(
        &self,
        subject: &Arc<Subject>,
        turn: u64,
        ask: &Ask,
        sent_ns: u64,
        answer: Result<Granted, Failed>,
    ) -> bool {
        let now_ns = self.now_ns();
        let mut told = Vec::new();
        let mut state = subject.lock();
        let on_time = state.turn == turn;
        let owed = state.lease.owed();
        state.lease.is_over(ask);
        let more = match answer {
            Ok((grant, heard)) if on_time => {
                self.set_calendar(grant.now_us);
                state.lease.answer(ask, &grant, sent_ns, now_ns);
                subject.owes(owed, state.lease.owed());
                self.learn(subject, &mut state, &heard, now_ns);
                state.outage = None;
                state.untold = false;
                hand_out(subject, &mut state, now_ns, &mut told);
                if state.waiting.is_empty() && ask.ahead == 0 {
                    // Taken for those who waited, with the whole burst: not to be kept for later.
                    state.lease.retire();
                }
                !state.waiting.is_empty()
            }
            Ok((grant, _)) => {
                state.lease.too_late(&grant);
                subject.owes(owed, state.lease.owed());
                false
            }
            Err(failed) => {
                note_failure(subject, &mut state, ask, failed, now_ns);
                subject.owes(owed, state.lease.owed());
                if on_time {
                    told.extend(state.waiting.drain(..).map(|w| (w, Verdict::Alone)));
                }
                false
            }
        };
        // What it brought is known by now.
        state.asked -= ask.may_bring();
        subject.unsettled.answered(ask.may_bring());
        if on_time && !more {
            state.asking_since_ns = None;
        }
        drop(state);
        for (waiter, verdict) in told {
            // Whoever stopped waiting gets nothing; a unit goes back as it is dropped.
            drop(waiter.send(verdict));
        }
        more
    }

    fn learn(&self, subject: &Subject, state: &mut State, heard: &[Heard], now_ns: u64) {
        // What is in hand is paid for and will be this node's own spending; what is owed was spent, and is not in the answer.
        let in_hand = state.lease.units();
        let own = |subject: &SpentBy, at: Timestamp, owed: &dyn Fn() -> u64| {
            let used = self.local.used(subject, at);
            let owed = owed();
            used.map(|used| used.saturating_add(in_hand).saturating_sub(owed))
        };
        if let Some(heard) = heard.first() {
            let own = own(&SpentBy::Key(subject.key), heard.at, &|| state.lease.owed());
            state.known = Some(Known::new(heard.at, now_ns, heard.used, own, state.known.as_ref()));
            state.heard = Some(*heard);
        }
        if let Some(heard) = heard.get(1) {
            let own =
                own(&SpentBy::Workspace(subject.workspace.clone()), heard.at, &|| subject.unsettled.owed());
            let mut of_workspace = self.workspaces.entry(subject.workspace.clone()).or_default();
            // Answers to two of its keys may be taken in in any order; one much earlier comes of a clock that was set back.
            let is_news = |seen: Heard| {
                seen.epoch != heard.epoch || seen.at <= heard.at || seen.at.since(heard.at) > ANSWER_WITHIN
            };
            if of_workspace.heard.is_none_or(is_news) {
                let before = of_workspace.known;
                of_workspace.known = Some(Known::new(heard.at, now_ns, heard.used, own, before.as_ref()));
                of_workspace.heard = Some(*heard);
            }
        }
    }
}

fn note_failure(subject: &Subject, state: &mut State, ask: &Ask, failed: Failed, now_ns: u64) {
    match failed {
        Failed::Unheard => {
            state.lease.unheard(ask);
            // The ledger is asked again, but not by every request.
            state.broken_until_ns = now_ns + nanos(BROKEN_FOR);
        }
        Failed::Trouble(Trouble::Key(why)) => {
            tracing::warn!(key = %subject.key, why, "counters: Redis cannot count this key");
            state.lease.unanswered(ask);
            state.broken_until_ns = now_ns + nanos(BROKEN_FOR);
        }
        Failed::Trouble(Trouble::Link(why)) => {
            tracing::debug!(key = %subject.key, why, "counters: no answer");
            state.lease.unanswered(ask);
            state.untold = true;
        }
    }
}

/// Hands units to those who wait, first come first served, until there are none; then all are refused, if that is known.
fn hand_out(
    subject: &Arc<Subject>,
    state: &mut State,
    now_ns: u64,
    told: &mut Vec<(oneshot::Sender<Verdict>, Verdict)>,
) {
    while let Some(waiter) = state.waiting.pop_front() {
        if waiter.is_closed() {
            continue;
        }
        if let Some(at_us) = state.lease.spend(now_ns) {
            let unit = Unit { subject: Arc::clone(subject), at_us, ended: false };
            let left = state.lease.left(now_ns);
            told.push((waiter, Verdict::Unit(Undelivered(Some((unit, left))))));
        } else if let Some(refusal) = state.lease.refusal(now_ns) {
            told.push((waiter, Verdict::Refused(refusal)));
        } else {
            state.waiting.push_front(waiter);
            return;
        }
    }
}
