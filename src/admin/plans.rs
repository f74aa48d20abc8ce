//! Plans: create, list, read, change, delete.

use super::apikeys::{CeilingView, Deleted};
use super::caller::PlatformAdmin;
use super::context::{Admin, AdminState};
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{Object, PathSegment, Query};
use super::input::{CreatePlanInput, UpdatePlanInput};
use super::page::{Listed, PageParams, millis};
use super::schema::{PlanCreate, PlanUpdate};
use crate::model::calendar::Calendar;
use crate::model::fault::Fault;
use crate::model::id::PlanId;
use crate::model::key::Plan;
use crate::store::{PageRequest, PlanRecord};
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

/// A plan.
#[derive(Serialize, ToSchema)]
pub(super) struct PlanView {
    id: String,
    description: String,
    /// The highest rate of one key, in requests per second.
    api_ops_rate_limit: u32,
    /// The most end users of a workspace.
    end_user_quota: u64,
    /// Requests per day for keys created without a daily limit; null: no limit.
    default_daily_request_limit: Option<u64>,
    /// Further limits.
    limits: Vec<CeilingView>,
    /// When the days, weeks and months of limits begin.
    calendar: CalendarView,
    /// How many whole UTC days before today usage records are kept; null: for ever.
    usage_retention_days: Option<u32>,
    /// For how many days after its deletion a key can be restored; 0: not at all.
    deleted_keys_days: u32,
    /// Epoch milliseconds.
    created_at: i64,
    /// Epoch milliseconds.
    updated_at: i64,
}

/// When the days, weeks and months of a plan's limits begin.
#[derive(Serialize, ToSchema)]
pub(super) struct CalendarView {
    /// The time zone, by its name in the IANA database.
    zone: &'static str,
    /// The day on which months begin; in a shorter month its last.
    month_day: u8,
    week_day: &'static str,
}

