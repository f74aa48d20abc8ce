//! Files that a first start creates: peppers, the secret of admin tokens, a first token. Readable by their owner only.

use crate::durable;
use crate::fileio;
use crate::model::id::fill_random;
use crate::policy::keys::secret::{BadPeppers, Peppers};
use crate::policy::text::plain_value::{BadValue, lines, value};
use crate::policy::upstream::encryption::{BadEncryptionKeys, EncryptionKeys};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or created.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// Others may read it.
    #[error("{path} holds a secret and may be read by others (mode {mode:o}); run: chmod 600 {path}. Allowed are: readable by its owner only; a file of root's also by its group; on a read-only file system, where nobody can change it, readable by all and writable by its owner at most", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Its content is not a plain value.
    #[error("{path}: {bad}", path = path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        bad: BadValue,
    },
    /// Its encryption keys cannot be used.
    #[error("{path}: {error}", path = path.display())]
    EncryptionKeys {
        /// The file.
        path: PathBuf,
        /// The error.
        error: BadEncryptionKeys,
    },
    /// Its peppers cannot be used.
    #[error("{path}: {error}", path = path.display())]
    Peppers {
        /// The file.
        path: PathBuf,
        /// The error.
        error: BadPeppers,
    },
}

/// The content of a file, and whether the file was just created.
#[derive(Debug)]
pub struct LoadedSecret<T> {
    /// The content.
    pub value: T,
    /// Whether the file was just created.
    pub is_new: bool,
}

/// The peppers in `path`, which is created with one new pepper if it does not exist.
pub fn peppers(path: &Path) -> Result<LoadedSecret<Peppers>, FileError> {
    let kept = keep(path, || Zeroizing::new(Peppers::generate_line(1) + "\n"))?;
    let text = lines(&kept.value).map_err(|bad| FileError::Value { path: path.to_path_buf(), bad })?;
    let value =
        Peppers::parse(text).map_err(|error| FileError::Peppers { path: path.to_path_buf(), error })?;
    Ok(LoadedSecret { value, is_new: kept.is_new })
}

/// The encryption keys in `path`.
pub(super) fn encryption_keys(path: &Path) -> Result<EncryptionKeys, FileError> {
    let read = read_secret(path)?;
    let text = lines(&read).map_err(|bad| FileError::Value { path: path.to_path_buf(), bad })?;
    EncryptionKeys::parse(text).map_err(|error| FileError::EncryptionKeys { path: path.to_path_buf(), error })
}

/// The secret for admin tokens in `path`, which is created with 32 random bytes (as 64 hexadecimal characters) if it does
/// not exist.
pub fn signing_secret(path: &Path) -> Result<LoadedSecret<Zeroizing<Vec<u8>>>, FileError> {
    let kept = keep(path, || {
        let mut bytes = Zeroizing::new([0_u8; 32]);
        fill_random(&mut *bytes);
        Zeroizing::new(hex::encode(*bytes) + "\n")
    })?;
    let text = value(&kept.value).map_err(|bad| FileError::Value { path: path.to_path_buf(), bad })?;
    let value = Zeroizing::new(text.as_bytes().to_vec());
    Ok(LoadedSecret { value, is_new: kept.is_new })
}

/// Reads a file with a secret.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let file = fileio::open(path).map_err(io(path))?;
    let metadata = file.metadata().map_err(io(path))?;
    let mode = metadata.permissions().mode() & 0o777;
    // Checked on the open file, whatever links led to it and whatever replaces it meanwhile.
    let system = rustix::fs::fstatvfs(&file).map_err(|error| io(path)(error.into()))?;
    let is_read_only = system.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    if mode & forbidden(metadata.uid(), is_read_only) != 0 {
        return Err(FileError::Open { path: path.to_path_buf(), mode });
    }
    let bytes = fileio::rest_of(&file, fileio::BYTES_MAX);
    bytes.and_then(fileio::text_of).map(Zeroizing::new).map_err(io(path))
}

/// The secret in a file that contains nothing else.
pub fn read_secret_value(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let text = read_secret(path)?;
    let value = value(&text).map_err(|bad| FileError::Value { path: path.to_path_buf(), bad })?;
    Ok(Zeroizing::new(value.to_owned()))
}

