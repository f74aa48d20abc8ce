//! A file system of one megabyte that a test can fill.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Mounts it, and unmounts it when its standard input ends, which happens however the test ends.
const KEEPER: &str = r#"
    mount -t tmpfs -o size=1m tmpfs "$1" || exit 1
    echo "$$"
    read -r _
    umount -l "$1"
"#;

/// It is unmounted at the end.
pub(crate) struct TinyDisk {
    path: PathBuf,
    keeper: Child,
    _folder: TempDir,
}

impl TinyDisk {
    /// As root, or as root of a user namespace; there, only its keeper process sees the mount, and we use it through the
    /// keeper.
    pub(crate) fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (as_root, mut as_anybody) = (Command::new("sh"), Command::new("unshare"));
        as_anybody.args(["--map-root-user", "--mount", "sh"]);
        for (mut shell, is_seen) in [(as_root, true), (as_anybody, false)] {
            shell.args(["-c", KEEPER, "sh"]).arg(folder.path()).stderr(Stdio::null());
            let Ok(mut keeper) = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else { continue };
            let mut line = String::new();
            BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
            if let Ok(pid) = line.trim().parse::<u32>() {
                let there = folder.path().display();
                let path = if is_seen { there.to_string() } else { format!("/proc/{pid}/root{there}") };
                return Self { path: path.into(), keeper, _folder: folder };
            }
            keeper.wait().unwrap();
        }
        panic!(
            "this test mounts a tmpfs: run it as root, or where `unshare --map-root-user --mount` is allowed"
        );
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fills the rest of the disk.
    pub(crate) fn fill(&self) {
        assert!(fs::write(self.path().join("filler"), vec![1; 2 << 20]).is_err(), "it is full");
    }

    /// Frees that again.
    pub(crate) fn make_room(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}
