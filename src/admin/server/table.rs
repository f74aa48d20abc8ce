//! The open admin connections, and which of them is closed for a new one.
//!
//! Must not know: HTTP. When all slots are taken, in total or for one address, a connection that waits for its client is
//! closed: first those that never sent a request, then those between two requests, then those whose client neither sends
//! nor reads its part of a call. A call that is being processed is never closed.

use super::ServerLimits;
use crate::metrics::Metrics;
use crate::policy::http::source::network_of;
use slab::Slab;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// The stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdminStage {
    /// No byte of a first request has arrived.
    New,
    /// Between two requests.
    Idle,
    /// A head is arriving.
    Head,
    /// A call is being processed.
    Call,
    /// Waits for the next part of a body.
    Body,
    /// Waits until the client reads the next part of the response.
    Answer,
    /// A last answer was written, and incoming data is discarded.
    Closing,
}

/// Why a connection was closed by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdminCloseReason {
    /// All slots are taken by calls that are being processed.
    Full,
    /// It made room for a new one.
    Evicted,
    /// A new connection sent nothing.
    FirstByteTimeout,
    /// A head took too long.
    HeaderTimeout,
    /// No further request came.
    IdleTimeout,
    /// The client did not read its response.
    WriteTimeout,
    /// The TLS handshake failed.
    Tls,
}

/// An open connection.
#[derive(Debug)]
pub(super) struct AdminConnection {
    network: IpAddr,
    /// Its stage, and since when; a call counts from its head on.
    now_at: Mutex<(AdminStage, Instant)>,
    evict: Notify,
    metrics: Arc<Metrics>,
}

/// The open connections.
pub(super) struct AdminConnectionTable {
    limits: ServerLimits,
    open: Mutex<Slab<Arc<AdminConnection>>>,
    metrics: Arc<Metrics>,
}

/// A slot in the table; dropping it releases the slot.
pub(super) struct AdminConnectionGuard {
    table: Arc<AdminConnectionTable>,
    connection: Arc<AdminConnection>,
    key: usize,
}

// === impl AdminConnectionTable ===

impl AdminConnectionTable {
    pub(super) fn new(limits: ServerLimits, metrics: Arc<Metrics>) -> Arc<Self> {
        for reason in AdminCloseReason::ALL {
            metrics.admin_connections_closed.with_label_values(&[reason.as_str()]).inc_by(0);
        }
        Arc::new(Self { limits, open: Mutex::default(), metrics })
    }

    /// A slot for a connection from `address`, if necessary that of another one. None: all are taken by calls.
    pub(super) fn register(self: &Arc<Self>, address: IpAddr) -> Option<AdminConnectionGuard> {
        let network = network_of(address);
        let mut open = self.open();
        let of_network = |c: &AdminConnection| c.network == network;
        let from_there = open.iter().filter(|(_, c)| of_network(c)).count();
        // One that was told to close releases its slot a moment later.
        let has_room = if from_there >= self.limits.connections_per_address {
            evict(&open, of_network)
        } else {
            open.len() < self.limits.connections || evict(&open, |_| true)
        };
        if !has_room {
            count(&self.metrics, AdminCloseReason::Full);
            return None;
        }
        let connection = Arc::new(AdminConnection {
            network,
            now_at: Mutex::new((AdminStage::New, Instant::now())),
            evict: Notify::new(),
            metrics: Arc::clone(&self.metrics),
        });
        let key = open.insert(Arc::clone(&connection));
        self.metrics.admin_connections.inc();
        drop(open);
        Some(AdminConnectionGuard { table: Arc::clone(self), connection, key })
    }

    /// Closes the connection that is first in line.
    pub(super) fn make_room(&self) -> bool {
        evict(&self.open(), |_| true)
    }

