//! The rules of administrative writes and their audit lines, the same for every backend.
//!
//! Pure; must not know SQL. Backends read the record, apply these rules, and write the result.

use super::limits::limits_to_json;
use super::rollup::RollupTotals;
use super::sums::UsageSums;
use crate::clock::Timestamp;
use crate::model::calendar::{self, Calendar, MONTH_DAY_MAX};
use crate::model::id::WorkspaceId;
use crate::model::key::{CEILING_MAX, CEILINGS_MAX, Ceiling, Key, KeyType, Plan};
use crate::model::scope::Scopes;
use crate::model::usage::UsageRecord;
use crate::store::{
    Actor, Credential, IssuedCredential, KeyPatch, KeyRecord, NewKey, NotRestorable, PlanPatch, PlanRecord,
    SignIn, StoreError,
};
use crate::store::{WorkspacePatch, WorkspaceRecord};
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

const DAY: Duration = Duration::from_hours(24);

/// The fields of an audit line.
pub(in crate::store) type AuditFields = Map<String, Value>;

// === keys ===

/// The record for `new` at `at` under `plan`, or why it is refused.
pub(in crate::store) fn new_key(
    new: NewKey,
    plan: &Plan,
    by: &str,
    at: Timestamp,
) -> Result<KeyRecord, StoreError> {
    if new.past.is_none() {
        check_rate(new.key.ceilings.rate_limit, plan)?;
    }
    let (created_by, created_at, updated_at) = match &new.past {
        Some(past) => (past.created_by.as_str(), past.created_at, past.updated_at),
        None => (by, at, at),
    };
    let record = KeyRecord {
        key: new.key,
        name: new.name,
        description: new.description,
        external_id: new.external_id,
        metadata: new.metadata,
        hint: new.credential.hint,
        quota_used: new.past.as_ref().map_or(0, |past| past.quota_used),
        usage_count: new.past.as_ref().map_or(0, |past| past.usage_count),
        last_used_at: new.past.as_ref().and_then(|past| past.last_used_at),
        created_by: without_nul(created_by).into_owned(),
        created_at,
        updated_at,
        deleted_at: None,
    };
    check_key(&record)?;
    Ok(record)
}

/// The roll-up of a key's whole life that an imported `record` has; none if the key was not used before.
pub(in crate::store) fn past_usage(record: &KeyRecord) -> Option<RollupTotals> {
    let KeyRecord { quota_used, usage_count, last_used_at, .. } = record;
    let was_used = *quota_used > 0 || *usage_count > 0 || last_used_at.is_some();
    let sums = || UsageSums {
        requests: *usage_count,
        charged: *quota_used,
        last_at: last_used_at.unwrap_or_default(),
        ..UsageSums::default()
    };
    was_used.then(|| RollupTotals { sums: sums(), ..RollupTotals::default() })
}

/// A key, deleted or not, as read for restoring it.
#[derive(Clone, Debug)]
pub(in crate::store) struct DeletedKey {
    pub(in crate::store) record: KeyRecord,
    /// The pepper version of its digest; none once the digest is erased.
    pub(in crate::store) pepper: Option<u32>,
    /// The pepper version of its previous digest.
    pub(in crate::store) old_pepper: Option<u32>,
    /// The plan's `deleted_keys_days`.
    pub(in crate::store) days: u32,
}

/// The record of a deleted key that is restored at `at` under `plan`, or why this is refused.
pub(in crate::store) fn restored_key(
    deleted: &DeletedKey,
    plan: &Plan,
    peppers: &[u32],
    at: Timestamp,
) -> Result<KeyRecord, StoreError> {
    let refused = |why| Err(StoreError::NotRestorable(why));
    let Some(deleted_at) = deleted.record.deleted_at else { return refused(NotRestorable::NotDeleted) };
    if at >= deleted_at.plus(DAY * deleted.days) {
        return Err(StoreError::NotFound("key"));
    }
    match deleted.pepper {
        None => return refused(NotRestorable::SecretNotKept),
        Some(version) if !peppers.contains(&version) => {
            return refused(NotRestorable::PepperMissing(version));
        }
        Some(_) => {}
    }
    check_rate(deleted.record.key.ceilings.rate_limit, plan)?;
    Ok(KeyRecord { updated_at: at, deleted_at: None, ..deleted.record.clone() })
}

