//! The table of all client connections: accepts or refuses them, evicts them when it is full, and closes those that
//! miss a deadline.
//!
//! Must not know: HTTP. One task checks all connections every [`TICK`], so that requests need no timers for their
//! deadlines.

use super::deadlines::IDLE_RANK;
use super::{CloseReason, Connection, ConnectionDefaults, Deadlines, TICK, ms};
use crate::keyring::Presented;
use crate::metrics::Metrics;
use crate::policy::http::source::network_of;
use dashmap::DashMap;
use slab::Slab;
use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Number of shards, so that accepting does not wait for a check of the whole table.
const SHARDS: usize = 16;
/// How many connections are picked at once for eviction.
const PICKED: usize = 256;
/// How many the last search must have found for another one within the same tick.
const WORTH_A_LOOK: usize = 16;
/// Limits for all connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections in total.
    pub connections: usize,
    /// Connections per address; 0: no separate limit.
    pub per_address: usize,
    /// Body bytes per second that a client must send on average, once [`Deadlines::head`] has passed; 0: no minimum.
    pub body_rate: u64,
    /// Bytes of bodies in memory, over all connections.
    pub bytes: u64,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRegistered {
    /// The table is full of connections that are being served.
    Full,
    /// The address has too many connections.
    Address,
}

/// Returns why requests with this key can no longer be served, if so.
pub type KeyCheck = Box<dyn Fn(&Presented) -> Option<CloseReason> + Send + Sync>;

