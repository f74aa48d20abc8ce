//! Plans and workspaces.

use crate::place::{
    PLAN_RATE, Place, T0, after, everything, new_key, page, plan, plan_id, someone, workspace_id,
};
use keygate::model::calendar::{Calendar, WeekDay, zone};
use keygate::model::grant::{GRANTS_MAX, Grant, GrantedLimit};
use keygate::model::id::GrantId;
use keygate::model::key::{Ceiling, Measure, Owner, Per};
use keygate::store::{
    AuditFilter, EndUserAdmission, KeyFilter, KeyPatch, PlanPatch, PlanRecord, StoreError, WorkspacePatch,
    WorkspaceRecord,
};
use serde_json::json;

fn moved_to(plan: &str) -> WorkspacePatch {
    WorkspacePatch { plan_id: Some(plan_id(plan)), ..WorkspacePatch::default() }
}

pub(crate) async fn an_absent_plan_or_workspace_is_none(place: Place) {
    assert_eq!(place.plan(&plan_id("none")).await.unwrap(), None);
    assert_eq!(place.workspace(&workspace_id("none")).await.unwrap(), None);
    assert_eq!(place.plans(everything()).await.unwrap().total, 0);
    assert_eq!(place.workspaces(everything()).await.unwrap().total, 0);
    let error = place.update_plan(&plan_id("none"), PlanPatch::default(), &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("plan")), "{error}");
}

pub(crate) async fn a_plan_reads_back_exactly(place: Place) {
    let mut gold = plan("gold");
    gold.description = "50 % more 中".into();
    gold.plan.end_user_quota = (1 << 53) - 1;
    gold.plan.limits =
        [Ceiling { of: Owner::Workspace, count: Measure::Requests, per: Per::Week, max: 0 }].into();
    gold.plan.calendar =
        Calendar { zone: zone("Asia/Shanghai").unwrap(), month_day: 15, week_day: WeekDay::Sunday };
    let written = place.create_plan(gold.clone(), &someone(), T0).await.unwrap();
    assert_eq!(written.value, gold);
    assert_eq!(place.plan(&plan_id("gold")).await.unwrap(), Some(gold));
}

pub(crate) async fn a_plan_id_is_used_once(place: Place) {
    place.create_plan(plan("gold"), &someone(), T0).await.unwrap();
    let mut other = plan("gold");
    other.description = "other".into();
    let error = place.create_plan(other, &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists("plan")), "{error}");
    assert_eq!(place.plan(&plan_id("gold")).await.unwrap(), Some(plan("gold")));
    place.create_plan(plan("Gold"), &someone(), T0).await.unwrap();
}

pub(crate) async fn a_patched_plan_keeps_the_rest(place: Place) {
    place.create_plan(plan("gold"), &someone(), T0).await.unwrap();
    let patch = PlanPatch {
        end_user_quota: Some(0),
        default_daily_request_limit: Some(None),
        calendar: Some(Calendar { month_day: 31, ..Calendar::UTC }),
        ..PlanPatch::default()
    };
    let written = place.update_plan(&plan_id("gold"), patch, &someone(), after(1)).await.unwrap();
    let mut expected = PlanRecord { updated_at: after(1), ..plan("gold") };
    expected.plan.end_user_quota = 0;
    expected.plan.default_daily_request_limit = None;
    expected.plan.calendar.month_day = 31;
    assert_eq!(written.value, expected);
    assert_eq!(place.plan(&plan_id("gold")).await.unwrap(), Some(expected));
    let too_many =
        [Ceiling { of: Owner::Workspace, count: Measure::Requests, per: Per::Day, max: 1 }; 9].into();
    let patch = PlanPatch { limits: Some(too_many), ..PlanPatch::default() };
    let error = place.update_plan(&plan_id("gold"), patch, &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "limits", .. }), "{error}");
}

pub(crate) async fn a_lowered_plan_leaves_keys_alone(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let before = place.version().await.unwrap();
    let patch = PlanPatch { api_ops_rate_limit: Some(1), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), patch, &someone(), T0).await.unwrap();
    assert_eq!(place.key(&w, key.key.id).await.unwrap(), Some(key.clone()));
    assert_eq!(place.feed(before).await, ["plan basic"]);
    // Such a key can still be renamed and disabled.
    let patch = KeyPatch { is_active: Some(false), ..KeyPatch::default() };
    place.update_key(&w, key.key.id, patch, &someone(), T0).await.unwrap();
}

