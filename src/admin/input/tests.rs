//! What input types accept and refuse, with place and message.

use super::*;
use crate::clock::Timestamp;
use crate::model::calendar::{self, Calendar, WeekDay};
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::{Ceiling, KeyType, Measure, Owner, Per, Plan};
use crate::model::scope::{Scopes, check_granted};
use crate::store::StoreError;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const NOW: Timestamp = Timestamp::from_secs(1_767_225_600);

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

fn workspace() -> WorkspaceId {
    "ws-a".parse().expect("an id")
}

fn plan(rate: u32) -> Plan {
    let id = "basic".parse().expect("an id");
    Plan {
        id,
        api_ops_rate_limit: rate,
        end_user_quota: 1,
        default_daily_request_limit: Some(77),
        limits: Box::default(),
        calendar: Calendar::UTC,
    }
}

fn scopes(words: &[&str]) -> Scopes {
    Scopes::of(words.iter().copied(), check_granted).expect("scopes")
}

/// A change of a key that never expires.
fn change(body: &Map<String, Value>) -> Result<UpdateKeyInput, Vec<FieldError>> {
    UpdateKeyInput::read(body, None, NOW)
}

fn credential_for(kind: KeyType) -> crate::store::IssuedCredential {
    let peppers = Peppers::new(vec![(3, vec![7; 32])]).expect("a pepper");
    credential(&Secret::generate("sk", kind), "sk", &peppers)
}

/// `changes` applied to a valid body.
fn with(changes: Value) -> Map<String, Value> {
    let mut body = map(json!({"name": "n", "type": "app", "resource_id": "r"}));
    body.extend(map(changes));
    body
}

fn said(errors: Vec<FieldError>) -> Vec<(String, String)> {
    errors.into_iter().map(|e| (e.field, e.message)).collect()
}

