//! The audit trail.

use crate::place::workspace_id;
use crate::place::{Place, T0, after, credential, everything, new_key, page, plan, plan_id, someone};
use keygate::model::id::WorkspaceId;
use keygate::store::{
    Actor, AuditFilter, AuditRecord, EndUserAdmission, KeyPatch, PlanPatch, SignIn, WorkspacePatch,
};
use serde_json::json;

async fn lines(place: &Place, workspace: Option<&WorkspaceId>) -> Vec<AuditRecord> {
    place.audit(workspace, &AuditFilter::default(), everything()).await.unwrap().items
}

fn actions(lines: &[AuditRecord]) -> Vec<&str> {
    lines.iter().map(|line| line.action.as_str()).collect()
}

pub(crate) async fn every_act_leaves_a_line(place: Place) {
    let by = Actor {
        subject: "eve".into(),
        role: "platform",
        address: Some("2001:db8::7".parse().unwrap()),
        request_id: Some("r-1".into()),
    };
    let (p, w) = (plan_id("p"), workspace_id("w"));
    place.create_plan(plan("p"), &by, T0).await.unwrap();
    place.update_plan(&p, PlanPatch::default(), &by, T0).await.unwrap();
    place.ensure_workspace(&w, &p, &by, T0).await.unwrap();
    place.ensure_workspace(&w, &p, &by, T0).await.unwrap();
    place.put_workspace(&w, WorkspacePatch::default(), &p, &by, T0).await.unwrap();
    let id = place.create_key(new_key(&w, "k"), &by, T0).await.unwrap().value.key.id;
    place.update_key(&w, id, KeyPatch::default(), &by, T0).await.unwrap();
    place.regenerate_key(&w, id, credential(1), None, &by, T0).await.unwrap();
    place.delete_key(&w, id, &by, after(1)).await.unwrap();
    let EndUserAdmission::Admitted(user) = place.admit_end_user(&w, "u", T0).await.unwrap() else {
        panic!("the plan has room")
    };
    place.delete_end_user(&w, user, &by, T0).await.unwrap();
    place.create_plan(plan("q"), &by, T0).await.unwrap();
    place.delete_plan(&plan_id("q"), &by, T0).await.unwrap();
    let changes = json!({"routes": {"from": 1, "to": 2}}).as_object().unwrap().clone();
    let before = place.version().await.unwrap();
    place.note_reload("node-1", changes.clone(), &by, T0).await.unwrap();
    assert!(place.version().await.unwrap() > before);
    // A sign-in belongs to the workspace of the token, or to the platform if it has none; a refused one to the platform.
    place.note_sign_in(Some(&w), &SignIn::Done { name: Some("Ada".into()) }, &by, T0).await.unwrap();
    place.note_sign_in(None, &SignIn::Done { name: None }, &by, T0).await.unwrap();
    place.note_sign_in(None, &SignIn::Refused { reason: "no\0group".into() }, &by, T0).await.unwrap();
    // In the order of the writes, although nearly all have the same time.
    let of_workspace = lines(&place, Some(&w)).await;
    assert_eq!(
        actions(&of_workspace),
        [
            "console.sign_in",
            "enduser.delete",
            "key.delete",
            "key.regenerate",
            "key.update",
            "key.create",
            "workspace.update",
            "workspace.create"
        ]
    );
    assert_eq!(of_workspace[0].changes, json!({"name": "Ada"}));
    let of_platform = lines(&place, None).await;
    assert_eq!(of_platform[0].changes, json!({"reason": "no\u{fffd}group"}));
    assert_eq!((&of_platform[1].changes, &*of_platform[1].target), (&json!({}), "eve"));
    assert_eq!(
        actions(&of_platform),
        [
            "console.sign_in_refused",
            "console.sign_in",
            "config.reload",
            "plan.delete",
            "plan.create",
            "workspace.update",
            "workspace.create",
            "plan.update",
            "plan.create"
        ]
    );
    let line = &of_workspace[2];
    assert_eq!((line.at, &line.target, line.workspace_id.as_ref()), (after(1), &id.to_string(), Some(&w)));
    assert_eq!((&*line.subject, &*line.role), ("eve", "platform"));
    assert_eq!((line.address, line.request_id.as_deref()), (by.address, Some("r-1")));
    assert_eq!((&*of_platform[2].target, of_platform[2].workspace_id.as_ref()), ("node-1", None));
    assert_eq!((&of_platform[2].changes, &*of_platform[2].subject), (&json!(changes), "eve"));
    assert_eq!((&*of_platform[3].target, of_platform[3].workspace_id.as_ref()), ("q", None));
}

