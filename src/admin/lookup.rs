//! Which key is this secret?
//!
//! The secret is in the body of the call and nowhere else: not in the answer, the audit trail or a log.

use super::apikeys::{KeyView, find};
use super::caller::WorkspaceReader;
use super::context::AdminState;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{Object, Query};
use super::input::read_lookup;
use super::page::millis;
use super::schema::KeyLookup;
use crate::model::digest::Digest;
use crate::model::fault::Fault;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

/// The key that a secret opens.
#[derive(Serialize, ToSchema)]
pub(super) struct FoundKeyView {
    #[serde(flatten)]
    key: KeyView,
    /// Until when this secret opens the key, in epoch milliseconds, if it is the one before the current; null: it is current.
    secret_valid_until: Option<i64>,
}

/// Find the key of a secret
///
/// Role `viewer`. Answers 404 for a secret that opens no key of the workspace: unknown, replaced, or of a deleted key. Keys
/// that are disabled or have expired are found.
#[utoipa::path(post, path = "/apikeys/lookup", tag = "API keys", request_body = KeyLookup, responses(
    (status = 200, description = "The key", body = Envelope<FoundKeyView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn lookup_key(
    State(admin): State<AdminState>,
    WorkspaceReader { workspace }: WorkspaceReader,
    Query(()): Query<()>,
    Object(body): Object,
) -> Result<ApiResponse<FoundKeyView>, AdminError> {
    let secret = read_lookup(&body).map_err(AdminError::fields)?;
    let (at, keyring) = (admin.now(), &admin.deps.keyring);
    let mut found = None;
    for pepper in admin.deps.peppers.iter() {
        let digest = Digest(pepper.digest(secret.as_bytes()));
        if keyring.cannot_tell(&digest) {
            return Err(AdminError::of(Fault::ServiceUnavailable));
        }
        found = found.or_else(|| keyring.find(&digest, at));
    }
    let found = found.map(|found| found.presented).filter(|found| found.entry.key.workspace_id == workspace);
    let presented = found.ok_or_else(|| AdminError::of(Fault::KeyNotFound))?;
    let record = find(&admin, &workspace, presented.entry.key.id).await?;
    let secret_valid_until = presented.valid_until().map(millis);
    Ok(ApiResponse::ok(FoundKeyView { key: KeyView::new(record, at), secret_valid_until }))
}
