//! Writes and reads the fields of a [`UsageRecord`](super::UsageRecord), one call per field, in order.
//!
//! Must not know: formats. A table row, a JSON line or a CSV row is a [`FieldWriter`] and a [`FieldReader`]; here is which
//! of their calls each field type uses.

use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::id::{BadTextId, EndUserId, KeyId, RequestId, WorkspaceId};
use crate::model::tokens::ReadingSource;
use crate::model::usage::Outcome;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use uuid::Uuid;

/// The target of a record. None is a field without a value.
pub trait FieldWriter {
    /// Why a field could not be written.
    type Error;

    /// An id.
    fn uuid(&mut self, name: &'static str, id: Option<Uuid>) -> Result<(), Self::Error>;
    /// A text, a word or an address.
    fn text(&mut self, name: &'static str, text: Option<&str>) -> Result<(), Self::Error>;
    /// A whole number.
    fn count(&mut self, name: &'static str, count: Option<u64>) -> Result<(), Self::Error>;
    /// An instant.
    fn instant(&mut self, name: &'static str, at: Timestamp) -> Result<(), Self::Error>;
    /// Yes or no.
    fn flag(&mut self, name: &'static str, flag: bool) -> Result<(), Self::Error>;
}

/// The source of a record. An error names the field.
pub trait FieldReader {
    /// Why a field could not be read.
    type Error;

    /// An id.
    fn uuid(&mut self, name: &'static str) -> Result<Uuid, Self::Error>;
    /// An id or nothing.
    fn maybe_uuid(&mut self, name: &'static str) -> Result<Option<Uuid>, Self::Error>;
    /// A text.
    fn text(&mut self, name: &'static str) -> Result<Arc<str>, Self::Error>;
    /// A text or nothing.
    fn maybe_text(&mut self, name: &'static str) -> Result<Option<Arc<str>>, Self::Error>;
    /// A text that is a word or an id.
    fn parsed<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Result<T, Self::Error>;
    /// A text that is a word or an address, or nothing.
    fn maybe_parsed<T: FromStr<Err: Display>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, Self::Error>;
    /// A status.
    fn status(&mut self, name: &'static str) -> Result<u16, Self::Error>;
    /// A whole number.
    fn count(&mut self, name: &'static str) -> Result<u64, Self::Error>;
    /// A whole number or nothing.
    fn maybe_count(&mut self, name: &'static str) -> Result<Option<u64>, Self::Error>;
    /// An instant.
    fn instant(&mut self, name: &'static str) -> Result<Timestamp, Self::Error>;
    /// Yes or no.
    fn flag(&mut self, name: &'static str) -> Result<bool, Self::Error>;
}

/// A type that a field can have.
pub(super) trait Field: Sized {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error>;
    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error>;

    /// A text that may contain anything, so that it can be cut.
    fn text_mut(&mut self) -> Option<&mut Arc<str>> {
        None
    }
}

impl Field for RequestId {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.uuid(name, Some(self.0))
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.uuid(name).map(Self)
    }
}

impl Field for KeyId {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.uuid(name, Some(self.0))
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.uuid(name).map(Self)
    }
}

impl Field for Option<EndUserId> {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.uuid(name, self.map(|id| id.0))
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        Ok(from.maybe_uuid(name)?.map(EndUserId))
    }
}

impl Field for Arc<str> {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.text(name, Some(self))
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.text(name)
    }

    fn text_mut(&mut self) -> Option<&mut Self> {
        Some(self)
    }
}

impl Field for Option<Arc<str>> {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.text(name, self.as_deref())
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.maybe_text(name)
    }

    fn text_mut(&mut self) -> Option<&mut Arc<str>> {
        self.as_mut()
    }
}

impl Field for WorkspaceId {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.text(name, Some(self.as_str()))
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.parsed(name).map(|OfRecord(id)| id)
    }
}

/// A workspace, or none.
struct OfRecord(WorkspaceId);

impl FromStr for OfRecord {
    type Err = BadTextId;

    fn from_str(text: &str) -> Result<Self, BadTextId> {
        WorkspaceId::of_record(text).map(Self)
    }
}

impl Field for Outcome {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.text(name, Some(self.as_str()))
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.parsed(name)
    }
}

impl Field for Option<Fault> {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.text(name, self.map(Fault::name))
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.maybe_parsed(name)
    }
}

impl Field for Option<ReadingSource> {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.text(name, self.map(ReadingSource::as_str))
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.maybe_parsed(name)
    }
}

impl Field for Option<IpAddr> {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.text(name, self.map(|address| address.to_string()).as_deref())
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.maybe_parsed(name)
    }
}

impl Field for u16 {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.count(name, Some((*self).into()))
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.status(name)
    }
}

impl Field for u64 {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.count(name, Some(*self))
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.count(name)
    }
}

impl Field for Option<u64> {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.count(name, *self)
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.maybe_count(name)
    }
}

impl Field for Timestamp {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.instant(name, *self)
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.instant(name)
    }
}

impl Field for bool {
    fn write<W: FieldWriter>(&self, name: &'static str, to: &mut W) -> Result<(), W::Error> {
        to.flag(name, *self)
    }

    fn read<R: FieldReader>(name: &'static str, from: &mut R) -> Result<Self, R::Error> {
        from.flag(name)
    }
}
