//! Charts and bars: what templates draw as SVG, with the exact values beside it as text.

use super::show;
use super::texts::Texts;
use serde::Deserialize;

/// A point of a time series, as the API shows it.
#[derive(Clone, Deserialize)]
pub(super) struct Point {
    pub(super) start: i64,
    pub(super) requests: u64,
    pub(super) denied: u64,
    pub(super) errors: u64,
    pub(super) tokens_used: u64,
    pub(super) cost_nano: u64,
    pub(super) p50: f64,
    pub(super) p95: f64,
}

/// A time series.
#[derive(Deserialize)]
pub(super) struct Series {
    pub(super) points: Vec<Point>,
}

/// Columns over time.
pub(super) struct Chart {
    /// Identifies it on its page.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// The value at its upper edge.
    pub(super) top: String,
    /// The sum, where there is one.
    pub(super) sum: String,
    /// Class and label of each part of a column, from below.
    pub(super) parts: Vec<(&'static str, &'static str)>,
    pub(super) columns: Vec<Column>,
    pub(super) from: String,
    pub(super) to: String,
}

/// One column.
pub(super) struct Column {
    /// When it begins.
    pub(super) at: String,
    /// The value of each part, for people.
    pub(super) values: Vec<String>,
    /// Class, upper edge and height of each part, of 100.
    pub(super) boxes: Vec<(&'static str, f64, f64)>,
}

/// How much of a limit is used.
pub(super) struct Bar {
    pub(super) label: String,
    /// Whose limit it is.
    pub(super) owner: String,
    pub(super) used: String,
    pub(super) held: String,
    pub(super) limit: String,
    pub(super) left: String,
    pub(super) percent: String,
    /// Of 100.
    pub(super) width: f64,
    /// `good`, `warn` or `bad`.
    pub(super) mark: &'static str,
    /// Whether it is the one that will be reached first.
    pub(super) binds: bool,
    pub(super) share: f64,
}

/// The charts of a series: requests, and what meters found, if they found anything.
pub(super) fn charts(points: &[Point], is_daily: bool, t: &'static Texts) -> Vec<Chart> {
    let served = |point: &Point| point.requests.saturating_sub(point.denied + point.errors);
    let requests = Chart::new(
        ("chart-requests", t.requests),
        vec![("served", t.served), ("failed", t.errors), ("denied", t.denied)],
        points,
        is_daily,
        |point| vec![served(point), point.errors, point.denied],
        show::count,
    );
    let is_metered = points.iter().any(|point| point.tokens_used > 0 || point.cost_nano > 0);
    let tokens = is_metered.then(|| {
        let parts = vec![("tokens", t.tokens)];
        let value = |point: &Point| vec![point.tokens_used];
        Chart::new(("chart-tokens", t.tokens), parts, points, is_daily, value, show::count)
    });
    let cost = points.iter().any(|point| point.cost_nano > 0).then(|| {
        let parts = vec![("cost", t.cost)];
        let value = |point: &Point| vec![point.cost_nano];
        Chart::new(("chart-cost", t.cost), parts, points, is_daily, value, show::money)
    });
    let is_timed = points.iter().any(|point| point.p95 > 0.0);
    let latency = is_timed.then(|| {
        let parts = vec![("p50", t.p50), ("p95", t.p95)];
        let value = |point: &Point| {
            vec![micros(point.p50), micros(point.p95) - micros(point.p50).min(micros(point.p95))]
        };
        Chart::latency(("chart-latency", t.response_time), parts, points, is_daily, value)
    });
    [Some(requests), tokens, cost, latency].into_iter().flatten().collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a duration, not negative")]
fn micros(ms: f64) -> u64 {
    (ms * 1_000.0) as u64
}

#[expect(clippy::cast_precision_loss, reason = "to be drawn")]
fn share(value: u64, top: u64) -> f64 {
    if top == 0 { 0.0 } else { (value as f64 / top as f64 * 10_000.0).round() / 100.0 }
}

impl Chart {
    fn new(
        (id, title): (&'static str, &'static str),
        parts: Vec<(&'static str, &'static str)>,
        points: &[Point],
        is_daily: bool,
        values: impl Fn(&Point) -> Vec<u64>,
        written: impl Fn(u64) -> String,
    ) -> Self {
        let all: Vec<Vec<u64>> = points.iter().map(&values).collect();
        let top = all.iter().map(|values| values.iter().sum()).max().unwrap_or(0);
        let at = |point: &Point| show::instant(point.start)[..if is_daily { 10 } else { 16 }].to_owned();
        let columns = points.iter().zip(&all).map(|(point, values)| {
            let mut edge = 100.0;
            let boxes =
                parts.iter().zip(values).filter(|(_, value)| **value > 0).map(|((class, _), value)| {
                    let height = share(*value, top);
                    edge -= height;
                    (*class, edge, height)
                });
            let boxes = boxes.collect();
            Column { at: at(point), values: values.iter().map(|value| written(*value)).collect(), boxes }
        });
        let columns = columns.collect();
        let sum = written(all.iter().flatten().sum());
        let ends = |point: Option<&Point>| point.map(&at).unwrap_or_default();
        let (from, to) = (ends(points.first()), ends(points.last()));
        Self { id, title, top: written(top), sum, parts, columns, from, to }
    }

    /// The upper part of a column is what p95 is above p50; the values are both as they are.
    fn latency(
        names: (&'static str, &'static str),
        parts: Vec<(&'static str, &'static str)>,
        points: &[Point],
        is_daily: bool,
        values: impl Fn(&Point) -> Vec<u64>,
    ) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a response")]
        let written = |us: u64| show::millis(us as f64 / 1_000.0);
        let mut chart = Self::new(names, parts, points, is_daily, values, written);
        for (column, point) in chart.columns.iter_mut().zip(points) {
            column.values = vec![show::millis(point.p50), show::millis(point.p95)];
        }
        chart.sum.clear();
        chart
    }
}

impl Bar {
    /// The usage of a limit; `is_cost`: counted in billionths.
    pub(super) fn new(
        label: String,
        owner: String,
        (used, held): (u64, u64),
        limit: u64,
        is_cost: bool,
    ) -> Self {
        let written = if is_cost { show::money } else { show::count };
        let share = if limit == 0 { 100.0 } else { share(used.saturating_add(held), limit) };
        let mark = match share {
            100.0.. => "bad",
            80.0.. => "warn",
            _ => "good",
        };
        Self {
            label,
            owner,
            used: written(used),
            held: if held == 0 { String::new() } else { written(held) },
            limit: written(limit),
            left: written(limit.saturating_sub(used).saturating_sub(held)),
            percent: show::percent(share),
            width: share.min(100.0),
            mark,
            binds: false,
            share,
        }
    }

