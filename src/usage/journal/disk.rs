//! The file system calls of the journal, so that tests can make them fail.

use super::mapping::Mapping;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Calls that fail when a disk is full or broken.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Creates a file of `bytes` zeros in `folder`, fully allocated, so that writing to it later cannot fail for lack of
    /// space. Its name is on disk when this returns. Leaves nothing behind on failure.
    fn create(&self, folder: &File, path: &Path, bytes: u64) -> io::Result<File>;

    /// Syncs a part of a mapped file to disk.
    fn sync(&self, mapping: &Mapping, range: Range<usize>) -> io::Result<()>;
}

/// The real disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, folder: &File, path: &Path, bytes: u64) -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let made = allocate(&file, bytes).and_then(|()| folder.sync_all());
        match made {
            Ok(()) => Ok(file),
            Err(error) => {
                if let Err(left) = fs::remove_file(path) {
                    tracing::debug!(%left, "cannot remove incomplete journal segment");
                }
                Err(error)
            }
        }
    }

    fn sync(&self, mapping: &Mapping, range: Range<usize>) -> io::Result<()> {
        mapping.sync(range)
    }
}

fn allocate(mut file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        // A file system without preallocation has the space once zeros have been written.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let zeros = vec![0_u8; 65_536];
            let mut left = bytes;
            while left > 0 {
                let part = usize::try_from(left).map_or(zeros.len(), |n| n.min(zeros.len()));
                file.write_all(&zeros[..part])?;
                left -= u64::try_from(part).unwrap_or(left);
            }
            file.sync_data()
        }
        other => Ok(other?),
    }
}
