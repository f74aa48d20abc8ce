//! A model of `grant.lua` for windows, so that every interleaving can be tried without a server. A test compares it with
//! the script.

use super::*;
use crate::policy::keys::limit::RetryAfter;
use std::collections::BTreeMap;

const HOLD_US: i64 = 1_000_000;
const PROMISE_US: i64 = 10_000_000;
const RECORD_US: i64 = 3_600_000_000;

/// Rules that can be left out, to show that each is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// A call that is older than one already processed is refused.
    Order,
    /// What others were promised is not granted.
    Promises,
    /// What a node may still spend until it hears of a smaller promise stays reserved.
    Kept,
    /// What a node was debited is compared with what it reports.
    Debited,
    /// In a new epoch, the highest reported count is used.
    Word,
    /// Promises from before nodes lost Redis stay reserved until these nodes can have reported.
    Lost,
    /// In a new epoch nothing is granted before the others can have reported.
    Hold,
    /// What requests of other nodes hold is not granted.
    Holds,
    /// What requests of the calling node hold is not granted to it again.
    OwnHolds,
    /// What is granted for holds is reserved before it is answered.
    Granted,
    /// Nodes report what they hold before it expires.
    Renewal,
}

/// One subject on one server.
#[derive(Clone, Debug)]
pub(super) struct RedisSide {
    pub(super) server: u32,
    pub(super) hash: Option<Hash>,
    pub(super) without: Option<Guard>,
    /// Until when the server counts as just started.
    pub(super) young_until: i64,
    /// When nodes lost the server that have just reconnected.
    pub(super) lost: Option<i64>,
    /// The calendar of the charged windows.
    pub(super) calendar: Calendar,
}

#[derive(Clone, Debug)]
pub(super) struct Hash {
    made: i64,
    pub(super) epoch: i64,
    pub(super) hold: i64,
    server: u32,
    windows: [Counted; WINDOWS.len()],
    records: BTreeMap<String, Record>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    window: Window,
    used: u64,
    known: u64,
}

#[derive(Clone, Debug)]
struct Record {
    till: i64,
    epoch: i64,
    seq: u64,
    windows: [Recorded; WINDOWS.len()],
}

/// One window in the record of a node.
#[derive(Clone, Copy, Debug, Default)]
struct Recorded {
    since: u64,
    debited: u64,
    /// Holds included.
    reserved: u64,
    holds: u64,
}

impl RedisSide {
    pub(super) const fn new() -> Self {
        Self { server: 1, hash: None, without: None, young_until: 0, lost: None, calendar: Calendar::UTC }
    }

