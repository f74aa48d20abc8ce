//! What has been spent: one call charges every limit of a request, or none.
//!
//! The rule is in [`crate::policy::keys::limit`]. Here is where counts are kept: in this process ([`local`]), or in Redis
//! for several nodes, of which each has some units in advance ([`pool`]). When Redis is unreachable, the config says what
//! to do, and nobody waits for it.
//!
//! Must not know: requests, keys beyond their id.
//!
//! *Invariant:* a refusal changes no counter.
//! *Invariant:* no request waits longer than [`redis::PATIENCE`].

mod handover;
mod local;
pub mod redis;

pub use crate::model::outage::OnFailure;
pub use crate::model::server::RedisKind;
pub use handover::{CounterDelta, Handover, MeteredDelta, RemoteInFlight};
pub use redis::endpoint::{LinkError, RedisEndpoint, RedisTls, check_redis};
pub use redis::{Leases, LeasesConfig, TotalsSource};

use crate::clock::{Now, Timestamp};
use crate::model::amounts::Amounts;
use crate::model::calendar::Calendar;
use crate::model::id::{EndUserId, KeyId, WorkspaceId};
use crate::model::key::Per;
use crate::model::usage::{UsageSubject, UsageTotals};
use crate::policy::keys::limit::{Limit, LimitReached, Limits, MeteredUnits, Remaining};
use local::{LocalCharge, LocalCounters, LocalHold};
use redis::{HeldSlot, LeasedHold, LeasedUnit, Slot};
use smallvec::SmallVec;
use std::sync::Arc;

/// The counters that this process charges. The default is its own.
#[derive(Debug, Default)]
pub struct Counters {
    local: Arc<LocalCounters>,
    leases: Option<Arc<Leases>>,
}

/// What a request is charged to.
#[derive(Clone, Copy, Debug)]
pub struct Charge<'r> {
    /// The key.
    pub key: KeyId,
    /// The limits counted on the key.
    pub key_limits: &'r Limits,
    /// The workspace.
    pub workspace: &'r WorkspaceId,
    /// The limits counted over all keys of the workspace.
    pub workspace_limits: &'r Limits,
    /// The end user, if the plan limits each.
    pub end_user: Option<(EndUserId, &'r Limits)>,
    /// What is charged: requests are used, the rest is held until [`Hold::settle`].
    pub amounts: Amounts,
}

/// Proof that every limit was charged. Dropping it ends the request in flight and releases its hold, unless that was taken
/// out; the request stays charged.
#[derive(Debug)]
#[must_use = "dropping it ends the request's place in flight"]
pub struct Charged {
    taken: Option<LocalCharge>,
    unit: Option<LeasedUnit>,
    hold: Option<Hold>,
    left: LimitsLeft,
    degraded: bool,
}

/// What a metered request holds until it is known what it used, which may be after it has left the flight. Dropping it
/// releases the hold.
#[derive(Debug)]
#[must_use = "dropping it releases the hold"]
pub struct Hold(HoldOf);

#[derive(Debug)]
enum HoldOf {
    Local(Box<LocalHold>),
    Shared(Box<LeasedHold>),
}

/// A place in flight for a request that is not charged yet. Dropping it releases the place.
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
    /// The limit.
    pub refused: LimitReached,
    /// What is left.
    pub left: LimitsLeft,
}

/// Why a request was not charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChargeError {
    /// A limit is used up.
    Limit {
        /// Which limit, and what is left of all.
        refusal: Box<Refusal>,
        /// Whether this was decided without the shared counters.
        degraded: bool,
    },
    /// The shared counters are unreachable, and the config says to refuse.
    Unavailable,
}

impl Counters {
    /// Counters shared with other nodes.
    pub fn shared(leases: Arc<Leases>) -> Self {
        Self { local: Arc::default(), leases: Some(leases) }
    }

    /// Sets the endpoint for the next connection to Redis, if counters are shared.
    pub fn set_place(&self, place: RedisEndpoint) {
        if let Some(leases) = &self.leases {
            leases.set_place(place);
        }
    }

    /// Charges all limits of a request at `now`, or none.
    pub async fn admit(&self, charge: &Charge<'_>, now: Now) -> Result<Charged, ChargeError> {
        match &self.leases {
            None => {
                self.charge(charge, now).map_err(|refusal| ChargeError::Limit { refusal, degraded: false })
            }
            Some(leases) => leases.charge(charge).await,
        }
    }

    /// The same with the counters of this process.
    pub fn charge(&self, charge: &Charge<'_>, now: Now) -> Result<Charged, Box<Refusal>> {
        let (taken, hold, left) = self.local.charge(charge, now)?;
        Ok(Charged {
            taken: Some(taken),
            unit: None,
            hold: hold.map(HoldOf::Local).map(Hold),
            left,
            degraded: false,
        })
    }

