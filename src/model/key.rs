//! A key as a decision sees it: its workspace, what it grants, and its limits.
//!
//! Must not know: its name, its digest, how it is stored, or what has been spent.

use super::calendar::Calendar;
use super::id::{KeyId, PlanId, WorkspaceId};
use super::scope::Scopes;
use crate::clock::Timestamp;
use ipnet::IpNet;
use std::fmt;
use std::sync::Arc;

/// A key as a decision sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key's id.
    pub id: KeyId,
    /// The workspace it belongs to.
    pub workspace_id: WorkspaceId,
    /// Its type.
    pub kind: KeyType,
    /// The scopes it grants.
    pub scopes: Scopes,
    /// The resource it is bound to; for a service key the workspace itself.
    pub resource_id: Box<str>,
    /// Its limits.
    pub ceilings: Ceilings,
    /// Source addresses from which it may be used; empty: any.
    pub allowed_ips: Box<[IpNet]>,
    /// False while it is disabled.
    pub is_active: bool,
    /// The first instant at which it is no longer valid.
    pub expires_at: Option<Timestamp>,
    /// The end user it is bound to, by the customer's id.
    pub end_user: Option<Box<str>>,
}

/// Entries of a key's metadata as text, by name.
pub type PlainMetadata = Box<[(Box<str>, Box<str>)]>;

/// What backends may be told about a key, besides what decisions need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDetails {
    /// Who created it.
    pub created_by: Arc<str>,
    /// The entries of its metadata that are texts, numbers or flags, as text.
    pub metadata: PlainMetadata,
}

/// The limits configured on a key. Contract 4.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// Requests per second, refilled continuously.
    pub rate_limit: u32,
    /// Requests that may come at once; none: as many as the rate.
    pub rate_burst: Option<u32>,
    /// Requests per day of the plan's calendar; none: no limit.
    pub daily_request_limit: Option<u64>,
    /// Requests in the key's life.
    pub quota_limit: Option<u64>,
    /// Requests in flight.
    pub concurrency_limit: Option<u32>,
    /// Further limits.
    pub limits: Box<[Ceiling]>,
}

/// A further limit: at most `max` of `count` in each `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceiling {
    /// Whose usage it counts. A limit of a key is of that key.
    pub of: Owner,
    /// What it counts.
    pub count: Measure,
    /// Its window.
    pub per: Per,
    /// The most that is admitted in a window.
    pub max: u64,
}

impl Ceiling {
    /// Why this cannot be counted, if it cannot.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.per == Per::Second && (self.count != Measure::Requests || self.of == Owner::EndUser) {
            return Err("second is for requests of a key or a workspace only");
        }
        if self.of == Owner::EndUser && matches!(self.per, Per::Minute | Per::Hour) {
            return Err("must be day, week, month or total for end users");
        }
        Ok(())
    }

    /// Whether both limit the same usage in the same window.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.of, self.count, self.per) == (other.of, other.count, other.per)
    }
}

/// What a workspace may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The plan's id.
    pub id: PlanId,
    /// The highest rate of one key, in requests per second.
    pub api_ops_rate_limit: u32,
    /// The most end users of a workspace.
    pub end_user_quota: u64,
    /// Requests per day for keys created without a daily limit; none: no limit.
    pub default_daily_request_limit: Option<u64>,
    /// Further limits: for all keys of the workspace together, for each key, or for each end user.
    pub limits: Box<[Ceiling]>,
    /// When the days, weeks and months of all limits begin, those of keys too.
    pub calendar: Calendar,
}

/// Largest value of a limit: the largest integer that a JSON number holds exactly.
pub const CEILING_MAX: u64 = (1 << 53) - 1;
/// Largest rate, in requests per second.
pub const RATE_MAX: u32 = 10_000_000;
/// Longest retention of usage records that is not "for ever", in days: 100 years.
pub const RETENTION_DAYS_MAX: u32 = 36_500;
/// Longest that a deleted key can be restored, in days: ten years.
pub const DELETED_KEYS_DAYS_MAX: u32 = 3_650;
/// For how many days a deleted key can be restored, unless its plan says otherwise.
pub const DELETED_KEYS_DAYS_DEFAULT: u32 = 30;
/// Most further limits of one key or plan.
pub const CEILINGS_MAX: usize = 8;
/// Rate of keys created without one, in requests per second (the plan's where that is lower).
pub const RATE_DEFAULT: u32 = 50;
/// Daily limit of keys created without one, unless the plan has its own default.
pub const DAILY_DEFAULT: u64 = 100_000;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        // Not every type uses all of these.
        #[allow(dead_code, reason = "one list of words makes them all alike")]
        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// Every word, in the same order.
            pub const WORDS: &'static [&'static str] = &[$($word,)+];

            /// The word of the contract.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::model::key::UnknownWord;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                match s {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::model::key::UnknownWord { allowed: Self::WORDS }),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