/// The permissions that a secret's file must not have. A file of root may be readable by its group, as systemd and
/// orchestrators pass secrets; PostgreSQL has the same rule for its key. On a read-only file system no mode can be changed;
/// secrets in containers are there, by default readable by all users of the container.
const fn forbidden(owner: u32, is_read_only: bool) -> u32 {
    match (is_read_only, owner) {
        (true, _) => 0o022,
        (false, 0) => 0o037,
        (false, _) => 0o077,
    }
}

/// Writes `text` to a new private file, or replaces an existing one atomically.
pub fn write_private(path: &Path, text: &str) -> Result<(), FileError> {
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        durable::create_folder(folder).map_err(io(folder))?;
    }
    durable::replace(path, text.as_bytes()).map_err(io(path))
}

fn keep(
    path: &Path,
    make: impl FnOnce() -> Zeroizing<String>,
) -> Result<LoadedSecret<Zeroizing<String>>, FileError> {
    match read_secret(path) {
        Ok(value) => return Ok(LoadedSecret { value, is_new: false }),
        Err(FileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
        Err(other) => return Err(other),
    }
    let value = make();
    write_private(path, &value)?;
    Ok(LoadedSecret { value, is_new: true })
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
    let path = path.to_path_buf();
    |error| FileError::Io { path, error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn made_once_then_read_and_never_shared() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/er/secret");
        let first = signing_secret(&path).expect("made");
        let second = signing_secret(&path).expect("read");
        assert!(first.is_new && !second.is_new);
        assert_eq!((first.value.len(), &first.value), (64, &second.value));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        assert!(matches!(signing_secret(&path), Err(FileError::Open { mode: 0o644, .. })));
    }

    #[test]
    fn whitespace_around_a_secret_is_trimmed_and_quotes_are_reported() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let read = |text: &str| {
            write_private(&path, text).expect("written");
            let signing =
                signing_secret(&path).map(|kept| String::from_utf8(kept.value.to_vec()).expect("text"));
            let other = read_secret_value(&path).map(|secret| secret.to_string());
            let told = |read: Result<String, FileError>| read.map_err(|bad| bad.to_string());
            let (signing, other) = (told(signing), told(other));
            assert_eq!(signing, other, "one rule");
            other
        };
        for text in ["of 32 bytes", "of 32 bytes\n", "\u{feff}of 32 bytes\r\n", "  of 32 bytes"] {
            assert_eq!(read(text).as_deref(), Ok("of 32 bytes"), "{text:?}");
        }
        for text in ["\"of 32 bytes\"\n", "'of 32 bytes'", "of\n32 bytes", "of 32\u{0} bytes"] {
            let told = read(text).expect_err("refused");
            assert!(told.starts_with(&path.display().to_string()) && !told.contains("32"), "{told}");
        }
        write_private(&path, "\u{feff}1:00\n").expect("written");
        assert!(matches!(peppers(&path), Err(FileError::Peppers { .. })), "too short, and no more");
        write_private(&path, "'1:00'\n").expect("written");
        assert!(matches!(peppers(&path), Err(FileError::Value { bad: BadValue::Quoted, .. })));
    }

    #[test]
    fn only_a_file_of_roots_may_be_read_by_its_group() {
        let refused = |owner, mode: u32| mode & forbidden(owner, false) != 0;
        assert!(!refused(0, 0o440) && !refused(0, 0o640) && !refused(1000, 0o600) && !refused(1000, 0o400));
        assert!(refused(1000, 0o640) && refused(0, 0o660) && refused(0, 0o444) && refused(0, 0o604));
    }

    #[test]
    fn on_a_read_only_file_system_others_may_read_and_not_write() {
        let refused = |owner, mode: u32| mode & forbidden(owner, true) != 0;
        assert!(!refused(0, 0o444) && !refused(0, 0o644) && !refused(1000, 0o444) && !refused(1000, 0o400));
        assert!(refused(0, 0o646) && refused(0, 0o664) && refused(1000, 0o666));
    }

    #[test]
    fn peppers_are_made_and_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pepper");
        let checks = |p: &Path| peppers(p).expect("peppers").value.checks();
        assert_eq!(checks(&path), checks(&path));
        fs::write(&path, "nonsense").expect("written");
        assert!(matches!(peppers(&path), Err(FileError::Peppers { .. })));
    }
}
