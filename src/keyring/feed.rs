//! Follows the store's change feed into a [`Keyring`].
//!
//! Must not know: which store. When it is gone the follower keeps asking, and the keyring keeps serving.

use super::{Keyring, Unapplied};
use crate::clock::Clock;
use crate::store::{Change, Feed, NodeReport, Nodes, StoreError, Version};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

/// Batches of changes that may wait to be applied.
const BATCHES: usize = 4;

/// How often a node says that it is there, although nothing has changed.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// The longest wait of a follower that reports: a third of the time after which a silent node counts as gone.
const REPORT_WITHIN: Duration = Duration::from_secs(3);

/// How to follow.
#[derive(Clone, Copy, Debug)]
pub struct FeedOptions {
    /// How often to ask although nobody said that anything changed.
    pub poll_interval: Duration,
}

/// Tells the store how far this node has come.
pub struct Reporter {
    store: Arc<dyn Nodes>,
    /// Its `reached` is filled in each time.
    node: NodeReport,
    /// Where the admin API listens, once it does.
    admin: Arc<OnceLock<SocketAddr>>,
}

/// Keeps a keyring up to date.
pub struct Follower {
    keyring: Arc<Keyring>,
    store: Arc<dyn Feed>,
    clock: Arc<dyn Clock>,
    on_removed: Box<dyn Fn(&Change) + Send + Sync>,
    options: FeedOptions,
    reporter: Option<Reporter>,
    /// Steady time of the last report, in ns; 0 before the first.
    reported_ns: AtomicU64,
}

impl Reporter {
    /// Reports a process that is called `name`, under an identity of its own.
    pub fn new(store: Arc<dyn Nodes>, name: &str, boot: Uuid, admin: Arc<OnceLock<SocketAddr>>) -> Self {
        let node = NodeReport { boot, name: name.into(), admin: None, reached: Version::default() };
        Self { store, node, admin }
    }

    async fn report(&self, reached: Version) -> Result<(), StoreError> {
        let admin = self.admin.get().map(|address| address.to_string().into());
        self.store.report(&NodeReport { admin, reached, ..self.node.clone() }).await
    }
}

impl Follower {
    /// A follower that shows what is gone for good to `on_removed`, once no new request can find it.
    pub fn new(
        keyring: Arc<Keyring>,
        store: Arc<dyn Feed>,
        clock: Arc<dyn Clock>,
        options: FeedOptions,
        on_removed: Box<dyn Fn(&Change) + Send + Sync>,
    ) -> Self {
        Self { keyring, store, clock, on_removed, options, reporter: None, reported_ns: AtomicU64::new(0) }
    }

    /// Also reports how far it has come, after every change and as a sign of life; says goodbye at the end.
    #[must_use]
    pub fn reporting(self, reporter: Reporter) -> Self {
        Self { reporter: Some(reporter), ..self }
    }

    /// Fetches everything up to now, once. Answers how many rows could not be understood.
    pub async fn load(&self) -> Result<u64, StoreError> {
        self.catch_up().await
    }

    /// Follows until `stop` turns true.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut failing = false;
        let longest = if self.reporter.is_some() { REPORT_WITHIN } else { Duration::MAX };
        let pause = self.options.poll_interval.min(longest);
        while !*stop.borrow() {
            tokio::select! {
                () = self.keyring.nudge.notified() => {}
                () = self.store.changed() => {}
                () = tokio::time::sleep(pause) => {}
                _ = stop.changed() => break,
            }
            let failed = self.catch_up_and_report().await.err();
            match &failed {
                Some(error) if !failing => {
                    tracing::warn!(%error, "the change feed does not answer; serving from memory");
                }
                None if failing => tracing::info!("the change feed answers again"),
                _ => {}
            }
            failing = failed.is_some();
        }
        if let Some(reporter) = &self.reporter
            && let Err(error) = reporter.store.leave(reporter.node.boot).await
        {
            tracing::debug!(%error, "others learn by our silence that this node has stopped");
        }
    }

    async fn catch_up_and_report(&self) -> Result<(), StoreError> {
        let before = self.keyring.version();
        self.catch_up().await?;
        let Some(reporter) = &self.reporter else { return Ok(()) };
        let (reached, now_ns) = (self.keyring.version(), self.clock.now().steady_ns);
        let last_ns = self.reported_ns.load(Ordering::Relaxed);
        let is_due = u128::from(now_ns.saturating_sub(last_ns)) >= REPORT_EVERY.as_nanos();
        if reached > before || is_due || last_ns == 0 {
            reporter.report(reached).await?;
            self.reported_ns.store(now_ns, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn catch_up(&self) -> Result<u64, StoreError> {
        let (to, mut batches) = mpsc::channel::<Vec<Change>>(BATCHES);
        let asked = self.store.changes(self.keyring.version(), to);
        let applied = async {
            let mut broken = 0;
            while let Some(batch) = batches.recv().await {
                broken += self.apply(batch);
            }
            broken
        };
        let (reached, broken) = tokio::join!(asked, applied);
        self.arrived(reached?);
        Ok(broken)
    }

    fn apply(&self, batch: Vec<Change>) -> u64 {
        let mut broken = 0;
        for change in batch {
            let removal = change.is_removal().then(|| change.clone());
            match self.keyring.apply(change) {
                Ok(()) => removal.iter().for_each(|r| (self.on_removed)(r)),
                Err(Unapplied { what, id, why }) => {
                    broken += 1;
                    tracing::error!(what, id, why, "a row of the store cannot be served");
                }
            }
        }
        broken
    }

    fn arrived(&self, reached: Version) {
        self.keyring.heard_ns.store(self.clock.now().steady_ns, Ordering::Relaxed);
        self.keyring.version.send_if_modified(|v| {
            let newer = reached > *v;
            *v = reached.max(*v);
            newer
        });
    }
}
