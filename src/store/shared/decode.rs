//! Decodes rows: the selected columns, the order in which they are read, and the handling of unreadable rows.
//!
//! The same for every backend; must not know SQL dialects. The column lists are macros, so that `concat!` accepts them.

use super::credentials::{self, credential_columns};
use super::fields::{RowReader, int};
use super::grants;
use super::limits::limits_from_json;
use super::prices;
use super::rollup::{LatencySketch, RollupTotals};
use super::rules::{self, DeletedKey};
use super::sums::read_sums;
use crate::clock::Timestamp;
use crate::model::calendar::Calendar;
use crate::model::digest::Digest;
use crate::model::id::{EndUserId, KeyId, RequestId};
use crate::model::key::{Ceilings, Key, KeyDetails, PlainMetadata, Plan};
use crate::model::usage::UsageRecord;
use crate::store::{Change, Credential, EndUserRecord, KeyChange, KeyRecord, SecretId};
use crate::store::{LogCursor, NodeRow, PlanRecord, PriceList, StoreError, UsagePoint, Version};
use crate::store::{UsageGroup, UsageGroupName, UsageGroupTotal, UsageTotal, WorkspaceRecord, Written};
use serde_json::Value;
use smallvec::SmallVec;
use std::time::Duration;
use uuid::Uuid;

/// Most rows in one batch of the feed or of totals.
pub(in crate::store) const BATCH_MAX: usize = 1_000;

// === keys ===

/// The columns for [`read_key`]; `k` is the table.
macro_rules! key_columns {
    () => {
        "k.id, k.workspace_id, k.kind, k.scopes, k.resource_id, k.rate_limit, k.rate_burst, k.daily_request_limit,
         k.quota_limit, k.concurrency_limit, k.limits, k.allowed_ips, k.is_active, k.expires_at, k.end_user"
    };
}
pub(in crate::store) use key_columns;

pub(in crate::store) fn read_key(f: &mut RowReader<'_>) -> Result<Key, StoreError> {
    Ok(Key {
        id: KeyId(f.uuid("id")?),
        workspace_id: f.parsed("workspace_id")?,
        kind: f.parsed("kind")?,
        scopes: f.parsed("scopes")?,
        resource_id: f.text("resource_id")?.into(),
        ceilings: Ceilings {
            rate_limit: f.int("rate_limit")?,
            rate_burst: f.maybe_int("rate_burst")?,
            daily_request_limit: f.maybe_int("daily_request_limit")?,
            quota_limit: f.maybe_int("quota_limit")?,
            concurrency_limit: f.maybe_int("concurrency_limit")?,
            limits: f.read("limits", limits_from_json)?,
        },
        allowed_ips: f.read("allowed_ips", rules::ips_from_json)?,
        is_active: f.bool("is_active")?,
        expires_at: f.maybe_instant("expires_at")?,
        end_user: f.maybe_text("end_user")?.map(Into::into),
    })
}

/// The columns for [`read_key_record`] after [`key_columns`]; `t` is the roll-up of the key's whole life.
macro_rules! key_record_columns {
    () => {
        "k.name, k.description, k.external_id, k.metadata, k.hint, coalesce(t.charged, 0), coalesce(t.requests - t.denied - t.unreached, 0),
         t.last_at, k.created_by, k.created_at, k.updated_at, k.deleted_at"
    };
}
pub(in crate::store) use key_record_columns;

pub(in crate::store) fn read_key_record(f: &mut RowReader<'_>) -> Result<KeyRecord, StoreError> {
    Ok(KeyRecord {
        key: read_key(f)?,
        name: f.text("name")?.to_owned(),
        description: f.text("description")?.to_owned(),
        external_id: f.maybe_text("external_id")?.map(ToOwned::to_owned),
        metadata: f.read("metadata", serde_json::from_str)?,
        hint: f.text("hint")?.into(),
        quota_used: f.int("quota_used")?,
        usage_count: f.int("usage_count")?,
        last_used_at: f.maybe_instant("last_used_at")?,
        created_by: f.text("created_by")?.to_owned(),
        created_at: f.instant("created_at")?,
        updated_at: f.instant("updated_at")?,
        deleted_at: f.maybe_instant("deleted_at")?,
    })
}

/// The columns for [`read_deleted_key`] after [`key_record_columns`]; `p` is the plan of the key's workspace.
macro_rules! deleted_key_columns {
    () => {
        "k.pepper_version, k.old_pepper_version, p.deleted_keys_days"
    };
}
pub(in crate::store) use deleted_key_columns;

