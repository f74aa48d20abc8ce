//! Key data from clients, validated. Contract 4.3 and 5.

use super::fields::{FieldError, InputFields};
use super::rules;
use crate::clock::Timestamp;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::{Ceiling, Ceilings, DAILY_DEFAULT, Key, KeyType, Plan, RATE_DEFAULT};
use crate::model::scope::{Scopes, check_granted};
use crate::store::{ImportedKeyHistory, IssuedCredential, KeyPatch, NewKey, StoreError};
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::time::Duration;

/// A requested key, valid in itself; whether it fits its plan is checked later.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateKeyInput {
    /// The name.
    pub name: String,
    /// The description.
    pub description: String,
    /// The type.
    pub kind: KeyType,
    /// The scopes.
    pub scopes: Scopes,
    /// The resource it is bound to.
    pub resource_id: Box<str>,
    /// Requests per second, if given.
    pub rate_limit: Option<u32>,
    /// See [`Ceilings::rate_burst`].
    pub rate_burst: Option<u32>,
    /// See [`Ceilings::daily_request_limit`]; absent: the plan's default.
    pub daily_request_limit: Option<Option<u64>>,
    /// See [`Ceilings::quota_limit`].
    pub quota_limit: Option<u64>,
    /// See [`Ceilings::concurrency_limit`].
    pub concurrency_limit: Option<u32>,
    /// See [`Ceilings::limits`].
    pub limits: Box<[Ceiling]>,
    /// See [`Key::expires_at`].
    pub expires_at: Option<Timestamp>,
    /// See [`Key::allowed_ips`].
    pub allowed_ips: Box<[IpNet]>,
    /// See [`Key::end_user`].
    pub end_user: Option<Box<str>>,
    /// See [`crate::store::KeyRecord::external_id`].
    pub external_id: Option<String>,
    /// The caller's own data.
    pub metadata: Map<String, Value>,
}

/// A requested change of a key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpdateKeyInput(KeyPatch);

// === impl CreateKeyInput ===

impl CreateKeyInput {
    /// Reads `body` as a key of `workspace`; on failure returns every mistake.
    pub fn read(
        body: &Map<String, Value>,
        workspace: &WorkspaceId,
        now: Timestamp,
    ) -> Result<Self, Vec<FieldError>> {
        let mut fields = InputFields::of(body);
        let name = fields.required("name", rules::name);
        let kind = match fields.optional("type", rules::word::<KeyType>) {
            None if body.get("type").is_none_or(Value::is_null) => Some(KeyType::Service),
            kind => kind,
        };
        let resource_id = resource_of(&mut fields, body, kind, workspace);
        let scopes = scopes_of(&mut fields, kind);
        let description = fields.optional("description", rules::description);
        let rate_limit = fields.optional("rate_limit", rules::rate);
        let rate_burst = fields.optional("rate_burst", rules::rate);
        let daily_request_limit = fields.cleared("daily_request_limit", rules::ceiling);
        let quota_limit = fields.optional("quota_limit", rules::ceiling);
        let concurrency_limit = fields.optional("concurrency_limit", rules::in_flight);
        let limits = fields.optional("limits", rules::limits);
        let expires_at = fields.optional("expires_at", rules::future_or(now, None));
        let allowed_ips = fields.optional("allowed_ips", rules::networks);
        let end_user = fields.optional("end_user", rules::end_user);
        let external_id = fields.optional("external_id", rules::external_id);
        let metadata = fields.optional("metadata", rules::metadata);
        let errors = fields.finish();
        let (Some(name), Some(kind), Some(resource_id), Some(scopes), true) =
            (name, kind, resource_id, scopes, errors.is_empty())
        else {
            return Err(errors);
        };
        Ok(Self {
            name,
            description: description.unwrap_or_default(),
            kind,
            scopes,
            resource_id,
            rate_limit,
            rate_burst,
            daily_request_limit,
            quota_limit,
            concurrency_limit,
            limits: limits.unwrap_or_default(),
            expires_at,
            allowed_ips: allowed_ips.unwrap_or_default(),
            end_user: end_user.map(Into::into),
            external_id,
            metadata: metadata.unwrap_or_default(),
        })
    }

