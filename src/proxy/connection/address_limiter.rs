//! Wrong secrets, counted by where they come from: whoever presents too many is told to wait. Valid keys from the same
//! address are not affected, for they are found first.
//!
//! Memory does not grow with attempts: addresses share a fixed number of places, and those that share one share its rate.

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Places that addresses share.
const PLACES: usize = 4_096;

/// What has been guessed.
pub struct AddressLimiter {
    /// What too many of are told in the log.
    of: &'static str,
    places: Box<[DefaultDirectRateLimiter]>,
    /// Nobody can choose addresses that share a place with somebody else's.
    hasher: RandomState,
    clock: DefaultClock,
    log_limiter: DefaultDirectRateLimiter,
    unlogged: AtomicU64,
}

impl AddressLimiter {
    /// At most `per_second` of one address, of what the log calls `of`; none: any number.
    pub fn new(per_second: u32, of: &'static str) -> Option<Self> {
        let quota = Quota::per_second(NonZeroU32::new(per_second)?);
        Some(Self {
            of,
            places: (0..PLACES).map(|_| RateLimiter::direct(quota)).collect(),
            hasher: RandomState::new(),
            clock: DefaultClock::default(),
            log_limiter: RateLimiter::direct(Quota::per_second(NonZeroU32::MIN)),
            unlogged: AtomicU64::new(0),
        })
    }

    /// Another one. The error is how long to wait before the next.
    pub fn check(&self, from: IpAddr) -> Result<(), Duration> {
        let network = crate::policy::http::source::network_of(from);
        let place = usize::try_from(self.hasher.hash_one(network)).unwrap_or(usize::MAX) % PLACES;
        let Err(too_early) = self.places[place].check() else { return Ok(()) };
        // One line a second, however many come.
        if self.log_limiter.check().is_ok() {
            let more = self.unlogged.swap(0, Ordering::Relaxed);
            tracing::warn!(address = %from, more, "too many {} from one address", self.of);
        } else {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
        }
        Err(too_early.wait_time_from(self.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_a_rate_of_its_own() {
        let limiter = AddressLimiter::new(5, "guesses").expect("a rate");
        let [one, other] = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().expect("an address"));
        let (admitted, wait) =
            (0..).find_map(|n| limiter.check(one).err().map(|wait| (n, wait))).expect("an end");
        // More than five only where the machine was so slow that there was time for them.
        assert!(admitted >= 5, "{admitted}");
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(200), "{wait:?}");
        assert!(limiter.check(other).is_ok());
        assert!(AddressLimiter::new(0, "guesses").is_none());
    }
}