pub(in crate::store) fn read_deleted_key(f: &mut RowReader<'_>) -> Result<DeletedKey, StoreError> {
    Ok(DeletedKey {
        record: read_key_record(f)?,
        pepper: f.maybe_int("pepper_version")?,
        old_pepper: f.maybe_int("old_pepper_version")?,
        days: f.int("deleted_keys_days")?,
    })
}

/// [`read_key_record`], or none for an unreadable row, so that a list shows the others.
pub(in crate::store) fn sound_key_record(f: &mut RowReader<'_>) -> Result<Option<KeyRecord>, StoreError> {
    sound("keys", f, read_key_record)
}

/// The result of `read` for a row of `table`; none, with a line in the log, if the row cannot be read.
fn sound<T>(
    table: &'static str,
    f: &mut RowReader<'_>,
    read: impl FnOnce(&mut RowReader<'_>) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    match read(f) {
        Err(StoreError::Corrupt(why)) => {
            tracing::error!(table, id = f.id_for_people(), why, "invalid row skipped");
            Ok(None)
        }
        other => other.map(Some),
    }
}

// === tenants ===

/// The columns for [`read_plan`]; `p` is the table.
macro_rules! plan_columns {
    () => {
        "p.id, p.api_ops_rate_limit, p.end_user_quota, p.default_daily_request_limit, p.limits, p.calendar"
    };
}
pub(in crate::store) use plan_columns;

pub(in crate::store) fn read_plan(f: &mut RowReader<'_>) -> Result<Plan, StoreError> {
    Ok(Plan {
        id: f.parsed("id")?,
        api_ops_rate_limit: f.int("api_ops_rate_limit")?,
        end_user_quota: f.int("end_user_quota")?,
        default_daily_request_limit: f.maybe_int("default_daily_request_limit")?,
        limits: f.read("limits", limits_from_json)?,
        calendar: read_calendar(f)?,
    })
}

/// The column `calendar` of a plan; NULL is the default.
pub(in crate::store) fn read_calendar(f: &mut RowReader<'_>) -> Result<Calendar, StoreError> {
    let found = f.maybe_text("calendar")?.map(rules::calendar_from_json).transpose();
    found
        .map(Option::unwrap_or_default)
        .map_err(|why| StoreError::Corrupt(format!("calendar of a plan: {why}")))
}

/// The columns for [`read_plan_record`] after [`plan_columns`].
macro_rules! plan_record_columns {
    () => {
        "p.description, p.usage_retention_days, p.deleted_keys_days, p.created_at, p.updated_at"
    };
}
pub(in crate::store) use plan_record_columns;

pub(in crate::store) fn read_plan_record(f: &mut RowReader<'_>) -> Result<PlanRecord, StoreError> {
    Ok(PlanRecord {
        plan: read_plan(f)?,
        description: f.text("description")?.to_owned(),
        usage_retention_days: f.maybe_int("usage_retention_days")?,
        deleted_keys_days: f.int("deleted_keys_days")?,
        created_at: f.instant("created_at")?,
        updated_at: f.instant("updated_at")?,
    })
}

/// [`read_plan_record`], or none for an unreadable row, so that a list shows the others.
pub(in crate::store) fn sound_plan_record(f: &mut RowReader<'_>) -> Result<Option<PlanRecord>, StoreError> {
    sound("plans", f, read_plan_record)
}

/// `entries` and `updated_at`.
pub(in crate::store) fn read_price_list(f: &mut RowReader<'_>) -> Result<PriceList, StoreError> {
    let prices = f.read("entries", prices::from_column)?;
    Ok(PriceList { prices, updated_at: Some(f.instant("updated_at")?) })
}

/// The columns for [`read_workspace`].
macro_rules! workspace_columns {
    () => {
        "id, name, plan_id, end_users, grants, created_at, updated_at, version"
    };
}
pub(in crate::store) use workspace_columns;

pub(in crate::store) fn read_workspace(
    f: &mut RowReader<'_>,
) -> Result<Written<WorkspaceRecord>, StoreError> {
    let value = WorkspaceRecord {
        id: f.parsed("id")?,
        name: f.text("name")?.to_owned(),
        plan_id: f.parsed("plan_id")?,
        end_users: f.int("end_users")?,
        grants: f.read("grants", grants::from_json)?,
        created_at: f.instant("created_at")?,
        updated_at: f.instant("updated_at")?,
    };
    Ok(Written { value, version: Version(f.int("version")?) })
}

