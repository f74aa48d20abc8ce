//! Schemas of request bodies, for the OpenAPI document only; `input` parses them.
//!
//! *Invariant:* a body here has exactly the fields that its input type reads (tested).
#![expect(dead_code, reason = "these types are never made; they describe")]

use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A key to create.
#[derive(ToSchema)]
pub(super) struct KeyCreate {
    /// 1 to 255 characters; unique among the live keys of the resource.
    #[schema(min_length = 1, max_length = 255, example = "checkout service")]
    name: String,
    /// Up to 2000 characters.
    description: Option<String>,
    /// Absent: `service`.
    #[schema(default = "service")]
    r#type: Option<KeyTypeWord>,
    /// The scopes it grants: words of 1 to 64 characters of `A-Z a-z 0-9 . _ : / -`, each of which may end in `*`. Absent:
    /// the scope of its type. Required for a service key, where an empty list grants nothing.
    #[schema(max_items = 64, example = json!(["orders:read"]))]
    scopes: Option<Vec<String>>,
    /// The resource it is bound to. Required, except for a service key, which is bound to the workspace.
    #[schema(min_length = 1, max_length = 255)]
    resource_id: Option<String>,
    /// Requests per second. Absent: 50, or the plan's limit where that is lower. Above the plan is an error.
    #[schema(minimum = 1, maximum = 10_000_000)]
    rate_limit: Option<u32>,
    /// Requests that may come at once. Absent: `rate_limit`.
    #[schema(minimum = 1, maximum = 10_000_000)]
    rate_burst: Option<u32>,
    /// Requests per day; null: no limit. Absent: the plan's `default_daily_request_limit`.
    #[schema(minimum = 1)]
    daily_request_limit: Option<u64>,
    /// Requests in the key's life. Absent: no limit.
    #[schema(minimum = 1)]
    quota_limit: Option<u64>,
    /// Requests in flight. Absent: no limit.
    #[schema(minimum = 1)]
    concurrency_limit: Option<u32>,
    /// Further limits, one for each (`count`, `per`).
    #[schema(max_items = 8)]
    limits: Option<Vec<Limit>>,
    /// In the future: epoch seconds, epoch milliseconds or RFC 3339.
    expires_at: Option<Instant>,
    /// Addresses and networks from which it may be used. Absent: any.
    #[schema(max_items = 100, example = json!(["192.0.2.7", "10.0.0.0/8"]))]
    allowed_ips: Option<Vec<String>>,
    /// The end user it is bound to, by your own id: every request counts as this end user's, and one that names another is
    /// refused. Cannot be changed.
    #[schema(min_length = 1, max_length = 255)]
    end_user: Option<String>,
    /// Its id in another system, such as a set of files; unique among the live keys of the workspace.
    #[schema(min_length = 1, max_length = 255)]
    external_id: Option<String>,
    /// Your own data: up to 64 entries, up to 16 KiB.
    metadata: Option<Map<String, Value>>,
}

/// A change of a key. Absent fields stay; null clears those that can be empty.
#[derive(ToSchema)]
pub(super) struct KeyUpdate {
    /// 1 to 255 characters; unique among the live keys of the resource.
    #[schema(min_length = 1, max_length = 255)]
    name: Option<String>,
    /// Up to 2000 characters; null clears it.
    description: Option<String>,
    /// The scopes it grants; must include the scope of its type.
    #[schema(max_items = 64)]
    scopes: Option<Vec<String>>,
    /// Requests per second. Above the plan is an error.
    #[schema(minimum = 1, maximum = 10_000_000)]
    rate_limit: Option<u32>,
    /// Requests that may come at once; null: `rate_limit`.
    #[schema(minimum = 1, maximum = 10_000_000)]
    rate_burst: Option<u32>,
    /// Requests per day; null: no limit.
    #[schema(minimum = 1)]
    daily_request_limit: Option<u64>,
    /// Requests in the key's life; null: no limit.
    #[schema(minimum = 1)]
    quota_limit: Option<u64>,
    /// Requests in flight; null: no limit.
    #[schema(minimum = 1)]
    concurrency_limit: Option<u32>,
    /// Further limits; null: none.
    #[schema(max_items = 8)]
    limits: Option<Vec<Limit>>,
    /// False disables the key, true enables it.
    is_active: Option<bool>,
    /// In the future; null: never.
    expires_at: Option<Instant>,
    /// Addresses and networks from which it may be used; null: any.
    #[schema(max_items = 100)]
    allowed_ips: Option<Vec<String>>,
    /// Its id in another system, such as a set of files; unique among the live keys of the workspace; null: none.
    #[schema(min_length = 1, max_length = 255)]
    external_id: Option<String>,
    /// Your own data, replaced as a whole; null: none.
    metadata: Option<Map<String, Value>>,
}

/// The secret of the key to find.
#[derive(ToSchema)]
pub(super) struct KeyLookup {
    /// The secret. It is not logged.
    #[schema(min_length = 1, max_length = 128)]
    api_key: String,
}

