//! Aggregates usage records: counts, sums and response times per subject and calendar window.
//!
//! Pure; must not know where totals are stored. Both backends update their roll-ups with [`tally`] and
//! [`RollupTotals::merge`], so they agree.

use super::sums::{SUM_MAX, UsageSums, sum};
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::Per;
use crate::model::usage::Quantiles;
use crate::model::usage::{UsageRecord, UsageSubject};
use crate::policy::keys::calendar::Window;
use crate::store::KeyStats;
use std::collections::{BTreeMap, HashMap};

/// Response times in a few bytes: a histogram with buckets that grow with the value.
///
/// Times up to 63 µs have a bucket each; above that, every power of two is split into 32 buckets. A bucket of width `w`
/// begins at 32·`w` or later and is read as its middle, from which no value in it differs by more than `w`/2. So a quantile
/// is within 1/64 (1.6 %) of the exact one. Times above [`LatencySketch::MAX_US`] count as that value. At most 1 056
/// buckets.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LatencySketch {
    /// (bucket, count above 0), ascending.
    buckets: Vec<(u16, u64)>,
}

/// Bytes that are not a valid sketch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid latency sketch")]
pub struct BadSketch;

/// The window of a roll-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WindowWidth {
    /// One calendar minute.
    Minute,
    /// One calendar hour.
    Hour,
    /// One UTC day.
    Day,
    /// The whole life; begins with the epoch.
    Total,
}

/// Identifies a roll-up. The order is the one in which backends must lock them, so that two writers cannot deadlock.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RollupWindow {
    /// The subject.
    pub subject: UsageSubject,
    /// The width of the window.
    pub width: WindowWidth,
    /// The start of the window.
    pub start: Timestamp,
}

/// The totals of one roll-up.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RollupTotals {
    /// The sums.
    pub sums: UsageSums,
    /// The response times.
    pub sketch: LatencySketch,
}

const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;
/// First byte of the encoding; another layout has another number.
const LAYOUT: u8 = 1;

/// The totals of `records`: for each key and each workspace one tally of every width, for requests without a key one under
/// [`KeyId::NONE`]. Each record is counted once, in its
/// minute; wider windows are made from their minutes.
pub fn tally<'a>(records: impl IntoIterator<Item = &'a UsageRecord>) -> BTreeMap<RollupWindow, RollupTotals> {
    let mut minutes = HashMap::<_, RollupTotals>::new();
    for record in records {
        let minute = (record.api_key_id, &record.workspace_id, WindowWidth::Minute.start(record.at));
        minutes.entry(minute).or_default().add(record);
    }
    let mut windows = BTreeMap::new();
    for ((key, workspace, minute), tally) in minutes {
        let workspace = Some(workspace).filter(|id| *id != WorkspaceId::none()).cloned();
        for subject in [UsageSubject::Key(key)].into_iter().chain(workspace.map(UsageSubject::Workspace)) {
            for width in WindowWidth::ALL {
                let window = RollupWindow { subject: subject.clone(), width, start: width.start(minute) };
                windows.entry(window).or_insert_with(RollupTotals::default).merge(&tally);
            }
        }
    }
    windows
}

/// The width of the roll-ups for totals of `days`, or of all time.
pub(in crate::store) fn total_width(days: Option<(Timestamp, Timestamp)>) -> WindowWidth {
    if days.is_some() { WindowWidth::Day } else { WindowWidth::Total }
}

/// The range of starts of those roll-ups, in µs.
pub(in crate::store) fn whole_days(days: Option<(Timestamp, Timestamp)>) -> (i64, i64) {
    let Some((from, to)) = days else { return (0, 1) };
    (WindowWidth::Day.start(from).as_micros(), to.as_micros())
}

impl RollupWindow {
    /// The whole life of a key.
    pub(in crate::store) fn life_of(key: KeyId) -> Self {
        let width = WindowWidth::Total;
        Self { subject: UsageSubject::Key(key), width, start: Timestamp::default() }
    }
}

// === impl WindowWidth ===

impl WindowWidth {
    /// Every width that is kept.
    pub const ALL: [Self; 4] = [Self::Minute, Self::Hour, Self::Day, Self::Total];

    /// Its length in seconds, as stored; 0 for the whole life.
    pub const fn seconds(self) -> i64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
            Self::Total => 0,
        }
    }

    /// The start of the window that contains `at`.
    pub fn start(self, at: Timestamp) -> Timestamp {
        self.window(at).start
    }

    /// The end of the window that contains `at`; none for the whole life.
    pub fn end(self, at: Timestamp) -> Option<Timestamp> {
        Some(self.window(at).end).filter(|end| *end != Window::NEVER)
    }

    fn window(self, at: Timestamp) -> Window {
        let per = match self {
            Self::Minute => Per::Minute,
            Self::Hour => Per::Hour,
            Self::Day => Per::Day,
            Self::Total => Per::Total,
        };
        Window::of(per, Calendar::UTC, at)
    }
}

