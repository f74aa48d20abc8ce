//! `keygate usage export`

use super::{count, progress};
use crate::cli::Failure;
use crate::cli::keys::KeyCommand;
use crate::clock::Timestamp;
use crate::model::id::{KeyId, RequestId, WorkspaceId};
use crate::model::usage::UsageRecord;
use crate::policy::text::record_line::{RecordLine, name_in_files};
use crate::store::RecordFilter;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Records examined in one call, and held in memory.
const PART: u32 = 5_000;

/// Arguments of `keygate usage export`.
#[derive(Debug, Args)]
pub(super) struct UsageExportArgs {
    /// Only this workspace; the default is all
    #[arg(long, value_name = "ID")]
    workspace: Option<WorkspaceId>,
    /// Only this key, which may be deleted
    #[arg(long, value_name = "ID")]
    key: Option<KeyId>,
    /// Only requests that arrived at this time or later: RFC 3339, a date (midnight UTC), or epoch milliseconds
    #[arg(long, value_name = "TIME", value_parser = instant)]
    from: Option<Timestamp>,
    /// Only requests that arrived before this time
    #[arg(long, value_name = "TIME", value_parser = instant)]
    to: Option<Timestamp>,
    /// The format; `import` reads both
    #[arg(long, value_enum, default_value = "ndjson")]
    format: Format,
    /// The file to write; it must not exist yet, and only you may read it. The default is standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The format of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A JSON object in each line
    Ndjson,
    /// Comma-separated values with a header; a text that a spreadsheet would take for a formula has a ' in front
    Csv,
}

/// A running export.
struct UsageExport<'d> {
    command: &'d KeyCommand,
    filter: RecordFilter,
    format: Format,
    progress: ProgressBar,
    written: u64,
    passed_over: u64,
}

pub(super) fn run(command: &KeyCommand, args: &UsageExportArgs) -> Result<(), Failure> {
    let UsageExportArgs { workspace, key, from, to, format, output } = args;
    if from.zip(*to).is_some_and(|(from, to)| from >= to) {
        return Err(Failure::Usage("--from must be before --to".into()));
    }
    let filter = RecordFilter { workspace: workspace.clone(), key: *key, from: *from, to: *to };
    let mut export =
        UsageExport { command, filter, format: *format, progress: progress(), written: 0, passed_over: 0 };
    if let Some(path) = output {
        export.write_file(path)?;
    } else {
        let out = BufWriter::new(io::stdout().lock());
        export.everything(out, &|error| Failure::Failed(format!("standard output: {error}")))?;
    }
    export.progress.finish_and_clear();
    let UsageExport { written, passed_over, .. } = export;
    eprintln!("exported {written} usage records");
    if passed_over > 0 {
        eprintln!(
            "keygate: warning: rows that could not be understood and are left out (see the log): {passed_over}"
        );
    }
    Ok(())
}

// === impl UsageExport ===

impl UsageExport<'_> {
    fn write_file(&mut self, path: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::Failed(format!("{}: {error}", path.display()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        self.everything(BufWriter::new(&file), &failed)?;
        file.sync_all().map_err(failed)
    }

    fn everything(
        &mut self,
        mut out: impl Write,
        failed: &dyn Fn(io::Error) -> Failure,
    ) -> Result<(), Failure> {
        let written = match self.format {
            Format::Csv => {
                let names: Vec<_> = UsageRecord::FIELDS.iter().copied().map(name_in_files).collect();
                writeln!(out, "{}", names.join(","))
            }
            Format::Ndjson => Ok(()),
        };
        written.map_err(failed)?;
        let mut next = Some(RequestId(Uuid::nil()));
        while let Some(first) = next {
            let part = self.command.wait(self.command.store.all_records(&self.filter, first, PART))?;
            self.put(&mut out, &part.items).map_err(failed)?;
            self.written += count(part.items.len());
            self.passed_over += part.passed_over;
            self.progress.set_position(self.written);
            next = part.next;
        }
        out.flush().map_err(failed)
    }

    fn put(&self, out: &mut impl Write, records: &[UsageRecord]) -> io::Result<()> {
        if self.format == Format::Csv {
            let mut rows = csv::WriterBuilder::new().has_headers(false).from_writer(out);
            for record in records {
                rows.serialize(RecordLine::cells(record))?;
            }
            return rows.flush();
        }
        for record in records {
            serde_json::to_writer(&mut *out, &RecordLine::json(record))?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// A time as people write it, or as the admin API does.
fn instant(text: &str) -> Result<Timestamp, String> {
    let must = "must be RFC 3339 (2026-07-01T00:00:00Z), a date (2026-07-01) or epoch milliseconds, of the years 1970 to 9999";
    let date = |text: &str| text.parse::<chrono::NaiveDate>().ok()?.and_hms_opt(0, 0, 0);
    let at = if let Ok(ms) = text.parse::<i64>() {
        Timestamp::from_millis(ms)
    } else if let Some(midnight) = date(text) {
        Timestamp::from_micros(midnight.and_utc().timestamp_micros())
    } else {
        let at = chrono::DateTime::parse_from_rfc3339(text).map_err(|_| must)?;
        Timestamp::from_micros(at.timestamp_micros())
    };
    if (Timestamp::default()..=Timestamp::MAX).contains(&at) { Ok(at) } else { Err(must.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_and_the_api_write_them() {
        let july = Timestamp::from_secs(1_751_328_000);
        for text in ["2025-07-01", "2025-07-01T00:00:00Z", "2025-07-01T02:00:00+02:00", "1751328000000"] {
            assert_eq!(instant(text), Ok(july), "{text}");
        }
        let exact = instant("2025-07-01T00:00:00.000001Z");
        assert_eq!(exact, Ok(Timestamp::from_micros(july.as_micros() + 1)));
        for text in
            ["", "yesterday", "2025-07-01 00:00", "-1", "1969-12-31", "99999999999999999", "2025-13-01"]
        {
            assert!(instant(text).is_err(), "{text}");
        }
    }
}