pub(crate) async fn a_plan_in_use_stays(place: Place) {
    place.tenant("w1").await;
    place.tenant("w2").await;
    let error = place.delete_plan(&plan_id("basic"), &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::PlanInUse { workspaces: 2 }), "{error}");
    assert!(place.plan(&plan_id("basic")).await.unwrap().is_some());
    place.create_plan(plan("other"), &someone(), T0).await.unwrap();
    for w in ["w1", "w2"] {
        place
            .put_workspace(&workspace_id(w), moved_to("other"), &plan_id("basic"), &someone(), T0)
            .await
            .unwrap();
    }
    place.delete_plan(&plan_id("basic"), &someone(), T0).await.unwrap();
    assert_eq!(place.plan(&plan_id("basic")).await.unwrap(), None);
    let error = place.delete_plan(&plan_id("basic"), &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("plan")), "{error}");
}

pub(crate) async fn a_plan_can_come_back(place: Place) {
    place.create_plan(plan("gold"), &someone(), T0).await.unwrap();
    place.delete_plan(&plan_id("gold"), &someone(), T0).await.unwrap();
    let error =
        place.ensure_workspace(&workspace_id("w"), &plan_id("gold"), &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("plan")), "{error}");
    let again = PlanRecord { created_at: after(1), updated_at: after(1), ..plan("gold") };
    place.create_plan(again.clone(), &someone(), after(1)).await.unwrap();
    assert_eq!(place.plan(&plan_id("gold")).await.unwrap(), Some(again));
    place.ensure_workspace(&workspace_id("w"), &plan_id("gold"), &someone(), T0).await.unwrap();
}

pub(crate) async fn plans_are_listed_by_id(place: Place) {
    for id in ["b", "a", "B", "c", "a.1"] {
        place.create_plan(plan(id), &someone(), T0).await.unwrap();
    }
    for (number, size, expected) in [
        (1, 3, vec!["B", "a", "a.1"]),
        (2, 3, vec!["b", "c"]),
        (3, 3, vec![]),
        (1, 5, vec!["B", "a", "a.1", "b", "c"]),
    ] {
        let found = place.plans(page(number, size)).await.unwrap();
        let ids: Vec<&str> = found.items.iter().map(|record| record.plan.id.as_str()).collect();
        assert_eq!((ids, found.total), (expected, 5), "page {number} of {size}");
    }
}

pub(crate) async fn callers_at_once_that_make_one_workspace_draw_one_number(place: Place) {
    place.create_plan(plan("a"), &someone(), T0).await.unwrap();
    let before = place.version().await.unwrap();
    let (id, a, by) = (workspace_id("w1"), plan_id("a"), someone());
    let callers = (0..16).map(|n| place.ensure_workspace(&id, &a, &by, after(n)));
    let made = futures_util::future::try_join_all(callers).await.unwrap();
    let reached = place.version().await.unwrap();
    assert_eq!(reached.0, before.0 + 1);
    assert!(made.iter().all(|written| written.version == reached && written.value == made[0].value));
}

pub(crate) async fn a_workspace_is_made_once(place: Place) {
    place.create_plan(plan("a"), &someone(), T0).await.unwrap();
    place.create_plan(plan("b"), &someone(), T0).await.unwrap();
    let id = workspace_id("w1");
    let by = someone();
    let (a, b) = (plan_id("a"), plan_id("b"));
    let first = place.ensure_workspace(&id, &a, &by, T0).await.unwrap();
    let (one, two) = tokio::join!(
        place.ensure_workspace(&id, &b, &by, after(1)),
        place.ensure_workspace(&id, &b, &by, after(2)),
    );
    for again in [one.unwrap(), two.unwrap()] {
        assert_eq!((again.value, again.version), (first.value.clone(), first.version));
    }
    let expected = WorkspaceRecord {
        id: id.clone(),
        name: String::new(),
        plan_id: a,
        end_users: 0,
        grants: Box::default(),
        created_at: T0,
        updated_at: T0,
    };
    assert_eq!(place.workspace(&id).await.unwrap(), Some(expected));
}