    /// Marks the one that will be reached first.
    pub(super) fn mark_binding(bars: &mut [Self]) {
        let first = bars.iter_mut().filter(|bar| bar.share > 0.0).max_by(|a, b| a.share.total_cmp(&b.share));
        if let Some(first) = first {
            first.binds = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(start: i64, requests: u64, denied: u64, errors: u64) -> Point {
        Point { start, requests, denied, errors, tokens_used: 0, cost_nano: 0, p50: 0.0, p95: 0.0 }
    }

    #[test]
    fn columns_are_stacked_and_have_their_exact_values() {
        let points = [point(0, 10, 2, 3), point(3_600_000, 5, 0, 0)];
        let charts = charts(&points, false, &Texts::EN);
        assert_eq!(charts.len(), 1, "nothing was metered");
        let chart = &charts[0];
        assert_eq!(
            (&*chart.top, &*chart.sum, &*chart.from, &*chart.to),
            ("10", "15", "1970-01-01 00:00", "1970-01-01 01:00")
        );
        assert_eq!(chart.columns[0].values, ["5", "3", "2"]);
        assert_eq!(
            chart.columns[0].boxes,
            [("served", 50.0, 50.0), ("failed", 20.0, 30.0), ("denied", 0.0, 20.0)]
        );
        assert_eq!(chart.columns[1].boxes, [("served", 50.0, 50.0)]);
    }

    #[test]
    fn the_limit_that_is_reached_first_binds() {
        let bar = |used, held, limit| Bar::new(String::new(), String::new(), (used, held), limit, false);
        let mut bars = [bar(10, 0, 100), bar(70, 15, 100), bar(0, 0, 5)];
        Bar::mark_binding(&mut bars);
        assert_eq!(
            bars.map(|bar| (bar.mark, bar.binds, bar.left)),
            [("good", false, "90".into()), ("warn", true, "15".into()), ("good", false, "5".into())]
        );
        let mut unused = [bar(0, 0, 5)];
        Bar::mark_binding(&mut unused);
        assert!(!unused[0].binds);
        assert_eq!((bar(5, 0, 0).mark, bar(7, 0, 5).width), ("bad", 100.0));
    }
}
