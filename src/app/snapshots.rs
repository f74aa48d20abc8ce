//! Snapshots on a node's own disk, so that it can start while its database is unreachable: the keyring, and the counts of
//! its counters.
//!
//! They are two files beside the journal, readable by their owner only. Each has a version, a checksum against damage and a
//! MAC under a key derived from the pepper: a file that was changed, or written by another installation, is refused. The
//! second file is written every few seconds and contains when the database last answered, so that nothing older than
//! `keyring.max_stale` is used.
//!
//! ```text
//! keygate keyring 4\n          or  keygate spending 4\n
//! version of the pepper        4 bytes, little-endian as all numbers
//! content                      rows of [`crate::store::snapshot`]; or two instants, then subjects with six counts each
//! CRC-32 of all before         4
//! HMAC-SHA-256 of all before   32
//! ```

use super::CoreServices;
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, StoreLocation};
use crate::counter::Counters;
use crate::durable;
use crate::keyring::Keyring;
use crate::model::calendar::Calendar;
use crate::model::id::{EndUserId, KeyId, WorkspaceId};
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::policy::keys::calendar::Window;
use crate::policy::keys::secret::{Peppers, Seal};
use crate::store::{Change, snapshot};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often the files are written without changes, and how soon after a change. Large ones are written less often: writing
/// takes at most one part in [`SHARE`] of the time.
const EVERY: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_secs(1);
const SHARE: u32 = 50;
const CRC: usize = 4;
const TAG: usize = 32;

/// Both files of a node.
#[derive(Clone)]
pub(super) struct Snapshots {
    keyring: PathBuf,
    spending: PathBuf,
    peppers: Arc<Peppers>,
}

/// The content of the files.
pub(super) struct Loaded {
    /// Plans, workspaces and keys.
    pub(super) changes: Vec<Change>,
    /// How long ago the database last answered.
    pub(super) age: Duration,
    /// The counts at the time of writing.
    pub(super) spent: Vec<UsageTotals>,
    /// When it was written: earlier records of the journal are included.
    pub(super) spent_at: Timestamp,
}

/// Writes through a checksum and a MAC.
struct Sealing<'w> {
    out: &'w mut dyn Write,
    crc: crc32fast::Hasher,
    seal: Seal,
}

impl Snapshots {
    /// The files of this node, if its database is on another machine.
    pub(super) fn of_node(config: &Config, core: &CoreServices) -> Option<Self> {
        let is_elsewhere = matches!(config.store.location, StoreLocation::Postgres(_));
        is_elsewhere.then(|| Self::of(&config.usage.journal_dir, Arc::clone(&core.peppers)))
    }

    /// In `folder`, which is the journal's.
    fn of(folder: &Path, peppers: Arc<Peppers>) -> Self {
        Self { keyring: folder.join("keyring.snapshot"), spending: folder.join("spending.snapshot"), peppers }
    }

    /// The content, if it may be used. The error says why not.
    pub(super) fn load(&self, now: Timestamp, max_stale: Duration) -> Result<Loaded, String> {
        let spending = self.read(&self.spending, "spending")?;
        let cut_off = || format!("{} ends too soon", self.spending.display());
        let mut from = spending.as_slice();
        let heard_at = Timestamp::from_micros(take_i64(&mut from).ok_or_else(cut_off)?);
        let spent_at = Timestamp::from_micros(take_i64(&mut from).ok_or_else(cut_off)?);
        // After the clock was set back, the file counts as old, too.
        let age = Duration::from_micros(now.as_micros().abs_diff(heard_at.as_micros()));
        if age > max_stale {
            let limit = max_stale.as_secs();
            return Err(format!("it is {} s old, and keyring.max_stale is {limit} s", age.as_secs()));
        }
        let mut spent = Vec::new();
        while !from.is_empty() {
            spent.push(take_spent(&mut from).ok_or_else(cut_off)?);
        }
        let content = self.read(&self.keyring, "keyring")?;
        let mut changes = Vec::new();
        snapshot::read(&content, |change| changes.push(change)).map_err(|error| error.to_string())?;
        Ok(Loaded { changes, age, spent, spent_at })
    }

