//! The change feed and the agreement on peppers.

use crate::place::workspace_id;
use crate::place::{Place, T0, after, credential, everything, new_key, plan, plan_id, record, someone};
use keygate::store::{AuditFilter, Change, Credential, EndUserAdmission, KeyFilter, KeyPatch, PlanPatch};
use keygate::store::{StoreError, Version, WorkspacePatch};
use tokio::sync::mpsc;

pub(crate) async fn an_empty_store_has_no_changes(place: Place) {
    assert_eq!(place.version().await.unwrap(), Version(0));
    let (reached, changes) = place.all_changes(Version(0)).await;
    assert_eq!((reached, changes.len()), (Version(0), 0));
    let (reached, changes) = place.all_changes(Version(u64::MAX)).await;
    assert_eq!((reached, changes.len()), (Version(0), 0));
}

pub(crate) async fn numbers_strictly_increase(place: Place) {
    let by = &someone();
    let mut numbers = Vec::new();
    numbers.push(place.create_plan(plan("p"), by, T0).await.unwrap().version);
    let (w, p) = (workspace_id("w"), plan_id("p"));
    numbers.push(place.ensure_workspace(&w, &p, by, T0).await.unwrap().version);
    numbers.push(place.put_workspace(&w, WorkspacePatch::default(), &p, by, T0).await.unwrap().version);
    numbers.push(place.update_plan(&p, PlanPatch::default(), by, T0).await.unwrap().version);
    let new = new_key(&w, "k");
    let (id, digest) = (new.key.id, new.credential.digest);
    numbers.push(place.create_key(new, by, T0).await.unwrap().version);
    numbers.push(place.rehash_key(id, digest, credential(2).digest, 2).await.unwrap().unwrap());
    numbers.push(place.update_key(&w, id, KeyPatch::default(), by, T0).await.unwrap().version);
    numbers.push(place.regenerate_key(&w, id, credential(1), None, by, T0).await.unwrap().version);
    numbers.push(place.delete_key(&w, id, by, T0).await.unwrap().version);
    let EndUserAdmission::Admitted(end_user) = place.admit_end_user(&w, "u", T0).await.unwrap() else {
        panic!("the plan has room")
    };
    numbers.push(place.delete_end_user(&w, end_user, by, T0).await.unwrap().version);
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert_eq!(place.version().await.unwrap(), numbers[numbers.len() - 1]);
}

pub(crate) async fn only_what_changed_comes(place: Place) {
    let w1 = place.tenant("w1").await;
    place.tenant("w2").await;
    let (a, b) = (place.key_in(&w1, "a").await, place.key_in(&w1, "b").await);
    let start = place.version().await.unwrap();
    assert_eq!(place.feed(start).await, [""; 0]);
    let first = place.update_key(&w1, b.key.id, KeyPatch::default(), &someone(), T0).await.unwrap().version;
    assert_eq!(place.feed(start).await, [format!("key {}", b.key.id)]);
    let named = WorkspacePatch { name: Some("n".into()), plan_id: None };
    place.put_workspace(&w1, named, &plan_id("basic"), &someone(), T0).await.unwrap();
    place.update_key(&w1, a.key.id, KeyPatch::default(), &someone(), T0).await.unwrap();
    assert_eq!(place.feed(first).await, ["workspace w1 on basic".to_owned(), format!("key {}", a.key.id)]);
    let (reached, _) = place.all_changes(first).await;
    assert_eq!(place.feed(reached).await, [""; 0]);
}

pub(crate) async fn the_first_load_comes_in_order(place: Place) {
    let w = place.tenant("w1").await;
    let (a, b) = (place.key_in(&w, "a").await.key.id, place.key_in(&w, "b").await.key.id);
    // Written last, but must come first.
    place.update_plan(&plan_id("basic"), PlanPatch::default(), &someone(), T0).await.unwrap();
    let expected =
        ["plan basic".to_owned(), "workspace w1 on basic".into(), format!("key {a}"), format!("key {b}")];
    assert_eq!(place.feed(Version(0)).await, expected);
}

