//! Sums over requests, as roll-ups and groups keep them, and their columns. Pure.

use super::fields::{RowReader, int};
use crate::clock::Timestamp;
use crate::model::tokens::TokenCounts;
use crate::model::usage::{Outcome, UsageRecord};
use crate::store::StoreError;

/// Sums over requests. They saturate at the largest value that a store can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UsageSums {
    /// Records.
    pub requests: u64,
    /// Requests that Keygate denied.
    pub denied: u64,
    /// Requests that were not denied and reached no backend.
    pub unreached: u64,
    /// Requests that were not denied and failed at the backend.
    pub errors: u64,
    /// Charged requests.
    pub charged: u64,
    /// Tokens.
    pub tokens: TokenCounts,
    /// Cost, in billionths of the currency unit.
    pub cost_nano: u64,
    /// Body bytes from clients.
    pub bytes_in: u64,
    /// Body bytes to clients.
    pub bytes_out: u64,
    /// The latest arrival.
    pub last_at: Timestamp,
    /// Requests whose response time counts: neither denied nor interrupted.
    pub response_count: u64,
    /// Sum of their response times, in µs.
    pub response_us_sum: u64,
}

/// The number of columns.
pub(in crate::store) const SUMS: usize = 18;
/// The column that is a maximum and not a sum.
const LATEST: &str = "last_at";
/// The largest sum, which fits the 64-bit integers of both backends.
pub(super) const SUM_MAX: u64 = i64::MAX.unsigned_abs();

/// The columns of [`UsageSums`], in the order of [`UsageSums::figures`] and [`read_sums`].
macro_rules! sums_columns {
    () => {
        "requests, denied, unreached, errors, charged, tokens, input_tokens, cached_tokens, cache_write_tokens, \
         output_tokens, reasoning_tokens, audio_tokens, cost_nano, bytes_in, bytes_out, last_at, response_count, \
         response_us_sum"
    };
}
pub(in crate::store) use sums_columns;

/// Each of the columns.
fn columns() -> impl Iterator<Item = &'static str> {
    sums_columns!().split(", ")
}

/// `requests = excluded.requests, …`: what an upsert sets when the row is to be replaced.
pub(in crate::store) fn replaced() -> String {
    joined(|name| format!("{name} = excluded.{name}"))
}

/// `requests = …, …`: what an upsert into the table `g` sets to add the new figures. `least` and `greatest` are the backend's
/// functions of two numbers.
pub(in crate::store) fn added(least: &str, greatest: &str) -> String {
    joined(|name| match name {
        LATEST => format!("{name} = {greatest}(g.{name}, excluded.{name})"),
        _ => format!("{name} = {least}(g.{name}, {SUM_MAX} - excluded.{name}) + excluded.{name}"),
    })
}

/// The number of rows of the table `t`, then its columns summed up by `sum`.
pub(in crate::store) fn totals(sum: impl Fn(&str) -> String) -> String {
    let sums = joined(|name| if name == LATEST { format!("max(t.{name})") } else { sum(name) });
    format!("count(*), {sums}")
}

fn joined(each: impl Fn(&str) -> String) -> String {
    columns().map(each).collect::<Vec<_>>().join(", ")
}

pub(in crate::store) fn read_sums(f: &mut RowReader<'_>) -> Result<UsageSums, StoreError> {
    Ok(UsageSums {
        requests: f.int("requests")?,
        denied: f.int("denied")?,
        unreached: f.int("unreached")?,
        errors: f.int("errors")?,
        charged: f.int("charged")?,
        tokens: TokenCounts {
            total: f.int("tokens")?,
            input: f.int("input_tokens")?,
            cached: f.int("cached_tokens")?,
            cache_write: f.int("cache_write_tokens")?,
            output: f.int("output_tokens")?,
            reasoning: f.int("reasoning_tokens")?,
            audio: f.int("audio_tokens")?,
        },
        cost_nano: f.int("cost_nano")?,
        bytes_in: f.int("bytes_in")?,
        bytes_out: f.int("bytes_out")?,
        last_at: f.maybe_instant(LATEST)?.unwrap_or_default(),
        response_count: f.int("response_count")?,
        response_us_sum: f.int("response_us_sum")?,
    })
}

impl UsageSums {
    /// Counts one record.
    pub fn add(&mut self, record: &UsageRecord) {
        let denied = record.outcome == Outcome::Denied;
        let failed = record.status_code >= 500 || record.outcome == Outcome::UpstreamFailed;
        let is_response =
            !matches!(record.outcome, Outcome::Denied | Outcome::Interrupted | Outcome::Decided);
        self.merge(&Self {
            requests: 1,
            denied: denied.into(),
            unreached: (!denied && !record.charged).into(),
            errors: (failed && !denied).into(),
            charged: record.charged.into(),
            tokens: record.tokens(),
            cost_nano: record.cost_nano.unwrap_or(0),
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            last_at: record.at,
            response_count: is_response.into(),
            response_us_sum: if is_response { record.response_time_us } else { 0 },
        });
    }

    /// Counts everything that `other` counted.
    pub fn merge(&mut self, other: &Self) {
        self.last_at = match (self.requests, other.requests) {
            (_, 0) => self.last_at,
            (0, _) => other.last_at,
            _ => self.last_at.max(other.last_at),
        };
        let mut others = *other;
        for (own, other) in self.counts_mut().into_iter().zip(others.counts_mut()) {
            *own = sum(*own, *other);
        }
    }

    /// Requests that reached a backend.
    pub const fn reached(&self) -> u64 {
        self.requests.saturating_sub(self.denied).saturating_sub(self.unreached)
    }

    /// The figures as both backends store them, in the order of [`sums_columns`].
    pub(in crate::store) fn figures(&self) -> [i64; SUMS] {
        let Self {
            requests,
            denied,
            unreached,
            errors,
            charged,
            tokens,
            cost_nano,
            bytes_in,
            bytes_out,
            last_at,
            response_count,
            response_us_sum,
        } = self;
        let TokenCounts { total, input, cached, cache_write, output, reasoning, audio } = *tokens;
        [
            int(*requests),
            int(*denied),
            int(*unreached),
            int(*errors),
            int(*charged),
            int(total),
            int(input),
            int(cached),
            int(cache_write),
            int(output),
            int(reasoning),
            int(audio),
            int(*cost_nano),
            int(*bytes_in),
            int(*bytes_out),
            last_at.as_micros(),
            int(*response_count),
            int(*response_us_sum),
        ]
    }

    /// Everything that is summed up: all but the latest arrival.
    fn counts_mut(&mut self) -> [&mut u64; SUMS - 1] {
        let Self {
            requests,
            denied,
            unreached,
            errors,
            charged,
            tokens,
            cost_nano,
            bytes_in,
            bytes_out,
            last_at: _,
            response_count,
            response_us_sum,
        } = self;
        let TokenCounts { total, input, cached, cache_write, output, reasoning, audio } = tokens;
        [
            requests,
            denied,
            unreached,
            errors,
            charged,
            total,
            input,
            cached,
            cache_write,
            output,
            reasoning,
            audio,
            cost_nano,
            bytes_in,
            bytes_out,
            response_count,
            response_us_sum,
        ]
    }
}

/// The sum of two counts, or the largest that can be stored.
pub(super) fn sum(a: u64, b: u64) -> u64 {
    a.saturating_add(b).min(SUM_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_has_a_value() {
        assert_eq!(columns().count(), SUMS);
        assert!(columns().all(|name| !name.is_empty() && name == name.trim()));
        assert_eq!(columns().position(|name| name == LATEST), Some(15));
    }
}
