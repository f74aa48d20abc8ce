//! Usage.

use crate::place::{Place, T0, after, everything, page, plan, plan_id, record, someone};
use keygate::clock::Timestamp;
use keygate::model::calendar::{Calendar, zone};
use keygate::model::fault::Fault;
use keygate::model::id::{EndUserId, KeyId, WorkspaceId};
use keygate::model::key::Per;
use keygate::model::tokens::{ReadingSource, TokenCounts};
use keygate::model::usage::Quantiles;
use keygate::model::usage::{Outcome, UsageSubject};
use keygate::model::usage::{UsageRecord, UsageTotals};
use keygate::store::{
    Interval, KeyRecord, KeyStats, LogFilter, LogPage, LogPageRequest, LogTotal, PlanPatch, PlanRecord,
    WorkspacePatch,
};
use keygate::store::{StoreError, UsagePoint, UsageRange};
use std::time::Duration;
use tokio::sync::mpsc;

/// 2025-06-30T23:59:59.999999Z: the last microsecond of a minute, an hour, a day and a month.
const LAST_US: Timestamp = Timestamp::from_micros(1_751_327_999_999_999);
/// 2025-07-01T00:00:00Z.
const JULY: Timestamp = Timestamp::from_micros(1_751_328_000_000_000);

async fn key_of(place: &Place, workspace: &str) -> (WorkspaceId, KeyRecord) {
    let w = place.tenant(workspace).await;
    let key = place.key_in(&w, "k").await;
    (w, key)
}

async fn stats(place: &Place, w: &WorkspaceId, key: &KeyRecord, at: Timestamp) -> KeyStats {
    place.stats(w, key.key.id, at).await.unwrap().unwrap()
}

fn exactly(records: u64) -> Option<LogTotal> {
    Some(LogTotal { records, is_exact: true })
}

async fn logs(place: &Place, w: &WorkspaceId, key: &KeyRecord, filter: &LogFilter) -> LogPage {
    place.logs(w, key.key.id, filter, LogPageRequest::Number(everything())).await.unwrap().unwrap()
}

async fn spent(place: &Place, at: Timestamp) -> Vec<UsageTotals> {
    spent_in(place, at, Calendar::UTC).await
}

async fn spent_in(place: &Place, at: Timestamp, calendar: Calendar) -> Vec<UsageTotals> {
    let (to, mut from) = mpsc::channel(1);
    let collect = async {
        let mut all = Vec::new();
        while let Some(batch) = from.recv().await {
            all.extend(batch);
        }
        all
    };
    let (outcome, rows) = tokio::join!(place.totals(at, calendar, to), collect);
    outcome.unwrap();
    for row in &rows {
        let alone = place.totals_of(&row.subject, at, calendar).await.unwrap();
        assert_eq!(alone, *row, "asked for one or for all");
    }
    rows
}

async fn spent_by(place: &Place, at: Timestamp, subject: &UsageSubject) -> [u64; Per::WINDOWS.len()] {
    let rows = spent(place, at).await;
    rows.iter().find(|row| row.subject == *subject).unwrap().used
}

fn ended(key: &KeyRecord, at: Timestamp, outcome: Outcome, status_code: u16) -> UsageRecord {
    UsageRecord { outcome, status_code, ..record(key, at) }
}

pub(crate) async fn an_empty_batch_is_nothing(place: Place) {
    assert_eq!(place.append(&[]).await.unwrap(), 0);
    assert_eq!(spent(&place, T0).await, []);
    let nobody = UsageSubject::Key(KeyId::new(T0));
    let none = UsageTotals::nothing(nobody.clone());
    assert_eq!(place.totals_of(&nobody, T0, Calendar::UTC).await.unwrap(), none);
}

pub(crate) async fn append_is_idempotent(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let batch = [record(&key, T0), record(&key, after(1))];
    assert_eq!(place.append(&batch).await.unwrap(), 2);
    let once = (stats(&place, &w, &key, T0).await, spent(&place, T0).await);
    for _ in 0..2 {
        assert_eq!(place.append(&batch).await.unwrap(), 0);
    }
    assert_eq!((stats(&place, &w, &key, T0).await, spent(&place, T0).await), once);
    assert_eq!(once.0.total_requests, 2);
    assert_eq!(logs(&place, &w, &key, &LogFilter::default()).await.total, exactly(2));
    // The id is the identity: another content under the same id changes nothing.
    let twin = UsageRecord { status_code: 500, ..batch[0].clone() };
    assert_eq!(place.append(&[twin]).await.unwrap(), 0);
    assert_eq!(stats(&place, &w, &key, T0).await.errors, 0);
}

pub(crate) async fn an_overlapping_batch_counts_once(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let all: Vec<UsageRecord> = (0..4).map(|n| record(&key, after(n))).collect();
    assert_eq!(place.append(&all[..3]).await.unwrap(), 3);
    assert_eq!(place.append(&all[1..]).await.unwrap(), 1);
    // Also within one batch.
    let new = record(&key, after(9));
    assert_eq!(place.append(&[new.clone(), all[0].clone(), new]).await.unwrap(), 1);
    let stats = stats(&place, &w, &key, T0).await;
    assert_eq!((stats.total_requests, stats.quota_used, stats.response_time.count), (5, 5, 5));
    assert_eq!(logs(&place, &w, &key, &LogFilter::default()).await.total, exactly(5));
}

