//! Encodes plans, workspaces, keys, prices and encrypted credentials for the snapshot that a node keeps on its own disk. It
//! contains digests but no secrets.
//!
//! A row has the columns of the change feed and is decoded by the same code, so that nothing is served from a snapshot that
//! would not be served from the store.

use super::shared::decode::SOURCES;
use super::shared::fields::{RowColumns, RowReader, int};
use super::shared::{grants, prices, rules};
use super::{Change, Credential, Credentials, StoreError, Version};
use crate::model::credential::SealedCredential;
use crate::model::grant::Grant;
use crate::model::id::{PlanId, WorkspaceId};
use crate::model::key::{Key, KeyDetails, Plan};
use crate::policy::prices::ModelPrice;
use crate::store::shared::limits::limits_to_json;
use uuid::Uuid;

/// Most columns of a row.
const COLUMNS_MAX: usize = 32;

/// A value after its type; lengths are four bytes, little-endian as all numbers.
enum Value<'v> {
    Null,
    Int(i64),
    Flag(bool),
    Text(&'v str),
    Bytes(&'v [u8]),
    Id(Uuid),
}

/// The values of one row.
struct Row<'v>(Vec<Value<'v>>);

/// Adds a plan.
pub fn put_plan(plan: &Plan, out: &mut Vec<u8>) {
    let (id, limits) = (Value::Text(plan.id.as_str()), limits_to_json(&plan.limits).to_string());
    let (rate, quota) = (Value::Int(plan.api_ops_rate_limit.into()), Value::Int(int(plan.end_user_quota)));
    let daily = maybe(plan.default_daily_request_limit);
    let again = Value::Text(plan.id.as_str());
    let calendar = rules::calendar_column(plan.calendar);
    let calendar = calendar.as_deref().map_or(Value::Null, Value::Text);
    put(0, &[id, Value::Int(1), again, rate, quota, daily, Value::Text(&limits), calendar], out);
}

/// Adds a workspace. Its plan must come before.
pub fn put_workspace(id: &WorkspaceId, plan: &PlanId, grants: &[Grant], out: &mut Vec<u8>) {
    let (id, grants) = (|| Value::Text(id.as_str()), grants::to_json(grants).to_string());
    put(1, &[id(), Value::Int(1), id(), Value::Text(plan.as_str()), Value::Text(&grants)], out);
}

/// Adds a key. Its workspace must come before.
pub fn put_key(
    key: &Key,
    details: &KeyDetails,
    credentials: &Credentials,
    version: Version,
    out: &mut Vec<u8>,
) {
    let Some(current) = credentials.first() else { return };
    let old = credentials.get(1);
    let limits = limits_to_json(&key.ceilings.limits).to_string();
    let ips = rules::ips_to_json(&key.allowed_ips).to_string();
    let metadata: serde_json::Map<_, _> =
        details.metadata.iter().map(|(name, value)| (name.to_string(), (&**value).into())).collect();
    let metadata = serde_json::Value::from(metadata).to_string();
    let version = || Value::Int(int(version.0.max(1)));
    let valid_until = |old: &Credential| old.valid_until.map_or(Value::Null, |at| Value::Int(at.as_micros()));
    let row = [
        Value::Id(key.id.0),
        version(),
        Value::Bytes(&current.digest.0),
        old.map_or(Value::Null, |old| Value::Bytes(&old.digest.0)),
        Value::Id(key.id.0),
        Value::Text(key.workspace_id.as_str()),
        Value::Text(key.kind.as_str()),
        Value::Text(key.scopes.joined()),
        Value::Text(&key.resource_id),
        maybe(Some(key.ceilings.rate_limit.into())),
        maybe(key.ceilings.rate_burst.map(u64::from)),
        maybe(key.ceilings.daily_request_limit),
        maybe(key.ceilings.quota_limit),
        maybe(key.ceilings.concurrency_limit.map(u64::from)),
        Value::Text(&limits),
        Value::Text(&ips),
        Value::Flag(key.is_active),
        key.expires_at.map_or(Value::Null, |at| Value::Int(at.as_micros())),
        key.end_user.as_deref().map_or(Value::Null, Value::Text),
        Value::Text(&details.created_by),
        Value::Text(&metadata),
        version(),
        // A node that starts reads the counts from the ledger anyway.
        Value::Flag(false),
        maybe(Some(current.pepper_version.into())),
        maybe(Some(current.secret.0.into())),
        old.map_or(Value::Null, |old| Value::Int(old.pepper_version.into())),
        maybe(old.map(|old| old.secret.0.into())),
        old.map_or(Value::Null, valid_until),
    ];
    put(2, &row, out);
}

/// Adds the prices.
pub fn put_prices(prices: &[ModelPrice], out: &mut Vec<u8>) {
    let entries = prices::to_column(prices);
    put(7, &[Value::Int(1), Value::Int(1), Value::Text(&entries)], out);
}