/// The table of connections.
pub struct ConnectionTable {
    shared: Arc<ConnectionDefaults>,
    bounds: ConnectionLimits,
    open: AtomicUsize,
    per_address: DashMap<IpAddr, usize>,
    picked: Mutex<EvictionCandidates>,
    /// Checks the keys of requests being served, at an interval.
    key_check: KeyCheck,
    key_check_interval: Duration,
    shards: [Mutex<Slab<Arc<Connection>>>; SHARDS],
    next: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// The connections to be evicted next, the first of them last in the list; and when they were picked.
#[derive(Default)]
struct EvictionCandidates {
    at: Option<u64>,
    waiting: Vec<(u64, Arc<Connection>)>,
    /// How many were found.
    found: usize,
}

/// A connection's entry in the table; dropping it removes the entry.
pub struct ConnectionGuard {
    connections: Arc<ConnectionTable>,
    connection: Arc<Connection>,
    address: Option<IpAddr>,
    shard: usize,
    key: usize,
}

// === impl ConnectionTable ===

impl ConnectionTable {
    /// An empty table.
    pub fn new(
        deadlines: Deadlines,
        bounds: ConnectionLimits,
        (key_check_interval, key_check): (Duration, KeyCheck),
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(ConnectionDefaults::new(deadlines, bounds.body_rate, bounds.bytes)),
            bounds,
            open: AtomicUsize::new(0),
            per_address: DashMap::new(),
            picked: Mutex::default(),
            key_check,
            key_check_interval,
            shards: std::array::from_fn(|_| Mutex::default()),
            next: AtomicUsize::new(0),
            metrics,
        })
    }

    /// Adds a connection. If the table is full, evicts the one that has waited longest for a request. A connection
    /// from a trusted proxy (`is_proxy`) counts for no address until the proxy reports the client.
    pub fn register(
        self: &Arc<Self>,
        peer: SocketAddr,
        secure: bool,
        is_proxy: bool,
    ) -> Result<ConnectionGuard, NotRegistered> {
        let address = (!is_proxy).then(|| network_of(peer.ip()));
        if !self.count_in(address) {
            return Err(NotRegistered::Address);
        }
        if self.open.fetch_add(1, Ordering::AcqRel) >= self.bounds.connections && !self.make_room() {
            self.open.fetch_sub(1, Ordering::AcqRel);
            self.count_out(address);
            return Err(NotRegistered::Full);
        }
        self.metrics.connections.inc();
        Ok(self.put(Connection::new(peer, secure, &self.shared), address))
    }

    /// Adds a stream of `connection`, with deadlines of its own. It does not count as a connection.
    pub fn register_stream(self: &Arc<Self>, connection: &Arc<Connection>) -> ConnectionGuard {
        self.put(Connection::stream(connection, &self.shared), None)
    }

    fn put(self: &Arc<Self>, connection: Connection, address: Option<IpAddr>) -> ConnectionGuard {
        let connection = Arc::new(connection);
        let shard = self.next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let key = self.shard(shard).insert(Arc::clone(&connection));
        ConnectionGuard { connections: Arc::clone(self), connection, address, shard, key }
    }

    fn count_in(&self, address: Option<IpAddr>) -> bool {
        let (Some(address), 1..) = (address, self.bounds.per_address) else { return true };
        let mut open = self.per_address.entry(address).or_insert(0);
        let fits = *open < self.bounds.per_address;
        *open += usize::from(fits);
        fits
    }

    fn count_out(&self, address: Option<IpAddr>) {
        let Some(address) = address else { return };
        if let dashmap::Entry::Occupied(mut open) = self.per_address.entry(address) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }

    /// Evicts the connection that has waited longest; those that have sent no request yet go first.
    pub(in crate::proxy) fn make_room(&self) -> bool {
        let mut picked = self.picked();
        let now = self.shared.now_ms();
        if picked.is_stale(now) {
            let waiting = self.pick();
            *picked = EvictionCandidates { at: Some(now), found: waiting.len(), waiting };
        }
        while let Some((rank, connection)) = picked.waiting.pop() {
            // A connection without a request may have entered another stage since it was picked; it is still waiting.
            let still_waits = connection.rank().is_some_and(|now| now == rank || now.max(rank) < IDLE_RANK);
            if connection.close_reason().is_none() && still_waits {
                self.close(&connection, CloseReason::Crowded);
                return true;
            }
        }
        false
    }

    fn picked(&self) -> MutexGuard<'_, EvictionCandidates> {
        // The list is valid even if a thread panicked while it held the lock.
        self.picked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pick(&self) -> Vec<(u64, Arc<Connection>)> {
        let mut all = Vec::new();
        for shard in 0..SHARDS {
            let ranked = |connection: &Arc<Connection>| Some((connection.rank()?, Arc::clone(connection)));
            all.extend(self.shard(shard).iter().filter_map(|(_, connection)| ranked(connection)));
        }
        all.sort_unstable_by_key(|(rank, _)| *rank);
        all.truncate(PICKED);
        all.reverse();
        all
    }

    fn close(&self, connection: &Connection, end: CloseReason) {
        connection.close_with(end);
        self.count_closed(end);
    }

    fn count_closed(&self, end: CloseReason) {
        self.metrics.connections_cut.with_label_values(&[end.as_str()]).inc();
    }

    /// Checks all connections until the runtime ends.
    pub async fn watch(self: Arc<Self>, stop: watch::Receiver<bool>) {
        let begun = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut asked = Duration::ZERO;
        let mut stopping = None;
        loop {
            ticks.tick().await;
            let now = self.shared.now_ms();
            if stopping.is_none() && *stop.borrow() {
                stopping = Some(now);
            }
            self.check_all(now, stopping);
            if begun.elapsed() >= asked + self.key_check_interval {
                asked = begun.elapsed();
                self.close_revoked();
            }
        }
    }

    fn check_all(&self, now: u64, stopping: Option<u64>) {
        let mut picked = self.picked();
        if picked.is_stale(now) {
            // Others have waited longest by now, and closed connections must not be kept in memory.
            picked.waiting.clear();
        }
        drop(picked);
        let (mut answers, has_room) = (0, self.shared.has_room());
        for shard in 0..SHARDS {
            for (_, connection) in self.shard(shard).iter() {
                answers += connection.bytes();
                if has_room {
                    connection.wake_if_waiting_for_room();
                }
                if connection.may_have_left(now) {
                    connection.wake();
                }
                if let Some(end) = connection.overdue_reason(now, stopping) {
                    self.close(connection, end);
                }
            }
        }
        let (bytes, excess) = self.shared.set_answer_bytes(answers);
        self.metrics.bytes_in_flight.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        if excess > 0 {
            self.free_memory(excess);
        }
        if self.shared.take_room_wanted() {
            self.close_slow_uploads(now);
        }
    }

    /// Closes requests whose bodies are buffered and arrive slowly, the slowest first, until there is some room
    /// again.
    fn close_slow_uploads(&self, now: u64) {
        let mut slow = Vec::new();
        for shard in 0..SHARDS {
            let is_slow = |c: &Arc<Connection>| {
                c.buffered_for(now).filter(|_| c.close_reason().is_none()).zip(Some(Arc::clone(c)))
            };
            slow.extend(self.shard(shard).iter().filter_map(|(_, c)| is_slow(c)));
        }
        slow.sort_unstable_by_key(|(waited, _)| Reverse(*waited));
        let mut wanted = self.shared.relief();
        for (_, connection) in slow {
            wanted = wanted.saturating_sub(connection.buffered_body_bytes());
            self.close(&connection, CloseReason::HeldBack);
            if wanted == 0 {
                return;
            }
        }
    }

    fn close_revoked(&self) {
        for shard in 0..SHARDS {
            let serving = |c: &Arc<Connection>| Some((c.served()?, Arc::clone(c)));
            let served: Vec<_> = self.shard(shard).iter().filter_map(|(_, c)| serving(c)).collect();
            for (key, connection) in served {
                if connection.close_reason().is_none()
                    && let Some(end) = (self.key_check)(&key)
                    && connection.close_if_serving(&key, end)
                {
                    self.count_closed(end);
                }
            }
        }
    }

    /// Closes connections of clients that do not read, the largest first, until `excess` bytes are free.
    fn free_memory(&self, mut excess: u64) {
        let mut stalled = Vec::new();
        for shard in 0..SHARDS {
            let is_stalled = |c: &Arc<Connection>| c.may_free_memory() && c.close_reason().is_none();
            stalled
                .extend(self.shard(shard).iter().filter(|(_, c)| is_stalled(c)).map(|(_, c)| Arc::clone(c)));
        }
        stalled.sort_by_cached_key(|connection| Reverse(connection.bytes()));
        for connection in stalled {
            self.close(&connection, CloseReason::OverBudget);
            excess = excess.saturating_sub(connection.bytes());
            if excess == 0 {
                return;
            }
        }
    }

    fn shard(&self, shard: usize) -> MutexGuard<'_, Slab<Arc<Connection>>> {
        // The slab is valid even if a thread panicked while it held the lock.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl EvictionCandidates ===

