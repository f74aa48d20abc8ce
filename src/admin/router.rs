//! All URLs of the admin listener.

use super::context::{self, Admin, AdminDeps, AdminState};
use super::envelope;
use super::error::AdminError;
use super::{
    apikeys, audit, console, document, endusers, grants, health, imports, key_list, logs, lookup, outside,
    plans, prices, propagation, reload, upstreams, usage, usage_totals, workspaces,
};
use crate::model::fault::Fault;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::Required;
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{OpenApi, PartialSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

/// The general part of the OpenAPI document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Keygate admin API",
        description = "Keys, plans, workspaces, end users, usage and the audit trail of a Keygate gateway. \
            Every answer is an envelope: `code` 0 and `data` on success; else `code`, a stable `error` and a `msg` for people. \
            There is also [a console](/console), which calls this API. \
            `POST /verify` and `POST /settle` are served by the decision listener (`[decide] listen`), with a document of their own at its `/openapi.json`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&Schemes),
    security(("admin" = []))
)]
struct Document;

/// How callers authenticate.
struct Schemes;

/// What the pages under `/docs` may load: only from this server.
const DOCS_POLICY: &str =
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

/// Most pages under `/docs` that are cached, and the largest size, in bytes.
const PAGES_MAX: usize = 64;
const PAGE_BYTES_MAX: usize = 16 << 20;

/// The admin API with the dependencies `deps`.
pub fn router(deps: AdminDeps) -> Router {
    let mut document = openapi();
    if !deps.base_path.is_empty() {
        document["servers"] = serde_json::json!([{"url": deps.base_path}]);
    }
    let admin: AdminState = Arc::new(Admin::new(deps, document.to_string()));
    let (urls, _) = urls().split_for_parts();
    let home = format!("{}/docs/", admin.deps.base_path);
    let answered = urls
        .with_state(Arc::clone(&admin))
        .merge(docs())
        .fallback(async move |uri: Uri| unknown_url(&uri, &home))
        .method_not_allowed_fallback(async || AdminError::of(Fault::MethodNotAllowed));
    let base_path = admin.deps.base_path.clone();
    let api = finish(answered, Arc::clone(&admin));
    console::router(admin, api.clone()).fallback_service(outside::under_base_path(api, &base_path))
}

/// The OpenAPI document of [`router`], generated from the same list.
pub fn openapi() -> Value {
    let mut whole = serde_json::to_value(urls().into_openapi()).unwrap_or_default();
    document::complete(&mut whole);
    whole
}

fn urls() -> OpenApiRouter<AdminState> {
    let mut urls = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(apikeys::create_key, key_list::list_keys))
        .routes(routes!(apikeys::get_key, apikeys::update_key, apikeys::patch_key, apikeys::delete_key))
        .routes(routes!(apikeys::regenerate_key))
        .routes(routes!(apikeys::restore_key))
        .routes(routes!(lookup::lookup_key))
        .routes(routes!(imports::import_keys))
        .routes(routes!(imports::import_end_users))
        .routes(routes!(propagation::key_propagation))
        .routes(routes!(propagation::list_nodes))
        .routes(routes!(usage::key_stats))
        .routes(routes!(usage::key_usage))
        .routes(routes!(logs::key_logs))
        .routes(routes!(usage_totals::workspace_usage))
        .routes(routes!(usage::workspace_series))
        .routes(routes!(endusers::list_end_users))
        .routes(routes!(endusers::get_end_user, endusers::delete_end_user))
        .routes(routes!(workspaces::list_workspaces))
        .routes(routes!(workspaces::get_workspace, workspaces::put_workspace, workspaces::delete_workspace))
        .routes(routes!(grants::list_grants, grants::create_grant))
        .routes(routes!(grants::delete_grant))
        .routes(routes!(plans::create_plan, plans::list_plans))
        .routes(routes!(plans::get_plan, plans::update_plan, plans::delete_plan))
        .routes(routes!(prices::get_prices, prices::put_prices))
        .routes(routes!(upstreams::list_credentials, upstreams::put_credential))
        .routes(routes!(upstreams::delete_credential))
        .routes(routes!(audit::list_audit))
        .routes(routes!(reload::reload))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(health::openapi_json));
    describe_workspace_header(urls.get_openapi_mut());
    describe_language(urls.get_openapi_mut());
    urls
}

