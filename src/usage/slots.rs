//! The slots of a journal: its folder and subfolders, one for each running process of this node.
//!
//! Usually there is one process, which uses the folder itself. During an upgrade there are two, each with its own slot, so
//! a journal never has two owners. A slot is held by a kernel lock, which ends with the process. Records left in a slot are
//! stored by the next process. The id of a record is the ledger's primary key, so a record that both have stored is there
//! once.
//!
//! What is kept for a person to look at is in the folder itself, whichever process wrote it.
//!
//! Must not know: why there are two processes.

use super::journal::disk::Disk;
use super::journal::{Journal, JournalOptions, JournalReader, OpenError};
use crate::metrics::Metrics;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most live processes of one node.
const SLOTS: usize = 4;

/// Opens the slots of one journal.
#[derive(Clone, Debug)]
pub struct JournalSlots {
    options: JournalOptions,
    disk: Arc<dyn Disk>,
    metrics: Arc<Metrics>,
    /// The number of the slot that this process writes to; 0: none yet.
    own: Arc<AtomicUsize>,
}

/// A slot that this process has locked.
pub type JournalSlot = (Arc<Journal>, JournalReader);

/// The slots of other processes of this node.
#[derive(Debug, Default)]
pub struct OtherSlots {
    /// Those in which processes that have exited left records.
    pub left: Vec<JournalSlot>,
    /// Whether any of them is held by a live process.
    pub are_alive: bool,
}

impl JournalSlots {
    /// The slots of the journal described by `options`.
    pub fn new(options: JournalOptions, disk: Arc<dyn Disk>, metrics: Arc<Metrics>) -> Self {
        Self { options, disk, metrics, own: Arc::default() }
    }

    /// The first slot, for the only process of its node, and the slots with records of earlier processes. Fails if another
    /// slot is held.
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

    /// The first free slot, for a process that takes over from a live one.
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

    /// The slots of other processes, for a process that holds one.
    pub fn others(&self) -> OtherSlots {
        let own = self.own.load(Ordering::Relaxed);
        let mut others = OtherSlots::default();
        for number in (1..=SLOTS).filter(|number| *number != own) {
            match self.leftover_in(number) {
                Ok(found) => others.left.extend(found),
                // Its owner stores its records.
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
    if number == 1 { journal.to_owned() } else { journal.join(format!("slot-{number}")) }
}
