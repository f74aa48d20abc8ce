//! The format of records in a segment: encodes and decodes frames and payloads. Pure.
//!
//! Must not know: files. The input may be anything: decoding never panics and accepts no frame whose checksum is wrong.

mod reading;

pub use reading::Reading;

use crate::clock::Timestamp;
use crate::model::amounts::Amounts;
use crate::model::fault::Fault;
use crate::model::id::{EndUserId, KeyId, RequestId, WorkspaceId};
use crate::model::tokens::TokenCounts;
use crate::model::usage::{Outcome, UsageRecord};
use std::net::IpAddr;
use uuid::Uuid;

/// Alignment of frames.
pub const ALIGN: usize = 8;
/// Bytes of a frame before its payload.
pub const HEADER: usize = 16;
/// Longest payload, in bytes. Fields are cut so that all of them fit.
pub const PAYLOAD_MAX: usize = 8_192;
/// The mark of a frame whose record is in the ledger. Any other value means that it is not.
pub const ACKNOWLEDGED: u32 = 0x6b6f_7d21;
/// Position of the mark in a frame.
pub const MARK_AT: usize = 12;

const MAGIC: [u8; 2] = *b"KG";
const VERSION: u8 = 1;

/// Longest path that is stored, in bytes.
const ENDPOINT_MAX: usize = 2_048;
/// Longest `User-Agent` that is stored, in bytes.
const USER_AGENT_MAX: usize = 256;
/// Longest other text that is stored, in bytes.
const TEXT_MAX: usize = 255;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The start of a request, before it is forwarded or refused.
    Admit = 1,
    /// Its end.
    Complete = 2,
    /// Both in one, if the first could not be written in time.
    Whole = 3,
}

/// The seed of the checksums of one segment. It ensures that no frame of another segment, and nothing a client sent, is
/// valid in this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksumSeed(u32);

/// The start of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admit<'a> {
    /// Id of the record.
    pub id: RequestId,
    /// The key that was presented.
    pub api_key_id: KeyId,
    /// The workspace of the key.
    pub workspace_id: &'a str,
    /// When the request arrived.
    pub at: Timestamp,
    /// The request id that the client and the logs have.
    pub request_id: &'a str,
    /// HTTP method.
    pub method: &'a str,
    /// Canonical path.
    pub endpoint: &'a str,
    /// The route's name.
    pub route: &'a str,
    /// The client's address.
    pub ip_address: Option<IpAddr>,
    /// The client's `User-Agent`.
    pub user_agent: &'a str,
    /// The end user.
    pub end_user_id: Option<EndUserId>,
    /// Whether it was charged.
    pub charged: bool,
    /// Whether its limits were decided without the shared counters.
    pub degraded: bool,
    /// The node that serves it.
    pub node: &'a str,
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complete<'a> {
    /// Id of the record.
    pub id: RequestId,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it was denied.
    pub denial: Option<Fault>,
    /// Status sent to the client, or that would have been sent.
    pub status_code: u16,
    /// Whether it is charged to limits.
    pub charged: bool,
    /// From arrival to the last byte of the response, in µs.
    pub response_time_us: u64,
    /// From arrival to the first byte of the response, in µs.
    pub ttfb_us: Option<u64>,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// Tokens; the total of the reading if there is one.
    pub tokens_used: u64,
    /// The backend server that was tried last.
    pub upstream: &'a str,
    /// What the meter found out; none without a meter.
    pub reading: Option<Reading<'a>>,
}

/// A frame that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its kind; none if another version of Keygate wrote it, or if the kind is unknown.
    pub kind: Option<FrameKind>,
    /// Its payload.
    pub payload: &'a [u8],
    /// Whether its record is in the ledger.
    pub acknowledged: bool,
    /// Bytes from its start to the start of the next frame.
    pub len: usize,
}

/// The result of reading a place where a frame may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParsedFrame<'a> {
    /// A frame.
    Frame(Frame<'a>),
    /// Too few bytes to decide.
    Short,
    /// No frame.
    Not,
}

