//! The format, without files: what is written is read back, and damaged data is never read as something else.

use keygate::clock::Timestamp;
use keygate::model::fault::Fault;
use keygate::model::id::{EndUserId, KeyId, RequestId};
use keygate::model::tokens::{ReadingSource, TokenCounts};
use keygate::model::usage::{Outcome, UsageRecord};
use keygate::usage::journal::codec::{
    self, ACKNOWLEDGED, Admit, ChecksumSeed, Complete, FrameKind, HEADER, MARK_AT, PAYLOAD_MAX, ParsedFrame,
    Reading,
};
use keygate::usage::journal::pairing::{PairState, Pairing};
use keygate::usage::journal::scan::{ScanStep, Scanner};
use keygate::usage::journal::segment::{FIRST, Position, SegmentName};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::IpAddr;
use uuid::Uuid;

/// The bytes of a segment, and where each write begins and ends.
struct Written {
    seed: ChecksumSeed,
    bytes: Vec<u8>,
    writes: Vec<std::ops::Range<usize>>,
}

type Rows = BTreeMap<RequestId, UsageRecord>;

fn id(number: u32) -> RequestId {
    RequestId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + u128::from(number)))
}

fn admit(number: u32) -> Admit<'static> {
    Admit {
        id: id(number),
        api_key_id: KeyId(Uuid::from_u128(3)),
        workspace_id: "w",
        at: Timestamp::from_secs(1_800_000_000 + i64::from(number)),
        request_id: "given",
        method: "GET",
        endpoint: "/v1/app/somewhere",
        route: "app",
        ip_address: Some(IpAddr::from([10, 0, 0, 1])),
        user_agent: "tester/1.0",
        end_user_id: None,
        charged: true,
        degraded: false,
        node: "n",
    }
}

fn complete(number: u32) -> Complete<'static> {
    Complete {
        outcome: Outcome::Served,
        status_code: 200,
        response_time_us: u64::from(number),
        ttfb_us: Some(5),
        bytes_in: 1,
        bytes_out: 2,
        tokens_used: 3,
        upstream: "10.0.0.2:80",
        ..codec::interrupted(id(number), true)
    }
}

fn reading() -> Reading<'static> {
    Reading {
        tokens: TokenCounts {
            total: 1_200,
            input: 1_000,
            cached: 600,
            cache_write: 50,
            output: 200,
            reasoning: 90,
            audio: 7,
        },
        model_requested: "gpt-4o",
        model_served: "gpt-4o-2024-08-06",
        provider_request_id: "chatcmpl-1",
        cost_nano: Some(4_500_000),
        source: ReadingSource::Reported,
    }
}

impl Written {
    fn new() -> Self {
        let name = SegmentName { sequence: 9, salt: 0x1234_5678_9abc_def0 };
        Self { seed: name.seed(), bytes: vec![b'x'; FIRST], writes: Vec::new() }
    }

    fn put(&mut self, kind: FrameKind, payload: impl FnOnce(&mut Vec<u8>)) {
        let mut frame = Vec::new();
        codec::begin(&mut frame, kind, payload);
        let at = self.bytes.len();
        codec::seal(&mut frame, self.seed, u32::try_from(at).unwrap());
        self.bytes.extend_from_slice(&frame);
        self.writes.push(at..self.bytes.len());
    }

    /// Requests that begin and end with two others in between.
    fn requests(count: u32) -> Self {
        let mut written = Self::new();
        for number in 0..count + 2 {
            if number < count {
                written.put(FrameKind::Admit, |out| admit(number).encode(out));
            }
            if number >= 2 {
                written.put(FrameKind::Complete, |out| complete(number - 2).encode(out));
            }
        }
        written
    }
}

/// The frames found in `bytes`, and how many bytes before a frame were none.
fn found(seed: ChecksumSeed, bytes: &[u8]) -> (Rows, usize) {
    let (mut scanner, mut pairing) = (Scanner::new(seed, FIRST), Pairing::default());
    let (mut rows, mut damaged) = (Rows::new(), 0);
    loop {
        match scanner.step(bytes, 0, true) {
            ScanStep::More => panic!("all of it is there"),
            ScanStep::End { .. } => break,
            ScanStep::Frame { frame, at, damaged_bytes } => {
                damaged += damaged_bytes;
                if !frame.acknowledged
                    && let PairState::Pair(pair) =
                        pairing.take(&frame, Position { segment: 9, offset: at }).unwrap()
                {
                    let record = pair.record().unwrap();
                    assert!(rows.insert(record.id, record).is_none());
                }
            }
        }
    }
    for pair in pairing.interrupt().0 {
        let record = pair.record().unwrap();
        assert!(rows.insert(record.id, record).is_none());
    }
    (rows, damaged)
}

