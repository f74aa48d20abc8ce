//! The end users of a workspace.

use super::api::{query, segment};
use super::show;
use super::texts::Texts;
use super::visit::{Change, Frame, Shown, Visit, base, lead_to, page};
use askama::Template;
use axum::extract::{Path, Query};
use axum::http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

/// End users on a page.
const PAGESIZE: &str = "50";

#[derive(Deserialize)]
struct EndUsers {
    page: EndUsersPage,
    items: Vec<EndUser>,
}

#[derive(Deserialize)]
struct EndUsersPage {
    page: u32,
    total: u64,
    hasnext: bool,
}

#[derive(Deserialize)]
struct EndUser {
    id: String,
    other_id: String,
    created_at: i64,
}

/// Which end user is looked for.
#[derive(Deserialize)]
pub(super) struct EndUsersQuery {
    #[serde(default)]
    other_id: String,
    #[serde(default)]
    page: String,
}

#[derive(Template)]
#[template(path = "end_users.html")]
struct EndUsersPageView {
    t: &'static Texts,
    frame: Frame,
    here: String,
    asked: EndUsersQuery,
    total: String,
    /// Id, the customer's id, when it came.
    rows: Vec<(String, String, String)>,
    previous: Option<String>,
    next: Option<String>,
}

pub(super) async fn list(
    visit: Visit,
    Path(workspace): Path<String>,
    Query(asked): Query<EndUsersQuery>,
) -> Shown {
    let filter = query(&[("pagesize", PAGESIZE), ("other_id", &asked.other_id), ("page", &asked.page)]);
    let found = visit.api(Some(&workspace)).get::<EndUsers>(&format!("/endusers{filter}")).await;
    let EndUsers { page: part, items } = found.map_err(|refused| visit.refused(Some(&workspace), refused))?;
    let t = visit.t();
    let frame = visit.frame("end-users", t.end_users, Some(&workspace));
    let here = format!("{}/end-users", frame.base());
    let to = |number: u32| format!("{here}{}", query(&[("page", &number.to_string())]));
    let previous = (part.page > 1).then(|| to(part.page - 1));
    let next = part.hasnext.then(|| to(part.page + 1));
    let rows =
        items.into_iter().map(|user| (user.id, user.other_id, show::instant(user.created_at))).collect();
    let total = show::count(part.total);
    Ok(page(
        StatusCode::OK,
        &EndUsersPageView { t, frame, here: here.clone(), asked, total, rows, previous, next },
    ))
}

pub(super) async fn delete(Path((workspace, id)): Path<(String, String)>, change: Change) -> Shown {
    let visit = &change.visit;
    let path = format!("/endusers/{}", segment(&id));
    let done = visit.api(Some(&workspace)).send::<Value>(Method::DELETE, &path, Map::new()).await;
    done.map_err(|refused| visit.refused(Some(&workspace), refused))?;
    Ok(lead_to(&format!("{}/end-users", base(&workspace))))
}