pub(crate) async fn a_workspace_needs_a_plan(place: Place) {
    let (id, none) = (workspace_id("w1"), plan_id("none"));
    let missing = |error: StoreError| assert!(matches!(error, StoreError::NotFound("plan")), "{error}");
    missing(place.ensure_workspace(&id, &none, &someone(), T0).await.unwrap_err());
    missing(place.put_workspace(&id, WorkspacePatch::default(), &none, &someone(), T0).await.unwrap_err());
    assert_eq!(place.workspace(&id).await.unwrap(), None);
    let w = place.tenant("w2").await;
    missing(place.put_workspace(&w, moved_to("none"), &plan_id("basic"), &someone(), T0).await.unwrap_err());
    assert_eq!(place.workspace(&w).await.unwrap().unwrap().plan_id, plan_id("basic"));
}

pub(crate) async fn put_makes_and_changes_a_workspace(place: Place) {
    place.create_plan(plan("a"), &someone(), T0).await.unwrap();
    place.create_plan(plan("b"), &someone(), T0).await.unwrap();
    let (id, a) = (workspace_id("w1"), plan_id("a"));
    let named = WorkspacePatch { name: Some("W".into()), plan_id: None };
    let made = place.put_workspace(&id, named, &a, &someone(), T0).await.unwrap();
    assert_eq!((&*made.value.name, &made.value.plan_id), ("W", &a));
    let changed = place.put_workspace(&id, moved_to("b"), &a, &someone(), after(1)).await.unwrap();
    assert!(changed.version > made.version);
    let expected = WorkspaceRecord { plan_id: plan_id("b"), updated_at: after(1), ..made.value };
    assert_eq!(changed.value, expected);
    assert_eq!(place.workspace(&id).await.unwrap(), Some(expected.clone()));
    let same = place.put_workspace(&id, WorkspacePatch::default(), &a, &someone(), after(2)).await.unwrap();
    assert_eq!(same.value, WorkspaceRecord { updated_at: after(2), ..expected });
}

pub(crate) async fn workspaces_are_listed_newest_first(place: Place) {
    place.create_plan(plan("a"), &someone(), T0).await.unwrap();
    for (id, seconds) in [("w2", 2), ("w1", 1), ("w3b", 3), ("w3a", 3)] {
        place.ensure_workspace(&workspace_id(id), &plan_id("a"), &someone(), after(seconds)).await.unwrap();
    }
    for (number, size, expected) in [
        (1, 3, vec!["w3a", "w3b", "w2"]),
        (2, 3, vec!["w1"]),
        (2, 4, vec![]),
        (1, 4, vec!["w3a", "w3b", "w2", "w1"]),
    ] {
        let found = place.workspaces(page(number, size)).await.unwrap();
        let ids: Vec<&str> = found.items.iter().map(|record| record.id.as_str()).collect();
        assert_eq!((ids, found.total), (expected, 4), "page {number} of {size}");
    }
}

pub(crate) async fn a_workspace_with_keys_is_deleted_by_force_only(place: Place) {
    let (w, other) = (place.tenant("w1").await, place.tenant("w2").await);
    let keys = [place.key_in(&w, "a").await.key.id, place.key_in(&w, "b").await.key.id];
    let kept = place.key_in(&other, "a").await;
    for (workspace, name) in [(&w, "ada"), (&w, "bob"), (&other, "ada")] {
        place.admit_end_user(workspace, name, T0).await.unwrap();
    }
    let before = place.version().await.unwrap();
    let error = place.delete_workspace(&w, false, &someone(), after(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::WorkspaceInUse { keys: 2 }), "{error}");
    assert_eq!((place.version().await.unwrap(), place.was_workspace(&w).await.unwrap()), (before, false));

    let deleted = place.delete_workspace(&w, true, &someone(), after(1)).await.unwrap();
    assert_eq!((deleted.value, deleted.version), (2, place.version().await.unwrap()));
    let mut feed = place.feed(before).await;
    // The workspace goes after everything that refers to it.
    assert_eq!(feed.pop().as_deref(), Some("workspace w1 removed"));
    let mut expected: Vec<_> = keys.iter().map(|id| format!("key {id} removed")).collect();
    expected.extend(["ada", "bob"].map(|name| format!("end user w1/{name} removed")));
    feed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(feed, expected);

    assert_eq!(place.workspace(&w).await.unwrap(), None);
    assert!(place.was_workspace(&w).await.unwrap() && !place.was_workspace(&other).await.unwrap());
    let listed = place.workspaces(everything()).await.unwrap();
    assert_eq!((listed.total, &listed.items[0].id), (1, &other));
    assert_eq!(place.keys(&w, &KeyFilter::default(), everything()).await.unwrap().total, 0);
    assert_eq!(place.end_users(&w, None, everything()).await.unwrap().total, 0);
    assert_eq!(place.key(&other, kept.key.id).await.unwrap(), Some(kept));
    assert_eq!(place.end_users(&other, None, everything()).await.unwrap().total, 1);
    // Nothing brings it back by accident, and statistics and the audit trail stay.
    let error = place.ensure_workspace(&w, &plan_id("basic"), &someone(), after(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::WorkspaceDeleted), "{error}");
    let error = place.create_key(new_key(&w, "c"), &someone(), after(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("workspace")), "{error}");
    let error = place.admit_end_user(&w, "eve", after(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("workspace")), "{error}");
    let error = place.delete_workspace(&w, true, &someone(), after(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("workspace")), "{error}");
    assert!(place.stats(&w, keys[0], after(2)).await.unwrap().is_some());
    let filter = AuditFilter { action: Some("workspace.delete".into()), ..AuditFilter::default() };
    let lines = place.audit(Some(&w), &filter, everything()).await.unwrap().items;
    assert_eq!((lines.len(), &*lines[0].target), (1, "w1"));
    assert_eq!((&lines[0].changes["keys"], &lines[0].changes["end_users"]), (&json!(2), &json!(2)));
}

