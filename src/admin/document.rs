//! Parts of the OpenAPI document that cannot be derived from the request types: patterns, bounds, and dependencies. The API
//! accepts exactly what the document allows; `make test` checks this with an independent tool (`tests/openapi`).
//!
//! Must not know: what any call does. What JSON Schema cannot express is in the descriptions.

use super::input::STATISTICS;
use crate::model::key::{CEILING_MAX, KeyType, RATE_MAX};
use crate::store::UsageGroup;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Any characters except control characters.
const PRINTABLE: &str = r"[^\u0000-\u001f\u007f-\u009f]";
/// The same without white space.
const VISIBLE: &str = r"[^\s\u0000-\u001f\u007f-\u009f]";
/// The id of a plan or workspace.
const ID: &str = "^[A-Za-z0-9._:@-]{1,128}$";
/// A scope that a key may grant.
const SCOPE: &str = r"^([A-Za-z0-9._:/-]{1,64}|[A-Za-z0-9._:/-]{0,63}\*)$";
/// The last millisecond of the year 9999.
const INSTANT_MAX: i64 = 253_402_300_799_999;

/// Request bodies; unknown fields in them are refused.
const BODIES: [&str; 17] = [
    "KeyCreate",
    "KeyUpdate",
    "KeyRegenerate",
    "KeyLookup",
    "KeyImport",
    "EndUserImport",
    "PlanCreate",
    "PlanUpdate",
    "WorkspaceUpdate",
    "GrantCreate",
    "CredentialPut",
    "Limit",
    "PlanLimit",
    "CalendarInput",
    "PricesReplace",
    "PriceInput",
    "TierInput",
];
/// Fields of changes that cannot be null.
const NEVER_NULL: [(&str, &[&str]); 3] = [
    ("KeyUpdate", &["name", "scopes", "rate_limit", "is_active"]),
    ("PlanUpdate", &["api_ops_rate_limit", "end_user_quota", "deleted_keys_days"]),
    ("WorkspaceUpdate", &["plan_id"]),
];

/// Adds this to the generated document.
pub(super) fn complete(document: &mut Value) {
    widen(document);
    for (path, calls) in document["paths"].as_object_mut().into_iter().flatten() {
        for (_, call) in calls.as_object_mut().into_iter().flatten() {
            for parameter in call.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
                let name = parameter["name"].as_str().unwrap_or_default().to_owned();
                add(&mut parameter["schema"], rule_of_parameter(path, &name));
            }
            // An optional body is not null.
            if let Some(body) = call.pointer_mut("/requestBody/content/application~1json/schema")
                && let Some(schema) = body.pointer("/oneOf/0").cloned()
            {
                *body = schema;
            }
        }
    }
    let schemas = &mut document["components"]["schemas"];
    for name in BODIES {
        let schema = &mut schemas[name];
        schema["additionalProperties"] = json!(false);
        for (field, rule) in schema["properties"].as_object_mut().into_iter().flatten() {
            add(rule, rule_of_field(name, field));
        }
    }
    // A price may be a number as well as text.
    for name in ["PriceInput", "TierInput"] {
        for (field, rule) in schemas[name]["properties"].as_object_mut().into_iter().flatten() {
            if rule.get("pattern").is_some() && field != "model" {
                let types = if rule["type"].is_array() {
                    json!(["string", "number", "null"])
                } else {
                    json!(["string", "number"])
                };
                add(rule, json!({"type": types, "minimum": 0, "maximum": 1_000_000_000}));
            }
        }
    }
    for (name, fields) in NEVER_NULL {
        for field in fields {
            not_null(&mut schemas[name]["properties"][field]);
        }
    }
    // The view of a key may be sent back with a change of it.
    if let Value::Object(shown) = schemas["KeyView"]["properties"].clone()
        && let Some(changed) = schemas["KeyUpdate"]["properties"].as_object_mut()
    {
        for (field, mut rule) in shown {
            add(&mut rule, json!({"readOnly": true}));
            changed.entry(field).or_insert(rule);
        }
    }
    // So may its statistics, which say nothing.
    if let Some(changed) = schemas["KeyUpdate"]["properties"].as_object_mut() {
        for name in STATISTICS {
            changed.insert((*name).into(), json!({"readOnly": true}));
        }
    }
    add(&mut schemas["KeyCreate"], key_create());
    add(&mut schemas["Limit"], limit());
    add(&mut schemas["PlanLimit"], plan_limit());
    add(&mut schemas["GrantCreate"], grant_create());
    schemas["Instant"] = instant();
}