/// Keys of another system.
#[derive(ToSchema)]
pub(super) struct KeyImport {
    /// The keys. Each is imported or refused by itself.
    #[schema(min_items = 1, max_items = 1_000, example = json!([{"name": "old", "scopes": ["orders:read"], "api_key": "legacy-1"}]))]
    keys: Vec<Map<String, Value>>,
    /// Only check the rows, each by itself.
    #[schema(default = false)]
    dry_run: Option<bool>,
}

/// End users of another system.
#[derive(ToSchema)]
pub(super) struct EndUserImport {
    /// The end users. Each is imported or refused by itself.
    #[schema(min_items = 1, max_items = 1_000, example = json!([{"other_id": "customer-7"}]))]
    end_users: Vec<Map<String, Value>>,
    /// Only check the rows, each by itself.
    #[schema(default = false)]
    dry_run: Option<bool>,
}

/// Options for a new secret.
#[derive(ToSchema)]
pub(super) struct KeyRegenerate {
    /// How many seconds the previous secret stays valid; 0 or absent: not at all.
    #[schema(minimum = 0, maximum = 2_592_000, default = 0)]
    grace_period_seconds: Option<u64>,
}

/// A plan to create.
#[derive(ToSchema)]
pub(super) struct PlanCreate {
    /// 1 to 128 characters of `A-Z a-z 0-9 . _ : @ -`.
    #[schema(min_length = 1, max_length = 128)]
    id: String,
    /// Up to 2000 characters.
    description: Option<String>,
    /// The highest rate of one key, in requests per second.
    #[schema(minimum = 1, maximum = 10_000_000)]
    api_ops_rate_limit: u32,
    /// The most end users of a workspace.
    #[schema(minimum = 0)]
    end_user_quota: u64,
    /// Requests per day for keys created without a daily limit; null: no limit.
    #[schema(minimum = 1, default = 100_000)]
    default_daily_request_limit: Option<u64>,
    /// Further limits, one for each (`of`, `count`, `per`).
    #[schema(max_items = 8)]
    limits: Option<Vec<PlanLimit>>,
    /// When the days, weeks and months of all limits begin, those of keys too; null or absent: UTC, the first of the month, Monday.
    calendar: Option<CalendarInput>,
    /// How many whole UTC days before today usage records are kept; null: for ever.
    #[schema(minimum = 1, maximum = 36_500)]
    usage_retention_days: Option<u32>,
    /// For how many days after its deletion a key can be restored; 0: not at all.
    #[schema(minimum = 0, maximum = 3_650, default = 30)]
    deleted_keys_days: Option<u32>,
}

/// A change of a plan. Absent fields stay.
#[derive(ToSchema)]
pub(super) struct PlanUpdate {
    /// Up to 2000 characters; null clears it.
    description: Option<String>,
    /// The highest rate of one key, in requests per second. Keys above it run at this rate.
    #[schema(minimum = 1, maximum = 10_000_000)]
    api_ops_rate_limit: Option<u32>,
    /// The most end users of a workspace.
    #[schema(minimum = 0)]
    end_user_quota: Option<u64>,
    /// Requests per day for keys created without a daily limit; null: no limit.
    #[schema(minimum = 1)]
    default_daily_request_limit: Option<u64>,
    /// Further limits; null: none.
    #[schema(max_items = 8)]
    limits: Option<Vec<PlanLimit>>,
    /// When the days, weeks and months of all limits begin, those of keys too; null or absent: UTC, the first of the month, Monday.
    calendar: Option<CalendarInput>,
    /// How many whole UTC days before today usage records are kept; null: for ever.
    #[schema(minimum = 1, maximum = 36_500)]
    usage_retention_days: Option<u32>,
    /// For how many days after its deletion a key can be restored; 0: not at all.
    #[schema(minimum = 0, maximum = 3_650)]
    deleted_keys_days: Option<u32>,
}

/// All prices of models.
#[derive(ToSchema)]
pub(super) struct PricesReplace {
    /// One for each model or pattern.
    #[schema(max_items = 20_000)]
    prices: Vec<PriceInput>,
}

/// What a million tokens of some models cost. A price is a decimal number, as a number or as text; up to nine decimals count.
#[derive(ToSchema)]
pub(super) struct PriceInput {
    /// The name of a model, or its first characters and `*`. The most precise entry counts.
    #[schema(pattern = r"^[A-Za-z0-9._:/@-]{1,199}\*?$", example = "gpt-4o*")]
    model: String,
    /// Input that was neither read from nor written to a cache.
    #[schema(pattern = r"^[0-9]{1,8}(\.[0-9]{1,9})?$", example = "2.5")]
    input: String,
    /// Input that was read from a cache. Absent: as input.
    #[schema(pattern = r"^[0-9]{1,8}(\.[0-9]{1,9})?$")]
    cached: Option<String>,
    /// Input that was written to a cache. Absent: as input.
    #[schema(pattern = r"^[0-9]{1,8}(\.[0-9]{1,9})?$")]
    cache_write: Option<String>,
    /// Output that was not reasoning.
    #[schema(pattern = r"^[0-9]{1,8}(\.[0-9]{1,9})?$", example = "10")]
    output: String,
    /// Output that was reasoning. Absent: as output.
    #[schema(pattern = r"^[0-9]{1,8}(\.[0-9]{1,9})?$")]
    reasoning: Option<String>,
    /// Prices for more input, by ascending `above`.
    #[schema(max_items = 16)]
    tiers: Option<Vec<TierInput>>,
}