/// Adds a credential for backends, which stays encrypted.
pub fn put_credential(credential: &SealedCredential, out: &mut Vec<u8>) {
    let SealedCredential { id, selector, header, scheme, key_version, sealed } = credential;
    let metadata = selector.metadata_text();
    let row = [
        Value::Id(id.0),
        Value::Int(1),
        Value::Bytes(sealed),
        Value::Id(id.0),
        Value::Text(&selector.upstream),
        Value::Text(selector.workspace_text()),
        Value::Text(&metadata),
        Value::Text(header),
        Value::Text(scheme.as_deref().unwrap_or("")),
        Value::Int(i64::from(*key_version)),
        Value::Bytes(sealed),
    ];
    put(8, &row, out);
}

/// Decodes, as the feed would send them.
pub fn read(mut from: &[u8], mut each: impl FnMut(Change)) -> Result<(), StoreError> {
    let cut_off = || StoreError::Corrupt("a snapshot ends within a row".into());
    while let Some((source, rest)) = from.split_first() {
        let source = SOURCES.get(usize::from(*source)).ok_or_else(cut_off)?;
        let (columns, rest) = rest.split_first().ok_or_else(cut_off)?;
        from = rest;
        let mut row = Row(Vec::with_capacity(COLUMNS_MAX));
        for _ in 0..*columns {
            row.0.push(Value::take(&mut from).ok_or_else(cut_off)?);
        }
        each(source.change(&mut RowReader::of(&row), Version(u64::MAX))?);
    }
    Ok(())
}

fn maybe<'v>(number: Option<u64>) -> Value<'v> {
    number.map_or(Value::Null, |n| Value::Int(int(n)))
}