impl EvictionCandidates {
    /// A search through all connections is too expensive for each new one. It is repeated once per tick, or within a
    /// tick if the last one found enough and all of them are used up.
    fn is_stale(&self, now: u64) -> bool {
        let is_used_up = self.waiting.is_empty() && self.found >= WORTH_A_LOOK;
        is_used_up || self.at.is_none_or(|at| now >= at + ms(TICK))
    }
}

// === impl ConnectionGuard ===

impl ConnectionGuard {
    /// The connection.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// A trusted proxy reports the `client` of the connection. The connection counts for that address from now on.
    pub fn set_client(&mut self, client: IpAddr) -> Result<(), NotRegistered> {
        let address = Some(network_of(client));
        if !self.connections.count_in(address) {
            return Err(NotRegistered::Address);
        }
        self.connections.count_out(std::mem::replace(&mut self.address, address));
        self.connection.set_client(client);
        Ok(())
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.shard(self.shard).remove(self.key);
        if self.connection.is_stream() {
            self.connection.release_permits();
            return;
        }
        self.connections.open.fetch_sub(1, Ordering::AcqRel);
        self.connections.count_out(self.address);
        self.connections.metrics.connections.dec();
    }
}

// === impl NotRegistered ===

impl NotRegistered {
    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Address => "address",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::connection::Stage;

    /// A table for this many connections, with deadlines that are never reached.
    fn table(connections: usize) -> Arc<ConnectionTable> {
        let day = Duration::from_hours(24);
        let deadlines = Deadlines {
            first_byte: day,
            head: day,
            idle: day,
            body: day,
            write: day,
            linger: day,
            last_request: day,
        };
        let bounds = ConnectionLimits { connections, per_address: 0, body_rate: 0, bytes: 0 };
        let key_check: (Duration, KeyCheck) = (day, Box::new(|_| None));
        ConnectionTable::new(deadlines, bounds, key_check, Arc::new(Metrics::new().expect("metrics")))
    }

