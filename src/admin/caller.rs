//! Authorizes callers: the only way for a handler to get a workspace.
//!
//! Must not know: how tokens are made or verified, or what handlers do. Each type here is proof of a decision: a handler
//! that takes a [`WorkspaceWriter`] cannot be called by somebody who may only read.

use super::auth::{Identity, Role};
use super::context::{Admin, AdminState};
use super::envelope::AdminRequestId;
use super::error::AdminError;
use crate::model::fault::Fault;
use crate::model::id::WorkspaceId;
use crate::store::Actor;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use std::net::SocketAddr;

/// A caller without a token, because whoever may reach it this way owns the node: by the Unix socket, or in this process.
/// Only the transport says so, never the request.
#[derive(Clone, Debug)]
pub struct LocalCaller {
    /// The subject in the audit log.
    pub subject: String,
}

/// Of a request that came over TLS to this server itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct OverTls;

/// A visitor of the console whom the identity provider has identified. Only the console says so, never a request from outside.
#[derive(Clone, Debug)]
pub(super) struct SignedIn(pub(super) Identity);

/// May read data of `workspace`.
pub(super) struct WorkspaceReader {
    pub(super) workspace: WorkspaceId,
}

/// May change data of `workspace`.
pub(super) struct WorkspaceWriter {
    pub(super) actor: Actor,
    pub(super) workspace: WorkspaceId,
}

/// May manage plans and workspaces.
pub(super) struct PlatformAdmin {
    pub(super) actor: Actor,
}

/// May read the audit log of `workspace`, and the platform's if the role is that.
pub(super) struct Auditor {
    /// None: the token of a platform caller names none, and neither does the call.
    pub(super) workspace: Option<WorkspaceId>,
    pub(super) is_platform: bool,
}

/// May read workspaces: all, or its own.
pub(super) enum WorkspaceVisitor {
    /// All.
    Everywhere,
    /// Only this one.
    Only(WorkspaceId),
}

/// The header in which a platform caller names a workspace.
pub(super) const WORKSPACE: HeaderName = HeaderName::from_static("x-workspace-id");
/// The workspace of a local caller that names none.
const LOCAL_WORKSPACE: &str = "default";

impl FromRequestParts<AdminState> for WorkspaceReader {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, admin: &AdminState) -> Result<Self, AdminError> {
        let (_, workspace) = confined(parts, admin, Role::Viewer).await?;
        Ok(Self { workspace })
    }
}

impl FromRequestParts<AdminState> for WorkspaceWriter {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, admin: &AdminState) -> Result<Self, AdminError> {
        let (actor, workspace) = confined(parts, admin, Role::Admin).await?;
        Ok(Self { actor, workspace })
    }
}

impl FromRequestParts<AdminState> for PlatformAdmin {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, admin: &AdminState) -> Result<Self, AdminError> {
        let identity = identify(parts, admin, Role::Platform).await?;
        Ok(Self { actor: actor(&identity, parts) })
    }
}

impl FromRequestParts<AdminState> for Auditor {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, admin: &AdminState) -> Result<Self, AdminError> {
        let identity = identify(parts, admin, Role::Admin).await?;
        let is_platform = identity.role == Role::Platform;
        if is_platform && identity.workspace.is_none() && !parts.headers.contains_key(WORKSPACE) {
            return Ok(Self { workspace: None, is_platform });
        }
        let (_, about) = settled(&identity, parts, admin).await?;
        Ok(Self { workspace: Some(about), is_platform })
    }
}

impl FromRequestParts<AdminState> for WorkspaceVisitor {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, admin: &AdminState) -> Result<Self, AdminError> {
        let identity = identify(parts, admin, Role::Viewer).await?;
        if identity.role == Role::Platform {
            return Ok(Self::Everywhere);
        }
        let (_, own) = settled(&identity, parts, admin).await?;
        Ok(Self::Only(own))
    }
}

/// A caller with at least the role `least`, and the workspace of the call.
async fn confined(parts: &Parts, admin: &Admin, least: Role) -> Result<(Actor, WorkspaceId), AdminError> {
    let identity = identify(parts, admin, least).await?;
    settled(&identity, parts, admin).await
}

