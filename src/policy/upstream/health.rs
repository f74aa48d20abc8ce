//! Whether a server may get requests: the results of probes and of requests.
//!
//! Must not know: connections, how probes are sent, what time it is (it is an argument, in steady nanoseconds).
//!
//! Two independent criteria, both required: the verdict of active probes, with thresholds in both directions; and passive
//! *ejection* for a time after failures in a row, each time for longer (outlier detection in Envoy).
//!
//! *Invariant:* at most the configured share of a group is ejected.
//! *Invariant:* every ejection ends by itself.

use std::time::Duration;

/// How many probes in a row change the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRule {
    /// Successful probes until a server that was down is up.
    pub up_after: u32,
    /// Failed probes until a server that was up is down.
    pub down_after: u32,
}

/// The state of active probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeState {
    verdict: ProbeVerdict,
    /// Probes in a row that contradict the verdict.
    against: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProbeVerdict {
    /// Not probed yet: it may get requests, and the first probe decides alone.
    Unknown,
    Up,
    Down,
}

/// When a server is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectRule {
    /// Failures in a row; 0: never.
    pub after: u32,
    /// The first ejection. Each further one lasts twice as long.
    pub first: Duration,
    /// The longest ejection.
    pub longest: Duration,
    /// Most servers of a group that are ejected at once, in percent.
    pub share_percent: u32,
}

/// The state of passive ejection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EjectionState {
    /// Failures in a row.
    failures: u32,
    /// Number of ejections, less those that were forgiven.
    times: u32,
    /// When the ejection ends; none if it is not ejected.
    until_ns: Option<u64>,
    /// When the last ejection ended.
    back_ns: u64,
}

// === impl ProbeState ===

impl Default for ProbeState {
    fn default() -> Self {
        Self { verdict: ProbeVerdict::Unknown, against: 0 }
    }
}

impl ProbeState {
    /// Whether the server may get requests.
    pub const fn is_up(self) -> bool {
        !matches!(self.verdict, ProbeVerdict::Down)
    }

    /// The state after one more probe.
    #[must_use]
    pub const fn after(self, good: bool, rule: ProbeRule) -> Self {
        let (next, needed) = match (self.verdict, good) {
            (ProbeVerdict::Unknown | ProbeVerdict::Up, true) => (ProbeVerdict::Up, 0),
            (ProbeVerdict::Unknown | ProbeVerdict::Down, false) => (ProbeVerdict::Down, 0),
            (ProbeVerdict::Up, false) => (ProbeVerdict::Down, rule.down_after),
            (ProbeVerdict::Down, true) => (ProbeVerdict::Up, rule.up_after),
        };
        let against = self.against + 1;
        if needed == 0 || against >= needed {
            return Self { verdict: next, against: 0 };
        }
        Self { verdict: self.verdict, against }
    }
}

// === impl EjectionState ===

impl EjectionState {
    /// Whether the server is ejected.
    pub const fn is_out(self) -> bool {
        self.until_ns.is_some()
    }

    /// When the ejection ends, if it is ejected.
    pub const fn until_ns(self) -> Option<u64> {
        self.until_ns
    }

    /// Whether there are failures that a success would reset.
    pub const fn has_failures(self) -> bool {
        self.failures > 0
    }

    /// Failures in a row.
    #[cfg(test)]
    pub const fn failures(self) -> u32 {
        self.failures
    }

