//! The seats of a journal: its folder, and folders in it, one for each process of this node that is alive.
//!
//! Usually there is one process, and it has the folder itself. While a new binary already serves and the old one still
//! drains there are two, each with a seat of its own, so no journal ever has two owners: a seat's lock is the kernel's, and
//! ends with its process. What a process leaves in its seat is brought to the ledger by the one that comes after it; a
//! record's identity is the ledger's key, so that one which both have stored is there once.
//!
//! What is kept for a person to look at is in the folder itself, whoever put it there.
//!
//! Must not know: why there are two.

use super::journal::disk::Disk;
use super::journal::{Journal, JournalOptions, OpenError, Reader};
use crate::metrics::Metrics;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most processes of one node that are alive at the same time.
const SEATS: usize = 4;

/// Takes seats of one journal.
#[derive(Clone, Debug)]
pub struct Seats {
    options: JournalOptions,
    disk: Arc<dyn Disk>,
    metrics: Arc<Metrics>,
    /// The number of the one that this process writes to; 0: none yet.
    own: Arc<AtomicUsize>,
}

/// A seat that is this process's.
pub type Seat = (Arc<Journal>, Reader);

/// The seats of other processes of this node.
#[derive(Debug, Default)]
pub struct Others {
    /// Those in which something was left, by processes that are gone.
    pub left: Vec<Seat>,
    /// Whether any has an owner.
    pub are_alive: bool,
}

impl Seats {
    /// The seats of the journal that `options` describe.
    pub fn new(options: JournalOptions, disk: Arc<dyn Disk>, metrics: Arc<Metrics>) -> Self {
        Self { options, disk, metrics, own: Arc::default() }
    }

    /// The first seat, for a process that is the only one of its node, and the seats in which others have left something.
    /// Fails when one of them is alive.
    pub fn alone(&self) -> Result<(Seat, Vec<Seat>), OpenError> {
        let own = self.open(1)?;
        self.own.store(1, Ordering::Relaxed);
        let mut left = Vec::new();
        for number in 2..=SEATS {
            match self.left_in(number) {
                Ok(found) => left.extend(found),
                Err(OpenError::Owned(_)) => return Err(OpenError::Owned(self.options.folder.clone())),
                Err(error) => return Err(error),
            }
        }
        Ok((own, left))
    }

    /// The first seat that is free, for a process that takes over from one that is alive.
    pub fn beside(&self) -> Result<Seat, OpenError> {
        let mut taken = Err(OpenError::Owned(self.options.folder.clone()));
        for number in 1..=SEATS {
            taken = self.open(number);
            if !matches!(taken, Err(OpenError::Owned(_))) {
                self.own.store(number, Ordering::Relaxed);
                break;
            }
        }
        taken
    }

    /// The seats of other processes, for one that has a seat of its own.
    pub fn others(&self) -> Others {
        let own = self.own.load(Ordering::Relaxed);
        let mut others = Others::default();
        for number in (1..=SEATS).filter(|number| *number != own) {
            match self.left_in(number) {
                Ok(found) => others.left.extend(found),
                // Who brings what is in it to the ledger.
                Err(OpenError::Owned(_)) => others.are_alive = true,
                Err(error) => tracing::error!(%error, "what is left in a journal stays there"),
            }
        }
        others
    }

    fn left_in(&self, number: usize) -> Result<Option<Seat>, OpenError> {
        if !self.folder(number).exists() {
            return Ok(None);
        }
        let (journal, reader) = self.open(number)?;
        Ok((journal.bytes() > 0).then_some((journal, reader)))
    }

    fn open(&self, number: usize) -> Result<Seat, OpenError> {
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
