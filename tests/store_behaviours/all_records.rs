//! Export and import of all usage records.

use crate::place::{Place, T0, after, everything, new_key, plan, plan_id, record, someone, workspace_id};
use crate::private_postgres::raw;
use keygate::clock::Timestamp;
use keygate::model::calendar::Calendar;
use keygate::model::fault::Fault;
use keygate::model::id::{EndUserId, KeyId, RequestId, WorkspaceId};
use keygate::model::usage::{Outcome, UsageRecord, UsageSubject};
use keygate::store::{
    Interval, KeyRecord, LogFilter, LogPageRequest, NewKey, PlanPatch, RecordFilter, UsageRange,
    WorkspacePatch,
};
use std::time::Duration;
use uuid::Uuid;

const FIRST: RequestId = RequestId(Uuid::nil());

/// All matching records, by parts of `looks_at` rows, and how many parts there were.
async fn walked(place: &Place, filter: &RecordFilter, looks_at: u32) -> (Vec<UsageRecord>, usize) {
    let (mut all, mut parts, mut next) = (Vec::new(), 0, Some(FIRST));
    while let Some(first) = next {
        let part = place.all_records(filter, first, looks_at).await.unwrap();
        assert!(part.items.len() <= usize::try_from(looks_at).unwrap());
        assert_eq!(part.passed_over, 0);
        assert!(part.next.is_none_or(|next| next > first), "it gets on");
        all.extend(part.items);
        parts += 1;
        next = part.next;
    }
    (all, parts)
}

async fn all(place: &Place) -> Vec<UsageRecord> {
    walked(place, &RecordFilter::default(), 1_000).await.0
}

fn by_id(mut records: Vec<UsageRecord>) -> Vec<UsageRecord> {
    records.sort_by_key(|record| record.id);
    records
}

/// Two keys in one workspace and one in another.
async fn three_keys(place: &Place) -> [KeyRecord; 3] {
    let (w1, w2) = (place.tenant("w1").await, place.tenant("w2").await);
    [place.key_in(&w1, "a").await, place.key_in(&w1, "b").await, place.key_in(&w2, "c").await]
}

/// Ended requests of every outcome over two days, not in the order of their ids.
fn lived([a, b, c]: &[KeyRecord; 3]) -> Vec<UsageRecord> {
    let denied = UsageRecord {
        outcome: Outcome::Denied,
        status_code: 429,
        denial: Some(Fault::KeyNotFound),
        charged: false,
        degraded: true,
        ..record(a, after(90_000))
    };
    let full = UsageRecord {
        response_time_us: 123_457,
        ttfb_us: Some(77),
        tokens_used: 31,
        ip_address: Some("2001:db8::1".parse().unwrap()),
        user_agent: "β \u{1}\"".into(),
        end_user_id: Some(EndUserId::new(T0)),
        upstream: "up".into(),
        ..record(b, after(7))
    };
    let failed = UsageRecord { outcome: Outcome::UpstreamFailed, status_code: 502, ..record(c, after(2)) };
    vec![denied, record(a, after(1)), full, failed, record(c, T0), record(a, T0)]
}

pub(crate) async fn all_records_come_once_by_their_ids(place: Place) {
    assert_eq!(walked(&place, &RecordFilter::default(), 1).await, (Vec::new(), 1));
    let keys = three_keys(&place).await;
    let records = lived(&keys);
    place.append(&records).await.unwrap();
    place.delete_key(&keys[2].key.workspace_id, keys[2].key.id, &someone(), T0).await.unwrap();
    let expected = by_id(records);
    for (looks_at, parts) in [(1, 6), (2, 3), (4, 2), (5, 2), (6, 1), (7, 1), (1_000, 1)] {
        let found = walked(&place, &RecordFilter::default(), looks_at).await;
        assert_eq!(found, (expected.clone(), parts), "by {looks_at}");
    }
    // Starting at a record, as a resumed export does.
    let rest = place.all_records(&RecordFilter::default(), expected[4].id, 1_000).await.unwrap();
    assert_eq!((rest.items, rest.next), (expected[4..].to_vec(), None));
}

