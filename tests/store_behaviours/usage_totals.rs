//! Totals of a workspace, and of its keys, resources, end users, routes and models.

use crate::place::{Place, T0, after, everything, new_key, page, record, someone};
use keygate::clock::Timestamp;
use keygate::model::id::{EndUserId, WorkspaceId};
use keygate::model::tokens::{MeterReading, ReadingSource, TokenCounts};
use keygate::model::usage::{Outcome, UsageRecord};
use keygate::store::{
    EndUserAdmission, Interval, KeyRecord, UsageGroup, UsageGroupName, UsageGroupTotal, UsageRange,
    UsageTotal, UsageTotalsFilter,
};
use std::collections::BTreeMap;
use std::time::Duration;

const DAY: Duration = Duration::from_hours(24);

/// A key of `workspace` that is bound to `resource`.
async fn key_of(place: &Place, workspace: &WorkspaceId, name: &str, resource: &str) -> KeyRecord {
    let mut new = new_key(workspace, name);
    new.key.resource_id = resource.into();
    place.create_key(new, &someone(), T0).await.unwrap().value
}

async fn grouped(
    place: &Place,
    workspace: &WorkspaceId,
    filter: &UsageTotalsFilter,
    by: UsageGroup,
) -> Vec<(String, String, u64)> {
    let found = place.workspace_usage_by(workspace, filter, by, everything()).await.unwrap();
    assert_eq!(found.total, u64::try_from(found.items.len()).unwrap());
    let shown = |group: UsageGroupTotal| match group.of {
        UsageGroupName::Key { name, resource_id, .. } => (name, resource_id, group.total.reached),
        UsageGroupName::Resource(resource) => (String::new(), resource, group.total.reached),
        other => panic!("{other:?}"),
    };
    found.items.into_iter().map(shown).collect()
}

fn owned(rows: &[(&str, &str, u64)]) -> Vec<(String, String, u64)> {
    rows.iter().map(|(name, resource, n)| ((*name).to_owned(), (*resource).to_owned(), *n)).collect()
}

pub(crate) async fn totals_of_a_workspace_are_of_its_keys(place: Place) {
    let (w, other) = (place.tenant("w1").await, place.tenant("w2").await);
    let ever = UsageTotalsFilter::default();
    assert_eq!(place.workspace_usage(&w, &ever).await.unwrap(), UsageTotal::default());
    let (a, b) = (key_of(&place, &w, "a", "r1").await, key_of(&place, &w, "b", "r2").await);
    let c = key_of(&place, &w, "c", "r2").await;
    let theirs = key_of(&place, &other, "theirs", "r1").await;
    let denied =
        |record| UsageRecord { outcome: Outcome::Denied, status_code: 429, charged: false, ..record };
    let lost =
        |record| UsageRecord { outcome: Outcome::UpstreamFailed, status_code: 502, charged: false, ..record };
    let tokens = |tokens_used, record| UsageRecord { tokens_used, ..record };
    let batch = [
        tokens(5, record(&a, T0)),
        record(&b, T0),
        record(&b, T0.plus(DAY)),
        denied(record(&b, after(1))),
        lost(record(&b, after(2))),
        tokens(7, record(&c, after(3))),
        record(&theirs, T0),
    ];
    place.append(&batch).await.unwrap();
    let expected = UsageTotal {
        reached: 4,
        denied: 1,
        unreached: 1,
        errors: 1,
        charged: 4,
        tokens: TokenCounts { total: 12, ..TokenCounts::default() },
        cost_nano: 0,
        bytes_in: 60,
        bytes_out: 600,
        last_at: Some(T0.plus(DAY)),
        mean_us: Some(1_000),
    };
    assert_eq!(place.workspace_usage(&w, &ever).await.unwrap(), expected);
    // The usage of a deleted key is kept.
    place.delete_key(&w, b.key.id, &someone(), T0).await.unwrap();
    assert_eq!(place.workspace_usage(&w, &ever).await.unwrap(), expected);

    let by_key = owned(&[("b", "r2", 2), ("a", "r1", 1), ("c", "r2", 1)]);
    assert_eq!(grouped(&place, &w, &ever, UsageGroup::Key).await, by_key);
    let by_resource = owned(&[("", "r2", 3), ("", "r1", 1)]);
    assert_eq!(grouped(&place, &w, &ever, UsageGroup::Resource).await, by_resource);
    assert_eq!(
        grouped(&place, &other, &ever, UsageGroup::Key).await,
        owned(&[("theirs", "r1", 1)]),
        "each workspace has its own"
    );

    let of_r2 = UsageTotalsFilter { resource_id: Some("r2".into()), days: None };
    assert_eq!(place.workspace_usage(&w, &of_r2).await.unwrap().reached, 3);
    assert_eq!(grouped(&place, &w, &of_r2, UsageGroup::Resource).await, by_resource[..1]);
    let second_day = UsageTotalsFilter { days: Some((T0.plus(DAY), T0.plus(DAY * 2))), resource_id: None };
    assert_eq!(place.workspace_usage(&w, &second_day).await.unwrap().reached, 1);
    assert_eq!(grouped(&place, &w, &second_day, UsageGroup::Key).await, owned(&[("b", "r2", 1)]));

    let second = place.workspace_usage_by(&w, &ever, UsageGroup::Key, page(2, 2)).await.unwrap();
    assert_eq!((second.total, second.items.len()), (3, 1));
    assert!(matches!(&second.items[0].of, UsageGroupName::Key { id, .. } if *id == c.key.id));
}

