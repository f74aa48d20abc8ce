//! What has been spent: one call charges every limit of a request, all of them or none.
//!
//! The rule is [`crate::policy::keys::limit`]'s; here are the places where spending is kept: in this process alone ([`local`]),
//! or in Redis for several nodes, of which each owns a little in advance ([`pool`]). Must not know: requests, keys beyond
//! their id. Kept in this process it cannot be gone; when Redis is, the config says what to do, and nobody waits for it.
//!
//! *Invariant:* a refusal changes no counter. *Invariant:* no request waits longer than [`redis::PATIENCE`].

mod handover;
mod local;
pub mod redis;

pub use handover::{CounterDelta, Handover, RemoteInFlight};
pub use redis::endpoint::{LinkError, RedisEndpoint, RedisKind, RedisTls};
pub use redis::{Leases, LeasesConfig, OnFailure, TotalsSource};

use crate::clock::{Now, Timestamp};
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::usage::UsageTotals;
use crate::policy::keys::limit::{Limit, LimitReached, Limits, Remaining};
use local::{LocalCharge, LocalCounters};
use redis::{HeldSlot, LeasedUnit};
use smallvec::SmallVec;
use std::sync::Arc;

/// The counters that this process charges. The default is: its own.
#[derive(Debug, Default)]
pub struct Counters {
    local: Arc<LocalCounters>,
    leases: Option<Arc<Leases>>,
}

/// What a request costs, and whom.
#[derive(Clone, Copy, Debug)]
pub struct Charge<'r> {
    /// Which key.
    pub key: KeyId,
    /// The limits counted on it.
    pub key_limits: &'r Limits,
    /// Which workspace.
    pub workspace: &'r WorkspaceId,
    /// The limits counted over all its keys.
    pub workspace_limits: &'r Limits,
}

/// Proof that every limit was charged. Dropping it ends what is in flight; the rest stays charged.
#[derive(Debug)]
#[must_use = "dropping it ends the request's place in flight"]
pub struct Charged {
    taken: Option<LocalCharge>,
    unit: Option<LeasedUnit>,
    left: LimitsLeft,
    degraded: bool,
}

/// A slot in flight of a request that is not charged yet. Dropping it ends it.
#[derive(Debug)]
#[must_use = "dropping it ends the request's place in flight"]
pub struct InFlightGuard {
    _of: PlaceOf,
}

#[derive(Debug)]
#[expect(dead_code, reason = "their end is what they are for")]
#[expect(clippy::large_enum_variant, reason = "a box would cost each request an allocation")]
enum PlaceOf {
    Local(LocalCharge),
    Shared(HeldSlot),
}

/// Each limit in force with what is left of it.
pub type LimitsLeft = SmallVec<[(Limit, Remaining); 6]>;

/// A refusal, with what is left of each limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub refused: LimitReached,
    /// What is left.
    pub left: LimitsLeft,
}

/// Why a request was not charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChargeError {
    /// It is over a limit.
    Limit {
        /// Which, and what is left.
        refusal: Box<Refusal>,
        /// Whether this node decided by itself because the shared counters are gone.
        degraded: bool,
    },
    /// The shared counters are gone, and the config says to refuse.
    Unavailable,
}

impl Counters {
    /// Counters that are shared with other nodes.
    pub fn shared(leases: Arc<Leases>) -> Self {
        Self { local: Arc::default(), leases: Some(leases) }
    }

    /// The next connection to Redis, where counters are shared, is made so.
    pub fn set_place(&self, place: RedisEndpoint) {
        if let Some(leases) = &self.leases {
            leases.set_place(place);
        }
    }

    /// Charges all limits of a request at `now`, or none of them.
    pub async fn admit(&self, charge: &Charge<'_>, now: Now) -> Result<Charged, ChargeError> {
        match &self.leases {
            None => {
                self.charge(charge, now).map_err(|refusal| ChargeError::Limit { refusal, degraded: false })
            }
            Some(leases) => leases.charge(charge).await,
        }
    }

    /// The same by this process alone.
    pub fn charge(&self, charge: &Charge<'_>, now: Now) -> Result<Charged, Box<Refusal>> {
        let (taken, left) = self.local.charge(charge, now)?;
        Ok(Charged { taken: Some(taken), unit: None, left, degraded: false })
    }

    /// Takes a slot in flight, and nothing else, for a request that will be charged later; refuses what a limit stands
    /// against already. Of shared limits only those in flight are looked at, and those by this process alone.
    pub fn hold(&self, charge: &Charge<'_>, now: Now) -> Result<InFlightGuard, Box<Refusal>> {
        let of = match &self.leases {
            None => PlaceOf::Local(self.local.hold(charge, now)?),
            Some(leases) => PlaceOf::Shared(leases.hold(charge)?),
        };
        Ok(InFlightGuard { _of: of })
    }

    /// Sets what the ledger knows, before anything is charged. Shared counters ask the ledger by themselves.
    pub fn restore(&self, row: &UsageTotals, at: Timestamp) {
        if self.leases.is_none() {
            self.local.restore(row, at);
        }
    }

    /// Counts at least what the ledger knows, while requests are served. Shared counters ask the ledger by themselves.
    pub fn raise(&self, row: &UsageTotals, at: Timestamp) {
        if self.leases.is_none() {
            self.local.raise(row, at);
        }
    }

    /// Shows what every subject has spent in the windows that contain `at`. Nothing, if others count.
    pub fn each_spent(&self, at: Timestamp, show: impl FnMut(UsageTotals)) {
        if self.leases.is_none() {
            self.local.each_spent(at, show);
        }
    }

    /// Forgets a key that is gone for good.
    pub fn forget(&self, key: KeyId) {
        match &self.leases {
            None => self.local.forget(key),
            Some(leases) => leases.forget(key),
        }
    }

    /// Gives back what this node owns and does not need any more.
    pub async fn close(&self) {
        if let Some(leases) = &self.leases {
            leases.close().await;
        }
    }
}

// === impl Charged ===

impl Charged {
    /// What is left of each limit, just after this charge.
    pub fn left(&self) -> &LimitsLeft {
        &self.left
    }

    /// Whether this node decided by itself because the shared counters are gone.
    pub const fn degraded(&self) -> bool {
        self.degraded
    }

    /// Undoes the whole charge: the request never reached a backend.
    pub fn give_back(self) {
        if let Some(taken) = self.taken {
            taken.give_back();
        }
        if let Some(unit) = self.unit {
            unit.give_back();
        }
    }
}

#[cfg(test)]
mod tests;
