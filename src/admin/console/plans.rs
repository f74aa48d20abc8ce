//! Plans: what workspaces may use.

use super::api::segment;
use super::form::{Field, FieldKind, Form, counts, label_of, limit_rows, owners, windows};
use super::key_form::is_about_form;
use super::show;
use super::texts::Texts;
use super::visit::{Change, Frame, Instead, Shown, Visit, lead_to, page};
use askama::Template;
use axum::extract::Path;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Plans {
    items: Vec<Plan>,
}

#[derive(Deserialize)]
struct Plan {
    id: String,
    description: String,
    api_ops_rate_limit: u64,
    end_user_quota: u64,
    default_daily_request_limit: Option<u64>,
    limits: Vec<Value>,
    calendar: Calendar,
    usage_retention_days: Option<u64>,
    deleted_keys_days: u64,
}

#[derive(Deserialize)]
struct Calendar {
    zone: String,
    month_day: u64,
    week_day: String,
}

#[derive(Template)]
#[template(path = "plans.html")]
struct PlansPage {
    t: &'static Texts,
    frame: Frame,
    rows: Vec<PlanRow>,
}

struct PlanRow {
    id: String,
    segment: String,
    description: String,
    rate: String,
    end_users: String,
    limits: Vec<String>,
    zone: String,
}

#[derive(Template)]
#[template(path = "plan.html")]
struct PlanFormPage {
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
    /// Where the plan is deleted; none: it is new.
    delete: Option<String>,
}

/// Most plans that a choice offers, as many as the API lists on a page.
const CHOICES: &str = "?pagesize=100";

pub(super) async fn list(visit: Visit) -> Shown {
    let t = visit.t();
    let (counted, per, owned) = (counts(t), windows(t), owners(t));
    let plans = all(&visit).await?;
    let rows = plans.into_iter().map(|plan| PlanRow {
        segment: segment(&plan.id),
        id: plan.id,
        description: plan.description,
        rate: format!("{}{}", show::count(plan.api_ops_rate_limit), t.a_second),
        end_users: show::count(plan.end_user_quota),
        limits: plan
            .limits
            .iter()
            .map(|limit| {
                let word = |words: &[(String, String)], name: &str| {
                    label_of(words, limit[name].as_str().unwrap_or_default())
                };
                let max = limit["max"].as_u64().unwrap_or(0);
                let max = if limit["count"] == "cost" { show::money(max) } else { show::count(max) };
                format!("{max} {} {} · {}", word(&counted, "count"), word(&per, "per"), word(&owned, "of"))
            })
            .collect(),
        zone: plan.calendar.zone,
    });
    let rows = rows.collect();
    Ok(page(StatusCode::OK, &PlansPage { t, frame: visit.frame("plans", t.plans, None), rows }))
}

async fn all(visit: &Visit) -> Result<Vec<Plan>, Instead> {
    let found = visit.api(None).get::<Plans>(&format!("/plans{CHOICES}")).await;
    found.map(|plans| plans.items).map_err(|refused| visit.refused(None, refused))
}

/// The plans to choose from.
pub(super) async fn plan_choices(visit: &Visit) -> Result<Vec<(String, String)>, Instead> {
    Ok(all(visit).await?.into_iter().map(|plan| (plan.id.clone(), plan.id)).collect())
}

pub(super) async fn new_form(visit: Visit) -> Shown {
    if !visit.is_platform() {
        return Err(visit.message(StatusCode::FORBIDDEN));
    }
    let form = Form::new(fields(visit.t(), None));
    Ok(form_page(&visit, None, form, StatusCode::OK))
}

pub(super) async fn create(change: Change) -> Shown {
    let Change { visit, form: sent } = change;
    save(&visit, None, &sent).await
}

pub(super) async fn edit_form(visit: Visit, Path(id): Path<String>) -> Shown {
    let plan = read(&visit, &id).await?;
    let form = Form::new(fields(visit.t(), Some(&plan)));
    Ok(form_page(&visit, Some(&plan), form, StatusCode::OK))
}

pub(super) async fn change(Path(id): Path<String>, change: Change) -> Shown {
    let Change { visit, form: sent } = change;
    let plan = read(&visit, &id).await?;
    save(&visit, Some(&plan), &sent).await
}