/// The record of [`read_workspace`], or none for an unreadable row, so that a list shows the others.
pub(in crate::store) fn sound_workspace(
    f: &mut RowReader<'_>,
) -> Result<Option<WorkspaceRecord>, StoreError> {
    sound("workspaces", f, |f| Ok(read_workspace(f)?.value))
}

/// The columns for [`read_end_user`].
macro_rules! end_user_columns {
    () => {
        "id, workspace_id, other_id, created_at"
    };
}
pub(in crate::store) use end_user_columns;

pub(in crate::store) fn read_end_user(f: &mut RowReader<'_>) -> Result<EndUserRecord, StoreError> {
    Ok(EndUserRecord {
        id: EndUserId(f.uuid("id")?),
        workspace_id: f.parsed("workspace_id")?,
        other_id: f.text("other_id")?.to_owned(),
        created_at: f.instant("created_at")?,
    })
}

/// [`read_end_user`], or none for an unreadable row, so that a list shows the others.
pub(in crate::store) fn sound_end_user(f: &mut RowReader<'_>) -> Result<Option<EndUserRecord>, StoreError> {
    sound("end_users", f, read_end_user)
}

// === the change feed ===

/// One query of the feed. The first column of each row is its id and the second its version; the only parameter, `$1`, is
/// the version after which the feed begins (both backends accept this syntax).
pub(in crate::store) struct FeedQuery {
    table: &'static str,
    pub(in crate::store) sql: &'static str,
    read: fn(&mut RowReader<'_>) -> Result<Change, StoreError>,
}

/// In the order in which a keyring can apply them: a row comes before rows that refer to it, and a plan is removed only
/// after the workspaces that left it.
pub(in crate::store) const SOURCES: &[FeedQuery] = &[
    FeedQuery {
        table: "plans",
        sql: concat!(
            "SELECT p.id, p.version, ",
            plan_columns!(),
            " FROM plans p WHERE p.version > $1 AND p.deleted_at IS NULL ORDER BY p.version"
        ),
        read: |f| Ok(Change::Plan(read_plan(f)?)),
    },
    FeedQuery {
        table: "workspaces",
        sql: "SELECT id, version, id, plan_id, grants FROM workspaces
              WHERE version > $1 AND deleted_at IS NULL ORDER BY version",
        read: |f| {
            let (id, plan_id) = (f.parsed("id")?, f.parsed("plan_id")?);
            Ok(Change::Workspace { id, plan_id, grants: f.read("grants", grants::from_json)? })
        },
    },
    FeedQuery {
        table: "keys",
        sql: concat!(
            "SELECT k.id, k.version, k.digest, k.old_digest, ",
            key_columns!(),
            ", k.created_by, k.metadata, k.version, k.restored_at IS NOT NULL, k.pepper_version, k.secret_id, k.old_pepper_version,
                 k.old_secret_id, k.old_valid_until
             FROM keys k WHERE k.version > $1 AND k.deleted_at IS NULL ORDER BY k.version"
        ),
        read: read_key_change,
    },
    FeedQuery {
        table: "keys",
        sql: "SELECT id, version, id, version FROM keys
              WHERE version > $1 AND deleted_at IS NOT NULL ORDER BY version",
        read: |f| Ok(Change::KeyRemoved { id: KeyId(f.uuid("id")?), version: Version(f.int("version")?) }),
    },
    FeedQuery {
        table: "end_user_tombstones",
        sql: "SELECT other_id, version, other_id, workspace_id FROM end_user_tombstones
              WHERE version > $1 ORDER BY version",
        read: |f| {
            let other_id = f.text("other_id")?.into();
            Ok(Change::EndUserRemoved { workspace_id: f.parsed("workspace_id")?, other_id })
        },
    },
    FeedQuery {
        table: "workspaces",
        sql: "SELECT id, version, id FROM workspaces
              WHERE version > $1 AND deleted_at IS NOT NULL ORDER BY version",
        read: |f| Ok(Change::WorkspaceRemoved(f.parsed("id")?)),
    },
    FeedQuery {
        table: "plans",
        sql: "SELECT id, version, id FROM plans WHERE version > $1 AND deleted_at IS NOT NULL ORDER BY version",
        read: |f| Ok(Change::PlanRemoved(f.parsed("id")?)),
    },
    FeedQuery {
        table: "prices",
        sql: "SELECT one, version, entries FROM prices WHERE version > $1 ORDER BY version",
        read: |f| Ok(Change::Prices(f.read("entries", prices::from_column)?)),
    },
    FeedQuery {
        table: "upstream_credentials",
        sql: concat!(
            "SELECT id, version, sealed, ",
            credential_columns!(),
            " FROM upstream_credentials WHERE version > $1 ORDER BY version"
        ),
        read: credentials::read_change,
    },
];

/// The parameter of the feed's queries. A reader that has nothing yet also gets rows with an invalid version.
pub(in crate::store) fn feed_after(after: Version) -> i64 {
    if after == Version::default() { i64::MIN } else { int(after.0) }
}

impl FeedQuery {
    /// The change in a row; `reached` is the newest version, which no row can exceed. An unreadable row is a change, too:
    /// the record it stands for must not be used.
    pub(in crate::store) fn change(
        &self,
        fields: &mut RowReader<'_>,
        reached: Version,
    ) -> Result<Change, StoreError> {
        match self.checked(fields, reached) {
            Err(StoreError::Corrupt(why)) => {
                let (table, id) = (self.table, fields.id_for_people());
                Ok(Change::Broken { table, id, why, digests: self.digests(fields) })
            }
            other => other,
        }
    }