/// Unsigned 32-bit numbers do not fit the format `int32`.
fn widen(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(widen),
        Value::Object(map) => {
            if let Some(format) = map.get_mut("format").filter(|format| **format == "int32") {
                *format = json!("int64");
            }
            map.values_mut().for_each(widen);
        }
        _ => {}
    }
}

/// Merges the members of `more` into `schema`.
fn add(schema: &mut Value, more: Value) {
    if let (Some(schema), Value::Object(more)) = (schema.as_object_mut(), more) {
        schema.extend(more);
    }
}

fn not_null(schema: &mut Value) {
    if let Some(kinds) = schema["type"].as_array().cloned() {
        schema["type"] = kinds.into_iter().find(|kind| kind != "null").unwrap_or_default();
    }
}

fn rule_of_parameter(path: &str, name: &str) -> Value {
    match name {
        "id" if [
            "/workspaces/{id}",
            "/workspaces/{id}/grants",
            "/workspaces/{id}/grants/{grant_id}",
            "/plans/{id}",
        ]
        .contains(&path) =>
        {
            json!({"pattern": ID})
        }
        "X-Workspace-Id" => json!({"pattern": ID}),
        "from" | "to" | "start_date" | "end_date" => {
            let Value::Object(mut rule) = instant() else { return Value::Null };
            rule.insert("type".into(), json!(["integer", "string"]));
            rule.into()
        }
        "resource_id" | "external_id" | "search" | "endpoint" | "action" | "target" | "other_id"
        | "verbose" => {
            json!({"maxLength": 1_024, "pattern": r"^[^\u0000]*$"})
        }
        "page" => json!({"maximum": u32::MAX}),
        "is_active" => json!({"enum": ["true", "false", "any"]}),
        "is_deleted" => json!({"enum": ["true", "false"]}),
        "group_by" => json!({"enum": UsageGroup::WORDS}),
        "interval" => json!({"enum": ["minute", "hour", "day"]}),
        "format" => json!({"enum": ["json", "csv", "ndjson"]}),
        "wait" => json!({"enum": ["all"]}),
        // The instant comes first, and is before the year 4253.
        "cursor" => json!({"pattern": "^A[A-P][A-Za-z0-9_-]{30}$"}),
        _ => Value::Null,
    }
}

