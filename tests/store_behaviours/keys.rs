//! Keys.

use crate::place::workspace_id;
use crate::place::{
    PLAN_RATE, Place, T0, after, credential, everything, new_key, page, plan_id, scopes, someone,
};
use keygate::clock::Timestamp;
use keygate::model::calendar::Calendar;
use keygate::model::id::{KeyId, WorkspaceId};
use keygate::model::key::{Ceiling, KeyType, Measure, Owner, Per};
use keygate::model::usage::UsageSubject;
use keygate::store::{
    Change, Credential, IdempotencyClaim, ImportedKeyHistory, IssuedCredential, KeyCursor, KeyFilter,
    KeyPatch, KeyRecord, NewKey, PlanPatch, StoreError, Version,
};
use serde_json::json;

async fn names(place: &Place, workspace: &WorkspaceId, filter: KeyFilter) -> Vec<String> {
    let found = place.keys(workspace, &filter, everything()).await.unwrap();
    assert_eq!(found.total, u64::try_from(found.items.len()).unwrap());
    found.items.into_iter().map(|record| record.name).collect()
}

async fn search(place: &Place, workspace: &WorkspaceId, text: &str) -> Vec<String> {
    names(place, workspace, KeyFilter { search: Some(text.into()), ..KeyFilter::default() }).await
}

fn rename(name: &str) -> KeyPatch {
    KeyPatch { name: Some(name.into()), ..KeyPatch::default() }
}

/// `issued` as stored while it is the current secret.
fn stored(issued: &IssuedCredential) -> Credential {
    let IssuedCredential { digest, pepper_version, secret, .. } = *issued;
    Credential { digest, pepper_version, secret, valid_until: None }
}

async fn credentials(place: &Place, id: KeyId) -> Vec<Credential> {
    let (_, changes) = place.all_changes(Version(0)).await;
    let found = changes.into_iter().find_map(|change| match change {
        Change::Key(key) if key.key.id == id => Some(key.credentials.to_vec()),
        _ => None,
    });
    found.unwrap_or_default()
}

pub(crate) async fn an_absent_key_is_none(place: Place) {
    let w = place.tenant("w1").await;
    assert_eq!(place.key(&w, KeyId::new(T0)).await.unwrap(), None);
    assert_eq!(place.keys(&w, &KeyFilter::default(), everything()).await.unwrap().total, 0);
}

pub(crate) async fn a_created_key_reads_back_exactly(place: Place) {
    let w = place.tenant("w1").await;
    let mut new = new_key(&w, "all of it");
    new.description = "what for".into();
    new.metadata = json!({"team": "β", "deep": {"list": [1, null, "\u{0}"]}}).as_object().unwrap().clone();
    new.key.expires_at = Some(Timestamp::from_micros(1_999_999_999_999_999));
    new.key.is_active = false;
    new.key.scopes = scopes("app,orders:*,rag");
    new.key.end_user = Some("ann".into());
    new.external_id = Some("git-7".into());
    new.key.allowed_ips = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()].into();
    let ceilings = &mut new.key.ceilings;
    ceilings.rate_burst = Some(7);
    ceilings.quota_limit = Some((1 << 53) - 1);
    ceilings.concurrency_limit = Some(3);
    ceilings.limits =
        [Ceiling { of: Owner::Workspace, count: Measure::Requests, per: Per::Month, max: 9 }].into();
    let expected = KeyRecord {
        key: new.key.clone(),
        name: new.name.clone(),
        description: new.description.clone(),
        external_id: new.external_id.clone(),
        metadata: new.metadata.clone(),
        hint: new.credential.hint.clone(),
        quota_used: 0,
        usage_count: 0,
        last_used_at: None,
        created_by: "ada".into(),
        created_at: T0,
        updated_at: T0,
        deleted_at: None,
    };
    let written = place.create_key(new, &someone(), T0).await.unwrap();
    assert_eq!(written.value, expected);
    assert_eq!(place.key(&w, expected.key.id).await.unwrap(), Some(expected));
}