    /// The digests of a key whose row cannot be read.
    fn digests(&self, fields: &RowReader<'_>) -> SmallVec<[Digest; 2]> {
        let mut fields = fields.rewound();
        fields.skip();
        fields.skip();
        let found = ["digest", "old_digest"].map(|name| fields.maybe_digest(name).ok().flatten().map(Digest));
        found.into_iter().flatten().filter(|_| self.table == "keys").collect()
    }

    /// A version from the future would take precedence over the next changes of its row, which have smaller ones.
    fn checked(&self, fields: &mut RowReader<'_>, reached: Version) -> Result<Change, StoreError> {
        fields.skip();
        let version = Version(fields.int("version")?);
        if version == Version::default() || version > reached {
            return Err(StoreError::Corrupt(format!("version is not between 1 and {reached}")));
        }
        (self.read)(fields)
    }
}

fn read_key_change(f: &mut RowReader<'_>) -> Result<Change, StoreError> {
    let digest = Digest(f.digest("digest")?);
    let old = f.maybe_digest("old_digest")?;
    let key = read_key(f)?;
    let details = KeyDetails {
        created_by: f.text("created_by")?.into(),
        metadata: f.read("metadata", plain_metadata)?,
    };
    let version = Version(f.int("version")?);
    let was_restored = f.bool("restored_at")?;
    let current = Credential {
        digest,
        pepper_version: f.int("pepper_version")?,
        secret: SecretId(f.int("secret_id")?),
        valid_until: None,
    };
    let mut credentials = SmallVec::from_iter([current]);
    if let Some(old) = old {
        credentials.push(Credential {
            digest: Digest(old),
            pepper_version: f.int("old_pepper_version")?,
            secret: SecretId(f.int("old_secret_id")?),
            valid_until: Some(f.instant("old_valid_until")?),
        });
    }
    Ok(Change::Key(KeyChange { key, details, credentials, version, was_restored }))
}

/// The entries of a key's metadata that are texts, numbers or flags, as text; others cannot be told in a header.
fn plain_metadata(json: &str) -> serde_json::Result<PlainMetadata> {
    let all: serde_json::Map<String, Value> = serde_json::from_str(json)?;
    let plain = all.into_iter().filter_map(|(name, value)| match value {
        Value::String(text) => Some((name.into(), text.into())),
        Value::Number(_) | Value::Bool(_) => Some((name.into(), value.to_string().into())),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    });
    Ok(plain.collect())
}

// === nodes ===

/// The columns for [`read_node`] before the age of the row in µs.
macro_rules! node_columns {
    () => {
        "boot_id, name, admin, reached"
    };
}
pub(in crate::store) use node_columns;

pub(in crate::store) fn read_node(f: &mut RowReader<'_>) -> Result<NodeRow, StoreError> {
    Ok(NodeRow {
        boot: f.uuid("boot_id")?,
        name: f.text("name")?.into(),
        admin: f.maybe_text("admin")?.map(Into::into),
        reached: Version(f.int("reached")?),
        seen_ago: Duration::from_micros(f.int("seen_at")?),
    })
}

// === usage ===

/// The record of a row of `usage_columns`, or none for an unreadable row, so that the others are shown.
pub(in crate::store) fn sound_usage(f: &mut RowReader<'_>) -> Result<Option<UsageRecord>, StoreError> {
    sound("usage", f, |f| UsageRecord::read(f))
}

/// `at` and `id` of a usage record.
pub(in crate::store) fn read_place(f: &mut RowReader<'_>) -> Result<LogCursor, StoreError> {
    let at = f.instant("at")?;
    Ok(LogCursor { at, id: RequestId(f.uuid("id")?) })
}

/// `start` and `requests` of a day's roll-up. An invalid number counts as zero: then further days are searched.
pub(in crate::store) fn read_day(f: &mut RowReader<'_>) -> Result<(Timestamp, u64), StoreError> {
    let start = f.instant("start")?;
    Ok((start, f.int("requests").unwrap_or(0)))
}

// === roll-ups ===

/// The columns for [`read_tally`].
macro_rules! tally_columns {
    () => {
        concat!($crate::store::shared::sums::sums_columns!(), ", sketch")
    };
}
pub(in crate::store) use tally_columns;

pub(in crate::store) fn read_tally(f: &mut RowReader<'_>) -> Result<RollupTotals, StoreError> {
    Ok(RollupTotals {
        sums: read_sums(f)?,
        sketch: LatencySketch::decode(f.blob("sketch")?)
            .map_err(|error| StoreError::Corrupt(format!("sketch: {error}")))?,
    })
}

/// The columns of [`totals`](super::sums::totals).
pub(in crate::store) fn read_usage_total(f: &mut RowReader<'_>) -> Result<UsageTotal, StoreError> {
    let rows: u64 = f.int("count")?;
    let sums = read_sums(f)?;
    Ok(UsageTotal {
        reached: sums.reached(),
        denied: sums.denied,
        unreached: sums.unreached,
        errors: sums.errors,
        charged: sums.charged,
        tokens: sums.tokens,
        cost_nano: sums.cost_nano,
        bytes_in: sums.bytes_in,
        bytes_out: sums.bytes_out,
        last_at: (rows > 0 && sums.requests > 0).then_some(sums.last_at),
        mean_us: sums.response_us_sum.checked_div(sums.response_count),
    })
}

/// What a group is of, then [`read_usage_total`]: of a key its id, name and resource; of a resource that; of a route or a
/// model its name; of an end user the customer's name for it, NULL if it was removed, and its id.
pub(in crate::store) fn read_usage_group(
    by: UsageGroup,
    f: &mut RowReader<'_>,
) -> Result<UsageGroupTotal, StoreError> {
    let text = |f: &mut RowReader<'_>, name| {
        let bytes = f.blob(name)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| StoreError::Corrupt(format!("{name} is not UTF-8")))
    };
    let of = match by {
        UsageGroup::Key => UsageGroupName::Key {
            id: KeyId(f.uuid("id")?),
            name: f.text("name")?.to_owned(),
            resource_id: f.text("resource_id")?.to_owned(),
        },
        UsageGroup::Resource => UsageGroupName::Resource(f.text("resource_id")?.to_owned()),
        UsageGroup::Route => UsageGroupName::Route(text(f, "route")?),
        UsageGroup::Model => UsageGroupName::Model(text(f, "model")?),
        UsageGroup::EndUser => {
            let other_id = f.maybe_text("other_id")?.map(str::to_owned);
            let id = Uuid::from_slice(f.blob("end_user_id")?);
            let id = id.map(EndUserId).map_err(|_| StoreError::Corrupt("end_user_id is no id".into()))?;
            UsageGroupName::EndUser { id, other_id }
        }
    };
    Ok(UsageGroupTotal { of, total: read_usage_total(f)? })
}

/// A stored tally to add to; none if it cannot be read. Then it is left for a person to look at, and its window is no
/// longer counted: one damaged row must not stop the ledger.
pub(in crate::store) fn sound_tally(
    read: Result<RollupTotals, StoreError>,
) -> Result<Option<RollupTotals>, StoreError> {
    match read {
        Err(StoreError::Corrupt(why)) => {
            tracing::error!(why, "damaged usage roll-up ignored");
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// A window's `start`, then its tally.
pub(in crate::store) fn read_point(f: &mut RowReader<'_>) -> Result<UsagePoint, StoreError> {
    let start = f.instant("start")?;
    let tally = read_tally(f)?;
    let sums = &tally.sums;
    Ok(UsagePoint {
        start,
        requests: sums.requests,
        denied: sums.denied,
        errors: sums.errors,
        tokens: sums.tokens,
        cost_nano: sums.cost_nano,
        bytes_in: sums.bytes_in,
        bytes_out: sums.bytes_out,
        response_time: tally.quantiles(),
    })
}