/// Each row: changes to a valid body, the place of the mistake, and the start or a part of its message.
fn key_mistakes() -> Vec<(Value, &'static str, &'static str)> {
    let long = |n: usize| "x".repeat(n);
    let rate = "must be a whole number from 1 to 10000000";
    let any = "must be a whole number from 1 to 9007199254740991";
    let instant = "must be epoch seconds, epoch milliseconds or RFC 3339";
    let address = "must be an address or a network";
    let scopes = "must be a list of scopes";
    let scope = "must be 1 to 64 characters of A-Z a-z 0-9 . _ : / -";
    let twin = json!({"count": "requests", "per": "day", "max": 1});
    vec![
        (json!({"name": null}), "name", "is required"),
        (json!({"name": ""}), "name", "must be 1 to 255 characters"),
        (json!({"name": "   "}), "name", "must be 1 to 255 characters"),
        (json!({"name": long(256)}), "name", "must be 1 to 255 characters"),
        (json!({"name": "a\nb"}), "name", "without control characters"),
        (json!({"name": "a\u{0}b"}), "name", "without control characters"),
        (json!({"name": 7}), "name", "must be 1 to 255 characters"),
        (json!({"description": long(2_001)}), "description", "at most 2000 characters"),
        (json!({"description": "\u{0}"}), "description", "without NUL"),
        (json!({"description": []}), "description", "must be text"),
        (json!({"type": "robot"}), "type", "must be one of: app, rag, memory, agent, multi_agent"),
        (json!({"type": 1}), "type", "must be text"),
        (json!({"resource_id": null}), "resource_id", "is required for a key of type app"),
        (json!({"resource_id": ""}), "resource_id", "must be 1 to 255 printable"),
        (json!({"resource_id": long(256)}), "resource_id", "must be 1 to 255 printable"),
        (json!({"resource_id": " r"}), "resource_id", "without white space around"),
        (json!({"resource_id": "r\u{0}"}), "resource_id", "printable"),
        (json!({"resource_id": 5}), "resource_id", "printable"),
        (json!({"type": "service", "scopes": ["app"]}), "resource_id", "must be the workspace (ws-a)"),
        (json!({"scopes": []}), "scopes", "a key of type app must hold the scope app"),
        (
            json!({"type": "service", "resource_id": "ws-a"}),
            "scopes",
            "is required for a key of type service",
        ),
        (json!({"scopes": "app"}), "scopes", scopes),
        (json!({"scopes": ["app", "a b"]}), "scopes[1]", scope),
        (json!({"scopes": ["app", long(65)]}), "scopes[1]", scope),
        (json!({"scopes": ["app", 3]}), "scopes[1]", scope),
        (json!({"scopes": ["app", "*b"]}), "scopes[1]", "may have a * only at its end"),
        (json!({"scopes": ["app", "app"]}), "scopes[1]", "is in the list twice"),
        (json!({"scopes": ["rag"]}), "scopes", "a key of type app must hold the scope app"),
        (json!({"type": "memory", "scopes": ["app"]}), "scopes", "must hold the scope memory"),
        (json!({"rate_limit": 0}), "rate_limit", rate),
        (json!({"rate_limit": 10_000_001}), "rate_limit", rate),
        (json!({"rate_limit": 1.5}), "rate_limit", rate),
        (json!({"rate_limit": 1e300}), "rate_limit", rate),
        (json!({"rate_limit": -1.0}), "rate_limit", rate),
        (json!({"rate_limit": "5"}), "rate_limit", rate),
        (json!({"rate_limit": -1}), "rate_limit", rate),
        (json!({"rate_burst": 0}), "rate_burst", rate),
        (json!({"daily_request_limit": 0}), "daily_request_limit", any),
        (json!({"daily_request_limit": 1_u64 << 53}), "daily_request_limit", any),
        (json!({"quota_limit": 0}), "quota_limit", any),
        (json!({"quota_limit": true}), "quota_limit", any),
        (json!({"concurrency_limit": 0}), "concurrency_limit", "must be a whole number from 1 to 4294967295"),
        (json!({"limits": {}}), "limits", "must be a list of {count, per, max}"),
        (json!({"limits": vec![twin.clone(); 9]}), "limits", "must be at most 8 limits"),
        (json!({"limits": [twin, twin]}), "limits[1]", "there already is a limit of requests per day"),
        (json!({"limits": [1]}), "limits[0]", "must be an object {count, per, max}"),
        (json!({"limits": [{"per": "day", "max": 1}]}), "limits[0].count", "is required"),
        (json!({"limits": [{"count": "requests", "max": 1}]}), "limits[0].per", "is required"),
        (json!({"limits": [{"count": "requests", "per": "day"}]}), "limits[0].max", "is required"),
        (
            json!({"limits": [{"count": "tokens", "per": "second", "max": 1}]}),
            "limits[0].per",
            "second is for requests of a key or a workspace only",
        ),
        (json!({"limits": [{"count": "cats", "per": "day", "max": 1}]}), "limits[0].count", "must be one of"),
        (
            json!({"limits": [{"count": "requests", "per": "year", "max": 1}]}),
            "limits[0].per",
            "must be one of: second, minute, hour, day, week, month, total",
        ),
        (json!({"limits": [{"count": "requests", "per": "day", "max": 0}]}), "limits[0].max", any),
        (
            json!({"limits": [{"count": "requests", "per": "second", "max": 10_000_001}]}),
            "limits[0].max",
            rate,
        ),
        (
            json!({"limits": [{"count": "requests", "per": "day", "max": 1, "maximum": 2}]}),
            "limits[0].maximum",
            "did you mean max?",
        ),
        (json!({"expires_at": 1_767_225_600}), "expires_at", "must be in the future"),
        (json!({"expires_at": "2020-01-01T00:00:00Z"}), "expires_at", "must be in the future"),
        (json!({"expires_at": "soon"}), "expires_at", instant),
        (json!({"expires_at": 253_402_300_800_000_i64}), "expires_at", instant),
        (json!({"expires_at": -5}), "expires_at", instant),
        (json!({"expires_at": 1_767_225_600.5}), "expires_at", instant),
        (json!({"expires_at": true}), "expires_at", instant),
        (json!({"allowed_ips": "10.0.0.1"}), "allowed_ips", "must be a list of addresses"),
        (json!({"allowed_ips": vec!["10.0.0.1"; 101]}), "allowed_ips", "must be at most 100"),
        (json!({"allowed_ips": ["10.0.0.1", "home"]}), "allowed_ips[1]", address),
        (json!({"allowed_ips": ["10.0.0.0/33"]}), "allowed_ips[0]", address),
        (json!({"allowed_ips": [10]}), "allowed_ips[0]", address),
        (json!({"allowed_ips": ["10.1.2.3/8"]}), "allowed_ips[0]", "did you mean 10.0.0.0/8?"),
        (json!({"allowed_ips": ["2001:db8::1/32"]}), "allowed_ips[0]", "did you mean 2001:db8::/32?"),
        (json!({"metadata": []}), "metadata", "must be an object"),
        (json!({"metadata": {"a": long(16 * 1_024)}}), "metadata", "must be at most 16384 bytes"),
        (
            json!({"metadata": (0..65).map(|n| (n.to_string(), json!(1))).collect::<Map<_, _>>()}),
            "metadata",
            "must have at most 64 entries",
        ),
        (json!({"metadata": {"a": [{"b": "\u{0}"}]}}), "metadata", "must not hold NUL"),
        (json!({"metadata": {"a\u{0}": 1}}), "metadata", "must not hold NUL"),
        (json!({"rate_limt": 5}), "rate_limt", "is not known here; did you mean rate_limit?"),
        (json!({"Name": "x"}), "Name", "did you mean name?"),
        (json!({"is_active": false}), "is_active", "is not known here"),
        (json!({"api_key": "sk-app-x"}), "api_key", "is not known here"),
    ]
}