    /// The key, with the default rate under `plan` if none was given. [`StoreError::RateAbovePlan`] if the given one is too
    /// high.
    pub fn into_new_key(
        self,
        id: KeyId,
        workspace_id: WorkspaceId,
        plan: &Plan,
        credential: IssuedCredential,
    ) -> Result<NewKey, StoreError> {
        let limit = plan.api_ops_rate_limit;
        if let Some(asked) = self.rate_limit.filter(|asked| *asked > limit) {
            return Err(StoreError::RateAbovePlan { asked, limit, plan: plan.id.clone() });
        }
        let rate_limit = self.rate_limit.unwrap_or(RATE_DEFAULT.min(limit));
        let daily = self.daily_request_limit.unwrap_or(plan.default_daily_request_limit);
        Ok(self.with(rate_limit, daily, id, workspace_id, credential, None))
    }

    /// The key from another store, whatever its plan allows now.
    pub fn into_moved_key(
        self,
        id: KeyId,
        workspace_id: WorkspaceId,
        credential: IssuedCredential,
        past: ImportedKeyHistory,
    ) -> NewKey {
        let rate_limit = self.rate_limit.unwrap_or(RATE_DEFAULT);
        let daily = self.daily_request_limit.unwrap_or(Some(DAILY_DEFAULT));
        self.with(rate_limit, daily, id, workspace_id, credential, Some(past))
    }

    fn with(
        self,
        rate_limit: u32,
        daily_request_limit: Option<u64>,
        id: KeyId,
        workspace_id: WorkspaceId,
        credential: IssuedCredential,
        past: Option<ImportedKeyHistory>,
    ) -> NewKey {
        let ceilings = Ceilings {
            rate_limit,
            rate_burst: self.rate_burst,
            daily_request_limit,
            quota_limit: self.quota_limit,
            concurrency_limit: self.concurrency_limit,
            limits: self.limits,
        };
        let key = Key {
            id,
            workspace_id,
            kind: self.kind,
            scopes: self.scopes,
            resource_id: self.resource_id,
            ceilings,
            allowed_ips: self.allowed_ips,
            is_active: true,
            expires_at: self.expires_at,
            end_user: self.end_user,
        };
        let Self { name, description, external_id, metadata, .. } = self;
        NewKey { key, name, description, external_id, metadata, credential, past, once: None }
    }
}

/// The resource of a key of type `kind`: its own, or the workspace itself for a service key.
fn resource_of(
    fields: &mut InputFields<'_>,
    body: &Map<String, Value>,
    kind: Option<KeyType>,
    workspace: &WorkspaceId,
) -> Option<Box<str>> {
    let given = fields.optional("resource_id", rules::resource_id);
    let Some(kind) = kind else { return given };
    if kind != KeyType::Service {
        if body.get("resource_id").is_none_or(Value::is_null) {
            fields.refuse("resource_id", format!("is required for a key of type {kind}"));
        }
        return given;
    }
    if given.as_deref().is_some_and(|id| id != workspace.as_str()) {
        fields.refuse(
            "resource_id",
            format!("must be the workspace ({workspace}) for a service key, or absent"),
        );
        return None;
    }
    Some(workspace.as_str().into())
}

fn scopes_of(fields: &mut InputFields<'_>, kind: Option<KeyType>) -> Option<Scopes> {
    let mut asked = false;
    let given = fields.optional("scopes", |value| {
        asked = true;
        rules::scopes(value)
    });
    let kind = kind?;
    match given {
        Some(scopes) => {
            if let Some(why) = lacks_implied_scope(kind, &scopes) {
                fields.refuse("scopes", why);
            }
            Some(scopes)
        }
        // Invalid scopes are in the errors already.
        None if asked => None,
        None => {
            let implied = kind.implied_scope();
            if implied.is_none() {
                let why = format!("is required for a key of type {kind}; an empty list grants nothing");
                fields.refuse("scopes", why);
            }
            Scopes::of(implied, check_granted).ok()
        }
    }
}

