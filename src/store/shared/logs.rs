//! Searches usage records without reading the whole ledger: the query, how far a call looks, how records are counted.
//!
//! Pure; must not know SQL. Both backends search the index of a key's records, newest first, and never further than
//! [`LOOKED_AT_MAX`]; roll-ups say which days have records, and how many.
//!
//! *Invariant:* apart from that bound, a call takes the same time on a long ledger as on a short one.

use super::rollup::WindowWidth;
use crate::clock::Timestamp;
use crate::model::id::RequestId;
use crate::model::usage::UsageRecord;
use crate::store::usage::{LogCursor, LogFilter, LogPage, LogPageRequest, LogTotal};
use std::ops::Range;
use std::time::Duration;
use uuid::Uuid;

/// Most records that one call examines to find those with a status or a path.
pub(in crate::store) const LOOKED_AT_MAX: u64 = 50_000;
/// Days of roll-ups fetched at once.
pub(in crate::store) const DAYS_AT_ONCE: i64 = 32;

/// A query.
#[derive(Clone, Debug)]
pub(in crate::store) struct LogSearch {
    /// The time range: from its start, before its end.
    pub(in crate::store) range: Range<Timestamp>,
    /// After this position.
    pub(in crate::store) after: LogCursor,
    pub(in crate::store) status: Option<i64>,
    /// Folded as ASCII.
    pub(in crate::store) endpoint: Option<String>,
    /// Records on the page, and the number of matching ones before it.
    pub(in crate::store) limit: u32,
    pub(in crate::store) offset: u64,
    pub(in crate::store) wants_total: bool,
}

/// How far a search looks, once roll-ups have said where records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct SearchRange {
    /// Not before.
    pub(in crate::store) from: Timestamp,
    /// Whether there are records before that, or more than are examined.
    pub(in crate::store) is_cut: bool,
}

/// The days of a key with records, newest first, until there are enough.
pub(in crate::store) struct UsageDays<'s> {
    search: &'s LogSearch,
    seen: u64,
    from: Option<Timestamp>,
}

/// A time range cut at the boundaries of windows of one width.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) struct AlignedRange {
    /// Whole windows.
    pub(in crate::store) whole: Range<Timestamp>,
    /// The rest before and after them.
    pub(in crate::store) edges: [Range<Timestamp>; 2],
}

/// The widths to count by, the widest first, each with what to do with the edges.
pub(in crate::store) const COUNTED_BY: [WindowWidth; 3] =
    [WindowWidth::Day, WindowWidth::Hour, WindowWidth::Minute];

// === impl LogSearch ===

impl LogSearch {
    /// The query for `filter` and `page` on a ledger that was kept from `kept_from` on.
    pub(in crate::store) fn new(filter: &LogFilter, page: &LogPageRequest, kept_from: Timestamp) -> Self {
        let (after, limit, offset) = match page {
            LogPageRequest::Number(page) => (None, page.pagesize, page.offset()),
            LogPageRequest::After(cursor, limit) => (Some(*cursor), *limit, 0),
        };
        let end = Timestamp::MAX.plus(Duration::from_micros(1));
        // Without a position to begin after: after the end of time, where no record is.
        let after = after.unwrap_or(LogCursor { at: end, id: RequestId(Uuid::max()) });
        let behind = after.at.plus(Duration::from_micros(1)).min(end);
        let from = filter.from.unwrap_or_default().max(kept_from);
        Self {
            range: from..filter.to.unwrap_or(end).min(behind),
            after,
            status: filter.status_code.map(i64::from),
            endpoint: filter.endpoint.as_deref().filter(|e| !e.is_empty()).map(str::to_ascii_lowercase),
            limit,
            offset,
            wants_total: matches!(page, LogPageRequest::Number(_)),
        }
    }

    /// Whether records must be examined to decide whether they match.
    pub(in crate::store) fn is_filtered(&self) -> bool {
        self.status.is_some() || self.endpoint.is_some()
    }

