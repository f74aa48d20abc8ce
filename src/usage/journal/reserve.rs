//! Reserved file descriptors, so that the journal can create segments when all others are used up.
//!
//! They are opened before the listeners. When an open fails for lack of descriptors, reserved ones are closed until it
//! succeeds. The reserve is refilled as soon as possible, first from finished segments.

use rustix::io::{DupFlags, Errno, dup3};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most reserved descriptors; each allows one more segment while descriptors are short.
const KEPT_MAX: usize = 64;
/// At most one in so many of the process' descriptors is reserved.
const SHARE: u64 = 8;

/// The reserve.
#[derive(Debug)]
pub(super) struct Reserve {
    kept: Mutex<Vec<OwnedFd>>,
    most: usize,
}

// === impl Reserve ===

impl Reserve {
    /// An empty reserve for a journal of at most so many segments.
    pub(super) fn for_segments(segments: usize) -> Self {
        Self { kept: Mutex::default(), most: segments.min(KEPT_MAX) }
    }

    /// Opens what is missing, as far as there are descriptors.
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

    /// Runs `open`, and closes reserved descriptors while it fails for lack of them.
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

    /// Reserves the descriptor of a file that is no longer needed, if one is missing; no other thread can take it in
    /// between.
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
