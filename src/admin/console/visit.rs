//! Who looks at a page, and what every page has: the frame, the language, the colours.
//!
//! *Invariant:* a page that shows data takes a [`Visit`], which exists only for a token that is valid now.
//! *Invariant:* a page that changes something takes a [`Change`], which exists only for a form of this console and of the visitor's own session.

use super::Console;
use super::api::{Api, Caller, Refused, segment};
use super::assets::{ICON, SCRIPT, STYLE};
use super::cookies::{self, Preferences, SESSION};
use super::form::FormData;
use super::origin::{is_led_here, is_same_origin};
use super::session::{self, Holder, Session};
use super::texts::Texts;
use crate::admin::auth::{Identity, Role};
use crate::admin::extract;
use crate::admin::oidc::Access;
use crate::clock::Timestamp;
use crate::model::fault::{Fault, Lang};
use crate::model::id::WorkspaceId;
use askama::Template;
use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::net::SocketAddr;
use std::sync::Arc;

/// Somebody who has signed in, and the page they ask for.
pub(super) struct Visit {
    pub(super) console: Arc<Console>,
    pub(super) identity: Identity,
    /// The workspaces of somebody who has several; empty: one, or all.
    workspaces: Vec<String>,
    pub(super) preferences: Preferences,
    pub(super) session: Session,
    peer: Option<SocketAddr>,
    /// Path and query of the page.
    path: String,
}

/// A form that a visitor has sent.
pub(super) struct Change {
    pub(super) visit: Visit,
    pub(super) form: FormData,
}

/// What is shown instead of the page.
pub(super) struct Instead(Box<Response>);

/// A page, or what is shown instead.
pub(super) type Shown = Result<Response, Instead>;

/// What the frame of every page shows.
pub(super) struct Frame {
    pub(super) t: &'static Texts,
    pub(super) lang: &'static str,
    pub(super) theme: &'static str,
    pub(super) title: String,
    /// The part of the navigation that this page belongs to.
    pub(super) section: &'static str,
    pub(super) path: String,
    pub(super) style: &'static str,
    pub(super) script: &'static str,
    pub(super) icon: &'static str,
    /// Who has signed in; none: nobody.
    pub(super) visitor: Option<Visitor>,
}

/// A visitor, as the frame shows them.
pub(super) struct Visitor {
    pub(super) name: String,
    pub(super) role: &'static str,
    pub(super) is_platform: bool,
    pub(super) can_write: bool,
    pub(super) form_token: String,
    /// The workspaces to choose from, where there are several and not all.
    pub(super) workspaces: Vec<String>,
    /// The workspace of the page, and where its pages are.
    pub(super) workspace: Option<String>,
    pub(super) base: String,
}

/// A message that is a page.
#[derive(Template)]
#[template(path = "message.html")]
struct MessagePage {
    t: &'static Texts,
    frame: Frame,
    message: String,
    /// What this node knows without its store, where that is the trouble.
    known: Vec<(String, String)>,
    /// What that is.
    known_title: &'static str,
}

/// Leads to a page from this one: to the same page once more, so that the session's cookie is sent, or to another server after a
/// form, which the content security policy does not let redirect there.
#[derive(Template)]
#[template(path = "again.html")]
struct AgainPage {
    t: &'static Texts,
    lang: &'static str,
    icon: &'static str,
    path: String,
}

impl FromRequestParts<Arc<Console>> for Visit {
    type Rejection = Instead;

    async fn from_request_parts(parts: &mut Parts, console: &Arc<Console>) -> Result<Self, Instead> {
        let preferences = Preferences::of(&parts.headers);
        let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let now = console.admin.now();
        let cookie = cookies::read(&parts.headers, SESSION);
        if cookie.is_none() && parts.method == Method::GET && is_led_here(&parts.headers) {
            let t = Texts::of(preferences.lang);
            return Err(go_on_to(t, preferences, path).into());
        }
        let deps = &console.admin.deps;
        let opened =
            cookie.and_then(|cookie| session::open(&deps.peppers, deps.oidc.as_deref(), cookie, now));
        let Some(session) = opened else {
            return Err(sign_in_first(parts, &path, cookie.is_some()).into());
        };
        let found = match &session.holder {
            Holder::Token(token) => match console.admin.identify(token).await {
                Ok(identity) => Some((identity, Vec::new())),
                Err(error) if error.fault() == Fault::ServiceUnavailable => {
                    let frame = Frame::new(preferences, "", &path, None);
                    let message = frame.t.identity_away.to_owned();
                    let page = message_page(StatusCode::SERVICE_UNAVAILABLE, frame, message, Vec::new());
                    return Err(page.into());
                }
                Err(_) => None,
            },
            Holder::Person(person) => {
                let named = workspace_of_page(parts).await;
                let access = deps.oidc.as_ref().and_then(|oidc| oidc.access(person));
                access.map(|access| (access.identity(&person.subject, named.as_ref()), choice(&access)))
            }
        };
        let Some((identity, workspaces)) = found else {
            return Err(sign_in_first(parts, &path, true).into());
        };
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
        Ok(Self { console: Arc::clone(console), identity, workspaces, preferences, session, peer, path })
    }
}