pub(crate) async fn a_deleted_workspace_comes_back_only_when_somebody_says_so(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "a").await;
    place.admit_end_user(&w, "ada", T0).await.unwrap();
    place.create_plan(plan("gold"), &someone(), T0).await.unwrap();
    place.delete_workspace(&w, true, &someone(), after(1)).await.unwrap();
    // No workspace is on its plan any more.
    place.delete_plan(&plan_id("basic"), &someone(), after(1)).await.unwrap();
    let (patch, gold) = (WorkspacePatch::default(), plan_id("gold"));
    let again = place.put_workspace(&w, patch, &gold, &someone(), after(2)).await.unwrap();
    let expected = WorkspaceRecord {
        id: w.clone(),
        name: String::new(),
        plan_id: gold,
        end_users: 0,
        grants: Box::default(),
        created_at: after(2),
        updated_at: after(2),
    };
    assert_eq!(again.value, expected);
    assert_eq!(place.workspace(&w).await.unwrap(), Some(expected));
    assert_eq!(place.feed(again.version).await, Vec::<String>::new());
    // Its keys can be restored one by one, as after their own deletion.
    assert_eq!(place.keys(&w, &KeyFilter::default(), everything()).await.unwrap().total, 0);
    let restored = place.restore_key(&w, key.key.id, &[1], &someone(), after(3)).await.unwrap();
    assert_eq!((restored.value.key.id, restored.value.name), (key.key.id, key.name));
    assert!(matches!(
        place.admit_end_user(&w, "ada", after(3)).await.unwrap(),
        EndUserAdmission::Admitted(_)
    ));
}

pub(crate) async fn a_plan_that_keeps_no_deleted_keys_keeps_none_of_a_workspace(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "a").await;
    let patch = PlanPatch { deleted_keys_days: Some(0), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), patch, &someone(), T0).await.unwrap();
    place.delete_workspace(&w, true, &someone(), after(1)).await.unwrap();
    let patch = PlanPatch { deleted_keys_days: Some(30), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), patch, &someone(), T0).await.unwrap();
    place
        .put_workspace(&w, WorkspacePatch::default(), &plan_id("basic"), &someone(), after(2))
        .await
        .unwrap();
    let error = place.restore_key(&w, key.key.id, &[1], &someone(), after(3)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotRestorable(_) | StoreError::NotFound("key")), "{error}");
}

fn grant(limit: GrantedLimit, amount: u64, until: u64) -> Grant {
    Grant {
        id: GrantId::new(T0),
        limit,
        amount,
        reason: "a \"launch\" 中".into(),
        created_by: "ada".into(),
        created_at: T0,
        until: after(until),
    }
}

