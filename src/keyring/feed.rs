//! Follows the store's change feed into a [`Keyring`].
//!
//! Must not know: which store. When it is gone the follower keeps asking, and the keyring keeps serving.

use super::{Keyring, Unapplied};
use crate::clock::Clock;
use crate::store::{Change, Feed, StoreError, Version};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Batches of changes that may wait to be applied.
const BATCHES: usize = 4;

/// How to follow.
#[derive(Clone, Copy, Debug)]
pub struct FeedOptions {
    /// How often to ask although nobody said that anything changed.
    pub poll_interval: Duration,
}

/// Keeps a keyring up to date.
pub struct Follower {
    keyring: Arc<Keyring>,
    store: Arc<dyn Feed>,
    clock: Arc<dyn Clock>,
    on_removed: Box<dyn Fn(&Change) + Send + Sync>,
    options: FeedOptions,
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
        Self { keyring, store, clock, on_removed, options }
    }

    /// Fetches everything up to now, once. Answers how many rows could not be understood.
    pub async fn load(&self) -> Result<u64, StoreError> {
        self.catch_up().await
    }

    /// Follows until `stop` turns true.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut failing = false;
        while !*stop.borrow() {
            tokio::select! {
                () = self.keyring.nudge.notified() => {}
                () = tokio::time::sleep(self.options.poll_interval) => {}
                _ = stop.changed() => break,
            }
            let failed = self.catch_up().await.err();
            match &failed {
                Some(error) if !failing => {
                    tracing::warn!(%error, "the change feed does not answer; serving from memory");
                }
                None if failing => tracing::info!("the change feed answers again"),
                _ => {}
            }
            failing = failed.is_some();
        }
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