/// A payload with a correct checksum and invalid content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid journal record: {0}")]
pub struct Malformed(pub(super) &'static str);

// === frames ===

impl ChecksumSeed {
    /// The seed of the segment with this number, and the random number in its name.
    pub fn new(sequence: u64, salt: u64) -> Self {
        let seed = crc32c::crc32c(&sequence.to_le_bytes());
        Self(crc32c::crc32c_append(seed, &salt.to_le_bytes()))
    }

    /// Covers everything in a frame except its checksum and its mark. `at` is its position: a frame that was moved is
    /// invalid.
    fn checksum(self, at: u32, head: &[u8], payload: &[u8]) -> u32 {
        let sum = crc32c::crc32c_append(self.0, &at.to_le_bytes());
        let sum = crc32c::crc32c_append(sum, head);
        crc32c::crc32c_append(sum, payload)
    }
}

/// Starts a frame in `out`, which is cleared; `payload` writes the payload. [`seal`] makes it valid.
pub fn begin(out: &mut Vec<u8>, kind: FrameKind, payload: impl FnOnce(&mut Vec<u8>)) {
    out.clear();
    out.extend_from_slice(&[0; HEADER]);
    payload(out);
    let len = u32::try_from(out.len() - HEADER).unwrap_or(u32::MAX);
    out[..2].copy_from_slice(&MAGIC);
    out[2] = kind as u8;
    out[3] = VERSION;
    out[4..8].copy_from_slice(&len.to_le_bytes());
    out.resize(out.len().next_multiple_of(ALIGN), 0);
}

/// Makes the frame in `frame` valid at position `at` of a segment.
pub fn seal(frame: &mut [u8], seed: ChecksumSeed, at: u32) {
    let len = payload_len(frame);
    let sum = seed.checksum(at, &frame[..8], &frame[HEADER..HEADER + len]);
    frame[8..MARK_AT].copy_from_slice(&sum.to_le_bytes());
}

/// The frame at the start of `bytes`, which begin at position `at` of a segment.
pub fn parse(bytes: &[u8], seed: ChecksumSeed, at: u32) -> ParsedFrame<'_> {
    let Some((head, rest)) = bytes.split_at_checked(HEADER) else { return ParsedFrame::Short };
    if head[..2] != MAGIC {
        return ParsedFrame::Not;
    }
    let len = payload_len(head);
    if len > PAYLOAD_MAX {
        return ParsedFrame::Not;
    }
    let Some(payload) = rest.get(..len) else { return ParsedFrame::Short };
    if seed.checksum(at, &head[..8], payload) != number(head, 8) {
        return ParsedFrame::Not;
    }
    let kind = match (head[3], head[2]) {
        (VERSION, 1) => Some(FrameKind::Admit),
        (VERSION, 2) => Some(FrameKind::Complete),
        (VERSION, 3) => Some(FrameKind::Whole),
        _ => None,
    };
    let acknowledged = number(head, MARK_AT) == ACKNOWLEDGED;
    ParsedFrame::Frame(Frame { kind, payload, acknowledged, len: (HEADER + len).next_multiple_of(ALIGN) })
}

fn payload_len(head: &[u8]) -> usize {
    usize::try_from(number(head, 4)).unwrap_or(usize::MAX)
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

// === payloads ===

const CHARGED: u8 = 1;
const DEGRADED: u8 = 2;
const HAS_END_USER: u8 = 4;
const HAS_V4: u8 = 8;
const HAS_V6: u8 = 16;
/// The request id is the record's own, as it is unless the client's is trusted.
const OWN_REQUEST_ID: u8 = 32;
const HAS_TTFB: u8 = 2;
/// A reading follows the other fields. Versions that do not know it read the total of its tokens, and ignore the rest.
const HAS_READING: u8 = 4;
const HAS_COST: u8 = 8;

impl Admit<'_> {
    /// Appends the payload to `out`. Texts that are too long are cut at a character.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Self {
            id,
            api_key_id,
            workspace_id,
            at,
            request_id,
            method,
            endpoint,
            route,
            ip_address,
            user_agent,
            end_user_id,
            charged,
            degraded,
            node,
        } = *self;
        let mut own = [0_u8; uuid::fmt::Hyphenated::LENGTH];
        let is_own = request_id == id.0.hyphenated().encode_lower(&mut own);
        let ip = match ip_address {
            None => 0,
            Some(IpAddr::V4(_)) => HAS_V4,
            Some(IpAddr::V6(_)) => HAS_V6,
        };
        let flags = flag(CHARGED, charged)
            | flag(DEGRADED, degraded)
            | flag(HAS_END_USER, end_user_id.is_some())
            | flag(OWN_REQUEST_ID, is_own)
            | ip;
        out.push(flags);
        out.extend_from_slice(id.0.as_bytes());
        out.extend_from_slice(api_key_id.0.as_bytes());
        out.extend_from_slice(&at.as_micros().to_le_bytes());
        if let Some(id) = end_user_id {
            out.extend_from_slice(id.0.as_bytes());
        }
        match ip_address {
            None => {}
            Some(IpAddr::V4(ip)) => out.extend_from_slice(&ip.octets()),
            Some(IpAddr::V6(ip)) => out.extend_from_slice(&ip.octets()),
        }
        put_text(out, workspace_id, TEXT_MAX);
        put_text(out, if is_own { "" } else { request_id }, TEXT_MAX);
        put_text(out, method, TEXT_MAX);
        put_text(out, endpoint, ENDPOINT_MAX);
        put_text(out, route, TEXT_MAX);
        put_text(out, user_agent, USER_AGENT_MAX);
        put_text(out, node, TEXT_MAX);
    }
}