    fn keeps(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    /// Processes a call for the subject.
    pub(super) fn call(
        &mut self,
        node: &str,
        nodes: u64,
        now: Timestamp,
        ask: &LeaseRequest,
    ) -> ScriptTotals {
        let now_us = now.as_micros();
        let current = Window::all(self.calendar, now);
        let mut hash = match (&self.hash, ask.ledger) {
            (Some(hash), _) => hash.clone(),
            (None, None) => return ScriptTotals::Unknown,
            (None, Some(ledger)) => Hash {
                made: now_us,
                epoch: now_us,
                hold: if (ask.epoch != 0 || now_us < self.young_until) && self.keeps(Guard::Hold) {
                    now_us + HOLD_US
                } else {
                    0
                },
                server: self.server,
                windows: std::array::from_fn(|w| Counted {
                    window: current[w],
                    used: ledger[w],
                    known: ledger[w],
                }),
                records: BTreeMap::new(),
            },
        };
        if hash.server != self.server {
            (hash.server, hash.epoch) = (self.server, now_us);
            if !hash.records.is_empty() && self.keeps(Guard::Hold) {
                hash.hold = now_us + HOLD_US;
            }
            hash.windows.iter_mut().for_each(|w| w.known = w.used);
        }
        for (counted, window) in hash.windows.iter_mut().zip(current) {
            if counted.window.overlaps(&window) {
                counted.window = window;
            } else {
                *counted = Counted { window, ..Counted::default() };
            }
        }
        let own = hash.records.get(node).filter(|r| r.epoch == hash.epoch).cloned();
        if own.as_ref().is_some_and(|own| ask.seq <= own.seq) && self.keeps(Guard::Order) {
            return ScriptTotals::Old;
        }
        let epoch = hash.epoch;
        for w in 0..WINDOWS.len() {
            let (window, said) = (&mut hash.windows[w], ask.windows[w]);
            match own.as_ref().map(|own| own.windows[w]).filter(|own| own.since == said.since) {
                Some(Recorded { debited, .. }) => {
                    let debited = if self.keeps(Guard::Debited) { debited } else { debited.max(said.spent) };
                    window.used = (window.used + said.spent).saturating_sub(debited);
                }
                None => {
                    if ask.epoch != 0 && ask.epoch != epoch && self.keeps(Guard::Word) {
                        let missing = said.heard.saturating_sub(window.known);
                        window.used += missing;
                        window.known += missing;
                    }
                    if said.spent > said.told {
                        let in_ledger: u64 = ask
                            .untold
                            .iter()
                            .filter(|u| {
                                u.at_us < hash.made - 2_000_000 && u.at_us >= window.window.start.as_micros()
                            })
                            .map(|u| u.units)
                            .sum();
                        window.used += (said.spent - said.told).saturating_sub(in_ledger);
                    } else {
                        window.used = window.used.saturating_sub(said.told - said.spent);
                    }
                }
            }
        }
        hash.records.retain(|name, record| name == node || record.till + RECORD_US >= now_us);
        let others: Vec<Record> = hash
            .records
            .iter()
            .filter(|(name, record)| *name != node && record.till > self.lost.unwrap_or(now_us))
            .map(|(_, record)| record.clone())
            .collect();
        let count = nodes.max(others.len() as u64 + 1);
        let part = 2 * count;
        let of_others = |hash: &Hash, w: usize| {
            let start_us = hash.windows[w].window.start.as_micros();
            let live = others.iter().filter(move |o| o.till - PROMISE_US >= start_us);
            live.map(|o| o.windows[w]).fold((0, 0), |sum, o| (sum.0 + o.reserved, sum.1 + o.holds))
        };
        let (keeps_promises, keeps_holds) = (self.keeps(Guard::Promises), self.keeps(Guard::Holds));
        let keeps_own = self.keeps(Guard::OwnHolds);
        let mut holds = ask.holds;
        let available = |hash: &Hash, holds: Option<[u64; WINDOWS.len()]>, w: usize, max: u64| {
            let (reserved, on_hold) = of_others(hash, w);
            let promised = if keeps_promises { reserved - on_hold } else { 0 };
            let on_hold = if keeps_holds { on_hold } else { 0 };
            let own = holds.filter(|_| keeps_own).map_or(0, |holds| holds[w]);
            max.saturating_sub(hash.windows[w].used).saturating_sub(promised + on_hold + own)
        };
        let limits: Vec<(usize, u64, Limit)> = ask.limits.iter().map(|l| window_of(*l)).collect();
        let (mut units, mut extra, mut refused) = (0, 0, None);
        let is_held_back = hash.hold > now_us;
        if !is_held_back {
            let least = limits.iter().map(|(w, max, _)| available(&hash, holds, *w, *max)).min();
            let least = least.unwrap_or(u64::MAX);
            units = ask.need.min(least);
            if ask.waiting > 0 && ask.waiting - ask.need + units < ask.least {
                units = 0;
                let lacks = |w, max| available(&hash, holds, w, max) + ask.waiting - ask.need < ask.least;
                let is_held = |w: usize, max| holds.is_some() && hash.windows[w].used + ask.least <= max;
                refused = reason(&limits, ask.least, lacks, is_held, |w| current[w].left(now));
            } else if units == ask.need {
                extra = ask.ahead.min((least - units) / part);
            }
        }
        let granted = units + extra;
        match &mut holds {
            Some(holds) if self.keeps(Guard::Granted) => holds.iter_mut().for_each(|held| *held += granted),
            Some(_) => {}
            None => hash.windows.iter_mut().for_each(|w| w.used += granted),
        }
        let mut promised = [None; WINDOWS.len()];
        for (w, max, _) in limits.iter().filter(|_| !ask.leaves) {
            let free = available(&hash, holds, *w, *max);
            let promise = if is_held_back { free.min(ask.windows[*w].held) } else { free / part };
            promised[*w] = Some(promised[*w].unwrap_or(promise).min(promise));
        }
        let promises = promised.map(Option::unwrap_or_default);
        let windows = std::array::from_fn(|w| {
            let said = ask.windows[w];
            let (debited, holds) = holds.map_or((granted, 0), |holds| (0, holds[w]));
            let kept = if self.keeps(Guard::Kept) { said.held.saturating_sub(granted) } else { 0 };
            let promise = promised[w].map_or(0, |promise| kept.max(promise));
            Recorded { since: said.since, debited: said.spent + debited, reserved: holds + promise, holds }
        });
        let on_hold: [u64; WINDOWS.len()] =
            std::array::from_fn(|w| holds.map_or(0, |holds| holds[w] + of_others(&hash, w).1));
        let record = Record { till: now_us + PROMISE_US, epoch, seq: ask.seq, windows };
        hash.records.insert(node.to_owned(), record);
        let used = hash.windows.map(|w| w.used);
        let left = limits
            .iter()
            .map(|(w, max, limit)| {
                let units = max.saturating_sub(used[*w]).saturating_sub(on_hold[*w]);
                let reset = current[*w].left(now);
                (*limit, crate::policy::keys::limit::Remaining { units, reset })
            })
            .collect();
        self.hash = Some(hash);
        let places = 0;
        ScriptTotals::Grant(LeaseGrant {
            now_us,
            epoch,
            units: granted,
            is_held_back,
            places,
            promises,
            used,
            on_hold,
            refused,
            left,
        })
    }
}

fn window_of(limit: Limit) -> (usize, u64, Limit) {
    let LimitRule::Window { per, max } = limit.rule else { panic!("only windows are modelled") };
    (per.window_index().expect("a window"), max, limit)
}

fn reason(
    limits: &[(usize, u64, Limit)],
    least: u64,
    lacks: impl Fn(usize, u64) -> bool,
    is_held: impl Fn(usize, u64) -> bool,
    left: impl Fn(usize) -> Option<Duration>,
) -> Option<(Limit, RetryAfter)> {
    let lacking = limits.iter().filter(|(w, max, _)| lacks(*w, *max));
    let told = lacking.map(|(w, max, limit)| {
        let retry = match left(*w) {
            _ if is_held(*w, *max) => RetryAfter::Release,
            Some(left) if *max >= least => RetryAfter::Wait(left),
            _ => RetryAfter::Never,
        };
        (*limit, retry)
    });
    told.reduce(|worst, next| if next.1 > worst.1 { next } else { worst })
}

/// The contents of a call, and what precedes it: time in µs, a failover, another calendar.
type AnyCall = (usize, u64, u64, u64, Vec<u64>, u32, bool, Option<usize>, u64);

fn any_call() -> impl Strategy<Value = AnyCall> {
    let said = prop::collection::vec(0..12_u64, 4);
    let time = prop_oneof![9 => 0..4_000_000_u32, 1 => Just(u32::MAX)];
    let calendar = proptest::option::weighted(0.1, 0..3_usize);
    (0..3_usize, 0..4_u64, 0..5_u64, 0..6_u64, said, time, prop::bool::weighted(0.05), calendar, 1..4_u64)
}

/// Whatever nodes report, correct or not, in whatever order: script and model give the same answer, for requests and for
/// holds.
#[test]
fn the_model_answers_as_the_script_does() {
    for is_held in [false, true] {
        let calls = prop::collection::vec(any_call(), 1..40);
        always(&calls, |server, calls| they_agree(server, calls, is_held));
    }
}

fn they_agree(server: &RedisServer, calls: Vec<AnyCall>, is_held: bool) -> Result<(), TestCaseError> {
    let mut world = World::new(server);
    let mut model = RedisSide::new();
    let servers = ["s0", "s1", "s2", "s3", "s4"];
    let limits = [
        limit(LimitName::Quota, LimitRule::of(Per::Total, 40)),
        limit(LimitName::Key(0), LimitRule::of(Per::Minute, 15)),
        limit(LimitName::Daily, LimitRule::of(Per::Day, 30)),
        limit(LimitName::Key(1), LimitRule::of(Per::Week, 35)),
        limit(LimitName::Key(2), LimitRule::of(Per::Day, 33)),
    ];
    let mut epoch = 0;
    for (n, (node, seq, need, ahead, said, us, fails_over, calendar, least)) in calls.into_iter().enumerate()
    {
        world.now_us += i64::from(us);
        if let Some(calendar) = calendar {
            world.calendar = calendars::CALENDARS[calendar];
            model.calendar = world.calendar;
        }
        if fails_over && model.server < 4 {
            model.server += 1;
            world.server = servers[usize::try_from(model.server).expect("few")];
        }
        let windows = std::array::from_fn(|w| WindowReport {
            since: 1 + said[0] / 6,
            spent: said[1] + w as u64,
            told: said[2],
            heard: said[3] * 3,
            held: said[0],
        });
        let ask = LeaseRequest {
            seq: 1 + n as u64 / 2 + seq,
            epoch,
            windows,
            waiting: need + said[3] / 8,
            least: if is_held { least.min(need + said[3] / 8).max(1) } else { 1 },
            leaves: said[2] == 11,
            holds: is_held.then(|| std::array::from_fn(|w| said[0] / 2 + w as u64)),
            ledger: Some([3; WINDOWS.len()]),
            ..plain_ask(&limits, need, ahead)
        };
        let name = ["a", "b", "c"][node];
        let there = world.call(name, 2, &ask, None).remove(0);
        let here = model.call(name, 2, Timestamp::from_micros(world.now_us), &ask);
        if let ScriptTotals::Grant(grant) = &here {
            epoch = grant.epoch;
        }
        prop_assert_eq!(here, there, "call {}", n);
    }
    Ok(())
}