    /// Most records to examine: one more than the page has, to see whether anything follows.
    pub(in crate::store) fn looks_at(&self) -> u64 {
        if self.is_filtered() { LOOKED_AT_MAX } else { self.offset.saturating_add(self.asks_for()) }
    }

    /// How many matching records are fetched.
    pub(in crate::store) fn asks_for(&self) -> u64 {
        u64::from(self.limit) + 1
    }

    /// The page of `records`, found at `places`, with one more if anything follows. `last_seen` is the last position
    /// examined, if the search was cut.
    pub(in crate::store) fn page(
        &self,
        mut places: Vec<LogCursor>,
        last_seen: Option<LogCursor>,
        records: Vec<Option<UsageRecord>>,
        total: Option<LogTotal>,
    ) -> LogPage {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let is_more = places.len() > limit;
        places.truncate(limit);
        let next = if is_more { places.last().copied() } else { last_seen };
        let found = records.len();
        let items: Vec<UsageRecord> = records.into_iter().flatten().collect();
        let passed_over = u64::try_from(found - items.len()).unwrap_or(u64::MAX);
        LogPage { items, total, next, passed_over }
    }

    /// The positions on the page itself, without the additional one.
    pub(in crate::store) fn shown<'p>(&self, places: &'p [LogCursor]) -> &'p [LogCursor] {
        &places[..places.len().min(usize::try_from(self.limit).unwrap_or(usize::MAX))]
    }
}

// === impl UsageDays ===

impl<'s> UsageDays<'s> {
    /// No day yet.
    pub(in crate::store) const fn of(search: &'s LogSearch) -> Self {
        Self { search, seen: 0, from: None }
    }

    /// Adds the next day. False: there are enough.
    pub(in crate::store) fn push(&mut self, start: Timestamp, requests: u64) -> bool {
        self.from = Some(start);
        // A day that the search begins in does not count: all its records may be outside of the range.
        if start.plus(Duration::from_hours(24)) <= self.search.range.end {
            self.seen = self.seen.saturating_add(requests);
        }
        self.is_short()
    }

    /// How far to look; none if there are no records at all.
    pub(in crate::store) fn reach(&self) -> Option<SearchRange> {
        let from = self.from?.max(self.search.range.start);
        Some(SearchRange { from, is_cut: !self.is_short() && from > self.search.range.start })
    }

    fn is_short(&self) -> bool {
        self.seen < self.search.looks_at()
    }
}

// === impl SearchRange ===

impl SearchRange {
    /// Where to continue if fewer were found than requested although there are more.
    pub(in crate::store) fn end(&self) -> Option<LogCursor> {
        self.is_cut.then_some(LogCursor { at: self.from, id: RequestId(Uuid::nil()) })
    }
}

// === impl AlignedRange ===

impl AlignedRange {
    /// `range` cut by `width`; none if it contains no whole window.
    pub(in crate::store) fn of(range: &Range<Timestamp>, width: WindowWidth) -> Option<Self> {
        let last = width.start(range.end);
        let floor = width.start(range.start);
        let length = Duration::from_secs(width.seconds().unsigned_abs());
        let first = if floor == range.start { floor } else { floor.plus(length) };
        if first >= last {
            return None;
        }
        Some(Self { whole: first..last, edges: [range.start..first, last..range.end] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cut_loses_nothing_and_repeats_nothing(from in 0..10_000_000_000_i64, length in 0..10_000_000_000_000_i64) {
            let range = Timestamp::from_micros(from)..Timestamp::from_micros(from + length);
            for width in COUNTED_BY {
                let Some(AlignedRange { whole, edges: [head, tail] }) = AlignedRange::of(&range, width) else { continue };
                prop_assert_eq!((head.start, head.end), (range.start, whole.start));
                prop_assert_eq!((tail.start, tail.end), (whole.end, range.end));
                prop_assert!(whole.start < whole.end);
                prop_assert_eq!((width.start(whole.start), width.start(whole.end)), (whole.start, whole.end));
            }
        }
    }
}