// === impl RollupTotals ===

impl RollupTotals {
    /// Counts one record.
    pub fn add(&mut self, record: &UsageRecord) {
        let before = self.sums.response_count;
        self.sums.add(record);
        if self.sums.response_count > before {
            self.sketch.add(record.response_time_us);
        }
    }

    /// Counts everything that `other` counted.
    pub fn merge(&mut self, other: &Self) {
        self.sums.merge(&other.sums);
        self.sketch.merge(&other.sketch);
    }

    /// Mean and quantiles of the response times.
    pub fn quantiles(&self) -> Quantiles {
        let UsageSums { response_count, response_us_sum, .. } = self.sums;
        Quantiles {
            count: response_count,
            mean_us: response_us_sum.checked_div(response_count).unwrap_or(0),
            p50_us: self.sketch.quantile(500),
            p95_us: self.sketch.quantile(950),
            p99_us: self.sketch.quantile(990),
        }
    }
}

// === impl LatencySketch ===

impl LatencySketch {
    /// The longest time that is distinguished: 24 hours, in µs.
    pub const MAX_US: u64 = 24 * 3_600 * 1_000_000;

    /// Adds one time, in µs.
    pub fn add(&mut self, us: u64) {
        self.add_to_bucket(bucket_of(us), 1);
    }

    /// Adds all times of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            self.add_to_bucket(*bucket, *count);
        }
    }

    /// The number of times.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |all, (_, count)| sum(all, *count))
    }

    /// The smallest time, in µs, such that at least `per_mille` of a thousand times are at or below it, within 1/64 of the
    /// exact one. 0 if the sketch is empty.
    pub fn quantile(&self, per_mille: u32) -> u64 {
        let wanted = u128::from(self.count()) * u128::from(per_mille.min(1_000));
        // Rank 0 means the smallest, so that the result is always a time that occurred.
        let rank = wanted.div_ceil(1_000).max(1);
        let mut seen = 0_u128;
        for (bucket, count) in &self.buckets {
            seen += u128::from(*count);
            if seen >= rank {
                return middle_of(*bucket);
            }
        }
        self.buckets.last().map_or(0, |(bucket, _)| middle_of(*bucket))
    }

    /// The layout number, then for each bucket its distance from the previous one and its count, as LEB128. An empty sketch
    /// is empty.
    pub fn encode(&self) -> Vec<u8> {
        if self.buckets.is_empty() {
            return Vec::new();
        }
        let mut out = Vec::with_capacity(1 + self.buckets.len() * 3);
        out.push(LAYOUT);
        let mut before = 0;
        for (bucket, count) in &self.buckets {
            put_number(&mut out, u64::from(bucket - before));
            put_number(&mut out, *count);
            before = *bucket;
        }
        out
    }

    /// Decodes the output of [`LatencySketch::encode`] and nothing else.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadSketch> {
        let Some((layout, mut rest)) = bytes.split_first() else { return Ok(Self::default()) };
        if *layout != LAYOUT || rest.is_empty() {
            return Err(BadSketch);
        }
        let mut buckets: Vec<(u16, u64)> = Vec::new();
        while !rest.is_empty() {
            let distance = take_number(&mut rest)?;
            let count = take_number(&mut rest)?;
            let before = buckets.last().map(|(bucket, _)| u64::from(*bucket));
            if count == 0 || count > SUM_MAX || (before.is_some() && distance == 0) {
                return Err(BadSketch);
            }
            let bucket = before.unwrap_or(0).checked_add(distance).ok_or(BadSketch)?;
            if bucket > u64::from(bucket_of(Self::MAX_US)) {
                return Err(BadSketch);
            }
            buckets.push((u16::try_from(bucket).map_err(|_| BadSketch)?, count));
        }
        Ok(Self { buckets })
    }

    fn add_to_bucket(&mut self, bucket: u16, count: u64) {
        match self.buckets.binary_search_by_key(&bucket, |(b, _)| *b) {
            Ok(place) => self.buckets[place].1 = sum(self.buckets[place].1, count),
            Err(place) => self.buckets.insert(place, (bucket, count)),
        }
    }
}

/// The bucket of a time. With `e` the highest set bit, the five bits below it select one of the 32 buckets of that power of
/// two.
fn bucket_of(us: u64) -> u16 {
    let capped = us.min(LatencySketch::MAX_US);
    let shift = (u64::BITS - 1 - (capped | SUB).leading_zeros()) - SUB_BITS;
    let bucket = u64::from(shift) * SUB + (capped >> shift);
    u16::try_from(bucket).unwrap_or(u16::MAX)
}