    /// Keeps both files current until `stop` turns true, and writes them a last time then.
    pub(super) async fn keep(
        self,
        keyring: Arc<Keyring>,
        counters: Arc<Counters>,
        clock: Arc<dyn Clock>,
        mut stop: watch::Receiver<bool>,
    ) {
        let (mut written, mut is_failing) = (None, false);
        let mut versions = keyring.versions();
        loop {
            versions.mark_unchanged();
            let is_last = *stop.borrow();
            let (own, keyring, counters) = (self.clone(), Arc::clone(&keyring), Arc::clone(&counters));
            let (now, begun) = (clock.now(), Instant::now());
            let before = written;
            let writing = tokio::task::spawn_blocking(move || {
                let Some(age) = keyring.age(now).filter(|_| keyring.is_open()) else { return Ok(before) };
                let version = keyring.version();
                // During a complete read there is no version, and the content may be incomplete.
                let is_new = version.0 > 0 && before != Some(version);
                if is_new {
                    own.write_keyring(&keyring)?;
                }
                let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
                let heard_at = Timestamp::from_micros(now.wall.as_micros().saturating_sub(age));
                own.write_spending(&counters, heard_at, now.wall)?;
                Ok::<_, io::Error>(if is_new { Some(version) } else { before })
            });
            match writing.await.unwrap_or_else(|lost| Err(io::Error::other(lost))) {
                Ok(now_written) => {
                    written = now_written;
                    is_failing = false;
                }
                Err(error) if !std::mem::replace(&mut is_failing, true) => {
                    tracing::warn!(%error, "cannot write the snapshot that this node starts from without its database");
                }
                Err(_) => {}
            }
            if is_last {
                return;
            }
            let rest = REST.max(begun.elapsed() * SHARE);
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                _ = stop.changed() => continue,
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY.saturating_sub(rest)) => {}
                // The keyring ends after this.
                _ = versions.changed() => {}
                _ = stop.changed() => {}
            }
        }
    }

    fn write_keyring(&self, keyring: &Keyring) -> io::Result<()> {
        self.write(&self.keyring, "keyring", |out| {
            let mut row = Vec::new();
            keyring.snapshot(&mut |put| {
                row.clear();
                put(&mut row);
                out.write_all(&row)
            })
        })
    }

    fn write_spending(&self, counters: &Counters, heard_at: Timestamp, at: Timestamp) -> io::Result<()> {
        self.write(&self.spending, "spending", |out| {
            out.write_all(&heard_at.as_micros().to_le_bytes())?;
            out.write_all(&at.as_micros().to_le_bytes())?;
            let mut rows = Vec::new();
            counters.each_spent(at, |row| put_spent(&row, &mut rows));
            out.write_all(&rows)
        })
    }

    fn write(
        &self,
        path: &Path,
        kind: &str,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let pepper = self.peppers.current();
        durable::replace_with(path, |out| {
            let mut sealing = Sealing { out, crc: crc32fast::Hasher::new(), seal: pepper.seal() };
            sealing.write_all(head(kind).as_bytes())?;
            sealing.write_all(&pepper.version().to_le_bytes())?;
            content(&mut sealing)?;
            let crc = sealing.crc.clone().finalize();
            sealing.write_all(&crc.to_le_bytes())?;
            let Sealing { out, seal, .. } = sealing;
            out.write_all(&seal.finish())
        })
    }

    /// The content of a file that is complete and ours.
    fn read(&self, path: &Path, kind: &str) -> Result<Vec<u8>, String> {
        let refused = |why: &str| format!("{} {why}", path.display());
        let mut bytes = std::fs::read(path).map_err(|error| refused(&format!("cannot be read: {error}")))?;
        let head = head(kind);
        if !bytes.starts_with(head.as_bytes()) {
            return Err(refused("is not a snapshot of this version of Keygate"));
        }
        let damaged = || refused("is damaged");
        let sealed = bytes.len().checked_sub(TAG).ok_or_else(damaged)?;
        let end = sealed.checked_sub(CRC).filter(|end| *end >= head.len() + 4).ok_or_else(damaged)?;
        if crc32fast::hash(&bytes[..end]).to_le_bytes() != bytes[end..sealed] {
            return Err(damaged());
        }
        let mut version = &bytes[head.len()..head.len() + 4];
        let version = take_u32(&mut version).ok_or_else(damaged)?;
        let pepper = self.peppers.iter().find(|pepper| pepper.version() == version);
        let mut seal = pepper.ok_or_else(|| refused("was written under a pepper that is gone"))?.seal();
        seal.update(&bytes[..sealed]);
        if !seal.matches(&bytes[sealed..]) {
            return Err(refused("was not written by this installation, or was changed since"));
        }
        bytes.truncate(end);
        bytes.drain(..head.len() + 4);
        Ok(bytes)
    }
}

