//! What a key is to a decision: whom it belongs to, what it grants, what it may spend.
//!
//! Must not know: its name, its digest, how it is stored, or what has been spent.

use super::id::{KeyId, PlanId, WorkspaceId};
use super::scope::Scopes;
use crate::clock::Timestamp;
use ipnet::IpNet;
use std::fmt;

/// The decision's view of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Which key.
    pub id: KeyId,
    /// The tenant it belongs to.
    pub workspace_id: WorkspaceId,
    /// What kind of holder it was made for.
    pub kind: KeyType,
    /// What it grants.
    pub scopes: Scopes,
    /// The one resource it is bound to; for a service key the workspace itself.
    pub resource_id: Box<str>,
    /// What it may spend.
    pub ceilings: Ceilings,
    /// Source addresses it may be used from; empty means anywhere.
    pub allowed_ips: Box<[IpNet]>,
    /// False while switched off.
    pub is_active: bool,
    /// The first instant at which it is no longer valid.
    pub expires_at: Option<Timestamp>,
}

/// The limits written on a key. Contract 4.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// Requests per second, refilled continuously.
    pub rate_limit: u32,
    /// Requests that may come at once; the rate itself when absent.
    pub rate_burst: Option<u32>,
    /// Requests per UTC day; none: no limit.
    pub daily_request_limit: Option<u64>,
    /// Requests in the key's life.
    pub quota_limit: Option<u64>,
    /// Requests in flight.
    pub concurrency_limit: Option<u32>,
    /// Further ceilings.
    pub limits: Box<[Ceiling]>,
}

/// One further ceiling: at most `max` of `count` in each `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceiling {
    /// What is counted.
    pub count: Count,
    /// In which window.
    pub per: Per,
    /// The most that is admitted.
    pub max: u64,
}

/// What a workspace may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which plan.
    pub id: PlanId,
    /// The highest rate of one key, in requests per second.
    pub api_ops_rate_limit: u32,
    /// The most end users that may ever exist in the workspace.
    pub end_user_quota: u64,
    /// Requests per UTC day of a key that is created without saying how many; none: no limit.
    pub default_daily_request_limit: Option<u64>,
    /// Further ceilings, each over all keys of the workspace together.
    pub limits: Box<[Ceiling]>,
}

/// Largest value of any ceiling: what a JSON number carries exactly.
pub const CEILING_MAX: u64 = (1 << 53) - 1;
/// Largest rate, in requests per second.
pub const RATE_MAX: u32 = 10_000_000;
/// Longest that a plan keeps usage records for when it does not keep them for ever, in days: 100 years.
pub const RETENTION_DAYS_MAX: u32 = 36_500;
/// Longest that a deleted key can be restored, in days: ten years.
pub const DELETED_KEYS_DAYS_MAX: u32 = 3_650;
/// For how many days a deleted key can be restored, unless its plan says otherwise.
pub const DELETED_KEYS_DAYS_DEFAULT: u32 = 30;
/// Most further ceilings on one key or plan.
pub const CEILINGS_MAX: usize = 8;
/// Rate of a key that names none, in requests per second (the plan's where that is lower).
pub const RATE_DEFAULT: u32 = 50;
/// Requests per UTC day that a plan gives to keys which name no limit, unless it says otherwise.
pub const DAILY_DEFAULT: u64 = 100_000;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        // Not everything that has words needs all of this.
        #[allow(dead_code, reason = "one list of words makes them all alike")]
        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// Every word, in the same order.
            pub const WORDS: &'static [&'static str] = &[$($word,)+];

            /// The contract's word for it.
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
    /// What a key was made for.
    KeyType {
        /// One app.
        App = "app",
        /// One knowledge base.
        Rag = "rag",
        /// One memory.
        Memory = "memory",
        /// One agent.
        Agent = "agent",
        /// One team of agents.
        MultiAgent = "multi_agent",
        /// One workflow.
        Workflow = "workflow",
        /// One workflow without a conversation.
        PureWorkflow = "pure_workflow",
        /// Every resource of the workspace.
        Service = "service",
    }
);

words!(
    /// What a ceiling counts.
    Count {
        /// Admitted requests.
        Requests = "requests",
    }
);

words!(
    /// The window of a ceiling. Calendar windows in UTC, except the second, which is a token bucket.
    Per {
        /// Refilled continuously over one second.
        Second = "second",
        /// Calendar minute.
        Minute = "minute",
        /// Calendar hour.
        Hour = "hour",
        /// Calendar day.
        Day = "day",
        /// Calendar month.
        Month = "month",
        /// The whole life.
        Total = "total",
    }
);

/// A word that is none of the allowed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownWord {
    /// What would have been understood.
    pub allowed: &'static [&'static str],
}

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "must be one of: {}", self.allowed.join(", "))
    }
}

impl std::error::Error for UnknownWord {}

// === impl KeyType ===

impl KeyType {
    /// The scope that a key of this type cannot do without; none for a service key.
    pub const fn implied_scope(self) -> Option<&'static str> {
        match self {
            Self::App | Self::Agent | Self::MultiAgent | Self::Workflow | Self::PureWorkflow => Some("app"),
            Self::Rag => Some("rag"),
            Self::Memory => Some("memory"),
            Self::Service => None,
        }
    }
}