pub(crate) async fn a_plan_goes_after_the_workspaces_that_left_it(place: Place) {
    let w = place.tenant("w1").await;
    let start = place.version().await.unwrap();
    place.create_plan(plan("next"), &someone(), T0).await.unwrap();
    let moved = WorkspacePatch { plan_id: Some(plan_id("next")), ..WorkspacePatch::default() };
    place.put_workspace(&w, moved, &plan_id("next"), &someone(), T0).await.unwrap();
    place.delete_plan(&plan_id("basic"), &someone(), T0).await.unwrap();
    assert_eq!(place.feed(start).await, ["plan next", "workspace w1 on next", "plan basic removed"]);
    place.create_plan(plan("basic"), &someone(), T0).await.unwrap();
    assert_eq!(place.feed(start).await, ["plan next", "plan basic", "workspace w1 on next"]);
}

pub(crate) async fn a_deleted_key_is_a_tombstone(place: Place) {
    let w = place.tenant("w1").await;
    let start = place.version().await.unwrap();
    let id = place.key_in(&w, "k").await.key.id;
    let deleted = place.delete_key(&w, id, &someone(), T0).await.unwrap().version;
    let (reached, changes) = place.all_changes(start).await;
    assert_eq!(reached, deleted);
    match changes.as_slice() {
        [Change::KeyRemoved { id: gone, version }] => assert_eq!((*gone, *version), (id, deleted)),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn a_forgotten_end_user_stays_a_tombstone(place: Place) {
    let w = place.tenant("w1").await;
    let start = place.version().await.unwrap();
    for _ in 0..2 {
        let EndUserAdmission::Admitted(id) = place.admit_end_user(&w, "u", T0).await.unwrap() else {
            panic!("the plan has room")
        };
        let before = place.version().await.unwrap();
        place.delete_end_user(&w, id, &someone(), T0).await.unwrap();
        assert_eq!(place.feed(before).await, ["end user w1/u removed"]);
    }
    // It exists again under another id; nodes that know the old id must still learn of its deletion.
    place.admit_end_user(&w, "u", T0).await.unwrap();
    assert_eq!(place.feed(start).await, ["end user w1/u removed"]);
}

pub(crate) async fn a_key_comes_with_its_credentials(place: Place) {
    let w = place.tenant("w1").await;
    let new = new_key(&w, "k");
    let (expected, digest, secret) = (new.key.clone(), new.credential.digest, new.credential.secret);
    let written = place.create_key(new, &someone(), T0).await.unwrap();
    let (_, changes) = place.all_changes(Version(0)).await;
    let Some(Change::Key(change)) = changes.last() else { panic!("{changes:?}") };
    assert_eq!((&change.key, change.version), (&expected, written.version));
    let only = Credential { digest, pepper_version: 1, secret, valid_until: None };
    assert_eq!(change.credentials.as_slice(), [only]);
    assert!(!format!("{change:?}").contains(&format!("{:?}", digest.0)));
}

pub(crate) async fn a_refused_write_draws_no_number(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let before = place.version().await.unwrap();
    place.create_key(new_key(&w, "k"), &someone(), T0).await.unwrap_err();
    place.create_plan(plan("basic"), &someone(), T0).await.unwrap_err();
    place.delete_plan(&plan_id("basic"), &someone(), T0).await.unwrap_err();
    let none = place.rehash_key(key.key.id, credential(1).digest, credential(1).digest, 2).await.unwrap();
    assert_eq!((none, place.version().await.unwrap()), (None, before));
    assert_eq!(place.feed(before).await, [""; 0]);
}

pub(crate) async fn usage_and_newcomers_draw_no_number(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let before = place.version().await.unwrap();
    place.append(&[record(&key, T0)]).await.unwrap();
    place.admit_end_user(&w, "u", T0).await.unwrap();
    assert_eq!(place.version().await.unwrap(), before);
}

pub(crate) async fn batches_are_bounded(place: Place) {
    let w = place.tenant("w1").await;
    for n in 0..1_500 {
        place.key_in(&w, &n.to_string()).await;
    }
    let (to, mut from) = mpsc::channel::<Vec<Change>>(1);
    let collect = async {
        let mut sizes = Vec::new();
        while let Some(batch) = from.recv().await {
            sizes.push(batch.len());
        }
        sizes
    };
    let (reached, sizes) = tokio::join!(place.changes(Version(0), to), collect);
    assert_eq!(reached.unwrap(), place.version().await.unwrap());
    assert_eq!(sizes.iter().sum::<usize>(), 1_502);
    assert!(sizes.iter().all(|size| (1..=1_000).contains(size)), "{sizes:?}");
}

pub(crate) async fn a_receiver_that_goes_ends_the_feed(place: Place) {
    place.tenant("w1").await;
    let (to, from) = mpsc::channel(1);
    drop(from);
    let error = place.changes(Version(0), to).await.unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    assert_eq!(place.feed(Version(0)).await.len(), 2);
}

pub(crate) async fn a_reopened_store_is_as_it_was(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let gone = place.key_in(&w, "gone").await;
    place.delete_key(&w, gone.key.id, &someone(), T0).await.unwrap();
    place.admit_end_user(&w, "u", T0).await.unwrap();
    place.append(&[record(&key, T0)]).await.unwrap();
    place.agree_on_peppers(&[(1, [1; 32])]).await.unwrap();
    let facts = async |place: &Place| {
        (
            place.version().await.unwrap(),
            place.feed(Version(0)).await,
            place.keys(&w, &KeyFilter::default(), everything()).await.unwrap(),
            place.end_users(&w, None, everything()).await.unwrap(),
            place.stats(&w, key.key.id, T0).await.unwrap(),
            place.audit(None, &AuditFilter::default(), everything()).await.unwrap(),
        )
    };
    let before = facts(&place).await;
    assert_eq!(before.2.items[0].usage_count, 1);
    let place = place.reopen().await;
    assert_eq!(facts(&place).await, before);
    place.agree_on_peppers(&[(1, [2; 32])]).await.unwrap_err();
    let next = place.create_key(new_key(&w, "next"), &someone(), T0).await.unwrap();
    assert!(next.version > before.0);
}

pub(crate) async fn a_pepper_is_recognised(place: Place) {
    place.agree_on_peppers(&[(1, [1; 32])]).await.unwrap();
    place.agree_on_peppers(&[(1, [1; 32])]).await.unwrap();
    place.agree_on_peppers(&[(2, [2; 32]), (1, [1; 32])]).await.unwrap();
    let error = place.agree_on_peppers(&[(3, [3; 32]), (2, [9; 32]), (1, [1; 32])]).await.unwrap_err();
    assert!(matches!(&error, StoreError::WrongPepper(why) if why.starts_with("pepper 2 is not")), "{error}");
    // The refused set left nothing behind: another pepper 3 is still accepted.
    place.agree_on_peppers(&[(3, [4; 32]), (2, [2; 32]), (1, [1; 32])]).await.unwrap();
}

pub(crate) async fn a_pepper_in_use_cannot_be_missing(place: Place) {
    let w = place.tenant("w1").await;
    let old = (1, [1; 32]);
    let new = (2, [2; 32]);
    place.agree_on_peppers(&[old]).await.unwrap();
    let id = place.key_in(&w, "k").await.key.id;
    let missing = async || {
        let error = place.agree_on_peppers(&[new]).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::WrongPepper(why) if why.starts_with("pepper 1 is missing")),
            "{error}"
        );
    };
    missing().await;
    place.agree_on_peppers(&[new, old]).await.unwrap();
    place.regenerate_key(&w, id, credential(2), Some(after(60)), &someone(), T0).await.unwrap();
    // The previous secret still needs it, until its grace period is over.
    missing().await;
    place.update_key(&w, id, KeyPatch::default(), &someone(), after(60)).await.unwrap();
    place.agree_on_peppers(&[new]).await.unwrap();
    let other = place.key_in(&w, "other").await.key.id;
    missing().await;
    place.delete_key(&w, other, &someone(), T0).await.unwrap();
    place.agree_on_peppers(&[new]).await.unwrap();
}
