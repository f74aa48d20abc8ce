//! Encodes calls to `grant.lua` and decodes its answers.
//!
//! Must not know: connections. An unexpected answer is an error.

use super::pool::{LIFE, LeaseGrant, LeaseRequest, PROMISE, WINDOWS};
use crate::clock::Timestamp;
use crate::counter::LimitsLeft;
use crate::model::calendar::Calendar;
use crate::model::id::WorkspaceId;
use crate::model::key::Measure;
use crate::model::usage::UsageSubject;
use crate::policy::keys::calendar::Window;
use crate::policy::keys::limit::{Limit, LimitName, LimitRule, Remaining, RetryAfter};
use redis::{Cmd, Script, Value};
use std::sync::LazyLock;
use std::time::Duration;

/// The script. It is named by the hash of its text, so every version is another script. Versions with the same `LAYOUT`
/// count in the same fields; others do not touch each other's data.
pub(in crate::counter) static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(SOURCE));
pub(in crate::counter) const SOURCE: &str = include_str!("grant.lua");

/// One call: some pools of one workspace.
#[derive(Clone, Debug)]
pub(in crate::counter) struct ScriptCall<'r> {
    pub(in crate::counter) node: &'r str,
    pub(in crate::counter) nodes: u64,
    /// The run id of Redis; empty: the script asks for it.
    pub(in crate::counter) server: &'r str,
    /// How far the ledger may lag.
    pub(in crate::counter) lag: Duration,
    /// When this node lost Redis, by its clock, if it has just reconnected.
    pub(in crate::counter) lost: Option<Timestamp>,
    /// The instant whose windows are charged.
    pub(in crate::counter) at: Timestamp,
    /// The calendar of the windows.
    pub(in crate::counter) calendar: Calendar,
    /// The hashes of the pools, and the requests for them.
    pub(in crate::counter) asks: Vec<(String, &'r LeaseRequest)>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::counter) enum ScriptReply {
    /// One result per pool, with the instant by Redis' clock.
    Totals(i64, Vec<ScriptTotals>),
    /// These windows are not those of that instant; nothing was done.
    OtherWindows(Timestamp),
}

