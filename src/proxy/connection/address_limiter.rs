//! Limits events per client address, such as requests with an invalid key: an address with too many must wait. Valid
//! keys from the same address are not affected, because keys are looked up first.
//!
//! Memory is constant: addresses are hashed to a fixed number of slots. Addresses in one slot share its rate.

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Number of slots that addresses share.
const PLACES: usize = 4_096;

/// Limits the rate of an event per address.
pub struct AddressLimiter {
    /// Name of the event in the log.
    of: &'static str,
    places: Box<[DefaultDirectRateLimiter]>,
    /// Randomly seeded, so that nobody can choose an address that shares a slot with another.
    hasher: RandomState,
    clock: DefaultClock,
    log_limiter: DefaultDirectRateLimiter,
    unlogged: AtomicU64,
}

impl AddressLimiter {
    /// At most `per_second` events from one address; `of` names them in the log. None if `per_second` is zero: no
    /// limit.
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

    /// Counts an event. The error is how long to wait before the next.
    pub fn check(&self, from: IpAddr) -> Result<(), Duration> {
        let network = crate::policy::http::source::network_of(from);
        let place = usize::try_from(self.hasher.hash_one(network)).unwrap_or(usize::MAX) % PLACES;
        let Err(too_early) = self.places[place].check() else { return Ok(()) };
        // At most one log line per second.
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
        // More than five only if the machine is so slow that further ones are due.
        assert!(admitted >= 5, "{admitted}");
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(200), "{wait:?}");
        assert!(limiter.check(other).is_ok());
        assert!(AddressLimiter::new(0, "guesses").is_none());
    }
}
