//! Import of keys and end users from another system: each row succeeds or fails by itself, and the response reports each.

use super::caller::WorkspaceWriter;
use super::context::{Admin, AdminState};
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{Object, Query};
use super::input::{FieldError, ImportBody, ImportKeyInput, ImportedKey, read_imported_end_user};
use super::schema::{EndUserImport, KeyImport};
use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::id::WorkspaceId;
use crate::model::key::Plan;
use crate::store::{Actor, NewKey, StoreError, Version};
use axum::extract::State;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The result of an import.
#[derive(Serialize, ToSchema)]
pub(super) struct ImportReport {
    /// Nothing was stored; the figures are those of a real import, except for names and secrets that are already in use.
    dry_run: bool,
    imported: u64,
    /// End users that already existed, and were not changed.
    existing: u64,
    refused: u64,
    /// Refused rows, and rows whose key differs from the row or has a note.
    rows: Vec<ImportedRow>,
}

/// The result for one row.
#[derive(Serialize, ToSchema)]
pub(super) struct ImportedRow {
    /// Its index in the request, from 0.
    row: usize,
    /// The id that was stored; null if the row was refused.
    id: Option<String>,
    /// Remarks, e.g. that its rate is above the plan.
    notes: Vec<String>,
    /// Why it was refused.
    #[schema(value_type = Vec<super::envelope::DetailError>)]
    errors: Vec<FieldError>,
}

