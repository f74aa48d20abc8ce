//! Explores every interleaving of a few steps of two nodes and one Redis, and many long random runs: late and lost calls
//! and answers, nodes that die, a Redis that dies and returns with its state, empty, or with an older state. The nodes'
//! side is the code that serves requests; the other side is `redis_side`, which a test compares with the script.
//!
//! *Law:* no more is admitted than the limit, plus what nodes that died had spent without Redis and not reported. For a
//! Redis that has lost data, this holds if every live node reports within the second in which nothing is granted. `holds`
//! says what this means for holds, and explores them.

use super::redis_side::{Guard, RedisSide};
use super::*;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

pub(super) const LIMIT: u64 = 5;
/// How often a node that does nothing else is due to report what it holds.
const RENEWED_EVERY_US: i64 = 3_000_000;

/// Failures that may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nodes die.
    Crashes,
    /// Redis dies and returns with all its data.
    Outage,
    /// Redis dies and returns empty, or with an older state.
    Forgets,
    /// The plan's calendar changes; one node learns of it before another.
    Calendar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A request arrives at a node: it takes a granted unit, or the node makes a call.
    Request(usize),
    /// The same, for a hold of so many units.
    Hold(usize, u64),
    /// A request is decided without Redis.
    Fallback(usize),
    /// The first hold of a node is settled: so many units were used.
    End(usize, u64),
    /// A node reports what is due.
    Settle(usize),
    /// The call arrives and is processed.
    Arrive(usize),
    /// The answer arrives.
    Answer(usize),
    /// The node stops waiting.
    Abandon(usize),
    /// A call that was abandoned arrives all the same.
    ArriveLate(usize),
    Crash(usize),
    /// 60 ms pass: granted units expire.
    Moment,
    /// 11 s pass: promises expire.
    Pause,
    Dies,
    Returns,
    /// It was running all the time, and is reachable again.
    IsReached,
    ReturnsEmpty,
    Save,
    ReturnsOlder,
    /// A node learns of another calendar.
    Calendar(usize),
}

impl Step {
    const fn is_rare(self) -> bool {
        !matches!(
            self,
            Self::Request(_)
                | Self::Hold(..)
                | Self::Fallback(_)
                | Self::End(..)
                | Self::Settle(_)
                | Self::Arrive(_)
                | Self::Answer(_)
        )
    }
}

#[derive(Clone, Debug)]
pub(super) struct Party {
    name: u64,
    pub(super) pool: SubjectPool,
    /// What requests hold, if they hold anything.
    pub(super) holds: Vec<TakenUnits>,
    sent: Option<Sent>,
    late: Option<(LeaseRequest, Calendar)>,
    calendar: Calendar,
}

#[derive(Clone, Debug)]
struct Sent {
    ask: LeaseRequest,
    calendar: Calendar,
    at_ns: u64,
    told: Option<ScriptTotals>,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) redis: RedisSide,
    /// Whether requests take holds.
    is_held: bool,
    older: Option<RedisSide>,
    /// Since when it is unreachable.
    gone_since_ns: Option<u64>,
    pub(super) parties: Vec<Party>,
    born: u64,
    /// Of holds: what they were settled to.
    pub(super) admitted: u64,
    /// What nodes that died had not reported.
    pub(super) untold: u64,
    /// By how much more was used than was held.
    pub(super) excess: u64,
    now_us: i64,
}

impl Party {
    fn new(name: u64, calendar: Calendar, is_held: bool) -> Self {
        let pool = if is_held { SubjectPool::held() } else { SubjectPool::default() };
        Self { name, pool, holds: Vec::new(), sent: None, late: None, calendar }
    }

    fn on_hold(&self) -> u64 {
        self.holds.iter().map(TakenUnits::units).sum()
    }
}

impl State {
    fn is_lawful(&self) -> bool {
        let on_hold: u64 = self.parties.iter().map(Party::on_hold).sum();
        self.admitted + on_hold <= LIMIT + self.untold + self.excess
    }

    fn new(parties: u64, without: Option<Guard>) -> Self {
        Self::of(parties, without, false)
    }