async fn save(visit: &Visit, plan: Option<&Plan>, sent: &super::form::FormData) -> Shown {
    let mut form = Form::new(fields(visit.t(), plan));
    form.fill(sent);
    let mut body = form.body(plan.is_none(), visit.t()).unwrap_or_default();
    let mut part = |name: &str| body.remove(name).filter(|value| !value.is_null());
    let parts = [("zone", part("zone")), ("month_day", part("month_day")), ("week_day", part("week_day"))];
    let calendar: Map<String, Value> =
        parts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    body.insert("calendar".into(), json!(calendar));
    let (method, path) = match plan {
        None => (Method::POST, "/plans".to_owned()),
        Some(plan) => (Method::PUT, format!("/plans/{}", segment(&plan.id))),
    };
    match visit.api(None).send::<Value>(method, &path, body).await {
        Ok(_) => Ok(lead_to("/console/plans")),
        Err(mut refused) if is_about_form(refused.status) => {
            for error in &mut refused.errors {
                error.field = error.field.trim_start_matches("calendar.").to_owned();
            }
            let status = refused.status;
            form.refuse(refused);
            Ok(form_page(visit, plan, form, status))
        }
        Err(refused) => Err(visit.refused(None, refused)),
    }
}

pub(super) async fn delete(Path(id): Path<String>, change: Change) -> Shown {
    let visit = &change.visit;
    let path = format!("/plans/{}", segment(&id));
    match visit.api(None).send::<Value>(Method::DELETE, &path, Map::new()).await {
        Ok(_) => Ok(lead_to("/console/plans")),
        Err(refused) => Err(visit.refused(None, refused)),
    }
}

async fn read(visit: &Visit, id: &str) -> Result<Plan, Instead> {
    let found = visit.api(None).get::<Plan>(&format!("/plans/{}", segment(id))).await;
    found.map_err(|refused| visit.refused(None, refused))
}

fn form_page(visit: &Visit, plan: Option<&Plan>, form: Form, status: StatusCode) -> Response {
    let t = visit.t();
    let title = plan.map_or_else(|| t.new_plan.to_owned(), |plan| format!("{} {}", t.plan, plan.id));
    let here = plan.map(|plan| format!("/console/plans/{}", segment(&plan.id)));
    let view = PlanFormPage {
        t,
        frame: visit.frame("plans", &title, None),
        form,
        fixed: Vec::new(),
        action: here.clone().unwrap_or_else(|| "/console/plans/new".into()),
        submit: if plan.is_some() { t.save } else { t.create_plan },
        back: "/console/plans".into(),
        back_label: t.plans.into(),
        counts: counts(t),
        windows: windows(t),
        delete: here.map(|here| format!("{here}/delete")),
    };
    page(status, &view)
}

fn fields(t: &'static Texts, plan: Option<&Plan>) -> Vec<Field> {
    let number = |value: Option<u64>| value.map(|n| n.to_string()).unwrap_or_default();
    let of = |read: fn(&Plan) -> Option<u64>| number(plan.and_then(read));
    let days = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
    let days = days.map(|day| (day.to_owned(), day.to_owned())).to_vec();
    let text = |read: fn(&Plan) -> &str| plan.map(read).unwrap_or_default().to_owned();
    let limits = plan.map(|plan| plan.limits.as_slice()).unwrap_or_default();
    let field = Field::new;
    let id = plan.is_none().then(|| field("id", t.id, t.h_plan_id, FieldKind::Text).required());
    let rest = [
        field("description", t.description, t.h_description, FieldKind::Area).with(text(|p| &p.description)),
        field("api_ops_rate_limit", t.rate_of_plan, t.h_plan_rate, FieldKind::Number)
            .required()
            .with(of(|p| Some(p.api_ops_rate_limit))),
        field("end_user_quota", t.end_users, t.h_plan_end_users, FieldKind::Number)
            .required()
            .with(of(|p| Some(p.end_user_quota))),
        field("default_daily_request_limit", t.default_daily, t.h_default_daily, FieldKind::Number)
            .with(of(|p| p.default_daily_request_limit)),
        field(
            "limits",
            t.further_limits,
            t.h_plan_limits,
            FieldKind::Limits(limit_rows(limits), Some(owners(t))),
        ),
        field("zone", t.zone, t.h_zone, FieldKind::Text).with(text(|p| &p.calendar.zone)),
        field("month_day", t.month_day, t.h_month_day, FieldKind::Number)
            .with(of(|p| Some(p.calendar.month_day))),
        field("week_day", t.week_day, t.h_week_day, FieldKind::Choice(days)).with(if plan.is_some() {
            text(|p| &p.calendar.week_day)
        } else {
            "monday".into()
        }),
        field("usage_retention_days", t.retention, t.h_retention, FieldKind::Number)
            .with(of(|p| p.usage_retention_days)),
        field("deleted_keys_days", t.deleted_keys_days, t.h_deleted_keys, FieldKind::Number)
            .with(if plan.is_some() { of(|p| Some(p.deleted_keys_days)) } else { "30".into() }),
    ];
    id.into_iter().chain(rest).collect()
}
