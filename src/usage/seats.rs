//! The seats of a journal: its folder, and folders in it, one for each process of this node that is alive.
//!
//! Usually there is one process, and it has the folder itself. While a new binary already serves and the old one still
//! drains there are two, each with a seat of its own, so no journal ever has two owners: a seat's lock is the kernel's, and
//! ends with its process. What a process leaves in its seat is brought to the ledger by the one that comes after it; a
//! record's identity is the ledger's key, so that one which both have stored is there once.
//!
//! Must not know: why there are two.

use super::journal::disk::Disk;
use super::journal::{Journal, JournalOptions, OpenError, Reader};
use crate::metrics::Metrics;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most processes of one node that are alive at the same time.
const SEATS: usize = 4;

/// Takes seats of one journal.
#[derive(Clone, Debug)]
pub struct Seats {
    options: JournalOptions,
    disk: Arc<dyn Disk>,
    metrics: Arc<Metrics>,
}

/// A seat that is this process's.
pub type Seat = (Arc<Journal>, Reader);

impl Seats {
    /// The seats of the journal that `options` describe.
    pub fn new(options: JournalOptions, disk: Arc<dyn Disk>, metrics: Arc<Metrics>) -> Self {
        Self { options, disk, metrics }
    }

    /// The first seat, for a process that is the only one of its node, and the seats in which others have left something.
    /// Fails when one of them is alive.
    pub fn alone(&self) -> Result<(Seat, Vec<Seat>), OpenError> {
        let own = self.open(1)?;
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
                break;
            }
        }
        taken
    }

    /// Those of the seats in which something was left by processes that are gone.
    pub fn left(&self) -> Vec<Seat> {
        let mut all = Vec::new();
        for number in 1..=SEATS {
            match self.left_in(number) {
                Ok(found) => all.extend(found),
                // It has an owner, who brings what is in it to the ledger.
                Err(OpenError::Owned(_)) => {}
                Err(error) => tracing::error!(%error, "what is left in a journal stays there"),
            }
        }
        all
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