pub(crate) async fn texts_read_back_exactly(place: Place) {
    let w = place.tenant("w1").await;
    for text in
        ["it's", "\"quoted\"", "100 %_\\", "中文 🔑 é e\u{301}", "line\nbreak\ttab", " padded ", "'); --"]
    {
        let mut new = new_key(&w, text);
        new.description = text.into();
        new.key.resource_id = text.into();
        let id = place.create_key(new, &someone(), T0).await.unwrap().value.key.id;
        let read = place.key(&w, id).await.unwrap().unwrap();
        assert_eq!((&*read.name, &*read.description, &*read.key.resource_id), (text, text, text));
    }
    let empty = place.key_in(&w, "no description").await;
    assert_eq!(place.key(&w, empty.key.id).await.unwrap().unwrap().description, "");
}

pub(crate) async fn nul_in_a_text_is_refused(place: Place) {
    let w = place.tenant("w1").await;
    let error = place.create_key(new_key(&w, "a\0b"), &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "name", .. }), "{error}");
    let key = place.key_in(&w, "sound").await;
    let patch = KeyPatch { description: Some("\0".into()), ..KeyPatch::default() };
    let error = place.update_key(&w, key.key.id, patch, &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "description", .. }), "{error}");
}

pub(crate) async fn a_key_needs_its_workspace(place: Place) {
    let error = place.create_key(new_key(&workspace_id("nowhere"), "k"), &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("workspace")), "{error}");
}

pub(crate) async fn a_rate_above_the_plan_is_refused(place: Place) {
    let w = place.tenant("w1").await;
    let mut new = new_key(&w, "k");
    new.key.ceilings.rate_limit = PLAN_RATE + 1;
    match place.create_key(new.clone(), &someone(), T0).await.unwrap_err() {
        StoreError::RateAbovePlan { asked, limit, plan } => {
            assert_eq!((asked, limit, plan), (PLAN_RATE + 1, PLAN_RATE, plan_id("basic")));
        }
        other => panic!("{other}"),
    }
    new.key.ceilings.rate_limit = PLAN_RATE;
    place.create_key(new, &someone(), T0).await.unwrap();
}

pub(crate) async fn a_key_must_hold_the_scope_of_its_kind(place: Place) {
    let w = place.tenant("w1").await;
    let mut new = new_key(&w, "k");
    (new.key.kind, new.key.scopes) = (KeyType::Rag, scopes("app"));
    let error = place.create_key(new, &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "scopes", .. }), "{error}");

    let mut new = new_key(&w, "k");
    (new.key.kind, new.key.scopes) = (KeyType::Service, scopes(""));
    let made = place.create_key(new, &someone(), T0).await.unwrap();
    assert!(made.value.key.scopes.is_empty(), "a service key may grant nothing");
}

pub(crate) async fn an_id_is_used_once(place: Place) {
    let w = place.tenant("w1").await;
    let first = place.key_in(&w, "first").await;
    let mut second = new_key(&w, "second");
    second.key.id = first.key.id;
    let error = place.create_key(second, &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists("key")), "{error}");
}

pub(crate) async fn a_secret_opens_one_key(place: Place) {
    let w = place.tenant("w1").await;
    let first = new_key(&w, "first");
    let digest = first.credential.digest;
    let id = place.create_key(first, &someone(), T0).await.unwrap().value.key.id;
    let mut second = new_key(&w, "second");
    second.credential.digest = digest;
    let taken =
        |error: StoreError| assert!(matches!(error, StoreError::Invalid { field: "secret", .. }), "{error}");
    taken(place.create_key(second.clone(), &someone(), T0).await.unwrap_err());
    // Also while it is only the previous secret; and no longer once its grace period is over.
    place.regenerate_key(&w, id, credential(1), Some(after(60)), &someone(), T0).await.unwrap();
    taken(place.create_key(second.clone(), &someone(), after(59)).await.unwrap_err());
    place.create_key(second, &someone(), after(60)).await.unwrap();
}

