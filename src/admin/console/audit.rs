//! The audit trail of a workspace or of the platform.

use super::api::query;
use super::show;
use super::texts::Texts;
use super::visit::{Frame, Shown, Visit, page};
use askama::Template;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Lines on a page.
const PAGESIZE: &str = "50";

/// A page of lines, as the API shows it.
#[derive(Deserialize)]
pub(super) struct AuditLines {
    page: AuditPage,
    items: Vec<AuditLine>,
}

#[derive(Deserialize)]
struct AuditPage {
    page: u32,
    hasnext: bool,
}

#[derive(Deserialize)]
struct AuditLine {
    at: i64,
    subject: String,
    role: String,
    address: Option<String>,
    action: String,
    target: String,
    changes: Map<String, Value>,
}

/// A line in a list.
pub(super) struct AuditRow {
    pub(super) at: String,
    pub(super) subject: String,
    pub(super) role: String,
    pub(super) address: String,
    pub(super) action: String,
    pub(super) target: String,
    pub(super) changes: Vec<(String, String)>,
}

/// What is searched for.
#[derive(Deserialize)]
pub(super) struct AuditQuery {
    #[serde(default)]
    action: String,
    #[serde(default)]
    target: String,
    #[serde(default)]
    page: String,
}

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditPageView {
    t: &'static Texts,
    frame: Frame,
    here: String,
    trail: Vec<AuditRow>,
    asked: AuditQuery,
    previous: Option<String>,
    next: Option<String>,
}

pub(super) async fn of_workspace(
    visit: Visit,
    Path(workspace): Path<String>,
    Query(asked): Query<AuditQuery>,
) -> Shown {
    list(&visit, Some(&workspace), asked).await
}

pub(super) async fn of_platform(visit: Visit, Query(asked): Query<AuditQuery>) -> Shown {
    if !visit.is_platform() {
        return Err(visit.message(StatusCode::FORBIDDEN));
    }
    list(&visit, None, asked).await
}

async fn list(visit: &Visit, workspace: Option<&str>, asked: AuditQuery) -> Shown {
    let platform = if workspace.is_none() { "true" } else { "" };
    let filter = query(&[
        ("pagesize", PAGESIZE),
        ("platform", platform),
        ("action", asked.action.trim()),
        ("target", asked.target.trim()),
        ("page", &asked.page),
    ]);
    let found = visit.api(workspace).get::<AuditLines>(&format!("/audit{filter}")).await;
    let lines = found.map_err(|refused| visit.refused(workspace, refused))?;
    let t = visit.t();
    let (section, title) = match workspace {
        Some(_) => ("audit", t.audit),
        None => ("platform-audit", t.platform_audit),
    };
    let frame = visit.frame(section, title, workspace);
    let here = workspace.map_or_else(|| "/console/audit".to_owned(), |_| format!("{}/audit", frame.base()));
    let to = |number: u32| {
        let number = number.to_string();
        format!("{here}{}", query(&[("action", &asked.action), ("target", &asked.target), ("page", &number)]))
    };
    let AuditPage { page: number, hasnext } = lines.page;
    let previous = (number > 1).then(|| to(number - 1));
    let next = hasnext.then(|| to(number + 1));
    Ok(page(
        StatusCode::OK,
        &AuditPageView { t, frame, here: here.clone(), trail: lines.rows(), previous, next, asked },
    ))
}

impl AuditLines {
    /// The lines as a list shows them.
    pub(super) fn rows(self) -> Vec<AuditRow> {
        self.items.into_iter().map(AuditRow::new).collect()
    }
}

impl AuditRow {
    fn new(line: AuditLine) -> Self {
        let AuditLine { at, subject, role, address, action, target, changes } = line;
        let changes = changes.into_iter().map(|(name, value)| {
            let said = match (value.get("from"), value.get("to")) {
                (Some(from), Some(to)) => format!("{} → {}", plain(from), plain(to)),
                _ => plain(&value),
            };
            (name, said)
        });
        let changes = changes.collect();
        Self {
            at: show::instant(at),
            subject,
            role,
            address: address.unwrap_or_default(),
            action,
            target,
            changes,
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "–".into(),
        other => other.to_string(),
    }
}
