//! End users.

use crate::place::{PLAN_END_USERS, Place, T0, after, everything, page, plan_id, someone, workspace_id};
use keygate::model::id::{EndUserId, WorkspaceId};
use keygate::store::{EndUserAdmission, EndUserRecord, PlanPatch, StoreError};
use std::collections::HashSet;
use std::sync::Arc;

async fn admit(place: &Place, w: &WorkspaceId, other_id: &str) -> Option<EndUserId> {
    match place.admit_end_user(w, other_id, T0).await.unwrap() {
        EndUserAdmission::Admitted(id) => Some(id),
        EndUserAdmission::Full { .. } => None,
    }
}

async fn set_quota(place: &Place, end_user_quota: u64) {
    let patch = PlanPatch { end_user_quota: Some(end_user_quota), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), patch, &someone(), T0).await.unwrap();
}

async fn counted(place: &Place, w: &WorkspaceId) -> (u64, u64) {
    let counter = place.workspace(w).await.unwrap().unwrap().end_users;
    (counter, place.end_users(w, None, everything()).await.unwrap().total)
}

pub(crate) async fn a_known_end_user_is_the_same_again(place: Place) {
    let w = place.tenant("w1").await;
    let first = admit(&place, &w, "u").await.unwrap();
    assert_eq!(admit(&place, &w, "u").await, Some(first));
    let record = place.end_user(&w, first).await.unwrap().unwrap();
    assert_eq!((record.id, &record.workspace_id, &*record.other_id, record.created_at), (first, &w, "u", T0));
    assert_eq!(counted(&place, &w).await, (1, 1));
    assert_eq!(place.end_user(&w, EndUserId::new(T0)).await.unwrap(), None);
}

pub(crate) async fn end_users_that_move_keep_their_ids(place: Place) {
    let w = place.tenant("w1").await;
    let known = admit(&place, &w, "known").await.unwrap();
    set_quota(&place, 2).await;
    let moved = |other_id: &str| EndUserRecord {
        id: EndUserId::new(T0),
        workspace_id: w.clone(),
        other_id: other_id.into(),
        created_at: after(5),
    };
    let users = vec![moved("a"), moved("known"), moved("β"), moved("c")];
    // The quota applies to new end users; and a name keeps its first id.
    assert_eq!(place.restore_end_users(&w, users.clone(), &someone(), T0).await.unwrap(), 3);
    assert_eq!(place.restore_end_users(&w, users.clone(), &someone(), T0).await.unwrap(), 0);
    assert_eq!(counted(&place, &w).await, (4, 4));
    assert_eq!(admit(&place, &w, "known").await, Some(known));
    for user in [&users[0], &users[2], &users[3]] {
        assert_eq!(place.end_user(&w, user.id).await.unwrap().as_ref(), Some(user));
        assert_eq!(admit(&place, &w, &user.other_id).await, Some(user.id));
    }
    assert_eq!(admit(&place, &w, "new").await, None, "there is no room for newcomers");
    assert_eq!(place.restore_end_users(&w, Vec::new(), &someone(), T0).await.unwrap(), 0);
    let nowhere = place.restore_end_users(&workspace_id("nowhere"), users, &someone(), T0).await;
    assert!(matches!(nowhere, Err(StoreError::NotFound("workspace"))), "{nowhere:?}");
    let nul = place.restore_end_users(&w, vec![moved("a\0b")], &someone(), T0).await;
    assert!(matches!(nul, Err(StoreError::Invalid { .. })), "{nul:?}");
}

pub(crate) async fn a_full_plan_admits_the_known_only(place: Place) {
    let w = place.tenant("w1").await;
    let known = admit(&place, &w, "known").await.unwrap();
    for quota in [1, 0] {
        set_quota(&place, quota).await;
        let full = place.admit_end_user(&w, "new", T0).await.unwrap();
        assert_eq!(full, EndUserAdmission::Full { quota });
        assert_eq!(admit(&place, &w, "known").await, Some(known));
    }
    set_quota(&place, 2).await;
    assert!(admit(&place, &w, "new").await.is_some());
    assert_eq!(counted(&place, &w).await, (2, 2));
}