pub(crate) async fn sums_that_are_too_large_stay_at_the_largest(place: Place) {
    let w = place.tenant("w1").await;
    let (a, b) = (place.key_in(&w, "a").await, place.key_in(&w, "b").await);
    let huge = |key: &KeyRecord| UsageRecord { tokens_used: u64::MAX, ..record(key, T0) };
    place.append(&[huge(&a), huge(&b)]).await.unwrap();
    let total = place.workspace_usage(&w, &UsageTotalsFilter::default()).await.unwrap();
    assert_eq!((total.tokens.total, total.reached), (i64::MAX.unsigned_abs(), 2));
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        let at = usize::try_from(self.below(all.len() as u64)).unwrap();
        all[at].clone()
    }
}

/// A request of any outcome within five days, metered or not.
fn any_record(dice: &mut Dice, keys: &[KeyRecord], users: &[EndUserId]) -> UsageRecord {
    let key = dice.of(keys);
    let at = T0.plus(Duration::from_millis(dice.below(5 * 86_400_000)));
    let outcome = dice.of(Outcome::ALL);
    let mut record = UsageRecord {
        outcome,
        status_code: if outcome == Outcome::Denied { 429 } else { dice.of(&[200, 200, 404, 502]) },
        charged: outcome != Outcome::Denied && dice.below(8) > 0,
        response_time_us: dice.below(1_000_000),
        bytes_in: dice.below(1_000),
        bytes_out: dice.below(100_000),
        route: dice.of(&["", "chat", "embed"]).into(),
        end_user_id: (dice.below(3) > 0).then(|| dice.of(users)),
        ..record(&key, at)
    };
    if dice.below(3) > 0 {
        let [input, output] = [dice.below(10_000), dice.below(4_000)];
        record.set_reading(MeterReading {
            tokens: TokenCounts {
                total: input + output,
                input,
                cached: dice.below(input + 1),
                cache_write: dice.below(100),
                output,
                reasoning: dice.below(output + 1),
                audio: dice.below(7),
            },
            model_requested: dice.of(&["", "gpt-4o", "claude"]).into(),
            model_served: dice.of(&["", "gpt-4o-2024-08-06", "gpt-4o"]).into(),
            provider_request_id: "".into(),
            cost_nano: (dice.below(4) > 0).then(|| dice.below(5_000_000)),
            source: ReadingSource::Reported,
        });
    }
    record
}