impl FromRequest<Arc<Console>> for Change {
    type Rejection = Instead;

    async fn from_request(request: Request, console: &Arc<Console>) -> Result<Self, Instead> {
        let (mut parts, body) = request.into_parts();
        let visit = Visit::from_request_parts(&mut parts, console).await?;
        let form = read_form(&parts, body, console).await.map_err(|status| visit.message(status))?;
        let is_ours =
            is_same_origin(&parts.headers) && session::is_form_token(&visit.session, form.get("form_token"));
        if !is_ours {
            return Err(visit.message(StatusCode::FORBIDDEN));
        }
        Ok(Self { visit, form })
    }
}

/// The workspace that the page is about, if its URL names one.
async fn workspace_of_page(parts: &mut Parts) -> Option<WorkspaceId> {
    let named = RawPathParams::from_request_parts(parts, &()).await.ok()?;
    named.iter().find(|(name, _)| *name == "workspace").and_then(|(_, id)| id.parse().ok())
}

/// The workspaces to choose from; none where there is no choice.
fn choice(access: &Access) -> Vec<String> {
    match access.workspaces() {
        [] | [_] => Vec::new(),
        several => several.iter().map(|(workspace, _)| workspace.to_string()).collect(),
    }
}

/// The fields of a form.
pub(super) async fn read_form(parts: &Parts, body: Body, console: &Console) -> Result<FormData, StatusCode> {
    let read = extract::read(body, &parts.headers, console.admin.deps.max_body_bytes).await;
    let bytes = read
        .map_err(|error| StatusCode::from_u16(error.fault().status()).unwrap_or(StatusCode::BAD_REQUEST))?;
    FormData::parse(&bytes).ok_or(StatusCode::BAD_REQUEST)
}

impl Visit {
    /// The API, about one workspace or none.
    pub(super) fn api<'v>(&'v self, workspace: Option<&'v str>) -> Api<'v> {
        Api {
            router: &self.console.api,
            caller: match &self.session.holder {
                Holder::Token(token) => Caller::Token(token),
                Holder::Person(_) => Caller::Person(&self.identity),
            },
            workspace,
            lang: self.preferences.lang,
            peer: self.peer,
        }
    }

    pub(super) fn t(&self) -> &'static Texts {
        Texts::of(self.preferences.lang)
    }

    pub(super) fn lang(&self) -> Lang {
        self.preferences.lang
    }

    pub(super) fn now(&self) -> Timestamp {
        self.console.admin.now()
    }

    pub(super) fn is_platform(&self) -> bool {
        self.identity.role == Role::Platform
    }

    pub(super) fn can_write(&self) -> bool {
        self.identity.role >= Role::Admin
    }

    /// The frame of a page about a workspace or none.
    pub(super) fn frame(&self, section: &'static str, title: &str, workspace: Option<&str>) -> Frame {
        let own = self.identity.workspace.as_ref().map(ToString::to_string);
        let workspace = workspace.map(str::to_owned).or(own);
        let t = self.t();
        let visitor = Visitor {
            name: match &self.session.holder {
                Holder::Token(_) => self.identity.subject.clone(),
                Holder::Person(person) => person.name.clone(),
            },
            role: match self.identity.role {
                Role::Viewer => t.role_viewer,
                Role::Admin => t.role_admin,
                Role::Platform => t.role_platform,
            },
            is_platform: self.is_platform(),
            can_write: self.can_write(),
            form_token: self.session.form_token.clone(),
            workspaces: self.workspaces.clone(),
            base: workspace.as_deref().map(base).unwrap_or_default(),
            workspace,
        };
        Frame { section, ..Frame::new(self.preferences, title, &self.path, Some(visitor)) }
    }

    /// What is shown when the API refuses.
    pub(super) fn refused(&self, workspace: Option<&str>, refused: Refused) -> Instead {
        let Refused { status, message, errors } = refused;
        if status == StatusCode::UNAUTHORIZED {
            // The token has just ended.
            return sign_in_again(&self.path).into();
        }
        let first = errors.into_iter().next().map(|error| format!("{} {}", error.field, error.message));
        let is_away = status == StatusCode::SERVICE_UNAVAILABLE;
        let message = if is_away { self.t().store_away.to_owned() } else { first.unwrap_or(message) };
        let known = if is_away { self.known() } else { Vec::new() };
        let title = status_title(self.t(), status);
        message_page(status, self.frame("", title, workspace), message, known).into()
    }

    /// A page that says no more than this status does.
    pub(super) fn message(&self, status: StatusCode) -> Instead {
        self.refused(None, Refused::of(status))
    }

    /// What this node has in memory.
    fn known(&self) -> Vec<(String, String)> {
        let deps = &self.console.admin.deps;
        let checks = (deps.readiness)().checks;
        let said = checks.into_iter().map(|check| (check.name.to_owned(), check.detail)).collect::<Vec<_>>();
        // How many keys all workspaces have is the platform's to know.
        let count = super::show::count(u64::try_from(deps.keyring.len()).unwrap_or(u64::MAX));
        let keys = self.is_platform().then(|| (self.t().keys_in_memory.to_owned(), count));
        keys.into_iter().chain(said).collect()
    }
}