pub(crate) async fn many_keys_at_once_stand_or_fall_one_by_one(place: Place) {
    let w = place.tenant("w1").await;
    let mut too_fast = new_key(&w, "too fast");
    too_fast.key.ceilings.rate_limit = PLAN_RATE + 1;
    let keys = vec![new_key(&w, "a"), new_key(&w, "a"), too_fast, new_key(&w, "b")];
    let before = place.version().await.unwrap();
    let done = place.create_keys(keys, &someone(), T0).await.unwrap();
    let refused: Vec<_> = done.iter().map(|d| d.as_ref().err().map(ToString::to_string)).collect();
    assert!(matches!(done[1], Err(StoreError::DuplicateName)), "{refused:?}");
    assert!(matches!(done[2], Err(StoreError::RateAbovePlan { .. })), "{refused:?}");
    assert_eq!(names(&place, &w, KeyFilter::default()).await.len(), 2);
    let versions: Vec<_> = done.iter().flatten().map(|v| v.0 - before.0).collect();
    assert_eq!(versions, [1, 2], "a refused key draws no number");
}

pub(crate) async fn a_key_that_moves_brings_its_past(place: Place) {
    let w = place.tenant("w1").await;
    let moved = |name: &str, old: Option<Credential>| {
        let mut new = new_key(&w, name);
        // Its plan was lowered, and it had expired, before it was moved.
        new.key.ceilings.rate_limit = PLAN_RATE + 1;
        new.key.expires_at = Some(Timestamp::from_micros(5));
        let [created_at, updated_at] = [7_000, 9_000].map(Timestamp::from_micros);
        new.past = Some(ImportedKeyHistory {
            created_by: "ann".into(),
            created_at,
            updated_at,
            quota_used: 3,
            usage_count: 5,
            last_used_at: Some(Timestamp::from_micros(8_000)),
            old,
        });
        new
    };
    let until = |at| Credential { valid_until: Some(at), ..stored(&credential(3)) };
    let live = until(after(1));
    let new = moved("graceful", Some(live));
    let current = stored(&new.credential);
    let made = place.create_key(new, &someone(), T0).await.unwrap().value;
    let stored = place.key(&w, made.key.id).await.unwrap().unwrap();
    assert_eq!(stored, made);
    assert_eq!((&*stored.created_by, stored.key.ceilings.rate_limit), ("ann", PLAN_RATE + 1));
    assert_eq!([stored.created_at, stored.updated_at].map(Timestamp::as_micros), [7_000, 9_000]);
    assert_eq!(credentials(&place, made.key.id).await, [current, live]);
    // What it had used is counted on.
    assert_eq!((stored.quota_used, stored.usage_count), (3, 5));
    place.append(&[crate::place::record(&stored, T0)]).await.unwrap();
    let stats = place.stats(&w, made.key.id, T0).await.unwrap().unwrap();
    assert_eq!((stats.total_requests, stats.quota_used, stats.last_used_at), (6, 4, Some(T0)));
    let spent = place.totals_of(&UsageSubject::Key(made.key.id), T0, Calendar::UTC).await.unwrap();
    assert_eq!((spent.used[2], spent.used[5]), (1, 4));

    let over = moved("its grace is over", Some(until(T0)));
    let over = place.create_key(over, &someone(), T0).await.unwrap().value;
    assert_eq!(credentials(&place, over.key.id).await.len(), 1);
    // A secret opens only one key, also while it is only the previous secret.
    let taken = place.create_key(moved("taken", Some(live)), &someone(), T0).await;
    assert!(matches!(taken, Err(StoreError::Invalid { field: "secret", .. })), "{taken:?}");
    assert_eq!(names(&place, &w, KeyFilter::default()).await.len(), 2, "nothing of it stays");
}

pub(crate) async fn names_are_unique_per_resource_and_workspace(place: Place) {
    let (w1, w2) = (place.tenant("w1").await, place.tenant("w2").await);
    place.key_in(&w1, "name").await;
    let error = place.create_key(new_key(&w1, "name"), &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::DuplicateName), "{error}");
    let mut elsewhere = new_key(&w1, "name");
    elsewhere.key.resource_id = "r2".into();
    place.create_key(elsewhere, &someone(), T0).await.unwrap();
    place.key_in(&w2, "name").await;
    place.key_in(&w1, "Name").await;
}

