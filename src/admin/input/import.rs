//! Validates a key or an end user from another system and keeps its history.
//!
//! Unlike a new key it may have expired, may be disabled, and may have a rate above its plan. Notes say where the key
//! differs from its row.

use super::fields::{FieldError, InputFields, ValidationErrors};
use super::instant::{INSTANT_ALLOWED, parse_instant};
use super::key::CreateKeyInput;
use super::{credential, credential_of_sha256, rules};
use crate::clock::Timestamp;
use crate::model::id::{EndUserId, KeyId, WorkspaceId};
use crate::model::key::{CEILING_MAX, Plan, RATE_DEFAULT};
use crate::policy::keys::secret::{Peppers, Secret};
use crate::store::{EndUserRecord, ImportedKeyHistory, NewKey};
use serde_json::{Map, Value, json};

/// A key as described by its row.
pub struct ImportKeyInput {
    input: CreateKeyInput,
    id: KeyId,
    is_active: bool,
    secret: ImportedSecret,
    past: ImportedKeyHistory,
    notes: Vec<String>,
}

/// How the key is looked up.
enum ImportedSecret {
    Plaintext(Secret),
    Sha256 { digest: [u8; 32], hint: Option<String> },
}

/// A key that can be stored, with remarks.
#[derive(Debug)]
pub struct ImportedKey {
    /// The key.
    pub key: NewKey,
    /// Where it differs from its row.
    pub notes: Vec<String>,
}

/// Fields of a row that a new key does not have.
const OWN: &[&str] = &[
    "api_key",
    "sha256",
    "hint",
    "id",
    "workspace_id",
    "is_active",
    "created_by",
    "created_at",
    "updated_at",
    "quota_used",
    "usage_count",
    "last_used_at",
];
/// A secret with fewer characters has fewer than 128 bits, even if each is one of 64 and chosen at random.
const SECRET_SHORT: usize = 22;
/// The name that another system had for `multi_agent`.
const CLUSTER: &str = "cluster";

impl ImportKeyInput {
    /// Parses `row` as a key of `workspace`; on failure reports every error. `prefix` is that of secrets created here, and
    /// `by` is the creator unless the row names one.
    pub fn read(
        row: &Map<String, Value>,
        workspace: &WorkspaceId,
        prefix: &str,
        by: &str,
        now: Timestamp,
    ) -> Result<Self, Vec<FieldError>> {
        let (mut own, mut rest) = (Map::new(), Map::new());
        for (name, value) in row {
            let of = if OWN.contains(&name.as_str()) { &mut own } else { &mut rest };
            of.insert(name.clone(), value.clone());
        }
        let mut notes = Vec::new();
        adapt(&mut rest, &mut notes);
        let input = CreateKeyInput::read(&rest, workspace, Timestamp::default());
        let mut fields = InputFields::of(&own);
        let plaintext = fields.optional("api_key", |value| plaintext(value, prefix));
        let digest = fields.optional("sha256", sha256);
        let given = ["api_key", "sha256"].map(|name| own.get(name).is_some_and(|value| !value.is_null()));
        match given {
            [true, true] => fields.refuse("sha256", "must not be given beside api_key"),
            [false, false] => fields.refuse("api_key", "is required, or sha256"),
            _ => {}
        }
        let hint = fields.optional("hint", rules::name);
        let id = fields.optional("id", key_id).unwrap_or_else(|| KeyId::new(now));
        if fields.optional("workspace_id", rules::word::<WorkspaceId>).is_some_and(|id| id != *workspace) {
            fields.refuse("workspace_id", format!("must be {workspace}, or absent"));
        }
        let is_active = fields.optional("is_active", flag).unwrap_or(true);
        let created_by = fields.optional("created_by", rules::name).unwrap_or_else(|| by.to_owned());
        let created_at = fields.optional("created_at", instant).unwrap_or(now);
        let past = ImportedKeyHistory {
            created_by,
            created_at,
            updated_at: fields.optional("updated_at", instant).unwrap_or(created_at),
            quota_used: fields.optional("quota_used", count).unwrap_or(0),
            usage_count: fields.optional("usage_count", count).unwrap_or(0),
            last_used_at: fields.optional("last_used_at", instant),
            old: None,
        };
        let mut errors = fields.finish();
        let secret = match (plaintext, digest) {
            (Some(secret), None) => Some(ImportedSecret::Plaintext(secret)),
            (None, Some(digest)) => Some(ImportedSecret::Sha256 { digest, hint }),
            _ => None,
        };
        match (input, secret) {
            (Ok(input), Some(secret)) if errors.is_empty() => {
                if input.expires_at.is_some_and(|end| end <= now) {
                    notes.push("has expired".to_owned());
                }
                if !is_active {
                    notes.push("is disabled".to_owned());
                }
                if let ImportedSecret::Plaintext(secret) = &secret
                    && secret.expose().len() < SECRET_SHORT
                {
                    notes.push(format!(
                        "api_key has fewer than {SECRET_SHORT} characters and may be guessed: regenerate the key soon"
                    ));
                }
                Ok(Self { input, id, is_active, secret, past, notes })
            }
            (input, _) => {
                errors.extend(input.err().unwrap_or_default());
                Err(errors)
            }
        }
    }

