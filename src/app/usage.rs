//! Sets up usage recording: the journal, its writer, and their readiness checks.

use super::{CoreServices, components};
use crate::admin::ReadinessCheck;
use crate::clock::Timestamp;
use crate::config::{Config, CountersLocation};
use crate::counter::Counters;
use crate::keyring::Keyring;
use crate::metrics::{Metrics, UsageCount};
use crate::model::calendar::Calendar;
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::store::{Ledger, StoreError};
use crate::usage::journal::disk::RealDisk;
use crate::usage::journal::{JournalFlusher, JournalOptions, OpenError};
use crate::usage::{
    Journal, JournalSlot, JournalSlots, JournalTotals, LedgerWriter, LedgerWriterOptions, OtherSlots,
    PendingReplays, WriterProgress,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a start may take to store the records of an earlier run. The rest is counted from the journal.
const REPLAY_WITHIN: Duration = Duration::from_millis(250);
/// How often to check whether another process of this node has exited.
const CHECK_SLOTS_EVERY: Duration = Duration::from_millis(250);
/// Batches of totals in flight from the ledger.
const SPENT_BATCHES: usize = 4;

/// How the journals of this process reach the ledger.
#[derive(Clone)]
pub(super) struct UsageWriting {
    slots: JournalSlots,
    options: LedgerWriterOptions,
    /// Records of other processes.
    replays: PendingReplays,
    ledger: Arc<dyn Ledger>,
    metrics: Arc<Metrics>,
    io: Handle,
    deadline: watch::Receiver<Option<Instant>>,
    /// Held by writers of other processes' records, and by the process until it stops: then no further writer begins.
    open: mpsc::WeakSender<()>,
}

/// The writer of this process's journal, and those of other processes' records.
pub(super) struct LedgerWriters {
    pub(super) own: LedgerWriter,
    pub(super) left: Vec<LedgerWriter>,
    /// Of those, and of those that are found later.
    replays: PendingReplays,
}

/// Prepares all writing. When the process drops its end of the channel, no further writer of other processes' records
/// begins; the receiver ends when all have finished.
pub(super) fn writing(
    config: &Config,
    core: &CoreServices,
    io: &Handle,
    deadline: watch::Receiver<Option<Instant>>,
) -> (UsageWriting, (mpsc::Sender<()>, mpsc::Receiver<()>)) {
    let options = JournalOptions {
        folder: config.usage.journal_dir.clone(),
        aside: config.usage.journal_dir.clone(),
        max_bytes: config.usage.journal_max_bytes,
        segment_bytes: config.usage.journal_segment_bytes,
        sync_interval: config.usage.journal_sync_interval,
        threads: components::threads(config.proxy.threads),
        node: config.node.name.as_str().into(),
        boot: core.boot,
    };
    let metrics = Arc::clone(&core.metrics);
    let slots = JournalSlots::new(options, Arc::new(RealDisk), Arc::clone(&metrics));
    let options = LedgerWriterOptions {
        batch_records: config.usage.batch_records,
        batch_delay: config.usage.batch_delay,
    };
    let (open, all_written) = mpsc::channel(1);
    let ledger: Arc<dyn Ledger> = core.store.clone();
    let (replays, io) = (PendingReplays::default(), io.clone());
    let writing =
        UsageWriting { slots, options, replays, ledger, metrics, io, deadline, open: open.downgrade() };
    (writing, (open, all_written))
}

impl LedgerWriters {
    /// The progress of the ledger: for this process, and for other processes' records.
    pub(super) fn tell(&self) -> (WriterProgress, PendingReplays) {
        (self.own.flush(), self.replays.clone())
    }
}

impl UsageWriting {
    /// Takes the first slot, or a free one beside another process.
    pub(super) fn begin(&self, alone: bool) -> Result<LedgerWriters, OpenError> {
        if !alone {
            let (own, left) = (self.writer(self.slots.open_free()?), Vec::new());
            return Ok(LedgerWriters { own, left, replays: self.replays.clone() });
        }
        let (own, left) = self.slots.open_exclusive()?;
        let left = left.into_iter().map(|slot| self.writer_of_leftovers(slot)).collect();
        Ok(LedgerWriters { own: self.writer(own), left, replays: self.replays.clone() })
    }

    fn writer_of_leftovers(&self, slot: JournalSlot) -> LedgerWriter {
        let writer = self.writer(slot).of_the_rest();
        self.replays.add(writer.flush());
        writer
    }

    fn writer(&self, (_, reader): JournalSlot) -> LedgerWriter {
        let (ledger, metrics) = (Arc::clone(&self.ledger), Arc::clone(&self.metrics));
        LedgerWriter::new(reader, ledger, metrics, self.options, self.deadline.clone())
    }

    /// Runs a writer on its own thread: decoding many records must not delay I/O.
    pub(super) fn write(&self, writer: LedgerWriter) -> JoinHandle<()> {
        let handle = self.io.clone();
        self.io.spawn_blocking(move || handle.block_on(writer.run()))
    }

    /// Stores the records in a slot without another owner, and releases the slot.
    pub(super) fn write_leftovers(&self, writer: LedgerWriter) -> JoinHandle<()> {
        let (handle, open) = (self.io.clone(), self.open.upgrade());
        self.io.spawn_blocking(move || {
            // The process is stopping; the next one stores the rest.
            let Some(open) = open else { return };
            let journal = Arc::clone(writer.journal());
            tracing::info!(folder = %journal.folder().display(), "storing usage records left by another process");
            // Nobody writes to it; its flusher removes what is stored.
            journal.close();
            match JournalFlusher::start(journal) {
                Ok(keeper) => {
                    handle.block_on(writer.run());
                    keeper.stop();
                }
                Err(error) => tracing::error!(%error, "cannot read journal left by another process, its records stay in place"),
            }
            drop(open);
        })
    }

    /// Stores records in the slots of this node's other processes when they exit, until it is the only one.
    pub(super) async fn adopt_slots(self) {
        while self.open.strong_count() > 0 {
            let OtherSlots { left, are_alive } = self.slots.others();
            for slot in left {
                if let Err(error) = self.write_leftovers(self.writer_of_leftovers(slot)).await {
                    tracing::error!(%error, "cannot read journal left by another process, its records stay in place");
                }
            }
            if !are_alive {
                return;
            }
            tokio::time::sleep(CHECK_SLOTS_EVERY).await;
        }
    }
}

/// Stores records of earlier runs, and sets the counters from the ledger and from the totals of the journal, before the
/// first request. Shared counters read the ledger themselves.
pub(super) async fn restore(
    config: &Config,
    core: &CoreServices,
    counters: &Counters,
    keyring: &Keyring,
    writers: &mut LedgerWriters,
) -> Result<(), StoreError> {
    let at = core.clock.now().wall;
    let unstored = replay(writers, keyring, at, None).await;
    match config.counters.location {
        CountersLocation::Memory => restore_to(counters, &*core.store, keyring, unstored, at).await,
        CountersLocation::Redis(_) => Ok(()),
    }
}

/// Stores records of earlier runs, and returns the totals that are not in the ledger yet, of requests that arrived `after`
/// that time.
pub(super) async fn replay(
    writers: &mut LedgerWriters,
    keyring: &Keyring,
    at: Timestamp,
    after: Option<Timestamp>,
) -> JournalTotals {
    let calendars = keyring.calendars();
    let nothing = || JournalTotals::new(at, &calendars).only_after(after);
    let mut unstored = writers.own.replay(REPLAY_WITHIN, nothing()).await;
    for left in &mut writers.left {
        unstored.absorb(left.replay(REPLAY_WITHIN, nothing()).await);
    }
    unstored
}

/// Raises the counters to at least the totals of the ledger, for subjects in `keyring`.
pub(super) async fn raise(
    counters: &Counters,
    ledger: &dyn Ledger,
    keyring: &Keyring,
    at: Timestamp,
) -> Result<(), StoreError> {
    each_spent(ledger, keyring, at, |row, calendar| counters.raise(&row, calendar, at)).await
}

/// The ledger's totals of everything in `keyring`, for the windows that contain `at`. The ledger is read once per calendar.
async fn each_spent(
    ledger: &dyn Ledger,
    keyring: &Keyring,
    at: Timestamp,
    mut each: impl FnMut(UsageTotals, Calendar),
) -> Result<(), StoreError> {
    let mut calendars: HashSet<Calendar> = keyring.calendars().into_values().collect();
    calendars.insert(Calendar::UTC);
    for calendar in calendars {
        let (to, mut rows) = mpsc::channel::<Vec<UsageTotals>>(SPENT_BATCHES);
        let is_wanted =
            |subject: &UsageSubject| keyring.calendar_of(subject) == calendar && keyring.knows(subject);
        let taken = async {
            while let Some(batch) = rows.recv().await {
                batch.into_iter().filter(|row| is_wanted(&row.subject)).for_each(|row| each(row, calendar));
            }
        };
        tokio::join!(ledger.totals(at, calendar, to), taken).0?;
    }
    for workspace in keyring.limiting_end_users() {
        let calendar = keyring.calendar_of(&UsageSubject::Workspace(workspace.clone()));
        let (to, mut rows) = mpsc::channel::<Vec<UsageTotals>>(SPENT_BATCHES);
        let taken = async {
            while let Some(batch) = rows.recv().await {
                for row in batch {
                    each(row, calendar);
                }
            }
        };
        tokio::join!(ledger.end_user_totals(&workspace, at, calendar, to), taken).0?;
    }
    Ok(())
}

/// The ledger contains all keys ever used; `keyring`, which is loaded, those that can still be used.
async fn restore_to(
    counters: &Counters,
    ledger: &dyn Ledger,
    keyring: &Keyring,
    mut unstored: JournalTotals,
    at: Timestamp,
) -> Result<(), StoreError> {
    let read = each_spent(ledger, keyring, at, |mut row, calendar| {
        unstored.add_to(&mut row);
        counters.restore(&row, calendar, at);
    });
    read.await?;
    for row in unstored.into_rows().filter(|row| keyring.knows(&row.subject)) {
        counters.restore(&row, keyring.calendar_of(&row.subject), at);
    }
    Ok(())
}

/// The readiness of usage recording. Only a node that refuses requests because its journal is full is not ready.
pub(super) fn checks(metrics: &Metrics, journal: &Journal, refuses_when_full: bool) -> [ReadinessCheck; 2] {
    let UsageCount { accepted, stored, in_journal, shed, set_aside } = metrics.usage();
    let is_full = journal.is_full();
    let room = if is_full { "full" } else { "has room" };
    let journal_now = format!("{room}; {} bytes, {} records wait", journal.bytes(), journal.waiting());
    let identity = format!(
        "accepted {accepted} = stored {stored} + in journal {in_journal} + shed {shed} + set aside {set_aside}"
    );
    [
        ReadinessCheck { name: "usage_journal", ok: !(is_full && refuses_when_full), detail: journal_now },
        ReadinessCheck { name: "usage", ok: true, detail: identity },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::counter::Handover;
    use crate::keyring::{FeedFollower, FeedOptions};
    use crate::model::digest::Digest;
    use crate::model::id::{KeyId, WorkspaceId};
    use crate::model::key::{Ceilings, Key, KeyType, Plan};
    use crate::model::usage::UsageRecord;
    use crate::store::sqlite::{SqliteOptions, SqliteStore};
    use crate::store::{Actor, IssuedCredential, Keys as _, NewKey, PlanRecord, SecretId};
    use crate::store::{Store as _, Tenants as _};
    use std::collections::HashMap;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn key_of(workspace: &WorkspaceId, byte: u8) -> NewKey {
        let key = Key {
            id: KeyId::new(NOW),
            workspace_id: workspace.clone(),
            kind: KeyType::Service,
            scopes: crate::model::scope::Scopes::default(),
            resource_id: "r".into(),
            ceilings: Ceilings {
                rate_limit: 1,
                rate_burst: None,
                daily_request_limit: Some(1),
                quota_limit: None,
                concurrency_limit: None,
                limits: Box::default(),
            },
            allowed_ips: Box::default(),
            is_active: true,
            expires_at: None,
            end_user: None,
        };
        NewKey {
            key,
            name: format!("key {byte}"),
            description: String::new(),
            external_id: None,
            metadata: serde_json::Map::new(),
            credential: IssuedCredential {
                digest: Digest([byte; 32]),
                pepper_version: 1,
                secret: SecretId(0),
                hint: "h".into(),
            },
            past: None,
            once: None,
        }
    }

    fn record(key: KeyId, workspace: &WorkspaceId) -> UsageRecord {
        UsageRecord::sample(key, workspace.clone(), NOW)
    }

    #[tokio::test]
    async fn keys_and_workspaces_that_are_gone_are_not_counted_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.db");
        let store = Arc::new(SqliteStore::open(&path, &SqliteOptions::default()).unwrap());
        let by = Actor::keygate();
        let plan = Plan {
            id: "p".parse().unwrap(),
            api_ops_rate_limit: 1,
            end_user_quota: 1,
            default_daily_request_limit: None,
            limits: Box::default(),
            calendar: Calendar::UTC,
        };
        let [w, elsewhere]: [WorkspaceId; 2] = ["w", "elsewhere"].map(|id| id.parse().unwrap());
        let plan_id = plan.id.clone();
        let plan = PlanRecord {
            plan,
            description: String::new(),
            usage_retention_days: None,
            deleted_keys_days: 30,
            created_at: NOW,
            updated_at: NOW,
        };
        store.create_plan(plan, &by, NOW).await.unwrap();
        store.ensure_workspace(&w, &plan_id, &by, NOW).await.unwrap();
        let mut keys = Vec::new();
        for byte in 1..=3 {
            keys.push(store.create_key(key_of(&w, byte), &by, NOW).await.unwrap().value.key.id);
        }
        let [stays, goes, breaks] = keys[..] else { panic!("three keys") };
        store.delete_key(&w, goes, &by, NOW).await.unwrap();
        let file = rusqlite::Connection::open(&path).unwrap();
        let broken = file.execute("UPDATE keys SET rate_limit = -1 WHERE id = ?1", [breaks.0.as_bytes()]);
        assert_eq!(broken.unwrap(), 1);
        let spent_by = [stays, goes, breaks, KeyId::new(NOW)];
        let stored = spent_by.map(|key| record(key, if key == spent_by[3] { &elsewhere } else { &w }));
        store.append(&stored).await.unwrap();
        let mut unstored = JournalTotals::new(NOW, &HashMap::new());
        [stays, goes].iter().for_each(|key| unstored.add_record(&record(*key, &w)));

        let keyring = Arc::new(Keyring::new());
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW));
        let options = FeedOptions { poll_interval: Duration::from_secs(1) };
        let feed = store.clone();
        let follower =
            FeedFollower::new(Arc::clone(&keyring), feed, Arc::clone(&clock), options, Box::new(|_| ()));
        follower.load().await.unwrap();
        let counters = Counters::default();
        restore_to(&counters, &*store, &keyring, unstored, NOW).await.unwrap();
        let counted: Vec<_> = Handover::default().deltas(&counters, clock.now()).into_iter().collect();
        let mut counted: Vec<_> = counted.into_iter().map(|told| (told.subject, told.spent[0])).collect();
        counted.sort();
        // The broken one may be repaired while this process runs.
        let [key, may_be_mended, workspace] =
            [UsageSubject::Key(stays), UsageSubject::Key(breaks), UsageSubject::Workspace(w)];
        // Ids of the same moment are in no order.
        let mut expected = [(key, 2), (may_be_mended, 1), (workspace, 5)];
        expected.sort();
        assert_eq!(counted, expected);
        store.close().await;
    }
}