    /// The start of a run in which requests take holds, if `is_held`.
    pub(super) fn of(parties: u64, without: Option<Guard>, is_held: bool) -> Self {
        Self {
            redis: RedisSide { without, ..RedisSide::new() },
            is_held,
            older: None,
            gone_since_ns: None,
            parties: (0..parties).map(|name| Party::new(name, Calendar::UTC, is_held)).collect(),
            born: parties,
            admitted: 0,
            untold: 0,
            excess: 0,
            now_us: START_US + 10_000_000,
        }
    }

    pub(super) fn now(&self) -> Now {
        let steady_ns = u64::try_from(self.now_us - START_US).expect("after the start") * 1_000;
        Now { wall: Timestamp::from_micros(self.now_us), steady_ns }
    }

    /// The possible next steps.
    fn steps(&self, troubles: &[Trouble]) -> Vec<Step> {
        let mut steps = vec![Step::Moment];
        for (n, party) in self.parties.iter().enumerate() {
            if self.is_held {
                steps.extend([Step::Hold(n, 1), Step::Hold(n, 2)]);
            } else {
                steps.push(Step::Request(n));
            }
            steps.extend([Step::Fallback(n), Step::Settle(n)]);
            if !party.holds.is_empty() {
                steps.extend([Step::End(n, 0), Step::End(n, 1), Step::End(n, 3)]);
            }
            match &party.sent {
                Some(Sent { told: None, .. }) => steps.extend([Step::Arrive(n), Step::Abandon(n)]),
                Some(Sent { told: Some(_), .. }) => steps.extend([Step::Answer(n), Step::Abandon(n)]),
                None => {}
            }
            if party.late.is_some() {
                steps.push(Step::ArriveLate(n));
            }
            if troubles.contains(&Trouble::Crashes) {
                steps.push(Step::Crash(n));
            }
            if troubles.contains(&Trouble::Calendar) {
                steps.push(Step::Calendar(n));
            }
        }
        let forgets = troubles.contains(&Trouble::Forgets);
        if forgets || troubles.contains(&Trouble::Outage) {
            match self.gone_since_ns {
                None => steps.push(Step::Dies),
                Some(_) if forgets => steps.extend([Step::ReturnsEmpty, Step::ReturnsOlder]),
                Some(_) => steps.extend([Step::Returns, Step::IsReached]),
            }
        }
        if forgets {
            steps.push(Step::Save);
        } else {
            steps.push(Step::Pause);
        }
        steps
    }

    /// The state after a step; none if the step is not possible.
    pub(super) fn after(&self, step: Step) -> Option<Self> {
        let mut next = self.clone();
        next.take(step).then_some(next)
    }

    fn take_if_it_can(&mut self, step: Step) -> bool {
        match self.after(step) {
            Some(after) => *self = after,
            None => return false,
        }
        true
    }