pub(crate) async fn an_update_says_from_what_to_what(place: Place) {
    let w = place.tenant("w1").await;
    let id = place.key_in(&w, "old").await.key.id;
    let patch = KeyPatch {
        name: Some("new".into()),
        rate_limit: Some(50),
        quota_limit: Some(Some(9)),
        expires_at: Some(Some(T0)),
        ..KeyPatch::default()
    };
    place.update_key(&w, id, patch, &someone(), T0).await.unwrap();
    let expected = json!({
        "name": {"from": "old", "to": "new"},
        "quota_limit": {"from": null, "to": 9},
        "expires_at": {"from": null, "to": T0.as_millis()},
    });
    assert_eq!(lines(&place, Some(&w)).await[0].changes, expected);
    place.update_key(&w, id, KeyPatch::default(), &someone(), T0).await.unwrap();
    assert_eq!(lines(&place, Some(&w)).await[0].changes, json!({}));
    let patch = PlanPatch { api_ops_rate_limit: Some(1), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), patch, &someone(), T0).await.unwrap();
    let expected = json!({"api_ops_rate_limit": {"from": 100, "to": 1}});
    assert_eq!(lines(&place, None).await[0].changes, expected);
    let created = lines(&place, Some(&w)).await;
    let created = created.iter().find(|line| line.action == "key.create").unwrap();
    assert_eq!((&created.changes["name"], &created.changes["type"]), (&json!("old"), &json!("app")));
}

pub(crate) async fn no_line_holds_a_digest(place: Place) {
    let w = place.tenant("w1").await;
    let new = new_key(&w, "k");
    let (id, first) = (new.key.id, new.credential.digest);
    place.create_key(new, &someone(), T0).await.unwrap();
    let second = credential(1);
    place.regenerate_key(&w, id, second.clone(), Some(after(1)), &someone(), T0).await.unwrap();
    place.delete_key(&w, id, &someone(), T0).await.unwrap();
    let text = format!("{:?}", lines(&place, Some(&w)).await);
    for digest in [first.0, second.digest.0] {
        let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{:?}", &digest[..16]);
        assert!(!text.contains(&hex) && !text.contains(list.trim_matches(['[', ']'])), "{text}");
    }
    assert!(text.contains("9fQz"), "the hint is there: {text}");
}

pub(crate) async fn a_refused_act_leaves_no_line(place: Place) {
    let w = place.tenant("w1").await;
    place.key_in(&w, "k").await;
    let before = (lines(&place, Some(&w)).await.len(), lines(&place, None).await.len());
    place.create_key(new_key(&w, "k"), &someone(), T0).await.unwrap_err();
    place.create_plan(plan("basic"), &someone(), T0).await.unwrap_err();
    place.delete_plan(&plan_id("basic"), &someone(), T0).await.unwrap_err();
    assert_eq!((lines(&place, Some(&w)).await.len(), lines(&place, None).await.len()), before);
}

pub(crate) async fn lines_belong_to_a_workspace_or_the_platform(place: Place) {
    let (w1, w2) = (place.tenant("w1").await, place.tenant("w2").await);
    place.key_in(&w1, "k").await;
    assert_eq!(actions(&lines(&place, Some(&w1)).await), ["key.create", "workspace.create"]);
    assert_eq!(actions(&lines(&place, Some(&w2)).await), ["workspace.create"]);
    assert_eq!(actions(&lines(&place, None).await), ["workspace.create", "workspace.create", "plan.create"]);
    assert_eq!(lines(&place, Some(&workspace_id("w3"))).await, []);
}

pub(crate) async fn lines_are_filtered_and_paged(place: Place) {
    let w = place.tenant("w1").await;
    let mut ids = Vec::new();
    for n in 0..4 {
        let name = format!("k{n}");
        ids.push(
            place
                .create_key(new_key(&w, &name), &someone(), after(n))
                .await
                .unwrap()
                .value
                .key
                .id
                .to_string(),
        );
    }
    let by = || AuditFilter { action: Some("key.create".into()), ..AuditFilter::default() };
    for (filter, expected) in [
        (by(), vec![3, 2, 1, 0]),
        (AuditFilter { target: Some(ids[2].clone()), ..by() }, vec![2]),
        (AuditFilter { from: Some(after(1)), ..by() }, vec![3, 2, 1]),
        (AuditFilter { to: Some(after(1)), ..by() }, vec![0]),
        (AuditFilter { from: Some(after(1)), to: Some(after(3)), ..by() }, vec![2, 1]),
        (AuditFilter { action: Some("key.%".into()), ..AuditFilter::default() }, vec![]),
    ] {
        let found = place.audit(Some(&w), &filter, everything()).await.unwrap();
        let targets: Vec<&String> = found.items.iter().map(|line| &line.target).collect();
        assert_eq!(targets, expected.iter().map(|n| &ids[*n]).collect::<Vec<_>>(), "{filter:?}");
        assert_eq!(found.total, u64::try_from(expected.len()).unwrap());
    }
    for (number, size, expected) in [(1, 3, 3), (2, 3, 1), (2, 4, 0), (3, 3, 0)] {
        let found = place.audit(Some(&w), &by(), page(number, size)).await.unwrap();
        assert_eq!((found.items.len(), found.total), (expected, 4), "page {number} of {size}");
    }
}