pub(crate) async fn records_read_back_exactly(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let full = UsageRecord {
        request_id: "0197-é".into(),
        method: "PROPFIND".into(),
        endpoint: "/v1/100%/中文/'x'".into(),
        route: "".into(),
        status_code: 429,
        outcome: Outcome::Denied,
        denial: Some(Fault::RateLimitExceeded),
        charged: false,
        degraded: true,
        response_time_us: 123_456_789,
        ttfb_us: Some(0),
        bytes_in: 0,
        bytes_out: u64::from(u32::MAX) * 7,
        tokens_used: 42,
        ip_address: Some("2001:db8::1".parse().unwrap()),
        user_agent: "curl/8 \"q\"".into(),
        end_user_id: Some(EndUserId::new(T0)),
        upstream: "10.0.0.1:9001".into(),
        node: "n-1".into(),
        model: Some("gpt-4o-2024-08-06".into()),
        model_requested: Some("gpt-4o".into()),
        input_tokens: Some(0),
        cached_tokens: Some(1),
        cache_write_tokens: Some(2),
        output_tokens: Some(3),
        reasoning_tokens: Some(4),
        audio_tokens: Some(5),
        cost_nano: Some(u64::from(u32::MAX) * 9),
        usage_source: Some(ReadingSource::Held),
        provider_request_id: Some("chatcmpl-é".into()),
        ..record(&key, after(1))
    };
    let plain = record(&key, T0);
    place.append(&[plain.clone(), full.clone()]).await.unwrap();
    assert_eq!(logs(&place, &w, &key, &LogFilter::default()).await.items, [full, plain]);
}

pub(crate) async fn numbers_too_large_are_cut_and_nul_is_replaced(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let most = u64::try_from(i64::MAX).unwrap();
    let odd = UsageRecord {
        bytes_in: u64::MAX,
        bytes_out: u64::MAX,
        tokens_used: u64::MAX,
        response_time_us: u64::MAX,
        endpoint: "/a\0b".into(),
        ..record(&key, T0)
    };
    place.append(&[odd.clone(), UsageRecord { id: record(&key, T0).id, ..odd }]).await.unwrap();
    let stats = stats(&place, &w, &key, T0).await;
    assert_eq!((stats.total_requests, stats.tokens.total), (2, most));
    let read = logs(&place, &w, &key, &LogFilter::default()).await.items.remove(0);
    assert_eq!((read.bytes_in, read.response_time_us, &*read.endpoint), (most, most, "/a\u{fffd}b"));
}

pub(crate) async fn nothing_in_a_record_keeps_it_out(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let (long, huge) = ("€\0".repeat(2_000), "€\0".repeat(300_000));
    let of = |at| UsageRecord {
        request_id: long.as_str().into(),
        method: long.as_str().into(),
        endpoint: long.as_str().into(),
        route: long.as_str().into(),
        user_agent: huge.as_str().into(),
        upstream: long.as_str().into(),
        node: long.as_str().into(),
        status_code: u16::MAX,
        response_time_us: u64::MAX,
        ttfb_us: Some(u64::MAX),
        bytes_in: u64::MAX,
        bytes_out: u64::MAX,
        tokens_used: u64::MAX,
        model: Some(huge.as_str().into()),
        model_requested: Some(long.as_str().into()),
        input_tokens: Some(u64::MAX),
        cost_nano: Some(u64::MAX),
        provider_request_id: Some(long.as_str().into()),
        ..record(&key, at)
    };
    let [day, year_10000] = [Duration::from_hours(24), Duration::from_secs(1)];
    let instants = [
        Timestamp::from_micros(i64::MIN),
        Timestamp::from_micros(-1),
        Timestamp::default(),
        T0.minus(day),
        T0.plus(day * 400),
        Timestamp::MAX,
        Timestamp::MAX.plus(year_10000),
        Timestamp::from_micros(i64::MAX),
    ];
    let batch: Vec<UsageRecord> = instants.into_iter().map(of).collect();
    assert_eq!(place.append(&batch).await.unwrap(), 8);
    assert_eq!(place.append(&batch).await.unwrap(), 0, "the same records again");
    let kept = logs(&place, &w, &key, &LogFilter::default()).await;
    assert_eq!((kept.total, kept.items.len()), (exactly(8), 8));
    for kept in &kept.items {
        assert!((Timestamp::default()..=Timestamp::MAX).contains(&kept.at));
        let texts = [&kept.endpoint, &kept.user_agent, &kept.request_id, &kept.node];
        assert!(texts.iter().all(|text| text.starts_with("€\u{fffd}€") && text.len() <= 2_048));
    }
    assert_eq!(stats(&place, &w, &key, T0).await.total_requests, 8);
}

