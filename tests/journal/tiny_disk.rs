//! A file system of a megabyte that a test can fill.

use std::fs;
use std::path::Path;
use std::process::Command;

/// It is unmounted at the end.
pub(crate) struct TinyDisk(tempfile::TempDir);

impl TinyDisk {
    pub(crate) fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder.path());
        assert!(mount.status().unwrap().success(), "this test mounts a tmpfs and has to run as root");
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes what is left of it.
    pub(crate) fn fill(&self) {
        assert!(fs::write(self.path().join("filler"), vec![1; 2 << 20]).is_err(), "it is full");
    }

    /// Gives that back.
    pub(crate) fn make_room(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.path()).status());
    }
}