pub(crate) async fn a_name_is_free_after_delete(place: Place) {
    let w = place.tenant("w1").await;
    for _ in 0..3 {
        let key = place.key_in(&w, "again").await;
        place.delete_key(&w, key.key.id, &someone(), T0).await.unwrap();
    }
    place.key_in(&w, "again").await;
    assert_eq!(names(&place, &w, KeyFilter::default()).await, ["again"]);
}

pub(crate) async fn of_two_creates_at_once_one_wins(place: Place) {
    let w = place.tenant("w1").await;
    for round in 0..20 {
        let name = format!("round {round}");
        let by = someone();
        let (a, b) = tokio::join!(
            place.create_key(new_key(&w, &name), &by, T0),
            place.create_key(new_key(&w, &name), &by, T0),
        );
        let lost = if a.is_ok() { b } else { a };
        assert!(matches!(lost, Err(StoreError::DuplicateName)), "{lost:?}");
        let left = names(&place, &w, KeyFilter::default()).await;
        assert_eq!(left.iter().filter(|n| **n == name).count(), 1);
    }
}

pub(crate) async fn a_patch_changes_what_it_names(place: Place) {
    let w = place.tenant("w1").await;
    let before = place.key_in(&w, "before").await;
    let patch = KeyPatch {
        name: Some("after".into()),
        description: Some("d".into()),
        external_id: Some(Some("git-7".into())),
        scopes: Some(scopes("app,memory")),
        rate_limit: Some(PLAN_RATE),
        rate_burst: Some(Some(5)),
        daily_request_limit: Some(None),
        quota_limit: Some(Some(2)),
        concurrency_limit: Some(Some(3)),
        limits: Some(
            [Ceiling { of: Owner::Workspace, count: Measure::Requests, per: Per::Hour, max: 4 }].into(),
        ),
        is_active: Some(false),
        expires_at: Some(Some(after(1))),
        allowed_ips: Some(["192.0.2.1/32".parse().unwrap()].into()),
        metadata: Some(json!({"a": 1}).as_object().unwrap().clone()),
    };
    let mut expected = before.clone();
    expected.name = "after".into();
    expected.description = "d".into();
    expected.external_id = Some("git-7".into());
    expected.metadata = patch.metadata.clone().unwrap();
    expected.updated_at = after(9);
    expected.key.scopes = patch.scopes.clone().unwrap();
    expected.key.is_active = false;
    expected.key.expires_at = Some(after(1));
    expected.key.allowed_ips = patch.allowed_ips.clone().unwrap();
    let ceilings = &mut expected.key.ceilings;
    ceilings.rate_limit = PLAN_RATE;
    ceilings.rate_burst = Some(5);
    ceilings.daily_request_limit = None;
    ceilings.quota_limit = Some(2);
    ceilings.concurrency_limit = Some(3);
    ceilings.limits = patch.limits.clone().unwrap();
    let written = place.update_key(&w, before.key.id, patch, &someone(), after(9)).await.unwrap();
    assert_eq!(written.value, expected);
    assert_eq!(place.key(&w, before.key.id).await.unwrap(), Some(expected));
}

pub(crate) async fn an_inner_none_clears(place: Place) {
    let w = place.tenant("w1").await;
    let mut new = new_key(&w, "k");
    new.key.expires_at = Some(after(1));
    new.key.ceilings.rate_burst = Some(1);
    new.key.ceilings.quota_limit = Some(1);
    new.key.ceilings.concurrency_limit = Some(1);
    let id = place.create_key(new, &someone(), T0).await.unwrap().value.key.id;
    let patch = KeyPatch {
        expires_at: Some(None),
        rate_burst: Some(None),
        quota_limit: Some(None),
        concurrency_limit: Some(None),
        ..KeyPatch::default()
    };
    place.update_key(&w, id, patch, &someone(), T0).await.unwrap();
    let key = place.key(&w, id).await.unwrap().unwrap().key;
    assert_eq!(key.expires_at, None);
    let ceilings = &key.ceilings;
    assert_eq!((ceilings.rate_burst, ceilings.quota_limit, ceilings.concurrency_limit), (None, None, None));
    assert_eq!(ceilings.rate_limit, 50);
}

