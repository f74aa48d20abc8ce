//! Data of plans and workspaces from clients, validated.

use super::fields::{FieldError, InputFields};
use super::rules;
use crate::clock::Timestamp;
use crate::model::grant::{Grant, GrantedLimit};
use crate::model::id::{GrantId, PlanId};
use crate::model::key::{CEILING_MAX, DAILY_DEFAULT, DELETED_KEYS_DAYS_DEFAULT, Measure, Owner, Per, Plan};
use crate::store::{PlanPatch, PlanRecord, WorkspacePatch};
use serde_json::{Map, Value};

/// A requested plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatePlanInput {
    plan: Plan,
    description: String,
    usage_retention_days: Option<u32>,
    deleted_keys_days: u32,
}

/// A requested change of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpdatePlanInput(PlanPatch);

/// A requested workspace, or a change of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpdateWorkspaceInput(WorkspacePatch);

/// A requested grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateGrantInput {
    limit: GrantedLimit,
    amount: u64,
    reason: String,
    until: Timestamp,
}

// === impl CreatePlanInput ===

impl CreatePlanInput {
    /// Reads `body`; on failure returns every mistake.
    pub fn read(body: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut fields = InputFields::of(body);
        let id = fields.required("id", rules::word::<PlanId>);
        let rate = fields.required("api_ops_rate_limit", rules::rate);
        let quota = fields.required("end_user_quota", rules::whole(0, CEILING_MAX));
        let daily = fields.cleared("default_daily_request_limit", rules::ceiling);
        let limits = fields.optional("limits", rules::plan_limits).unwrap_or_default();
        let calendar = fields.optional("calendar", rules::calendar).unwrap_or_default();
        let description = fields.optional("description", rules::description).unwrap_or_default();
        let usage_retention_days = fields.optional("usage_retention_days", rules::days);
        let deleted_keys_days = fields.optional("deleted_keys_days", rules::deleted_keys_days);
        match (id, rate, quota, fields.finish()) {
            (Some(id), Some(api_ops_rate_limit), Some(end_user_quota), errors) if errors.is_empty() => {
                let default_daily_request_limit = daily.unwrap_or(Some(DAILY_DEFAULT));
                let plan = Plan {
                    id,
                    api_ops_rate_limit,
                    end_user_quota,
                    default_daily_request_limit,
                    limits,
                    calendar,
                };
                let deleted_keys_days = deleted_keys_days.unwrap_or(DELETED_KEYS_DAYS_DEFAULT);
                Ok(Self { plan, description, usage_retention_days, deleted_keys_days })
            }
            (.., errors) => Err(errors),
        }
    }

    /// The plan as it is stored at the instant `at`.
    pub fn into_record(self, at: Timestamp) -> PlanRecord {
        let Self { plan, description, usage_retention_days, deleted_keys_days } = self;
        let (created_at, updated_at) = (at, at);
        PlanRecord { plan, description, usage_retention_days, deleted_keys_days, created_at, updated_at }
    }
}

// === impl UpdatePlanInput ===

impl UpdatePlanInput {
    /// Reads `body`; on failure returns every mistake.
    pub fn read(body: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut fields = InputFields::of(body);
        let patch = PlanPatch {
            description: fields.cleared("description", rules::description).map(Option::unwrap_or_default),
            usage_retention_days: fields.cleared("usage_retention_days", rules::days),
            deleted_keys_days: fields.changed("deleted_keys_days", rules::deleted_keys_days),
            api_ops_rate_limit: fields.changed("api_ops_rate_limit", rules::rate),
            end_user_quota: fields.changed("end_user_quota", rules::whole(0, CEILING_MAX)),
            default_daily_request_limit: fields.cleared("default_daily_request_limit", rules::ceiling),
            limits: fields.cleared("limits", rules::plan_limits).map(Option::unwrap_or_default),
            calendar: fields.cleared("calendar", rules::calendar).map(Option::unwrap_or_default),
        };
        fields.fixed("id");
        let errors = fields.finish();
        if errors.is_empty() { Ok(Self(patch)) } else { Err(errors) }
    }

    /// The change.
    pub fn into_patch(self) -> PlanPatch {
        self.0
    }
}

// === impl UpdateWorkspaceInput ===

impl UpdateWorkspaceInput {
    /// Reads `body`; on failure returns every mistake.
    pub fn read(body: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut fields = InputFields::of(body);
        let patch = WorkspacePatch {
            name: fields.cleared("name", rules::name_or_empty).map(Option::unwrap_or_default),
            plan_id: fields.changed("plan_id", rules::word::<PlanId>),
        };
        fields.fixed("id");
        let errors = fields.finish();
        if errors.is_empty() { Ok(Self(patch)) } else { Err(errors) }
    }

    /// The change.
    pub fn into_patch(self) -> WorkspacePatch {
        self.0
    }
}

// === impl CreateGrantInput ===

impl CreateGrantInput {
    /// Reads `body`; on failure returns every mistake.
    pub fn read(body: &Map<String, Value>, now: Timestamp) -> Result<Self, Vec<FieldError>> {
        let mut fields = InputFields::of(body);
        let limit = fields.required("limit", |value| match value.as_str() {
            Some(word) if GrantedLimit::WORDS.contains(&word) => Ok(word.to_owned()),
            _ => Err(format!("must be one of: {}", GrantedLimit::WORDS.join(", ")).into()),
        });
        let limit = match limit.as_deref() {
            Some("api_ops_rate_limit") => Some(GrantedLimit::ApiOpsRateLimit),
            Some("end_user_quota") => Some(GrantedLimit::EndUserQuota),
            // These fields of other limits are unknown.
            Some(_) => {
                let of = fields.optional("of", rules::word::<Owner>).unwrap_or(Owner::Workspace);
                let (count, per) = (
                    fields.required("count", rules::word::<Measure>),
                    fields.required("per", rules::word::<Per>),
                );
                count.zip(per).map(|(count, per)| GrantedLimit::Further { of, count, per })
            }
            None => None,
        };
        let amount = fields.required("amount", rules::ceiling);
        let reason = fields.required("reason", rules::name);
        let until = fields.required("until", rules::future_or(now, None));
        match (limit, amount, reason, until, fields.finish()) {
            (Some(limit), Some(amount), Some(reason), Some(until), errors) if errors.is_empty() => {
                Ok(Self { limit, amount, reason, until })
            }
            (.., errors) => Err(errors),
        }
    }

    /// The grant by `subject`, as it is stored at the instant `at`.
    pub fn into_grant(self, subject: &str, at: Timestamp) -> Grant {
        let Self { limit, amount, reason, until } = self;
        Grant {
            id: GrantId::new(at),
            limit,
            amount,
            reason,
            created_by: subject.to_owned(),
            created_at: at,
            until,
        }
    }
}
