//! The console: pages about what the admin API has, for people.
//!
//! Rendered here, from templates that are compiled in. Everything works without script but copying and live refresh. Must not know: the
//! store. Pages read and write through the API (`api`), as their visitor.
//!
//! *Invariant:* no page loads anything from elsewhere, and none has an inline style or script (its content security policy).

mod api;
mod assets;
mod attempts;
mod audit;
mod budgets;
mod chart;
mod cookies;
mod end_users;
mod form;
mod key;
mod key_form;
mod keys;
mod node;
mod origin;
mod overview;
mod plans;
mod price_form;
mod prices;
mod provider;
mod session;
mod show;
mod sign_in;
mod snippets;
#[cfg(test)]
mod tests;
mod texts;
mod usage;
mod visit;
mod wording;
mod workspaces;

use super::context::{self, AdminState};
use super::envelope;
use attempts::Attempts;
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;
use visit::Visit;

/// What all pages share.
pub(super) struct Console {
    admin: AdminState,
    /// The API, as it is without a base path.
    api: Router,
    attempts: Attempts,
}

/// What pages may load, and where forms may go: only here.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// All URLs of the console.
pub(super) fn router(admin: AdminState, api: Router) -> Router {
    let console = Arc::new(Console { admin, api, attempts: Attempts::new() });
    let urls = Router::new()
        .route("/console", get(sign_in::start))
        .route("/console/", get(sign_in::start))
        .route("/console/assets/{name}", get(async |uri: Uri| assets::serve(uri.path())))
        .route("/console/sign-in", get(sign_in::form).post(sign_in::sign_in))
        .route("/console/sign-in/{code}", get(sign_in::by_code))
        .route("/console/oidc/start", get(provider::start))
        .route("/console/oidc/callback", get(provider::callback))
        .route("/console/sign-out", post(sign_in::sign_out))
        .route("/console/preferences", post(sign_in::prefer))
        .route("/console/go", get(sign_in::go))
        .route("/console/workspaces", get(workspaces::list))
        .route("/console/workspaces/new", get(workspaces::new_form).post(workspaces::create))
        .route("/console/workspaces/{id}", get(workspaces::detail).post(workspaces::change))
        .route("/console/workspaces/{id}/grants", post(workspaces::grant))
        .route("/console/workspaces/{id}/grants/{grant}/delete", post(workspaces::take_back))
        .route("/console/workspaces/{id}/delete", post(workspaces::delete))
        .route("/console/plans", get(plans::list))
        .route("/console/plans/new", get(plans::new_form).post(plans::create))
        .route("/console/plans/{id}", get(plans::edit_form).post(plans::change))
        .route("/console/plans/{id}/delete", post(plans::delete))
        .route("/console/prices", get(prices::list).post(prices::replace))
        .route("/console/prices/edit", get(price_form::edit_form).post(price_form::save))
        .route("/console/prices/delete", post(price_form::delete))
        .route("/console/audit", get(audit::of_platform))
        .route("/console/node", get(node::show))
        .route("/console/node/reload", post(node::reload))
        .route("/console/w/{workspace}", get(overview::show))
        .route("/console/w/{workspace}/keys", get(keys::list))
        .route("/console/w/{workspace}/keys/new", get(key_form::new_form).post(key_form::create))
        .route("/console/w/{workspace}/keys/{id}", get(key::show))
        .route("/console/w/{workspace}/keys/{id}/edit", get(key_form::edit_form).post(key_form::change))
        .route("/console/w/{workspace}/keys/{id}/requests", get(key::requests))
        .route("/console/w/{workspace}/keys/{id}/active", post(key::set_active))
        .route("/console/w/{workspace}/keys/{id}/regenerate", post(key::regenerate))
        .route("/console/w/{workspace}/keys/{id}/delete", post(key::delete))
        .route("/console/w/{workspace}/keys/{id}/restore", post(key::restore))
        .route("/console/w/{workspace}/usage", get(usage::show))
        .route("/console/w/{workspace}/budgets", get(budgets::show))
        .route("/console/w/{workspace}/end-users", get(end_users::list))
        .route("/console/w/{workspace}/end-users/{id}/delete", post(end_users::delete))
        .route("/console/w/{workspace}/audit", get(audit::of_workspace))
        .route("/console/{*elsewhere}", get(async |visit: Visit| visit.message(StatusCode::NOT_FOUND)));
    urls.with_state(console)
        .layer(from_fn(context::with_deadline))
        .layer(CatchPanicLayer::custom(envelope::panicked))
        .layer(from_fn(confined))
}

/// Adds what every answer of the console has.
async fn confined(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let fields = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Browsers then name this origin in forms that they send here, and tell others nothing.
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in fields {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