/// Create a plan
///
/// Role `platform`.
#[utoipa::path(post, path = "/plans", tag = "Plans", request_body = PlanCreate, responses(
    (status = 201, description = "The plan", body = Envelope<PlanView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn create_plan(
    State(admin): State<AdminState>,
    PlatformAdmin { actor }: PlatformAdmin,
    Query(()): Query<()>,
    Object(body): Object,
) -> Result<ApiResponse<PlanView>, AdminError> {
    let at = admin.now();
    let plan = CreatePlanInput::read(&body).map_err(AdminError::fields)?.into_record(at);
    admin.check_counted(&plan.plan.limits, None)?;
    let made = admin.write(Fault::NotFound, admin.deps.store.create_plan(plan, &actor, at)).await?;
    Ok(ApiResponse::created(PlanView::new(made)))
}

/// List plans
///
/// Role `platform`. By id.
#[utoipa::path(get, path = "/plans", tag = "Plans", params(PageParams), responses(
    (status = 200, description = "A page of plans", body = Envelope<Listed<PlanView>>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn list_plans(
    State(admin): State<AdminState>,
    _: PlatformAdmin,
    Query(page): Query<PageRequest>,
) -> Result<ApiResponse<Listed<PlanView>>, AdminError> {
    let found = admin.ask(Fault::NotFound, admin.deps.store.plans(page)).await?;
    admin.deps.metrics.store_rows_passed_over.inc_by(found.passed_over);
    Ok(ApiResponse::ok(Listed::new(page, found, PlanView::new)))
}

/// Read a plan
///
/// Role `platform`.
#[utoipa::path(get, path = "/plans/{id}", tag = "Plans", params(("id" = String, Path, description = "Which plan")), responses(
    (status = 200, description = "The plan", body = Envelope<PlanView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn get_plan(
    State(admin): State<AdminState>,
    _: PlatformAdmin,
    id: PathSegment,
    Query(()): Query<()>,
) -> Result<ApiResponse<PlanView>, AdminError> {
    let id: PlanId = id.id(Fault::NotFound)?;
    let found = admin.ask(Fault::NotFound, admin.deps.store.plan(&id)).await?;
    found.map(|plan| ApiResponse::ok(PlanView::new(plan))).ok_or_else(|| AdminError::of(Fault::NotFound))
}

/// Change a plan
///
/// Role `platform`. Keys above a lowered rate run at the plan's limit.
#[utoipa::path(put, path = "/plans/{id}", tag = "Plans", params(("id" = String, Path, description = "Which plan")),
request_body = PlanUpdate, responses(
    (status = 200, description = "The plan as it is now", body = Envelope<PlanView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn update_plan(
    State(admin): State<AdminState>,
    PlatformAdmin { actor }: PlatformAdmin,
    id: PathSegment,
    Query(()): Query<()>,
    Object(body): Object,
) -> Result<ApiResponse<PlanView>, AdminError> {
    let id: PlanId = id.id(Fault::NotFound)?;
    belongs_to_api(&admin, &id)?;
    let patch = UpdatePlanInput::read(&body).map_err(AdminError::fields)?.into_patch();
    if let Some(limits) = &patch.limits {
        admin.check_counted(limits, None)?;
    }
    let call = admin.deps.store.update_plan(&id, patch, &actor, admin.now());
    let plan = admin.write(Fault::NotFound, call).await?;
    Ok(ApiResponse::ok(PlanView::new(plan)))
}

/// Delete a plan
///
/// Role `platform`. Refused for a plan that workspaces use, and for the default plan.
#[utoipa::path(delete, path = "/plans/{id}", tag = "Plans", params(("id" = String, Path, description = "Which plan")), responses(
    (status = 200, description = "It is gone", body = Envelope<Deleted>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn delete_plan(
    State(admin): State<AdminState>,
    PlatformAdmin { actor }: PlatformAdmin,
    id: PathSegment,
    Query(()): Query<()>,
) -> Result<ApiResponse<Deleted>, AdminError> {
    let id: PlanId = id.id(Fault::NotFound)?;
    belongs_to_api(&admin, &id)?;
    if id == admin.deps.default_plan {
        return Err(AdminError::conflict(
            "This is the plan of new workspaces; it cannot be deleted",
            "这是新工作空间的默认套餐，无法删除",
        ));
    }
    admin.write(Fault::NotFound, admin.deps.store.delete_plan(&id, &actor, admin.now())).await?;
    Ok(ApiResponse::ok(Deleted::new(&id)))
}

/// Refuses to change a plan that the config file owns: the next reload would undo it.
fn belongs_to_api(admin: &Admin, id: &PlanId) -> Result<(), AdminError> {
    if admin.deps.reload.is_managed(id) {
        return Err(AdminError::conflict(
            format!("The config file manages plan {id} (managed = true): change it there, then reload"),
            format!("套餐 {id} 由配置文件管理（managed = true）：请在配置文件中修改后重新加载"),
        ));
    }
    Ok(())
}

impl CalendarView {
    fn new(calendar: Calendar) -> Self {
        let Calendar { zone, month_day, week_day } = calendar;
        Self { zone: zone.name(), month_day, week_day: week_day.as_str() }
    }
}

impl PlanView {
    fn new(record: PlanRecord) -> Self {
        let PlanRecord { plan, description, usage_retention_days, deleted_keys_days, created_at, updated_at } =
            record;
        let Plan { id, api_ops_rate_limit, end_user_quota, default_daily_request_limit, limits, calendar } =
            plan;
        Self {
            id: id.to_string(),
            description,
            api_ops_rate_limit,
            end_user_quota,
            default_daily_request_limit,
            limits: limits.iter().map(CeilingView::of_plan).collect(),
            calendar: CalendarView::new(calendar),
            usage_retention_days,
            deleted_keys_days,
            created_at: millis(created_at),
            updated_at: millis(updated_at),
        }
    }
}