/// Import keys
///
/// Role `admin`. Rows have the fields of `POST /apikeys`, with `api_key` (the plaintext secret) or `sha256` (its SHA-256
/// digest in hexadecimal) and optionally `id`, `is_active`, `created_by`, `created_at`, `updated_at`, `quota_used`,
/// `usage_count`, `last_used_at` and `hint`. Expired and disabled keys are accepted. So are rates above the plan: the key
/// then runs at the plan's limit. Each row is imported as a whole or refused; the response says which.
#[utoipa::path(post, path = "/apikeys/import", tag = "API keys", request_body = KeyImport, responses(
    (status = 200, description = "What became of the rows", body = Envelope<ImportReport>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn import_keys(
    State(admin): State<AdminState>,
    WorkspaceWriter { actor, workspace }: WorkspaceWriter,
    Query(()): Query<()>,
    Object(body): Object,
) -> Result<ApiResponse<ImportReport>, AdminError> {
    let ImportBody { rows, dry_run } = ImportBody::read(&body, "keys").map_err(AdminError::fields)?;
    let at = admin.now();
    let plan = super::apikeys::plan_of(&admin, &workspace).await?;
    let mut report = ImportReport::new(dry_run);
    let mut keys = Vec::with_capacity(rows.len());
    for (row, fields) in rows.into_iter().enumerate() {
        match read_key(&admin, &fields, (&workspace, &plan), &actor, at) {
            Ok(imported) => keys.push((row, imported)),
            Err(errors) => report.refuse(row, errors),
        }
    }
    if dry_run {
        for (row, imported) in keys {
            report.take(row, &imported.key.key.id, imported.notes);
        }
    } else {
        store_keys(&admin, keys, &actor, at, &mut report).await?;
    }
    report.rows.sort_by_key(|row| row.row);
    Ok(ApiResponse::ok(report))
}

/// Import end users
///
/// Role `admin`. Rows have `other_id`, and optionally `id` and `created_at`. End users that already exist, by id or by
/// name, are not changed. The plan's quota does not apply to imported end users; while it is exceeded, new end users are
/// refused.
#[utoipa::path(post, path = "/endusers/import", tag = "End users", request_body = EndUserImport, responses(
    (status = 200, description = "What became of the rows", body = Envelope<ImportReport>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn import_end_users(
    State(admin): State<AdminState>,
    WorkspaceWriter { actor, workspace }: WorkspaceWriter,
    Query(()): Query<()>,
    Object(body): Object,
) -> Result<ApiResponse<ImportReport>, AdminError> {
    let ImportBody { rows, dry_run } = ImportBody::read(&body, "end_users").map_err(AdminError::fields)?;
    let at = admin.now();
    let mut report = ImportReport::new(dry_run);
    let mut users = Vec::with_capacity(rows.len());
    for (row, fields) in rows.into_iter().enumerate() {
        match read_imported_end_user(&fields, &workspace, at) {
            Ok(user) => users.push(user),
            Err(errors) => report.refuse(row, errors),
        }
    }
    let read = u64::try_from(users.len()).unwrap_or(u64::MAX);
    report.imported = read;
    if !dry_run {
        let call = admin.deps.store.restore_end_users(&workspace, users, &actor, at);
        report.imported = admin.ask(Fault::NotFound, call).await?;
        report.existing = read.saturating_sub(report.imported);
    }
    Ok(ApiResponse::ok(report))
}

fn read_key(
    admin: &Admin,
    fields: &Map<String, Value>,
    (workspace, plan): (&WorkspaceId, &Plan),
    by: &Actor,
    at: Timestamp,
) -> Result<ImportedKey, Vec<FieldError>> {
    let (prefix, peppers) = (&admin.deps.secret_prefix, &admin.deps.peppers);
    let input = ImportKeyInput::read(fields, workspace, prefix, &by.subject, at)?;
    let imported = input.into_key(workspace.clone(), plan, prefix, peppers);
    let key = &imported.key.key;
    let errors = admin.uncounted(&key.ceilings.limits, Some(&key.scopes));
    if errors.is_empty() { Ok(imported) } else { Err(errors) }
}

async fn store_keys(
    admin: &Admin,
    rows: Vec<(usize, ImportedKey)>,
    by: &Actor,
    at: Timestamp,
    report: &mut ImportReport,
) -> Result<(), AdminError> {
    let (places, keys): (Vec<_>, Vec<NewKey>) =
        rows.into_iter().map(|(row, ImportedKey { key, notes })| ((row, key.key.id, notes), key)).unzip();
    let done = admin.ask(Fault::NotFound, admin.deps.store.create_keys(keys, by, at)).await?;
    let mut newest = Version::default();
    for ((row, id, notes), outcome) in places.into_iter().zip(done) {
        match outcome {
            Ok(version) => {
                newest = newest.max(version);
                report.take(row, &id, notes);
            }
            Err(error) => report.refuse(row, vec![field_error(error)]),
        }
    }
    admin.reach(newest).await;
    Ok(())
}

/// Why the store refused a row.
fn field_error(error: StoreError) -> FieldError {
    let (field, message) = match error {
        StoreError::DuplicateName => ("name", "the resource already has a key of that name".to_owned()),
        StoreError::DuplicateExternalId => {
            ("external_id", "the workspace already has a key of that external_id".to_owned())
        }
        StoreError::AlreadyExists(_) => ("id", "there already is a key of that id".to_owned()),
        StoreError::Invalid { field: "secret", .. } => ("api_key", "is the secret of another key".to_owned()),
        StoreError::Invalid { field, why } => (field, why),
        other => ("", other.to_string()),
    };
    FieldError { field: field.to_owned(), message }
}

impl ImportReport {
    fn new(dry_run: bool) -> Self {
        Self { dry_run, imported: 0, existing: 0, refused: 0, rows: Vec::new() }
    }

    fn take(&mut self, row: usize, id: &impl ToString, notes: Vec<String>) {
        self.imported += 1;
        if !notes.is_empty() {
            self.rows.push(ImportedRow { row, id: Some(id.to_string()), notes, errors: Vec::new() });
        }
    }

    fn refuse(&mut self, row: usize, errors: Vec<FieldError>) {
        self.refused += 1;
        self.rows.push(ImportedRow { row, id: None, notes: Vec::new(), errors });
    }
}
