//! Workspaces: the list, one with its quotas and grants, and what can be done with it.

use super::api::{query, segment};
use super::chart::Bar;
use super::form::{Field, FieldKind, Form, counts, label_of, windows};
use super::key_form::is_about_form;
use super::plans::plan_choices;
use super::show;
use super::texts::Texts;
use super::visit::{Change, Frame, Instead, Shown, Visit, base, lead_to, page};
use askama::Template;
use axum::extract::{Path, Query};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Workspaces {
    page: WorkspacesPage,
    items: Vec<Workspace>,
}

#[derive(Deserialize)]
struct WorkspacesPage {
    page: u32,
    hasnext: bool,
}

#[derive(Deserialize)]
struct Workspace {
    id: String,
    name: String,
    plan_id: String,
    end_users: u64,
    created_at: i64,
}

/// A workspace with the usage of its quotas, as the API shows it.
#[derive(Deserialize)]
pub(super) struct Detail {
    pub(super) id: String,
    name: String,
    pub(super) plan_id: String,
    api_ops_rate_limit: u64,
    quotas: Vec<Quota>,
}

#[derive(Deserialize)]
struct Quota {
    count: Option<String>,
    per: Option<String>,
    used: u64,
    held: u64,
    limit: u64,
    granted: u64,
}

#[derive(Deserialize)]
struct Grants {
    items: Vec<Grant>,
}

#[derive(Deserialize)]
struct Grant {
    id: String,
    limit: String,
    of: Option<String>,
    count: Option<String>,
    per: Option<String>,
    amount: u64,
    reason: String,
    until: i64,
    is_active: bool,
    created_by: String,
}

/// Which page.
#[derive(Deserialize)]
pub(super) struct NumberQuery {
    #[serde(default)]
    page: String,
}

#[derive(Template)]
#[template(path = "workspaces.html")]
struct WorkspacesPageView {
    t: &'static Texts,
    frame: Frame,
    rows: Vec<WorkspaceRow>,
    previous: Option<String>,
    next: Option<String>,
}

struct WorkspaceRow {
    id: String,
    base: String,
    segment: String,
    name: String,
    plan: String,
    end_users: String,
    created: String,
}