/// What `records` add up to, one by one.
fn added_up<'r>(records: impl IntoIterator<Item = &'r UsageRecord>) -> UsageTotal {
    let (mut total, mut us, mut responses) = (UsageTotal::default(), 0, 0);
    for record in records {
        let is_denied = record.outcome == Outcome::Denied;
        let has_failed = record.outcome == Outcome::UpstreamFailed || record.status_code >= 500;
        match (is_denied, record.charged) {
            (true, _) => total.denied += 1,
            (false, true) => total.reached += 1,
            (false, false) => total.unreached += 1,
        }
        total.errors += u64::from(has_failed && !is_denied);
        total.charged += u64::from(record.charged);
        let (all, one) = (&mut total.tokens, record.tokens());
        all.total += one.total;
        all.input += one.input;
        all.cached += one.cached;
        all.cache_write += one.cache_write;
        all.output += one.output;
        all.reasoning += one.reasoning;
        all.audio += one.audio;
        total.cost_nano += record.cost_nano.unwrap_or(0);
        total.bytes_in += record.bytes_in;
        total.bytes_out += record.bytes_out;
        total.last_at = total.last_at.max(Some(record.at));
        if !matches!(record.outcome, Outcome::Denied | Outcome::Interrupted | Outcome::Decided) {
            (us, responses) = (us + record.response_time_us, responses + 1);
        }
    }
    total.mean_us = (responses > 0).then(|| us / responses.max(1));
    total
}

/// What a group is of, as a test can compare it.
fn name_of(of: &UsageGroupName) -> String {
    match of {
        UsageGroupName::Key { id, .. } => id.to_string(),
        UsageGroupName::EndUser { id, .. } => id.to_string(),
        UsageGroupName::Resource(name) | UsageGroupName::Route(name) | UsageGroupName::Model(name) => {
            name.clone()
        }
    }
}

fn group_of(record: &UsageRecord, by: UsageGroup) -> Option<String> {
    match by {
        UsageGroup::Key => Some(record.api_key_id.to_string()),
        UsageGroup::Resource => None,
        UsageGroup::EndUser => record.end_user_id.map(|id| id.to_string()),
        UsageGroup::Route => Some(record.route.to_string()).filter(|route| !route.is_empty()),
        UsageGroup::Model => {
            record.model.as_ref().or(record.model_requested.as_ref()).map(ToString::to_string)
        }
    }
}

