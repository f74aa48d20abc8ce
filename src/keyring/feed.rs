//! Applies the store's change feed to a [`Keyring`].
//!
//! Must not know: which store. While it is unreachable, the follower keeps trying, and the keyring keeps serving.

use super::Keyring;
use super::broken::Unapplied;
use crate::clock::Clock;
use crate::model::id::{KeyId, WorkspaceId};
use crate::store::{Change, Feed, KeyChange, NodeReport, Nodes, StoreError, Version};
use async_trait::async_trait;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

/// Most batches of changes that wait to be applied.
const BATCHES: usize = 4;

/// How often a node reports that it is alive when nothing has changed.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Options of the follower.
#[derive(Clone, Copy, Debug)]
pub struct FeedOptions {
    /// How often to ask without a notification.
    pub poll_interval: Duration,
}

/// Reports to the store how far this node has applied changes.
pub struct NodeReporter {
    store: Arc<dyn Nodes>,
    /// `reached` is filled in at each report.
    node: NodeReport,
    /// The address of the admin API, once it listens.
    admin: Arc<OnceLock<SocketAddr>>,
}

/// Keeps a keyring up to date.
pub struct FeedFollower {
    keyring: Arc<Keyring>,
    store: Arc<dyn Feed>,
    clock: Arc<dyn Clock>,
    on_change: Box<dyn Fn(&Change) + Send + Sync>,
    before_return: Option<Arc<dyn BeforeReturn>>,
    on_gone_back: Box<dyn Fn() + Send + Sync>,
    options: FeedOptions,
    reporter: Option<NodeReporter>,
    /// The store may have gone back, so everything has to be read again.
    is_starting_over: AtomicBool,
}

/// Restores the state of a deleted key that is restored.
#[async_trait]
pub trait BeforeReturn: Send + Sync {
    /// Called before a request can find the key. On failure the key is not found yet, and the call is repeated.
    async fn prepare(&self, key: KeyId, workspace: &WorkspaceId) -> Result<(), StoreError>;
}

impl NodeReporter {
    /// A reporter for a process called `name`, with a new identity.
    pub fn new(store: Arc<dyn Nodes>, name: &str, boot: Uuid, admin: Arc<OnceLock<SocketAddr>>) -> Self {
        let node = NodeReport { boot, name: name.into(), admin: None, reached: Version::default() };
        Self { store, node, admin }
    }

    async fn report(&self, reached: Version) -> Result<(), StoreError> {
        let admin = self.admin.get().map(|address| address.to_string().into());
        self.store.report(&NodeReport { admin, reached, ..self.node.clone() }).await
    }

    /// Reports `reached` when it changes, and that this node is alive, while `stop` is false.
    async fn run(&self, mut reached: watch::Receiver<Version>, mut stop: watch::Receiver<bool>) {
        let mut failing = false;
        reached.mark_changed();
        while !*stop.borrow() {
            tokio::select! {
                _ = reached.changed() => {}
                () = tokio::time::sleep(REPORT_EVERY) => {}
                _ = stop.changed() => break,
            }
            let now = *reached.borrow_and_update();
            let failed = self.report(now).await.err();
            match &failed {
                Some(error) if !failing => {
                    tracing::warn!(%error, "cannot report change feed position to the store");
                }
                None if failing => tracing::info!("change feed position reported again"),
                _ => {}
            }
            failing = failed.is_some();
            if failing {
                // Changes meanwhile are reported with the next heartbeat.
                tokio::time::sleep(REPORT_EVERY).await;
            }
        }
        if let Err(error) = self.store.leave(self.node.boot).await {
            tracing::debug!(%error, "cannot deregister node from the store");
        }
    }
}

impl FeedFollower {
    /// A follower that calls `on_change` for prices and credentials, and for deleted rows once no new request can find them.
    pub fn new(
        keyring: Arc<Keyring>,
        store: Arc<dyn Feed>,
        clock: Arc<dyn Clock>,
        options: FeedOptions,
        on_change: Box<dyn Fn(&Change) + Send + Sync>,
    ) -> Self {
        Self {
            keyring,
            store,
            clock,
            on_change,
            before_return: None,
            on_gone_back: Box::new(|| ()),
            options,
            reporter: None,
            is_starting_over: AtomicBool::new(false),
        }
    }

    /// Also reports how far it has come, after every change and as a heartbeat, and signs off at the end.
    #[must_use]
    pub fn reporting(self, reporter: NodeReporter) -> Self {
        Self { reporter: Some(reporter), ..self }
    }

    /// Also restores the counts of a restored key before a request can find it.
    #[must_use]
    pub fn preparing_returns(self, before_return: Arc<dyn BeforeReturn>) -> Self {
        Self { before_return: Some(before_return), ..self }
    }

    /// Also calls back when the store has gone back to an earlier state, so that cached data is dropped.
    #[must_use]
    pub fn telling_when_gone_back(self, on_gone_back: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { on_gone_back, ..self }
    }

    /// The content came from elsewhere: the next read reads everything and keeps only what the store has.
    pub fn distrust(&self) {
        self.is_starting_over.store(true, Ordering::Relaxed);
    }