impl DeletedKey {
    /// Whether the previous credential can no longer be checked, so that it must not come back.
    pub(in crate::store) fn has_lost_old_pepper(&self, peppers: &[u32]) -> bool {
        self.old_pepper.is_some_and(|version| !peppers.contains(&version))
    }
}

/// The credentials of `new` at `at`: the current one, and the previous one while its grace period lasts.
pub(in crate::store) fn new_credentials(new: &NewKey, at: Timestamp) -> (Credential, Option<Credential>) {
    let IssuedCredential { digest, pepper_version, secret, hint: _ } = new.credential;
    let current = Credential { digest, pepper_version, secret, valid_until: None };
    let old = new.past.as_ref().and_then(|past| past.old);
    (current, old.filter(|old| old.valid_until.is_some_and(|until| until > at)))
}

/// The record after applying `patch` to `before` at `at`, or why this is refused.
pub(in crate::store) fn patched_key(
    before: &KeyRecord,
    patch: KeyPatch,
    at: Timestamp,
) -> Result<KeyRecord, StoreError> {
    let KeyPatch {
        name,
        description,
        external_id,
        scopes,
        rate_limit,
        rate_burst,
        daily_request_limit,
        quota_limit,
        concurrency_limit,
        limits,
        is_active,
        expires_at,
        allowed_ips,
        metadata,
    } = patch;
    let mut after = before.clone();
    set(&mut after.name, name);
    set(&mut after.description, description);
    set(&mut after.external_id, external_id);
    set(&mut after.metadata, metadata);
    set(&mut after.key.scopes, scopes);
    set(&mut after.key.is_active, is_active);
    set(&mut after.key.expires_at, expires_at);
    set(&mut after.key.allowed_ips, allowed_ips);
    let ceilings = &mut after.key.ceilings;
    set(&mut ceilings.rate_limit, rate_limit);
    set(&mut ceilings.rate_burst, rate_burst);
    set(&mut ceilings.daily_request_limit, daily_request_limit);
    set(&mut ceilings.quota_limit, quota_limit);
    set(&mut ceilings.concurrency_limit, concurrency_limit);
    set(&mut ceilings.limits, limits);
    after.updated_at = at;
    check_key(&after)?;
    Ok(after)
}

/// Whether a key with this rate may be created under `plan`.
pub(in crate::store) fn check_rate(asked: u32, plan: &Plan) -> Result<(), StoreError> {
    let limit = plan.api_ops_rate_limit;
    if asked > limit {
        return Err(StoreError::RateAbovePlan { asked, limit, plan: plan.id.clone() });
    }
    Ok(())
}

fn check_key(record: &KeyRecord) -> Result<(), StoreError> {
    check_text("name", &record.name)?;
    check_text("description", &record.description)?;
    check_text("hint", &record.hint)?;
    check_text("resource_id", &record.key.resource_id)?;
    check_scopes(record.key.kind, &record.key.scopes)?;
    let ceilings = &record.key.ceilings;
    check_count("daily_request_limit", ceilings.daily_request_limit.unwrap_or(0))?;
    check_count("quota_limit", ceilings.quota_limit.unwrap_or(0))?;
    check_limits(&ceilings.limits)?;
    // Instants beyond these cannot be stored or formatted.
    let representable = -Timestamp::MAX.as_micros()..=Timestamp::MAX.as_micros();
    if record.key.expires_at.is_some_and(|t| !representable.contains(&t.as_micros())) {
        return Err(StoreError::Invalid {
            field: "expires_at",
            why: "must be in the years up to 9999".into(),
        });
    }
    Ok(())
}

