//! A start while the store is unreachable: the node is not ready, or serves from its snapshot, and retries the remaining
//! steps once a second.

use super::patience::Patience;
use super::snapshots::{self, Loaded, Snapshots};
use super::upstreams::apply_credential;
use super::{CoreServices, OwnPeppers, StartError, agree, apply_plans, gauges, usage};
use crate::clock::Clock;
use crate::config::{Config, CountersLocation, PlanConfig};
use crate::counter::Counters;
use crate::keyring::{FeedFollower, Keyring};
use crate::model::usage::UsageTotals;
use crate::proxy::upstream::StoredCredentials;
use crate::store::{Change, Store, StoreError};
use crate::usage::{JournalTotals, PendingReplays, PricesInForce, WriterProgress};
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often the store is tried.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// How long one try waits until the ledger has the records of an earlier run.
const REPLAYED_WITHIN: Duration = Duration::from_secs(2);

/// Why the store is not open yet, for readiness; none once it is.
#[derive(Clone, Debug, Default)]
pub(super) struct StoreState(Arc<ArcSwapOption<String>>);

/// What a start loads, and its inputs.
pub(super) struct Loading<'s> {
    pub(super) config: &'s Config,
    pub(super) core: &'s CoreServices,
    pub(super) keyring: &'s Arc<Keyring>,
    pub(super) counters: &'s Arc<Counters>,
    pub(super) follower: &'s FeedFollower,
    pub(super) snapshots: Option<&'s Snapshots>,
    /// Whether the previous process hands over its counts.
    pub(super) has_predecessor_counts: bool,
    /// How long a store that cannot be written is waited for.
    pub(super) patience: Patience,
}

/// The steps that are left until the store is reachable.
pub(super) struct LateStart {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    state: StoreState,
    peppers: OwnPeppers,
    plans: Vec<PlanConfig>,
    prices: Arc<PricesInForce>,
    credentials: Arc<StoredCredentials>,
    keyring: Arc<Keyring>,
    counters: Arc<Counters>,
    /// None: the counters are shared and read the ledger themselves.
    replayed: Option<(WriterProgress, PendingReplays)>,
}

// === impl StoreState ===

impl StoreState {
    pub(super) fn note(&self, why: &str) {
        self.0.store(Some(Arc::new(why.to_owned())));
    }

    /// Why the store is not open; none: it is.
    pub(super) fn why_closed(&self) -> Option<Arc<String>> {
        self.0.load_full()
    }
}

// === impl Loading ===

impl Loading<'_> {
    /// Loads keys and counts from the store or, while it is unreachable, from this node's disk. Returns the steps that are
    /// left.
    pub(super) async fn load(
        self,
        own_peppers: OwnPeppers,
        writers: &mut usage::LedgerWriters,
    ) -> Result<Option<LateStart>, StoreError> {
        let Self { config, core, keyring, counters, follower, snapshots, has_predecessor_counts, patience } =
            self;
        let is_late = core.store_state.why_closed().is_some();
        let now = core.clock.now().wall;
        let loaded = snapshots.map(|snapshots| snapshots.load(now, config.keyring.max_stale));
        let unusable = |why| {
            if is_late {
                tracing::warn!(why, "no snapshot to serve from until the store can be reached");
            } else {
                tracing::debug!(why, "the snapshot on this node's disk is of no use");
            }
        };
        let loaded = loaded.and_then(|loaded| loaded.map_err(unusable).ok());
        if is_late {
            keyring.close();
            let late = LateStart::new(config, core, own_peppers, keyring, counters, writers.tell());
            let loaded = loaded.map(|loaded| late.fill(loaded));
            let after = loaded.as_ref().map(|loaded| loaded.spent_at);
            let unstored = usage::replay(writers, keyring, now, after).await;
            late.serve_from(loaded, unstored);
            return Ok(Some(late));
        }
        keyring.remember_tenants(loaded.map(|loaded| loaded.changes).unwrap_or_default());
        patience.wait(StoreError::is_transient, async || follower.load().await).await?;
        let reported = tokio::time::Instant::now();
        if !has_predecessor_counts {
            usage::restore(config, core, counters, keyring, writers).await?;
        }
        gauges::until_counted(config, core, reported).await;
        Ok(None)
    }
}