    /// The key in `workspace`, which is on `plan`.
    pub fn into_key(
        self,
        workspace: WorkspaceId,
        plan: &Plan,
        prefix: &str,
        peppers: &Peppers,
    ) -> ImportedKey {
        let Self { mut input, id, is_active, secret, past, mut notes } = self;
        let limit = plan.api_ops_rate_limit;
        match input.rate_limit {
            Some(rate) if rate > limit => notes.push(format!(
                "rate_limit {rate} is above the {limit} requests/s of plan {}; the key runs at the plan's",
                plan.id
            )),
            Some(_) => {}
            None => input.rate_limit = Some(RATE_DEFAULT.min(limit)),
        }
        input.daily_request_limit.get_or_insert(plan.default_daily_request_limit);
        let issued = match secret {
            ImportedSecret::Plaintext(secret) => credential(&secret, prefix, peppers),
            ImportedSecret::Sha256 { digest, hint } => credential_of_sha256(&digest, hint, peppers),
        };
        let mut key = input.into_moved_key(id, workspace, issued, past);
        key.key.is_active = is_active;
        ImportedKey { key, notes }
    }
}

/// Converts values of other systems.
fn adapt(row: &mut Map<String, Value>, notes: &mut Vec<String>) {
    // Output of GET, derived from expires_at.
    row.remove("is_expired");
    if row.get("type").and_then(Value::as_str) == Some(CLUSTER) {
        row.insert("type".into(), json!("multi_agent"));
        notes.push("type cluster became multi_agent".to_owned());
    }
    if let Some(at) = row.get("expires_at").and_then(Value::as_str).and_then(naive) {
        row.insert("expires_at".into(), json!(at.as_millis()));
    }
}

// === bodies ===

/// The rows, and whether this is a dry run.
pub struct ImportBody {
    /// The rows, each an object.
    pub rows: Vec<Map<String, Value>>,
    /// Stores nothing.
    pub dry_run: bool,
}

/// The maximum of rows in one import.
const ROWS_MAX: usize = 1_000;

impl ImportBody {
    /// Parses `body`, whose rows are in the field `name`.
    pub fn read(body: &Map<String, Value>, name: &'static str) -> Result<Self, Vec<FieldError>> {
        let mut fields = InputFields::of(body);
        let rows = fields.required(name, rows);
        let dry_run = fields.optional("dry_run", rules::flag).unwrap_or(false);
        match (rows, fields.finish()) {
            (Some(rows), errors) if errors.is_empty() => Ok(Self { rows, dry_run }),
            (_, errors) => Err(errors),
        }
    }
}

