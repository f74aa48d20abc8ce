//! Deleted keys, which can be restored for a while.

use crate::place::{PLAN_RATE, Place, T0, after, credential, everything, new_key, plan_id, someone};
use keygate::clock::Timestamp;
use keygate::model::id::{KeyId, WorkspaceId};
use keygate::store::{
    AuditFilter, Change, KeyFilter, KeyPatch, KeyRecord, NotRestorable, PlanPatch, StoreError, Version,
    WorkspacePatch, Written,
};
use serde_json::json;
use std::time::Duration;

/// The peppers of the secrets in these tests.
const PEPPERS: &[u32] = &[1];
/// When a key deleted at [`T0`] is removed for good.
const END: Duration = Duration::from_hours(30 * 24);

async fn restore(
    place: &Place,
    workspace: &WorkspaceId,
    id: KeyId,
    at: Timestamp,
) -> Result<Written<KeyRecord>, StoreError> {
    place.restore_key(workspace, id, PEPPERS, &someone(), at).await
}

/// A key that was deleted at [`T0`].
async fn deleted(place: &Place, workspace: &WorkspaceId, name: &str) -> KeyRecord {
    let key = place.key_in(workspace, name).await;
    place.delete_key(workspace, key.key.id, &someone(), T0).await.unwrap();
    key
}

async fn names_of_deleted(place: &Place, workspace: &WorkspaceId) -> Vec<String> {
    let filter = KeyFilter { is_deleted: true, ..KeyFilter::default() };
    let found = place.keys(workspace, &filter, everything()).await.unwrap();
    assert!(found.items.iter().all(|record| record.deleted_at.is_some()));
    assert_eq!(found.total, u64::try_from(found.items.len()).unwrap());
    found.items.into_iter().map(|record| record.name).collect()
}

#[track_caller]
fn refused(outcome: Result<Written<KeyRecord>, StoreError>, expected: NotRestorable) {
    match outcome {
        Err(StoreError::NotRestorable(why)) => assert_eq!(why, expected),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn is_gone(outcome: Result<Written<KeyRecord>, StoreError>) {
    assert!(matches!(outcome, Err(StoreError::NotFound("key"))), "{outcome:?}");
}

pub(crate) async fn a_deleted_key_comes_back_as_it_was(place: Place) {
    let w = place.tenant("w1").await;
    let id = place.key_in(&w, "k").await.key.id;
    place.regenerate_key(&w, id, credential(1), Some(after(60)), &someone(), after(1)).await.unwrap();
    let before = place.key(&w, id).await.unwrap().unwrap();
    let credentials = |changes: Vec<Change>| match &changes[..] {
        [Change::Key(key)] => (key.credentials.to_vec(), key.was_restored),
        other => panic!("{other:?}"),
    };
    let version = place.version().await.unwrap();
    place.delete_key(&w, id, &someone(), after(2)).await.unwrap();
    assert_eq!(place.feed(version).await, [format!("key {id} removed")]);

    let (version, _) = place.all_changes(version).await;
    let written = restore(&place, &w, id, after(3)).await.unwrap();
    let expected = KeyRecord { updated_at: after(3), ..before };
    assert_eq!(written.value, expected);
    assert_eq!(place.key(&w, id).await.unwrap(), Some(expected));
    let (reached, changes) = place.all_changes(version).await;
    assert_eq!(reached, written.version);
    let (restored, was_restored) = credentials(changes);
    assert!(was_restored && restored.len() == 2, "the secret in its grace period comes back, too");

    let filter = AuditFilter { action: Some("key.restore".into()), ..AuditFilter::default() };
    let lines = place.audit(Some(&w), &filter, everything()).await.unwrap().items;
    assert_eq!((lines.len(), &lines[0].target), (1, &id.to_string()));
    let ms = after(2).as_millis();
    assert_eq!(lines[0].changes["deleted_at"], json!({"from": ms, "to": null}));
    // It can be deleted and restored again, and a secret whose grace period ended meanwhile stays invalid.
    place.delete_key(&w, id, &someone(), after(4)).await.unwrap();
    let version = place.version().await.unwrap();
    restore(&place, &w, id, after(60)).await.unwrap();
    assert_eq!(credentials(place.all_changes(version).await.1).0, restored[..1]);
}

pub(crate) async fn a_deleted_key_comes_back_within_its_time_only(place: Place) {
    let w = place.tenant("w1").await;
    let (early, late) = (deleted(&place, &w, "early").await.key.id, deleted(&place, &w, "late").await.key.id);
    let just_before = Timestamp::from_micros(T0.plus(END).as_micros() - 1);
    is_gone(restore(&place, &w, late, T0.plus(END)).await);
    restore(&place, &w, late, just_before).await.unwrap();

    // The secrets are removed when the time is over, and a longer time does not bring them back.
    place.maintain(just_before).await.unwrap();
    assert_eq!(names_of_deleted(&place, &w).await, ["early"]);
    place.maintain(T0.plus(END)).await.unwrap();
    assert_eq!(names_of_deleted(&place, &w).await, [""; 0]);
    let days = |days| PlanPatch { deleted_keys_days: Some(days), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), days(60), &someone(), T0).await.unwrap();
    refused(restore(&place, &w, early, just_before).await, NotRestorable::SecretNotKept);
    assert!(place.key(&w, late).await.unwrap().is_some(), "what was restored is left alone");

    // Under a plan without such a time, the secrets of a deleted key are never kept.
    place.update_plan(&plan_id("basic"), days(0), &someone(), T0).await.unwrap();
    let never = deleted(&place, &w, "never").await.key.id;
    assert_eq!(names_of_deleted(&place, &w).await, [""; 0]);
    is_gone(restore(&place, &w, never, T0).await);
    place.update_plan(&plan_id("basic"), days(30), &someone(), T0).await.unwrap();
    refused(restore(&place, &w, never, T0).await, NotRestorable::SecretNotKept);
}

pub(crate) async fn what_stands_against_a_return_is_told(place: Place) {
    let (w, other) = (place.tenant("w1").await, place.tenant("w2").await);
    let key = deleted(&place, &w, "k").await;
    let id = key.key.id;
    is_gone(restore(&place, &other, id, T0).await);
    is_gone(restore(&place, &w, KeyId::new(T0), T0).await);

    let namesake = place.key_in(&w, "k").await.key.id;
    refused(restore(&place, &w, namesake, T0).await, NotRestorable::NotDeleted);
    let taken = restore(&place, &w, id, T0).await;
    assert!(matches!(taken, Err(StoreError::DuplicateName)), "{taken:?}");
    let rename = KeyPatch { name: Some("another".into()), ..KeyPatch::default() };
    place.update_key(&w, namesake, rename, &someone(), T0).await.unwrap();

    let rate = |rate| PlanPatch { api_ops_rate_limit: Some(rate), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), rate(1), &someone(), T0).await.unwrap();
    let above = restore(&place, &w, id, T0).await;
    assert!(matches!(above, Err(StoreError::RateAbovePlan { limit: 1, .. })), "{above:?}");
    place.update_plan(&plan_id("basic"), rate(PLAN_RATE), &someone(), T0).await.unwrap();

    let lost = place.restore_key(&w, id, &[2, 3], &someone(), T0).await;
    refused(lost, NotRestorable::PepperMissing(1));
    let before = place.version().await.unwrap();
    restore(&place, &w, id, T0).await.unwrap();
    assert_eq!(place.version().await.unwrap(), Version(before.0 + 1), "refusals drew no number");
}

