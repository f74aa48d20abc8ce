//! Streams usage records as a file of any length, in parts and in constant memory.
//!
//! A part is read when the client has read the previous one, so a slow client occupies nothing, and a disconnect ends the
//! stream. If the store fails half-way, the connection ends without the end of the body, so that nobody takes the partial
//! file for a complete one.

use super::LogView;
use crate::admin::context::AdminState;
use crate::admin::error::AdminError;
use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::id::{KeyId, RequestId, WorkspaceId};
use crate::model::key::words;
use crate::model::usage::UsageRecord;
use crate::store::{LogCursor, LogFilter, LogPage, LogPageRequest};
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::io;
use uuid::Uuid;

words!(
    /// The format of usage records.
    Format {
        /// A page, in the envelope.
        Json = "json",
        /// A CSV file with a header.
        Csv = "csv",
        /// A file with a JSON object in each line.
        Ndjson = "ndjson",
    }
);

/// Records in one part.
const PART: u32 = 1_000;
/// A file that is being sent.
struct LogStream {
    admin: AdminState,
    workspace: WorkspaceId,
    key: KeyId,
    filter: LogFilter,
    format: Format,
    /// The next part; none at the end.
    part: Option<LogPage>,
    is_first: bool,
}

/// The records that match `filter`, newest first, after the position `after`.
pub(super) async fn file(
    admin: AdminState,
    workspace: WorkspaceId,
    key: KeyId,
    filter: LogFilter,
    format: Format,
    after: Option<LogCursor>,
) -> Result<Response, AdminError> {
    let (content_type, ending) = match format {
        Format::Csv => ("text/csv; charset=utf-8", "csv"),
        Format::Json | Format::Ndjson => ("application/x-ndjson", "ndjson"),
    };
    let mut sending = LogStream { admin, workspace, key, filter, format, part: None, is_first: true };
    // The first part is read before the head of the response, so that errors are reported as usual.
    let newest = LogCursor { at: Timestamp::MAX, id: RequestId(Uuid::max()) };
    sending.part = Some(sending.fetch(after.unwrap_or(newest)).await?);
    let parts = futures_util::stream::try_unfold(sending, LogStream::next);
    let name = format!("attachment; filename=\"usage-{key}.{ending}\"");
    let headers = [
        (header::CONTENT_TYPE, content_type.to_owned()),
        (header::CONTENT_DISPOSITION, name),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, Body::from_stream(parts)).into_response())
}

// === impl LogStream ===

impl LogStream {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, axum::Error> {
        let Some(part) = self.part.take() else { return Ok(None) };
        self.admin.deps.metrics.store_rows_passed_over.inc_by(part.passed_over);
        let bytes = self.written(part.items).map_err(axum::Error::new)?;
        if let Some(cursor) = part.next {
            let fetched = self.fetch(cursor).await;
            self.part = Some(fetched.map_err(|_| axum::Error::new("the store did not answer"))?);
        }
        self.is_first = false;
        Ok(Some((bytes, self)))
    }

    async fn fetch(&self, after: LogCursor) -> Result<LogPage, AdminError> {
        let asked = LogPageRequest::After(after, PART);
        let call = self.admin.deps.store.logs(&self.workspace, self.key, &self.filter, asked);
        let found = self.admin.ask(Fault::KeyNotFound, call).await?;
        found.ok_or_else(|| AdminError::of(Fault::KeyNotFound))
    }

    fn written(&self, records: Vec<UsageRecord>) -> csv::Result<Bytes> {
        let mut out = Vec::new();
        if self.format == Format::Csv {
            if self.is_first {
                out.extend_from_slice(&head()?);
            }
            let mut lines = csv::WriterBuilder::new().has_headers(false).from_writer(&mut out);
            for record in records {
                lines.serialize(LogView::cells(record))?;
            }
            lines.flush()?;
            drop(lines);
        } else {
            for record in records {
                serde_json::to_writer(&mut out, &LogView::new(record)).map_err(io::Error::from)?;
                out.push(b'\n');
            }
        }
        Ok(out.into())
    }
}

/// The header line of a CSV file: the field names of a [`LogView`].
fn head() -> csv::Result<Vec<u8>> {
    let mut file = Vec::new();
    let mut lines = csv::Writer::from_writer(&mut file);
    lines.serialize(LogView::default())?;
    lines.flush()?;
    drop(lines);
    let names = file.iter().position(|byte| *byte == b'\n').map_or(file.len(), |end| end + 1);
    file.truncate(names);
    Ok(file)
}
