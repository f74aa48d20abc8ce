//! Decodes a body that arrives in pieces, through a buffer of fixed size.
//!
//! Must not know: what the body contains.

use crate::policy::http::coding::{Coding, WINDOW_LOG_MAX, is_zlib};
use crate::policy::http::field_lines::EditFields;
use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use http::header::CONTENT_ENCODING;
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, Operation as _};

/// Decoded bytes that are passed on at once.
const BUFFER: usize = 4096;
/// The window of `gzip`, as a power of two.
const GZIP_WINDOW_LOG: u8 = 15;

/// Decodes one body. `gzip` and `deflate` keep 32 KiB, `zstd` at most 8 MiB and `br` at most 16 MiB, as their windows say.
pub(super) struct BodyDecoder {
    format: Format,
    buffer: Box<[u8]>,
    /// The end of the encoded data has been reached.
    is_finished: bool,
    /// Data has been decoded since the last end.
    is_begun: bool,
}

enum Format {
    Identity,
    Gzip(Decompress),
    /// The first byte, once it is there: two bytes tell zlib's format from the raw one.
    Deflate(Option<u8>),
    Inflate(Decompress),
    Zstd(ZstdDecoder<'static>),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
}

/// The body is not what its coding says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadCoding;

/// One step of a decoder.
struct Step {
    read: usize,
    written: usize,
    is_end: bool,
}

impl BodyDecoder {
    /// A decoder for a body that is not encoded.
    pub(super) fn identity() -> Self {
        Self { format: Format::Identity, buffer: Box::default(), is_finished: false, is_begun: false }
    }

    /// A decoder for what `Content-Encoding` names; none if that is unsupported or several codings.
    pub(super) fn of(fields: &impl EditFields) -> Option<Self> {
        let mut values = fields.values(&CONTENT_ENCODING);
        let is_brotli = values.next().is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(b"br"));
        let format = if is_brotli && values.next().is_none() {
            let alloc = StandardAlloc::default;
            Format::Brotli(Box::new(BrotliState::new_strict(alloc(), alloc(), alloc())))
        } else {
            match Coding::of(fields.values(&CONTENT_ENCODING))? {
                Coding::Identity => Format::Identity,
                Coding::Gzip => Format::Gzip(Decompress::new_gzip(GZIP_WINDOW_LOG)),
                Coding::Deflate => Format::Deflate(None),
                Coding::Zstd => {
                    let mut decoder = ZstdDecoder::new().ok()?;
                    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).ok()?;
                    Format::Zstd(decoder)
                }
            }
        };
        let buffer = if matches!(format, Format::Identity) { 0 } else { BUFFER };
        Some(Self { format, buffer: vec![0; buffer].into(), is_finished: false, is_begun: false })
    }

    /// Whether the body may end here.
    pub(super) const fn is_complete(&self) -> bool {
        matches!(self.format, Format::Identity) || self.is_finished && !self.is_begun
    }

    /// Decodes the next piece and passes on what it contains. Stops early when `pass_on` returns false.
    pub(super) fn push(
        &mut self,
        mut piece: &[u8],
        mut pass_on: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), BadCoding> {
        if matches!(self.format, Format::Identity) {
            pass_on(piece);
            return Ok(());
        }
        if let Format::Deflate(first) = &mut self.format {
            let Some((&byte, rest)) = piece.split_first() else { return Ok(()) };
            let start = match *first {
                None if rest.is_empty() => {
                    *first = Some(byte);
                    return Ok(());
                }
                None => [byte, rest[0]],
                Some(first) => [first, byte],
            };
            let kept = *first;
            self.format = Format::Inflate(Decompress::new(is_zlib(&start)));
            if let Some(first) = kept {
                self.decode(&mut [first].as_slice(), &mut pass_on)?;
            }
        }
        self.decode(&mut piece, &mut pass_on)
    }

    fn decode(
        &mut self,
        piece: &mut &[u8],
        pass_on: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<(), BadCoding> {
        loop {
            if self.is_finished && !piece.is_empty() {
                // Only these formats can be continued by another of their kind.
                match &mut self.format {
                    Format::Gzip(decoder) => *decoder = Decompress::new_gzip(GZIP_WINDOW_LOG),
                    Format::Zstd(_) => {}
                    _ => return Err(BadCoding),
                }
                self.is_finished = false;
            }
            if self.is_finished {
                return Ok(());
            }
            let Step { read, written, is_end } = self.format.step(piece, &mut self.buffer)?;
            self.is_begun |= read > 0;
            *piece = &piece[read..];
            if written > 0 && !pass_on(&self.buffer[..written]) {
                return Ok(());
            }
            if is_end {
                (self.is_finished, self.is_begun) = (true, false);
            }
            let wants_more = written < self.buffer.len();
            if piece.is_empty() && wants_more {
                return Ok(());
            }
            if read == 0 && written == 0 && !is_end {
                return Err(BadCoding);
            }
        }
    }
}

impl Format {
    fn step(&mut self, piece: &[u8], into: &mut [u8]) -> Result<Step, BadCoding> {
        match self {
            Self::Identity | Self::Deflate(_) => Err(BadCoding),
            Self::Gzip(decoder) | Self::Inflate(decoder) => {
                let before = (decoder.total_in(), decoder.total_out());
                let status = decoder.decompress(piece, into, FlushDecompress::None).map_err(|_| BadCoding)?;
                let grown = |now: u64, before: u64| usize::try_from(now - before).map_err(|_| BadCoding);
                Ok(Step {
                    read: grown(decoder.total_in(), before.0)?,
                    written: grown(decoder.total_out(), before.1)?,
                    is_end: status == Status::StreamEnd,
                })
            }
            Self::Zstd(decoder) => {
                let status = decoder.run_on_buffers(piece, into).map_err(|_| BadCoding)?;
                Ok(Step {
                    read: status.bytes_read,
                    written: status.bytes_written,
                    is_end: status.remaining == 0,
                })
            }
            Self::Brotli(state) => {
                let (mut left, mut read, mut room, mut written) = (piece.len(), 0, into.len(), 0);
                let result = BrotliDecompressStream(
                    &mut left,
                    &mut read,
                    piece,
                    &mut room,
                    &mut written,
                    into,
                    &mut 0,
                    state,
                );
                match result {
                    BrotliResult::ResultFailure => Err(BadCoding),
                    result => {
                        Ok(Step { read, written, is_end: matches!(result, BrotliResult::ResultSuccess) })
                    }
                }
            }
        }
    }
}