/// The bytes of a frame as in the journals of earlier releases, in hexadecimal.
fn frame(kind: FrameKind, payload: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut frame = Vec::new();
    codec::begin(&mut frame, kind, payload);
    codec::seal(&mut frame, ChecksumSeed::new(9, 1), 64);
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_frame_has_the_bytes_that_it_has_in_every_journal() {
    let own = id(1).0.hyphenated().to_string();
    let v6 = Admit {
        request_id: &own,
        ip_address: Some("2001:db8::1".parse().unwrap()),
        end_user_id: Some(EndUserId(Uuid::from_u128(8))),
        charged: false,
        degraded: true,
        ..admit(1)
    };
    let no_address = Admit { ip_address: None, ..admit(1) };
    let denied = Complete {
        outcome: Outcome::Denied,
        denial: Some(Fault::RateLimitExceeded),
        status_code: 429,
        charged: false,
        ttfb_us: None,
        ..complete(1)
    };
    let metered = Complete { tokens_used: 1_200, reading: Some(reading()), ..complete(1) };
    let free_of_cost = Reading { cost_nano: None, source: ReadingSource::Missing, ..reading() };
    let free_of_cost = Complete { tokens_used: 1_200, reading: Some(free_of_cost), ..complete(1) };
    let mut first = Vec::new();
    no_address.encode(&mut first);
    let frames = [
        frame(FrameKind::Admit, |out| admit(1).encode(out)),
        frame(FrameKind::Admit, |out| v6.encode(out)),
        frame(FrameKind::Complete, |out| complete(1).encode(out)),
        frame(FrameKind::Complete, |out| denied.encode(out)),
        frame(FrameKind::Whole, |out| codec::encode_whole(out, &first, &denied)),
        frame(FrameKind::Complete, |out| metered.encode(out)),
        frame(FrameKind::Complete, |out| free_of_cost.encode(out)),
    ];
    insta::assert_snapshot!(frames.join("\n"));
}

#[test]
fn an_end_with_a_reading_is_read_without_it_where_readings_are_unknown() {
    let metered = Complete { tokens_used: 1_200, reading: Some(reading()), ..complete(1) };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    metered.encode(&mut with);
    Complete { reading: None, ..metered }.encode(&mut without);
    // What an earlier version reads: the same fields in the same places, and a flag that it ignores.
    assert_eq!(with[1..without.len()], without[1..]);
    with[0] &= 3;
    assert_eq!(codec::complete(&with), Ok(Complete { reading: None, ..metered }));
}

#[test]
fn one_flipped_bit_costs_one_request_at_most_and_makes_up_none() {
    let written = Written::requests(100);
    let (whole, damaged) = found(written.seed, &written.bytes);
    assert_eq!((whole.len(), damaged), (100, 0));
    // The same offsets each time: a step that shares no divisor with the number of bits.
    let bits = (written.bytes.len() - FIRST) * 8;
    for n in 0..1_000 {
        let bit = (n * 7_919) % bits;
        let place = FIRST + bit / 8;
        let mut bytes = written.bytes.clone();
        bytes[place] ^= 1 << (bit % 8);
        let (rows, _) = found(written.seed, &bytes);
        let differ = whole.iter().filter(|(id, row)| rows.get(id) != Some(row)).count();
        let made_up = rows.keys().filter(|id| !whole.contains_key(id)).count();
        assert!(differ <= 1 && made_up == 0, "bit {bit}: {differ} differ, {made_up} are new");
        for (id, row) in &rows {
            let cut_off = UsageRecord { outcome: Outcome::Interrupted, ..row.clone() } == *row;
            assert!(cut_off || whole[id] == *row, "bit {bit}: {row:?}");
        }
    }
}

#[test]
fn every_prefix_of_what_was_written_gives_what_was_whole_by_then() {
    let written = Written::requests(12);
    for cut in FIRST..=written.bytes.len() {
        let mut bytes = written.bytes.clone();
        // The unwritten rest is zeros.
        bytes[cut..].fill(0);
        let (rows, damaged) = found(written.seed, &bytes);
        assert_eq!(damaged, 0, "a cut at {cut} is no damage");
        // Padding may be missing: it is zeros anyway.
        let whole = |write: &std::ops::Range<usize>| bytes[write.clone()] == written.bytes[write.clone()];
        let by_then: Vec<bool> = written.writes.iter().map(whole).collect();
        let (mut begun, mut ended) = (0, 0);
        for (n, write) in written.writes.iter().enumerate().filter(|(n, _)| by_then[*n]) {
            let is_admit = written.bytes[write.start + 2] == FrameKind::Admit as u8;
            if is_admit {
                begun += 1
            } else {
                ended += 1
            }
            assert!(by_then[..n].iter().all(|b| *b), "writes are in order");
        }
        let served = rows.values().filter(|r| r.outcome == Outcome::Served).count();
        assert_eq!((rows.len(), served), (begun, ended), "cut at {cut}");
    }
}

#[test]
fn pages_that_never_reached_the_disk_cost_only_what_was_in_them() {
    let written = Written::requests(100);
    let pages = written.bytes.len().div_ceil(4_096);
    for lost in 0..1_u32 << pages.min(6) {
        let mut bytes = written.bytes.clone();
        let is_lost = |place: usize| lost >> (place / 4_096) & 1 == 1;
        for (place, byte) in bytes.iter_mut().enumerate() {
            if is_lost(place) {
                *byte = 0;
            }
        }
        let (rows, _) = found(written.seed, &bytes);
        let kept =
            |write: &&std::ops::Range<usize>| bytes[(*write).clone()] == written.bytes[(*write).clone()];
        let kind = |write: &std::ops::Range<usize>| written.bytes[write.start + 2];
        let begun = written.writes.iter().filter(kept).filter(|w| kind(w) == FrameKind::Admit as u8).count();
        assert_eq!(rows.len(), begun, "pages {lost:b}");
    }
}

#[test]
fn client_bytes_are_never_taken_for_a_journal_frame() {
    // A complete frame, sealed for another segment, inside a user agent whose own frame is damaged.
    let foreign = SegmentName { sequence: 9, salt: 1 }.seed();
    let mut inner = Vec::new();
    codec::begin(&mut inner, FrameKind::Admit, |out| admit(66).encode(out));
    for at in (FIRST..FIRST + 512).step_by(8) {
        codec::seal(&mut inner, foreign, u32::try_from(at).unwrap());
        let mut written = Written::new();
        written.put(FrameKind::Admit, |out| {
            let user_agent = String::from_utf8_lossy(&inner).into_owned();
            Admit { user_agent: &user_agent, ..admit(1) }.encode(out);
            out.extend_from_slice(&inner);
        });
        written.put(FrameKind::Admit, |out| admit(2).encode(out));
        written.bytes[FIRST + HEADER] ^= 1;
        let (rows, damaged) = found(written.seed, &written.bytes);
        assert_eq!(rows.keys().collect::<Vec<_>>(), [&id(2)]);
        assert!(damaged > 0);
    }
}

#[test]
fn an_acknowledged_frame_is_passed_over_and_only_the_whole_mark_acknowledges() {
    let written = Written::requests(1);
    for bit in 0..=32 {
        let mut bytes = written.bytes.clone();
        for write in &written.writes {
            let mark = if bit == 32 { ACKNOWLEDGED } else { ACKNOWLEDGED ^ (1 << bit) };
            let place = write.start + MARK_AT;
            bytes[place..place + 4].copy_from_slice(&mark.to_le_bytes());
        }
        assert_eq!(found(written.seed, &bytes).0.len(), usize::from(bit != 32), "bit {bit}");
    }
}

#[test]
fn texts_are_cut_at_a_character_and_the_longest_record_fits() {
    let long = "ä".repeat(100_000);
    let begun = Admit {
        workspace_id: "w",
        request_id: &long,
        method: &long,
        endpoint: &long,
        route: &long,
        user_agent: &long,
        node: &long,
        end_user_id: Some(EndUserId(Uuid::nil())),
        ip_address: Some(IpAddr::from([1; 16])),
        ..admit(1)
    };
    let (mut first, mut payload) = (Vec::new(), Vec::new());
    begun.encode(&mut first);
    let reading = Reading {
        model_requested: &long,
        model_served: &long,
        provider_request_id: &long,
        source: ReadingSource::Estimated,
        ..reading()
    };
    let ended = Complete {
        upstream: &long,
        denial: Some(Fault::EndUserQuotaExceeded),
        reading: Some(reading),
        ..complete(1)
    };
    codec::encode_whole(&mut payload, &first, &ended);
    assert!(payload.len() <= PAYLOAD_MAX, "{}", payload.len());
    let (first, second) = codec::split_whole(&payload).unwrap();
    let record = codec::record(first, Some(second)).unwrap();
    assert_eq!((record.endpoint.len(), record.user_agent.len(), record.upstream.len()), (2_048, 256, 254));
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{0,40}", "\\PC{0,40}", Just("nul \0 and more".to_owned())]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn a_record_comes_back_as_it_was(
        texts in prop::array::uniform10(text()),
        numbers in prop::array::uniform12(any::<u64>()),
        (at, status, flags) in (any::<i64>(), any::<u16>(), prop::array::uniform8(any::<bool>())),
        (ip, outcome, fault) in (any::<IpAddr>(), 0..Outcome::ALL.len(), 0..Fault::ALL.len()),
    ) {
        let [request_id, method, endpoint, route, user_agent, node, upstream, asked, served, provider] = &texts;
        let [charged, degraded, has_ip, has_end_user, has_ttfb, has_denial, has_reading, has_cost] = flags;
        let [_, _, _, _, total, input, cached, cache_write, output, reasoning, audio, cost] = numbers;
        let reading = Reading {
            tokens: TokenCounts { total, input, cached, cache_write, output, reasoning, audio },
            model_requested: asked,
            model_served: served,
            provider_request_id: provider,
            cost_nano: has_cost.then_some(cost),
            source: ReadingSource::Held,
        };
        let begun = Admit {
            at: Timestamp::from_micros(at),
            request_id, method, endpoint, route, user_agent, node,
            ip_address: has_ip.then_some(ip),
            end_user_id: has_end_user.then_some(EndUserId(Uuid::from_u128(8))),
            charged, degraded,
            ..admit(1)
        };
        let ended = Complete {
            id: begun.id,
            outcome: Outcome::ALL[outcome],
            denial: has_denial.then_some(Fault::ALL[fault]),
            status_code: status,
            charged: !charged,
            response_time_us: numbers[0],
            ttfb_us: has_ttfb.then_some(numbers[1]),
            bytes_in: numbers[2],
            bytes_out: numbers[3],
            tokens_used: total,
            upstream,
            reading: has_reading.then_some(reading),
        };
        let mut payload = Vec::new();
        begun.encode(&mut payload);
        let mut own = [0; 36];
        prop_assert_eq!(codec::admit(&payload, &mut own).unwrap(), begun);
        let mut end = Vec::new();
        ended.encode(&mut end);
        prop_assert_eq!(codec::complete(&end).unwrap(), ended);
        let record = codec::record(&payload, Some(&end)).unwrap();
        prop_assert_eq!(record.charged, !charged);
        prop_assert_eq!(record.tokens_used, total);
        prop_assert_eq!(record.cost_nano, (has_reading && has_cost).then_some(cost));
        prop_assert_eq!(record.model.as_deref(), (has_reading && !served.is_empty()).then_some(&**served));
        prop_assert_eq!(codec::id_of(&end).unwrap(), begun.id);
        // A payload cut anywhere is refused without a panic.
        for len in 0..payload.len() {
            prop_assert!(codec::admit(&payload[..len], &mut own).is_err());
        }
        for len in 0..end.len() {
            prop_assert!(codec::complete(&end[..len]).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_break_nothing(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let seed = ChecksumSeed::new(1, 2);
        if let ParsedFrame::Frame(frame) = codec::parse(&bytes, seed, 0) {
            prop_assert!(frame.len <= bytes.len() + 8);
        }
        let mut own = [0; 36];
        let (admit, complete) = (codec::admit(&bytes, &mut own), codec::complete(&bytes));
        let read = codec::record(&bytes, None);
        prop_assert!(admit.is_ok() || read.is_err());
        prop_assert!(complete.is_err() || bytes.len() >= 59);
        if let Ok((first, second)) = codec::split_whole(&bytes) {
            prop_assert_eq!(first.len() + second.len() + 4, bytes.len());
        }
        let mut all = vec![0; FIRST];
        all.extend_from_slice(&bytes);
        prop_assert!(found(seed, &all).0.is_empty());
    }
}