pub(crate) async fn a_secret_given_to_another_key_does_not_come_back(place: Place) {
    let w = place.tenant("w1").await;
    let new = new_key(&w, "first");
    let (id, secret) = (new.key.id, new.credential.clone());
    place.create_key(new, &someone(), T0).await.unwrap();
    place.delete_key(&w, id, &someone(), T0).await.unwrap();
    let mut second = new_key(&w, "second");
    second.credential = secret;
    place.create_key(second, &someone(), T0).await.unwrap();
    refused(restore(&place, &w, id, T0).await, NotRestorable::SecretNotKept);
}

pub(crate) async fn deleted_keys_are_listed_by_themselves(place: Place) {
    let (w, other) = (place.tenant("w1").await, place.tenant("w2").await);
    place.key_in(&w, "there").await;
    let gone = deleted(&place, &w, "gone").await;
    deleted(&place, &other, "theirs").await;
    assert_eq!(names_of_deleted(&place, &w).await, ["gone"]);
    let there = place.keys(&w, &KeyFilter::default(), everything()).await.unwrap();
    assert_eq!(there.items.iter().map(|record| &*record.name).collect::<Vec<_>>(), ["there"]);
    assert_eq!(place.key(&w, gone.key.id).await.unwrap(), None);
    // The time is that of the plan that the workspace has at that moment.
    let mut short = crate::place::plan("short");
    short.deleted_keys_days = 1;
    place.create_plan(short, &someone(), T0).await.unwrap();
    let onto = WorkspacePatch { plan_id: Some(plan_id("short")), ..WorkspacePatch::default() };
    place.put_workspace(&w, onto, &plan_id("basic"), &someone(), T0).await.unwrap();
    is_gone(restore(&place, &w, gone.key.id, after(86_400)).await);
    restore(&place, &w, gone.key.id, after(86_399)).await.unwrap();
}
