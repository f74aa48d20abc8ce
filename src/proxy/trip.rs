//! A request's way through the servers of its upstream: where it is, where it has been, how that went.
//!
//! Must not know: how servers are chosen, or what the client is told when none is left.

use super::ctx::Ctx;
use super::service::Proxy;
use super::upstream::{Busy, Failure, Server, Upstream, Wish};
use crate::policy::balance::{Balancing, HashBy, hash};
use http::HeaderMap;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use smallvec::SmallVec;
use std::sync::Arc;

/// Where a request has been.
#[derive(Default)]
pub struct Trip {
    /// The server it is at.
    busy: Option<Busy>,
    /// Those it could not be served by.
    tried: SmallVec<[Arc<Server>; 2]>,
    /// Whether a connection to a backend stood.
    pub reached: bool,
    /// Whether what the server made of it has been noted.
    judged: bool,
}

impl Proxy {
    /// Chooses a server and goes there.
    pub(super) fn next_server(&self, session: &Session, ctx: &mut Ctx) -> pingora::Result<Box<HttpPeer>> {
        let Some(upstream) = self.upstream_of(ctx) else {
            return Error::e_explain(ErrorType::InternalError, "a request without a route");
        };
        let wish =
            Wish { random: random_bits(ctx), name: name_of(upstream, session, ctx), tried: &ctx.trip.tried };
        let Some(busy) = upstream.pick(&wish) else {
            self.metrics.upstream_unavailable.with_label_values(&[&*upstream.settings.name]).inc();
            return Error::e_explain(ErrorType::HTTPStatus(503), "no server is left");
        };
        if let Some(record) = &mut ctx.record {
            record.upstream(&busy.text);
        }
        let peer = upstream.peer(&busy);
        ctx.trip.busy = Some(busy);
        ctx.trip.judged = false;
        Ok(peer)
    }

    /// The server could not be connected to. Answers whether another may be tried.
    pub(super) fn not_reached(&self, ctx: &mut Ctx, e: &Error) -> bool {
        tracing::debug!(request_id = ?ctx.request_id, error = e.etype.as_str(), "a backend cannot be reached");
        self.judge(ctx, Some(Failure::Connect));
        ctx.trip.tried.extend(ctx.trip.busy.take().map(|busy| Arc::clone(busy.server())));
        self.upstream_of(ctx).is_some_and(|u| u.has_another(&ctx.trip.tried))
    }

    /// The head of an answer has come.
    pub(super) fn answered(&self, ctx: &mut Ctx, status: u16) {
        self.judge(ctx, (status >= 500).then_some(Failure::Status));
    }

    /// The attempt failed after a connection stood.
    pub(super) fn broke_off(&self, ctx: &mut Ctx, e: &Error) {
        if e.esource != ErrorSource::Upstream {
            return;
        }
        let slow = matches!(e.etype, ErrorType::ReadTimedout | ErrorType::WriteTimedout);
        self.judge(ctx, Some(if slow { Failure::Timeout } else { Failure::Broken }));
    }

    /// Notes once for each attempt what came of it. What breaks after the head of an answer counts as well.
    fn judge(&self, ctx: &mut Ctx, failure: Option<Failure>) {
        let (Some(upstream), Some(busy)) = (self.upstream_of(ctx), &ctx.trip.busy) else { return };
        match failure {
            Some(failure) => upstream.failed(busy, failure),
            None if !ctx.trip.judged => upstream.succeeded(busy),
            None => {}
        }
        ctx.trip.judged = true;
    }

    fn upstream_of(&self, ctx: &Ctx) -> Option<&Arc<Upstream>> {
        self.upstreams.get(ctx.route.as_ref()?.upstream)
    }
}

/// The random half of the request's own id.
fn random_bits(ctx: &Ctx) -> u64 {
    ctx.id.0.as_u64_pair().1
}

/// What binds the request to a server, where its upstream chooses so.
fn name_of(upstream: &Upstream, session: &Session, ctx: &Ctx) -> u64 {
    let (Balancing::Hash(by), Some(admission)) = (&upstream.settings.balancing, &ctx.admission) else {
        return 0;
    };
    let key = || hash(admission.entry().key.id.0.as_bytes());
    match by {
        HashBy::Key => key(),
        HashBy::EndUser => admission.end_user().map_or_else(key, |id| hash(id.0.as_bytes())),
        HashBy::Header(name) => header(&session.req_header().headers, name).map_or_else(key, hash),
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> Option<&'h [u8]> {
    headers.get(name).map(http::HeaderValue::as_bytes).filter(|value| !value.is_empty())
}
