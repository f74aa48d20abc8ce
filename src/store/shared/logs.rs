//! Finding usage records without reading a ledger: what is asked for, how far a call looks, how records are counted.
//!
//! Pure; must not know SQL. Both backends look through the index of a key's records from the newest on and never further
//! than [`LOOKED_AT_MAX`]; roll-ups tell which days have any, and how many.
//!
//! *Invariant:* no call costs more on a long ledger than on a short one, beyond that bound.

use super::rollup::WindowWidth;
use crate::clock::Timestamp;
use crate::model::id::RequestId;
use crate::model::usage::UsageRecord;
use crate::store::usage::{LogCursor, LogFilter, LogPage, LogPageRequest, LogTotal};
use std::ops::Range;
use std::time::Duration;
use uuid::Uuid;

/// Most records that one call looks at to find those of a status or a path.
pub(in crate::store) const LOOKED_AT_MAX: u64 = 50_000;
/// Days of roll-ups that are fetched at once.
pub(in crate::store) const DAYS_AT_ONCE: i64 = 32;

/// What a call looks for, and where.
#[derive(Clone, Debug)]
pub(in crate::store) struct LogSearch {
    /// Not before, at or after.
    pub(in crate::store) range: Range<Timestamp>,
    /// Behind this place.
    pub(in crate::store) after: LogCursor,
    pub(in crate::store) status: Option<i64>,
    /// Folded as ASCII.
    pub(in crate::store) endpoint: Option<String>,
    /// Records on the page, and how many that fit come before it.
    pub(in crate::store) limit: u32,
    pub(in crate::store) offset: u64,
    pub(in crate::store) wants_total: bool,
}

/// How far a search looks, once the roll-ups have told where records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct SearchRange {
    /// Not before.
    pub(in crate::store) from: Timestamp,
    /// Whether there are records before that, or more than are looked at.
    pub(in crate::store) is_cut: bool,
}

/// The days of a key that have records, from the newest on, until there are enough of them.
pub(in crate::store) struct UsageDays<'s> {
    search: &'s LogSearch,
    seen: u64,
    from: Option<Timestamp>,
}

/// A range of time cut where windows of one width begin.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) struct AlignedRange {
    /// Whole windows.
    pub(in crate::store) whole: Range<Timestamp>,
    /// What is left before and after them.
    pub(in crate::store) edges: [Range<Timestamp>; 2],
}

/// The widths to count by, the widest first, and after each what to do with the edges.
pub(in crate::store) const COUNTED_BY: [WindowWidth; 3] =
    [WindowWidth::Day, WindowWidth::Hour, WindowWidth::Minute];

// === impl LogSearch ===

impl LogSearch {
    /// What `filter` and `page` ask for of a ledger that was kept from `kept_from` on.
    pub(in crate::store) fn new(filter: &LogFilter, page: &LogPageRequest, kept_from: Timestamp) -> Self {
        let (after, limit, offset) = match page {
            LogPageRequest::Number(page) => (None, page.pagesize, page.offset()),
            LogPageRequest::After(cursor, limit) => (Some(*cursor), *limit, 0),
        };
        let end = Timestamp::MAX.plus(Duration::from_micros(1));
        // Without a place to begin behind: behind the end of time, where no record is.
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

    /// Whether records have to be looked at to tell whether they fit.
    pub(in crate::store) fn is_filtered(&self) -> bool {
        self.status.is_some() || self.endpoint.is_some()
    }

    /// How many records are looked at, at most: one more than the page has tells whether anything follows.
    pub(in crate::store) fn looks_at(&self) -> u64 {
        if self.is_filtered() { LOOKED_AT_MAX } else { self.offset.saturating_add(self.asks_for()) }
    }

    /// How many of those that fit are fetched.
    pub(in crate::store) fn asks_for(&self) -> u64 {
        u64::from(self.limit) + 1
    }

    /// The page of `records`, found at `places` of which there is one more when anything follows. `last_seen` is the last
    /// place that was looked at, where the search did not come to its end.
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

    /// The places on the page itself, without the one more.
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

    /// The next day. False: with it there are enough.
    pub(in crate::store) fn push(&mut self, start: Timestamp, requests: u64) -> bool {
        self.from = Some(start);
        // A day that the search begins within counts for nothing: all it holds may be out of sight.
        if start.plus(Duration::from_hours(24)) <= self.search.range.end {
            self.seen = self.seen.saturating_add(requests);
        }
        self.is_short()
    }

    /// How far to look; none when there is no record at all.
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
    /// Where to go on when fewer were found than were asked for, although there is more.
    pub(in crate::store) fn end(&self) -> Option<LogCursor> {
        self.is_cut.then_some(LogCursor { at: self.from, id: RequestId(Uuid::nil()) })
    }
}

// === impl AlignedRange ===

impl AlignedRange {
    /// `range` cut by `width`; none when no whole window is in it.
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
