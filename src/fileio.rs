//! Reading files that others write: keys, certificates, configs.
//!
//! Only regular files are read, because a FIFO or a device may block for ever. A regular file on a mount that hangs may
//! block, too, so nothing here is called on a thread that serves requests: a running gateway reads files on threads for
//! blocking work.

use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Largest file that is read, in bytes.
pub const BYTES_MAX: u64 = 16 << 20;

/// Opens a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Opening a FIFO would wait for a writer.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// The content of a regular file of at most [`BYTES_MAX`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_up_to(path, BYTES_MAX)
}

/// The content of a regular file of at most `max` bytes.
pub fn read_up_to(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    rest_of(&open(path)?, max)
}

/// The rest of an open file, at most `max` bytes.
pub fn rest_of(file: &File, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("must be at most {max} bytes")));
    }
    Ok(bytes)
}

/// The text of a regular file, in UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    text_of(read(path)?)
}

/// Bytes as text.
pub fn text_of(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to() + 1;
        io::Error::new(io::ErrorKind::InvalidData, format!("must be UTF-8; byte {at} is not"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn only_regular_files_are_read_and_nothing_else_is_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let [fifo, link, plain] = ["fifo", "link", "plain"].map(|name| folder.path().join(name));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
        std::os::unix::fs::symlink(&fifo, &link).expect("linked");
        for path in [&fifo, &link, folder.path(), Path::new("/dev/zero")] {
            let refused = read(path).expect_err("it is no regular file");
            assert!(refused.to_string().contains("regular file"), "{}: {refused}", path.display());
        }
        std::fs::write(&plain, "text").expect("written");
        assert_eq!(read_text(&plain).expect("read"), "text");
        assert_eq!(read_up_to(&plain, 4).expect("read"), b"text");
        assert!(read_up_to(&plain, 3).expect_err("too large").to_string().contains("at most 3 bytes"));
        std::fs::write(&plain, b"ab\xff").expect("written");
        assert!(read_text(&plain).expect_err("no text").to_string().contains("byte 3"));
    }
}