fn rows(value: &Value) -> Result<Vec<Map<String, Value>>, ValidationErrors> {
    let allowed = format!("must be a list of 1 to {ROWS_MAX} objects");
    let list = value.as_array().filter(|list| (1..=ROWS_MAX).contains(&list.len()));
    let list = list.ok_or_else(|| ValidationErrors::from(allowed))?;
    let mut errors = Vec::new();
    let mut found = Vec::with_capacity(list.len());
    for (place, row) in list.iter().enumerate() {
        match row.as_object() {
            Some(row) => found.push(row.clone()),
            None => errors.extend(ValidationErrors::from("must be an object").within(place)),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(ValidationErrors(errors)) }
}

// === end users ===

/// Parses `row` as an end user of `workspace`; on failure reports every error.
pub fn read_imported_end_user(
    row: &Map<String, Value>,
    workspace: &WorkspaceId,
    now: Timestamp,
) -> Result<EndUserRecord, Vec<FieldError>> {
    let mut fields = InputFields::of(row);
    let other_id = fields.required("other_id", rules::end_user);
    let id = fields.optional("id", end_user_id).unwrap_or_else(|| EndUserId::new(now));
    let created_at = fields.optional("created_at", instant).unwrap_or(now);
    if fields.optional("workspace_id", rules::word::<WorkspaceId>).is_some_and(|id| id != *workspace) {
        fields.refuse("workspace_id", format!("must be {workspace}, or absent"));
    }
    match (other_id, fields.finish()) {
        (Some(other_id), errors) if errors.is_empty() => {
            Ok(EndUserRecord { id, workspace_id: workspace.clone(), other_id, created_at })
        }
        (_, errors) => Err(errors),
    }
}

// === rules ===

fn plaintext(value: &Value, prefix: &str) -> Result<Secret, ValidationErrors> {
    let text = rules::secret(value)?;
    let why = "has the form of a secret made here and a wrong checksum; is it complete?";
    Secret::import(text, prefix).ok_or_else(|| why.into())
}

fn sha256(value: &Value) -> Result<[u8; 32], ValidationErrors> {
    let mut digest = [0; 32];
    let text = value.as_str().unwrap_or_default();
    let decoded = hex::decode_to_slice(text, &mut digest);
    decoded.map_err(|_| "must be 64 hexadecimal characters: the SHA-256 digest of the secret")?;
    Ok(digest)
}

fn key_id(value: &Value) -> Result<KeyId, ValidationErrors> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| "must be a UUID".into())
}

fn end_user_id(value: &Value) -> Result<EndUserId, ValidationErrors> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| "must be a UUID".into())
}

fn flag(value: &Value) -> Result<bool, ValidationErrors> {
    match value.as_str() {
        Some("true" | "t") => Ok(true),
        Some("false" | "f") => Ok(false),
        _ => rules::flag(value),
    }
}

fn count(value: &Value) -> Result<u64, ValidationErrors> {
    rules::whole(0, CEILING_MAX)(value)
}

/// A time in the past or the future; in UTC if it has no time zone.
fn instant(value: &Value) -> Result<Timestamp, ValidationErrors> {
    let at = match value {
        Value::String(text) => parse_instant(text).or_else(|| naive(text)),
        Value::Number(number) => parse_instant(&number.to_string()),
        _ => None,
    };
    at.ok_or_else(|| INSTANT_ALLOWED.into())
}