pub(crate) async fn totals_of_a_range_are_exact_to_the_microsecond(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    // Three days with a record each 37 minutes and 13.000001 s, so that every kind of edge has some.
    let step = Duration::from_micros(37 * 60_000_000 + 13_000_001);
    let all: Vec<UsageRecord> = (0..120).map(|n| record(&key, T0.plus(step * n))).collect();
    place.append(&all).await.unwrap();
    let us = Duration::from_micros(1);
    let edges = [3_u32, 4, 40, 41, 77].map(|n| T0.plus(step * n));
    let edges: Vec<Timestamp> = edges.into_iter().flat_map(|at| [at.minus(us), at, at.plus(us)]).collect();
    for from in &edges {
        for to in &edges {
            let filter = LogFilter { from: Some(*from), to: Some(*to), ..LogFilter::default() };
            let expected = all.iter().filter(|r| (*from..*to).contains(&r.at)).count();
            let found = logs(&place, &w, &key, &filter).await;
            assert_eq!(found.total, exactly(u64::try_from(expected).unwrap()), "{filter:?}");
            assert_eq!(found.items.len(), expected.min(100), "{filter:?}");
        }
    }
}

pub(crate) async fn a_key_that_was_idle_for_years_is_read_like_any_other(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let year = Duration::from_hours(24 * 365);
    let all: Vec<UsageRecord> = (0..40).map(|n| record(&key, T0.minus(year / 2 * n))).collect();
    place.append(&all).await.unwrap();
    let mut walked = Vec::new();
    let mut asked = LogPageRequest::Number(page(1, 7));
    loop {
        let part = place.logs(&w, key.key.id, &LogFilter::default(), asked).await.unwrap().unwrap();
        walked.extend(part.items);
        let Some(cursor) = part.next else { break };
        asked = LogPageRequest::After(cursor, 7);
    }
    assert_eq!(walked, all);
}

pub(crate) async fn a_search_looks_only_so_far_and_says_so(place: Place) {
    const LOOKED_AT: u64 = 50_000;
    let (w, key) = key_of(&place, "w1").await;
    let needle = UsageRecord { endpoint: "/needle".into(), ..record(&key, T0) };
    let hay = (1..=LOOKED_AT).map(|n| record(&key, T0.plus(Duration::from_micros(n))));
    let all: Vec<UsageRecord> = std::iter::once(needle.clone()).chain(hay).collect();
    for batch in all.chunks(10_000) {
        place.append(batch).await.unwrap();
    }
    let filter = LogFilter { endpoint: Some("NEEDLE".into()), ..LogFilter::default() };
    let first = logs(&place, &w, &key, &filter).await;
    assert_eq!((first.items.len(), first.total), (0, Some(LogTotal { records: 0, is_exact: false })));
    let on = LogPageRequest::After(first.next.expect("there is more"), 10);
    let second = place.logs(&w, key.key.id, &filter, on).await.unwrap().unwrap();
    assert_eq!((second.items, second.next), (vec![needle], None));
    let everything = logs(&place, &w, &key, &LogFilter::default()).await;
    assert_eq!(everything.total, exactly(LOOKED_AT + 1));
}

pub(crate) async fn records_go_when_their_plan_says_and_figures_stay(place: Place) {
    const DAY: Duration = Duration::from_hours(24);
    let (w, key) = key_of(&place, "w1").await;
    let days = [0, 0, 3, 9].map(|n| record(&key, T0.plus(DAY * n)));
    place.append(&days).await.unwrap();
    let now = T0.plus(DAY * 10);
    let done = place.maintain(now).await.unwrap();
    assert_eq!(done.records_deleted, 0, "no plan limits anything yet");
    assert_eq!(
        done.rollups_deleted, 2,
        "a minute of the key and of its workspace, which are kept for eight days"
    );
    let keep = |days| PlanPatch { usage_retention_days: Some(days), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), keep(Some(7)), &someone(), T0).await.unwrap();
    let done = place.maintain(now).await.unwrap();
    assert_eq!((done.records_deleted, done.rollups_deleted), (2, 0));
    assert_eq!(place.maintain(now).await.unwrap().records_deleted, 0, "once is enough");
    // Expired records do not reappear, and are not counted, when the plan's retention grows.
    place.update_plan(&plan_id("basic"), keep(None), &someone(), T0).await.unwrap();
    place.maintain(now).await.unwrap();
    let kept = logs(&place, &w, &key, &LogFilter::default()).await;
    assert_eq!((kept.total, kept.items), (exactly(2), vec![days[3].clone(), days[2].clone()]));
    assert_eq!(stats(&place, &w, &key, now).await.total_requests, 4);
    let range = UsageRange { from: T0, to: now, interval: Interval::Day };
    let points = place.usage(&w, key.key.id, &range).await.unwrap().unwrap();
    assert_eq!(points.iter().map(|point| point.requests).collect::<Vec<_>>(), [2, 1, 1]);
}