    fn newcomer(table: &Arc<ConnectionTable>) -> Result<ConnectionGuard, NotRegistered> {
        table.register("192.0.2.1:1".parse().expect("an address"), false, false)
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_finds_room_at_once() {
        let table = table(2);
        let new = || newcomer(&table);
        let all = [new(), new(), new(), new()]
            .map(|taken_in| taken_in.map(|place| place.connection.close_reason()));
        let crowded = Some(CloseReason::Crowded);
        assert_eq!(all, [Ok(crowded), Ok(crowded), Ok(None), Ok(None)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_became_busy_since_it_was_picked_is_not_evicted() {
        let table = table(4);
        let take_in = || newcomer(&table).map_err(NotRegistered::as_str).expect("there is room");
        let mut places: Vec<_> = (0..4).map(|_| take_in()).collect();
        places.iter().for_each(|place| place.connection.enter(Stage::Idle));
        let ended = |place: &ConnectionGuard| place.connection.close_reason() == Some(CloseReason::Crowded);
        tokio::time::advance(TICK * 2).await;
        // One is evicted. All others are candidates; they send another request and become idle again.
        places.push(take_in());
        assert_eq!(places.iter().filter(|p| ended(p)).count(), 1);
        places.retain(|place| !ended(place));
        tokio::time::advance(TICK / 2).await;
        for place in &places {
            place.connection.enter(Stage::Request);
        }
        tokio::time::advance(TICK).await;
        places.iter().for_each(|place| place.connection.enter(Stage::Idle));
        tokio::time::advance(TICK).await;
        places.push(take_in());
        assert_eq!(places.iter().filter(|p| ended(p)).count(), 1);
        places.retain(|place| !ended(place));

        // A connection without any request is evicted before those that have only waited longer.
        places.truncate(3);
        tokio::time::advance(TICK / 2).await;
        let silent = take_in();
        assert!(places.iter().all(|place| !ended(place)));
        tokio::time::advance(TICK * 2).await;
        places.push(take_in());
        assert!(ended(&silent) && !places.iter().any(ended));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_picked_for_eviction_are_freed_when_they_end() {
        let table = table(4);
        let places: Vec<_> = (0..5).filter_map(|_| newcomer(&table).ok()).collect();
        let all: Vec<_> = places.iter().map(|place| Arc::downgrade(&place.connection)).collect();
        drop(places);
        tokio::time::advance(TICK).await;
        table.check_all(table.shared.now_ms(), None);
        assert!(all.len() == 5 && all.iter().all(|connection| connection.strong_count() == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_not_early_where_nobody_has_looked_for_long() {
        let [hour, short] = [Duration::from_hours(1), Duration::from_millis(300)];
        let deadlines = Deadlines {
            first_byte: hour,
            head: short,
            idle: hour,
            body: short,
            write: short,
            linger: hour,
            last_request: hour,
        };
        let shared = Arc::new(ConnectionDefaults::new(deadlines, 0, 0));
        let connection = Connection::new("192.0.2.1:1".parse().expect("an address"), false, &shared);
        let (almost, rest) = (short - Duration::from_millis(1), Duration::from_millis(1));
        let ways: [(CloseReason, fn(&Connection), Duration); 4] = [
            (CloseReason::HeadLate, |c| c.enter(Stage::Head), rest),
            (CloseReason::BodyLate, Connection::on_read_pending, rest),
            (CloseReason::WriteStalled, |c| c.set_write_pending(true), rest),
            (
                CloseReason::BackendLate,
                |c| c.set_backend_deadline(Some(Duration::from_millis(300))),
                rest + TICK,
            ),
        ];
        for (late, begin, rest) in ways {
            connection.set_write_pending(false);
            connection.enter(Stage::Request);
            // As if the machine had stalled.
            tokio::time::advance(Duration::from_secs(5)).await;
            begin(&connection);
            let is_due = || connection.overdue_reason(shared.now_ms(), None);
            assert_eq!(is_due(), None, "{late:?}");
            tokio::time::advance(almost).await;
            assert_eq!(is_due(), None, "{late:?}");
            tokio::time::advance(rest).await;
            assert_eq!(is_due(), Some(late));
        }
    }
}