impl Write for Sealing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.crc.update(&bytes[..n]);
        self.seal.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn head(kind: &str) -> String {
    format!("keygate {kind} 6\n")
}

/// Keeps the counts that are still valid at another time: those of ended windows are dropped.
pub(super) fn since(row: &mut UsageTotals, calendar: Calendar, then: Timestamp, now: Timestamp) {
    for (window, used) in Window::all(calendar, then).iter().zip(&mut row.used) {
        if !window.contains(now) {
            *used = 0;
        }
    }
    for (window, metered) in Window::all(calendar, then).iter().zip(&mut row.metered) {
        if !window.contains(now) {
            *metered = Default::default();
        }
    }
}

fn put_spent(row: &UsageTotals, out: &mut Vec<u8>) {
    match &row.subject {
        UsageSubject::Key(id) => {
            out.push(0);
            out.extend(id.0.as_bytes());
        }
        UsageSubject::Workspace(id) => {
            out.extend([1, u8::try_from(id.as_str().len()).unwrap_or(u8::MAX)]);
            out.extend(id.as_str().as_bytes());
        }
        UsageSubject::EndUser(workspace, id) => {
            out.extend([2, u8::try_from(workspace.as_str().len()).unwrap_or(u8::MAX)]);
            out.extend(workspace.as_str().as_bytes());
            out.extend(id.0.as_bytes());
        }
    }
    for count in row.used {
        out.extend(count.to_le_bytes());
    }
    let is_metered = row.metered.iter().flatten().any(|units| *units > 0);
    out.push(is_metered.into());
    if is_metered {
        row.metered.iter().flatten().for_each(|units| out.extend(units.to_le_bytes()));
    }
}

fn take_spent(from: &mut &[u8]) -> Option<UsageTotals> {
    let subject = match take(from, 1)?.first()? {
        0 => UsageSubject::Key(KeyId(take_uuid(from)?)),
        1 => UsageSubject::Workspace(take_workspace(from)?),
        _ => UsageSubject::EndUser(take_workspace(from)?, EndUserId(take_uuid(from)?)),
    };
    let mut totals = UsageTotals::nothing(subject);
    for count in &mut totals.used {
        *count = take_u64(from)?;
    }
    if take(from, 1)?.first()? != &0 {
        for units in totals.metered.iter_mut().flatten() {
            *units = take_u64(from)?;
        }
    }
    Some(totals)
}

fn take_uuid(from: &mut &[u8]) -> Option<uuid::Uuid> {
    Some(uuid::Uuid::from_bytes(take(from, 16)?.try_into().ok()?))
}

fn take_workspace(from: &mut &[u8]) -> Option<WorkspaceId> {
    let length = usize::from(*take(from, 1)?.first()?);
    std::str::from_utf8(take(from, length)?).ok()?.parse().ok()
}

fn take_u64(from: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(from, 8)?.try_into().ok()?))
}

fn take<'f>(from: &mut &'f [u8], n: usize) -> Option<&'f [u8]> {
    let (taken, rest) = from.split_at_checked(n)?;
    *from = rest;
    Some(taken)
}

fn take_i64(from: &mut &[u8]) -> Option<i64> {
    Some(i64::from_le_bytes(take(from, 8)?.try_into().ok()?))
}