pub(crate) async fn retention_is_each_workspaces_own(place: Place) {
    const DAY: Duration = Duration::from_hours(24);
    let (short, a) = key_of(&place, "w1").await;
    let (long, b) = key_of(&place, "w2").await;
    let brief = PlanRecord { usage_retention_days: Some(1), ..plan("brief") };
    place.create_plan(brief, &someone(), T0).await.unwrap();
    let moved = WorkspacePatch { plan_id: Some(plan_id("brief")), ..WorkspacePatch::default() };
    place.put_workspace(&short, moved, &plan_id("basic"), &someone(), T0).await.unwrap();
    // More than one step deletes, and one of today.
    let many: Vec<UsageRecord> = (0..4_500).map(|n| record([&a, &b][n % 2], T0)).collect();
    place.append(&many).await.unwrap();
    place.append(&[record(&b, T0.plus(DAY * 3))]).await.unwrap();
    let done = place.maintain(T0.plus(DAY * 3)).await.unwrap();
    assert_eq!(done.records_deleted, 2_250);
    assert_eq!(logs(&place, &short, &a, &LogFilter::default()).await.total, exactly(0));
    assert_eq!(logs(&place, &long, &b, &LogFilter::default()).await.total, exactly(2_251));
}

pub(crate) async fn a_clock_that_is_ahead_deletes_nothing(place: Place) {
    const DAY: Duration = Duration::from_hours(24);
    let (w, key) = key_of(&place, "w1").await;
    let keep = PlanPatch { usage_retention_days: Some(Some(7)), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), keep, &someone(), T0).await.unwrap();
    let on = |day: u32| record(&key, T0.plus(DAY * day));
    let upkeep = async |day: u32| {
        let done = place.maintain(T0.plus(DAY * day)).await.unwrap();
        (done.records_deleted, done.rollups_deleted)
    };
    place.append(&[on(0), on(1)]).await.unwrap();
    assert_eq!(upkeep(400).await, (0, 0));
    // Also when requests were served with that clock.
    place.append(&[on(400)]).await.unwrap();
    assert_eq!(upkeep(400).await, (0, 0));
    assert_eq!(upkeep(2).await, (0, 0), "it is right again");
    assert_eq!(logs(&place, &w, &key, &LogFilter::default()).await.total, exactly(3));
    place.append(&[on(2)]).await.unwrap();
    assert_eq!(upkeep(10).await, (0, 0), "nobody has come since");
    place.append(&[on(9)]).await.unwrap();
    assert_eq!(upkeep(10).await, (3, 4), "three old records, and two days of minutes");
    // A gateway that was off for a year: the second day confirms the clock.
    place.append(&[on(401)]).await.unwrap();
    assert_eq!(upkeep(401).await.0, 1);
    assert_eq!(logs(&place, &w, &key, &LogFilter::default()).await.total, exactly(2));
}