pub(crate) async fn all_records_are_filtered(place: Place) {
    let keys = three_keys(&place).await;
    let records = lived(&keys);
    place.append(&records).await.unwrap();
    let [a, _, c] = &keys;
    let by = RecordFilter::default;
    let of = |key: &KeyRecord| RecordFilter { key: Some(key.key.id), ..by() };
    let within = |key: &KeyRecord| RecordFilter { workspace: Some(key.key.workspace_id.clone()), ..by() };
    for (filter, expected) in [
        (within(a), vec![0, 1, 2, 5]),
        (within(c), vec![3, 4]),
        (of(a), vec![0, 1, 5]),
        (RecordFilter { key: Some(a.key.id), ..within(c) }, vec![]),
        (RecordFilter { from: Some(after(2)), ..by() }, vec![0, 2, 3]),
        (RecordFilter { to: Some(after(2)), ..by() }, vec![1, 4, 5]),
        (RecordFilter { from: Some(after(1)), to: Some(after(90_000)), ..of(a) }, vec![1]),
        (RecordFilter { from: Some(after(90_001)), ..by() }, vec![]),
    ] {
        let expected = by_id(expected.into_iter().map(|n: usize| records[n].clone()).collect());
        for looks_at in [1, 4, 1_000] {
            assert_eq!(walked(&place, &filter, looks_at).await.0, expected, "{filter:?} by {looks_at}");
        }
    }
}

pub(crate) async fn all_records_leave_out_what_retention_hides(place: Place) {
    const DAY: Duration = Duration::from_hours(24);
    let [a, ..] = three_keys(&place).await;
    let days = [0, 5, 9].map(|n| record(&a, T0.plus(DAY * n)));
    place.append(&days).await.unwrap();
    let keep = PlanPatch { usage_retention_days: Some(Some(7)), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), keep, &someone(), T0).await.unwrap();
    place.maintain(T0.plus(DAY * 10)).await.unwrap();
    // A late record of a day already past retention is hidden until it is deleted too.
    place.append(&[record(&a, T0)]).await.unwrap();
    assert_eq!(all(&place).await, days[1..]);
}

pub(crate) async fn records_of_keys_that_did_not_move_go_when_their_plan_says(place: Place) {
    const DAY: Duration = Duration::from_hours(24);
    let [a, _, c] = three_keys(&place).await;
    let stranger = || KeyId::new(T0);
    let moved = [
        UsageRecord { api_key_id: stranger(), ..record(&a, T0) },
        UsageRecord { api_key_id: stranger(), ..record(&a, T0.plus(DAY * 5)) },
        UsageRecord { api_key_id: stranger(), ..record(&a, T0.plus(DAY * 9)) },
        UsageRecord { api_key_id: stranger(), workspace_id: workspace_id("w3"), ..record(&c, T0) },
    ];
    place.append(&moved).await.unwrap();
    let keep = PlanPatch { usage_retention_days: Some(Some(7)), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), keep, &someone(), T0).await.unwrap();
    assert_eq!(place.maintain(T0.plus(DAY * 10)).await.unwrap().records_deleted, 1);
    assert_eq!(all(&place).await, by_id(moved[1..].to_vec()), "a workspace that is not here has no plan");
}

pub(crate) async fn records_without_a_key_go_once_no_workspace_keeps_their_day(place: Place) {
    const DAY: Duration = Duration::from_hours(24);
    let [a, _, c] = three_keys(&place).await;
    let keyless = |day| UsageRecord {
        api_key_id: KeyId::NONE,
        workspace_id: WorkspaceId::none().clone(),
        charged: false,
        ..record(&a, T0.plus(DAY * day))
    };
    let days = [0, 5, 9].map(keyless);
    assert_eq!(place.append(&days).await.unwrap(), 3);
    assert_eq!(all(&place).await, days, "they are read as they were written");
    place.create_plan(plan("other"), &someone(), T0).await.unwrap();
    let onto = WorkspacePatch { plan_id: Some(plan_id("other")), ..WorkspacePatch::default() };
    place.put_workspace(&c.key.workspace_id, onto, &plan_id("basic"), &someone(), T0).await.unwrap();
    for (limited, left) in [("basic", &days[..]), ("other", &days[1..])] {
        let keep = PlanPatch { usage_retention_days: Some(Some(7)), ..PlanPatch::default() };
        place.update_plan(&plan_id(limited), keep, &someone(), T0).await.unwrap();
        place.maintain(T0.plus(DAY * 10)).await.unwrap();
        assert_eq!(all(&place).await, left, "{limited}");
    }
}