fn put(source: u8, row: &[Value<'_>], out: &mut Vec<u8>) {
    out.extend([source, u8::try_from(row.len()).unwrap_or(u8::MAX)]);
    for value in row {
        value.put(out);
    }
}

// === impl Value ===

impl<'v> Value<'v> {
    fn put(&self, out: &mut Vec<u8>) {
        let mut long = |kind, bytes: &[u8]| {
            out.push(kind);
            out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::Null => out.push(0),
            Self::Int(n) => {
                out.push(1);
                out.extend(n.to_le_bytes());
            }
            Self::Flag(flag) => out.extend([2, u8::from(*flag)]),
            Self::Text(text) => long(3, text.as_bytes()),
            Self::Bytes(bytes) => long(4, bytes),
            Self::Id(id) => {
                out.push(5);
                out.extend(id.as_bytes());
            }
        }
    }

    fn take(from: &mut &'v [u8]) -> Option<Self> {
        let mut bytes = |n: usize| {
            let (taken, rest) = from.split_at_checked(n)?;
            *from = rest;
            Some(taken)
        };
        let kind = *bytes(1)?.first()?;
        let mut long = || {
            let length = u32::from_le_bytes(bytes(4)?.try_into().ok()?);
            bytes(usize::try_from(length).ok()?)
        };
        Some(match kind {
            0 => Self::Null,
            1 => Self::Int(i64::from_le_bytes(bytes(8)?.try_into().ok()?)),
            2 => Self::Flag(*bytes(1)?.first()? != 0),
            3 => Self::Text(std::str::from_utf8(long()?).ok()?),
            4 => Self::Bytes(long()?),
            5 => Self::Id(Uuid::from_bytes(bytes(16)?.try_into().ok()?)),
            _ => return None,
        })
    }
}

// === impl Row ===

impl RowColumns for Row<'_> {
    fn text(&self, at: usize) -> Result<Option<&str>, &'static str> {
        match self.0.get(at) {
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(Value::Null) => Ok(None),
            _ => Err("is not text"),
        }
    }

    fn int(&self, at: usize) -> Result<Option<i64>, &'static str> {
        match self.0.get(at) {
            Some(Value::Int(n)) => Ok(Some(*n)),
            Some(Value::Null) => Ok(None),
            _ => Err("is not a number"),
        }
    }

    fn flag(&self, at: usize) -> Result<Option<bool>, &'static str> {
        match self.0.get(at) {
            Some(Value::Flag(flag)) => Ok(Some(*flag)),
            Some(Value::Null) => Ok(None),
            _ => Err("is neither true nor false"),
        }
    }

    fn bytes(&self, at: usize) -> Result<Option<&[u8]>, &'static str> {
        match self.0.get(at) {
            Some(Value::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Value::Null) => Ok(None),
            _ => Err("is not binary"),
        }
    }

    fn uuid(&self, at: usize) -> Result<Option<Uuid>, &'static str> {
        match self.0.get(at) {
            Some(Value::Id(id)) => Ok(Some(*id)),
            Some(Value::Null) => Ok(None),
            _ => Err("is not a UUID"),
        }
    }

    fn id_for_people(&self) -> String {
        match self.0.first() {
            Some(Value::Id(id)) => id.to_string(),
            Some(Value::Text(text)) => (*text).to_owned(),
            _ => "?".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::model::calendar::Calendar;
    use crate::model::credential::{CredentialSelector, MetadataEntry};
    use crate::model::digest::Digest;
    use crate::model::grant::GrantedLimit;
    use crate::model::id::{CredentialId, GrantId, KeyId};
    use crate::model::key::{Ceilings, KeyType, Measure, Owner, Per};
    use crate::policy::prices::Rates;
    use crate::store::{KeyChange, SecretId};
    use smallvec::SmallVec;

    fn key(at: i64) -> (Key, Credentials) {
        let key = Key {
            id: KeyId::new(Timestamp::from_secs(at)),
            workspace_id: "w".parse().expect("an id"),
            kind: KeyType::Service,
            scopes: "app,memory".parse().expect("scopes"),
            resource_id: "r".into(),
            ceilings: Ceilings {
                rate_limit: 5,
                rate_burst: Some(7),
                daily_request_limit: (at > 1).then_some(1_000),
                quota_limit: (at > 1).then_some(9),
                concurrency_limit: None,
                limits: crate::store::shared::limits::limits_from_json(
                    r#"[{"count":"requests","per":"hour","max":3}]"#,
                )
                .expect("limits"),
            },
            allowed_ips: ["10.0.0.0/8".parse().expect("a network")].into(),
            is_active: at > 1,
            expires_at: Some(Timestamp::from_secs(at)),
            end_user: (at > 1).then(|| "ann".into()),
        };
        let credential = |byte, valid_until| Credential {
            digest: Digest([byte; 32]),
            pepper_version: 3,
            secret: SecretId(byte.into()),
            valid_until,
        };
        let old = (at > 1).then(|| credential(2, Some(Timestamp::from_secs(at))));
        let credentials: SmallVec<_> = std::iter::once(credential(1, None)).chain(old).collect();
        (key, credentials)
    }

    #[test]
    fn written_rows_read_as_the_feed_reports_them_and_half_rows_are_refused() {
        let plan = Plan {
            id: "p".parse().expect("an id"),
            api_ops_rate_limit: 10,
            end_user_quota: 20,
            default_daily_request_limit: None,
            limits: Box::default(),
            calendar: Calendar { month_day: 15, ..Calendar::UTC },
        };
        let workspace: WorkspaceId = "w".parse().expect("an id");
        let grant = |limit| Grant {
            id: GrantId::new(Timestamp::from_secs(1)),
            limit,
            amount: 5,
            reason: "a \"reason\"".into(),
            created_by: "ada".into(),
            created_at: Timestamp::from_micros(1_000_001),
            until: Timestamp::from_micros(2_000_003),
        };
        let month = GrantedLimit::Further { of: Owner::Workspace, count: Measure::Requests, per: Per::Month };
        let limits = [GrantedLimit::ApiOpsRateLimit, GrantedLimit::EndUserQuota, month];
        let grants: Box<[Grant]> = limits.map(grant).into();
        let mut bytes = Vec::new();
        put_plan(&plan, &mut bytes);
        put_workspace(&workspace, &plan.id, &grants, &mut bytes);
        let mut expected = vec![
            format!("{:?}", Change::Plan(plan.clone())),
            format!("{:?}", Change::Workspace { id: workspace, plan_id: plan.id, grants }),
        ];
        for at in [1, 2] {
            let (key, credentials) = key(at);
            let metadata = [("tier".into(), "5".into())];
            let details =
                KeyDetails { created_by: "ada".into(), metadata: metadata[..at as usize - 1].into() };
            put_key(&key, &details, &credentials, Version(40), &mut bytes);
            let (version, was_restored) = (Version(40), false);
            let change = KeyChange { key, details, credentials, version, was_restored };
            expected.push(format!("{:?}", Change::Key(change)));
        }
        let rates = Rates { input: 5, ..Rates::default() };
        let prices = [ModelPrice { model: "m*".into(), rates, tiers: Vec::new() }];
        put_prices(&prices, &mut bytes);
        expected.push(format!("{:?}", Change::Prices(prices.into())));
        let credential = SealedCredential {
            id: CredentialId::new(Timestamp::from_secs(1)),
            selector: CredentialSelector {
                upstream: "llm".into(),
                workspace: None,
                metadata: MetadataEntry::parse("tier=gold"),
            },
            header: "authorization".into(),
            scheme: None,
            key_version: 2,
            sealed: [1, 2, 3].into(),
        };
        put_credential(&credential, &mut bytes);
        expected.push(format!("{:?}", Change::Credential(credential)));
        let mut changes = Vec::new();
        read(&bytes, |change| changes.push(format!("{change:?}"))).expect("whole");
        assert_eq!(changes, expected);
        for end in 0..bytes.len() {
            let mut rows = 0;
            let is_whole = read(&bytes[..end], |_| rows += 1).is_ok();
            assert!(rows < 6 && (is_whole || rows < 6), "{end}");
        }
    }
}