fn check_scopes(kind: KeyType, scopes: &Scopes) -> Result<(), StoreError> {
    match kind.implied_scope() {
        Some(implied) if !scopes.grants(implied) => {
            let why = format!("must hold {implied}, the scope of a key of type {kind}");
            Err(StoreError::Invalid { field: "scopes", why })
        }
        _ => Ok(()),
    }
}

// === plans and workspaces ===

/// The record for `new` at `at`, or why it is refused.
pub(in crate::store) fn new_plan(new: PlanRecord, at: Timestamp) -> Result<PlanRecord, StoreError> {
    let record = PlanRecord { created_at: at, updated_at: at, ..new };
    check_plan(&record)?;
    Ok(record)
}

/// Checks the values of a plan.
fn check_plan(record: &PlanRecord) -> Result<(), StoreError> {
    check_text("description", &record.description)?;
    check_count("end_user_quota", record.plan.end_user_quota)?;
    check_count("default_daily_request_limit", record.plan.default_daily_request_limit.unwrap_or(0))?;
    check_limits(&record.plan.limits)
}

/// The plan after applying `patch` to `before` at `at`, or why this is refused.
pub(in crate::store) fn patched_plan(
    before: &PlanRecord,
    patch: PlanPatch,
    at: Timestamp,
) -> Result<PlanRecord, StoreError> {
    let PlanPatch {
        description,
        usage_retention_days,
        deleted_keys_days,
        api_ops_rate_limit,
        end_user_quota,
        default_daily_request_limit,
        limits,
        calendar,
    } = patch;
    let mut after = before.clone();
    set(&mut after.description, description);
    set(&mut after.usage_retention_days, usage_retention_days);
    set(&mut after.deleted_keys_days, deleted_keys_days);
    set(&mut after.plan.api_ops_rate_limit, api_ops_rate_limit);
    set(&mut after.plan.end_user_quota, end_user_quota);
    set(&mut after.plan.default_daily_request_limit, default_daily_request_limit);
    set(&mut after.plan.limits, limits);
    set(&mut after.plan.calendar, calendar);
    after.updated_at = at;
    check_plan(&after)?;
    Ok(after)
}

/// The workspace after applying `patch` to `before` at `at`, or why this is refused.
pub(in crate::store) fn patched_workspace(
    before: &WorkspaceRecord,
    patch: WorkspacePatch,
    at: Timestamp,
) -> Result<WorkspaceRecord, StoreError> {
    let WorkspacePatch { name, plan_id } = patch;
    let mut after = before.clone();
    set(&mut after.name, name);
    set(&mut after.plan_id, plan_id);
    after.updated_at = at;
    check_text("name", &after.name)?;
    Ok(after)
}

// === secrets and peppers ===

/// A secret belongs to one key only.
pub(in crate::store) fn secret_taken() -> StoreError {
    StoreError::Invalid { field: "secret", why: "must not be the secret of another key".into() }
}

/// The stored peppers that are not among those given; or an error if one of these differs.
pub(in crate::store) fn missing_peppers(
    remembered: &[(u32, [u8; 32])],
    given: &[(u32, [u8; 32])],
) -> Result<Vec<u32>, StoreError> {
    let mut missing = Vec::new();
    for (version, check) in remembered {
        match given.iter().find(|(v, _)| v == version) {
            Some((_, same)) if same == check => {}
            Some(_) => {
                return Err(StoreError::WrongPepper(format!(
                    "pepper {version} is not the one that this database's keys were made with; give the one from \
                     before, or give the new one a version of its own"
                )));
            }
            None => missing.push(*version),
        }
    }
    Ok(missing)
}

