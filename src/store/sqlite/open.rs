//! Opens the file: folder, lock, pragmas, schema.
//!
//! Must not know: what the connections are used for. A file that is not suitable is `Refused` with a message for the
//! operator.

use super::{SqliteOptions, StoreError};
use crate::durable;
use crate::store::shared::migrate::{
    self, HISTORY_TABLE, HistoryLine, MigrationName, MigrationState, SQLITE,
};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// An opened store.
pub(super) struct OpenedFile {
    pub(super) writer: Connection,
    pub(super) readers: Vec<Connection>,
    pub(super) lock: Arc<FileLock>,
}

/// Holds `<path>.lock`, which tells other processes that the file is in use. The kernel releases it when this process, and
/// any process that it was passed on to, has exited.
pub(super) struct FileLock {
    file: File,
}

/// "KyGt": identifies the database in the file's header.
const APPLICATION_ID: i32 = 0x4b79_4774;
/// Prepared statements kept on each connection; there are about 60 in all.
const STATEMENTS_MAX: usize = 128;
/// The writer's page cache, in KiB: a batch of thousands of keys changes as many pages, and each that does not fit is
/// written and read again within the batch.
const WRITER_CACHE_KIB: i64 = 32 << 10;
/// Pages in the write-ahead log before a checkpoint (32 MiB): pages that change in every batch, such as the newest of the
/// ledger, are then copied once for many batches.
const CHECKPOINT_PAGES: i64 = 8_192;
/// The write-ahead log is truncated to this size after a checkpoint, in bytes.
const WAL_BYTES_MAX: i64 = 64 << 20;

/// Opens the store and migrates its schema.
pub(super) fn open(
    path: &Path,
    options: &SqliteOptions,
    lock: Option<File>,
) -> Result<OpenedFile, StoreError> {
    let lock = match lock {
        Some(file) => FileLock::inherit(path, file)?,
        None => FileLock::take(path)?,
    };
    let mut writer = connect(path, options.busy_timeout)?;
    bring_up_to_date(path, &mut writer)?;
    writer.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    writer.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    let mut readers = Vec::with_capacity(options.readers.max(1));
    for _ in 0..options.readers.max(1) {
        let reader = connect(path, options.busy_timeout)?;
        reader.pragma_update(None, "query_only", true)?;
        readers.push(reader);
    }
    Ok(OpenedFile { writer, readers, lock: Arc::new(lock) })
}

/// Migrates the schema of the store at `path`, creates the store if it does not exist, and returns its state. `Refused`
/// while a gateway uses it. Blocks.
pub fn migrate(path: &Path) -> Result<MigrationState, StoreError> {
    let lock = FileLock::take(path)?;
    let mut connection = connect(path, SqliteOptions::default().busy_timeout)?;
    bring_up_to_date(path, &mut connection)?;
    let state = state(&connection);
    drop(lock);
    state
}

/// Returns the state of the store at `path` and changes nothing; a gateway may be using it. Blocks.
pub fn check(path: &Path) -> Result<MigrationState, StoreError> {
    if !path.exists() {
        return migrate::compare(&migrate::runner(SQLITE)?, Vec::new());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(SqliteOptions::default().busy_timeout)?;
    connection.pragma_update(None, "query_only", true)?;
    require_ours(path, &connection)?;
    state(&connection)
}

/// Errors that need a person are `Refused`; a missing mount or a disk that does not answer may recover.
fn cannot_be_opened(path: &Path, error: &std::io::Error) -> StoreError {
    let why = format!("{} cannot be opened: {error}", path.display());
    match error.kind() {
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::AlreadyExists
        | ErrorKind::InvalidFilename
        | ErrorKind::InvalidInput => StoreError::Refused(why),
        _ => StoreError::Unavailable(why),
    }
}

fn connect(path: &Path, busy_timeout: Duration) -> Result<Connection, StoreError> {
    // Not created by SQLite, which would make it readable by all; its side files copy the mode.
    let is_new = !path.exists();
    let made = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    made.and_then(|_| if is_new { durable::sync_folder_of(path) } else { Ok(()) })
        .map_err(|error| cannot_be_opened(path, &error))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // A prepared statement stays prepared, whatever values are bound next.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    require_ours(path, &connection)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Each commit waits for the disk: callers rely on it, and the journal releases the records.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX)?;
    Ok(connection)
}

/// Refuses a file that another program wrote. An empty file is accepted.
fn require_ours(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let refused = || StoreError::Refused(format!("{} is not a Keygate database", path.display()));
    let read = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
    let tables = read.map_err(|error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => refused(),
        _ => error.into(),
    })?;
    let id: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    if id == APPLICATION_ID || (id == 0 && tables == 0) { Ok(()) } else { Err(refused()) }
}