    fn take(&mut self, step: Step) -> bool {
        let now = self.now();
        let is_up = self.gone_since_ns.is_none();
        match step {
            Step::Request(n) => return self.request(n, 1),
            Step::Hold(n, units) => return self.request(n, units),
            Step::Fallback(n) => {
                let party = &mut self.parties[n];
                party.pool.set_limits(&limits(party.calendar));
                let outage = FallbackState {
                    nodes: 2,
                    share_unknown: false,
                    gone_since_ns: self.gone_since_ns,
                    well_ns: now.steady_ns,
                };
                if party.pool.may_spend_fallback(1, &outage, now).is_err() {
                    return false;
                }
                let taken = party.pool.spend_fallback(1, &outage, now);
                self.admit(n, taken);
            }
            Step::End(n, used) => {
                if self.parties[n].holds.is_empty() {
                    return false;
                }
                let hold = self.parties[n].holds.remove(0);
                self.parties[n].pool.settle(&hold, used, now.wall);
                self.admitted += used;
                self.excess += used.saturating_sub(hold.units());
            }
            Step::Settle(n) => {
                if !is_up || self.parties[n].sent.is_some() || !self.parties[n].pool.needs_call(now.steady_ns)
                {
                    return false;
                }
                self.send(n, 0);
            }
            Step::Arrive(n) => {
                let Some(mut sent) = self.parties[n].sent.take() else { return false };
                if !is_up || sent.told.is_some() {
                    return false;
                }
                sent.told = Some(self.arrive(n, &sent.ask, sent.calendar));
                self.parties[n].sent = Some(sent);
            }
            Step::Answer(n) => {
                let party = &mut self.parties[n];
                let Some(Sent { ask, at_ns, told: Some(told), .. }) = party.sent.take() else { return false };
                match told {
                    ScriptTotals::Grant(grant) => {
                        party.pool.answer(&ask, &grant, at_ns, now.steady_ns);
                        if ask.waiting > 0 && party.pool.can_spend(ask.waiting, now.steady_ns) {
                            let taken = party.pool.spend(ask.waiting, now);
                            self.admit(n, taken);
                        }
                    }
                    _ => party.pool.unanswered(&ask),
                }
            }
            Step::Abandon(n) => {
                let party = &mut self.parties[n];
                let Some(sent) = party.sent.take() else { return false };
                party.pool.unanswered(&sent.ask);
                if sent.told.is_none() {
                    party.late = Some((sent.ask, sent.calendar));
                }
            }
            Step::ArriveLate(n) => {
                let Some((ask, calendar)) = self.parties[n].late.take() else { return false };
                if !is_up {
                    return false;
                }
                self.arrive(n, &ask, calendar);
            }
            Step::Crash(n) => {
                self.untold += self.parties[n].pool.unreported_units();
                self.parties[n] = Party::new(self.born, self.parties[n].calendar, self.is_held);
                self.born += 1;
            }
            Step::Calendar(n) => {
                let before = std::mem::replace(&mut self.parties[n].calendar, calendars::CALENDARS[1]);
                return before != calendars::CALENDARS[1];
            }
            Step::Moment => return self.pass(60_000),
            Step::Pause => return self.pass(11_000_000),
            Step::Dies => {
                self.gone_since_ns = Some(now.steady_ns);
                for party in &mut self.parties {
                    if let Some(sent) = party.sent.take() {
                        party.pool.unanswered(&sent.ask);
                    }
                    party.late = None;
                }
            }
            Step::IsReached => {
                if let Some(gone_ns) = self.gone_since_ns.take()
                    && self.redis.without != Some(Guard::Lost)
                {
                    self.redis.lost = Some(START_US + i64::try_from(gone_ns / 1_000).expect("a time"));
                }
            }
            Step::Returns => self.returns(self.redis.clone()),
            Step::ReturnsEmpty => {
                let server = RedisSide { hash: None, ..self.redis.clone() };
                self.returns(server);
            }
            Step::ReturnsOlder => {
                let Some(older) = self.older.take() else { return false };
                let server = RedisSide { server: self.redis.server, ..older };
                self.returns(server);
            }
            Step::Save => {
                if !is_up || self.older.is_some() {
                    return false;
                }
                self.older = Some(self.redis.clone());
            }
        }
        true
    }

    /// A request arrives at a node.
    fn request(&mut self, n: usize, units: u64) -> bool {
        let now = self.now();
        let party = &mut self.parties[n];
        party.pool.set_limits(&limits(party.calendar));
        party.pool.attempt(units);
        if party.pool.can_spend(units, now.steady_ns) {
            let taken = party.pool.spend(units, now);
            self.admit(n, taken);
        } else if party.sent.is_none()
            && party.pool.refusal(units, now.steady_ns).is_none()
            && self.gone_since_ns.is_none()
        {
            self.send(n, units);
        } else {
            return false;
        }
        true
    }

    fn admit(&mut self, n: usize, taken: TakenUnits) {
        if self.is_held {
            self.parties[n].holds.push(taken);
        } else {
            self.admitted += taken.units();
        }
    }

    /// A node calls and is answered at once.
    pub(super) fn report(&mut self, n: usize) {
        self.take(Step::Settle(n));
        self.take(Step::Arrive(n));
        self.take(Step::Answer(n));
    }

    fn returns(&mut self, server: RedisSide) {
        let young_until = self.now_us + 1_000_000;
        self.redis = RedisSide { server: self.redis.server + 1, young_until, lost: None, ..server };
        self.gone_since_ns = None;
        for party in &mut self.parties {
            party.pool.report_again();
        }
        self.now_us += 1_000;
    }