/// Not a behaviour of the contract: `run` changes the database in a way that no call can.
pub(crate) async fn what_is_hidden_until_2223_comes_back(place: &Place, run: impl AsyncFn(&'static str)) {
    const DAY: Duration = Duration::from_hours(24);
    let (limited, a) = key_of(place, "w1").await;
    let (free, b) = key_of(place, "w2").await;
    let brief = PlanRecord { usage_retention_days: Some(7), ..plan("brief") };
    place.create_plan(brief, &someone(), T0).await.unwrap();
    let moved = WorkspacePatch { plan_id: Some(plan_id("brief")), ..WorkspacePatch::default() };
    place.put_workspace(&limited, moved, &plan_id("basic"), &someone(), T0).await.unwrap();
    for key in [&a, &b] {
        place.append(&[0, 5, 10].map(|day| record(key, T0.plus(DAY * day)))).await.unwrap();
    }
    run("UPDATE workspaces SET usage_kept_from = 8000000000000000, usage_pruned_to = 8000000000000000").await;
    assert_eq!(logs(place, &limited, &a, &LogFilter::default()).await.total, exactly(0));
    assert_eq!(place.maintain(T0.plus(DAY * 10)).await.unwrap().records_deleted, 1);
    assert_eq!(logs(place, &limited, &a, &LogFilter::default()).await.total, exactly(2));
    assert_eq!(logs(place, &free, &b, &LogFilter::default()).await.total, exactly(3));
}

pub(crate) async fn a_key_without_usage_has_zeroes(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let nothing = KeyStats {
        total_requests: 0,
        requests_today: 0,
        quota_used: 0,
        quota_limit: None,
        denied: 0,
        unreached: 0,
        errors: 0,
        last_used_at: None,
        tokens: TokenCounts::default(),
        cost_nano: 0,
        response_time: Quantiles::default(),
    };
    assert_eq!(stats(&place, &w, &key, T0).await, nothing);
    assert_eq!(place.stats(&w, KeyId::new(T0), T0).await.unwrap(), None);
    assert_eq!(
        logs(&place, &w, &key, &LogFilter::default()).await,
        LogPage { items: vec![], total: exactly(0), next: None, passed_over: 0 }
    );
}

pub(crate) async fn stats_count_by_outcome(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let tokens = |tokens_used, record| UsageRecord { tokens_used, ..record };
    let batch = [
        tokens(5, ended(&key, T0, Outcome::Served, 200)),
        tokens(7, ended(&key, after(3), Outcome::Served, 404)),
        ended(&key, after(1), Outcome::Served, 500),
        ended(&key, after(1), Outcome::UpstreamFailed, 502),
        ended(&key, after(1), Outcome::UpstreamFailed, 200),
        ended(&key, after(1), Outcome::Aborted, 200),
        ended(&key, after(1), Outcome::Interrupted, 200),
        UsageRecord { charged: false, ..ended(&key, after(2), Outcome::Denied, 429) },
        UsageRecord { charged: false, ..ended(&key, after(2), Outcome::Denied, 503) },
        UsageRecord { charged: false, ..ended(&key, after(2), Outcome::UpstreamFailed, 502) },
    ];
    place.append(&batch).await.unwrap();
    let stats = stats(&place, &w, &key, T0).await;
    assert_eq!((stats.total_requests, stats.requests_today, stats.unreached), (7, 7, 1));
    assert_eq!((stats.quota_used, stats.denied, stats.errors, stats.tokens.total), (7, 2, 4, 12));
    assert_eq!(stats.last_used_at, Some(after(3)));
}

pub(crate) async fn response_times_are_of_answers_only(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let took = |us, record| UsageRecord { response_time_us: us, ..record };
    let mut batch: Vec<UsageRecord> = (1..=60).map(|n| took(n, record(&key, T0))).collect();
    batch.push(took(9_000_000, ended(&key, T0, Outcome::Denied, 429)));
    batch.push(took(9_000_000, ended(&key, T0, Outcome::Interrupted, 200)));
    // In two parts, so that sketches are merged.
    place.append(&batch[..20]).await.unwrap();
    place.append(&batch[20..]).await.unwrap();
    let expected = Quantiles { count: 60, mean_us: 30, p50_us: 30, p95_us: 57, p99_us: 60 };
    assert_eq!(stats(&place, &w, &key, T0).await.response_time, expected);
}

pub(crate) async fn days_begin_at_midnight(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    place.append(&[record(&key, LAST_US), record(&key, JULY), record(&key, JULY)]).await.unwrap();
    assert_eq!(stats(&place, &w, &key, LAST_US).await.requests_today, 1);
    assert_eq!(stats(&place, &w, &key, JULY).await.requests_today, 2);
    let next_day = JULY.plus(Duration::from_secs(86_400));
    let stats = stats(&place, &w, &key, next_day).await;
    assert_eq!((stats.requests_today, stats.total_requests), (0, 3));
}

pub(crate) async fn a_record_knows_its_key_by_id_only(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let mut stray = record(&key, T0);
    stray.api_key_id = KeyId::new(T0);
    assert_eq!(place.append(&[stray.clone()]).await.unwrap(), 1);
    assert_eq!(stats(&place, &w, &key, T0).await.total_requests, 0);
    assert_eq!(place.stats(&w, stray.api_key_id, T0).await.unwrap(), None);
    assert_eq!(spent_by(&place, T0, &UsageSubject::Key(stray.api_key_id)).await, [1; 6]);
}

pub(crate) async fn a_deleted_key_keeps_its_usage(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    place.append(&[record(&key, T0)]).await.unwrap();
    place.delete_key(&w, key.key.id, &someone(), T0).await.unwrap();
    // Records in the journal when the key is deleted still arrive.
    place.append(&[record(&key, after(1))]).await.unwrap();
    assert_eq!(stats(&place, &w, &key, T0).await.total_requests, 2);
    assert_eq!(logs(&place, &w, &key, &LogFilter::default()).await.items.len(), 2);
    let range = UsageRange { from: T0, to: after(60), interval: Interval::Day };
    assert_eq!(place.usage(&w, key.key.id, &range).await.unwrap().unwrap()[0].requests, 2);
}

pub(crate) async fn a_key_knows_its_usage(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let denied = UsageRecord { charged: false, ..ended(&key, after(5), Outcome::Denied, 429) };
    let given_back = UsageRecord { charged: false, ..ended(&key, after(1), Outcome::UpstreamFailed, 502) };
    place.append(&[record(&key, T0), denied, given_back]).await.unwrap();
    let expected = KeyRecord { quota_used: 1, usage_count: 1, last_used_at: Some(after(5)), ..key.clone() };
    assert_eq!(place.key(&w, key.key.id).await.unwrap(), Some(expected.clone()));
    let listed = place.keys(&w, &Default::default(), everything()).await.unwrap().items;
    assert_eq!(listed, std::slice::from_ref(&expected));
    let updated = place.update_key(&w, key.key.id, Default::default(), &someone(), T0).await.unwrap().value;
    assert_eq!(updated, expected);
}

pub(crate) async fn charts_have_a_point_per_window_with_usage(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let minute = |n: u64| JULY.plus(Duration::from_secs(60 * n));
    let denied = UsageRecord { charged: false, ..ended(&key, minute(2), Outcome::Denied, 429) };
    place
        .append(&[record(&key, LAST_US), record(&key, minute(2)), denied, record(&key, minute(90))])
        .await
        .unwrap();
    let starts = async |interval| {
        let range = UsageRange { from: LAST_US, to: minute(1_000), interval };
        let points = place.usage(&w, key.key.id, &range).await.unwrap().unwrap();
        points.iter().map(|point| (point.start, point.requests)).collect::<Vec<_>>()
    };
    // The workspace has the same and what its other keys used.
    let other = place.key_in(&w, "other").await;
    place.append(&[record(&other, minute(90))]).await.unwrap();
    let range = UsageRange { from: LAST_US, to: minute(1_000), interval: Interval::Hour };
    let of_all = place.workspace_series(&w, &range).await.unwrap();
    let of_all: Vec<_> = of_all.iter().map(|point| (point.start, point.requests)).collect();
    assert_eq!(of_all, [(JULY.minus(Duration::from_secs(3_600)), 1), (JULY, 2), (minute(60), 2)]);
    assert_eq!(place.workspace_series(&place.tenant("w2").await, &range).await.unwrap(), []);
    let before = |seconds| JULY.minus(Duration::from_secs(seconds));
    assert_eq!(starts(Interval::Minute).await, [(before(60), 1), (minute(2), 2), (minute(90), 1)]);
    assert_eq!(starts(Interval::Hour).await, [(before(3_600), 1), (JULY, 2), (minute(60), 1)]);
    assert_eq!(starts(Interval::Day).await, [(before(86_400), 1), (JULY, 3)]);
    let range = UsageRange { from: minute(2), to: minute(3), interval: Interval::Minute };
    let expected = UsagePoint {
        start: minute(2),
        requests: 2,
        denied: 1,
        errors: 0,
        tokens: TokenCounts::default(),
        cost_nano: 0,
        bytes_in: 20,
        bytes_out: 200,
        response_time: Quantiles { count: 1, mean_us: 1_000, p50_us: 999, p95_us: 999, p99_us: 999 },
    };
    assert_eq!(place.usage(&w, key.key.id, &range).await.unwrap(), Some(vec![expected]));
}

pub(crate) async fn charts_end_before_to_and_begin_with_the_window_of_from(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    place.append(&[record(&key, LAST_US), record(&key, JULY)]).await.unwrap();
    let us = Duration::from_micros(1);
    for (from, to, expected) in [
        (LAST_US, JULY, 1),
        (LAST_US, JULY.plus(us), 2),
        (JULY, JULY.plus(us), 1),
        (JULY.plus(us), JULY.plus(us).plus(us), 1),
        (JULY, JULY, 0),
        (JULY, LAST_US, 0),
    ] {
        let range = UsageRange { from, to, interval: Interval::Hour };
        let points = place.usage(&w, key.key.id, &range).await.unwrap().unwrap();
        assert_eq!(points.len(), expected, "{range:?}");
    }
}

pub(crate) async fn logs_are_newest_first_and_paged(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let batch: Vec<UsageRecord> = [2, 0, 3, 1].into_iter().map(|n| record(&key, after(n))).collect();
    place.append(&batch).await.unwrap();
    for (number, size, expected, more) in [
        (1, 4, vec![3, 2, 1, 0], false),
        (1, 3, vec![3, 2, 1], true),
        (2, 3, vec![0], false),
        (2, 4, vec![], false),
        (2, 2, vec![1, 0], false),
    ] {
        let asked = LogPageRequest::Number(page(number, size));
        let found = place.logs(&w, key.key.id, &LogFilter::default(), asked).await.unwrap().unwrap();
        let seconds: Vec<u64> = found.items.iter().map(|record| record.at.since(T0).as_secs()).collect();
        assert_eq!((seconds, found.total), (expected, exactly(4)), "page {number} of {size}");
        assert_eq!(found.next.is_some(), more, "page {number} of {size}");
    }
}

pub(crate) async fn cursors_walk_every_record_once(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    // Seven with the same microsecond, so that a cursor must tell them apart by id.
    let mut batch: Vec<UsageRecord> = (0..7).map(|_| record(&key, T0)).collect();
    batch.push(record(&key, T0.plus(Duration::from_micros(1))));
    batch.push(record(&key, T0.minus(Duration::from_micros(1))));
    place.append(&batch).await.unwrap();
    let all = logs(&place, &w, &key, &LogFilter::default()).await.items;
    assert_eq!(all.len(), 9);
    for size in [1, 2, 3, 8, 9, 10] {
        let first = LogPageRequest::Number(page(1, size));
        let mut part = place.logs(&w, key.key.id, &LogFilter::default(), first).await.unwrap().unwrap();
        let mut walked = part.items;
        while let Some(cursor) = part.next {
            let asked = LogPageRequest::After(cursor, size);
            part = place.logs(&w, key.key.id, &LogFilter::default(), asked).await.unwrap().unwrap();
            assert_eq!(part.total, None);
            assert!(!part.items.is_empty());
            walked.append(&mut part.items);
        }
        assert_eq!(walked, all, "by {size}");
    }
}

pub(crate) async fn logs_are_filtered(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let at = |n, endpoint: &str, status_code| UsageRecord {
        endpoint: endpoint.into(),
        status_code,
        ..record(&key, after(n))
    };
    place
        .append(&[
            at(0, "/v1/Chat", 200),
            at(1, "/v1/100%", 404),
            at(2, "/v1/a_b", 200),
            at(3, "/V1/CHATS", 500),
        ])
        .await
        .unwrap();
    let by = LogFilter::default;
    let path = |text: &str| LogFilter { endpoint: Some(text.into()), ..by() };
    for (filter, expected) in [
        (by(), vec![3, 2, 1, 0]),
        (LogFilter { status_code: Some(200), ..by() }, vec![2, 0]),
        (LogFilter { status_code: Some(201), ..by() }, vec![]),
        (LogFilter { from: Some(after(1)), ..by() }, vec![3, 2, 1]),
        (LogFilter { to: Some(after(1)), ..by() }, vec![0]),
        (LogFilter { from: Some(after(1)), to: Some(after(3)), ..by() }, vec![2, 1]),
        (path("cHAT"), vec![3, 0]),
        (path("chats"), vec![3]),
        (path("%"), vec![1]),
        (path("_"), vec![2]),
        (path(""), vec![3, 2, 1, 0]),
        (path("'"), vec![]),
        (LogFilter { status_code: Some(500), ..path("chat") }, vec![3]),
    ] {
        let found = logs(&place, &w, &key, &filter).await;
        let seconds: Vec<u64> = found.items.iter().map(|record| record.at.since(T0).as_secs()).collect();
        assert_eq!(found.total, exactly(u64::try_from(expected.len()).unwrap()), "{filter:?}");
        assert_eq!(seconds, expected, "{filter:?}");
    }
}

pub(crate) async fn workspaces_do_not_see_each_others_usage(place: Place) {
    let (w1, mine) = key_of(&place, "w1").await;
    let (w2, theirs) = key_of(&place, "w2").await;
    place.append(&[record(&mine, T0), record(&theirs, T0), record(&theirs, T0)]).await.unwrap();
    let range = UsageRange { from: T0, to: after(60), interval: Interval::Day };
    let all = LogPageRequest::Number(everything());
    assert_eq!(place.stats(&w2, mine.key.id, T0).await.unwrap(), None);
    assert_eq!(place.usage(&w2, mine.key.id, &range).await.unwrap(), None);
    assert_eq!(place.logs(&w2, mine.key.id, &LogFilter::default(), all).await.unwrap(), None);
    assert_eq!(stats(&place, &w1, &mine, T0).await.total_requests, 1);
    assert_eq!(stats(&place, &w2, &theirs, T0).await.total_requests, 2);
}

pub(crate) async fn spending_follows_the_windows(place: Place) {
    let (_, key) = key_of(&place, "w1").await;
    let uncharged = UsageRecord { charged: false, ..record(&key, JULY) };
    let back = |seconds| LAST_US.minus(Duration::from_secs(seconds));
    place
        .append(&[
            record(&key, LAST_US),
            record(&key, back(60)),
            record(&key, back(3_600)),
            record(&key, back(86_400)),
            record(&key, back(31 * 86_400)),
            record(&key, JULY),
            uncharged,
        ])
        .await
        .unwrap();
    let subject = UsageSubject::Key(key.key.id);
    assert_eq!(spent_by(&place, LAST_US, &subject).await, [1, 2, 3, 4, 4, 6]);
    assert_eq!(spent_by(&place, JULY, &subject).await, [1, 1, 1, 4, 1, 6]);
    let august = JULY.plus(Duration::from_secs(31 * 86_400));
    assert_eq!(spent_by(&place, august, &subject).await, [0, 0, 0, 0, 0, 6]);
    let end_of_july = august.minus(Duration::from_micros(1));
    assert_eq!(spent_by(&place, end_of_july, &subject).await, [0, 0, 0, 0, 1, 6]);
}

/// Days of other zones begin in the middle of a roll-up's, and in India in the middle of an hour.
pub(crate) async fn spending_follows_the_calendar_of_the_plan(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let before = |seconds| record(&key, JULY.minus(Duration::from_secs(seconds)));
    // Midnight is at 18:30 UTC in Kolkata and at 16:00 in Shanghai; both have a day that began before JULY.
    let [kolkata, shanghai] = [5 * 3_600 + 1_800, 8 * 3_600];
    let around = [kolkata + 1, kolkata, shanghai + 1, shanghai];
    place.append(&around.map(before)).await.unwrap();
    place
        .append(&[record(&key, JULY), record(&key, JULY.plus(Duration::from_secs(18 * 3_600)))])
        .await
        .unwrap();
    let subject = UsageSubject::Key(key.key.id);
    for (name, today, month) in [("UTC", 2, 2), ("Asia/Kolkata", 3, 3), ("Asia/Shanghai", 4, 5)] {
        let calendar = Calendar { zone: zone(name).unwrap(), ..Calendar::UTC };
        let rows = spent_in(&place, JULY, calendar).await;
        let row = rows.iter().find(|row| row.subject == subject).unwrap();
        assert_eq!([row.used[2], row.used[4], row.used[5]], [today, month, 6], "{name}");
        let patch = PlanPatch { calendar: Some(calendar), ..PlanPatch::default() };
        let plan = place.workspace(&w).await.unwrap().unwrap().plan_id;
        place.update_plan(&plan, patch, &someone(), T0).await.unwrap();
        assert_eq!(stats(&place, &w, &key, JULY).await.requests_today, today, "{name}");
    }
}

pub(crate) async fn spending_is_summed_per_workspace(place: Place) {
    let (w1, a) = key_of(&place, "w1").await;
    let b = place.key_in(&w1, "b").await;
    let (w2, c) = key_of(&place, "w2").await;
    place.append(&[record(&a, T0), record(&b, T0), record(&b, T0), record(&c, T0)]).await.unwrap();
    for (subject, expected) in [
        (UsageSubject::Workspace(w1), 3),
        (UsageSubject::Workspace(w2), 1),
        (UsageSubject::Key(a.key.id), 1),
        (UsageSubject::Key(b.key.id), 2),
        (UsageSubject::Key(c.key.id), 1),
    ] {
        assert_eq!(spent_by(&place, T0, &subject).await, [expected; 6], "{subject:?}");
    }
    assert_eq!(spent(&place, T0).await.len(), 5);
}

/// Tokens and cost are summed in each window, of keys, workspaces and end users; of those in days and longer.
pub(crate) async fn spending_has_tokens_and_cost(place: Place) {
    let (w, key) = key_of(&place, "w1").await;
    let (other, _) = key_of(&place, "w2").await;
    let [ada, bob] = [EndUserId::new(T0), EndUserId::new(T0)];
    let used = |at, end_user, factor: u64| UsageRecord {
        end_user_id: Some(end_user),
        tokens_used: 7 * factor,
        input_tokens: Some(4 * factor),
        output_tokens: Some(3 * factor),
        cost_nano: Some(11 * factor),
        ..record(&key, at)
    };
    // In the minute of JULY, in the month before, and a second before the day that begins at 16:00 UTC in Shanghai.
    let evening = JULY.plus(Duration::from_secs(16 * 3_600 - 1));
    let records =
        [used(JULY, ada, 1), used(LAST_US, ada, 10), used(evening, ada, 100), used(JULY, bob, 1_000)];
    place.append(&records).await.unwrap();
    let each = |factor: u64| [7 * factor, 4 * factor, 3 * factor, 11 * factor];
    let at = JULY.plus(Duration::from_secs(16 * 3_600));
    for subject in [UsageSubject::Key(key.key.id), UsageSubject::Workspace(w.clone())] {
        let rows = spent(&place, at).await;
        let row = rows.iter().find(|row| row.subject == subject).unwrap();
        // The minute, the hour, the day, the week from Monday 30 June, the month, all.
        let expected = [0, 0, 1_101, 1_111, 1_101, 1_111].map(each);
        assert_eq!(row.metered, expected, "{subject:?}");
        let minute = spent(&place, JULY).await;
        assert_eq!(minute.iter().find(|row| row.subject == subject).unwrap().metered[0], each(1_001));
    }
    let end_users = async |workspace: &WorkspaceId, calendar| {
        let (to, mut from) = mpsc::channel(4);
        place.end_user_totals(workspace, at, calendar, to).await.unwrap();
        let mut rows = Vec::new();
        while let Some(batch) = from.recv().await {
            rows.extend(batch);
        }
        for row in &rows {
            assert_eq!(place.totals_of(&row.subject, at, calendar).await.unwrap(), *row, "one or all");
        }
        rows
    };
    let rows = end_users(&w, Calendar::UTC).await;
    assert_eq!(rows.len(), 2);
    let of = |rows: &[UsageTotals], id| {
        let subject = UsageSubject::EndUser(w.clone(), id);
        rows.iter().find(|row| row.subject == subject).unwrap().clone()
    };
    let row = of(&rows, ada);
    assert_eq!(row.used, [0, 0, 2, 3, 2, 3]);
    assert_eq!(row.metered, [0, 0, 101, 111, 101, 111].map(each));
    assert_eq!(of(&rows, bob).metered, [0, 0, 1_000, 1_000, 1_000, 1_000].map(each));
    // In Shanghai this day has just begun; what is kept of end users is the whole day of UTC.
    let shanghai = Calendar { zone: zone("Asia/Shanghai").unwrap(), ..Calendar::UTC };
    assert_eq!(of(&end_users(&w, shanghai).await, ada).metered[2], each(101));
    assert_eq!(end_users(&other, Calendar::UTC).await, []);
    let nobody = UsageSubject::EndUser(other, ada);
    assert_eq!(place.totals_of(&nobody, at, Calendar::UTC).await.unwrap(), UsageTotals::nothing(nobody));
}

pub(crate) async fn spending_of_nothing_is_nothing(place: Place) {
    let (_, key) = key_of(&place, "w1").await;
    place.append(&[UsageRecord { charged: false, ..ended(&key, T0, Outcome::Denied, 429) }]).await.unwrap();
    assert_eq!(spent(&place, T0).await, []);
}

pub(crate) async fn a_receiver_that_goes_ends_the_spending(place: Place) {
    let (_, key) = key_of(&place, "w1").await;
    place.append(&[record(&key, T0)]).await.unwrap();
    let (to, from) = mpsc::channel(1);
    drop(from);
    let error = place.totals(T0, Calendar::UTC, to).await.unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
}