#[derive(Template)]
#[template(path = "form.html")]
struct WorkspaceFormPage {
    t: &'static Texts,
    frame: Frame,
    form: Form,
    fixed: Vec<(&'static str, String)>,
    action: String,
    submit: &'static str,
    back: String,
    back_label: String,
    counts: Vec<(String, String)>,
    windows: Vec<(String, String)>,
}

#[derive(Template)]
#[template(path = "workspace.html")]
struct WorkspacePage {
    t: &'static Texts,
    frame: Frame,
    here: String,
    id: String,
    rate: String,
    bars: Vec<Bar>,
    grants: Vec<GrantRow>,
    /// The name and plan, then a new grant.
    form: Form,
    grant_form: Form,
    counts: Vec<(String, String)>,
    windows: Vec<(String, String)>,
    wrong: Option<String>,
}

struct GrantRow {
    id: String,
    limit: String,
    amount: String,
    reason: String,
    until: String,
    by: String,
    is_active: bool,
}

pub(super) async fn list(visit: Visit, Query(asked): Query<NumberQuery>) -> Shown {
    let filter = query(&[("pagesize", "50"), ("page", &asked.page)]);
    let found = visit.api(None).get::<Workspaces>(&format!("/workspaces{filter}")).await;
    let Workspaces { page: part, items } = found.map_err(|refused| visit.refused(None, refused))?;
    let rows = items.into_iter().map(|workspace| WorkspaceRow {
        base: base(&workspace.id),
        segment: segment(&workspace.id),
        id: workspace.id,
        name: workspace.name,
        plan: workspace.plan_id,
        end_users: show::count(workspace.end_users),
        created: show::instant(workspace.created_at),
    });
    let rows = rows.collect();
    let to = |number: u32| format!("/console/workspaces?page={number}");
    let previous = (part.page > 1).then(|| to(part.page - 1));
    let next = part.hasnext.then(|| to(part.page + 1));
    let t = visit.t();
    let frame = visit.frame("workspaces", t.workspaces, None);
    Ok(page(StatusCode::OK, &WorkspacesPageView { t, frame, rows, previous, next }))
}

pub(super) async fn new_form(visit: Visit) -> Shown {
    let form = Form::new(new_fields(&visit).await?);
    Ok(new_page(&visit, form, StatusCode::OK))
}

pub(super) async fn create(change: Change) -> Shown {
    let Change { visit, form: sent } = change;
    let mut form = Form::new(new_fields(&visit).await?);
    form.fill(&sent);
    let id = form.value("id").trim().to_owned();
    if id.is_empty() {
        form.error = Some(visit.t().id_required.to_owned());
        return Ok(new_page(&visit, form, StatusCode::BAD_REQUEST));
    }
    let mut body = form.body(true, visit.t()).unwrap_or_default();
    body.remove("id");
    let path = format!("/workspaces/{}", segment(&id));
    match visit.api(None).send::<Value>(Method::PUT, &path, body).await {
        Ok(_) => Ok(lead_to(&format!("/console/workspaces/{}", segment(&id)))),
        Err(refused) if is_about_form(refused.status) => {
            let status = refused.status;
            form.refuse(refused);
            Ok(new_page(&visit, form, status))
        }
        Err(refused) => Err(visit.refused(None, refused)),
    }
}

async fn new_fields(visit: &Visit) -> Result<Vec<Field>, Instead> {
    let t = visit.t();
    let plans = plan_choices(visit).await?;
    Ok(vec![
        Field::new("id", t.id, t.h_workspace_id, FieldKind::Text).required(),
        Field::new("name", t.name, t.h_workspace_name, FieldKind::Text),
        Field::new("plan_id", t.plan, t.h_plan_of, FieldKind::Choice(plans)),
    ])
}

fn new_page(visit: &Visit, form: Form, status: StatusCode) -> Response {
    let t = visit.t();
    let view = WorkspaceFormPage {
        t,
        frame: visit.frame("workspaces", t.new_workspace, None),
        form,
        fixed: Vec::new(),
        action: "/console/workspaces/new".into(),
        submit: t.create_workspace,
        back: "/console/workspaces".into(),
        back_label: t.workspaces.into(),
        counts: Vec::new(),
        windows: Vec::new(),
    };
    page(status, &view)
}

pub(super) async fn detail(visit: Visit, Path(id): Path<String>) -> Shown {
    shown(&visit, &id, None, None).await
}

/// The page of a workspace; with a form that was refused, or with what is wrong with an action.
async fn shown(visit: &Visit, id: &str, refused_grant: Option<Form>, wrong: Option<String>) -> Shown {
    let api = visit.api(None);
    let path = format!("/workspaces/{}", segment(id));
    let refused = |error| visit.refused(None, error);
    let detail: Detail = api.get(&path).await.map_err(refused)?;
    let grants: Grants = api.get(&format!("{path}/grants")).await.map_err(refused)?;
    let t = visit.t();
    let plans = plan_choices(visit).await?;
    let form = Form::new(vec![
        Field::new("name", t.name, t.h_workspace_name, FieldKind::Text).with(detail.name.clone()),
        Field::new("plan_id", t.plan, t.h_plan_of, FieldKind::Choice(plans)).with(detail.plan_id.clone()),
    ]);
    let (counted, per) = (counts(t), windows(t));
    let grants = grants.items.into_iter().map(|grant| GrantRow::new(grant, &counted, &per, t)).collect();
    let title = if detail.name.is_empty() { detail.id.clone() } else { detail.name.clone() };
    let status =
        if refused_grant.is_some() || wrong.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    let view = WorkspacePage {
        t,
        frame: visit.frame("workspaces", &title, Some(id)),
        here: format!("/console/workspaces/{}", segment(id)),
        rate: format!("{}{}", show::count(detail.api_ops_rate_limit), t.a_second),
        bars: detail.bars(t),
        id: detail.id,
        grants,
        form,
        grant_form: refused_grant.unwrap_or_else(|| Form::new(grant_fields(t))),
        counts: counted,
        windows: per,
        wrong,
    };
    Ok(page(status, &view))
}

pub(super) async fn change(Path(id): Path<String>, change: Change) -> Shown {
    let Change { visit, form } = change;
    let body = Map::from_iter([
        ("name".to_owned(), json!(form.get("name").trim())),
        ("plan_id".to_owned(), json!(form.get("plan_id"))),
    ]);
    act(&visit, &id, Method::PUT, &format!("/workspaces/{}", segment(&id)), body).await
}

pub(super) async fn grant(Path(id): Path<String>, change: Change) -> Shown {
    let Change { visit, form: sent } = change;
    let mut form = Form::new(grant_fields(visit.t()));
    form.fill(&sent);
    let mut body = form.body(true, visit.t()).unwrap_or_default();
    // One field offers every limit that can be raised: those of the plan's own, and the further ones by what they count and when.
    let wanted = form.value("limit").to_owned();
    let mut parts = wanted.split('/');
    body.insert("limit".into(), json!(parts.next()));
    for (name, part) in ["of", "count", "per"].into_iter().zip(parts) {
        body.insert(name.into(), json!(part));
    }
    let path = format!("/workspaces/{}/grants", segment(&id));
    match visit.api(None).send::<Value>(Method::POST, &path, body).await {
        Ok(_) => Ok(lead_to(&format!("/console/workspaces/{}", segment(&id)))),
        Err(refused) if is_about_form(refused.status) => {
            form.refuse(refused);
            shown(&visit, &id, Some(form), None).await
        }
        Err(refused) => Err(visit.refused(None, refused)),
    }
}

pub(super) async fn take_back(Path((id, grant)): Path<(String, String)>, change: Change) -> Shown {
    let path = format!("/workspaces/{}/grants/{}", segment(&id), segment(&grant));
    act(&change.visit, &id, Method::DELETE, &path, Map::new()).await
}

pub(super) async fn delete(Path(id): Path<String>, change: Change) -> Shown {
    let Change { visit, form } = change;
    if form.get("name").trim() != id {
        let wrong = visit.t().wrong_name.to_owned();
        return shown(&visit, &id, None, Some(wrong)).await;
    }
    let force = if form.get("force").is_empty() { "" } else { "?force=true" };
    let path = format!("/workspaces/{}{force}", segment(&id));
    match visit.api(None).send::<Value>(Method::DELETE, &path, Map::new()).await {
        Ok(_) => Ok(lead_to("/console/workspaces")),
        Err(refused) if is_about_form(refused.status) => {
            shown(&visit, &id, None, Some(refused.message)).await
        }
        Err(refused) => Err(visit.refused(None, refused)),
    }
}

/// Changes something of a workspace and shows it.
async fn act(visit: &Visit, id: &str, method: Method, path: &str, body: Map<String, Value>) -> Shown {
    match visit.api(None).send::<Value>(method, path, body).await {
        Ok(_) => Ok(lead_to(&format!("/console/workspaces/{}", segment(id)))),
        Err(refused) if is_about_form(refused.status) => shown(visit, id, None, Some(refused.message)).await,
        Err(refused) => Err(visit.refused(None, refused)),
    }
}

fn grant_fields(t: &'static Texts) -> Vec<Field> {
    let (counted, per) = (counts(t), windows(t));
    let mut limits = vec![
        ("api_ops_rate_limit".to_owned(), t.rate_of_plan.to_owned()),
        ("end_user_quota".to_owned(), t.end_users.to_owned()),
    ];
    for (count, label) in &counted {
        for (window, when) in &per {
            limits.push((format!("limits/workspace/{count}/{window}"), format!("{label} {when}")));
        }
    }
    vec![
        Field::new("limit", t.limit, t.h_grant_limit, FieldKind::Choice(limits)),
        Field::new("amount", t.amount, t.h_amount, FieldKind::Number).required(),
        Field::new("reason", t.reason, t.h_reason, FieldKind::Text).required(),
        Field::new("until", t.until, t.h_until, FieldKind::Instant).required(),
    ]
}

impl Detail {
    /// How much of its quotas is used.
    pub(super) fn bars(&self, t: &'static Texts) -> Vec<Bar> {
        let (counted, per) = (counts(t), windows(t));
        let bars = self.quotas.iter().map(|quota| {
            let label = match (&quota.count, &quota.per) {
                (Some(count), Some(window)) => {
                    format!("{} {}", label_of(&counted, count), label_of(&per, window))
                }
                _ => t.end_users.to_owned(),
            };
            let owner = if quota.granted > 0 {
                format!("{} · +{} {}", t.of_workspace, show::count(quota.granted), t.granted)
            } else {
                t.of_workspace.to_owned()
            };
            let is_cost = quota.count.as_deref() == Some("cost");
            Bar::new(label, owner, (quota.used, quota.held), quota.limit, is_cost)
        });
        bars.collect()
    }
}

impl GrantRow {
    fn new(grant: Grant, counted: &[(String, String)], per: &[(String, String)], t: &Texts) -> Self {
        let Grant { id, limit, of, count, per: window, amount, reason, until, is_active, created_by } = grant;
        let limit = match (count, window) {
            (Some(count), Some(window)) => {
                let of = of.filter(|of| of != "workspace").map(|of| format!(" ({of})")).unwrap_or_default();
                format!("{} {}{of}", label_of(counted, &count), label_of(per, &window))
            }
            _ if limit == "end_user_quota" => t.end_users.to_owned(),
            _ => t.rate_of_plan.to_owned(),
        };
        let until = show::instant(until);
        Self { id, limit, amount: show::count(amount), reason, until, by: created_by, is_active }
    }
}
