//! Bounds failed sign-ins by address, and how many of them are written down.

use crate::clock::Timestamp;
use quick_cache::sync::Cache;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

/// Most addresses that are remembered. A dropped one starts anew.
const ADDRESSES_MAX: usize = 10_000;
/// Most failed sign-ins of an address in a minute.
const FAILED_MAX: u32 = 10;

/// Most failed sign-ins of all addresses in a minute that are in the audit log. Whoever fails on purpose must not fill it.
const NOTED_MAX: u32 = 60;

/// Failed sign-ins of the current minute, by address; an IPv6 /64 counts as one.
pub(super) struct Attempts {
    by_address: Cache<IpAddr, (i64, u32)>,
    noted_minute: AtomicI64,
    noted: AtomicU32,
}

impl Attempts {
    pub(super) fn new() -> Self {
        let (noted_minute, noted) = (AtomicI64::new(i64::MIN), AtomicU32::new(0));
        Self { by_address: Cache::new(ADDRESSES_MAX), noted_minute, noted }
    }

    /// Whether one more failed sign-in may be written down now.
    pub(super) fn may_note(&self, now: Timestamp) -> bool {
        let minute = minute_of(now);
        if self.noted_minute.swap(minute, Ordering::Relaxed) != minute {
            self.noted.store(0, Ordering::Relaxed);
        }
        self.noted.fetch_add(1, Ordering::Relaxed) < NOTED_MAX
    }

    /// Whether this address may try again now.
    pub(super) fn may_try(&self, address: Option<IpAddr>, now: Timestamp) -> bool {
        let counted = self.by_address.get(&site(address));
        counted.is_none_or(|(minute, failed)| minute != minute_of(now) || failed < FAILED_MAX)
    }

    /// One more has failed.
    pub(super) fn on_failed(&self, address: Option<IpAddr>, now: Timestamp) {
        let (site, minute) = (site(address), minute_of(now));
        let before = self.by_address.get(&site).filter(|(counted, _)| *counted == minute);
        self.by_address.insert(site, (minute, before.map_or(1, |(_, failed)| failed.saturating_add(1))));
    }
}

fn minute_of(now: Timestamp) -> i64 {
    now.as_secs() / 60
}

fn site(address: Option<IpAddr>) -> IpAddr {
    match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V6(whole)) => {
            let [a, b, c, d, ..] = whole.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        Some(v4) => v4,
        None => IpAddr::from([0; 4]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_address_has_ten_failed_sign_ins_a_minute() {
        let attempts = Attempts::new();
        let now = Timestamp::from_secs(1_767_225_600);
        let address = |text: &str| Some(text.parse::<IpAddr>().expect("an address"));
        for _ in 0..10 {
            assert!(attempts.may_try(address("2001:db8::1"), now));
            attempts.on_failed(address("2001:db8::1"), now);
        }
        assert!(!attempts.may_try(address("2001:db8::2"), now), "the same network");
        assert!(
            attempts.may_try(address("2001:db8:0:1::1"), now) && attempts.may_try(address("192.0.2.1"), now)
        );
        assert!(attempts.may_try(address("2001:db8::1"), now.plus(Duration::from_secs(60))));
    }

    #[test]
    fn failed_sign_ins_cannot_fill_the_audit_log() {
        let attempts = Attempts::new();
        let now = Timestamp::from_secs(1_767_225_600);
        assert_eq!((0..1_000).filter(|_| attempts.may_note(now)).count(), 60);
        assert!(attempts.may_note(now.plus(Duration::from_secs(60))));
    }
}