fn take_u32(from: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(from, 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const MAX_STALE: Duration = Duration::from_secs(60);

    fn peppers(byte: u8) -> Arc<Peppers> {
        Arc::new(Peppers::new(vec![(1, vec![byte; 32])]).expect("peppers"))
    }

    fn written(folder: &Path) -> Snapshots {
        let snapshots = Snapshots::of(folder, peppers(1));
        let counters = Counters::default();
        for (subject, total) in [
            (UsageSubject::Key(KeyId::new(NOW)), 7),
            (UsageSubject::Workspace("w".parse().expect("an id")), 9),
        ] {
            let row = UsageTotals { used: [1, 2, 3, 4, 5, total], ..UsageTotals::nothing(subject) };
            counters.restore(&row, Calendar::UTC, NOW);
        }
        snapshots.write_keyring(&Keyring::new()).expect("written");
        snapshots.write_spending(&counters, NOW, NOW).expect("written");
        snapshots
    }

    fn after(by: Duration) -> Timestamp {
        Timestamp::from_micros(NOW.as_micros() + i64::try_from(by.as_micros()).expect("short"))
    }

    #[test]
    fn written_counts_are_read_and_ended_windows_count_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = written(folder.path());
        let Loaded { age, mut spent, .. } = snapshots.load(NOW, MAX_STALE).ok().expect("good");
        spent.sort_by_key(|row| row.used);
        assert_eq!(age, Duration::ZERO);
        let counts: Vec<_> = spent.iter().map(|row| row.used).collect();
        assert_eq!(counts, [[1, 2, 3, 4, 5, 7], [1, 2, 3, 4, 5, 9]]);
        let mut later = snapshots.load(after(MAX_STALE), MAX_STALE).ok().expect("as old as it may be");
        since(&mut later.spent[0], Calendar::UTC, later.spent_at, after(MAX_STALE));
        assert_eq!((later.age, later.spent[0].used[..2].to_vec()), (MAX_STALE, vec![0, 2]));
    }

    #[test]
    fn snapshots_too_old_or_of_another_installation_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = written(folder.path());
        let why = |outcome: Result<Loaded, String>| outcome.err().expect("refused");
        let late = MAX_STALE + Duration::from_secs(1);
        assert!(why(snapshots.load(after(late), MAX_STALE)).contains("61 s old"));
        let early = Timestamp::from_micros(2 * NOW.as_micros() - after(late).as_micros());
        assert!(why(snapshots.load(early, MAX_STALE)).contains("61 s old"), "a clock that was set back");
        let other = Snapshots::of(folder.path(), peppers(2));
        assert!(why(other.load(NOW, MAX_STALE)).contains("not written by this installation"));
        let newer = Arc::new(Peppers::new(vec![(2, vec![1; 32])]).expect("peppers"));
        assert!(
            why(Snapshots::of(folder.path(), newer).load(NOW, MAX_STALE)).contains("pepper that is gone")
        );
    }

    #[test]
    fn no_byte_can_be_changed_or_lacking() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = written(folder.path());
        for path in [&snapshots.keyring, &snapshots.spending] {
            let whole = fs::read(path).expect("read");
            for at in 0..whole.len() {
                let mut changed = whole.clone();
                changed[at] ^= 1;
                fs::write(path, &changed).expect("written");
                assert!(snapshots.load(NOW, MAX_STALE).is_err(), "byte {at} of {}", path.display());
                // Somebody who changes it can correct the checksum, but not the MAC.
                let sealed = whole.len() - TAG;
                if at < sealed - CRC {
                    let crc = crc32fast::hash(&changed[..sealed - CRC]).to_le_bytes();
                    changed[sealed - CRC..sealed].copy_from_slice(&crc);
                    fs::write(path, &changed).expect("written");
                    assert!(snapshots.load(NOW, MAX_STALE).is_err(), "byte {at} of {}", path.display());
                }
                fs::write(path, &whole[..at]).expect("written");
                assert!(snapshots.load(NOW, MAX_STALE).is_err(), "{at} bytes of {}", path.display());
            }
            fs::write(path, &whole).expect("written");
        }
        assert!(snapshots.load(NOW, MAX_STALE).is_ok());
    }
}