impl Complete<'_> {
    /// What it used of each measure that a meter finds out.
    pub fn amounts(&self) -> Amounts {
        match &self.reading {
            Some(reading) => Amounts::used(&reading.tokens, reading.cost_nano),
            None => Amounts::used(&TokenCounts { total: self.tokens_used, ..TokenCounts::default() }, None),
        }
    }

    /// Appends the payload to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Self {
            id,
            outcome,
            denial,
            status_code,
            charged,
            response_time_us,
            ttfb_us,
            bytes_in,
            bytes_out,
            tokens_used,
            upstream,
            reading,
        } = *self;
        let has_cost = reading.is_some_and(|reading| reading.cost_nano.is_some());
        let flags = flag(CHARGED, charged)
            | flag(HAS_TTFB, ttfb_us.is_some())
            | flag(HAS_READING, reading.is_some())
            | flag(HAS_COST, has_cost);
        out.push(flags);
        out.extend_from_slice(id.0.as_bytes());
        out.extend_from_slice(&status_code.to_le_bytes());
        for n in [response_time_us, ttfb_us.unwrap_or(0), bytes_in, bytes_out] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&tokens_used.to_le_bytes());
        put_text(out, outcome.as_str(), TEXT_MAX);
        put_text(out, denial.map_or("", Fault::name), TEXT_MAX);
        put_text(out, upstream, TEXT_MAX);
        if let Some(reading) = reading {
            reading.encode(out);
        }
    }
}

/// Appends the payload of [`FrameKind::Whole`]: `admit` as written by its `encode`, and the end.
pub fn encode_whole(out: &mut Vec<u8>, admit: &[u8], complete: &Complete<'_>) {
    let len = u32::try_from(admit.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(admit);
    complete.encode(out);
}

/// The two parts of the payload of [`FrameKind::Whole`].
pub fn split_whole(payload: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (_, rest) = payload.split_at_checked(4).ok_or(Malformed("record without a length"))?;
    let len = payload_len_of_first(payload);
    rest.split_at_checked(len).ok_or(Malformed("record shorter than its first part"))
}

fn payload_len_of_first(payload: &[u8]) -> usize {
    usize::try_from(number(payload, 0)).unwrap_or(usize::MAX)
}

/// The id in the payload of an admit or a complete.
pub fn id_of(payload: &[u8]) -> Result<RequestId, Malformed> {
    let mut from = PayloadReader(payload);
    from.bytes::<1>()?;
    from.uuid().map(RequestId)
}

/// Decodes the payload of [`FrameKind::Admit`]. A request id that is the record's own is written into `own`.
pub fn admit<'a>(
    payload: &'a [u8],
    own: &'a mut [u8; uuid::fmt::Hyphenated::LENGTH],
) -> Result<Admit<'a>, Malformed> {
    let mut from = PayloadReader(payload);
    let [flags] = from.bytes()?;
    let id = RequestId(from.uuid()?);
    let api_key_id = KeyId(from.uuid()?);
    let at = Timestamp::from_micros(i64::from_le_bytes(from.bytes()?));
    let end_user_id = if flags & HAS_END_USER == 0 { None } else { Some(EndUserId(from.uuid()?)) };
    let ip_address = match flags & (HAS_V4 | HAS_V6) {
        0 => None,
        HAS_V4 => Some(IpAddr::from(from.bytes::<4>()?)),
        HAS_V6 => Some(IpAddr::from(from.bytes::<16>()?)),
        _ => return Err(Malformed("contradictory address")),
    };
    let workspace_id = from.text()?;
    let given = from.text()?;
    let request_id = if flags & OWN_REQUEST_ID == 0 { given } else { &*id.0.hyphenated().encode_lower(own) };
    Ok(Admit {
        id,
        api_key_id,
        workspace_id,
        at,
        request_id,
        method: from.text()?,
        endpoint: from.text()?,
        route: from.text()?,
        ip_address,
        user_agent: from.text()?,
        end_user_id,
        charged: flags & CHARGED != 0,
        degraded: flags & DEGRADED != 0,
        node: from.text()?,
    })
}