    /// Takes a place in flight for a request that will be charged later, if no limit would refuse a charge. Of shared
    /// limits, only those in flight are checked, and only in this process.
    pub fn hold(&self, charge: &Charge<'_>, now: Now) -> Result<InFlightGuard, Box<Refusal>> {
        let of = match &self.leases {
            None => PlaceOf::Local(self.local.hold(charge, now)?),
            Some(leases) => PlaceOf::Shared(leases.hold(charge)?),
        };
        Ok(InFlightGuard { _of: of })
    }

    /// Sets the ledger's totals for the windows of `calendar` that contain `at`, before anything is charged. Shared
    /// counters read the ledger themselves.
    pub fn restore(&self, row: &UsageTotals, calendar: Calendar, at: Timestamp) {
        if self.leases.is_none() {
            self.local.restore(row, calendar, at);
        }
    }

    /// Raises the counts to at least the totals of the ledger, while requests are served. Shared counters read the ledger
    /// themselves.
    pub fn raise(&self, row: &UsageTotals, calendar: Calendar, at: Timestamp) {
        if self.leases.is_none() {
            self.local.raise(row, calendar, at);
        }
    }

    /// Calls `show` with what every subject has spent in the windows that contain `at`. Nothing for shared counters.
    pub fn each_spent(&self, at: Timestamp, show: impl FnMut(UsageTotals)) {
        if self.leases.is_none() {
            self.local.each_spent(at, show);
        }
    }

    /// What requests in flight here hold in each of the windows that contain `at`; with shared counters, in the current ones.
    pub fn held(&self, subject: &UsageSubject, at: Timestamp) -> [MeteredUnits; Per::WINDOWS.len()] {
        match &self.leases {
            None => self.local.held(subject, at),
            Some(leases) => leases.held(subject),
        }
    }

    /// Removes a key that was deleted.
    pub fn forget(&self, key: KeyId) {
        match &self.leases {
            None => self.local.forget(key),
            Some(leases) => leases.forget(key),
        }
    }

    /// Returns what this node holds to Redis.
    pub async fn close(&self) {
        if let Some(leases) = &self.leases {
            leases.close().await;
        }
    }
}

// === impl Charge, Charged ===

impl Charge<'_> {
    /// The limits of one of its subjects.
    fn limits_of(&self, slot: Slot) -> &Limits {
        match (slot, self.end_user) {
            (Slot::Key, _) => self.key_limits,
            (Slot::EndUser, Some((_, limits))) => limits,
            (Slot::Workspace | Slot::EndUser, _) => self.workspace_limits,
        }
    }
}

impl Charged {
    /// A charge of shared counters.
    fn shared(unit: LeasedUnit, hold: Option<Box<LeasedHold>>, left: LimitsLeft, degraded: bool) -> Self {
        Self { taken: None, unit: Some(unit), hold: hold.map(HoldOf::Shared).map(Hold), left, degraded }
    }

    /// What was left of each limit just after this charge.
    pub fn left(&self) -> &LimitsLeft {
        &self.left
    }

    /// Whether this was decided without the shared counters.
    pub const fn degraded(&self) -> bool {
        self.degraded
    }

    /// What the request holds, unless that was taken out.
    pub fn held(&self) -> Option<&Amounts> {
        self.hold.as_ref().map(Hold::amounts)
    }

    /// Takes out what the request holds, to be settled by itself.
    pub fn take_hold(&mut self) -> Option<Hold> {
        self.hold.take()
    }

    /// Gives the whole charge back: the request never reached a backend. A hold that was taken out is released by its drop.
    pub fn give_back(self) {
        if let Some(taken) = self.taken {
            taken.give_back();
        }
        if let Some(unit) = self.unit {
            unit.give_back();
        }
    }
}

// === impl Hold ===

impl Hold {
    /// What is held.
    pub fn amounts(&self) -> &Amounts {
        match &self.0 {
            HoldOf::Local(hold) => hold.amounts(),
            HoldOf::Shared(hold) => hold.amounts(),
        }
    }

    /// Replaces the hold by what the request used, in the windows of its charge. Returns by how much more each of
    /// [`Measure::METERED`](crate::model::key::Measure::METERED) now exceeds a limit.
    pub fn settle(self, used: &Amounts) -> MeteredUnits {
        match self.0 {
            HoldOf::Local(hold) => hold.settle(used),
            HoldOf::Shared(mut hold) => hold.settle(used),
        }
    }
}

#[cfg(test)]
mod budget_tests;
#[cfg(test)]
mod tests;