pub(crate) async fn of_a_thousand_at_once_the_quota_passes(place: Place) {
    let w = place.tenant("w1").await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..1_000 {
        let (store, w) = (Arc::clone(&place.store), w.clone());
        calls.spawn(async move { store.admit_end_user(&w, &format!("u{n}"), T0).await.unwrap() });
    }
    let mut admitted = HashSet::new();
    let mut full = 0;
    for outcome in calls.join_all().await {
        match outcome {
            EndUserAdmission::Admitted(id) => assert!(admitted.insert(id)),
            EndUserAdmission::Full { quota } => {
                assert_eq!(quota, PLAN_END_USERS);
                full += 1;
            }
        }
    }
    assert_eq!((admitted.len(), full), (100, 900));
    assert_eq!(counted(&place, &w).await, (100, 100));
}

pub(crate) async fn one_newcomer_many_times_at_once_is_one(place: Place) {
    let w = place.tenant("w1").await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (store, w) = (Arc::clone(&place.store), w.clone());
        calls.spawn(async move { store.admit_end_user(&w, "same", T0).await.unwrap() });
    }
    let outcomes = calls.join_all().await;
    assert!(matches!(outcomes[0], EndUserAdmission::Admitted(_)));
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]));
    assert_eq!(counted(&place, &w).await, (1, 1));
}

pub(crate) async fn deletion_makes_room(place: Place) {
    let w = place.tenant("w1").await;
    set_quota(&place, 1).await;
    let first = admit(&place, &w, "u").await.unwrap();
    assert_eq!(admit(&place, &w, "v").await, None);
    place.delete_end_user(&w, first, &someone(), T0).await.unwrap();
    assert_eq!(counted(&place, &w).await, (0, 0));
    let error = place.delete_end_user(&w, first, &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("end user")), "{error}");
    let again = admit(&place, &w, "u").await.unwrap();
    assert_ne!(again, first);
    assert_eq!(admit(&place, &w, "v").await, None);
    assert_eq!(counted(&place, &w).await, (1, 1));
}

pub(crate) async fn an_end_user_needs_a_workspace_and_a_sound_name(place: Place) {
    let error = place.admit_end_user(&workspace_id("none"), "u", T0).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("workspace")), "{error}");
    let w = place.tenant("w1").await;
    let error = place.admit_end_user(&w, "a\0b", T0).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "other_id", .. }), "{error}");
    assert_eq!(counted(&place, &w).await, (0, 0));
}

pub(crate) async fn names_are_exact(place: Place) {
    let w = place.tenant("w1").await;
    let all = ["u", "U", "u ", " u", "ü", "u\u{308}", "u%", "'u'", ""];
    for name in all {
        admit(&place, &w, name).await.unwrap();
    }
    for name in all {
        let found = place.end_users(&w, Some(name), everything()).await.unwrap();
        let names: Vec<&str> = found.items.iter().map(|record| record.other_id.as_str()).collect();
        assert_eq!((names, found.total), (vec![name], 1));
    }
    let beyond = place.end_users(&w, Some("u"), page(2, 1)).await.unwrap();
    assert_eq!((beyond.items.len(), beyond.total), (0, 1));
    assert_eq!(place.end_users(&w, Some("u_"), everything()).await.unwrap().items, []);
}

pub(crate) async fn end_users_are_listed_newest_first_and_paged(place: Place) {
    let w = place.tenant("w1").await;
    for n in [2, 0, 3, 1] {
        place.admit_end_user(&w, &format!("u{n}"), after(n)).await.unwrap();
    }
    for (number, size, expected) in [
        (1, 4, vec!["u3", "u2", "u1", "u0"]),
        (2, 4, vec![]),
        (1, 3, vec!["u3", "u2", "u1"]),
        (2, 3, vec!["u0"]),
        (9, 9, vec![]),
    ] {
        let found = place.end_users(&w, None, page(number, size)).await.unwrap();
        let names: Vec<&str> = found.items.iter().map(|record| record.other_id.as_str()).collect();
        assert_eq!((names, found.total), (expected, 4), "page {number} of {size}");
    }
}

pub(crate) async fn workspaces_do_not_see_each_others_end_users(place: Place) {
    let (w1, w2) = (place.tenant("w1").await, place.tenant("w2").await);
    set_quota(&place, 1).await;
    let mine = admit(&place, &w1, "u").await.unwrap();
    assert_eq!(place.end_user(&w2, mine).await.unwrap(), None);
    assert_eq!(place.end_users(&w2, Some("u"), everything()).await.unwrap().total, 0);
    let error = place.delete_end_user(&w2, mine, &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("end user")), "{error}");
    // Each workspace has its own quota, and the same name is another end user there.
    assert_ne!(admit(&place, &w2, "u").await.unwrap(), mine);
    assert_eq!((counted(&place, &w1).await, counted(&place, &w2).await), ((1, 1), (1, 1)));
}
