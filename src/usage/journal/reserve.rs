//! File descriptors that are kept for the journal, so that it can make segments when others have used up all there are.
//!
//! Taken before the listeners open. When an open fails for lack of descriptors, kept ones are closed until it succeeds;
//! they are taken again as soon as there are some, and first of all from segments that are done with.

use rustix::io::{DupFlags, Errno, dup3};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most that are kept; each is a segment more while descriptors are short.
const KEPT_MAX: usize = 64;
/// Of the descriptors that the process may have, one in so many is kept at most.
const SHARE: u64 = 8;

/// Descriptors that are kept.
#[derive(Debug)]
pub(super) struct Reserve {
    kept: Mutex<Vec<OwnedFd>>,
    most: usize,
}

// === impl Reserve ===

impl Reserve {
    /// Nothing yet, for a journal of at most that many segments.
    pub(super) fn for_segments(segments: usize) -> Self {
        Self { kept: Mutex::default(), most: segments.min(KEPT_MAX) }
    }

    /// Takes what is missing, as far as there are descriptors.
    pub(super) fn fill(&self) {
        let mut kept = self.kept();
        if kept.len() >= self.most {
            return;
        }
        let Ok((allowed, _)) = rlimit::getrlimit(rlimit::Resource::NOFILE) else { return };
        let most = self.most.min(usize::try_from(allowed / SHARE).unwrap_or(KEPT_MAX));
        while kept.len() < most
            && let Ok(file) = File::open("/dev/null")
        {
            kept.push(file.into());
        }
    }

    /// Does what takes descriptors, and gives kept ones up for as long as there are none.
    pub(super) fn open<T>(&self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match open() {
                Err(error) if is_lack(&error) => {
                    let Some(given_up) = self.kept().pop() else { return Err(error) };
                    drop(given_up);
                }
                other => return other,
            }
        }
    }

    /// Keeps the descriptor of a file that is not needed any more, if one is missing; nobody else can get it in between.
    pub(super) fn keep(&self, file: File) {
        let mut kept = self.kept();
        let mut descriptor = OwnedFd::from(file);
        if kept.len() < self.most
            && let Some(other) = kept.last()
            && dup3(other, &mut descriptor, DupFlags::CLOEXEC).is_ok()
        {
            kept.push(descriptor);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_lack(error: &io::Error) -> bool {
    let lacks = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| lacks.contains(&code))
}
