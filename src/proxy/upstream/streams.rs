//! Chooses the HTTP/2 connections to a server, so that one key's cancelled requests do not break those of others.
//!
//! A cancelled request is a `RST_STREAM`. A backend that gets many of them assumes an attack and closes the connection,
//! with every stream on it. And h2 itself closes one on which too many frames arrive for streams that no longer exist. So:
//! - shared connections get no further stream after [`CANCELS_MAX`] cancelled ones, and close when they are idle;
//! - at most [`SHARED_STREAMS`] requests of one key are in flight on them; further ones use connections of their own;
//! - a key that cancels more than [`SHARED_CANCELS`] uses its own connections until it has not done so for [`APART_FOR`].
//!
//! Must not know: how connections are made. They are distinguished by [`UpstreamStream::group`], which is part of the key
//! of Pingora's pool.

use super::{Server, Upstream};
use crate::policy::upstream::balance::hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Cancelled requests after which a connection gets no further one. With its remaining streams it then stays below the
/// limits of servers: 1 000 in nghttp2, 500 in Envoy, 200 in 30 s in Netty, 128 in a second in Jetty.
const CANCELS_MAX: u32 = 16;
/// Most requests of one key in flight on shared connections.
const SHARED_STREAMS: u32 = 8;
/// Most requests that one key may cancel there.
const SHARED_CANCELS: u32 = 4;
/// How long a key that has cancelled more uses its own connections.
const APART_FOR: Duration = Duration::from_mins(1);
/// How long connections of a single key are kept for its next request.
pub(super) const APART_IDLE: Duration = Duration::from_secs(10);
/// Number of slots for counting keys. Keys in the same slot are counted together, which separates them a little earlier.
const SLOTS: usize = 1_024;

/// Requests in flight and cancelled requests of keys, at an upstream over HTTP/2.
pub(super) struct StreamSlots(Box<[StreamSlot]>);

#[derive(Default)]
struct StreamSlot {
    in_flight: AtomicU32,
    /// Cancelled since `since_ns`.
    cancelled: AtomicU32,
    since_ns: AtomicU64,
    /// Until when it uses its own connections.
    apart_until_ns: AtomicU64,
    /// Its own connections.
    own: Generation,
}

/// Connections of one kind: after [`CANCELS_MAX`] cancelled requests they are replaced by others.
#[derive(Default)]
pub(super) struct Generation {
    number: AtomicU64,
    cancelled: AtomicU32,
}

/// One request over HTTP/2. If it is dropped before [`UpstreamStream::finish`], it was cancelled.
pub struct UpstreamStream {
    upstream: Arc<Upstream>,
    server: Arc<Server>,
    slot: usize,
    /// Whether it uses its key's own connections.
    is_apart: bool,
    /// The connections it may use.
    group: u64,
    is_over: bool,
}

// === impl StreamSlots ===

impl StreamSlots {
    pub(super) fn new() -> Self {
        Self((0..SLOTS).map(|_| StreamSlot::default()).collect())
    }
}

impl StreamSlot {
    /// Counts a request. Returns whether it uses its key's own connections.
    fn begin(&self, now_ns: u64) -> bool {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        before >= SHARED_STREAMS || now_ns < self.apart_until_ns.load(Ordering::Relaxed)
    }

    fn cancelled(&self, now_ns: u64) {
        let apart_ns = u64::try_from(APART_FOR.as_nanos()).unwrap_or(u64::MAX);
        if now_ns.saturating_sub(self.since_ns.load(Ordering::Relaxed)) >= apart_ns {
            self.since_ns.store(now_ns, Ordering::Relaxed);
            self.cancelled.store(0, Ordering::Relaxed);
        }
        if self.cancelled.fetch_add(1, Ordering::Relaxed) >= SHARED_CANCELS {
            self.apart_until_ns.store(now_ns.saturating_add(apart_ns), Ordering::Relaxed);
            // The next one counts from here, so that the key stays separate while it goes on.
            self.since_ns.store(now_ns, Ordering::Relaxed);
        }
    }
}

impl Generation {
    fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    fn cancelled(&self) {
        if self.cancelled.fetch_add(1, Ordering::Relaxed) + 1 >= CANCELS_MAX {
            self.cancelled.store(0, Ordering::Relaxed);
            self.number.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// === impl UpstreamStream ===

impl Upstream {
    /// A request of `key` (its hash) at `server`, if HTTP/2 may be used.
    pub fn stream(self: &Arc<Self>, server: &Arc<Server>, key: u64) -> Option<UpstreamStream> {
        let streams = self.streams.as_ref()?;
        let slot = usize::try_from(key).unwrap_or(usize::MAX) % SLOTS;
        let counted = &streams.0[slot];
        let is_apart = counted.begin(self.now().steady_ns);
        let (key, generation) =
            if is_apart { (key, counted.own.number()) } else { (0, server.shared.number()) };
        let dialect = self.settings.protocol.group();
        let of = [dialect, hash(self.settings.name.as_bytes()), key, generation].map(u64::to_le_bytes);
        let group = hash(of.as_flattened());
        let (upstream, server) = (Arc::clone(self), Arc::clone(server));
        Some(UpstreamStream { upstream, server, slot, is_apart, group, is_over: false })
    }
}

impl UpstreamStream {
    /// Identifies the connections that it may use.
    pub(super) const fn group(&self) -> u64 {
        self.group
    }

    /// Whether they are not shared with other keys.
    pub(super) const fn is_apart(&self) -> bool {
        self.is_apart
    }

    /// It has ended at the backend: answered completely, refused, or never sent.
    pub const fn finish(&mut self) {
        self.is_over = true;
    }
}

impl Drop for UpstreamStream {
    fn drop(&mut self) {
        let Some(slot) = self.upstream.streams.as_ref().map(|streams| &streams.0[self.slot]) else { return };
        slot.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.is_over {
            return;
        }
        let generation = if self.is_apart { &slot.own } else { &self.server.shared };
        generation.cancelled();
        slot.cancelled(self.upstream.now().steady_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_key_that_cancels_goes_apart_and_comes_back_when_it_has_stopped() {
        let (slot, mut now) = (StreamSlot::default(), 100 * SECOND);
        let is_apart = |slot: &StreamSlot, now| {
            let is_apart = slot.begin(now);
            slot.in_flight.fetch_sub(1, Ordering::Relaxed);
            is_apart
        };
        for _ in 0..SHARED_CANCELS {
            assert!(!is_apart(&slot, now));
            slot.cancelled(now);
        }
        assert!(!is_apart(&slot, now), "a few are nothing");
        slot.cancelled(now);
        assert!(is_apart(&slot, now));
        now += 59 * SECOND;
        slot.cancelled(now);
        now += 59 * SECOND;
        assert!(is_apart(&slot, now), "it goes on");
        now += SECOND;
        assert!(!is_apart(&slot, now));
        // Occasional ones never add up.
        for _ in 0..100 {
            slot.cancelled(now);
            now += 30 * SECOND;
            assert!(!is_apart(&slot, now));
        }
    }

    #[test]
    fn streams_of_a_key_beyond_its_share_get_a_connection_of_their_own() {
        let slot = StreamSlot::default();
        let apart = (0..20).filter(|_| slot.begin(SECOND)).count();
        assert_eq!(apart, 20 - SHARED_STREAMS as usize);
    }

    #[test]
    fn connections_that_have_cancelled_much_are_not_used_again() {
        let generation = Generation::default();
        for n in 0..100_u64 {
            assert_eq!(generation.number(), n / u64::from(CANCELS_MAX));
            generation.cancelled();
        }
    }
}
