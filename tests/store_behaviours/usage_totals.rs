//! Totals of a workspace, of its keys and of its resources.

use crate::place::{Place, T0, after, everything, new_key, page, record, someone};
use keygate::model::id::WorkspaceId;
use keygate::model::usage::{Outcome, UsageRecord};
use keygate::store::{KeyRecord, UsageGroup, UsageTotal, UsageTotalsFilter};
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
    let shown = found.items.into_iter();
    shown.map(|g| (g.key.map(|k| k.1).unwrap_or_default(), g.resource_id, g.total.reached)).collect()
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
        tokens_used: 12,
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
    assert_eq!(second.items[0].key.as_ref().map(|key| key.0), Some(c.key.id));
}

pub(crate) async fn sums_that_are_too_large_stay_at_the_largest(place: Place) {
    let w = place.tenant("w1").await;
    let (a, b) = (place.key_in(&w, "a").await, place.key_in(&w, "b").await);
    let huge = |key: &KeyRecord| UsageRecord { tokens_used: u64::MAX, ..record(key, T0) };
    place.append(&[huge(&a), huge(&b)]).await.unwrap();
    let total = place.workspace_usage(&w, &UsageTotalsFilter::default()).await.unwrap();
    assert_eq!((total.tokens_used, total.reached), (i64::MAX.unsigned_abs(), 2));
}
