//! The slots of a journal: its folder, and subfolders, one for each running process of this node.
//!
//! Usually there is one process, and it has the folder itself. While a new binary already serves and the old one still
//! drains there are two, each with a slot of its own, so no journal ever has two owners: a slot's lock is the kernel's, and
//! ends with its process. What a process leaves in its slot is brought to the ledger by the one that comes after it; a
//! record's identity is the ledger's key, so that one which both have stored is there once.
//!
//! What is kept for a person to look at is in the folder itself, whoever put it there.
//!
//! Must not know: why there are two.

use super::journal::disk::Disk;
use super::journal::{Journal, JournalOptions, JournalReader, OpenError};
use crate::metrics::Metrics;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most processes of one node that are alive at the same time.
const SLOTS: usize = 4;

/// Opens slots of one journal.
#[derive(Clone, Debug)]
pub struct JournalSlots {
    options: JournalOptions,
    disk: Arc<dyn Disk>,
    metrics: Arc<Metrics>,
    /// The number of the one that this process writes to; 0: none yet.
    own: Arc<AtomicUsize>,
}

/// A slot that this process has locked.
pub type JournalSlot = (Arc<Journal>, JournalReader);

/// The slots of other processes of this node.
#[derive(Debug, Default)]
pub struct OtherSlots {
    /// Those in which something was left, by processes that are gone.
    pub left: Vec<JournalSlot>,
    /// Whether any has an owner.
    pub are_alive: bool,
}

impl JournalSlots {
    /// The slots of the journal that `options` describe.
    pub fn new(options: JournalOptions, disk: Arc<dyn Disk>, metrics: Arc<Metrics>) -> Self {
        Self { options, disk, metrics, own: Arc::default() }
    }

    /// The first slot, for a process that is the only one of its node, and the slots in which others have left something.
    /// Fails when one of them is alive.
    pub fn open_exclusive(&self) -> Result<(JournalSlot, Vec<JournalSlot>), OpenError> {
        let own = self.open(1)?;
        self.own.store(1, Ordering::Relaxed);
        let mut left = Vec::new();
        for number in 2..=SLOTS {
            match self.leftover_in(number) {
                Ok(found) => left.extend(found),
                Err(OpenError::Owned(_)) => return Err(OpenError::Owned(self.options.folder.clone())),
                Err(error) => return Err(error),
            }
        }
        Ok((own, left))
    }

    /// The first slot that is free, for a process that takes over from one that is alive.
    pub fn open_free(&self) -> Result<JournalSlot, OpenError> {
        let mut taken = Err(OpenError::Owned(self.options.folder.clone()));
        for number in 1..=SLOTS {
            taken = self.open(number);
            if !matches!(taken, Err(OpenError::Owned(_))) {
                self.own.store(number, Ordering::Relaxed);
                break;
            }
        }
        taken
    }

    /// The slots of other processes, for one that has a slot of its own.
    pub fn others(&self) -> OtherSlots {
        let own = self.own.load(Ordering::Relaxed);
        let mut others = OtherSlots::default();
        for number in (1..=SLOTS).filter(|number| *number != own) {
            match self.leftover_in(number) {
                Ok(found) => others.left.extend(found),
                // Who brings what is in it to the ledger.
                Err(OpenError::Owned(_)) => others.are_alive = true,
                Err(error) => tracing::error!(%error, "cannot open journal slot, its records stay in place"),
            }
        }
        others
    }

    fn leftover_in(&self, number: usize) -> Result<Option<JournalSlot>, OpenError> {
        if !self.folder(number).exists() {
            return Ok(None);
        }
        let (journal, reader) = self.open(number)?;
        Ok((journal.bytes() > 0).then_some((journal, reader)))
    }

    fn open(&self, number: usize) -> Result<JournalSlot, OpenError> {
        let options = JournalOptions { folder: self.folder(number), ..self.options.clone() };
        Journal::open(options, Arc::clone(&self.disk), Arc::clone(&self.metrics))
    }

    fn folder(&self, number: usize) -> PathBuf {
        folder(&self.options.folder, number)
    }
}

fn folder(journal: &Path, number: usize) -> PathBuf {
    if number == 1 { journal.to_owned() } else { journal.join(format!("seat-{number}")) }
}