/// Prices for all tokens of an answer with more input tokens than `above`. Absent prices are those of the entry.
#[derive(ToSchema)]
pub(super) struct TierInput {
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    above: u64,
    #[schema(pattern = r"^[0-9]{1,8}(\.[0-9]{1,9})?$")]
    input: Option<String>,
    #[schema(pattern = r"^[0-9]{1,8}(\.[0-9]{1,9})?$")]
    cached: Option<String>,
    #[schema(pattern = r"^[0-9]{1,8}(\.[0-9]{1,9})?$")]
    cache_write: Option<String>,
    #[schema(pattern = r"^[0-9]{1,8}(\.[0-9]{1,9})?$")]
    output: Option<String>,
    #[schema(pattern = r"^[0-9]{1,8}(\.[0-9]{1,9})?$")]
    reasoning: Option<String>,
}

/// A change of a workspace, which is created if it does not exist. Absent fields stay.
#[derive(ToSchema)]
pub(super) struct WorkspaceUpdate {
    /// Up to 255 characters; null clears it.
    #[schema(max_length = 255)]
    name: Option<String>,
    /// Its plan.
    plan_id: Option<String>,
}

/// A grant.
#[derive(ToSchema)]
pub(super) struct GrantCreate {
    /// The limit of the plan.
    limit: GrantedLimitWord,
    /// Whose usage it counts, `workspace` by default; only for `limits`.
    of: Option<OwnerWord>,
    /// What it counts; required for `limits`, else absent.
    #[schema(nullable = false)]
    count: Option<CountWord>,
    /// Its window; required for `limits`, else absent.
    #[schema(nullable = false)]
    per: Option<PerWord>,
    /// How much is added.
    #[schema(minimum = 1)]
    amount: u64,
    /// Why.
    #[schema(max_length = 255)]
    reason: String,
    /// The first instant at which it no longer counts; in the future.
    until: Instant,
}

/// A credential for backends.
#[derive(ToSchema)]
pub(super) struct CredentialPut {
    /// Only for requests with keys of this workspace; absent: any.
    workspace_id: Option<String>,
    /// Only for keys with this entry of their metadata, as `NAME=VALUE`; absent: any key.
    #[schema(max_length = 512)]
    metadata: Option<String>,
    /// The header that carries it (`authorization`). Clients cannot send it to this upstream any more.
    #[schema(max_length = 128)]
    header: Option<String>,
    /// The authentication scheme before it (`Bearer`); null: it stands alone.
    #[schema(max_length = 64)]
    scheme: Option<String>,
    /// The secret. No answer has it.
    #[schema(min_length = 1, max_length = 8_192)]
    secret: String,
}

/// A limit of a plan: `limits` is the one of its `limits` with the same `of`, `count` and `per`.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum GrantedLimitWord {
    ApiOpsRateLimit,
    EndUserQuota,
    Limits,
}

/// What a key is made for.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum KeyTypeWord {
    App,
    Rag,
    Memory,
    Agent,
    MultiAgent,
    Workflow,
    PureWorkflow,
    Service,
}

/// What a limit counts; `cost` in billionths of the currency unit.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum CountWord {
    Requests,
    Tokens,
    InputTokens,
    OutputTokens,
    Cost,
}

/// Whose usage a limit of a plan counts; `workspace`: all keys together.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum OwnerWord {
    Workspace,
    Key,
    EndUser,
}

/// The window of a limit: windows of the plan's calendar, except the second.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum PerWord {
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Total,
}

/// When days, weeks and months begin. Absent fields are as in UTC, from the first of the month and Monday.
#[derive(ToSchema)]
pub(super) struct CalendarInput {
    /// The time zone whose midnights count, by its name in the IANA database.
    #[schema(default = "UTC", example = "Asia/Shanghai")]
    zone: Option<String>,
    /// The day on which months begin; in a shorter month its last.
    #[schema(minimum = 1, maximum = 31, default = 1)]
    month_day: Option<u8>,
    #[schema(default = "monday")]
    week_day: Option<WeekDayWord>,
}

/// A day of the week.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum WeekDayWord {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

/// At most `max` of `count` in each `per`, of the key.
#[derive(ToSchema)]
pub(super) struct Limit {
    count: CountWord,
    per: PerWord,
    #[schema(minimum = 1)]
    max: u64,
}

/// At most `max` of `count` in each `per`, of all keys of the workspace together, of each key or of each end user.
#[derive(ToSchema)]
pub(super) struct PlanLimit {
    of: Option<OwnerWord>,
    count: CountWord,
    per: PerWord,
    #[schema(minimum = 1)]
    max: u64,
}

/// Epoch seconds, epoch milliseconds (from 10¹¹ on) or RFC 3339.
#[derive(serde::Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Instant {
    Epoch(i64),
    Rfc3339(String),
}
