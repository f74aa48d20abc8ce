//! Time as an argument: what the moment is, on the calendar and on a clock that never steps.
//!
//! Must not know: what anybody does with the time. Only [`SystemClock`] reads the system's clocks.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// An instant on the calendar: microseconds since 1970-01-01T00:00:00Z, leap seconds ignored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// One reading of both clocks: the calendar for windows and records, the steady one for rates and durations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Calendar time; may step when the system's clock is set.
    pub wall: Timestamp,
    /// Nanoseconds since an arbitrary start; never steps, never runs backwards.
    pub steady_ns: u64,
}

/// A source of [`Now`].
pub trait Clock: Send + Sync + 'static {
    /// Reads both clocks.
    fn now(&self) -> Now;

    /// Reads the steady clock.
    fn steady_ns(&self) -> u64 {
        self.now().steady_ns
    }
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

/// A clock that moves only when told to, for tests.
#[derive(Debug)]
pub struct ManualClock {
    wall_us: AtomicI64,
    steady_ns: AtomicU64,
}

// === impl Timestamp ===

impl Timestamp {
    /// The last instant of year 9999, the latest that every store and format can carry.
    pub const MAX: Self = Self(253_402_300_799_999_999);

    /// From microseconds since the epoch.
    pub const fn from_micros(us: i64) -> Self {
        Self(us)
    }

    /// From milliseconds since the epoch, saturating.
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms.saturating_mul(1_000))
    }

    /// From seconds since the epoch, saturating.
    pub const fn from_secs(s: i64) -> Self {
        Self(s.saturating_mul(1_000_000))
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Milliseconds since the epoch, rounded down.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Seconds since the epoch, rounded down.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Time since `earlier`; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        let us = self.0.saturating_sub(earlier.0);
        if us <= 0 { Duration::ZERO } else { Duration::from_micros(us.unsigned_abs()) }
    }

    /// This instant moved by `by`, saturating.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This instant moved back by `by`, saturating.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match chrono::DateTime::from_timestamp_micros(self.0) {
            Some(t) => write!(f, "{}", t.format("%Y-%m-%dT%H:%M:%S%.6fZ")),
            None => write!(f, "{}us", self.0),
        }
    }
}

// === impl SystemClock ===

impl SystemClock {
    /// A clock whose steady time starts one second in, so that "now minus a little" never underflows.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clocks")]
    pub fn new() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clocks")]
    fn now(&self) -> Now {
        let wall = match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => micros(since),
            Err(before) => -micros(before.duration()),
        };
        Now { wall: Timestamp(wall), steady_ns: self.steady_ns() }
    }

    fn steady_ns(&self) -> u64 {
        let steady = self.start.elapsed();
        // 584 years of 64 bits.
        (steady.as_secs() + 1) * 1_000_000_000 + u64::from(steady.subsec_nanos())
    }
}

/// Without the 128 bits of [`Duration::as_micros`]: this is asked several times a request.
fn micros(span: Duration) -> i64 {
    let secs = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    secs.saturating_mul(1_000_000).saturating_add(i64::from(span.subsec_micros()))
}

// === impl ManualClock ===

impl ManualClock {
    /// A clock that stands at `wall`.
    pub fn at(wall: Timestamp) -> Self {
        Self { wall_us: AtomicI64::new(wall.0), steady_ns: AtomicU64::new(1_000_000_000) }
    }

    /// Lets `by` pass on both clocks.
    pub fn advance(&self, by: Duration) {
        self.wall_us.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
        self.steady_ns.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Sets the calendar, as an operator or NTP does; the steady clock does not notice.
    pub fn set_wall(&self, wall: Timestamp) {
        self.wall_us.store(wall.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        Now {
            wall: Timestamp(self.wall_us.load(Ordering::SeqCst)),
            steady_ns: self.steady_ns.load(Ordering::SeqCst),
        }
    }
}
