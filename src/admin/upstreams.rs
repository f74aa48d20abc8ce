//! Credentials for backends in the store: list, store, delete. No answer has a secret.

use super::apikeys::Deleted;
use super::caller::PlatformAdmin;
use super::context::AdminState;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{CredentialPath, Object, PathSegment, Query};
use super::input::PutCredentialInput;
use super::page::millis;
use super::schema::CredentialPut;
use crate::model::fault::Fault;
use crate::store::{CredentialRecord, StoreError};
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

/// A credential for the backends of an upstream, without its secret.
#[derive(Serialize, ToSchema)]
pub(super) struct CredentialView {
    /// UUIDv7.
    id: String,
    /// The upstream.
    upstream: String,
    /// The workspace whose requests get it; null: any.
    workspace_id: Option<String>,
    /// The entry of the key's metadata that they must have, as `NAME=VALUE`; null: any key.
    metadata: Option<String>,
    /// The header that carries it.
    header: String,
    /// The authentication scheme before it; null: it stands alone.
    scheme: Option<String>,
    /// The version of the key it is encrypted under.
    key_version: u32,
    /// Whether the node that answers can decrypt it. If not, its requests are answered with 503.
    is_usable: bool,
    /// Who stored it last.
    created_by: String,
    /// Epoch milliseconds.
    created_at: i64,
    /// Epoch milliseconds.
    updated_at: i64,
}

/// The stored credentials of an upstream.
#[derive(Serialize, ToSchema)]
pub(super) struct Credentials {
    /// By workspace and metadata.
    items: Vec<CredentialView>,
}

/// List the stored credentials of an upstream
///
/// Role `platform`. Who stored which, for whom and when; never the secrets. Those of the config file are not among them.
#[utoipa::path(get, path = "/upstreams/{name}/credentials", tag = "Upstreams",
params(("name" = String, Path, description = "Which upstream")), responses(
    (status = 200, description = "Its credentials", body = Envelope<Credentials>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn list_credentials(
    State(admin): State<AdminState>,
    _: PlatformAdmin,
    PathSegment(upstream): PathSegment,
    Query(()): Query<()>,
) -> Result<ApiResponse<Credentials>, AdminError> {
    let found = admin.ask(Fault::NotFound, admin.deps.store.credentials(Some(&upstream))).await?;
    if found.is_empty() && !admin.deps.backends.has_upstream(&upstream) {
        return Err(AdminError::of(Fault::NotFound));
    }
    let items = found.into_iter().map(|record| CredentialView::new(&admin, record)).collect();
    Ok(ApiResponse::ok(Credentials { items }))
}

/// Store a credential for an upstream
///
/// Role `platform`. It is encrypted under the newest encryption key of the node that is called. One for the same
/// `workspace_id` and `metadata` is replaced. Stored credentials come before those of the config file; one for a workspace
/// comes before one for any, and one for an entry of the metadata before one for any key.
#[utoipa::path(put, path = "/upstreams/{name}/credentials", tag = "Upstreams",
params(("name" = String, Path, description = "Which upstream")), request_body = CredentialPut, responses(
    (status = 200, description = "It is stored", body = Envelope<CredentialView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn put_credential(
    State(admin): State<AdminState>,
    PlatformAdmin { actor }: PlatformAdmin,
    PathSegment(upstream): PathSegment,
    Query(()): Query<()>,
    Object(body): Object,
) -> Result<ApiResponse<CredentialView>, AdminError> {
    let at = admin.now();
    let input = PutCredentialInput::read(&body).map_err(AdminError::fields)?;
    let backends = &admin.deps.backends;
    if !backends.has_upstream(&upstream) {
        return Err(AdminError::of(Fault::NotFound));
    }
    let keys = backends.encryption_keys().ok_or_else(|| {
        AdminError::conflict(
            "This node has no encryption key: set secrets.encryption_key_file or KEYGATE_SECRETS_ENCRYPTION_KEYS on every node",
            "本节点没有加密密钥：请在每个节点上设置 secrets.encryption_key_file 或 KEYGATE_SECRETS_ENCRYPTION_KEYS",
        )
    })?;
    let sealed = input.seal(&upstream, keys, at);
    let call = async {
        match admin.deps.store.put_credential(sealed, &actor, at).await {
            Err(StoreError::NotFound(_)) => Err(StoreError::Invalid {
                field: "workspace_id",
                why: "must be a workspace that exists".into(),
            }),
            other => other,
        }
    };
    let record = admin.write(Fault::NotFound, call).await?;
    Ok(ApiResponse::ok(CredentialView::new(&admin, record)))
}

/// Delete a stored credential of an upstream
///
/// Role `platform`. Its requests get the next one that is for them, at once and on every node.
#[utoipa::path(delete, path = "/upstreams/{name}/credentials/{credential_id}", tag = "Upstreams",
params(("name" = String, Path, description = "Which upstream"), ("credential_id" = String, Path, description = "Which credential")),
responses(
    (status = 200, description = "It is gone", body = Envelope<Deleted>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn delete_credential(
    State(admin): State<AdminState>,
    PlatformAdmin { actor }: PlatformAdmin,
    CredentialPath { upstream, credential }: CredentialPath,
    Query(()): Query<()>,
) -> Result<ApiResponse<Deleted>, AdminError> {
    let call = admin.deps.store.delete_credential(&upstream, credential, &actor, admin.now());
    admin.write(Fault::NotFound, call).await?;
    Ok(ApiResponse::ok(Deleted::new(&credential)))
}

impl CredentialView {
    fn new(admin: &AdminState, record: CredentialRecord) -> Self {
        let CredentialRecord { credential, created_by, created_at, updated_at } = record;
        let selector = credential.selector;
        Self {
            id: credential.id.to_string(),
            upstream: selector.upstream.into(),
            workspace_id: selector.workspace.map(|id| id.to_string()),
            metadata: selector.metadata.map(|entry| entry.to_string()),
            header: credential.header.into(),
            scheme: credential.scheme.map(Into::into),
            key_version: credential.key_version,
            is_usable: admin.deps.backends.is_usable(credential.id),
            created_by,
            created_at: millis(created_at),
            updated_at: millis(updated_at),
        }
    }
}