#[test]
fn every_mistake_in_a_new_key_is_named() {
    for (changes, field, words) in key_mistakes() {
        let body = with(changes.clone());
        let errors = said(CreateKeyInput::read(&body, &workspace(), NOW).expect_err(&changes.to_string()));
        assert_eq!(errors.len(), 1, "{changes}: {errors:?}");
        assert_eq!(errors[0].0, field, "{changes}");
        assert!(errors[0].1.contains(words), "{changes}: {}", errors[0].1);
    }
}

#[test]
fn the_same_rules_hold_for_a_change() {
    let only_new = ["name\":null", "type", "resource_id", "is_active", "scopes\":[]"];
    for (changes, field, words) in key_mistakes() {
        let text = changes.to_string();
        // A change does not know this, or cannot see it without the key itself.
        if only_new.iter().any(|w| text.contains(w)) || text == r#"{"scopes":["rag"]}"# {
            continue;
        }
        let errors = said(change(&map(changes)).expect_err(&text));
        assert_eq!(errors.len(), 1, "{text}: {errors:?}");
        assert_eq!(errors[0].0, field, "{text}");
        assert!(errors[0].1.contains(words), "{text}: {}", errors[0].1);
    }
}

#[test]
fn one_mistake_hides_no_other() {
    let body =
        map(json!({"type": 5, "rate_limit": "x", "limits": [{"per": 1}], "allowed_ips": 3, "nmae": "n"}));
    let errors = said(CreateKeyInput::read(&body, &workspace(), NOW).expect_err("mistakes"));
    let fields: Vec<&str> = errors.iter().map(|(field, _)| field.as_str()).collect();
    let expected = [
        "name",
        "type",
        "rate_limit",
        "limits[0].count",
        "limits[0].per",
        "limits[0].max",
        "allowed_ips",
        "nmae",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn an_answer_names_at_most_a_hundred_mistakes() {
    let body: Map<String, Value> = (0..5_000).map(|n| (format!("f{n}"), json!(n))).collect();
    assert_eq!(CreateKeyInput::read(&body, &workspace(), NOW).expect_err("mistakes").len(), 100);
}

#[test]
fn a_minimal_key_gets_the_defaults() {
    let input = CreateKeyInput::read(&with(json!({"name": " spaced "})), &workspace(), NOW).expect("right");
    let id = KeyId::new(NOW);
    for (plan_rate, expected) in [(1_000, 50), (20, 20)] {
        let key = input
            .clone()
            .into_new_key(id, workspace(), &plan(plan_rate), credential_for(KeyType::App))
            .expect("fits its plan");
        assert_eq!(key.name, "spaced");
        assert_eq!(key.key.ceilings.rate_limit, expected);
        assert_eq!(key.key.ceilings.daily_request_limit, Some(77), "the plan's");
        assert_eq!(key.key.ceilings.quota_limit, None);
        assert_eq!(key.key.scopes, scopes(&["app"]));
        assert_eq!((key.key.id, key.key.is_active), (id, true));
        assert_eq!(key.credential.pepper_version, 3);
    }
}

#[test]
fn a_daily_limit_is_absent_none_or_a_number() {
    for (asked, expected) in [(json!({}), Some(77)), (json!({"daily_request_limit": null}), None)] {
        let input = CreateKeyInput::read(&with(asked), &workspace(), NOW).expect("right");
        let key = input.into_new_key(KeyId::new(NOW), workspace(), &plan(9), credential_for(KeyType::App));
        assert_eq!(key.expect("fits its plan").key.ceilings.daily_request_limit, expected);
    }
}

#[test]
fn an_instant_that_has_passed_may_stay_as_it_is() {
    let past = Timestamp::from_secs(NOW.as_secs() - 60);
    let body = map(json!({"expires_at": past.as_secs()}));
    let patch = UpdateKeyInput::read(&body, Some(past), NOW).expect("unchanged").into_patch(KeyType::App);
    assert_eq!(patch.expect("fits the type").expires_at, Some(Some(past)));
    let errors = said(UpdateKeyInput::read(&body, Some(NOW), NOW).expect_err("changed"));
    assert_eq!(errors[0].1, "must be in the future");
}

#[test]
fn a_rate_above_the_plan_is_refused_not_capped() {
    for (asked, fits) in [(100, true), (101, false)] {
        let input =
            CreateKeyInput::read(&with(json!({"rate_limit": asked})), &workspace(), NOW).expect("right");
        let outcome =
            input.into_new_key(KeyId::new(NOW), workspace(), &plan(100), credential_for(KeyType::App));
        match outcome {
            Ok(key) => assert!(fits && key.key.ceilings.rate_limit == asked),
            Err(StoreError::RateAbovePlan { asked: said, limit: 100, .. }) => assert!(!fits && said == asked),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_service_key_is_bound_to_its_workspace_and_grants_what_it_says() {
    for body in [
        json!({"name": "n", "scopes": ["orders:*"]}),
        json!({"name": "n", "type": null, "scopes": ["orders:*"]}),
        json!({"name": "n", "type": "service", "scopes": ["orders:*"], "resource_id": "ws-a"}),
    ] {
        let input = CreateKeyInput::read(&map(body), &workspace(), NOW).expect("right");
        assert_eq!(&*input.resource_id, "ws-a");
        assert_eq!((input.kind, input.scopes), (KeyType::Service, scopes(&["orders:*"])));
    }
    let nothing =
        CreateKeyInput::read(&map(json!({"name": "n", "scopes": []})), &workspace(), NOW).expect("right");
    assert!(nothing.scopes.is_empty());
}

#[test]
fn everything_that_can_be_asked_for_is_read() {
    let body = with(json!({
        "description": "d", "scopes": ["app", "rag"], "rate_limit": 5, "rate_burst": 9, "daily_request_limit": 0.7e1,
        "quota_limit": 8.0, "concurrency_limit": 3, "limits": [{"count": "requests", "per": "hour", "max": 4}],
        "expires_at": "2026-01-02T00:00:00Z", "allowed_ips": ["192.0.2.7", "10.0.0.0/8", "2001:db8::/32"], "end_user": "ann",
        "external_id": "git-7", "metadata": {"team": {"a": [1, null]}}
    }));
    let input = CreateKeyInput::read(&body, &workspace(), NOW).expect("right");
    let expected = CreateKeyInput {
        name: "n".into(),
        description: "d".into(),
        kind: KeyType::App,
        scopes: scopes(&["app", "rag"]),
        resource_id: "r".into(),
        rate_limit: Some(5),
        rate_burst: Some(9),
        daily_request_limit: Some(Some(7)),
        quota_limit: Some(8),
        concurrency_limit: Some(3),
        limits: Box::new([Ceiling {
            of: Owner::Workspace,
            count: Measure::Requests,
            per: Per::Hour,
            max: 4,
        }]),
        expires_at: Some(Timestamp::from_secs(1_767_312_000)),
        end_user: Some("ann".into()),
        external_id: Some("git-7".into()),
        allowed_ips: ["192.0.2.7/32", "10.0.0.0/8", "2001:db8::/32"]
            .map(|n| n.parse().expect("a net"))
            .into(),
        metadata: map(json!({"team": {"a": [1, null]}})),
    };
    assert_eq!(input, expected);
}

#[test]
fn null_clears_what_can_be_empty_and_nothing_else() {
    let names = [
        "description",
        "rate_burst",
        "daily_request_limit",
        "quota_limit",
        "concurrency_limit",
        "limits",
        "expires_at",
    ];
    let cleared: Map<String, Value> =
        names.into_iter().chain(["allowed_ips", "metadata"]).map(|n| (n.to_owned(), Value::Null)).collect();
    let patch = change(&cleared).expect("right").into_patch(KeyType::App).expect("fits the type");
    assert_eq!(patch.description.as_deref(), Some(""));
    assert_eq!(
        (patch.rate_burst, patch.daily_request_limit, patch.quota_limit, patch.concurrency_limit),
        (Some(None), Some(None), Some(None), Some(None))
    );
    assert_eq!(patch.expires_at, Some(None));
    assert_eq!(patch.limits.as_deref(), Some(&[][..]));
    assert_eq!(patch.allowed_ips.as_deref(), Some(&[][..]));
    assert_eq!(patch.metadata, Some(Map::new()));
    assert_eq!((patch.name, patch.scopes, patch.rate_limit, patch.is_active), (None, None, None, None));

    for name in ["name", "scopes", "rate_limit", "is_active"] {
        let body = map(json!({name: null}));
        let errors = said(change(&body).expect_err(name));
        let expected = "cannot be null; leave it out to keep it as it is";
        assert_eq!(errors, [(name.to_owned(), expected.to_owned())]);
    }
}

#[test]
fn type_and_resource_of_a_key_cannot_be_changed() {
    for name in ["id", "type", "resource_id", "workspace_id", "hint", "created_by", "created_at"] {
        let errors = said(change(&map(json!({name: "x"}))).expect_err(name));
        assert_eq!(errors, [(name.to_owned(), "cannot be changed".to_owned())]);
    }
    let narrowed = change(&map(json!({"scopes": ["app"]}))).expect("right");
    let errors = said(narrowed.into_patch(KeyType::Rag).expect_err("lacks its own scope"));
    assert_eq!(errors[0].0, "scopes");
    assert!(change(&Map::new()).expect("right").is_empty());
}

#[test]
fn plans_and_workspaces_name_their_mistakes() {
    let plan_rows = [
        (json!({}), vec!["id", "api_ops_rate_limit", "end_user_quota"]),
        (json!({"id": "a b", "api_ops_rate_limit": 1, "end_user_quota": 0}), vec!["id"]),
        (json!({"id": "a", "api_ops_rate_limit": 0, "end_user_quota": 0}), vec!["api_ops_rate_limit"]),
        (json!({"id": "a", "api_ops_rate_limit": 1, "end_user_quota": -1}), vec!["end_user_quota"]),
        (json!({"id": "a", "api_ops_rate_limit": 1, "end_user_quota": 0, "limit": []}), vec!["limit"]),
        (
            json!({"id": "a", "api_ops_rate_limit": 1, "end_user_quota": 0, "limits": [{}]}),
            vec!["limits[0].count", "limits[0].per", "limits[0].max"],
        ),
    ];
    for (body, fields) in plan_rows {
        let errors = said(CreatePlanInput::read(&map(body.clone())).expect_err(&body.to_string()));
        assert_eq!(errors.iter().map(|(f, _)| f.as_str()).collect::<Vec<_>>(), fields, "{body}");
    }
    let record =
        CreatePlanInput::read(&map(json!({"id": "a", "api_ops_rate_limit": 1, "end_user_quota": 0})))
            .expect("right")
            .into_record(NOW);
    assert_eq!((record.plan.api_ops_rate_limit, record.plan.end_user_quota, record.created_at), (1, 0, NOW));

    for (body, field) in [
        (json!({"id": "a"}), "id"),
        (json!({"api_ops_rate_limit": null}), "api_ops_rate_limit"),
        (json!({"end_user_quota": "9"}), "end_user_quota"),
        (json!({"usage_retention_days": 0}), "usage_retention_days"),
        (json!({"usage_retention_days": 36_501}), "usage_retention_days"),
        (json!({"deleted_keys_days": null}), "deleted_keys_days"),
        (json!({"deleted_keys_days": 3_651}), "deleted_keys_days"),
        (json!({"calendar": "UTC"}), "calendar"),
        (json!({"calendar": {"zone": "Shanghai"}}), "calendar.zone"),
        (json!({"calendar": {"zone": 8}}), "calendar.zone"),
        (json!({"calendar": {"month_day": 0}}), "calendar.month_day"),
        (json!({"calendar": {"month_day": 32}}), "calendar.month_day"),
        (json!({"calendar": {"week_day": "mon"}}), "calendar.week_day"),
        (json!({"calendar": {"first": 1}}), "calendar.first"),
    ] {
        assert_eq!(said(UpdatePlanInput::read(&map(body)).expect_err(field))[0].0, field);
    }
    let zone = calendar::zone("Asia/Shanghai").expect("a zone");
    for (calendar, expected) in [
        (json!({"zone": "Asia/Shanghai"}), Calendar { zone, ..Calendar::UTC }),
        (
            json!({"month_day": 31.0, "week_day": "sunday", "zone": null}),
            Calendar { month_day: 31, week_day: WeekDay::Sunday, ..Calendar::UTC },
        ),
        (json!({}), Calendar::UTC),
        (json!(null), Calendar::UTC),
    ] {
        let patch = UpdatePlanInput::read(&map(json!({"calendar": calendar}))).expect("right").into_patch();
        assert_eq!(patch.calendar, Some(expected));
    }
    for (body, field) in [
        (json!({"plan_id": "no such plan!"}), "plan_id"),
        (json!({"plan_id": null}), "plan_id"),
        (json!({"name": 5}), "name"),
        (json!({"plan": "x"}), "plan"),
    ] {
        assert_eq!(said(UpdateWorkspaceInput::read(&map(body)).expect_err(field))[0].0, field);
    }
    let cleared = UpdateWorkspaceInput::read(&map(json!({"name": null}))).expect("right").into_patch();
    assert_eq!((cleared.name.as_deref(), cleared.plan_id), (Some(""), None));
}

#[test]
fn grace_periods_end_after_thirty_days() {
    let read = |value: Value| read_grace_period(&map(value));
    assert_eq!(read(json!({})), Ok(None));
    assert_eq!(read(json!({"grace_period_seconds": 0})), Ok(None));
    assert_eq!(read(json!({"grace_period_seconds": 60})), Ok(Some(std::time::Duration::from_mins(1))));
    assert!(read(json!({"grace_period_seconds": 2_592_000})).is_ok());
    for value in [json!(2_592_001), json!(-1), json!("60"), json!(0.5)] {
        let errors = said(read(json!({"grace_period_seconds": value})).expect_err("too long"));
        assert_eq!(errors[0].1, "must be a whole number from 0 to 2592000");
    }
    assert!(read(json!({"grace": 5})).is_err());
}

/// JSON of a few shapes, including values at the limits of the rules.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just(0_u64), Just(1), Just(10_000_000), Just(1 << 53)].prop_map(Value::from),
        prop_oneof![Just("app"), Just("service"), Just("ws-a"), Just("10.0.0.0/8"), Just("day")]
            .prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let name = prop_oneof![Just("count".to_owned()), Just("per".into()), Just("max".into()), ".{0,4}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn any_body() -> impl Strategy<Value = Map<String, Value>> {
    let names = [
        "name",
        "description",
        "type",
        "scopes",
        "resource_id",
        "rate_limit",
        "rate_burst",
        "daily_request_limit",
        "quota_limit",
        "concurrency_limit",
        "limits",
        "expires_at",
        "allowed_ips",
        "metadata",
        "is_active",
        "other",
    ];
    prop::collection::vec((prop::sample::select(names.to_vec()), any_json()), 0..8)
        .prop_map(|pairs| pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

proptest! {
    /// Every refusal has a reason, and accepted input satisfies the rules that decisions rely on.
    #[test]
    fn any_body_is_valid_or_has_named_mistakes(body in any_body()) {
        match CreateKeyInput::read(&body, &workspace(), NOW) {
            Ok(input) => {
                prop_assert!(input.kind.implied_scope().is_none_or(|own| input.scopes.grants(own)));
                prop_assert!(!input.scopes.is_empty() && !input.name.is_empty() && !input.resource_id.is_empty());
                prop_assert!(input.expires_at.is_none_or(|at| at > NOW && at <= Timestamp::MAX));
                prop_assert!(input.allowed_ips.iter().all(|net| net.addr() == net.network()));
                prop_assert!(input.limits.iter().all(|limit| limit.max >= 1));
            }
            Err(errors) => prop_assert!(!errors.is_empty()),
        }
        if let Err(errors) = change(&body) {
            prop_assert!(!errors.is_empty());
        }
    }
}