/// Whether pepper `version` may be missing, with which `keys` keys were hashed.
pub(in crate::store) fn check_pepper_unused(version: u32, keys: u64) -> Result<(), StoreError> {
    if keys == 0 {
        return Ok(());
    }
    Err(StoreError::WrongPepper(format!(
        "pepper {version} is missing, but the secrets of {keys} keys can only be checked with it; give it as well, \
         after the current one"
    )))
}

// === values ===

/// Texts from users contain no NUL: PostgreSQL cannot store one, and results must not depend on the backend.
pub(in crate::store) fn check_text(field: &'static str, text: &str) -> Result<(), StoreError> {
    if text.contains('\0') {
        return Err(StoreError::Invalid { field, why: "must not contain the character NUL".into() });
    }
    Ok(())
}

/// Longest endpoint of a usage record, in bytes. It must fit an index; PostgreSQL's entries are limited to 2 704 bytes.
const ENDPOINT_MAX: usize = 2_048;
/// Longest of its other texts, in bytes.
const USAGE_TEXT_MAX: usize = 512;

/// Makes a usage record storable in every backend, whatever a client sent: texts are cut at a character, NUL becomes
/// U+FFFD, and an instant outside 1970 to 9999 becomes the nearest one inside. The same record always gives the same
/// result.
pub(in crate::store) fn fit(record: &mut UsageRecord) {
    record.at = record.at.clamp(Timestamp::default(), Timestamp::MAX);
    for (name, text) in record.texts_mut() {
        fit_text(text, if name == "endpoint" { ENDPOINT_MAX } else { USAGE_TEXT_MAX });
    }
}

fn fit_text(text: &mut Arc<str>, max: usize) {
    if text.contains('\0') {
        *text = without_nul(text).into();
    }
    if text.len() > max {
        *text = text[..text.floor_char_boundary(max)].into();
    }
}

