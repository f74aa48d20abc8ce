//! Reloading the config.

use super::caller::PlatformAdmin;
use super::context::{AdminState, ReloadError, Reloaded};
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::Query;
use super::input::FieldError;
use crate::model::fault::Fault;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// The active config.
#[derive(Serialize, ToSchema)]
pub(super) struct ReloadedView {
    /// Routes.
    routes: usize,
    /// Upstreams.
    upstreams: usize,
}

/// Reload the config
///
/// Role `platform`. Reads the config file of this node again: routes, upstreams and new plans take effect together;
/// otherwise nothing changes, and every mistake is reported. The audit log has a line about it. SIGHUP does the same.
#[utoipa::path(post, path = "/reload", tag = "Operation", responses(
    (status = 200, description = "In force", body = Envelope<ReloadedView>),
    (status = "default", description = "Refused: the config in force stays", body = Envelope<Detail>),
))]
pub(super) async fn reload(
    State(admin): State<AdminState>,
    PlatformAdmin { actor }: PlatformAdmin,
    Query(()): Query<()>,
) -> Result<ApiResponse<ReloadedView>, AdminError> {
    // In its own task: the caller may disconnect, and the reload is completed all the same.
    let reload = Arc::clone(&admin.deps.reload);
    let reloading = tokio::spawn(async move {
        let done = reload.reload(&actor).await;
        if let Ok(Reloaded { routes, upstreams }) = done {
            tracing::info!(subject = actor.subject, role = actor.role, routes, upstreams, "config reloaded");
        }
        done
    });
    let done = reloading.await.map_err(|error| {
        tracing::error!(%error, "config reload task failed");
        AdminError::of(Fault::Internal)
    })?;
    match done {
        Ok(Reloaded { routes, upstreams }) => Ok(ApiResponse::ok(ReloadedView { routes, upstreams })),
        Err(ReloadError::Mistakes(mistakes)) => {
            let field = |line: &String| {
                let (field, message) = line.split_once(": ").unwrap_or(("config", line));
                FieldError { field: field.to_owned(), message: message.to_owned() }
            };
            Err(AdminError::fields(mistakes.iter().map(field).collect()))
        }
        Err(ReloadError::Store(why)) => {
            tracing::warn!(why, "config not reloaded: cannot write its plans to the store");
            Err(AdminError::of(Fault::ServiceUnavailable))
        }
        Err(ReloadError::Upgrading) => Err(AdminError::conflict(
            "An upgrade is under way; try again when it is done",
            "正在升级，请在升级完成后重试",
        )),
    }
}