fn bring_up_to_date(path: &Path, connection: &mut Connection) -> Result<(), StoreError> {
    if state(connection)?.pending.is_empty() {
        return Ok(());
    }
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    let report = migrate::runner(SQLITE)?.run(connection).map_err(|error| migrate::refused(&error))?;
    for migration in report.applied_migrations() {
        tracing::info!(path = %path.display(), %migration, "schema migrated");
    }
    Ok(())
}

/// Not by refinery, which panics on a history that it did not write itself.
fn state(connection: &Connection) -> Result<MigrationState, StoreError> {
    let known = migrate::runner(SQLITE)?;
    let exists = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    let tables: i64 = connection.query_row(exists, [HISTORY_TABLE], |row| row.get(0))?;
    if tables == 0 {
        return migrate::compare(&known, Vec::new());
    }
    let sql = format!("SELECT version, name, checksum FROM {HISTORY_TABLE} ORDER BY version");
    let mut statement = connection.prepare(&sql)?;
    let read = |row: &rusqlite::Row<'_>| {
        let migration = MigrationName { number: row.get(0)?, name: row.get(1)? };
        Ok(HistoryLine { migration, checksum: row.get(2)? })
    };
    let history = statement.query_map([], read)?.collect::<Result<Vec<_>, _>>()?;
    migrate::compare(&known, history)
}

// === impl FileLock ===

impl FileLock {
    /// Takes the lock beside `path`, or names the process that holds it.
    fn take(path: &Path) -> Result<Self, StoreError> {
        let refused = cannot_be_opened;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            durable::create_folder(folder).map_err(|error| refused(folder, &error))?;
        }
        let beside = lock_path(path);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&beside)
            .map_err(|error| refused(&beside, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path, &mut file)),
            Err(TryLockError::Error(error)) => return Err(refused(&beside, &error)),
        }
        write_pid(&mut file).map_err(|error| refused(&beside, &error))?;
        Ok(Self { file })
    }

    /// The lock of the process that this one replaces: both hold it until the last of them has exited.
    fn inherit(path: &Path, mut file: File) -> Result<Self, StoreError> {
        if !is_at(&file, &lock_path(path)) {
            return Self::take(path);
        }
        let written = write_pid(&mut file);
        written
            .map_err(|error| StoreError::Refused(format!("{} cannot be opened: {error}", path.display())))?;
        Ok(Self { file })
    }

    /// Another handle of the same lock, to be passed on.
    pub(super) fn share(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }
}

/// Whether `file` is the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    file.flush()
}

fn in_use(path: &Path, lock: &mut File) -> StoreError {
    let mut text = String::new();
    // The number is only a courtesy: without it the message still says what to do.
    let pid = match lock.take(20).read_to_string(&mut text) {
        Ok(_) => text.trim(),
        Err(_) => "",
    };
    let who = if pid.is_empty() { String::new() } else { format!(" (pid {pid})") };
    StoreError::Refused(format!(
        "{} is in use by another Keygate{who}; stop it or use its admin API",
        path.display()
    ))
}
