//! Encodes rows in the binary format of PostgreSQL's COPY, directly from values.
//!
//! Pure; must not know which table the rows are for. The format is in PostgreSQL's manual, "COPY, Binary Format": a header;
//! for each row the number of its fields, and for each field its length and bytes, all big-endian; and a trailer.

use crate::clock::Timestamp;
use crate::model::usage::fields::FieldWriter;
use crate::store::shared::fields::int;
use bytes::{BufMut, Bytes, BytesMut};
use std::convert::Infallible;
use uuid::Uuid;

/// Signature, no flags, no extension.
const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The trailer, in the place of a row.
const TAIL: i16 = -1;
/// The length of a field that is NULL.
const NULL: i32 = -1;

/// Encoded rows, all with the same number of fields.
pub(super) struct CopyRows {
    out: BytesMut,
    fields: i16,
}

// === impl CopyRows ===

impl CopyRows {
    /// No rows yet, with capacity for `bytes` bytes.
    pub(super) fn of(fields: usize, bytes: usize) -> Self {
        let mut out = BytesMut::with_capacity(bytes);
        out.put_slice(HEAD);
        Self { out, fields: i16::try_from(fields).unwrap_or(i16::MAX) }
    }

    /// Starts a row; its fields follow in the order of the columns.
    pub(super) fn begin(&mut self) {
        self.out.put_i16(self.fields);
    }

    /// A BIGINT.
    pub(super) fn int(&mut self, n: i64) {
        self.out.put_i32(8);
        self.out.put_i64(n);
    }

    pub(super) fn maybe_int(&mut self, n: Option<i64>) {
        match n {
            Some(n) => self.int(n),
            None => self.out.put_i32(NULL),
        }
    }

    /// A BOOLEAN.
    pub(super) fn bool(&mut self, flag: bool) {
        self.out.put_i32(1);
        self.out.put_u8(flag.into());
    }

    /// A TEXT; the server's encoding is UTF-8.
    pub(super) fn text(&mut self, text: &str) {
        // A record's texts were cut to a few KiB, so the length always fits.
        self.out.put_i32(i32::try_from(text.len()).unwrap_or(i32::MAX));
        self.out.put_slice(text.as_bytes());
    }

    pub(super) fn maybe_text(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.text(text),
            None => self.out.put_i32(NULL),
        }
    }

    /// A UUID.
    pub(super) fn uuid(&mut self, id: Uuid) {
        self.out.put_i32(16);
        self.out.put_slice(id.as_bytes());
    }

    pub(super) fn maybe_uuid(&mut self, id: Option<Uuid>) {
        match id {
            Some(id) => self.uuid(id),
            None => self.out.put_i32(NULL),
        }
    }

    /// The complete bytes.
    pub(super) fn finish(mut self) -> Bytes {
        self.out.put_i16(TAIL);
        self.out.freeze()
    }
}

impl FieldWriter for CopyRows {
    type Error = Infallible;

    fn uuid(&mut self, _: &'static str, id: Option<Uuid>) -> Result<(), Infallible> {
        self.maybe_uuid(id);
        Ok(())
    }

    fn text(&mut self, _: &'static str, text: Option<&str>) -> Result<(), Infallible> {
        self.maybe_text(text);
        Ok(())
    }

    fn count(&mut self, _: &'static str, count: Option<u64>) -> Result<(), Infallible> {
        self.maybe_int(count.map(int));
        Ok(())
    }

    fn instant(&mut self, _: &'static str, at: Timestamp) -> Result<(), Infallible> {
        self.int(at.as_micros());
        Ok(())
    }

    fn flag(&mut self, _: &'static str, flag: bool) -> Result<(), Infallible> {
        self.bool(flag);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_manual() {
        let mut rows = CopyRows::of(4, 64);
        rows.begin();
        rows.int(-2);
        rows.bool(true);
        rows.text("é");
        rows.maybe_uuid(None);
        let expected = [
            b"PGCOPY\n\xff\r\n\0".as_slice(),
            &[0; 8],
            &[0, 4],
            &[0, 0, 0, 8, 255, 255, 255, 255, 255, 255, 255, 254],
            &[0, 0, 0, 1, 1],
            &[0, 0, 0, 2, 0xc3, 0xa9],
            &[255; 4],
            &[255, 255],
        ];
        assert_eq!(rows.finish(), expected.concat());
    }
}