pub(crate) async fn an_empty_patch_succeeds(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let written = place.update_key(&w, key.key.id, KeyPatch::default(), &someone(), after(1)).await.unwrap();
    assert_eq!(written.value, KeyRecord { updated_at: after(1), ..key });
}

pub(crate) async fn a_patch_cannot_take_the_scope_of_the_kind(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    for wanted in ["", "rag"] {
        let patch =
            KeyPatch { scopes: Some(scopes(wanted)), name: Some("changed".into()), ..KeyPatch::default() };
        let error = place.update_key(&w, key.key.id, patch, &someone(), T0).await.unwrap_err();
        assert!(matches!(error, StoreError::Invalid { field: "scopes", .. }), "{error}");
    }
    assert_eq!(place.key(&w, key.key.id).await.unwrap(), Some(key));
}

pub(crate) async fn a_patch_is_held_to_the_plan_only_for_its_rate(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let lower = PlanPatch { api_ops_rate_limit: Some(10), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), lower, &someone(), T0).await.unwrap();
    place.update_key(&w, key.key.id, rename("still fine"), &someone(), T0).await.unwrap();
    for (rate, fits) in [(11, false), (10, true)] {
        let patch = KeyPatch { rate_limit: Some(rate), ..KeyPatch::default() };
        let outcome = place.update_key(&w, key.key.id, patch, &someone(), T0).await;
        match outcome {
            Ok(written) => assert!(fits && written.value.key.ceilings.rate_limit == rate),
            Err(error) => {
                assert!(!fits && matches!(error, StoreError::RateAbovePlan { limit: 10, .. }), "{error}")
            }
        }
    }
}

pub(crate) async fn a_patch_cannot_take_a_name(place: Place) {
    let w = place.tenant("w1").await;
    let (a, b) = (place.key_in(&w, "a").await, place.key_in(&w, "b").await);
    let error = place.update_key(&w, b.key.id, rename("a"), &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::DuplicateName), "{error}");
    place.update_key(&w, a.key.id, rename("a"), &someone(), T0).await.unwrap();
    place.delete_key(&w, a.key.id, &someone(), T0).await.unwrap();
    place.update_key(&w, b.key.id, rename("a"), &someone(), T0).await.unwrap();
}

pub(crate) async fn what_is_absent_cannot_be_changed(place: Place) {
    let w = place.tenant("w1").await;
    let id = KeyId::new(T0);
    let missing = |error: StoreError| assert!(matches!(error, StoreError::NotFound("key")), "{error}");
    missing(place.update_key(&w, id, rename("x"), &someone(), T0).await.unwrap_err());
    missing(place.delete_key(&w, id, &someone(), T0).await.unwrap_err());
    missing(place.regenerate_key(&w, id, credential(1), None, &someone(), T0).await.unwrap_err());
    let none = place.rehash_key(id, credential(1).digest, credential(2).digest, 2).await.unwrap();
    assert_eq!(none, None);
}

pub(crate) async fn a_deleted_key_is_gone(place: Place) {
    let w = place.tenant("w1").await;
    let new = new_key(&w, "k");
    let (id, digest) = (new.key.id, new.credential.digest);
    place.create_key(new, &someone(), T0).await.unwrap();
    place.delete_key(&w, id, &someone(), after(1)).await.unwrap();
    assert_eq!(place.key(&w, id).await.unwrap(), None);
    assert_eq!(names(&place, &w, KeyFilter::default()).await, [""; 0]);
    let error = place.delete_key(&w, id, &someone(), after(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("key")), "{error}");
    let error = place.update_key(&w, id, rename("x"), &someone(), after(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("key")), "{error}");
    assert_eq!(place.rehash_key(id, digest, credential(2).digest, 2).await.unwrap(), None);
}

