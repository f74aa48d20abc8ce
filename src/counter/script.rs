//! One question to Redis and its answer, as `lease.lua` wants and gives them.
//!
//! Must not know: connections. An answer that is not what the script gives is an error, never a guess.

use super::Left;
use super::lease::{Ask, Grant, LIFE};
use crate::clock::Timestamp;
use crate::policy::id::{KeyId, WorkspaceId};
use crate::policy::key::Per;
use crate::policy::limit::{Limit, LimitName, Remaining, RetryAfter, Rule, window_end};
use crate::store::SpentRow;
use redis::{Cmd, Script, Value};
use smallvec::SmallVec;
use std::sync::LazyLock;
use std::time::Duration;

/// The script. Its name is made from its text, so that another version of it is another script; what both count is the
/// same, or neither touches what the other wrote (`LAYOUT`).
pub(super) static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(SOURCE));
pub(super) const SOURCE: &str = include_str!("lease.lua");

/// Whom a question is about.
#[derive(Clone, Debug)]
pub(super) struct Subjects<'r> {
    pub(super) key: KeyId,
    /// The workspace, and whether limits are counted on it.
    pub(super) workspace: (&'r WorkspaceId, bool),
    /// How many of the question's limits are the key's; the rest are the workspace's.
    pub(super) key_limits: usize,
    pub(super) node: &'r str,
    pub(super) nodes: u64,
    /// What the process of Redis is called; empty: the script finds out.
    pub(super) server: &'r str,
    /// How far the ledger may be behind.
    pub(super) lag: Duration,
    /// What this node was last told of the key and of the workspace.
    pub(super) heard: [Option<Heard>; 2],
}

/// What Redis once told of one subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    /// In which of its epochs, a number that has meaning only there.
    pub(super) epoch: i64,
    /// When, by its clock.
    pub(super) at: Timestamp,
    /// Units debited in minute, hour, day, month and ever.
    pub(super) used: [u64; 5],
}

/// What the ledger knows of the key and, if it is counted, of the workspace.
#[derive(Clone, Debug)]
pub(super) struct Ledgered {
    pub(super) at: Timestamp,
    pub(super) rows: Vec<SpentRow>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every answer is a grant; a box would cost each of them a detour"
)]
pub(super) enum Answer {
    /// Granted or refused; with what is debited of the key and of the workspace.
    Grant(Grant, SmallVec<[Heard; 2]>),
    /// Redis does not know the key or the workspace, at this instant of its clock; nothing was done.
    Unknown {
        at: Timestamp,
        /// Whether it is the key.
        key: bool,
    },
}

/// How many numbers come before those of the subjects.
const HEAD: usize = 7;

/// The command, by the script's name or with the script itself.
pub(super) fn command(subjects: &Subjects<'_>, ask: &Ask, ledger: Option<&Ledgered>, by_name: bool) -> Cmd {
    let mut cmd = redis::cmd(if by_name { "EVALSHA" } else { "EVAL" });
    cmd.arg(if by_name { SCRIPT.get_hash() } else { SOURCE });
    arguments(&mut cmd, subjects, ask, ledger);
    cmd
}

fn arguments(cmd: &mut Cmd, subjects: &Subjects<'_>, ask: &Ask, ledger: Option<&Ledgered>) {
    let (workspace, counted) = subjects.workspace;
    cmd.arg(if counted { 2 } else { 1 }).arg(format!("kg:{{{workspace}}}:k:{}", subjects.key));
    if counted {
        cmd.arg(format!("kg:{{{workspace}}}:w"));
    }
    cmd.arg(subjects.node).arg(subjects.server);
    cmd.arg(micros(LIFE)).arg(micros(subjects.lag)).arg(subjects.nodes.max(1));
    cmd.arg(ask.need).arg(ask.have).arg(ask.ahead);
    cmd.arg(ask.places.map_or(-1, |p| i64::try_from(p).unwrap_or(i64::MAX)));
    cmd.arg(ask.ahead_places).arg(ask.max_places).arg(ask.others_owe).arg(ask.adjustments.len());
    for adjustment in &ask.adjustments {
        cmd.arg(adjustment.at_us).arg(adjustment.units);
    }
    let (key, workspace) = ask.limits.split_at(subjects.key_limits.min(ask.limits.len()));
    let [of_key, of_workspace] = subjects.heard;
    subject(cmd, key, ledger.and_then(|l| Some((l.at, l.rows.first()?))), of_key);
    if counted {
        subject(cmd, workspace, ledger.and_then(|l| Some((l.at, l.rows.get(1)?))), of_workspace);
    }
}

/// The command with another script, which tests tell the time.
#[cfg(test)]
pub(super) fn command_with(
    source: &str,
    subjects: &Subjects<'_>,
    ask: &Ask,
    ledger: Option<&Ledgered>,
) -> Cmd {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(source);
    arguments(&mut cmd, subjects, ask, ledger);
    cmd
}

