//! Support code for all tests.
//!
//! Nothing here sleeps to wait for an event, except for the one poll in [`eventually`]: responses are read from sockets,
//! and origins answer when a [`Hold`] is released. Every wait fails after [`PATIENCE`].

mod admin;
mod config;
mod gateway;
mod ledger;
mod origin;
mod raw;
mod request;
mod spare;

pub(crate) use admin::Key;
pub(crate) use config::{one_route, route, stand, upstream};
pub(crate) use gateway::{CommandOutput, Gateway, keygate, signal_to, write_config};
pub(crate) use origin::{Hold, Origin, ReservedPort};
pub(crate) use raw::{Raw, Response};
pub(crate) use request::Request;
pub(crate) use spare::Spare;

use std::time::{Duration, Instant};

/// The longest that a step may take before the test fails; generous, because the machine may be busy with other builds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The interval of polls in [`eventually`].
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Waits until `look` finds something; fails with `what` after [`PATIENCE`].
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "this did not happen within {PATIENCE:?}: {what}");
        // The only sleep of the suite: a poll of a fact without a notification, e.g. a row in the ledger.
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Waits until `holds` is true; fails with `what` after [`PATIENCE`].
#[track_caller]
pub(crate) fn eventually_true(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || holds().then_some(()));
}

/// The same for a promised time, measured by [`spare`]'s clock.
#[track_caller]
pub(crate) fn soon(promised: Duration, what: &str, holds: impl FnMut() -> bool) {
    let waited = Spare::begin();
    eventually_true(what, holds);
    let waited = waited.elapsed();
    assert!(waited <= promised, "{what}: only after {waited:?}");
}
