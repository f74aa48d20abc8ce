//! Keys and end users from another system: each row stands or falls by itself, and the answer says what became of each.

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

/// What became of an import.
#[derive(Serialize, ToSchema)]
pub(super) struct ImportReport {
    /// Nothing was stored; the figures say what would have been, names and secrets that are taken apart.
    dry_run: bool,
    imported: u64,
    /// End users that were there already, and stay as they are.
    existing: u64,
    refused: u64,
    /// Rows that were refused, and keys that differ from their row or should be known of.
    rows: Vec<ImportedRow>,
}

/// What became of a row.
#[derive(Serialize, ToSchema)]
pub(super) struct ImportedRow {
    /// Its place in the request, from 0.
    row: usize,
    /// The id that was stored; null: refused.
    id: Option<String>,
    /// What should be known of it, e.g. that its rate is above the plan.
    notes: Vec<String>,
    /// Why it was refused.
    #[schema(value_type = Vec<super::envelope::DetailError>)]
    errors: Vec<FieldError>,
}

/// Import keys
///
/// Role `admin`. Rows are those of `POST /apikeys`, with `api_key` (the plaintext secret) or `sha256` (its SHA-256 digest in
/// hexadecimal) and, where there are such, `id`, `is_active`, `created_by`, `created_at`, `updated_at`, `quota_used`,
/// `usage_count`, `last_used_at` and `hint`. Expired and disabled keys are taken, and rates above the plan as they are: the
/// key then runs at the plan's limit. Each row is imported as a whole or refused; the answer says which.
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
        keys.into_iter().for_each(|(row, imported)| report.take(row, imported.key.key.id, imported.notes));
    } else {
        store_keys(&admin, keys, &actor, at, &mut report).await?;
    }
    report.rows.sort_by_key(|row| row.row);
    Ok(ApiResponse::ok(report))
}

/// Import end users
///
/// Role `admin`. Rows have `other_id`, and may have `id` and `created_at`. Those that are there already, by id or by name,
/// stay as they are. The plan's quota does not hold for end users that are imported; newcomers are refused while it is
/// exceeded.
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
    Ok(input.into_key(workspace.clone(), plan, prefix, peppers))
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
                report.take(row, id, notes);
            }
            Err(error) => report.refuse(row, vec![field_error(error)]),
        }
    }
    admin.reach(newest).await;
    Ok(())
}

/// Why the store did not take a row.
fn field_error(error: StoreError) -> FieldError {
    let (field, message) = match error {
        StoreError::DuplicateName => ("name", "the resource already has a key of that name".to_owned()),
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

    fn take(&mut self, row: usize, id: impl ToString, notes: Vec<String>) {
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