    /// Reads everything up to now, once.
    ///
    /// A caller that waits for all nodes waits for this one as soon as it has reported. What was written until then is read
    /// once more, so that nothing older is served here after the caller was told that the change is in force everywhere.
    pub async fn load(&self) -> Result<(), StoreError> {
        self.catch_up().await?;
        if let Some(reporter) = &self.reporter {
            reporter.report(self.keyring.version()).await?;
            self.catch_up().await?;
        }
        self.keyring.broken_rows().was_filled();
        Ok(())
    }

    /// Follows until `stop` turns true. Reports run independently: a slow one does not delay changes.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let reports = async {
            if let Some(reporter) = &self.reporter {
                reporter.run(self.keyring.version.subscribe(), stop.clone()).await;
            }
        };
        tokio::join!(self.follow(stop.clone()), reports);
    }

    async fn follow(&self, mut stop: watch::Receiver<bool>) {
        let mut failing = false;
        while !*stop.borrow() {
            tokio::select! {
                () = self.keyring.nudge.notified() => {}
                () = self.store.changed() => {}
                () = tokio::time::sleep(self.options.poll_interval) => {}
                _ = stop.changed() => break,
            }
            let failed = self.catch_up().await.err();
            match &failed {
                Some(error) if !failing => {
                    tracing::warn!(%error, "change feed unavailable, serving keys from memory");
                }
                None if failing => tracing::info!("change feed available again"),
                _ => {}
            }
            failing = failed.is_some();
        }
    }

    async fn catch_up(&self) -> Result<(), StoreError> {
        if self.is_starting_over.load(Ordering::Relaxed) {
            return self.start_over().await;
        }
        let reached = self.keyring.version();
        let is_again = self.keyring.broken_rows().take_wants_reading();
        let after = if is_again { Version::default() } else { reached };
        let now = self.read(after, &mut |_| {}).await.inspect_err(|_| {
            if is_again {
                self.keyring.broken_rows().restore_wants_reading();
            }
        })?;
        if now < reached {
            tracing::error!(
                %reached, %now,
                "store version went backwards (restored from a backup?), reloading all keys"
            );
            self.is_starting_over.store(true, Ordering::Relaxed);
            return self.start_over().await;
        }
        self.arrived(now);
        Ok(())
    }

    /// The store knows less than before: it was restored from a backup, or a fail-over lost writes. Its versions will be
    /// used again for other changes, so nothing in memory can be trusted.
    async fn start_over(&self) -> Result<(), StoreError> {
        // No version counts as reached until everything has been read.
        self.keyring.version.send_replace(Version::default());
        self.keyring.forget_numbers();
        (self.on_gone_back)();
        let (mut there, mut credentials) = (HashSet::new(), HashSet::new());
        let reached = self
            .read(Version::default(), &mut |change| match change {
                Change::Key(change) => drop(there.insert(change.key.id)),
                Change::Credential(credential) => drop(credentials.insert(credential.id)),
                _ => {}
            })
            .await?;
        for id in self.keyring.upstream_credentials.keep_only(&credentials) {
            (self.on_change)(&Change::CredentialRemoved(id));
        }
        for id in self.keyring.keep_only(&there) {
            (self.on_change)(&Change::KeyRemoved { id, version: reached });
        }
        self.is_starting_over.store(false, Ordering::Relaxed);
        self.arrived(reached);
        Ok(())
    }

    /// Applies every change above `after`, after passing it to `see`. Returns how far the store has come.
    async fn read(
        &self,
        after: Version,
        see: &mut (dyn FnMut(&Change) + Send),
    ) -> Result<Version, StoreError> {
        let (to, mut batches) = mpsc::channel::<Vec<Change>>(BATCHES);
        let asked = self.store.changes(after, to);
        let applied = async {
            while let Some(batch) = batches.recv().await {
                if let Err(error) = self.prepare_returns(&batch).await {
                    // The sender must not wait for a receiver that has stopped.
                    batches.close();
                    return Err(error);
                }
                batch.iter().for_each(&mut *see);
                self.apply(batch);
            }
            Ok(())
        };
        match tokio::join!(asked, applied) {
            (_, Err(error)) => Err(error),
            (reached, Ok(())) => reached,
        }
    }

    /// This node may have dropped the counts of a key that was deleted and is restored.
    async fn prepare_returns(&self, batch: &[Change]) -> Result<(), StoreError> {
        let Some(before_return) = &self.before_return else { return Ok(()) };
        for change in batch {
            if let Change::Key(KeyChange { key, was_restored: true, .. }) = change
                && !self.keyring.holds(key.id)
            {
                before_return.prepare(key.id, &key.workspace_id).await?;
            }
        }
        Ok(())
    }

    fn apply(&self, batch: Vec<Change>) {
        for change in batch {
            let is_told = change.is_removal() || matches!(change, Change::Prices(_) | Change::Credential(_));
            let told = is_told.then(|| change.clone());
            if let Some(Unapplied { what, id, why, .. }) = self.keyring.apply(change) {
                tracing::error!(what, id, why, "invalid row in the store, it is not served");
            }
            if let Some(change) = told {
                (self.on_change)(&change);
            }
        }
    }

    fn arrived(&self, reached: Version) {
        self.heard();
        self.keyring.version.send_if_modified(|v| {
            let newer = reached > *v;
            *v = reached.max(*v);
            newer
        });
    }

    fn heard(&self) {
        self.keyring.stale_ns.store(0, Ordering::Relaxed);
        self.keyring.heard_ns.store(self.clock.now().steady_ns, Ordering::Relaxed);
    }
}