fn subject(cmd: &mut Cmd, limits: &[Limit], ledger: Option<(Timestamp, &SpentRow)>, heard: Option<Heard>) {
    match ledger {
        None => {
            cmd.arg(0);
        }
        Some((at, row)) => {
            cmd.arg(1).arg(at.as_micros());
            cmd.arg(row.minute).arg(row.hour).arg(row.day).arg(row.month).arg(row.total);
        }
    }
    match heard {
        None => {
            cmd.arg(0);
        }
        Some(heard) => {
            cmd.arg(1).arg(heard.epoch).arg(heard.at.as_micros()).arg(&heard.used);
        }
    }
    cmd.arg(limits.iter().filter(|l| !matches!(l.rule, Rule::InFlight { .. })).count());
    for limit in limits {
        match limit.rule {
            Rule::Bucket { rate, burst } => {
                let slot = u8::from(!matches!(limit.name, LimitName::Rate { .. }));
                cmd.arg("b").arg(slot).arg(rate).arg(burst);
            }
            Rule::Window { per, max } => {
                cmd.arg("w").arg(window_number(per)).arg(max);
            }
            Rule::InFlight { .. } => {}
        }
    }
}

/// Reads an answer; none when it is not one of the script's.
pub(super) fn read(value: &Value, ask: &Ask, subjects: &Subjects<'_>) -> Option<Answer> {
    let Value::Array(values) = value else { return None };
    let numbers: Option<Vec<i64>> =
        values.iter().map(|v| if let Value::Int(n) = v { Some(*n) } else { None }).collect();
    let numbers = numbers?;
    if numbers.first() == Some(&2) {
        let key = numbers.get(1) == Some(&1);
        return numbers.get(2).map(|us| Answer::Unknown { at: Timestamp::from_micros(*us), key });
    }
    let (head, mut rest) = numbers.split_at_checked(HEAD)?;
    let unsigned = |n: i64| u64::try_from(n).ok();
    let now_us = head[1];
    let now = Timestamp::from_micros(now_us);
    let places_left = unsigned(head[4])?;
    let mut left = Left::new();
    let mut told = SmallVec::new();
    let mut made_us = i64::MIN;
    let (key, workspace) = ask.limits.split_at(subjects.key_limits.min(ask.limits.len()));
    let both = [Some((key, 0)), subjects.workspace.1.then_some((workspace, ask.others_owe))];
    for (limits, owed) in both.into_iter().flatten() {
        let (own, after) = rest.split_at_checked(7)?;
        rest = after;
        made_us = made_us.max(own[0]);
        let windows =
            [unsigned(own[2])?, unsigned(own[3])?, unsigned(own[4])?, unsigned(own[5])?, unsigned(own[6])?];
        for limit in limits {
            let remaining = match limit.rule {
                Rule::Bucket { .. } => {
                    let (bucket, after) = rest.split_at_checked(2)?;
                    rest = after;
                    let full_in = Duration::from_micros(unsigned(bucket[1])?);
                    Remaining { units: unsigned(bucket[0])?, reset: Some(full_in) }
                }
                Rule::Window { per, max } => Remaining {
                    units: max.saturating_sub(*windows.get(window_number(per) - 1)?).saturating_sub(owed),
                    reset: window_end(per, now).map(|end| end.since(now)),
                },
                Rule::InFlight { .. } => Remaining { units: places_left, reset: None },
            };
            left.push((*limit, remaining));
        }
        told.push(Heard { epoch: own[1], at: now, used: windows });
    }
    let refused = if head[0] == 1 { Some(reason(head[5], head[6], &ask.limits)?) } else { None };
    let (units, places) = (unsigned(head[2])?, unsigned(head[3])?);
    Some(Answer::Grant(Grant { now_us, units, places, places_left, refused, left, made_us }, told))
}

/// The limit of that index, counted without those in flight; 0 is the one in flight.
fn reason(index: i64, wait: i64, limits: &[Limit]) -> Option<(Limit, RetryAfter)> {
    let in_flight = |l: &&Limit| matches!(l.rule, Rule::InFlight { .. });
    let limit = match usize::try_from(index).ok()?.checked_sub(1) {
        None => limits.iter().find(in_flight)?,
        Some(n) => limits.iter().filter(|l| !in_flight(l)).nth(n)?,
    };
    let retry = match wait {
        -2 => RetryAfter::Release,
        -1 => RetryAfter::Never,
        us => RetryAfter::Wait(Duration::from_micros(u64::try_from(us).ok()?)),
    };
    Some((*limit, retry))
}

/// As the script numbers them.
const fn window_number(per: Per) -> usize {
    match per {
        Per::Second | Per::Minute => 1,
        Per::Hour => 2,
        Per::Day => 3,
        Per::Month => 4,
        Per::Total => 5,
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
