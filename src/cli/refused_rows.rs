//! Writes the rows that an import refused to a file, to be corrected and imported again.

use super::{Failure, text_file};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes the rows of `source` that begin on one of `lines` to `to`. Only the owner may read it: the rows may contain
/// secrets.
pub(super) fn write(source: &Path, lines: &BTreeSet<u64>, to: &Path) -> Result<(), Failure> {
    let is_csv = source.extension().is_some_and(|extension| extension == "csv");
    let copied = if is_csv { copy_csv(source, lines, to) } else { copy_lines(source, lines, to) };
    copied.map_err(|error| Failure::Failed(format!("{}: {error}", to.display())))
}

fn create(to: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)
}

fn copy_lines(source: &Path, lines: &BTreeSet<u64>, to: &Path) -> io::Result<()> {
    let mut out = BufWriter::new(create(to)?);
    for (number, line) in (1..).zip(text_file(source)?.split(b'\n')) {
        let line = line?;
        if lines.contains(&number) {
            out.write_all(&line)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()
}

fn copy_csv(source: &Path, lines: &BTreeSet<u64>, to: &Path) -> io::Result<()> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text_file(source)?);
    let mut out = csv::WriterBuilder::new().flexible(true).from_writer(create(to)?);
    out.write_byte_record(reader.byte_headers().map_err(io::Error::other)?).map_err(io::Error::other)?;
    for record in reader.into_byte_records() {
        let record = record.map_err(io::Error::other)?;
        if record.position().is_some_and(|position| lines.contains(&position.line())) {
            out.write_byte_record(&record).map_err(io::Error::other)?;
        }
    }
    out.flush()
}