pub(crate) async fn lists_are_newest_first_and_paged(place: Place) {
    let w = place.tenant("w1").await;
    for n in 0..6 {
        // The order is that of creation times, not of calls.
        let at = after([3, 1, 5, 0, 4, 2][n]);
        place.create_key(new_key(&w, &format!("k{}", at.since(T0).as_secs())), &someone(), at).await.unwrap();
    }
    for (number, size, expected) in [
        (1, 4, vec!["k5", "k4", "k3", "k2"]),
        (2, 4, vec!["k1", "k0"]),
        (2, 3, vec!["k2", "k1", "k0"]),
        (3, 3, vec![]),
        (u32::MAX, u32::MAX, vec![]),
        (1, 0, vec![]),
    ] {
        let found = place.keys(&w, &KeyFilter::default(), page(number, size)).await.unwrap();
        let names: Vec<&str> = found.items.iter().map(|record| record.name.as_str()).collect();
        assert_eq!((names, found.total), (expected, 6), "page {number} of {size}");
    }
    let (mut filter, mut all) = (KeyFilter::default(), Vec::new());
    for left in [2, 2, 2, 0] {
        let found = place.keys(&w, &filter, page(1, 2)).await.unwrap();
        assert_eq!(found.items.len(), left);
        if let Some(last) = found.items.last() {
            filter.after = Some(KeyCursor { created_at: last.created_at, id: last.key.id });
        }
        all.extend(found.items.into_iter().map(|record| record.name));
        // One that is created meanwhile is newer, and shifts nothing.
        let newer = format!("newer-{left}-{}", all.len());
        place.create_key(new_key(&w, &newer), &someone(), after(9)).await.unwrap();
    }
    assert_eq!(all, ["k5", "k4", "k3", "k2", "k1", "k0"]);
}

pub(crate) async fn an_external_id_belongs_to_one_live_key_of_a_workspace(place: Place) {
    let (w, other) = (place.tenant("w1").await, place.tenant("w2").await);
    let with = |workspace: &WorkspaceId, name: &str, id: &str| NewKey {
        external_id: Some(id.into()),
        ..new_key(workspace, name)
    };
    let first = place.create_key(with(&w, "a", "x"), &someone(), T0).await.unwrap().value;
    place.create_key(with(&other, "a", "x"), &someone(), T0).await.unwrap();
    place.create_key(new_key(&w, "none"), &someone(), T0).await.unwrap();
    place.create_key(new_key(&w, "none too"), &someone(), T0).await.unwrap();
    let taken = |error: StoreError| assert!(matches!(error, StoreError::DuplicateExternalId), "{error}");
    taken(place.create_key(with(&w, "b", "x"), &someone(), T0).await.unwrap_err());
    let second = place.create_key(with(&w, "b", "y"), &someone(), T0).await.unwrap().value;
    let patch = |id: Option<&str>| KeyPatch { external_id: Some(id.map(Into::into)), ..KeyPatch::default() };
    taken(place.update_key(&w, second.key.id, patch(Some("x")), &someone(), after(1)).await.unwrap_err());
    let filter = KeyFilter { external_id: Some("x".into()), ..KeyFilter::default() };
    assert_eq!(names(&place, &w, filter.clone()).await, ["a"]);
    // A deleted key gives it up, and cannot come back while another one has it.
    place.delete_key(&w, first.key.id, &someone(), after(2)).await.unwrap();
    place.update_key(&w, second.key.id, patch(Some("x")), &someone(), after(3)).await.unwrap();
    assert_eq!(names(&place, &w, filter.clone()).await, ["b"]);
    taken(place.restore_key(&w, first.key.id, &[1], &someone(), after(4)).await.unwrap_err());
    place.update_key(&w, second.key.id, patch(None), &someone(), after(5)).await.unwrap();
    place.restore_key(&w, first.key.id, &[1], &someone(), after(6)).await.unwrap();
    assert_eq!(names(&place, &w, filter).await, ["a"]);
}