/// `identity` as an actor, and the workspace of the call.
async fn settled(
    identity: &Identity,
    parts: &Parts,
    admin: &Admin,
) -> Result<(Actor, WorkspaceId), AdminError> {
    let by = actor(identity, parts);
    let found = workspace(identity, &by, parts, admin).await?;
    let about = found.ok_or_else(|| {
        AdminError::parameter(WORKSPACE.as_str(), "is required: the token names no workspace")
    })?;
    Ok((by, about))
}

/// The caller, if they have at least the role `least`.
async fn identify(parts: &Parts, admin: &Admin, least: Role) -> Result<Identity, AdminError> {
    let identity = match (parts.extensions.get(), local(parts)) {
        (Some(SignedIn(identity)), _) => identity.clone(),
        (None, Some(LocalCaller { subject })) => Identity {
            subject: subject.clone(),
            role: Role::Platform,
            workspace: None,
            names_workspace: false,
        },
        (None, None) => admin.identify(bearer(&parts.headers)?).await?,
    };
    if identity.role < least {
        let data = serde_json::json!({"role": identity.role.as_str(), "needed": least.as_str()});
        return Err(AdminError::of(Fault::Forbidden).with_data(data));
    }
    Ok(identity)
}

/// A caller that needs no token. One that presents a token gets that token's role.
fn local(parts: &Parts) -> Option<&LocalCaller> {
    parts.extensions.get().filter(|_| !parts.headers.contains_key(header::AUTHORIZATION))
}

/// The bearer token of a request (RFC 6750, 2.1).
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, AdminError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(|| AdminError::of(Fault::Unauthorized))?;
    if values.next().is_some() {
        return Err(AdminError::of(Fault::TokenInvalid));
    }
    let text = value.to_str().map_err(|_| AdminError::of(Fault::TokenInvalid))?;
    let (scheme, token) = text.trim().split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
        return Err(AdminError::of(Fault::Unauthorized));
    }
    Ok(token.trim())
}

/// The workspace of a call: the one in the header, if the caller may access it, or else the token's own.
async fn workspace(
    identity: &Identity,
    by: &Actor,
    parts: &Parts,
    admin: &Admin,
) -> Result<Option<WorkspaceId>, AdminError> {
    let named = named_workspace(&parts.headers)?;
    let usual = || local(parts).and_then(|_| LOCAL_WORKSPACE.parse().ok());
    let own = identity.workspace.clone().or_else(usual);
    if let Some(named) = named.filter(|named| own.as_ref() != Some(named)) {
        if identity.names_workspace && identity.role != Role::Platform {
            admin.enter(&named, by).await?;
            return Ok(Some(named));
        }
        if identity.role != Role::Platform {
            return Err(AdminError::of(Fault::WorkspaceNoAccess));
        }
        if !admin.exists(&named).await? && !admin.existed(&named).await? {
            return Err(no_such_workspace(&named));
        }
        return Ok(Some(named));
    }
    if let Some(own) = &own {
        admin.enter(own, by).await?;
    }
    Ok(own)
}

/// Says how to create it: the caller may.
fn no_such_workspace(id: &WorkspaceId) -> AdminError {
    AdminError::of(Fault::NotFound).saying(
        format!("There is no workspace {id}; PUT /workspaces/{id} creates it"),
        format!("工作空间 {id} 不存在；可通过 PUT /workspaces/{id} 创建"),
    )
}

fn named_workspace(headers: &HeaderMap) -> Result<Option<WorkspaceId>, AdminError> {
    let mut values = headers.get_all(WORKSPACE).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(AdminError::parameter(WORKSPACE.as_str(), "must be given once"));
    }
    let text = value.to_str().unwrap_or_default();
    match text.parse() {
        Ok(id) => Ok(Some(id)),
        Err(bad) => {
            let why: crate::model::id::BadTextId = bad;
            Err(AdminError::parameter(WORKSPACE.as_str(), format!("is not valid: {why}")))
        }
    }
}

fn actor(identity: &Identity, parts: &Parts) -> Actor {
    Actor {
        subject: identity.subject.clone(),
        role: identity.role.as_str(),
        address: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip().to_canonical()),
        request_id: parts.extensions.get::<AdminRequestId>().map(|id| id.0.clone()),
    }
}
