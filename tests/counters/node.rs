//! A node: counters with their own connection, and the key that all nodes charge.

use crate::redis::RedisServer;
use keygate::clock::{Clock, SystemClock, Timestamp};
use keygate::counter::{Charge, ChargeError, Charged, Counters, Leases, LeasesConfig, OnFailure};
use keygate::counter::{LinkError, RedisEndpoint, RedisKind, TotalsSource};
use keygate::metrics::Metrics;
use keygate::model::amounts::Amounts;
use keygate::model::calendar::Calendar;
use keygate::model::id::{EndUserId, KeyId, WorkspaceId};
use keygate::model::key::{Measure, Per};
use keygate::model::usage::{UsageSubject, UsageTotals};
use keygate::policy::keys::limit::{Limit, LimitName, LimitRule, Limits};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// The longest that a request may wait. Measured from outside, a busy machine adds its own delays.
pub(crate) const PROMISED: Duration = Duration::from_millis(20);
/// The timeout of steps that no promise is about.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// These tests measure time; two at once would disturb each other.
pub(crate) async fn in_turn() -> tokio::sync::MutexGuard<'static, ()> {
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    TURN.lock().await
}

/// A ledger with one number, and a delay of its answers.
pub(crate) struct Ledger {
    pub(crate) units: AtomicU64,
    pub(crate) delay: Duration,
    /// How old a record may be that it does not have yet.
    pub(crate) behind: Duration,
}

/// It has stored nothing yet.
impl Default for Ledger {
    fn default() -> Self {
        Self { units: AtomicU64::new(0), delay: Duration::ZERO, behind: Duration::from_hours(1) }
    }
}

impl Ledger {
    /// It has so many units, and everything that is spent from now on within two seconds.
    pub(crate) fn of(units: u64) -> Self {
        Self { units: AtomicU64::new(units), behind: Duration::ZERO, ..Self::default() }
    }
}

#[async_trait::async_trait]
impl TotalsSource for Ledger {
    async fn totals_of(&self, subject: &UsageSubject, _: Timestamp, _: Calendar) -> Option<UsageTotals> {
        if self.delay > Duration::ZERO {
            tokio::time::sleep(self.delay).await;
        }
        let n = self.units.load(Ordering::SeqCst);
        Some(UsageTotals { used: [n; Per::WINDOWS.len()], ..UsageTotals::nothing(subject.clone()) })
    }

    fn behind(&self) -> Duration {
        self.behind
    }
}

/// Polls until the condition holds, for events without a notification.
pub(crate) async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "{what} at last");
        // The state of another process can only be polled.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One clock for all, so that instants of two nodes can be compared.
pub(crate) fn clock() -> Arc<dyn Clock> {
    static CLOCK: OnceLock<Arc<SystemClock>> = OnceLock::new();
    CLOCK.get_or_init(|| Arc::new(SystemClock::new())).clone()
}

pub(crate) struct Node {
    pub(crate) counters: Counters,
    pub(crate) metrics: Arc<Metrics>,
}

impl Node {
    /// Returns and reports everything that is outstanding. False if the machine was too slow: it gives up after a second.
    pub(crate) async fn closes(&self) -> bool {
        let begun = Instant::now();
        let is_up = self.metrics.counter_up.get() == 1;
        self.counters.close().await;
        is_up && begun.elapsed() < Duration::from_millis(900)
    }
}

#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) on_failure: OnFailure,
    pub(crate) share_unknown: bool,
    pub(crate) nodes: usize,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) clock: Arc<dyn Clock>,
    /// The runtime of the nodes' tasks; `None`: that of the test.
    pub(crate) io: Option<Handle>,
}

impl Setup {
    pub(crate) fn of(nodes: usize) -> Self {
        // A single node may use the whole limit of a key that it knows nothing of.
        let share_unknown = nodes == 1;
        let on_failure = OnFailure::Share;
        Self { on_failure, share_unknown, nodes, ledger: Arc::default(), clock: clock(), io: None }
    }

    pub(crate) async fn node(&self, name: &str, address: SocketAddr) -> Node {
        self.try_node(name, address).await.expect("a Redis that is fit")
    }

    pub(crate) async fn try_node(&self, name: &str, address: SocketAddr) -> Result<Node, LinkError> {
        self.node_at(name, place(address)).await
    }

