//! Grants as stored in a column of their workspace, and what a write may make of them.

use super::decode::read_plan;
use super::fields::RowReader;
use super::rules::{AuditFields, fields};
use crate::clock::Timestamp;
use crate::model::grant::{GRANTS_MAX, Grant, GrantedLimit, raised};
use crate::model::id::GrantId;
use crate::model::key::Owner;
use crate::model::key::Plan;
use crate::store::StoreError;
use serde_json::{Value, json};

/// The column.
pub(in crate::store) fn to_json(grants: &[Grant]) -> Value {
    grants
        .iter()
        .map(|grant| {
            let mut all = limit_fields(grant.limit);
            all.extend(fields([
                ("id", json!(grant.id.to_string())),
                ("amount", json!(grant.amount)),
                ("reason", json!(grant.reason)),
                ("created_by", json!(grant.created_by)),
                ("created_at", json!(grant.created_at.as_micros())),
                ("until", json!(grant.until.as_micros())),
            ]));
            Value::Object(all)
        })
        .collect()
}

/// Parses the output of [`to_json`], or says what is wrong.
pub(in crate::store) fn from_json(text: &str) -> Result<Box<[Grant]>, String> {
    let items: Vec<AuditFields> = serde_json::from_str(text).map_err(|_| "not a JSON array of objects")?;
    items.iter().map(read).collect()
}

fn read(item: &AuditFields) -> Result<Grant, String> {
    let word = |name: &str| item.get(name).and_then(Value::as_str).ok_or_else(|| format!("no {name}"));
    let instant = |name: &str| {
        item.get(name).and_then(Value::as_i64).map(Timestamp::from_micros).ok_or_else(|| format!("no {name}"))
    };
    let limit = match word("limit")? {
        "api_ops_rate_limit" => GrantedLimit::ApiOpsRateLimit,
        "end_user_quota" => GrantedLimit::EndUserQuota,
        "limits" => GrantedLimit::Further {
            of: match item.get("of").and_then(Value::as_str) {
                Some(of) => of.parse().map_err(|e| format!("of {e}"))?,
                None => Owner::Workspace,
            },
            count: word("count")?.parse().map_err(|e| format!("count {e}"))?,
            per: word("per")?.parse().map_err(|e| format!("per {e}"))?,
        },
        _ => return Err("limit is not a limit of a plan".into()),
    };
    Ok(Grant {
        id: word("id")?.parse().map_err(|e| format!("id: {e}"))?,
        limit,
        amount: item.get("amount").and_then(Value::as_u64).ok_or("no amount")?,
        reason: word("reason")?.to_owned(),
        created_by: word("created_by")?.to_owned(),
        created_at: instant("created_at")?,
        until: instant("until")?,
    })
}

fn limit_fields(limit: GrantedLimit) -> AuditFields {
    let mut all = fields([("limit", json!(limit.as_str()))]);
    if let GrantedLimit::Further { of, count, per } = limit {
        if of != Owner::Workspace {
            all.extend(fields([("of", json!(of.as_str()))]));
        }
        all.extend(fields([("count", json!(count.as_str())), ("per", json!(per.as_str()))]));
    }
    all
}

/// The fields of a grant, for the audit log.
pub(in crate::store) fn audit_fields(grant: &Grant) -> AuditFields {
    let mut all = limit_fields(grant.limit);
    all.extend(fields([
        ("amount", json!(grant.amount)),
        ("reason", json!(grant.reason)),
        ("until", json!(grant.until.as_millis())),
    ]));
    all
}

/// `grants` with a new one under `plan`. When there are too many, those that have ended make room.
pub(in crate::store) fn with(
    grants: &[Grant],
    new: &Grant,
    plan: &Plan,
    at: Timestamp,
) -> Result<Box<[Grant]>, StoreError> {
    if !new.limit.is_in(plan) {
        let why = format!("must be a limit of the plan {}", plan.id);
        return Err(StoreError::Invalid { field: "limit", why });
    }
    let mut all: Vec<Grant> = grants.to_vec();
    if all.len() >= GRANTS_MAX {
        all.retain(|grant| grant.is_in_force(at));
    }
    if all.len() >= GRANTS_MAX {
        let why = format!("there are {GRANTS_MAX} grants already; delete one first");
        return Err(StoreError::Invalid { field: "limit", why });
    }
    all.push(new.clone());
    Ok(all.into())
}

/// `grants` without one of them, and that one.
pub(in crate::store) fn without(grants: &[Grant], id: GrantId) -> Option<(Box<[Grant]>, Grant)> {
    let gone = grants.iter().find(|grant| grant.id == id)?.clone();
    Some((grants.iter().filter(|grant| grant.id != id).cloned().collect(), gone))
}

/// A plan and the grants of the workspace that is on it, raised at the instant `at`.
pub(in crate::store) fn read_raised_plan(f: &mut RowReader<'_>, at: Timestamp) -> Result<Plan, StoreError> {
    let plan = read_plan(f)?;
    let grants = f.read("grants", from_json)?;
    Ok(raised(&plan, &grants, at))
}