    fn send(&mut self, n: usize, waiting: u64) {
        let now = self.now();
        let party = &mut self.parties[n];
        let calendar = party.calendar;
        let ask =
            party.pool.ask(Wanted { units: waiting, least: waiting }, now.steady_ns, now.wall, calendar);
        party.sent = Some(Sent { ask, calendar, at_ns: now.steady_ns, told: None });
        // No two instants are the same.
        self.now_us += 2;
    }

    fn arrive(&mut self, n: usize, ask: &LeaseRequest, calendar: Calendar) -> ScriptTotals {
        let (name, now) = (self.parties[n].name.to_string(), self.now().wall);
        // The ledger is empty.
        let ask = LeaseRequest { ledger: Some([0; WINDOWS.len()]), ..ask.clone() };
        self.redis.calendar = calendar;
        self.redis.call(&name, 2, now, &ask)
    }

    /// Time passes. A second in which nothing is granted is long enough for every node to report.
    pub(super) fn pass(&mut self, us: i64) -> bool {
        let now_ns = self.now().steady_ns;
        let owes = |party: &mut Party| party.sent.is_some() || party.pool.needs_call(now_ns);
        if self.gone_since_ns.is_none() {
            // Within ten seconds, a node that reaches Redis has reported everything, and so has one that has just
            // reconnected.
            let is_long = us > 1_000_000 || self.redis.lost.is_some();
            if is_long && self.parties.iter_mut().any(owes) {
                return false;
            }
            self.redis.lost = None;
        }
        let hold = self.redis.hash.as_ref().map_or(0, |hash| hash.hold).max(self.redis.young_until);
        if self.gone_since_ns.is_none() && hold > self.now_us {
            if self.parties.iter_mut().any(owes) {
                return false;
            }
            self.now_us = hold;
        }
        let until = self.now_us + us;
        // Meanwhile nodes report what they hold.
        while self.is_held && self.gone_since_ns.is_none() && self.now_us + RENEWED_EVERY_US < until {
            self.now_us += RENEWED_EVERY_US;
            if self.redis.without != Some(Guard::Renewal) {
                (0..self.parties.len()).for_each(|n| self.report(n));
            }
        }
        self.now_us = until.max(self.now_us);
        true
    }

    fn mark(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        format!("{self:?}").hash(&mut hasher);
        hasher.finish()
    }
}

pub(super) fn limits(calendar: Calendar) -> Limits {
    let limits: Limits = [limit(LimitName::Daily, LimitRule::of(Per::Day, LIMIT))].into_iter().collect();
    limits.in_calendar(calendar)
}

/// Takes every step from every state, up to `depth` steps. Returns the number of states and the first run that admits more
/// than the limit.
pub(super) fn explore(start: &State, depth: usize, troubles: &[Trouble]) -> (usize, Option<Vec<Step>>) {
    let mut seen = HashSet::new();
    let mut layer = vec![(start.clone(), Vec::new())];
    for _ in 0..depth {
        let mut next = Vec::new();
        for (state, way) in layer {
            for step in state.steps(troubles) {
                let Some(after) = state.after(step) else { continue };
                let mut way: Vec<Step> = way.clone();
                way.push(step);
                if !after.is_lawful() {
                    return (seen.len(), Some(way));
                }
                if seen.insert(after.mark()) {
                    next.push((after, way));
                }
            }
        }
        layer = next;
    }
    (seen.len(), None)
}

/// Makes many long random runs, in which failures are rarer than other steps.
pub(super) fn wander(start: &State, ways: u64, length: usize, troubles: &[Trouble]) -> Option<Vec<Step>> {
    for seed in 0..ways {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from((random >> 16) % below as u64).expect("few")
        };
        let (mut state, mut way) = (start.clone(), Vec::new());
        for _ in 0..length {
            let (rare, common): (Vec<Step>, Vec<Step>) =
                state.steps(troubles).into_iter().partition(|step| step.is_rare());
            let among = if draw(10) == 0 { rare } else { common };
            let step = among[draw(among.len())];
            if !state.take_if_it_can(step) {
                continue;
            }
            way.push(step);
            if !state.is_lawful() {
                return Some(way);
            }
        }
        if state.is_held && state.redis.without.is_none() {
            super::holds::assert_ends_at_nothing(state, troubles, &way);
        }
    }
    None
}