words!(
    /// What a key is made for.
    KeyType {
        /// For one app.
        App = "app",
        /// For one knowledge base.
        Rag = "rag",
        /// For one memory.
        Memory = "memory",
        /// For one agent.
        Agent = "agent",
        /// For one team of agents.
        MultiAgent = "multi_agent",
        /// For one workflow.
        Workflow = "workflow",
        /// For one workflow without a conversation.
        PureWorkflow = "pure_workflow",
        /// For every resource of the workspace.
        Service = "service",
    }
);

words!(
    /// What a limit counts.
    Measure {
        /// Admitted requests.
        Requests = "requests",
        /// Tokens of input and output.
        Tokens = "tokens",
        /// Tokens of input.
        InputTokens = "input_tokens",
        /// Tokens of output.
        OutputTokens = "output_tokens",
        /// Cost, in billionths of the currency unit.
        Cost = "cost",
    }
);

words!(
    /// Whose usage a limit of a plan counts.
    Owner {
        /// All keys of a workspace together.
        Workspace = "workspace",
        /// Each key.
        Key = "key",
        /// Each end user of a workspace.
        EndUser = "end_user",
    }
);

words!(
    /// The window of a limit. Windows of the plan's [`Calendar`], except the second, which is a token bucket.
    Per {
        /// Refilled continuously over one second.
        Second = "second",
        /// Calendar minute.
        Minute = "minute",
        /// Calendar hour.
        Hour = "hour",
        /// Calendar day.
        Day = "day",
        /// Calendar week.
        Week = "week",
        /// Calendar month.
        Month = "month",
        /// The key's whole life.
        Total = "total",
    }
);

/// A word that is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownWord {
    /// The allowed words.
    pub allowed: &'static [&'static str],
}

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "must be one of: {}", self.allowed.join(", "))
    }
}

impl std::error::Error for UnknownWord {}

// === impl KeyDetails ===

impl KeyDetails {
    /// The entry `name` of its metadata.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.iter().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
    }
}

// === impl Measure, Per, KeyType ===

impl Measure {
    /// The measures that only a meter finds out.
    pub const METERED: [Self; 4] = [Self::Tokens, Self::InputTokens, Self::OutputTokens, Self::Cost];

    /// Its index in [`Self::METERED`]; none for requests.
    pub const fn metered_index(self) -> Option<usize> {
        Some(match self {
            Self::Requests => return None,
            Self::Tokens => 0,
            Self::InputTokens => 1,
            Self::OutputTokens => 2,
            Self::Cost => 3,
        })
    }
}

impl Per {
    /// The calendar windows, in the order in which counts are stored and sent.
    pub const WINDOWS: [Self; 6] =
        [Self::Minute, Self::Hour, Self::Day, Self::Week, Self::Month, Self::Total];

    /// Its index in [`Self::WINDOWS`]; none for the second, which is a token bucket.
    pub const fn window_index(self) -> Option<usize> {
        Some(match self {
            Self::Second => return None,
            Self::Minute => 0,
            Self::Hour => 1,
            Self::Day => 2,
            Self::Week => 3,
            Self::Month => 4,
            Self::Total => 5,
        })
    }
}

impl KeyType {
    /// The scope that keys of this type must hold; none for service keys.
    pub const fn implied_scope(self) -> Option<&'static str> {
        match self {
            Self::App | Self::Agent | Self::MultiAgent | Self::Workflow | Self::PureWorkflow => Some("app"),
            Self::Rag => Some("rag"),
            Self::Memory => Some("memory"),
            Self::Service => None,
        }
    }
}