pub(crate) async fn a_replayed_ledger_reproduces_every_total(place: Place) {
    let (w, other) = (place.tenant("w1").await, place.tenant("w2").await);
    let keys = [
        place.key_in(&w, "a").await,
        place.key_in(&w, "b").await,
        place.key_in(&w, "c").await,
        place.key_in(&other, "theirs").await,
    ];
    let users: Vec<EndUserId> = (0..6).map(|_| EndUserId::new(T0)).collect();
    let mut dice = Dice(7);
    let records: Vec<UsageRecord> = (0..400).map(|_| any_record(&mut dice, &keys, &users)).collect();
    // In batches that overlap, as when a writer is interrupted; the last is everything once more.
    let mut from = 0;
    while from < records.len() {
        let to = records.len().min(from + usize::try_from(dice.below(60)).unwrap() + 1);
        place.append(&records[from.saturating_sub(5)..to]).await.unwrap();
        from = to;
    }
    assert_eq!(place.append(&records).await.unwrap(), 0);

    for key in &keys[..3] {
        let of_key = || records.iter().filter(|record| record.api_key_id == key.key.id);
        let (stats, expected) = (place.stats(&w, key.key.id, T0).await.unwrap().unwrap(), added_up(of_key()));
        assert_eq!((stats.tokens, stats.cost_nano), (expected.tokens, expected.cost_nano));
        assert_eq!((stats.total_requests, stats.denied), (expected.reached, expected.denied));
        let range = UsageRange { from: T0, to: T0.plus(DAY * 6), interval: Interval::Hour };
        let points = place.usage(&w, key.key.id, &range).await.unwrap().unwrap();
        for point in &points {
            let end = point.start.plus(Duration::from_hours(1));
            let expected = added_up(of_key().filter(|record| (point.start..end).contains(&record.at)));
            assert_eq!((point.tokens, point.cost_nano), (expected.tokens, expected.cost_nano));
        }
        assert_eq!(points.iter().map(|p| p.requests).sum::<u64>(), of_key().count() as u64);
    }
    let day = |n: u32| Timestamp::from_secs(T0.as_secs().div_euclid(86_400) * 86_400).plus(DAY * n);
    for days in [None, Some((day(0), day(6))), Some((day(1), day(3)))] {
        let filter = UsageTotalsFilter { days, resource_id: None };
        let is_meant = |record: &&UsageRecord| {
            record.workspace_id == w && days.is_none_or(|(from, to)| (from..to).contains(&record.at))
        };
        let meant: Vec<&UsageRecord> = records.iter().filter(is_meant).collect();
        let total = place.workspace_usage(&w, &filter).await.unwrap();
        assert_eq!(total, added_up(meant.iter().copied()), "{days:?}");
        for by in [UsageGroup::Key, UsageGroup::EndUser, UsageGroup::Route, UsageGroup::Model] {
            let mut expected = BTreeMap::<String, Vec<&UsageRecord>>::new();
            for record in &meant {
                if let Some(name) = group_of(record, by) {
                    expected.entry(name).or_default().push(record);
                }
            }
            let found = place.workspace_usage_by(&w, &filter, by, everything()).await.unwrap();
            let counts: Vec<u64> =
                found.items.iter().map(|g| g.total.reached + g.total.denied + g.total.unreached).collect();
            assert!(counts.is_sorted_by(|a, b| a >= b), "{by:?}: {counts:?}");
            assert_eq!(found.total, expected.len() as u64, "{by:?} {days:?}");
            let found: BTreeMap<String, UsageTotal> =
                found.items.iter().map(|group| (name_of(&group.of), group.total)).collect();
            let expected: BTreeMap<String, UsageTotal> =
                expected.into_iter().map(|(name, of)| (name, added_up(of))).collect();
            assert_eq!(found, expected, "{by:?} {days:?}");
        }
    }
}

pub(crate) async fn groups_are_paged_and_end_users_have_their_names(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "a").await;
    let mut users = Vec::new();
    for name in ["anna", "ben", "carla"] {
        match place.admit_end_user(&w, name, T0).await.unwrap() {
            EndUserAdmission::Admitted(id) => users.push(id),
            other => panic!("{other:?}"),
        }
    }
    let of = |user: usize| UsageRecord { end_user_id: Some(users[user]), ..record(&key, T0) };
    place.append(&[of(0), of(1), of(1), of(1), of(2), of(2)]).await.unwrap();
    place.delete_end_user(&w, users[2], &someone(), T0).await.unwrap();
    let ever = UsageTotalsFilter::default();
    let mut found = Vec::new();
    for number in 1..=3 {
        let part = place.workspace_usage_by(&w, &ever, UsageGroup::EndUser, page(number, 1)).await.unwrap();
        assert_eq!((part.total, part.items.len()), (3, 1));
        found.extend(part.items.into_iter().map(|group| (group.of, group.total.reached)));
    }
    let name =
        |id, other_id: Option<&str>| UsageGroupName::EndUser { id, other_id: other_id.map(Into::into) };
    let expected =
        [(name(users[1], Some("ben")), 3), (name(users[2], None), 2), (name(users[0], Some("anna")), 1)];
    assert_eq!(found, expected);
}

pub(crate) async fn groups_that_are_too_large_stay_at_the_largest(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "a").await;
    let huge = || UsageRecord { tokens_used: u64::MAX, cost_nano: Some(u64::MAX), ..record(&key, T0) };
    for _ in 0..2 {
        place.append(&[huge(), huge()]).await.unwrap();
    }
    let ever = UsageTotalsFilter::default();
    let found = place.workspace_usage_by(&w, &ever, UsageGroup::Route, everything()).await.unwrap();
    let total = found.items[0].total;
    let most = i64::MAX.unsigned_abs();
    assert_eq!((total.tokens.total, total.cost_nano, total.reached), (most, most, 4));
}