/// The result for one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are grants; a box would cost each of them a detour"
)]
pub(in crate::counter) enum ScriptTotals {
    Grant(LeaseGrant),
    /// Redis does not know it.
    Unknown,
    /// A newer call was processed before.
    Old,
    /// Redis cannot count it, for this reason.
    Broken(&'static str),
}

/// The hash of one measure of a subject. Those of requests have the names that they have always had.
pub(in crate::counter) fn hash_of(
    subject: &UsageSubject,
    workspace: &WorkspaceId,
    measure: Measure,
) -> String {
    let measure = match measure {
        Measure::Requests => String::new(),
        other => format!(".{other}"),
    };
    match subject {
        UsageSubject::Workspace(_) => format!("kg:{{{workspace}}}:w{measure}"),
        UsageSubject::Key(key) => format!("kg:{{{workspace}}}:k{measure}:{key}"),
        UsageSubject::EndUser(_, id) => format!("kg:{{{workspace}}}:u{measure}:{id}"),
    }
}

/// Number of values before those of the buckets.
const HEAD: usize = 7 + 2 * WINDOWS.len();

/// The command, by the hash of the script or with its text.
pub(in crate::counter) fn command(call: &ScriptCall<'_>, by_name: bool) -> Cmd {
    let mut cmd = redis::cmd(if by_name { "EVALSHA" } else { "EVAL" });
    cmd.arg(if by_name { SCRIPT.get_hash() } else { SOURCE });
    arguments(&mut cmd, call);
    cmd
}

/// The command with another script text, in which tests set the time.
#[cfg(test)]
pub(in crate::counter) fn command_with(source: &str, call: &ScriptCall<'_>) -> Cmd {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(source);
    arguments(&mut cmd, call);
    cmd
}

fn arguments(cmd: &mut Cmd, call: &ScriptCall<'_>) {
    cmd.arg(call.asks.len());
    for (hash, _) in &call.asks {
        cmd.arg(hash);
    }
    cmd.arg(call.node).arg(call.server).arg(call.nodes.max(1));
    cmd.arg(micros(LIFE)).arg(micros(PROMISE)).arg(micros(call.lag));
    cmd.arg(call.lost.map_or(0, Timestamp::as_micros));
    for window in Window::all(call.calendar, call.at) {
        cmd.arg(window.start.as_secs());
        cmd.arg(if window.end == Window::NEVER { 0 } else { window.end.as_secs() });
    }
    for (_, ask) in &call.asks {
        pool(cmd, ask);
    }
}

fn pool(cmd: &mut Cmd, ask: &LeaseRequest) {
    cmd.arg(ask.seq).arg(ask.epoch).arg(ask.waiting).arg(ask.need).arg(ask.ahead).arg(u8::from(ask.leaves));
    for said in &ask.windows {
        cmd.arg(said.since).arg(said.spent).arg(said.told).arg(said.heard).arg(said.held);
    }
    cmd.arg(ask.returned.0).arg(ask.returned.1).arg(ask.untold.len());
    for untold in &ask.untold {
        cmd.arg(untold.at_us).arg(untold.units);
    }
    match &ask.ledger {
        None => cmd.arg(0),
        Some(used) => cmd.arg(1).arg(used),
    };
    match &ask.holds {
        None => cmd.arg(0),
        Some(holds) => cmd.arg(1).arg(ask.least).arg(holds),
    };
    cmd.arg(ask.places.map_or(-1, |p| i64::try_from(p).unwrap_or(i64::MAX)));
    cmd.arg(ask.ahead_places).arg(ask.max_places);
    cmd.arg(counted(&ask.limits).count());
    for limit in counted(&ask.limits) {
        match limit.rule {
            LimitRule::Bucket { rate, burst } => {
                let slot = u8::from(!matches!(limit.name, LimitName::Rate { .. }));
                cmd.arg("b").arg(slot).arg(rate).arg(burst);
            }
            LimitRule::Window { per, max } => {
                // Lua counts from one.
                cmd.arg("w").arg(per.window_index().map_or(1, |n| n + 1)).arg(max);
            }
            LimitRule::InFlight { .. } => {}
        }
    }
}

fn counted(limits: &[Limit]) -> impl Iterator<Item = &Limit> {
    limits.iter().filter(|l| !matches!(l.rule, LimitRule::InFlight { .. }))
}

/// Decodes an answer; none if it is not one of the script.
pub(in crate::counter) fn read(value: &Value, call: &ScriptCall<'_>) -> Option<ScriptReply> {
    let Value::Array(values) = value else { return None };
    let (head, told) = values.split_at_checked(2)?;
    let (Value::Int(what), Value::Int(now_us)) = (&head[0], &head[1]) else { return None };
    if *what == 3 {
        return Some(ScriptReply::OtherWindows(Timestamp::from_micros(*now_us)));
    }
    if *what != 0 || told.len() != call.asks.len() {
        return None;
    }
    let windows = Window::all(call.calendar, Timestamp::from_micros(*now_us));
    let told: Option<Vec<ScriptTotals>> =
        call.asks.iter().zip(told).map(|((_, ask), told)| one(told, ask, *now_us, &windows)).collect();
    told.map(|told| ScriptReply::Totals(*now_us, told))
}

fn one(
    value: &Value,
    ask: &LeaseRequest,
    now_us: i64,
    windows: &[Window; WINDOWS.len()],
) -> Option<ScriptTotals> {
    let Value::Array(values) = value else { return None };
    let numbers: Option<Vec<i64>> =
        values.iter().map(|v| if let Value::Int(n) = v { Some(*n) } else { None }).collect();
    let numbers = numbers?;
    let (head, mut rest) = numbers.split_at_checked(HEAD)?;
    match head[0] {
        0 | 1 | 4 => {}
        2 => return Some(ScriptTotals::Unknown),
        5 => return Some(ScriptTotals::Old),
        6 => return Some(ScriptTotals::Broken("there is something else at its name")),
        7 => {
            return Some(ScriptTotals::Broken(
                "it was written by another version of Keygate, in a layout that this one does not know",
            ));
        }
        _ => return None,
    }
    let unsigned = |n: i64| u64::try_from(n).ok();
    let now = Timestamp::from_micros(now_us);
    let (mut promises, mut used) = ([0; WINDOWS.len()], [0; WINDOWS.len()]);
    for n in 0..WINDOWS.len() {
        promises[n] = unsigned(head[7 + n])?;
        used[n] = unsigned(head[7 + WINDOWS.len() + n])?;
    }
    let mut on_hold = [0; WINDOWS.len()];
    if ask.holds.is_some() {
        let (holds, after) = rest.split_at_checked(WINDOWS.len())?;
        rest = after;
        for (on_hold, holds) in on_hold.iter_mut().zip(holds) {
            *on_hold = unsigned(*holds)?;
        }
    }
    let places_left = unsigned(head[6])?;
    let mut left = LimitsLeft::new();
    for limit in ask.limits.iter() {
        let remaining = match limit.rule {
            LimitRule::Bucket { .. } => {
                let (bucket, after) = rest.split_at_checked(2)?;
                rest = after;
                let full_in = Duration::from_micros(unsigned(bucket[1])?);
                Remaining { units: unsigned(bucket[0])?, reset: Some(full_in) }
            }
            LimitRule::Window { per, max } => {
                let n = per.window_index()?;
                let units = max.saturating_sub(used[n]).saturating_sub(on_hold[n]);
                Remaining { units, reset: windows[n].left(now) }
            }
            LimitRule::InFlight { .. } => Remaining { units: places_left, reset: None },
        };
        left.push((*limit, remaining));
    }
    let refused = if head[0] == 1 { Some(reason(head[3], head[4], &ask.limits)?) } else { None };
    let (units, places) = (unsigned(head[2])?, unsigned(head[5])?);
    let (epoch, is_held_back) = (head[1], head[0] == 4);
    Some(ScriptTotals::Grant(LeaseGrant {
        now_us,
        epoch,
        units,
        is_held_back,
        places,
        promises,
        used,
        on_hold,
        refused,
        left,
    }))
}

/// The limit with this index, counted without those in flight; 0 is the one in flight.
fn reason(index: i64, wait: i64, limits: &[Limit]) -> Option<(Limit, RetryAfter)> {
    let limit = match usize::try_from(index).ok()?.checked_sub(1) {
        None => limits.iter().find(|l| matches!(l.rule, LimitRule::InFlight { .. }))?,
        Some(n) => counted(limits).nth(n)?,
    };
    let retry = match wait {
        -2 => RetryAfter::Release,
        -1 => RetryAfter::Never,
        us => RetryAfter::Wait(Duration::from_micros(u64::try_from(us).ok()?)),
    };
    Some((*limit, retry))
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
