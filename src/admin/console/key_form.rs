//! Creating and changing a key.

use super::api::{Refused, segment};
use super::form::{Field, FieldKind, Form, counts, instant_value, limit_rows, windows};
use super::keys::Key;
use super::snippets::{Snippet, snippets};
use super::texts::Texts;
use super::visit::{Change, Frame, Instead, Shown, Visit, lead_to, page};
use crate::admin::input::FieldError;
use crate::model::key::KeyType;
use askama::Template;
use axum::extract::Path;
use axum::http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;

/// A key with its new secret.
#[derive(Deserialize)]
pub(super) struct Issued {
    id: String,
    name: String,
    api_key: String,
}

#[derive(Template)]
#[template(path = "form.html")]
struct KeyFormPage {
    t: &'static Texts,
    frame: Frame,
    form: Form,
    /// What cannot be changed.
    fixed: Vec<(&'static str, String)>,
    action: String,
    submit: &'static str,
    back: String,
    back_label: String,
    counts: Vec<(String, String)>,
    windows: Vec<(String, String)>,
}

#[derive(Template)]
#[template(path = "secret.html")]
struct SecretPage {
    t: &'static Texts,
    frame: Frame,
    name: String,
    secret: String,
    /// Until when the secret before is valid; empty: it is not.
    grace: String,
    snippets: Vec<Snippet>,
    key: String,
}

pub(super) async fn new_form(visit: Visit, Path(workspace): Path<String>) -> Shown {
    if !visit.can_write() {
        return Err(visit.message(StatusCode::FORBIDDEN));
    }
    // A form for a workspace that the visitor has no access to would only be refused later.
    let path = format!("/workspaces/{}", segment(&workspace));
    let tenant = visit.api(Some(&workspace)).get::<Value>(&path).await;
    tenant.map_err(|refused| visit.refused(Some(&workspace), refused))?;
    let mut form = Form::new(fields(visit.t(), None));
    for field in &mut form.fields {
        if field.name == "type" {
            field.value = KeyType::Service.as_str().into();
        }
    }
    Ok(new_page(&visit, &workspace, form, StatusCode::OK))
}

pub(super) async fn create(Path(workspace): Path<String>, change: Change) -> Shown {
    let Change { visit, form: sent } = change;
    let mut form = Form::new(fields(visit.t(), None));
    form.fill(&sent);
    let Some(body) = form.body(true, visit.t()) else {
        return Ok(new_page(&visit, &workspace, form, StatusCode::BAD_REQUEST));
    };
    match visit.api(Some(&workspace)).send::<Issued>(Method::POST, "/apikeys", body).await {
        Ok(issued) => Ok(secret_page(&visit, &workspace, issued, String::new())),
        Err(refused) if is_about_form(refused.status) => {
            let status = refused.status;
            form.refuse(named(refused));
            Ok(new_page(&visit, &workspace, form, status))
        }
        Err(refused) => Err(visit.refused(Some(&workspace), refused)),
    }
}

pub(super) async fn edit_form(visit: Visit, Path((workspace, id)): Path<(String, String)>) -> Shown {
    if !visit.can_write() {
        return Err(visit.message(StatusCode::FORBIDDEN));
    }
    let key = read(&visit, &workspace, &id).await?;
    let form = Form::new(fields(visit.t(), Some(&key)));
    Ok(edit_page(&visit, &workspace, &key, form, StatusCode::OK))
}

pub(super) async fn change(Path((workspace, id)): Path<(String, String)>, change: Change) -> Shown {
    let Change { visit, form: sent } = change;
    let key = read(&visit, &workspace, &id).await?;
    let mut form = Form::new(fields(visit.t(), Some(&key)));
    form.fill(&sent);
    let Some(body) = form.body(false, visit.t()) else {
        return Ok(edit_page(&visit, &workspace, &key, form, StatusCode::BAD_REQUEST));
    };
    let path = format!("/apikeys/{}", segment(&id));
    match visit.api(Some(&workspace)).send::<Value>(Method::PUT, &path, body).await {
        Ok(_) => Ok(lead_to(&format!("{}/keys/{}", super::visit::base(&workspace), segment(&id)))),
        Err(refused) if is_about_form(refused.status) => {
            let status = refused.status;
            form.refuse(named(refused));
            Ok(edit_page(&visit, &workspace, &key, form, status))
        }
        Err(refused) => Err(visit.refused(Some(&workspace), refused)),
    }
}

/// A name that is taken is the only conflict of a key.
fn named(refused: Refused) -> Refused {
    let Refused { status, message, mut errors } = refused;
    if status == StatusCode::CONFLICT && errors.is_empty() {
        errors.push(FieldError { field: "name".into(), message: message.clone() });
    }
    Refused { status, message, errors }
}

/// Whether a refusal is about what was typed.
pub(super) fn is_about_form(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_REQUEST | StatusCode::CONFLICT)
}

/// A key of the workspace.
pub(super) async fn read(visit: &Visit, workspace: &str, id: &str) -> Result<Key, Instead> {
    let found = visit.api(Some(workspace)).get::<Key>(&format!("/apikeys/{}", segment(id))).await;
    found.map_err(|refused| visit.refused(Some(workspace), refused))
}