    fn open(&self) -> MutexGuard<'_, Slab<Arc<AdminConnection>>> {
        // The slab is valid whatever happened to the thread that held the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the first in line of those for which `may_go` is true, and returns whether there was one.
fn evict(open: &Slab<Arc<AdminConnection>>, may_go: impl Fn(&AdminConnection) -> bool) -> bool {
    let candidates = open.iter().filter(|(_, c)| may_go(c));
    let ranked = candidates.filter_map(|(_, connection)| Some((connection.rank()?, connection)));
    let Some((_, connection)) = ranked.min_by_key(|(rank, _)| *rank) else { return false };
    // It keeps its slot until its task has ended, and must not be chosen again.
    connection.enter(AdminStage::Call);
    connection.evict.notify_one();
    connection.close(AdminCloseReason::Evicted);
    true
}

// === impl AdminConnection ===

impl AdminConnection {
    /// Changes its stage.
    pub(super) fn enter(&self, stage: AdminStage) {
        let mut now_at = self.now_at();
        let is_in_call = |stage| matches!(stage, AdminStage::Call | AdminStage::Body | AdminStage::Answer);
        let since = if is_in_call(now_at.0) && is_in_call(stage) { now_at.1 } else { Instant::now() };
        *now_at = (stage, since);
    }

    /// Resolves when it has to close.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }

    /// Counts the reason for closing.
    pub(super) fn close(&self, reason: AdminCloseReason) {
        count(&self.metrics, reason);
    }

    /// The order of closing: the smallest first. None: it is not closed.
    fn rank(&self) -> Option<(u8, Instant)> {
        let (stage, since) = *self.now_at();
        let class = match stage {
            AdminStage::New | AdminStage::Closing => 0,
            AdminStage::Idle | AdminStage::Head => 1,
            AdminStage::Body | AdminStage::Answer => 2,
            AdminStage::Call => return None,
        };
        Some((class, since))
    }

    fn now_at(&self) -> MutexGuard<'_, (AdminStage, Instant)> {
        // The pair is valid whatever happened to the thread that held the lock.
        self.now_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(metrics: &Metrics, reason: AdminCloseReason) {
    metrics.admin_connections_closed.with_label_values(&[reason.as_str()]).inc();
}

// === impl AdminConnectionGuard ===

impl AdminConnectionGuard {
    pub(super) const fn connection(&self) -> &Arc<AdminConnection> {
        &self.connection
    }
}

impl Drop for AdminConnectionGuard {
    fn drop(&mut self) {
        self.table.open().remove(self.key);
        self.table.metrics.admin_connections.dec();
    }
}

// === impl AdminCloseReason ===

impl AdminCloseReason {
    const ALL: [Self; 7] = [
        Self::Full,
        Self::Evicted,
        Self::FirstByteTimeout,
        Self::HeaderTimeout,
        Self::IdleTimeout,
        Self::WriteTimeout,
        Self::Tls,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Evicted => "evicted",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::HeaderTimeout => "header_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::Tls => "tls",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn table(connections: usize, connections_per_address: usize) -> Arc<AdminConnectionTable> {
        let second = Duration::from_secs(1);
        let limits = ServerLimits {
            connections,
            connections_per_address,
            first_byte: second,
            head: second,
            idle: second,
            write: second,
            uri_bytes: 1_024,
            header_bytes: 1_024,
            header_fields: 10,
        };
        AdminConnectionTable::new(limits, Arc::new(Metrics::new().expect("metrics")))
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    async fn is_evicted(registered: &AdminConnectionGuard) -> bool {
        tokio::time::timeout(Duration::from_millis(1), registered.connection.evicted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connections_go_first_then_idle_ones_then_stalled_calls_and_calls_never() {
        let table = table(4, 4);
        let stages = [AdminStage::Call, AdminStage::Answer, AdminStage::Idle, AdminStage::New];
        let mut places = Vec::new();
        for stage in stages {
            let place = table.register(address(1)).expect("a place");
            place.connection.enter(stage);
            places.push(place);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let mut newcomers = Vec::new();
        for next in [3, 2, 1] {
            let newcomer = table.register(address(2)).expect("room is made");
            newcomer.connection.enter(AdminStage::Call);
            newcomers.push(newcomer);
            assert!(is_evicted(&places[next]).await, "{next}");
            places.truncate(next);
            assert!(!is_evicted(&places[next - 1]).await, "only one at a time");
        }
        assert!(table.register(address(2)).is_none(), "all are worked on");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_over_its_quota_evicts_only_its_own_connections() {
        let table = table(10, 2);
        let other = table.register(address(2)).expect("a place");
        let first = table.register(address(1)).expect("a place");
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = table.register(address(1)).expect("a place");
        let _third = table.register(address(1)).expect("room is made");
        assert!(is_evicted(&first).await);
        assert!(!is_evicted(&other).await && !is_evicted(&second).await);
    }
}
