//! W3C Trace Context: which trace a request belongs to, parsed strictly, and whether its spans are recorded.
//!
//! Follows the recommendation of November 2021 (level 1, <https://www.w3.org/TR/trace-context-1/>).
//!
//! Must not know: how spans are exported.

use super::fields::HeaderFields;
use crate::model::id::RequestId;
use http::HeaderName;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Bytes of a `traceparent` of version 00.
const LENGTH: usize = 55;
/// The flag of a sampled trace.
const SAMPLED: u8 = 1;

/// The content of a `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The parent span of the receiver.
    pub span_id: [u8; 8],
    /// Whether the trace is sampled.
    pub sampled: bool,
}

/// Sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// One in so many of the traces that begin here is recorded.
    pub one_of: u64,
    /// Whether traces that began elsewhere follow the flag of their `traceparent`, or are sampled like the others.
    pub follow_parent: bool,
}

impl TraceContext {
    /// The trace context of a request with these fields; none if it has to begin a trace.
    pub fn of<'r>(fields: impl Into<HeaderFields<'r>>) -> Option<Self> {
        Self::only(fields.into().all(&TRACEPARENT))
    }

    /// The trace context in the values of `traceparent`; none unless there is exactly one.
    pub fn only<'r>(mut given: impl Iterator<Item = &'r [u8]>) -> Option<Self> {
        let only = given.next().filter(|_| given.next().is_none())?;
        Self::parse(only)
    }

    /// The context of a trace that begins with this request: its id is the trace id, and the span id is made from it.
    pub fn begun_by(id: RequestId, sampled: bool) -> Self {
        Self { trace_id: id.0.into_bytes(), span_id: span_id_of(id), sampled }
    }

    /// Parses a `traceparent`. A later version is read as version 00, as section 3.2.2 says.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let fits = match value.get(..2)? {
            b"00" => value.len() == LENGTH,
            b"ff" => false,
            _ => value.len() == LENGTH || value.get(LENGTH) == Some(&b'-'),
        };
        let dashed = fits && [2, 35, 52].iter().all(|at| value[*at] == b'-');
        if !dashed {
            return None;
        }
        let [_version] = bytes(&value[..2])?;
        let (trace_id, span_id, [flags]) =
            (bytes(&value[3..35])?, bytes(&value[36..52])?, bytes(&value[53..LENGTH])?);
        let named = trace_id != [0; 16] && span_id != [0; 8];
        named.then_some(Self { trace_id, span_id, sampled: flags & SAMPLED != 0 })
    }

    /// The trace id as text.
    pub fn trace_id_text(&self) -> uuid::fmt::Simple {
        uuid::Uuid::from_bytes(self.trace_id).simple()
    }

    /// As a `traceparent` of version 00.
    pub fn to_text(self) -> [u8; LENGTH] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write(&mut text[3..35], &self.trace_id);
        write(&mut text[36..52], &self.span_id);
        write(&mut text[53..], &[u8::from(self.sampled)]);
        text
    }
}

impl Sampling {
    /// Whether the spans of request `id`, which came with `parent`, are recorded.
    pub fn records(self, parent: Option<TraceContext>, id: RequestId) -> bool {
        match parent {
            Some(parent) if self.follow_parent => parent.sampled,
            _ => (u128::from(mixed(id.0.as_u64_pair().1)) * u128::from(self.one_of)) >> 64 == 0,
        }
    }
}

/// Spreads numbers over all 64 bits (the finalizer of `SplitMix64`). Ids are multiples of a number that each process draws: a
/// process with an unlucky one would choose none of thousands of requests in a row, or all.
const fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The span id of a request: the half of its id that is unique.
pub fn span_id_of(id: RequestId) -> [u8; 8] {
    // Its first bits are a UUID's variant, so it is never zero.
    id.0.as_u64_pair().1.to_be_bytes()
}

/// Lower-case hexadecimal digits, as the recommendation requires.
fn bytes<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

fn write(out: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use http::HeaderMap;

    const SOUND: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_sound_traceparent_is_read_and_written_again() {
        let read = TraceContext::parse(SOUND.as_bytes()).expect("it is sound");
        assert!(read.sampled && read.trace_id[0] == 0x4b && read.span_id[7] == 0xb7);
        assert_eq!(read.to_text(), SOUND.as_bytes());
        for (flags, sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            let read = TraceContext::parse(SOUND.replace("-01", &format!("-{flags}")).as_bytes());
            assert_eq!(read.map(|r| r.sampled), Some(sampled), "{flags}");
        }
        // Additions of a later version are ignored.
        for later in
            ["01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", &format!("cc{}-what", &SOUND[2..])]
        {
            let read = TraceContext::parse(later.as_bytes()).expect(later);
            assert_eq!(read.to_text(), SOUND.as_bytes());
        }
    }

    #[test]
    fn a_malformed_traceparent_begins_a_new_trace() {
        for bad in [
            "",
            "00",
            "nonsense",
            &SOUND[..54],
            &format!("{SOUND}-"),
            &format!("{SOUND} "),
            &format!("cc{}x", &SOUND[2..]),
            &SOUND.replace("4b", "4B"),
            &SOUND.replace('-', "_"),
            &format!("ff{}", &SOUND[2..]),
            &format!("0g{}", &SOUND[2..]),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
        ] {
            assert_eq!(TraceContext::parse(bad.as_bytes()), None, "{bad}");
        }
        let mut twice = HeaderMap::new();
        for _ in 0..2 {
            twice.append("traceparent", http::HeaderValue::from_static(SOUND));
        }
        assert_eq!(TraceContext::of(&twice), None, "nobody can tell which");
    }

    #[test]
    fn a_parent_decides_and_of_the_others_one_in_so_many_is_recorded() {
        let id = || RequestId::new(Timestamp::from_secs(1));
        let parent = TraceContext::parse(SOUND.as_bytes());
        let unsampled = parent.map(|p| TraceContext { sampled: false, ..p });
        let follows = |one_of| Sampling { one_of, follow_parent: true };
        assert!((0..100).all(|_| follows(1_000_000_000).records(parent, id())));
        assert!((0..100).all(|_| !follows(1).records(unsampled, id())));
        assert!((0..100).all(|_| follows(1).records(None, id())));
        for parent in [None, parent, unsampled] {
            let chooses = Sampling { one_of: 10, follow_parent: parent.is_none() };
            let chosen = (0..10_000).filter(|_| chooses.records(parent, id())).count();
            assert!((800..=1_200).contains(&chosen), "{chosen} of 10000");
        }
    }

    #[test]
    fn ids_in_steps_of_any_size_are_chosen_as_often() {
        let chooses = Sampling { one_of: 4, follow_parent: false };
        for step in [1_u64, 2, 255, 1 << 20, (1 << 39) - 1, (1 << 40) - 1, 0x66_6666_6667] {
            let id = |n: u64| RequestId(uuid::Uuid::from_u64_pair(7, n.wrapping_mul(step) & ((1 << 40) - 1)));
            let chosen = (0..1_000).filter(|n| chooses.records(None, id(*n))).count();
            assert!((150..=350).contains(&chosen), "step {step}: {chosen} of 1000");
        }
    }

    #[test]
    fn a_trace_that_begins_has_the_id_of_its_request() {
        let id = RequestId::new(Timestamp::from_secs(1));
        let text = String::from_utf8(TraceContext::begun_by(id, true).to_text().to_vec()).expect("text");
        assert_eq!(text[3..35], id.0.simple().to_string());
        assert!(TraceContext::parse(text.as_bytes()).is_some());
    }
}