// === impl LateStart ===

impl LateStart {
    fn new(
        config: &Config,
        core: &CoreServices,
        peppers: OwnPeppers,
        keyring: &Arc<Keyring>,
        counters: &Arc<Counters>,
        replayed: (WriterProgress, PendingReplays),
    ) -> Self {
        let counts_alone = config.counters.location == CountersLocation::Memory;
        Self {
            store: core.store.clone(),
            clock: Arc::clone(&core.clock),
            state: core.store_state.clone(),
            peppers,
            plans: config.plans.clone(),
            prices: Arc::clone(&core.prices),
            credentials: Arc::clone(&core.credentials),
            keyring: Arc::clone(keyring),
            counters: Arc::clone(counters),
            replayed: counts_alone.then_some(replayed),
        }
    }

    /// Adds the keys of `loaded`, which are not served yet.
    fn fill(&self, mut loaded: Loaded) -> Loaded {
        for change in &loaded.changes {
            if let Change::Prices(stored) = change {
                self.prices.set_stored(Arc::clone(stored));
            }
            apply_credential(&self.credentials, change);
        }
        self.keyring.fill(std::mem::take(&mut loaded.changes), loaded.age, self.clock.now());
        loaded
    }

    /// Serves from `loaded`, if there is anything. `unstored` are the totals in the journal that it does not contain.
    fn serve_from(&self, loaded: Option<Loaded>, mut unstored: JournalTotals) {
        let Some(Loaded { age, spent, spent_at, .. }) = loaded else { return };
        let now = self.clock.now().wall;
        let restore = |row: &UsageTotals, calendar| self.counters.restore(row, calendar, now);
        for mut row in spent {
            let calendar = self.keyring.calendar_of(&row.subject);
            snapshots::since(&mut row, calendar, spent_at, now);
            unstored.add_to(&mut row);
            restore(&row, calendar);
        }
        unstored.into_rows().for_each(|row| restore(&row, self.keyring.calendar_of(&row.subject)));
        self.keyring.open();
        let (keys, age_s) = (self.keyring.len(), age.as_secs());
        tracing::warn!(
            keys,
            age_s,
            "serving from the snapshot on this node's disk until the store can be reached"
        );
    }

    /// Retries until everything is done, or `stop` turns true.
    pub(super) async fn finish(self, follower: &FeedFollower, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            match self.try_once(follower).await {
                Ok(()) => {
                    self.state.0.store(None);
                    tracing::info!(keys = self.keyring.len(), "the store is open, and the keys are loaded");
                    return;
                }
                Err(missed) => {
                    let why = missed.to_string();
                    if self.state.why_closed().is_none_or(|known| *known != why) {
                        tracing::error!(why, "the store cannot be opened; it is tried each second");
                        self.state.note(&why);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(TRY_EVERY) => {}
                _ = stop.changed() => {}
            }
        }
    }

    async fn try_once(&self, follower: &FeedFollower) -> Result<(), StartError> {
        self.store.bring_up().await?;
        agree(&self.peppers, &*self.store).await?;
        apply_plans(&self.plans, &*self.store, self.clock.now().wall).await?;
        // Data from the snapshot is valid only as far as the store confirms it.
        follower.distrust();
        follower.load().await?;
        if let Some((flush, replays)) = &self.replayed {
            if !self.keyring.is_open() {
                let own = flush.has_replayed(REPLAYED_WITHIN);
                let (own, others) = tokio::join!(own, replays.are_done(REPLAYED_WITHIN));
                if !(own && others) {
                    let why = "the journal of an earlier run is being stored";
                    return Err(StoreError::Unavailable(why.into()).into());
                }
            }
            usage::raise(&self.counters, &*self.store, &self.keyring, self.clock.now().wall).await?;
        }
        self.keyring.open();
        Ok(())
    }
}