pub(crate) async fn grants_add_up_end_by_themselves_and_can_be_taken_back(place: Place) {
    let w = place.tenant("w1").await;
    let patch = PlanPatch { end_user_quota: Some(1), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), patch, &someone(), T0).await.unwrap();
    let before = place.version().await.unwrap();
    let [one, two] = [grant(GrantedLimit::EndUserQuota, 1, 10), grant(GrantedLimit::EndUserQuota, 2, 20)];
    for one in [&one, &two] {
        let written = place.create_grant(&w, one.clone(), &someone(), T0).await.unwrap();
        assert_eq!((&written.value, written.version), (one, place.version().await.unwrap()));
    }
    let stored = place.workspace(&w).await.unwrap().unwrap();
    assert_eq!(*stored.grants, [one.clone(), two.clone()]);
    assert_eq!(place.feed(before).await, ["workspace w1 on basic with 2 grants"]);
    // A change of the workspace keeps them.
    let named = WorkspacePatch { name: Some("W".into()), plan_id: None };
    let put = place.put_workspace(&w, named, &plan_id("basic"), &someone(), T0).await.unwrap();
    assert_eq!(put.value.grants, stored.grants);

    let room = async |name: &str, seconds| match place.admit_end_user(&w, name, after(seconds)).await.unwrap()
    {
        EndUserAdmission::Admitted(_) => None,
        EndUserAdmission::Full { quota } => Some(quota),
    };
    for name in ["a", "b", "c", "d"] {
        assert_eq!(room(name, 9).await, None, "{name}");
    }
    assert_eq!(room("e", 9).await, Some(4));
    assert_eq!(room("e", 10).await, Some(3));
    assert_eq!(room("e", 20).await, Some(1));
    // Who is there stays.
    assert_eq!(room("d", 20).await, None);
    place.delete_grant(&w, two.id, &someone(), after(5)).await.unwrap();
    assert_eq!(room("e", 9).await, Some(2));
    let error = place.delete_grant(&w, two.id, &someone(), after(5)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("grant")), "{error}");
    let error = place.create_grant(&workspace_id("none"), one, &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("workspace")), "{error}");
    let lines = place.audit(Some(&w), &AuditFilter::default(), everything()).await.unwrap().items;
    let actions: Vec<_> =
        lines.iter().map(|line| &*line.action).filter(|a| a.starts_with("grant.")).collect();
    assert_eq!(actions, ["grant.delete", "grant.create", "grant.create"]);
    assert_eq!((&lines[0].changes["amount"], &lines[0].target), (&json!(2), &two.id.to_string()));
}

pub(crate) async fn a_granted_rate_allows_keys_above_the_plan(place: Place) {
    let w = place.tenant("w1").await;
    let above = || {
        let mut key = new_key(&w, "fast");
        key.key.ceilings.rate_limit = PLAN_RATE + 1;
        key
    };
    let error = place.create_key(above(), &someone(), after(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::RateAbovePlan { limit: PLAN_RATE, .. }), "{error}");
    let rate = grant(GrantedLimit::ApiOpsRateLimit, 1, 10);
    place.create_grant(&w, rate, &someone(), T0).await.unwrap();
    place.create_key(above(), &someone(), after(1)).await.unwrap();
    let error = place.create_key(above(), &someone(), after(10)).await.unwrap_err();
    assert!(matches!(error, StoreError::RateAbovePlan { limit: PLAN_RATE, .. }), "{error}");
}

pub(crate) async fn a_grant_is_for_a_limit_of_the_plan_and_there_are_not_too_many(place: Place) {
    let w = place.tenant("w1").await;
    let month = GrantedLimit::Further { of: Owner::Workspace, count: Measure::Requests, per: Per::Month };
    let error = place.create_grant(&w, grant(month, 1, 10), &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "limit", .. }), "{error}");
    let monthly =
        [Ceiling { of: Owner::Workspace, count: Measure::Requests, per: Per::Month, max: 5 }].into();
    let patch = PlanPatch { limits: Some(monthly), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), patch, &someone(), T0).await.unwrap();
    for _ in 0..GRANTS_MAX {
        place.create_grant(&w, grant(month, 1, 10), &someone(), T0).await.unwrap();
    }
    let error = place.create_grant(&w, grant(month, 1, 20), &someone(), after(9)).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { .. }), "{error}");
    // Those that have ended make room.
    place.create_grant(&w, grant(month, 1, 20), &someone(), after(10)).await.unwrap();
    assert_eq!(place.workspace(&w).await.unwrap().unwrap().grants.len(), 1);
}