/// Texts of the ledger come from clients; a record must not be refused for one, so a NUL becomes U+FFFD.
pub(in crate::store) fn without_nul(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

/// Whether a searched text cannot occur, because no stored text contains a NUL.
pub(in crate::store) fn hold_nul<const N: usize>(texts: [Option<&str>; N]) -> bool {
    texts.into_iter().flatten().any(|text| text.contains('\0'))
}

fn check_count(field: &'static str, count: u64) -> Result<(), StoreError> {
    if count > CEILING_MAX {
        return Err(StoreError::Invalid { field, why: format!("must be at most {CEILING_MAX}") });
    }
    Ok(())
}

fn check_limits(limits: &[Ceiling]) -> Result<(), StoreError> {
    if limits.len() > CEILINGS_MAX {
        let why = format!("must be at most {CEILINGS_MAX} ceilings");
        return Err(StoreError::Invalid { field: "limits", why });
    }
    limits.iter().try_for_each(|ceiling| check_count("limits", ceiling.max))
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Folds case character by character, so that a part of a text folds as it does within the whole.
pub(in crate::store) fn fold_case(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

/// The text that a search of keys looks through.
pub(in crate::store) fn search_text(record: &KeyRecord) -> String {
    fold_case(&format!("{}\n{}\n{}", record.name, record.description, record.hint))
}

/// A calendar as stored in tables.
pub(in crate::store) fn calendar_to_json(calendar: Calendar) -> Value {
    let Calendar { zone, month_day, week_day } = calendar;
    json!({"zone": zone.name(), "month_day": month_day, "week_day": week_day.as_str()})
}

/// Parses the output of [`calendar_to_json`]; the error describes anything else.
pub(in crate::store) fn calendar_from_json(text: &str) -> Result<Calendar, String> {
    let item: AuditFields = serde_json::from_str(text).map_err(|_| "not a JSON object")?;
    let word = |name: &str| item.get(name).and_then(Value::as_str).ok_or_else(|| format!("no {name}"));
    let month_day = item.get("month_day").and_then(Value::as_u64).and_then(|day| u8::try_from(day).ok());
    Ok(Calendar {
        zone: calendar::zone(word("zone")?).map_err(|e| format!("zone {e}"))?,
        month_day: month_day.filter(|day| (1..=MONTH_DAY_MAX).contains(day)).ok_or("no month_day")?,
        week_day: word("week_day")?.parse().map_err(|e| format!("week_day {e}"))?,
    })
}

/// A plan's calendar as stored in its row: none for the default.
pub(in crate::store) fn calendar_column(calendar: Calendar) -> Option<String> {
    (calendar != Calendar::UTC).then(|| calendar_to_json(calendar).to_string())
}

/// Networks as stored.
pub(in crate::store) fn ips_to_json(ips: &[IpNet]) -> Value {
    ips.iter().map(ToString::to_string).collect()
}

/// Parses the output of [`ips_to_json`], or says what is wrong.
pub(in crate::store) fn ips_from_json(text: &str) -> Result<Box<[IpNet]>, String> {
    let items: Vec<String> = serde_json::from_str(text).map_err(|_| "not a JSON array of texts")?;
    items.iter().map(|item| item.parse().map_err(|_| "not a network, as in 10.0.0.0/8".to_owned())).collect()
}

// === audit ===

/// The content of an audit line.
pub(in crate::store) struct AuditLine<'a> {
    pub(in crate::store) action: &'static str,
    pub(in crate::store) workspace: Option<&'a WorkspaceId>,
    pub(in crate::store) target: String,
    pub(in crate::store) changes: AuditFields,
}

impl<'a> AuditLine<'a> {
    /// A node has reloaded its config.
    pub(in crate::store) fn reload(node: &str, changes: AuditFields) -> Self {
        Self { action: "config.reload", workspace: None, target: without_nul(node).into_owned(), changes }
    }

    /// A sign-in to the console.
    pub(in crate::store) fn sign_in(workspace: Option<&'a WorkspaceId>, ended: &SignIn, by: &Actor) -> Self {
        let (action, said) = match ended {
            SignIn::Done { name } => ("console.sign_in", name.as_deref().map(|name| ("name", name))),
            SignIn::Refused { reason } => ("console.sign_in_refused", Some(("reason", &**reason))),
        };
        let said = said.map(|(field, text)| (field.to_owned(), Value::from(without_nul(text))));
        let target = without_nul(&by.subject).into_owned();
        Self { action, workspace, target, changes: said.into_iter().collect() }
    }

    /// Lines about plans and workspaces themselves, about prices, credentials for backends and configs belong to the platform.
    pub(in crate::store) fn is_of_platform(&self) -> bool {
        let is_about = |kind: &&str| self.action.starts_with(*kind);
        ["plan.", "workspace.", "prices.", "upstream_credential.", "config."].iter().any(is_about)
            // A sign-in with a token of no workspace belongs nowhere else.
            || self.workspace.is_none() && self.action.starts_with("console.")
    }
}

/// The fields of a key, for the audit log. Destructured, so that a new field cannot be forgotten.
pub(in crate::store) fn key_fields(record: &KeyRecord) -> AuditFields {
    let KeyRecord { key, name, description, external_id, metadata, hint, .. } = record;
    let Key {
        id: _,
        workspace_id: _,
        kind,
        scopes,
        resource_id,
        ceilings,
        allowed_ips,
        is_active,
        expires_at,
        end_user,
    } = key;
    fields([
        ("name", json!(name)),
        ("description", json!(description)),
        ("type", json!(kind.as_str())),
        ("scopes", scopes.iter().collect()),
        ("resource_id", json!(resource_id)),
        ("rate_limit", json!(ceilings.rate_limit)),
        ("rate_burst", json!(ceilings.rate_burst)),
        ("daily_request_limit", json!(ceilings.daily_request_limit)),
        ("quota_limit", json!(ceilings.quota_limit)),
        ("concurrency_limit", json!(ceilings.concurrency_limit)),
        ("limits", limits_to_json(&ceilings.limits)),
        ("allowed_ips", ips_to_json(allowed_ips)),
        ("end_user", json!(end_user)),
        ("external_id", json!(external_id)),
        ("metadata", json!(metadata)),
        ("is_active", json!(is_active)),
        ("expires_at", json!(expires_at.map(Timestamp::as_millis))),
        ("hint", json!(hint)),
    ])
}

/// The fields of a plan, for the audit log.
pub(in crate::store) fn plan_fields(record: &PlanRecord) -> AuditFields {
    let Plan { id: _, api_ops_rate_limit, end_user_quota, default_daily_request_limit, limits, calendar } =
        &record.plan;
    fields([
        ("description", json!(record.description)),
        ("api_ops_rate_limit", json!(api_ops_rate_limit)),
        ("end_user_quota", json!(end_user_quota)),
        ("default_daily_request_limit", json!(default_daily_request_limit)),
        ("limits", limits_to_json(limits)),
        ("calendar", calendar_to_json(*calendar)),
        ("usage_retention_days", json!(record.usage_retention_days)),
        ("deleted_keys_days", json!(record.deleted_keys_days)),
    ])
}

/// The fields of a workspace, for the audit log.
pub(in crate::store) fn workspace_fields(record: &WorkspaceRecord) -> AuditFields {
    fields([("name", json!(record.name)), ("plan_id", json!(record.plan_id.as_str()))])
}

/// The changes by a new secret, for the audit log.
pub(in crate::store) fn regenerate_fields(
    old_hint: &str,
    new: &IssuedCredential,
    old_until: Option<Timestamp>,
) -> AuditFields {
    fields([
        ("hint", json!({"from": old_hint, "to": new.hint})),
        ("old_valid_until", json!(old_until.map(Timestamp::as_millis))),
    ])
}

/// The changes by restoring a key, for the audit log.
pub(in crate::store) fn restore_fields(deleted: &DeletedKey) -> AuditFields {
    let KeyRecord { name, hint, deleted_at, .. } = &deleted.record;
    fields([
        ("name", json!(name)),
        ("hint", json!(hint)),
        ("deleted_at", json!({"from": deleted_at.map(Timestamp::as_millis), "to": null})),
    ])
}

/// The old and new value of each field that differs.
pub(in crate::store) fn difference(before: &AuditFields, after: &AuditFields) -> AuditFields {
    let changed = after.iter().filter(|(name, to)| before.get(*name) != Some(*to));
    changed.map(|(name, to)| (name.clone(), json!({"from": before.get(name), "to": to}))).collect()
}

pub(in crate::store) fn fields<const N: usize>(pairs: [(&str, Value); N]) -> AuditFields {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::calendar::WeekDay;

    #[test]
    fn calendars_and_networks_read_back() {
        let zone = calendar::zone("Asia/Shanghai").unwrap();
        let calendar = Calendar { zone, month_day: 15, week_day: WeekDay::Sunday };
        assert_eq!(calendar_from_json(&calendar_to_json(calendar).to_string()), Ok(calendar));
        let ips: Box<[IpNet]> = Box::new(["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
        assert_eq!(ips_from_json(&ips_to_json(&ips).to_string()), Ok(ips));
        assert!(ips_from_json(r#"["10.0.0.0/99"]"#).is_err());
    }

    #[test]
    fn a_part_of_a_text_folds_as_in_the_whole() {
        // A final sigma has its own form in whole words.
        assert!(fold_case("ΟΔΟΣ-1").contains(&fold_case("ΟΔΟΣ")));
        assert!(fold_case("Straße ÄÖ").contains(&fold_case("äö")));
    }

    #[test]
    fn a_difference_names_only_what_changed() {
        let before = fields([("a", json!(1)), ("b", json!(null))]);
        let after = fields([("a", json!(1)), ("b", json!(2))]);
        assert_eq!(Value::from(difference(&before, &after)), json!({"b": {"from": null, "to": 2}}));
    }
}
