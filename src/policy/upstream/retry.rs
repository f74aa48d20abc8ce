//! Whether a failed request may be retried, and the retry budget.
//!
//! Must not know: connections. A request that is not retried fails with its original error.
//!
//! *Invariant:* a request that a server may have begun to process is retried only if its method is idempotent (RFC 9110,
//! 9.2.2).
//! *Invariant:* nothing is retried after a part of a response has arrived.

/// How an attempt ended without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptFailure {
    /// No connection was made; the server has seen nothing.
    NotConnected,
    /// The server said that it did not process the request (HTTP/2: `REFUSED_STREAM`, `GOAWAY` below it, HTTP/1.1
    /// required).
    NotProcessed,
    /// The connection broke: it is unknown how far the server got.
    Unknown,
    /// The server timed out or sent an invalid response. A retry would only add load.
    Misbehaved,
}

/// The properties of a request that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryRequest {
    /// Whether its method is idempotent.
    pub idempotent: bool,
    /// Whether all of the body that was sent is still buffered.
    pub replayable: bool,
    /// Whether a part of a response has arrived.
    pub answered: bool,
}

/// The budget for retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudgetRule {
    /// Per hundred requests.
    pub percent: u32,
    /// Plus so many per second.
    pub per_second: u32,
}

/// What is left of the budget. In any period of `t` seconds with `n` requests at most `n` · percent / 100 + `t` · per
/// second + [`SAVED_MAX`] + per second requests are retried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryBudget {
    /// Thousandths of a retry, earned by requests.
    by_share: u64,
    /// Thousandths of a retry, earned by time.
    by_time: u64,
    /// Requests that have been counted so far.
    requests: u64,
    at_ns: u64,
}

/// Most retries that requests save up.
pub const SAVED_MAX: u64 = 100;

impl AttemptFailure {
    /// Whether the request may be retried after this failure.
    pub const fn may_repeat(self, request: RetryRequest) -> bool {
        let safe = match self {
            Self::NotConnected | Self::NotProcessed => true,
            Self::Unknown => request.idempotent,
            Self::Misbehaved => false,
        };
        safe && request.replayable && !request.answered
    }
}

impl RetryBudget {
    /// Takes one retry from the budget, if there is one. `requests` have arrived in total, and it is `now_ns`.
    pub fn take(&mut self, requests: u64, now_ns: u64, rule: RetryBudgetRule) -> bool {
        let earned = requests.saturating_sub(self.requests).saturating_mul(u64::from(rule.percent) * 10);
        self.by_share = self.by_share.saturating_add(earned).min(SAVED_MAX * 1_000);
        // A nanosecond earns less than a thousandth: whole microseconds are counted, the rest waits.
        let us = now_ns.saturating_sub(self.at_ns) / 1_000;
        let rate = u64::from(rule.per_second);
        let (gained, used_us) = match (us.saturating_mul(rate) / 1_000, rate) {
            (0, _) | (_, 0) => (0, 0),
            (gained, _) => (gained, gained.saturating_mul(1_000).div_ceil(rate)),
        };
        self.by_time = self.by_time.saturating_add(gained).min(rate * 1_000);
        self.requests = self.requests.max(requests);
        self.at_ns = self.at_ns.saturating_add(used_us.saturating_mul(1_000));
        for purse in [&mut self.by_share, &mut self.by_time] {
            if *purse >= 1_000 {
                *purse -= 1_000;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;
    const WHOLE: RetryRequest = RetryRequest { idempotent: true, replayable: true, answered: false };

    #[test]
    fn a_failed_attempt_is_repeated_only_if_safe_for_the_method() {
        use AttemptFailure::{Misbehaved, NotConnected, NotProcessed, Unknown};
        let post = RetryRequest { idempotent: false, ..WHOLE };
        for (broken, get_again, post_again) in [
            (NotConnected, true, true),
            (NotProcessed, true, true),
            (Unknown, true, false),
            (Misbehaved, false, false),
        ] {
            assert_eq!(broken.may_repeat(WHOLE), get_again, "{broken:?}");
            assert_eq!(broken.may_repeat(post), post_again, "{broken:?}");
            for never in
                [RetryRequest { replayable: false, ..WHOLE }, RetryRequest { answered: true, ..WHOLE }]
            {
                assert!(!broken.may_repeat(never), "{broken:?}");
            }
        }
    }

    #[test]
    fn a_budget_is_a_share_of_the_requests_and_some_per_second() {
        let rule = RetryBudgetRule { percent: 20, per_second: 2 };
        let mut budget = RetryBudget::default();
        let mut now = 5 * SECOND;
        let taken = |budget: &mut RetryBudget, requests, now| {
            (0..).take_while(|_| budget.take(requests, now, rule)).count()
        };
        assert_eq!(taken(&mut budget, 10, now), 4, "two of ten, and two for the second");
        assert_eq!(taken(&mut budget, 14, now), 0, "four fifths of one");
        assert_eq!(taken(&mut budget, 15, now), 1);
        now += SECOND / 2;
        assert_eq!(taken(&mut budget, 15, now), 1);
        now += 3_600 * SECOND;
        assert_eq!(taken(&mut budget, 1_000_000, now), 102, "what is saved up has a bound");
        let none = RetryBudgetRule { percent: 0, per_second: 0 };
        assert!(!RetryBudget::default().take(1_000, now, none));
    }

    proptest! {
        #[test]
        fn a_budget_is_never_passed_and_used_up(
            steps in prop::collection::vec((0_u64..50, 0_u64..200_000_000, 0_u32..30), 1..200),
            percent in 0_u32..=100,
            per_second in 0_u32..20,
        ) {
            let rule = RetryBudgetRule { percent, per_second };
            let mut budget = RetryBudget::default();
            let (mut requests, mut now, mut repeated) = (0, 0, 0_u64);
            for (more, ns, wanted) in steps {
                requests += more;
                now += ns;
                repeated += (0..wanted).map(|_| u64::from(budget.take(requests, now, rule))).sum::<u64>();
                let earned = requests * u64::from(percent) * SECOND + now * u64::from(per_second) * 100;
                let most = earned / (100 * SECOND) + SAVED_MAX + u64::from(per_second) + 1;
                prop_assert!(repeated <= most, "{repeated} of {most}");
            }
            // The budget is refilled with time.
            let (later, wait) = (requests + 100, now + SECOND);
            let got = (0..1_000).filter(|_| budget.take(later, wait, rule)).count() as u64;
            prop_assert!(got >= (u64::from(percent) + u64::from(per_second)).saturating_sub(2).min(SAVED_MAX));
        }
    }
}