/// Decodes the payload of [`FrameKind::Complete`].
pub fn complete(payload: &[u8]) -> Result<Complete<'_>, Malformed> {
    let mut from = PayloadReader(payload);
    let [flags] = from.bytes()?;
    let id = RequestId(from.uuid()?);
    let status_code = u16::from_le_bytes(from.bytes()?);
    let response_time_us = from.long()?;
    let ttfb_us = from.long()?;
    let bytes_in = from.long()?;
    let bytes_out = from.long()?;
    let tokens_used = from.long()?;
    let outcome = from.text()?.parse().map_err(|_| Malformed("unknown outcome"))?;
    let denial = match from.text()? {
        "" => None,
        name => Some(Fault::from_name(name).ok_or(Malformed("unknown denial"))?),
    };
    let upstream = from.text()?;
    let reading = match flags & HAS_READING {
        0 => None,
        _ => Some(Reading::decode(&mut from, flags, tokens_used)?),
    };
    Ok(Complete {
        id,
        outcome,
        denial,
        status_code,
        charged: flags & CHARGED != 0,
        response_time_us,
        ttfb_us: (flags & HAS_TTFB != 0).then_some(ttfb_us),
        bytes_in,
        bytes_out,
        tokens_used,
        upstream,
        reading,
    })
}

/// The end of a request that was cut off: by the death of the gateway, or before its end was known.
pub const fn interrupted(id: RequestId, charged: bool) -> Complete<'static> {
    Complete {
        id,
        outcome: Outcome::Interrupted,
        denial: None,
        status_code: 0,
        charged,
        response_time_us: 0,
        ttfb_us: None,
        bytes_in: 0,
        bytes_out: 0,
        tokens_used: 0,
        upstream: "",
        reading: None,
    }
}

/// The record of a request from its start and end; without an end it was interrupted.
pub fn record(admit_payload: &[u8], complete_payload: Option<&[u8]>) -> Result<UsageRecord, Malformed> {
    let mut own = [0; uuid::fmt::Hyphenated::LENGTH];
    let begun = admit(admit_payload, &mut own)?;
    let ended = match complete_payload {
        Some(payload) => complete(payload)?,
        None => interrupted(begun.id, begun.charged),
    };
    let mut record = UsageRecord {
        id: begun.id,
        request_id: begun.request_id.into(),
        api_key_id: begun.api_key_id,
        workspace_id: WorkspaceId::of_record(begun.workspace_id)
            .map_err(|_| Malformed("invalid workspace id"))?,
        at: begun.at,
        method: begun.method.into(),
        endpoint: begun.endpoint.into(),
        route: begun.route.into(),
        status_code: ended.status_code,
        outcome: ended.outcome,
        denial: ended.denial,
        charged: ended.charged,
        degraded: begun.degraded,
        response_time_us: ended.response_time_us,
        ttfb_us: ended.ttfb_us,
        bytes_in: ended.bytes_in,
        bytes_out: ended.bytes_out,
        tokens_used: ended.tokens_used,
        ip_address: begun.ip_address,
        user_agent: begun.user_agent.into(),
        end_user_id: begun.end_user_id,
        upstream: ended.upstream.into(),
        node: begun.node.into(),
        model: None,
        model_requested: None,
        input_tokens: None,
        cached_tokens: None,
        cache_write_tokens: None,
        output_tokens: None,
        reasoning_tokens: None,
        audio_tokens: None,
        cost_nano: None,
        usage_source: None,
        provider_request_id: None,
    };
    if let Some(reading) = ended.reading {
        record.set_reading(reading.to_owned());
    }
    Ok(record)
}

const fn flag(bit: u8, set: bool) -> u8 {
    if set { bit } else { 0 }
}

fn put_text(out: &mut Vec<u8>, text: &str, max: usize) {
    let kept = &text[..text.floor_char_boundary(max.min(text.len()))];
    let len = u16::try_from(kept.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(kept.as_bytes());
}

/// The rest of a payload.
struct PayloadReader<'a>(&'a [u8]);

impl<'a> PayloadReader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed("truncated"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed("truncated"))
    }

    fn uuid(&mut self) -> Result<Uuid, Malformed> {
        self.bytes().map(Uuid::from_bytes)
    }

    fn long(&mut self) -> Result<u64, Malformed> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = u16::from_le_bytes(self.bytes()?);
        std::str::from_utf8(self.take(len.into())?).map_err(|_| Malformed("text is not UTF-8"))
    }
}
