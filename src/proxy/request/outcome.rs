//! How a request ends: what it holds is released, and its outcome told.
//!
//! Must not know: how its response was written.

use crate::model::fault::Fault;
use crate::model::usage::Outcome;
use crate::proxy::connection::CloseReason;
use crate::proxy::ctx::Ctx;
use crate::proxy::request::attempt::ForwardError;

/// Refunds a request that has not reached a backend.
pub(in crate::proxy) fn give_back(ctx: &mut Ctx) {
    if let Some(admission) = ctx.admission.take() {
        admission.give_back();
    }
    if let Some(record) = &mut ctx.record {
        record.given_back();
    }
}

/// The request is no longer in flight: releases its permits.
pub(in crate::proxy) fn release_permits(ctx: &mut Ctx) {
    ctx.admission = None;
    ctx.attempts.ends();
    if let Some(connection) = &ctx.connection {
        connection.release_permits();
    }
}

/// The outcome of a request. `written` is the status sent to the client, if any.
pub(in crate::proxy) fn outcome_of(ctx: &Ctx, error: Option<ForwardError>, written: Option<u16>) -> Outcome {
    if ctx.was_drained() {
        return Outcome::Aborted;
    }
    match (ctx.fault, error) {
        (None, Some(_))
            if ctx.connection.as_ref().is_some_and(|c| c.close_reason() == Some(CloseReason::RestLate)) =>
        {
            Outcome::Served
        }
        (Some(Fault::BadGateway | Fault::GatewayTimeout), _) | (Some(Fault::ServiceUnavailable), Some(_)) => {
            Outcome::UpstreamFailed
        }
        (Some(_), _) => Outcome::Denied,
        (None, _) if ctx.attempts.is_tunnel() => Outcome::Served,
        (None, Some(error)) if error.is_client() || written.is_none() => Outcome::Aborted,
        (None, Some(_)) => Outcome::UpstreamFailed,
        (None, None) if ctx.is_decision => Outcome::Decided,
        (None, None) => Outcome::Served,
    }
}
