//! The admin connections that are open, and which of them makes room for a newcomer.
//!
//! Must not know: HTTP. When all places are taken, or all of one address, the connection that waits for its client goes:
//! first those that never sent a request, then those between two requests, then those whose client neither sends nor takes
//! its part of a call. A call that is being worked on is never ended.

use super::ServerLimits;
use crate::metrics::Metrics;
use crate::policy::http::source::network_of;
use slab::Slab;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdminStage {
    /// No byte of a first request has come.
    New,
    /// The next request is awaited.
    Idle,
    /// A head is coming.
    Head,
    /// A call is worked on.
    Call,
    /// The client has yet to send the next part of a body.
    Body,
    /// The client has yet to take the next part of its answer.
    Answer,
    /// The last answer was written, and what the client still sends is thrown away.
    Closing,
}

/// Why a connection was closed before its client closed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdminCloseReason {
    /// All places are taken by calls that are worked on.
    Full,
    /// It made room for a new one.
    Evicted,
    /// A new connection sent nothing.
    FirstByteTimeout,
    /// A head took too long.
    HeaderTimeout,
    /// No further request came.
    IdleTimeout,
    /// The client took nothing of its answer.
    WriteTimeout,
}

/// An open connection.
#[derive(Debug)]
pub(super) struct AdminConnection {
    network: IpAddr,
    /// What it is at, and since when; a call counts from its head on.
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

/// A place in the table; dropping it gives it back.
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

    /// A place for a connection from `address`, if need be that of another one. None: all are taken by calls.
    pub(super) fn register(self: &Arc<Self>, address: IpAddr) -> Option<AdminConnectionGuard> {
        let network = network_of(address);
        let mut open = self.open();
        let of_network = |c: &AdminConnection| c.network == network;
        let from_there = open.iter().filter(|(_, c)| of_network(c)).count();
        // One that was told to go gives its place back a moment later.
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

    /// Ends the connection that is next to go.
    pub(super) fn make_room(&self) -> bool {
        evict(&self.open(), |_| true)
    }

    fn open(&self) -> MutexGuard<'_, Slab<Arc<AdminConnection>>> {
        // A slab is whole whatever happened to the thread that held it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the one of those that `may_go` that is next to go, and says whether there was one.
fn evict(open: &Slab<Arc<AdminConnection>>, may_go: impl Fn(&AdminConnection) -> bool) -> bool {
    let candidates = open.iter().filter(|(_, c)| may_go(c));
    let ranked = candidates.filter_map(|(_, connection)| Some((connection.rank()?, connection)));
    let Some((_, connection)) = ranked.min_by_key(|(rank, _)| *rank) else { return false };
    // It has a place until its task has ended, and must not be chosen again.
    connection.enter(AdminStage::Call);
    connection.evict.notify_one();
    connection.close(AdminCloseReason::Evicted);
    true
}

// === impl AdminConnection ===

impl AdminConnection {
    /// It is at another stage from now on.
    pub(super) fn enter(&self, stage: AdminStage) {
        let mut now_at = self.now_at();
        let is_in_call = |stage| matches!(stage, AdminStage::Call | AdminStage::Body | AdminStage::Answer);
        let since = if is_in_call(now_at.0) && is_in_call(stage) { now_at.1 } else { Instant::now() };
        *now_at = (stage, since);
    }

    /// Ready when it has to make room.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }

    /// Counts why it is closed.
    pub(super) fn close(&self, reason: AdminCloseReason) {
        count(&self.metrics, reason);
    }

    /// Who goes first: the least. None: it does not go.
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
        // A pair of copies is whole whatever happened to the thread that held it.
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
    const ALL: [Self; 6] = [
        Self::Full,
        Self::Evicted,
        Self::FirstByteTimeout,
        Self::HeaderTimeout,
        Self::IdleTimeout,
        Self::WriteTimeout,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Evicted => "evicted",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::HeaderTimeout => "header_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::WriteTimeout => "write_timeout",
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
    async fn an_address_makes_room_for_itself_and_for_nobody_else() {
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
