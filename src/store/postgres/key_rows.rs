//! Selecting and writing keys.

use super::StoreError;
use super::tx::Tx;
use crate::clock::Timestamp;
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::KeyType;
use crate::store::shared::decode::{key_columns, key_record_columns, read_key_record, sound_key_record};
use crate::store::shared::fields::int;
use crate::store::shared::limits::limits_to_json;
use crate::store::shared::rules;
use crate::store::{Credential, KeyCursor, KeyFilter, KeyRecord, Page, PageRequest, Version};
use serde_json::json;
use tokio_postgres::types::ToSql;

/// Keys, with the roll-up of their whole lives.
macro_rules! select_keys {
    () => {
        " FROM keys k LEFT JOIN usage_rollups t
           ON t.subject_kind = 1 AND t.subject_id = uuid_send(k.id) AND t.width = 0 AND t.start = 0 "
    };
}
pub(super) use select_keys;

/// The columns for [`read_key_record`]: the key, what is shown of it, and its usage so far.
macro_rules! select_records {
    () => {
        concat!("SELECT ", key_columns!(), ", ", key_record_columns!(), select_keys!())
    };
}

/// The filter of a list; `k` is the table.
macro_rules! listed {
    () => {
        "WHERE k.workspace_id = $1 AND (k.deleted_at IS NOT NULL) = $6 AND (k.deleted_at IS NULL OR k.digest IS NOT NULL)
           AND ($2::text IS NULL OR k.kind = $2) AND ($3::boolean IS NULL OR k.is_active = $3)
           AND ($4::text IS NULL OR k.resource_id = $4)
           AND ($5::text IS NULL OR strpos(k.search_text, $5) > 0)
           AND (k.created_at, k.id) < ($7, $8) AND ($9::text IS NULL OR k.external_id = $9) "
    };
}

/// One key that is not deleted.
pub(super) async fn live_record(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    id: KeyId,
) -> Result<Option<KeyRecord>, StoreError> {
    let sql = concat!(select_records!(), "WHERE k.id = $1 AND k.workspace_id = $2 AND k.deleted_at IS NULL");
    tx.one(sql, &[&id.0, &workspace.as_str()], read_key_record).await
}

/// One page of the matching keys.
pub(super) async fn list(
    tx: &Tx<'_>,
    workspace: &WorkspaceId,
    filter: &KeyFilter,
    page: PageRequest,
) -> Result<Page<KeyRecord>, StoreError> {
    let (workspace, kind) = (workspace.as_str(), filter.kind.map(KeyType::as_str));
    let search = filter.search.as_deref().map(rules::fold_case);
    // The position is always a bound, so that the index leads to it: the rows before it are not read.
    let after = filter.after.unwrap_or(KeyCursor::START);
    let (at, id) = (after.created_at.as_micros(), after.id.0);
    let total = if filter.after.is_none() {
        let count = concat!("SELECT count(*) FROM keys k ", listed!());
        let values: &[&(dyn ToSql + Sync)] = &[
            &workspace,
            &kind,
            &filter.is_active,
            &filter.resource_id,
            &search,
            &filter.is_deleted,
            &at,
            &id,
            &filter.external_id,
        ];
        Some(tx.count(count, values).await?)
    } else {
        None
    };
    let select =
        concat!(select_records!(), listed!(), "ORDER BY k.created_at DESC, k.id DESC LIMIT $10 OFFSET $11");
    let (limit, offset) = (i64::from(page.pagesize), int(page.offset()));
    let values: &[&(dyn ToSql + Sync)] = &[
        &workspace,
        &kind,
        &filter.is_active,
        &filter.resource_id,
        &search,
        &filter.is_deleted,
        &at,
        &id,
        &filter.external_id,
        &limit,
        &offset,
    ];
    let items = tx.all(select, values, sound_key_record).await?;
    let total = total.unwrap_or(items.len() as u64);
    Ok(Page::of_readable(items, total))
}

pub(super) async fn insert(
    tx: &Tx<'_>,
    record: &KeyRecord,
    credential: &Credential,
    version: Version,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO keys (id, workspace_id, kind, scopes, resource_id, name, description, metadata, hint,
                   search_text, rate_limit, rate_burst, daily_request_limit, quota_limit, concurrency_limit, limits,
                   allowed_ips, is_active, expires_at, digest, pepper_version, secret_id, created_by, created_at,
                   updated_at, version, end_user, external_id)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                   $21, $22, $23, $24, $25, $26, $27, $28)";
    let (key, ceilings) = (&record.key, &record.key.ceilings);
    tx.execute(
        sql,
        &[
            &key.id.0,
            &key.workspace_id.as_str(),
            &key.kind.as_str(),
            &key.scopes.joined(),
            &key.resource_id,
            &record.name,
            &record.description,
            &json!(record.metadata).to_string(),
            &record.hint,
            &rules::search_text(record),
            &i64::from(ceilings.rate_limit),
            &ceilings.rate_burst.map(i64::from),
            &ceilings.daily_request_limit.map(int),
            &ceilings.quota_limit.map(int),
            &ceilings.concurrency_limit.map(i64::from),
            &limits_to_json(&ceilings.limits).to_string(),
            &rules::ips_to_json(&key.allowed_ips).to_string(),
            &key.is_active,
            &key.expires_at.map(Timestamp::as_micros),
            &credential.digest.0.as_slice(),
            &i64::from(credential.pepper_version),
            &i64::from(credential.secret.0),
            &record.created_by,
            &record.created_at.as_micros(),
            &record.updated_at.as_micros(),
            &int(version.0),
            &key.end_user,
            &record.external_id,
        ],
    )
    .await?;
    Ok(())
}

/// Writes every field that a patch can change.
pub(super) async fn update(tx: &Tx<'_>, record: &KeyRecord, version: Version) -> Result<(), StoreError> {
    let sql = "UPDATE keys SET scopes = $2, name = $3, description = $4, metadata = $5, search_text = $6,
                   rate_limit = $7, rate_burst = $8, daily_request_limit = $9, quota_limit = $10,
                   concurrency_limit = $11, limits = $12, allowed_ips = $13, is_active = $14, expires_at = $15,
                   updated_at = $16, version = $17, external_id = $18
               WHERE id = $1";
    let (key, ceilings) = (&record.key, &record.key.ceilings);
    tx.execute(
        sql,
        &[
            &key.id.0,
            &key.scopes.joined(),
            &record.name,
            &record.description,
            &json!(record.metadata).to_string(),
            &rules::search_text(record),
            &i64::from(ceilings.rate_limit),
            &ceilings.rate_burst.map(i64::from),
            &ceilings.daily_request_limit.map(int),
            &ceilings.quota_limit.map(int),
            &ceilings.concurrency_limit.map(i64::from),
            &limits_to_json(&ceilings.limits).to_string(),
            &rules::ips_to_json(&key.allowed_ips).to_string(),
            &key.is_active,
            &key.expires_at.map(Timestamp::as_micros),
            &record.updated_at.as_micros(),
            &int(version.0),
            &record.external_id,
        ],
    )
    .await?;
    Ok(())
}