/// The two stores' views of a key at the end.
async fn said(place: &Place, w: &WorkspaceId, key: &KeyRecord) -> impl PartialEq + std::fmt::Debug + use<> {
    let (id, at) = (key.key.id, after(90_001));
    let spent = place.totals_of(&UsageSubject::Key(id), at, Calendar::UTC).await.unwrap();
    let of_all = place.totals_of(&UsageSubject::Workspace(w.clone()), at, Calendar::UTC).await.unwrap();
    let range = UsageRange { from: Timestamp::default(), to: at, interval: Interval::Day };
    let chart = place.usage(w, id, &range).await.unwrap();
    let logs = place.logs(w, id, &LogFilter::default(), LogPageRequest::Number(everything())).await.unwrap();
    (place.stats(w, id, at).await.unwrap(), spent, of_all, chart, logs)
}

pub(crate) async fn records_that_move_count_once(place: Place) {
    let here = Place::sqlite().await;
    let keys = three_keys(&here).await;
    here.append(&lived(&keys)).await.unwrap();
    for key in &keys {
        place.tenant(key.key.workspace_id.as_str()).await;
        let same = NewKey { key: key.key.clone(), ..new_key(&key.key.workspace_id, &key.name) };
        place.create_key(same, &someone(), T0).await.unwrap();
    }
    let moving = all(&here).await;
    for (round, new) in [(1, 4), (2, 0)] {
        assert_eq!(place.append(&moving[..4]).await.unwrap(), new, "round {round}");
    }
    for new in [2, 0] {
        assert_eq!(place.append(&moving).await.unwrap(), new, "what was broken off is repeated");
    }
    assert_eq!(all(&place).await, moving, "exactly");
    for key in &keys {
        let w = &key.key.workspace_id;
        assert_eq!(said(&place, w, key).await, said(&here, w, key).await, "{}", key.name);
    }
}

/// One invalid row among three, and how the part reports it.
async fn is_passed_over(place: &Place, bad: &UsageRecord, good: [&UsageRecord; 2]) {
    for looks_at in [1, 2, 1_000] {
        let (mut found, mut passed_over, mut next) = (Vec::new(), 0, Some(FIRST));
        while let Some(first) = next {
            let part = place.all_records(&RecordFilter::default(), first, looks_at).await.unwrap();
            passed_over += part.passed_over;
            found.extend(part.items);
            next = part.next;
        }
        assert_eq!((found, passed_over), (good.map(Clone::clone).to_vec(), 1), "{} by {looks_at}", bad.id);
    }
}

async fn three_records(place: &Place) -> Vec<UsageRecord> {
    let [a, ..] = three_keys(place).await;
    let records = by_id((0..3).map(|n| record(&a, after(n))).collect());
    place.append(&records).await.unwrap();
    records
}

#[tokio::test]
async fn a_broken_row_of_sqlite_is_passed_over() {
    let place = Place::sqlite().await;
    let records = three_records(&place).await;
    let file = rusqlite::Connection::open(place.path()).unwrap();
    let break_one = "UPDATE usage SET outcome = 'liked' WHERE id = ?1";
    assert_eq!(file.execute(break_one, [records[1].id.0.as_bytes()]).unwrap(), 1);
    is_passed_over(&place, &records[1], [&records[0], &records[2]]).await;
    // An invalid id.
    let shorten = "UPDATE usage SET outcome = 'served', id = substr(id, 1, 15) WHERE id = ?1";
    assert_eq!(file.execute(shorten, [records[1].id.0.as_bytes()]).unwrap(), 1);
    is_passed_over(&place, &records[1], [&records[0], &records[2]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_row_of_postgres_is_passed_over() {
    let place = Place::postgres().await;
    let records = three_records(&place).await;
    let break_one = "UPDATE usage SET outcome = 'liked' WHERE id = $1";
    assert_eq!(raw(place.url()).await.execute(break_one, &[&records[1].id.0]).await.unwrap(), 1);
    is_passed_over(&place, &records[1], [&records[0], &records[2]]).await;
}
