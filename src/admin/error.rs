//! Errors of the admin API: a fault of the table, plus details.
//!
//! Must not know: how an answer is written. A response carries its error as an extension, which `envelope` writes. Reveals nothing internal: the error of a store is logged here,
//! once.

use super::input::FieldError;
use crate::model::fault::{Fault, Lang};
use crate::store::{NotRestorable, StoreError};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::borrow::Cow;

/// An error of the admin API.
#[derive(Clone, Debug)]
pub(super) struct AdminError {
    fault: Fault,
    particular: Option<LocalizedText>,
    data: Value,
}

/// A message in both languages.
#[derive(Clone, Debug)]
struct LocalizedText {
    en: String,
    zh: String,
}

// === impl AdminError ===

impl AdminError {
    /// `fault` with the table's message.
    pub(super) fn of(fault: Fault) -> Self {
        Self { fault, particular: None, data: json!({}) }
    }

    /// A body with these mistakes.
    pub(super) fn fields(errors: Vec<FieldError>) -> Self {
        Self::listing(Fault::ValidationFailed, errors)
    }

    /// One mistake in a body.
    pub(super) fn field(field: &str, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldError { field: field.to_owned(), message: message.into() }])
    }

    /// A query, path or header with these mistakes.
    pub(super) fn parameters(errors: Vec<FieldError>) -> Self {
        Self::listing(Fault::InvalidParameter, errors)
    }

    /// One mistake in a query, path or header.
    pub(super) fn parameter(name: &str, message: impl Into<String>) -> Self {
        Self::parameters(vec![FieldError { field: name.to_owned(), message: message.into() }])
    }

    /// A conflict with its own message.
    pub(super) fn conflict(en: impl Into<String>, zh: impl Into<String>) -> Self {
        Self::of(Fault::Conflict).saying(en.into(), zh.into())
    }

    /// The error for a failed store call; `missing` is the fault if something does not exist.
    pub(super) fn of_store(error: StoreError, missing: Fault) -> Self {
        match error {
            StoreError::NotFound(_) => Self::of(missing),
            StoreError::Repeated(_) => Self::of(Fault::Conflict),
            StoreError::IdempotencyKeyReused => Self::of(Fault::IdempotencyKeyReused),
            StoreError::DuplicateName => Self::of(Fault::KeyDuplicateName),
            StoreError::DuplicateExternalId => Self::conflict(
                "The workspace already has a key of that external_id",
                "该工作空间已有相同 external_id 的密钥",
            ),
            StoreError::AlreadyExists(what) => {
                Self::conflict(format!("There already is a {what} of that id"), "该标识已存在")
            }
            StoreError::PlanInUse { workspaces } => Self::conflict(
                format!("{workspaces} workspaces are on this plan; move them to another plan first"),
                format!("该套餐正被 {workspaces} 个工作空间使用，请先将其迁移到其他套餐"),
            ),
            StoreError::WorkspaceInUse { keys } => Self::conflict(
                format!("{keys} keys of this workspace are in use; delete them first, or say force=true"),
                format!("该工作空间仍有 {keys} 个密钥；请先删除它们，或使用 force=true"),
            )
            .with_data(json!({"keys": keys})),
            StoreError::WorkspaceDeleted => Self::of(Fault::WorkspaceNoAccess)
                .saying("This workspace was deleted".into(), "该工作空间已被删除".into()),
            StoreError::NotRestorable(why) => Self::not_restorable(why),
            StoreError::RateAbovePlan { asked, limit, plan } => {
                let mut above = Self::of(Fault::BadRequest).saying(
                    format!("rate_limit {asked} is above the {limit} requests per second of plan {plan}"),
                    format!("rate_limit {asked} 超过套餐 {plan} 的上限：每秒 {limit} 次请求"),
                );
                above.data = json!({"field": "rate_limit", "rate_limit": asked, "plan_limit": limit, "plan_id": plan.as_str()});
                above
            }
            StoreError::Invalid { field, why } => Self::field(field, why),
            StoreError::Unavailable(why) => {
                tracing::warn!(%why, "admin request failed: store unavailable");
                Self::of(Fault::ServiceUnavailable)
            }
            broken @ (StoreError::WrongPepper(_)
            | StoreError::Refused(_)
            | StoreError::Corrupt(_)
            | StoreError::Cancelled) => {
                tracing::error!(error = %broken, "admin request failed: store error");
                Self::of(Fault::Internal)
            }
        }
    }

    /// The fault in the table.
    pub(super) const fn fault(&self) -> Fault {
        self.fault
    }

    /// The message for people.
    pub(super) fn message(&self, lang: Lang) -> Cow<'static, str> {
        match (&self.particular, lang) {
            (None, _) => self.fault.message(lang).into(),
            (Some(said), Lang::En) => said.en.clone().into(),
            (Some(said), Lang::Zh) => said.zh.clone().into(),
        }
    }

    /// The details for programs.
    pub(super) const fn data(&self) -> &Value {
        &self.data
    }

    /// The same fault with machine-readable detail.
    pub(super) fn with_data(self, data: Value) -> Self {
        Self { data, ..self }
    }

    /// `fault` with these mistakes.
    pub(super) fn listing(fault: Fault, errors: Vec<FieldError>) -> Self {
        let first = errors.first().map(|e| format!("{} {}", e.field, e.message)).unwrap_or_default();
        let en = format!("{}: {first}", fault.message(Lang::En));
        let zh = format!("{}：{first}", fault.message(Lang::Zh));
        let errors = serde_json::to_value(errors).unwrap_or_default();
        Self::of(fault).saying(en, zh).with_data(json!({"errors": errors}))
    }

    fn not_restorable(why: NotRestorable) -> Self {
        match why {
            NotRestorable::NotDeleted => Self::conflict("The key is not deleted", "该密钥未被删除"),
            NotRestorable::SecretNotKept => Self::conflict(
                "The key cannot be restored: its secret is not kept any more, or another key has it",
                "无法恢复该密钥：其密文已不再保存，或已属于其他密钥",
            ),
            NotRestorable::PepperMissing(version) => Self::conflict(
                format!(
                    "The key cannot be restored: pepper {version} of its secret is not configured any more"
                ),
                format!("无法恢复该密钥：其密文所用的 pepper {version} 已不在配置中"),
            ),
        }
    }

    /// The same fault with its own message.
    pub(super) fn saying(self, en: String, zh: String) -> Self {
        Self { particular: Some(LocalizedText { en, zh }), ..self }
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.fault.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        match status {
            StatusCode::UNAUTHORIZED => {
                let challenge = match self.fault {
                    Fault::Unauthorized => "Bearer",
                    _ => "Bearer error=\"invalid_token\"",
                };
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response.extensions_mut().insert(self);
        response
    }
}