/// Adds `X-Workspace-Id` to every call for one workspace.
fn describe_workspace_header(document: &mut utoipa::openapi::OpenApi) {
    for (path, item) in &mut document.paths.paths {
        if !["/apikeys", "/endusers", "/audit", "/usage"].iter().any(|about| path.starts_with(about)) {
            continue;
        }
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let header = ParameterBuilder::new()
                .name("X-Workspace-Id")
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some(
                    "Which workspace; only role `platform` may name another than the token's own.",
                ))
                .schema(Some(String::schema()));
            operation.parameters.get_or_insert_default().push(header.build().into());
        }
    }
}

/// Adds what chooses the language of an answer to every call.
fn describe_language(document: &mut utoipa::openapi::OpenApi) {
    for (path, item) in &mut document.paths.paths {
        if ["/metrics", "/healthz", "/openapi.json"].contains(&path.as_str()) {
            continue;
        }
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let lang = ParameterBuilder::new()
                .name("lang")
                .parameter_in(ParameterIn::Query)
                .required(Required::False)
                .description(Some(
                    "The language of `msg`: `en` or `zh`. Without it `X-Language-Type` or `Accept-Language` says.",
                ))
                .schema(Some(String::schema()));
            operation.parameters.get_or_insert_default().push(lang.build().into());
        }
    }
}

/// The layers of every answer: panics become errors, then answers are written.
pub(super) fn finish(answered: Router, admin: AdminState) -> Router {
    answered
        .layer(from_fn(context::with_deadline))
        .layer(CatchPanicLayer::custom(envelope::panicked))
        .layer(from_fn_with_state(Arc::clone(&admin), envelope::write))
        .layer(from_fn_with_state(admin, outside::cors))
}

/// Leads people who open the listener's address to the documentation of the API, at `home`. There is nothing elsewhere.
fn unknown_url(uri: &Uri, home: &str) -> Response {
    if uri.path() == "/" {
        return Redirect::temporary(home).into_response();
    }
    AdminError::of(Fault::NotFound).into_response()
}

/// Swagger UI under `/docs`, embedded in the binary.
fn docs() -> Router {
    let config = utoipa_swagger_ui::Config::new(["/openapi.json"]).validator_url("none");
    let pages: Router = SwaggerUi::new("/docs").config(config).into();
    pages.layer(from_fn_with_state(Arc::<PageCache>::default(), shared)).layer(from_fn(confined))
}

/// The cached pages by path. There are about twenty.
type PageCache = Mutex<HashMap<String, Bytes>>;

/// Serves one shared copy of each page: the largest has more than a megabyte, and clients may request it without reading
/// it.
async fn shared(State(pages): State<Arc<PageCache>>, request: Request, next: Next) -> Response {
    let path = (request.method() == Method::GET).then(|| request.uri().path().to_owned());
    let (head, body) = next.run(request).await.into_parts();
    let Some(path) = path.filter(|_| head.status == StatusCode::OK) else {
        return Response::from_parts(head, body);
    };
    // The map is valid whatever happened to the thread that held the lock.
    let known = || pages.lock().unwrap_or_else(PoisonError::into_inner);
    let page = known().get(&path).cloned();
    let page = match page {
        Some(page) => page,
        None => match axum::body::to_bytes(body, PAGE_BYTES_MAX).await {
            Ok(page) => {
                let mut known = known();
                if known.len() < PAGES_MAX {
                    known.insert(path, page.clone());
                }
                page
            }
            Err(error) => {
                tracing::error!(%error, "cannot read page of the API documentation");
                return AdminError::of(Fault::Internal).into_response();
            }
        },
    };
    Response::from_parts(head, page.into())
}

async fn confined(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(DOCS_POLICY));
    response
}

impl utoipa::Modify for Schemes {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = |format: Option<&str>, says: &str| {
            let mut scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(says));
            if let Some(format) = format {
                scheme = scheme.bearer_format(format);
            }
            SecurityScheme::Http(scheme.build())
        };
        components.add_security_scheme(
            "admin",
            bearer(Some("JWT"), "An admin token: role viewer, admin or platform. `keygate token` makes one."),
        );
        components.add_security_scheme(
            "metrics",
            bearer(None, "The token that the configuration sets for metrics."),
        );
    }
}
