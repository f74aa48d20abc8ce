//! Finds the key of a secret.
//!
//! The secret is only in the body of the call: not in the response, the audit log or a log.

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
use crate::policy::keys::secret::sha256;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

/// The key of a secret.
#[derive(Serialize, ToSchema)]
pub(super) struct FoundKeyView {
    #[serde(flatten)]
    key: KeyView,
    /// The end of this secret's grace period, in epoch milliseconds, if it has been replaced; null: it is the current one.
    secret_valid_until: Option<i64>,
}

/// Find the key of a secret
///
/// Role `viewer`. 404 if the secret is not valid for any key of the workspace: unknown, replaced, or of a deleted key.
/// Disabled and expired keys are found.
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
        let by_sha256 = || Digest(pepper.digest_of_sha256(&sha256(secret.as_bytes())));
        found = found.or_else(|| keyring.find(&digest, at)).or_else(|| keyring.find(&by_sha256(), at));
    }
    let found = found.map(|found| found.presented).filter(|found| found.entry.key.workspace_id == workspace);
    let presented = found.ok_or_else(|| AdminError::of(Fault::KeyNotFound))?;
    let record = find(&admin, &workspace, presented.entry.key.id).await?;
    let secret_valid_until = presented.valid_until().map(millis);
    Ok(ApiResponse::ok(FoundKeyView { key: KeyView::new(record, at), secret_valid_until }))
}