/// A time as databases print it, without a time zone.
fn naive(text: &str) -> Option<Timestamp> {
    let forms = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"];
    let read = |form| chrono::NaiveDateTime::parse_from_str(text, form).ok();
    let at = forms.into_iter().find_map(read)?;
    let at = Timestamp::from_micros(at.and_utc().timestamp_micros());
    (Timestamp::default()..=Timestamp::MAX).contains(&at).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_767_225_600);

    fn read(row: Value) -> Result<ImportKeyInput, Vec<FieldError>> {
        let row = row.as_object().cloned().expect("an object");
        ImportKeyInput::read(&row, &"w".parse().expect("an id"), "sk", "cli", NOW)
    }

    fn plan(rate: u32) -> Plan {
        let body = json!({"id": "p", "api_ops_rate_limit": rate, "end_user_quota": 1,
            "default_daily_request_limit": 7});
        let input = super::super::CreatePlanInput::read(body.as_object().expect("an object"));
        input.expect("a plan").into_record(NOW).plan
    }

    fn imported(row: Value) -> ImportedKey {
        let peppers = Peppers::new(vec![(1, vec![7; 32])]).expect("a pepper");
        let input = read(row).unwrap_or_else(|errors| panic!("{errors:?}"));
        input.into_key("w".parse().expect("an id"), &plan(10), "sk", &peppers)
    }

    #[test]
    fn a_key_is_what_it_was() {
        let row = json!({"name": "n", "scopes": [], "api_key": "sk-service-0123456789_-abcdefghijklmnopqrs",
            "rate_limit": 1000, "is_active": false, "expires_at": "2020-01-01 00:00:00", "created_by": "ada",
            "created_at": "2019-05-06T07:08:09.5", "quota_used": 5, "usage_count": 9,
            "last_used_at": 1_577_000_000, "is_expired": true});
        let ImportedKey { key, notes } = imported(row);
        assert_eq!((key.key.ceilings.rate_limit, key.key.is_active), (1_000, false));
        assert_eq!(key.key.ceilings.daily_request_limit, Some(7));
        assert_eq!(key.key.expires_at, Some(Timestamp::from_secs(1_577_836_800)));
        let past = key.past.expect("a past");
        assert_eq!((past.created_by.as_str(), past.quota_used, past.usage_count), ("ada", 5, 9));
        assert_eq!(past.created_at, Timestamp::from_millis(1_557_126_489_500));
        assert_eq!(past.last_used_at, Some(Timestamp::from_secs(1_577_000_000)));
        let told = ["has expired", "is disabled", "rate_limit 1000 is above the 10 requests/s"];
        assert!(notes.iter().zip(told).all(|(note, part)| note.contains(part)), "{notes:?}");
        let ImportedKey { key, notes } =
            imported(json!({"name": "n", "type": "cluster", "resource_id": "r", "sha256": "ab".repeat(32)}));
        assert_eq!(key.key.kind.as_str(), "multi_agent");
        assert_eq!((notes.len(), &*key.credential.hint), (1, "sha256:abababab…"));
        assert_eq!(key.key.ceilings.rate_limit, 10, "no more than the plan's where none is asked for");
    }

    #[test]
    fn a_short_secret_is_imported_with_a_warning() {
        for (secret, is_short) in [("a".repeat(21), true), ("a".repeat(22), false)] {
            let notes = imported(json!({"name": "n", "scopes": [], "api_key": secret})).notes;
            assert_eq!(notes.iter().any(|note| note.contains("may be guessed")), is_short, "{notes:?}");
            assert!(notes.iter().all(|note| !note.contains(&secret)), "{notes:?}");
        }
        let digest = imported(json!({"name": "n", "scopes": [], "sha256": "ab".repeat(32)}));
        assert_eq!(digest.notes, Vec::<String>::new(), "its length is unknown");
    }

    #[test]
    fn every_mistake_of_a_row_is_named() {
        let whole = "sk-service-0123456789abcdefghijklmnopqrstuvwxyz";
        for (row, fields) in [
            (json!({}), vec!["api_key", "name", "scopes"]),
            (json!({"name": "n", "scopes": [], "api_key": "k", "sha256": "ab".repeat(32)}), vec!["sha256"]),
            (json!({"name": "n", "scopes": [], "sha256": "ab"}), vec!["sha256"]),
            (json!({"name": "n", "scopes": [], "api_key": whole}), vec!["api_key"]),
            (
                json!({"name": "n", "scopes": [], "api_key": "k", "id": 5, "quota_used": -1, "nonsense": 1}),
                vec!["id", "quota_used", "nonsense"],
            ),
            (
                json!({"name": "n", "scopes": [], "api_key": "k", "workspace_id": "v", "created_at": "x"}),
                vec!["created_at", "workspace_id"],
            ),
        ] {
            let errors = read(row.clone()).err().unwrap_or_default();
            let mut found: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
            found.sort_unstable();
            let mut fields = fields;
            fields.sort_unstable();
            assert_eq!(found, fields, "{row}");
        }
    }
}