pub(crate) async fn a_request_that_is_repeated_makes_one_key(place: Place) {
    let w = place.tenant("w1").await;
    let claim =
        |id: u8, fingerprint: u8| Some(IdempotencyClaim { id: [id; 32], fingerprint: [fingerprint; 32] });
    let with = |name: &str, once| NewKey { once, ..new_key(&w, name) };
    let made = place.create_key(with("a", claim(1, 1)), &someone(), T0).await.unwrap();
    // The same request, wherever and however often: the first key, and no version is drawn.
    for _ in 0..2 {
        let error = place.create_key(with("a", claim(1, 1)), &someone(), after(1)).await.unwrap_err();
        assert!(matches!(error, StoreError::Repeated(id) if id == made.value.key.id), "{error}");
    }
    let error = place.create_key(with("b", claim(1, 2)), &someone(), after(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::IdempotencyKeyReused), "{error}");
    let next = place.create_key(with("b", claim(2, 2)), &someone(), after(1)).await.unwrap();
    assert_eq!(next.version, Version(made.version.0 + 1));
    // One that is refused claims nothing.
    let error = place.create_key(with("b", claim(3, 3)), &someone(), after(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::DuplicateName), "{error}");
    place.create_key(with("c", claim(3, 4)), &someone(), after(2)).await.unwrap();
    // After a day the name is free.
    let later = T0.plus(IdempotencyClaim::VALID);
    place.create_key(with("d", claim(1, 5)), &someone(), later).await.unwrap();
    assert_eq!(names(&place, &w, KeyFilter::default()).await.len(), 4);
}

pub(crate) async fn lists_are_filtered(place: Place) {
    let w = place.tenant("w1").await;
    for (name, kind, resource, is_active) in [
        ("app", KeyType::App, "r1", true),
        ("off", KeyType::App, "r2", false),
        ("rag", KeyType::Rag, "r2", true),
        ("service", KeyType::Service, "w1", true),
    ] {
        let mut new = new_key(&w, name);
        (new.key.kind, new.key.scopes) = (kind, scopes(kind.implied_scope().unwrap_or("")));
        (new.key.resource_id, new.key.is_active) = (resource.into(), is_active);
        place.create_key(new, &someone(), T0).await.unwrap();
    }
    let by = KeyFilter::default;
    for (filter, expected) in [
        (KeyFilter { kind: Some(KeyType::App), ..by() }, vec!["app", "off"]),
        (KeyFilter { is_active: Some(true), ..by() }, vec!["app", "rag", "service"]),
        (KeyFilter { is_active: Some(false), ..by() }, vec!["off"]),
        (KeyFilter { resource_id: Some("r2".into()), ..by() }, vec!["off", "rag"]),
        (KeyFilter { resource_id: Some("R2".into()), ..by() }, vec![]),
        (KeyFilter { resource_id: Some("r2".into()), is_active: Some(true), ..by() }, vec!["rag"]),
        (KeyFilter { kind: Some(KeyType::Memory), ..by() }, vec![]),
    ] {
        let mut found = names(&place, &w, filter.clone()).await;
        found.sort();
        assert_eq!(found, expected, "{filter:?}");
    }
}

pub(crate) async fn search_ignores_case_and_knows_no_wildcards(place: Place) {
    let w = place.tenant("w1").await;
    for name in ["Ärger", "100% real", "under_score", "Plain"] {
        place.key_in(&w, name).await;
    }
    for (text, expected) in [
        ("äRG", vec!["Ärger"]),
        ("ärgerlich", vec![]),
        ("%", vec!["100% real"]),
        ("_", vec!["under_score"]),
        ("pLAIN", vec!["Plain"]),
        ("p__in", vec![]),
        ("*", vec![]),
        ("'", vec![]),
        ("\\", vec![]),
    ] {
        assert_eq!(search(&place, &w, text).await, expected, "{text}");
    }
    assert_eq!(search(&place, &w, "").await.len(), 4);
}

pub(crate) async fn search_follows_changes(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "old name").await;
    let patch = KeyPatch { description: Some("Needle".into()), ..rename("k") };
    place.update_key(&w, key.key.id, patch, &someone(), T0).await.unwrap();
    assert_eq!(search(&place, &w, "old name").await.len(), 0);
    assert_eq!(search(&place, &w, "needle").await, ["k"]);
    assert_eq!(search(&place, &w, "ab3d…9FQZ").await, ["k"]);
    let mut new = credential(1);
    new.hint = "sk-app-Zzzz…1234".into();
    place.regenerate_key(&w, key.key.id, new, None, &someone(), T0).await.unwrap();
    assert_eq!(search(&place, &w, "zzzz").await, ["k"]);
    assert_eq!(search(&place, &w, "ab3d").await.len(), 0);
    // The end of one field and the beginning of the next are not one text.
    assert_eq!(search(&place, &w, "kneedle").await.len(), 0);
}

