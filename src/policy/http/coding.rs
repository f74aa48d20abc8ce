//! Content codings of bodies that are read here.
//!
//! Must not know: what a body contains. Decoded data is streamed up to a limit and never kept, so a small body that decodes
//! to a large one costs no memory.

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use std::io::{self, BufReader, Read};

/// The supported codings, as `Accept-Encoding` lists them.
pub const CODINGS: &str = "gzip, deflate, zstd";
/// The largest window of a `zstd` body, as a power of two: 8 MiB, which RFC 9659 requires every decoder to support.
pub const WINDOW_LOG_MAX: u32 = 23;

/// The coding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// None.
    Identity,
    /// `gzip`.
    Gzip,
    /// `deflate`: zlib's format, or the raw format that some clients send.
    Deflate,
    /// `zstd`.
    Zstd,
}

/// A reader of the decoded body, up to a number of bytes.
pub enum Decoded<'b> {
    /// Not encoded.
    Identity(Limited<&'b [u8]>),
    /// `gzip`.
    Gzip(Limited<MultiGzDecoder<&'b [u8]>>),
    /// zlib's format.
    Zlib(Limited<ZlibDecoder<&'b [u8]>>),
    /// Raw deflate.
    Deflate(Limited<DeflateDecoder<&'b [u8]>>),
    /// `zstd`.
    Zstd(Limited<zstd::Decoder<'static, &'b [u8]>>),
}

/// Fails when more than `left` bytes are read.
pub struct Limited<R> {
    inner: R,
    left: u64,
}

impl Coding {
    /// The coding that the values of `Content-Encoding` name; none if it is unsupported or there are several.
    pub fn of<'v>(values: impl Iterator<Item = &'v [u8]>) -> Option<Self> {
        let names = values.flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        let mut codings = names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
        let Some(name) = codings.next() else { return Some(Self::Identity) };
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        let coding = if is(b"gzip") || is(b"x-gzip") {
            Self::Gzip
        } else if is(b"deflate") {
            Self::Deflate
        } else if is(b"zstd") {
            Self::Zstd
        } else {
            return None;
        };
        codings.next().is_none().then_some(coding)
    }

    /// A reader of the decoded `body`, at most `max` bytes.
    pub fn decoded(self, body: &[u8], max: u64) -> io::Result<BufReader<Decoded<'_>>> {
        let decoded = match self {
            Self::Identity => Decoded::Identity(Limited { inner: body, left: max }),
            Self::Gzip => Decoded::Gzip(Limited { inner: MultiGzDecoder::new(body), left: max }),
            Self::Deflate if is_zlib(body) => {
                Decoded::Zlib(Limited { inner: ZlibDecoder::new(body), left: max })
            }
            Self::Deflate => Decoded::Deflate(Limited { inner: DeflateDecoder::new(body), left: max }),
            Self::Zstd => {
                let mut inner = zstd::Decoder::with_buffer(body)?;
                inner.window_log_max(WINDOW_LOG_MAX)?;
                Decoded::Zstd(Limited { inner, left: max })
            }
        };
        Ok(BufReader::new(decoded))
    }
}

/// Whether a body begins as zlib's format does (RFC 1950, 2.2).
pub fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [first, second, ..] if first & 0x0f == 8 && (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0)
}

/// Whether reading failed because of the limit.
pub fn is_too_much(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::FileTooLarge
}

impl Read for Decoded<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Identity(reader) => reader.read(into),
            Self::Gzip(reader) => reader.read(into),
            Self::Zlib(reader) => reader.read(into),
            Self::Deflate(reader) => reader.read(into),
            Self::Zstd(reader) => reader.read(into),
        }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let came = self.inner.read(into)?;
        let left = u64::try_from(came).ok().and_then(|came| self.left.checked_sub(came));
        self.left = left.ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(came)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::read::{DeflateEncoder, GzEncoder, ZlibEncoder};

    fn coded(text: &[u8]) -> Vec<(Coding, Vec<u8>)> {
        let all = |mut reader: Box<dyn Read + '_>| {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).expect("coded");
            bytes
        };
        vec![
            (Coding::Identity, text.to_vec()),
            (Coding::Gzip, all(Box::new(GzEncoder::new(text, Compression::best())))),
            (Coding::Deflate, all(Box::new(ZlibEncoder::new(text, Compression::best())))),
            (Coding::Deflate, all(Box::new(DeflateEncoder::new(text, Compression::best())))),
            (Coding::Zstd, zstd::encode_all(text, 3).expect("coded")),
        ]
    }

    fn decode(coding: Coding, body: &[u8], max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        coding.decoded(body, max)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn decoded_bodies_are_read_up_to_the_limit() {
        let text = [b"{\"user\":\"ann\"}".as_slice(), &[b' '; 10_000_000]].concat();
        for (coding, body) in coded(&text) {
            assert!(decode(coding, &body, 10_000_014).is_ok_and(|bytes| bytes == text), "{coding:?}");
            let error = decode(coding, &body, 10_000_013).expect_err("more than may be");
            assert!(is_too_much(&error), "{coding:?}: {error}");
            // A body that decodes to a thousand times its size.
            assert!(coding == Coding::Identity || body.len() < 20_000, "{coding:?}: {}", body.len());
        }
    }

    #[test]
    fn a_body_that_does_not_match_its_content_coding_is_refused() {
        for (coding, body) in coded(b"{\"user\":\"ann\"}") {
            if coding == Coding::Identity {
                continue;
            }
            let cut = &body[..body.len() - 3];
            assert!(decode(coding, cut, 1_000).is_err_and(|error| !is_too_much(&error)), "{coding:?}");
            assert!(decode(coding, b"{\"user\":\"ann\"}", 1_000).is_err(), "{coding:?}");
        }
    }

    #[test]
    fn a_known_content_coding_is_found_by_name_and_others_are_refused() {
        for (values, coding) in [
            (&[][..], Some(Coding::Identity)),
            (&["identity"], Some(Coding::Identity)),
            (&["GZIP"], Some(Coding::Gzip)),
            (&["x-gzip"], Some(Coding::Gzip)),
            (&["identity, zstd"], Some(Coding::Zstd)),
            (&["deflate"], Some(Coding::Deflate)),
            (&["br"], None),
            (&["gzip, gzip"], None),
            (&["gzip", "zstd"], None),
            (&["gzip;q=1"], None),
        ] {
            assert_eq!(Coding::of(values.iter().map(|value| value.as_bytes())), coding, "{values:?}");
        }
    }
}