impl Frame {
    /// The frame of a page for a visitor or for anybody.
    pub(super) fn new(preferences: Preferences, title: &str, path: &str, visitor: Option<Visitor>) -> Self {
        Self {
            t: Texts::of(preferences.lang),
            lang: lang_code(preferences.lang),
            theme: preferences.theme,
            title: title.to_owned(),
            section: "",
            path: path.to_owned(),
            style: &STYLE.path,
            script: &SCRIPT.path,
            icon: &ICON.path,
            visitor,
        }
    }

    pub(super) fn can_write(&self) -> bool {
        self.visitor.as_ref().is_some_and(|visitor| visitor.can_write)
    }

    /// What forms send to prove that they are from here.
    pub(super) fn form_token(&self) -> &str {
        self.visitor.as_ref().map_or("", |visitor| &visitor.form_token)
    }

    /// Where the pages of the workspace are.
    pub(super) fn base(&self) -> &str {
        self.visitor.as_ref().map_or("", |visitor| &visitor.base)
    }
}

/// Where the pages of a workspace are.
pub(super) fn base(workspace: &str) -> String {
    format!("/console/w/{}", segment(workspace))
}

/// A page.
pub(super) fn page(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(text) => {
            let fields = [
                (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ];
            (status, fields, text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "cannot render a page of the console");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Leads to another page of the console.
pub(super) fn lead_to(path: &str) -> Response {
    let place = HeaderValue::from_str(path).unwrap_or(HeaderValue::from_static("/console"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, place)]).into_response()
}

/// A page that leads on by itself.
pub(super) fn go_on_to(t: &'static Texts, preferences: Preferences, path: String) -> Response {
    page(StatusCode::OK, &AgainPage { t, lang: lang_code(preferences.lang), icon: &ICON.path, path })
}

/// A message as a page.
pub(super) fn message_page(
    status: StatusCode,
    frame: Frame,
    message: String,
    known: Vec<(String, String)>,
) -> Response {
    let message = if message.is_empty() { status_title(frame.t, status).to_owned() } else { message };
    let t = frame.t;
    let known_title = if status == StatusCode::SERVICE_UNAVAILABLE { t.known_here } else { t.mistakes };
    page(status, &MessagePage { t, frame, message, known, known_title })
}

fn status_title(t: &'static Texts, status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => t.not_found,
        StatusCode::FORBIDDEN => t.not_allowed,
        StatusCode::SERVICE_UNAVAILABLE => t.store_away_title,
        _ => t.failed,
    }
}

fn sign_in_first(parts: &Parts, path: &str, had_session: bool) -> Response {
    let back = if parts.method == Method::GET { path } else { "/console" };
    if had_session {
        return sign_in_again(back);
    }
    lead_to(&format!("/console/sign-in{}", super::api::query(&[("next", back)])))
}

fn sign_in_again(back: &str) -> Response {
    let query = super::api::query(&[("next", back), ("over", "1")]);
    let mut response = lead_to(&format!("/console/sign-in{query}"));
    response.headers_mut().append(header::SET_COOKIE, cookies::no_session());
    response
}

fn lang_code(lang: Lang) -> &'static str {
    match lang {
        Lang::En => "en",
        Lang::Zh => "zh",
    }
}

impl From<Response> for Instead {
    fn from(response: Response) -> Self {
        Self(Box::new(response))
    }
}

impl IntoResponse for Instead {
    fn into_response(self) -> Response {
        *self.0
    }
}
