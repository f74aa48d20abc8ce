//! Query latency on a short and on a long ledger of one key.

use super::fill::{Traffic, now};
use keygate::clock::Timestamp;
use keygate::store::{Interval, LogCursor, LogFilter, LogPageRequest, PageRequest, Store, UsageRange};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The short ledger.
const SHORT: u64 = 1_000;
/// How often each query is run.
const TRIALS: usize = 200;
/// Days that the rows are spread over.
const DAYS: u64 = 30;
const BATCH: u64 = 20_000;

/// Fills the ledger in two steps and prints how long each query takes on both.
pub(crate) async fn table(backend: &str, store: &Arc<dyn Store>, rows: u64) {
    let traffic = Traffic::of(1, 1);
    traffic.make_keys(store).await;
    fill(store, &traffic, 0, SHORT, rows).await;
    let short = measure(store, &traffic).await;
    let begun = Instant::now();
    fill(store, &traffic, SHORT, rows, rows).await;
    println!("{backend}: {rows} rows of one key over {DAYS} days, made in {:.0?}", begun.elapsed());
    let long = measure(store, &traffic).await;
    println!("  {:<34} {:>20} {:>20}", "median, p99 in ms", format!("{SHORT} rows"), format!("{rows} rows"));
    for ((question, a), (_, b)) in short.iter().zip(&long) {
        println!("  {question:<34} {:>20} {:>20}", a.to_string(), b.to_string());
    }
}

/// Rows `from` to `to` of `all`, oldest first except for the first ones, which are spread over all days like the rest.
async fn fill(store: &Arc<dyn Store>, traffic: &Traffic, from: u64, to: u64, all: u64) {
    let end = now();
    let span = Duration::from_secs(DAYS * 86_400);
    let at = |n: u64| -> Timestamp {
        let share = if n < SHORT { n as f64 / SHORT as f64 } else { n as f64 / all as f64 };
        end.minus(span).plus(span.mul_f64(share))
    };
    let mut n = from;
    while n < to {
        let next = (n + BATCH).min(to);
        let records: Vec<_> = (n..next).map(|n| traffic.record(n, at(n))).collect();
        store.append(&records).await.unwrap();
        n = next;
    }
}

struct Times {
    median: Duration,
    p99: Duration,
}

async fn measure(store: &Arc<dyn Store>, traffic: &Traffic) -> Vec<(&'static str, Times)> {
    let (id, workspace) = traffic.busiest();
    let range =
        UsageRange { from: now().minus(Duration::from_hours(24)), to: now(), interval: Interval::Hour };
    let month = UsageRange {
        from: now().minus(Duration::from_secs(DAYS * 86_400)),
        interval: Interval::Day,
        ..range
    };
    let first = LogPageRequest::Number(PageRequest { page: 1, pagesize: 10 });
    let hundredth = LogPageRequest::Number(PageRequest { page: 100, pagesize: 10 });
    let middle = now().minus(Duration::from_secs(DAYS * 43_200));
    let by_cursor =
        LogPageRequest::After(LogCursor { at: middle, id: keygate::model::id::RequestId::new(middle) }, 10);
    let by = LogFilter::default;
    let since = LogFilter { from: Some(now().minus(Duration::from_secs(9 * 86_400 + 4_321))), ..by() };
    let usual = LogFilter { status_code: Some(429), ..by() };
    let rare = LogFilter { status_code: Some(418), ..by() };
    let path = LogFilter { endpoint: Some("EMBED".into()), ..by() };
    let nowhere = LogFilter { endpoint: Some("nowhere".into()), ..by() };
    let mut all = Vec::new();
    all.push((
        "stats",
        times(async || drop(store.stats(workspace, *id, now()).await.unwrap().unwrap())).await,
    ));
    all.push((
        "usage, 24 hours",
        times(async || drop(store.usage(workspace, *id, &range).await.unwrap())).await,
    ));
    all.push((
        "usage, 30 days",
        times(async || drop(store.usage(workspace, *id, &month).await.unwrap())).await,
    ));
    for (question, filter, page) in [
        ("logs, first page", by(), first.clone()),
        ("logs, page 100", by(), hundredth),
        ("logs, by cursor, 15 days back", by(), by_cursor),
        ("logs since 9 days ago", since, first.clone()),
        ("logs of status 429, 1 in 50", usual, first.clone()),
        ("logs of a status that is nowhere", rare, first.clone()),
        ("logs of a path, 1 in 6", path, first.clone()),
        ("logs of a path that is nowhere", nowhere, first),
    ] {
        let ask = async || drop(store.logs(workspace, *id, &filter, page.clone()).await.unwrap().unwrap());
        all.push((question, times(ask).await));
    }
    all
}

async fn times(ask: impl AsyncFn()) -> Times {
    let mut took = Vec::with_capacity(TRIALS);
    for _ in 0..TRIALS {
        let begun = Instant::now();
        ask().await;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    Times { median: took[TRIALS / 2], p99: took[TRIALS * 99 / 100] }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "{:.2}, {:.2}", ms(self.median), ms(self.p99))
    }
}