pub(crate) async fn a_new_secret_keeps_the_old_one_until_told(place: Place) {
    let w = place.tenant("w1").await;
    let new = new_key(&w, "k");
    let (id, first) = (new.key.id, new.credential.clone());
    let created = place.create_key(new, &someone(), T0).await.unwrap().value;
    let mut second = credential(2);
    second.hint = "sk-app-2222…2222".into();
    let written =
        place.regenerate_key(&w, id, second.clone(), Some(after(60)), &someone(), after(1)).await.unwrap();
    let expected = KeyRecord { hint: second.hint.clone(), updated_at: after(1), ..created };
    assert_eq!(written.value, expected);
    assert_eq!(place.key(&w, id).await.unwrap(), Some(expected));
    let current = stored(&second);
    let old = Credential { valid_until: Some(after(60)), ..stored(&first) };
    assert_eq!(credentials(&place, id).await, [current, old]);
    // A third secret ends the first at once, whatever its grace period.
    let third = credential(2);
    place.regenerate_key(&w, id, third.clone(), Some(after(90)), &someone(), after(2)).await.unwrap();
    let current = stored(&third);
    let old = Credential { valid_until: Some(after(90)), ..stored(&second) };
    assert_eq!(credentials(&place, id).await, [current, old]);
}

pub(crate) async fn a_grace_that_is_over_keeps_nothing(place: Place) {
    let w = place.tenant("w1").await;
    let id = place.key_in(&w, "k").await.key.id;
    for old_until in [None, Some(after(5)), Some(T0)] {
        let new = credential(1);
        place.regenerate_key(&w, id, new.clone(), old_until, &someone(), after(5)).await.unwrap();
        let only = stored(&new);
        assert_eq!(credentials(&place, id).await, [only], "{old_until:?}");
    }
}

pub(crate) async fn a_rehash_replaces_one_digest(place: Place) {
    let w = place.tenant("w1").await;
    let new = new_key(&w, "k");
    let (id, first) = (new.key.id, new.credential.clone());
    let created = place.create_key(new, &someone(), T0).await.unwrap().value;
    let second = credential(1);
    place.regenerate_key(&w, id, second.clone(), Some(after(60)), &someone(), T0).await.unwrap();
    let (new_first, new_second) = (credential(2).digest, credential(2).digest);
    let v1 = place.rehash_key(id, second.digest, new_second, 2).await.unwrap().unwrap();
    let v2 = place.rehash_key(id, first.digest, new_first, 2).await.unwrap().unwrap();
    assert!(v2 > v1);
    assert_eq!(place.rehash_key(id, first.digest, new_first, 2).await.unwrap(), None);
    // The digests are new, the secrets are the same.
    let current = Credential { digest: new_second, pepper_version: 2, ..stored(&second) };
    let old =
        Credential { digest: new_first, pepper_version: 2, valid_until: Some(after(60)), ..stored(&first) };
    assert_eq!(credentials(&place, id).await, [current, old]);
    // This is not an administrative change: neither the time of the last change nor the audit trail changes.
    assert_eq!(place.key(&w, id).await.unwrap(), Some(created));
}

pub(crate) async fn workspaces_do_not_see_each_others_keys(place: Place) {
    let (w1, w2) = (place.tenant("w1").await, place.tenant("w2").await);
    let mine = place.key_in(&w1, "mine").await;
    let id = mine.key.id;
    let missing = |error: StoreError| assert!(matches!(error, StoreError::NotFound("key")), "{error}");
    assert_eq!(place.key(&w2, id).await.unwrap(), None);
    assert_eq!(names(&place, &w2, KeyFilter::default()).await, [""; 0]);
    assert_eq!(search(&place, &w2, "mine").await, [""; 0]);
    missing(place.update_key(&w2, id, rename("theirs"), &someone(), T0).await.unwrap_err());
    missing(place.delete_key(&w2, id, &someone(), T0).await.unwrap_err());
    missing(place.regenerate_key(&w2, id, credential(1), None, &someone(), T0).await.unwrap_err());
    assert_eq!(place.key(&w1, id).await.unwrap(), Some(mine));
}