/// The middle of a bucket, in µs.
fn middle_of(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    let shift = (bucket / SUB).saturating_sub(1);
    let low = (bucket - shift * SUB) << shift;
    low + ((1 << shift) - 1) / 2
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    let mut left = number;
    while left >= 0x80 {
        out.push(0x80 | u8::try_from(left & 0x7f).unwrap_or(0));
        left >>= 7;
    }
    out.push(u8::try_from(left).unwrap_or(0));
}

fn take_number(rest: &mut &[u8]) -> Result<u64, BadSketch> {
    let mut number = 0_u64;
    for place in 0..10_u32 {
        let (byte, tail) = rest.split_first().ok_or(BadSketch)?;
        *rest = tail;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit; a zero byte at the end would be a second encoding of the same number.
        if (place == 9 && bits > 1) || (place > 0 && *byte == 0) {
            return Err(BadSketch);
        }
        number |= bits << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(BadSketch)
}

impl KeyStats {
    /// Statistics from the roll-up of a key's whole life and the requests of the current day.
    pub(in crate::store) fn new(life: &RollupTotals, requests_today: u64, quota_limit: Option<u64>) -> Self {
        let sums = &life.sums;
        Self {
            total_requests: sums.reached(),
            requests_today,
            quota_used: sums.charged,
            quota_limit,
            denied: sums.denied,
            unreached: sums.unreached,
            errors: sums.errors,
            last_used_at: (sums.requests > 0).then_some(sums.last_at),
            tokens: sums.tokens,
            cost_nano: sums.cost_nano,
            response_time: life.quantiles(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sketch(times: &[u64]) -> LatencySketch {
        let mut out = LatencySketch::default();
        for us in times {
            out.add(*us);
        }
        out
    }

    fn times() -> impl Strategy<Value = Vec<u64>> {
        // All magnitudes are equally likely, and some are beyond the maximum.
        prop::collection::vec((0_u32..40, any::<u64>()).prop_map(|(bits, n)| n >> (63 - bits)), 0..200)
    }

    #[test]
    fn buckets_are_contiguous_and_hold_their_own_middle() {
        let mut last = 0;
        for bucket in 0..=bucket_of(LatencySketch::MAX_US) {
            let middle = middle_of(bucket);
            assert!(bucket == 0 || middle > last, "{bucket}");
            // The maximum lies inside the last bucket, whose middle may be beyond it.
            assert_eq!(bucket_of(middle.min(LatencySketch::MAX_US)), bucket);
            last = middle;
        }
        assert!(bucket_of(u64::MAX) < 1_056);
    }

    #[test]
    fn small_times_are_exact_and_an_empty_sketch_answers_zero() {
        for us in 0..64 {
            assert_eq!(sketch(&[us]).quantile(500), us);
        }
        assert_eq!(LatencySketch::default().quantile(990), 0);
        assert_eq!(LatencySketch::default().encode(), Vec::<u8>::new());
    }

    #[test]
    fn every_byte_string_of_three_is_decoded_or_refused() {
        for n in 0..=0xff_ffff_u32 {
            let bytes = n.to_be_bytes();
            if bytes[1] > 2 {
                break;
            }
            if let Ok(read) = LatencySketch::decode(&bytes[1..]) {
                assert_eq!(read.encode(), bytes[1..]);
            }
        }
    }

    proptest! {
        #[test]
        fn merging_is_the_same_as_adding_all(a in times(), b in times(), c in times()) {
            let all = sketch(&[a.clone(), b.clone(), c.clone()].concat());
            let (a, b, c) = (sketch(&a), sketch(&b), sketch(&c));
            let merge = |x: &LatencySketch, y: &LatencySketch| { let mut out = x.clone(); out.merge(y); out };
            prop_assert_eq!(merge(&a, &b), merge(&b, &a));
            prop_assert_eq!(&merge(&merge(&a, &b), &c), &all);
            prop_assert_eq!(&merge(&a, &merge(&b, &c)), &all);
        }

        #[test]
        fn a_quantile_is_within_a_64th_of_the_exact_one(mut all in times(), per_mille in 0_u32..=1_000) {
            prop_assume!(!all.is_empty());
            let read = sketch(&all).quantile(per_mille);
            all.sort_unstable();
            let rank = (all.len() as u64 * u64::from(per_mille)).div_ceil(1_000).max(1);
            let exact = all[usize::try_from(rank).unwrap() - 1].min(LatencySketch::MAX_US);
            prop_assert!(read.abs_diff(exact) * 64 <= exact, "{} for {}", read, exact);
        }

        #[test]
        fn encoded_values_decode(all in times()) {
            let sketch = sketch(&all);
            prop_assert_eq!(LatencySketch::decode(&sketch.encode()), Ok(sketch));
        }

        #[test]
        fn decoding_never_panics_and_has_one_spelling(mut bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(first) = bytes.first_mut() {
                *first = LAYOUT;
            }
            if let Ok(read) = LatencySketch::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes);
                read.quantile(990);
            }
        }
    }
}
