//! When a certificate is renewed, and the delay after a failed order.
//!
//! Must not know: who issues certificates, or how. Randomness is an argument.

use crate::clock::Timestamp;
use std::time::Duration;

/// Longest delay after failures.
pub const WAIT_MAX: Duration = Duration::from_hours(6);

/// The validity period of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Start.
    pub from: Timestamp,
    /// End.
    pub until: Timestamp,
}

impl Validity {
    /// When to renew: after two thirds of the lifetime, plus a random delay of up to a thirtieth, so that certificates
    /// issued together are not renewed together.
    pub fn renew_at(self, random: u16) -> Timestamp {
        let life = self.until.since(self.from);
        self.from.plus(life / 3 * 2).plus(part(life / 30, random))
    }

    /// Whether less than a tenth of the lifetime is left, so that a person should look.
    pub fn is_ending(self, now: Timestamp) -> bool {
        self.until.since(now) < self.until.since(self.from) / 10
    }
}

/// The delay after so many failures in a row: `first`, doubled each time, plus up to a quarter.
pub fn wait_after(failures: u32, first: Duration, random: u16) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(WAIT_MAX);
    doubled + part(doubled / 4, random)
}

fn part(of: Duration, random: u16) -> Duration {
    of / u32::from(u16::MAX) * u32::from(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_are_over() {
        let validity = Validity { from: Timestamp::from_secs(0), until: Timestamp::from_secs(90 * DAY) };
        assert_eq!(validity.renew_at(0), Timestamp::from_secs(60 * DAY));
        let latest = validity.renew_at(u16::MAX).as_secs();
        assert!((63 * DAY - 60..=63 * DAY).contains(&latest), "{latest}");
        assert!(!validity.is_ending(Timestamp::from_secs(80 * DAY)));
        assert!(validity.is_ending(Timestamp::from_secs(82 * DAY)));
        assert!(validity.is_ending(Timestamp::from_secs(100 * DAY)), "and when it is over");
        let never = Validity { from: Timestamp::from_secs(5), until: Timestamp::from_secs(5) };
        assert_eq!(never.renew_at(u16::MAX), Timestamp::from_secs(5));
    }

    #[test]
    fn each_wait_is_twice_the_one_before_up_to_a_bound() {
        let minute = Duration::from_mins(1);
        let waits: Vec<u64> = (1..=5).map(|n| wait_after(n, minute, 0).as_secs()).collect();
        assert_eq!(waits, [60, 120, 240, 480, 960]);
        assert_eq!(wait_after(1_000, minute, 0), WAIT_MAX);
        assert!((WAIT_MAX * 5 / 4 - wait_after(u32::MAX, minute, u16::MAX)) < minute);
    }
}