fn rule_of_field(body: &str, field: &str) -> Value {
    match (body, field) {
        ("CredentialPut", "metadata") => {
            json!({"pattern": format!("^[^=\\u0000-\\u001f\\u007f-\\u009f]+={PRINTABLE}*$")})
        }
        ("CredentialPut", "header") => json!({"pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"}),
        ("CredentialPut", "scheme") => json!({"pattern": "^[A-Za-z0-9._-]{1,64}$"}),
        ("CredentialPut", "secret") => json!({"pattern": "^[!-~]([ -~]*[!-~])?$"}),
        ("WorkspaceUpdate", "name") => json!({"pattern": format!("^{PRINTABLE}*$")}),
        (_, "api_key") => json!({"pattern": "^[!-~]+$"}),
        (_, "name" | "reason") => json!({"pattern": format!("^{PRINTABLE}*{VISIBLE}{PRINTABLE}*$")}),
        (_, "end_user") => json!({"pattern": format!("^{PRINTABLE}+$")}),
        (_, "description") => json!({"maxLength": 2_000, "pattern": r"^[^\u0000]*$"}),
        (_, "resource_id" | "external_id") => {
            json!({"pattern": format!("^{VISIBLE}({PRINTABLE}*{VISIBLE})?$")})
        }
        ("CredentialPut", "workspace_id") | (_, "id" | "plan_id") => json!({"pattern": ID}),
        (_, "scopes") => json!({"uniqueItems": true, "items": {"type": "string", "pattern": SCOPE}}),
        (
            _,
            "daily_request_limit"
            | "default_daily_request_limit"
            | "quota_limit"
            | "end_user_quota"
            | "max"
            | "amount",
        ) => {
            json!({"maximum": CEILING_MAX})
        }
        ("CalendarInput", "zone") => json!({"format": "time-zone"}),
        (_, "concurrency_limit") => json!({"maximum": u32::MAX}),
        (_, "metadata") => json!({"maxProperties": 64, "propertyNames": {"pattern": r"^[^\u0000]*$"}}),
        (_, "allowed_ips") => json!({"items": {"anyOf": [
            {"type": "string", "format": "ipv4"},
            {"type": "string", "format": "ipv6"},
            {"type": "string", "format": "cidr", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$"},
        ]}}),
        _ => Value::Null,
    }
}

/// The fields of a key that depend on its type.
fn key_create() -> Value {
    let implied: BTreeSet<&str> = KeyType::ALL.iter().filter_map(|kind| kind.implied_scope()).collect();
    let holding = |scope: &str| {
        let kinds = KeyType::ALL.iter().filter(|kind| kind.implied_scope() == Some(scope));
        let kinds: Vec<_> = kinds.map(|kind| kind.as_str()).collect();
        let prefixes = (0..=scope.len()).map(|n| format!("{}*", &scope[..n]));
        let granting: Vec<_> = prefixes.chain([scope.to_owned()]).collect();
        json!({
            "required": ["type", "resource_id"],
            "properties": {
                "type": {"enum": kinds},
                "resource_id": {"type": "string"},
                "scopes": {"contains": {"enum": granting}},
            },
        })
    };
    let service = json!({
        "required": ["scopes"],
        "properties": {
            "type": {"enum": [KeyType::Service.as_str(), null]},
            "resource_id": {"type": "null"},
            "scopes": {"type": "array"},
        },
    });
    json!({"anyOf": implied.into_iter().map(holding).chain([service]).collect::<Vec<_>>()})
}

/// A grant names a measure and a window for `limits` only.
fn grant_create() -> Value {
    let named = json!({"properties": {"limit": {"enum": ["limits"]}}, "required": ["limit", "count", "per"]});
    let other = json!({
        "properties": {"limit": {"enum": ["api_ops_rate_limit", "end_user_quota"]}},
        "not": {"anyOf": [{"required": ["of"]}, {"required": ["count"]}, {"required": ["per"]}]},
    });
    json!({"anyOf": [named, other]})
}

/// A rate has another maximum than a number of requests, and only requests have one.
fn limit() -> Value {
    let rate =
        json!({"count": {"enum": ["requests"]}, "per": {"enum": ["second"]}, "max": {"maximum": RATE_MAX}});
    json!({"anyOf": [
        {"properties": rate},
        {"properties": {"per": {"enum": ["minute", "hour", "day", "week", "month", "total"]}}},
    ]})
}

/// The same of a plan. Shorter windows than a day are not kept of end users.
fn plan_limit() -> Value {
    let of = json!({"enum": ["workspace", "key", null]});
    let rate = json!({
        "of": of, "count": {"enum": ["requests"]}, "per": {"enum": ["second"]}, "max": {"maximum": RATE_MAX},
    });
    json!({"anyOf": [
        {"properties": rate},
        {"properties": {"of": of, "per": {"enum": ["minute", "hour"]}}},
        {"properties": {"per": {"enum": ["day", "week", "month", "total"]}}},
    ]})
}

fn instant() -> Value {
    json!({
        "description": "Epoch seconds, epoch milliseconds (from 10¹¹ on) or RFC 3339, from 1970 to 9999.",
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": INSTANT_MAX},
            {"type": "string", "format": "date-time"},
        ],
    })
}