/// The depth of the exploration and the number of random runs: about a minute; `make model` sets higher ones.
pub(super) fn size() -> (usize, u64) {
    let of = |given: Option<&str>, usual| given.and_then(|n| n.parse::<u64>().ok()).unwrap_or(usual);
    let depth = of(option_env!("KEYGATE_MODEL_DEPTH"), 6);
    (usize::try_from(depth).expect("a depth"), of(option_env!("KEYGATE_MODEL_WAYS"), 3_000))
}

pub(super) fn keeps_the_law(start: &State, (depth, ways): (usize, u64), troubles: &[Trouble]) {
    let parties = start.parties.len();
    let (states, way) = explore(start, depth, troubles);
    println!("{parties} nodes, {troubles:?}: {states} states in {depth} steps");
    assert_eq!(way, None);
    assert_eq!(wander(start, ways, 80, troubles), None);
}

#[test]
fn two_nodes_pass_no_limit_whatever_is_late_or_lost() {
    keeps_the_law(&State::new(2, None), size(), &[Trouble::Crashes]);
}

#[test]
fn two_nodes_pass_no_limit_while_redis_is_gone() {
    keeps_the_law(&State::new(2, None), size(), &[Trouble::Outage, Trouble::Crashes]);
}

#[test]
fn two_nodes_pass_no_limit_when_redis_has_forgotten() {
    keeps_the_law(&State::new(2, None), size(), &[Trouble::Forgets]);
}

#[test]
fn two_nodes_pass_no_limit_when_its_calendar_is_changed() {
    keeps_the_law(&State::new(2, None), size(), &[Trouble::Calendar]);
}

#[test]
fn three_nodes_pass_no_limit() {
    keeps_the_law(&State::new(3, None), size(), &[Trouble::Outage, Trouble::Crashes]);
}

fn asks(n: usize) -> [Step; 3] {
    [Step::Request(n), Step::Arrive(n), Step::Answer(n)]
}

/// How many are admitted in this run, with a guard and without it.
fn admitted(way: &[Step], guard: Guard) -> [u64; 2] {
    let step = |state: State, step: &Step| state.after(*step).unwrap_or(state);
    [None, Some(guard)].map(|without| way.iter().fold(State::new(2, without), step).admitted)
}

/// The first call of a node arrives after three others, when another node is about to take what is left.
#[test]
fn without_the_order_of_calls_a_limit_is_passed() {
    let mut way = vec![Step::Request(0), Step::Abandon(0)];
    way.extend([asks(0), asks(0), asks(0)].concat());
    way.push(Step::ArriveLate(0));
    way.extend([asks(1), asks(1), asks(1)].concat());
    assert_eq!(admitted(&way, Guard::Order), [LIMIT, LIMIT + 1]);
}

/// A node spends its promise while Redis is unreachable for longer than a promise is valid, and is not the first to
/// reconnect.
#[test]
fn without_keeping_what_was_promised_in_an_outage_a_limit_is_passed() {
    let mut way = asks(0).to_vec();
    way.extend([Step::Dies, Step::Fallback(0), Step::Pause, Step::IsReached]);
    way.extend([asks(1), asks(1), asks(1), asks(1)].concat());
    assert_eq!(admitted(&way, Guard::Lost), [LIMIT, LIMIT + 1]);
}

/// Each guard is needed: without it, a run is found that admits more than the limit.
#[test]
fn without_any_guard_a_limit_is_passed() {
    for (guard, troubles) in [
        (Guard::Promises, &[][..]),
        (Guard::Kept, &[]),
        (Guard::Debited, &[]),
        (Guard::Word, &[Trouble::Forgets]),
        (Guard::Hold, &[Trouble::Forgets]),
    ] {
        let way = wander(&State::new(2, Some(guard)), 20_000, 80, troubles);
        println!("without {guard:?}: {way:?}");
        assert!(way.is_some(), "nothing fails without {guard:?}");
    }
}