/// Why `scopes` are not enough for a key of type `kind`; none if they are.
fn lacks_implied_scope(kind: KeyType, scopes: &Scopes) -> Option<String> {
    let implied = kind.implied_scope().filter(|implied| !scopes.grants(implied))?;
    Some(format!("a key of type {kind} must hold the scope {implied}"))
}

// === impl UpdateKeyInput ===

impl UpdateKeyInput {
    /// Reads `body` as a change of a key that expires at `expires_at`; on failure returns every mistake.
    pub fn read(
        body: &Map<String, Value>,
        expires_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Self, Vec<FieldError>> {
        let mut fields = InputFields::of(body);
        let patch = KeyPatch {
            name: fields.changed("name", rules::name),
            description: fields.cleared("description", rules::description).map(Option::unwrap_or_default),
            external_id: fields.cleared("external_id", rules::external_id),
            scopes: fields.changed("scopes", rules::scopes),
            rate_limit: fields.changed("rate_limit", rules::rate),
            rate_burst: fields.cleared("rate_burst", rules::rate),
            daily_request_limit: fields.cleared("daily_request_limit", rules::ceiling),
            quota_limit: fields.cleared("quota_limit", rules::ceiling),
            concurrency_limit: fields.cleared("concurrency_limit", rules::in_flight),
            limits: fields.cleared("limits", rules::limits).map(Option::unwrap_or_default),
            is_active: fields.changed("is_active", rules::flag),
            expires_at: fields.cleared("expires_at", rules::future_or(now, expires_at)),
            allowed_ips: fields.cleared("allowed_ips", rules::networks).map(Option::unwrap_or_default),
            metadata: fields.cleared("metadata", rules::metadata).map(Option::unwrap_or_default),
        };
        for name in
            ["id", "type", "resource_id", "end_user", "workspace_id", "hint", "created_by", "created_at"]
        {
            fields.fixed(name);
        }
        let errors = fields.finish();
        if errors.is_empty() { Ok(Self(patch)) } else { Err(errors) }
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.0 == KeyPatch::default()
    }

    /// The change, if it is valid for a key of type `kind`.
    pub fn into_patch(self, kind: KeyType) -> Result<KeyPatch, Vec<FieldError>> {
        match self.0.scopes.as_ref().and_then(|scopes| lacks_implied_scope(kind, scopes)) {
            Some(message) => Err(vec![FieldError { field: "scopes".into(), message }]),
            None => Ok(self.0),
        }
    }
}

// === the rest ===

/// Longest grace period: 30 days, in seconds.
const GRACE_MAX_SECS: u64 = 30 * 24 * 3_600;

/// Reads the body of a regeneration: how long the previous secret stays valid; none if it ends at once.
pub fn read_grace_period(body: &Map<String, Value>) -> Result<Option<Duration>, Vec<FieldError>> {
    let mut fields = InputFields::of(body);
    let seconds = fields.optional("grace_period_seconds", rules::whole(0, GRACE_MAX_SECS));
    let errors = fields.finish();
    if errors.is_empty() { Ok(seconds.filter(|s| *s > 0).map(Duration::from_secs)) } else { Err(errors) }
}

/// Reads the body of a look-up: the secret of the wanted key.
pub fn read_lookup(body: &Map<String, Value>) -> Result<String, Vec<FieldError>> {
    let mut fields = InputFields::of(body);
    let secret = fields.required("api_key", rules::secret);
    match (secret, fields.finish()) {
        (Some(secret), errors) if errors.is_empty() => Ok(secret),
        (_, errors) => Err(errors),
    }
}