/// Shows a new secret, for the only time.
pub(super) fn secret_page(
    visit: &Visit,
    workspace: &str,
    issued: Issued,
    grace: String,
) -> axum::response::Response {
    let Issued { id, name, api_key } = issued;
    let t = visit.t();
    let frame = visit.frame("keys", t.new_secret, Some(workspace));
    let key = format!("{}/keys/{id}", frame.base());
    let snippets = snippets(&api_key);
    page(StatusCode::OK, &SecretPage { t, frame, name, secret: api_key, grace, snippets, key })
}

fn new_page(visit: &Visit, workspace: &str, form: Form, status: StatusCode) -> axum::response::Response {
    let t = visit.t();
    let frame = visit.frame("keys", t.new_key, Some(workspace));
    let back = format!("{}/keys", frame.base());
    let view = KeyFormPage {
        t,
        action: format!("{back}/new"),
        back_label: t.keys.into(),
        frame,
        form,
        fixed: Vec::new(),
        submit: t.create_key,
        back,
        counts: counts(t),
        windows: windows(t),
    };
    page(status, &view)
}

fn edit_page(
    visit: &Visit,
    workspace: &str,
    key: &Key,
    form: Form,
    status: StatusCode,
) -> axum::response::Response {
    let t = visit.t();
    let frame = visit.frame("keys", &format!("{} {}", t.edit, key.name), Some(workspace));
    let back = format!("{}/keys/{}", frame.base(), key.id);
    let mut fixed = vec![(t.key_type, key.r#type.clone()), (t.resource, key.resource_id.clone())];
    fixed.extend(key.end_user.clone().map(|user| (t.end_user, user)));
    let view = KeyFormPage {
        t,
        action: format!("{back}/edit"),
        back_label: key.name.clone(),
        frame,
        form,
        fixed,
        submit: t.save,
        back,
        counts: counts(t),
        windows: windows(t),
    };
    page(status, &view)
}

/// The fields of a new key, or those of one that can be changed.
fn fields(t: &'static Texts, key: Option<&Key>) -> Vec<Field> {
    let number = |value: Option<u64>| value.map(|n| n.to_string()).unwrap_or_default();
    let field = Field::new;
    let limits = |rows: &[Value]| FieldKind::Limits(limit_rows(rows), None);
    let Some(key) = key else {
        let types =
            KeyType::WORDS.iter().rev().map(|word| ((*word).to_owned(), (*word).to_owned())).collect();
        return vec![
            field("name", t.name, t.h_name, FieldKind::Text).required(),
            field("description", t.description, t.h_description, FieldKind::Area),
            field("type", t.key_type, t.h_type, FieldKind::Choice(types)),
            field("resource_id", t.resource, t.h_resource, FieldKind::Text),
            field("scopes", t.scopes, t.h_scopes, FieldKind::Words),
            field("rate_limit", t.rate_limit, t.h_rate_limit_new, FieldKind::Number),
            field("rate_burst", t.rate_burst, t.h_rate_burst, FieldKind::Number),
            field("daily_request_limit", t.daily_limit, t.h_daily_new, FieldKind::Number),
            field("quota_limit", t.quota, t.h_quota, FieldKind::Number),
            field("concurrency_limit", t.concurrency, t.h_concurrency, FieldKind::Number),
            field("limits", t.further_limits, t.h_limits, limits(&[])),
            field("expires_at", t.expires_at, t.h_expires, FieldKind::Instant),
            field("allowed_ips", t.allowed_ips, t.h_ips, FieldKind::Lines),
            field("end_user", t.end_user, t.h_end_user, FieldKind::Text),
            field("metadata", t.metadata, t.h_metadata, FieldKind::Json),
        ];
    };
    let metadata = if key.metadata.is_empty() {
        String::new()
    } else {
        serde_json::to_string_pretty(&key.metadata).unwrap_or_default()
    };
    vec![
        field("name", t.name, t.h_name, FieldKind::Text).required().with(key.name.clone()),
        field("description", t.description, t.h_description, FieldKind::Area).with(key.description.clone()),
        field("scopes", t.scopes, t.h_scopes_edit, FieldKind::Words).with(key.scopes.join(" ")),
        field("rate_limit", t.rate_limit, t.h_rate_limit, FieldKind::Number)
            .required()
            .with(key.rate_limit.to_string()),
        field("rate_burst", t.rate_burst, t.h_rate_burst, FieldKind::Number).with(number(key.rate_burst)),
        field("daily_request_limit", t.daily_limit, t.h_daily, FieldKind::Number)
            .with(number(key.daily_request_limit)),
        field("quota_limit", t.quota, t.h_quota, FieldKind::Number).with(number(key.quota_limit)),
        field("concurrency_limit", t.concurrency, t.h_concurrency, FieldKind::Number)
            .with(number(key.concurrency_limit)),
        field("limits", t.further_limits, t.h_limits, limits(&key.limits)),
        field("expires_at", t.expires_at, t.h_expires, FieldKind::Instant)
            .with(instant_value(key.expires_at)),
        field("allowed_ips", t.allowed_ips, t.h_ips, FieldKind::Lines).with(key.allowed_ips.join("\n")),
        field("metadata", t.metadata, t.h_metadata, FieldKind::Json).with(metadata),
    ]
}