    /// A request was answered.
    pub const fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// A request failed, while `out` of the group's `all` servers are ejected. Returns the duration if this ejects the
    /// server.
    pub fn failed(&mut self, now_ns: u64, rule: EjectRule, out: usize, all: usize) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        let too_many = (out as u128 + 1) * 100 > all as u128 * u128::from(rule.share_percent);
        if rule.after == 0 || self.failures < rule.after || self.is_out() || too_many {
            return None;
        }
        // One ejection is forgiven for each `longest` without one.
        let stayed = now_ns.saturating_sub(self.back_ns) / nanos(rule.longest).max(1);
        self.times = self.times.saturating_sub(u32::try_from(stayed).unwrap_or(u32::MAX));
        let doubled = rule.first.saturating_mul(1_u32.checked_shl(self.times).unwrap_or(u32::MAX));
        let lasts = doubled.min(rule.longest);
        self.times = self.times.saturating_add(1);
        self.until_ns = Some(now_ns.saturating_add(nanos(lasts)));
        Some(lasts)
    }

    /// Readmits the server when its ejection is over. On probation: one more failure ejects it again.
    pub fn readmit(&mut self, now_ns: u64, rule: EjectRule) -> bool {
        if self.until_ns.is_none_or(|until| now_ns < until) {
            return false;
        }
        self.until_ns = None;
        self.back_ns = now_ns;
        self.failures = rule.after.saturating_sub(1);
        true
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;
    const PROBES: ProbeRule = ProbeRule { up_after: 2, down_after: 3 };

    fn rule(after: u32, share_percent: u32) -> EjectRule {
        let (first, longest) = (Duration::from_secs(10), Duration::from_secs(60));
        EjectRule { after, first, longest, share_percent }
    }

    #[test]
    fn the_first_probe_decides_alone() {
        assert!(ProbeState::default().is_up(), "a server is trusted until something is known");
        assert!(!ProbeState::default().after(false, PROBES).is_up());
        let mut probed = ProbeState::default().after(true, PROBES);
        for (good, up) in
            [(false, true), (false, true), (true, true), (false, true), (false, true), (false, false)]
        {
            probed = probed.after(good, PROBES);
            assert_eq!(probed.is_up(), up);
        }
        for (good, up) in [(true, false), (false, false), (true, false), (true, true)] {
            probed = probed.after(good, PROBES);
            assert_eq!(probed.is_up(), up);
        }
    }

    #[test]
    fn failures_in_a_row_eject_for_ever_longer_times() {
        let (mut server, rule) = (EjectionState::default(), rule(3, 50));
        let mut now = 5 * SECOND;
        assert_eq!(server.failed(now, rule, 0, 2), None);
        server.succeeded();
        assert_eq!(server.failed(now, rule, 0, 2), None);
        assert_eq!(server.failed(now, rule, 0, 2), None);
        for secs in [10, 20, 40, 60, 60] {
            assert_eq!(server.failed(now, rule, 0, 2), Some(Duration::from_secs(secs)));
            assert_eq!(server.failed(now, rule, 0, 2), None, "it is out already");
            assert!(!server.readmit(now + secs * SECOND - 1, rule));
            now += secs * SECOND;
            assert!(server.readmit(now, rule) && !server.is_out());
        }
        // Two minutes without failures forgive two of the five ejections.
        server.succeeded();
        now += 120 * SECOND;
        let again: Vec<_> = (0..3).map(|_| server.failed(now, rule, 0, 2)).collect();
        assert_eq!(again, [None, None, Some(Duration::from_secs(60))]);
        assert_eq!(server.times, 4);
    }

    #[test]
    fn the_last_server_and_more_than_the_share_stay_in() {
        for (out, all, percent, ejects) in [
            (0, 1, 50, false),
            (0, 2, 50, true),
            (1, 2, 50, false),
            (1, 4, 50, true),
            (0, 3, 0, false),
            (0, 1, 100, true),
        ] {
            let mut server = EjectionState::default();
            assert_eq!(server.failed(SECOND, rule(1, percent), out, all).is_some(), ejects, "{out} of {all}");
        }
        assert_eq!(EjectionState::default().failed(SECOND, rule(0, 100), 0, 9), None, "0 never ejects");
    }

    proptest! {
        #[test]
        fn a_group_never_loses_more_than_its_share_and_everybody_comes_back(
            events in prop::collection::vec((0_usize..8, any::<bool>(), 0_u64..20), 1..300),
            percent in 0_u32..=100,
            after in 1_u32..5,
        ) {
            let rule = rule(after, percent);
            let mut group = [EjectionState::default(); 8];
            let mut now = SECOND;
            for (n, good, secs) in events {
                now += secs * SECOND;
                for server in &mut group {
                    server.readmit(now, rule);
                }
                let out = group.iter().filter(|s| s.is_out()).count();
                if good {
                    group[n].succeeded();
                } else if let Some(lasts) = group[n].failed(now, rule, out, group.len()) {
                    prop_assert!(lasts >= rule.first && lasts <= rule.longest);
                }
                let out = group.iter().filter(|s| s.is_out()).count();
                prop_assert!(out * 100 <= group.len() * percent as usize);
            }
            now += nanos(rule.longest);
            prop_assert!(group.iter_mut().all(|s| s.readmit(now, rule) || !s.is_out()));
        }
    }
}