    pub(crate) async fn node_at(&self, name: &str, place: RedisEndpoint) -> Result<Node, LinkError> {
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let nodes = self.nodes;
        let leases = Leases::start(LeasesConfig {
            place,
            on_failure: self.on_failure,
            share_unknown: self.share_unknown,
            node: name.to_owned(),
            nodes: Box::new(move || nodes),
            ledger: self.ledger.clone(),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&metrics),
            io: self.io.clone().unwrap_or_else(Handle::current),
        })
        .await?;
        Ok(Node { counters: Counters::shared(leases), metrics })
    }

    /// Nodes that admit nothing without Redis, so that everything admitted was counted there.
    pub(crate) fn strict(nodes: usize) -> Self {
        Self { on_failure: OnFailure::Deny, ..Self::of(nodes) }
    }

    /// All nodes on one server.
    pub(crate) async fn all(&self, server: &RedisServer) -> Vec<Arc<Node>> {
        let mut nodes = Vec::new();
        for n in 0..self.nodes {
            nodes.push(Arc::new(self.node(&format!("n{n}"), server.address).await));
        }
        nodes
    }
}

pub(crate) fn place(address: SocketAddr) -> RedisEndpoint {
    RedisEndpoint {
        kind: RedisKind::Server,
        servers: vec![(address.ip().to_string(), address.port())],
        tls: None,
        user: None,
        password: None,
        sentinel_password: None,
        database: 0,
    }
}

/// A key with its limits.
#[derive(Clone)]
pub(crate) struct TestKey {
    pub(crate) id: KeyId,
    pub(crate) workspace: WorkspaceId,
    pub(crate) limits: Limits,
    pub(crate) workspace_limits: Limits,
    pub(crate) end_user: Option<(EndUserId, Limits)>,
}

impl TestKey {
    pub(crate) fn new(rules: &[(LimitName, LimitRule)]) -> Self {
        Self {
            id: KeyId::new(clock().now().wall),
            workspace: "w".parse().expect("an id"),
            limits: limits(rules),
            workspace_limits: Limits::new(),
            end_user: None,
        }
    }

    /// That many per second, and no other limit.
    pub(crate) fn rate(rate: u64) -> Self {
        Self::new(&[(LimitName::Rate { plan: false }, LimitRule::of(Per::Second, rate))])
    }

    /// A generous rate and a ceiling on a window, as every key has both.
    pub(crate) fn window(per: Per, max: u64) -> Self {
        Self::new(&[
            (LimitName::Rate { plan: false }, LimitRule::of(Per::Second, 1_000_000)),
            (LimitName::Key(0), LimitRule::of(per, max)),
        ])
    }

    pub(crate) async fn charge(&self, node: &Node) -> Result<Charged, ChargeError> {
        self.charge_of(node, Amounts::REQUEST).await
    }

    pub(crate) async fn charge_of(&self, node: &Node, amounts: Amounts) -> Result<Charged, ChargeError> {
        let charge = Charge {
            key: self.id,
            key_limits: &self.limits,
            workspace: &self.workspace,
            workspace_limits: &self.workspace_limits,
            end_user: self.end_user.as_ref().map(|(id, limits)| (*id, limits)),
            amounts,
        };
        node.counters.admit(&charge, clock().now()).await
    }

    /// Charges until Redis answered in time, on a node that admits nothing otherwise.
    pub(crate) async fn decided(&self, node: &Node) -> Result<Charged, ChargeError> {
        self.decided_of(node, Amounts::REQUEST).await
    }

    pub(crate) async fn decided_of(&self, node: &Node, amounts: Amounts) -> Result<Charged, ChargeError> {
        let begun = Instant::now();
        loop {
            match self.charge_of(node, amounts).await {
                Err(ChargeError::Unavailable) => {
                    assert!(begun.elapsed() < PATIENCE, "Redis never answers in time");
                    // Recovery has no notification.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                decided => return decided,
            }
        }
    }

    /// Charges until Redis answered in time, on a node that has its own share meanwhile. Returns how many were admitted.
    pub(crate) async fn until_shared(&self, node: &Node) -> u64 {
        let (begun, mut admitted) = (Instant::now(), 0);
        loop {
            match self.charge(node).await {
                Ok(charged) if charged.degraded() => admitted += 1,
                Ok(_) => return admitted + 1,
                // Its share may be empty at the moment.
                Err(declined) => {
                    assert!(matches!(declined, ChargeError::Limit { degraded: true, .. }), "{declined:?}");
                }
            }
            assert!(begun.elapsed() < PATIENCE, "Redis never answers in time");
            // Recovery has no notification.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// A charge, and how long it took.
    pub(crate) async fn timed(&self, node: &Node) -> (Result<Charged, ChargeError>, Duration) {
        let begun = Instant::now();
        let charged = self.charge(node).await;
        (charged, begun.elapsed())
    }
}

pub(crate) fn limits(rules: &[(LimitName, LimitRule)]) -> Limits {
    rules.iter().map(|(name, rule)| Limit { name: *name, count: Measure::Requests, rule: *rule }).collect()
}
