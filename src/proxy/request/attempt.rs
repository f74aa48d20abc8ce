//! A request's way through the servers of its upstream: where it is, where it has been, whether it may go on.
//!
//! Must not know: how servers are chosen, or what the client is told when none is left.

use super::rewind::{self};
use super::tunnel;
use crate::gate::Admission;
use crate::policy::http::websocket::FrameParser;
use crate::policy::upstream::balance::{Balancing, HashBy, hash};
use crate::policy::upstream::retry::{AttemptFailure, RetryRequest};
use crate::proxy::connection::CloseReason;
use crate::proxy::connection::kept_body::KeptBody;
use crate::proxy::ctx::Ctx;
use crate::proxy::response::reply::status_written;
use crate::proxy::state::Proxy;
use crate::proxy::upstream::attempts::AnswerState;
use crate::proxy::upstream::{
    NO_PLACE, NoServer, PickContext, RETRIES, RequestPermit, ServerFailure, ServerInFlightGuard, Upstream,
    is_local_shortage,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, RetryType};
use std::sync::Arc;
use std::time::Duration;

/// What a request has taken: what is counted for its key and workspace, and its places at its upstream and a server of it.
/// Dropping it gives all of it back.
struct Places {
    _admission: Option<Admission>,
    _seat: Option<RequestPermit>,
    _busy: Option<ServerInFlightGuard>,
}

/// How early Pingora's timers may fire.
const TIMER_GRAIN: Duration = Duration::from_millis(10);

impl Proxy {
    /// Chooses a server and goes there.
    pub(in crate::proxy) fn next_server(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> pingora::Result<Box<HttpPeer>> {
        let routing = Arc::clone(&ctx.routing);
        let Some(upstream) = ctx.route.as_ref().and_then(|r| routing.upstreams.get(r.upstream)) else {
            return Error::e_explain(ErrorType::InternalError, "request without a route");
        };
        let left = self.time_left(upstream, ctx)?;
        if ctx.attempts.permit.is_none() {
            ctx.attempts.permit = Some(upstream.enter().map_err(|why| self.no_server(upstream, why))?);
        }
        let context = PickContext {
            random: random_bits(ctx),
            name: hash_of(upstream, session, ctx),
            tried: &ctx.attempts.tried,
        };
        // What is sent again has left where it was, and takes nobody's place there.
        ctx.attempts.current = None;
        let busy = upstream.pick(&context).map_err(|why| self.no_server(upstream, why))?;
        if let Some(record) = &mut ctx.record {
            record.upstream(&busy.text);
        }
        let mut peer = upstream.peer(&busy);
        let asks_tunnel =
            upstream.settings.protocol.may_tunnel() && tunnel::is_asked_for(session.req_header());
        ctx.attempts.asks_tunnel = asks_tunnel;
        ctx.attempts.stream = None;
        if asks_tunnel {
            upstream.make_tunnel(&mut peer);
        } else if let Some(stream) = upstream.stream(busy.server(), key_of(ctx)) {
            Upstream::choose_connections(&mut peer, &stream);
            ctx.attempts.stream = Some(stream);
        }
        ctx.attempts.connect_permit = upstream.connect_permit(&mut peer, asks_tunnel);
        // Over HTTP/2 Pingora counts from the beginning of the request, however long it takes to send; and in a tunnel
        // only what comes from the backend.
        let is_ours = asks_tunnel || upstream.settings.protocol.may_be_http2() && !session.is_body_empty();
        ctx.attempts.pause = if is_ours { peer.options.read_timeout.take() } else { None };
        if let Some(left) = left {
            let options = &mut peer.options;
            for limit in [
                &mut options.connection_timeout,
                &mut options.total_connection_timeout,
                &mut options.read_timeout,
                &mut options.write_timeout,
            ] {
                *limit = limit.map(|span| span.min(left));
            }
        }
        if (left.is_some() || ctx.attempts.first_byte(upstream).is_some())
            && let Some(connection) = &ctx.connection
        {
            connection.set_backend_deadline(left);
            ctx.attempts.is_awaited = true;
        }
        ctx.note_attempt(upstream, &busy);
        ctx.attempts.attempts += 1;
        // What is sent again is counted again, and kept again.
        ctx.body_bytes = 0;
        let is_kept = ctx.attempts.stream.is_some() && !session.is_body_empty() && ctx.body.is_none();
        ctx.kept_body = is_kept.then(KeptBody::default);
        ctx.attempts.current = Some(busy);
        Ok(peer)
    }

    /// What is left of the time that the whole request may take; an error where nothing is.
    fn time_left(&self, upstream: &Upstream, ctx: &Ctx) -> pingora::Result<Option<Duration>> {
        let left = self.left(upstream, ctx);
        if left.is_some_and(|left| left.is_zero()) {
            let late = Error::explain(ErrorType::ReadTimedout, "request timeout reached");
            return Err(late.into_up());
        }
        Ok(left)
    }

    /// The same, which may be zero; none where there is no such bound.
    fn left(&self, upstream: &Upstream, ctx: &Ctx) -> Option<Duration> {
        Some(upstream.settings.timeouts.request?.saturating_sub(self.elapsed(ctx)))
    }

    /// Whether what has just been given up was given up because the whole request has had its time.
    fn has_had_its_time(&self, ctx: &Ctx) -> bool {
        upstream_of(ctx).and_then(|upstream| self.left(upstream, ctx)).is_some_and(|left| left <= TIMER_GRAIN)
    }

    /// Whether the request may go on, now that a part of the answer has come.
    pub(in crate::proxy) fn check_time_left(&self, ctx: &Ctx) -> pingora::Result<()> {
        restart_read_timeout(ctx);
        let upstream = upstream_of(ctx).filter(|_| !ctx.attempts.is_tunnel());
        upstream.map_or(Ok(()), |upstream| self.time_left(upstream, ctx).map(|_| ()))
    }

    #[expect(clippy::unnecessary_box_returns, reason = "this is how Pingora passes errors")]
    fn no_server(&self, upstream: &Upstream, why: NoServer) -> Box<Error> {
        self.count_no_server(upstream, why);
        Error::explain(ErrorType::HTTPStatus(503), why.as_str())
    }

    fn count_no_server(&self, upstream: &Upstream, why: NoServer) {
        self.metrics.upstream_unavailable.with_label_values(&[&*upstream.settings.name, why.as_str()]).inc();
    }

    /// The server could not be connected to. Answers whether the request goes on to another.
    pub(in crate::proxy) fn on_connect_failure(&self, session: &Session, ctx: &mut Ctx, e: &Error) -> bool {
        ctx.attempts.connect_permit = None;
        ctx.attempts.stream_is_over();
        if e.etype == NO_PLACE {
            // Nothing is known of the server.
            if let Some(upstream) = upstream_of(ctx) {
                self.count_no_server(upstream, NoServer::Pending);
            }
            return false;
        }
        if is_local_shortage(&e.etype) {
            // It would be the same with any other server.
            return false;
        }
        let failure = match e.etype {
            ErrorType::ConnectTimedout if self.has_had_its_time(ctx) => ServerFailure::RequestTimeout,
            ErrorType::ConnectTimedout if in_handshake(e) => ServerFailure::TlsTimeout,
            ErrorType::ConnectTimedout => ServerFailure::ConnectTimeout,
            _ => ServerFailure::Connect,
        };
        report_attempt(ctx, Some(failure));
        if let Some(upstream) = upstream_of(ctx) {
            upstream.may_have_moved();
        }
        ctx.attempts.mark_tried();
        self.should_retry(session, ctx, AttemptFailure::NotConnected)
    }

    /// A connection stands, which is one used before or not.
    pub(in crate::proxy) fn on_connected(ctx: &mut Ctx, reused: bool) {
        if let Some(upstream) = upstream_of(ctx).filter(|_| !reused) {
            // Who listens there now need not be who did when the name was looked up.
            upstream.may_have_moved();
        }
        if let Some(opening) = ctx.attempts.connect_permit.take() {
            opening.finish();
        }
        ctx.attempts.connected = true;
    }

    /// All of the request has been sent: the backend's time for its first byte begins.
    pub(in crate::proxy) fn on_request_sent(&self, ctx: &Ctx) {
        let Some(upstream) = upstream_of(ctx).filter(|_| !ctx.attempts.is_answered()) else { return };
        if let (Some(first_byte), Some(connection)) = (ctx.attempts.first_byte(upstream), &ctx.connection) {
            let left = self.left(upstream, ctx).unwrap_or(first_byte);
            connection.set_backend_deadline(Some(first_byte.min(left)));
        }
    }

    /// A part of the request's body goes to the backend. Over HTTP/2 a backend that takes nothing is nobody's concern but ours:
    /// Pingora would go on to wait for its answer.
    pub(in crate::proxy) fn part_goes(ctx: &Ctx) {
        if ctx.attempts.asks_tunnel {
            return;
        }
        if let (Some(pause), Some(upstream), Some(connection)) =
            (ctx.attempts.pause, upstream_of(ctx), &ctx.connection)
        {
            connection.backend_takes_within(upstream.settings.timeouts.write.saturating_add(pause));
        }
    }

    /// The head of an answer has come, which is more than word that one will.
    pub(in crate::proxy) fn on_answer(&self, ctx: &mut Ctx, status: u16) {
        ctx.attempts.answer = AnswerState::Well;
        ctx.kept_body = None;
        if let Some(connection) = &ctx.connection {
            connection.mark_answered();
        }
        if let Some(recording) = &mut ctx.recording {
            recording.answered(status);
        }
        if status == StatusCode::SWITCHING_PROTOCOLS.as_u16() && ctx.attempts.asks_tunnel {
            return begin_tunnel(ctx);
        }
        if let Some(connection) = ctx.connection.as_ref().filter(|_| ctx.attempts.is_awaited) {
            // The rest of it has what is left of the whole, if there is such a bound.
            connection.set_backend_deadline(upstream_of(ctx).and_then(|upstream| self.left(upstream, ctx)));
        }
        restart_read_timeout(ctx);
        if status >= 500 {
            report_attempt(ctx, Some(ServerFailure::Status));
        }
    }

    /// All of the answer has come and will have been given to the client in a moment, which must find all that the request has
    /// taken free then. Of a stream's answer `rest` may have to wait for the client, and the request is in flight until then.
    pub(in crate::proxy) fn is_out_of_time(ctx: &mut Ctx, rest: bool) {
        if std::mem::replace(&mut ctx.is_over, true) {
            return;
        }
        Self::on_served(ctx, false);
        let places = Places {
            _admission: ctx.admission.take(),
            _seat: ctx.attempts.permit.take(),
            _busy: ctx.attempts.current.take(),
        };
        if let Some(connection) = &ctx.connection {
            connection.ends_answer(false);
            connection.answer_is_whole();
            connection.release_with(places, rest);
        }
    }

    /// The request is over, and answered to the end or not. What has not failed went well.
    pub(in crate::proxy) fn on_served(ctx: &mut Ctx, whole: bool) {
        if whole {
            ctx.attempts.stream_is_over();
        }
        if ctx.attempts.answer == AnswerState::Well {
            report_attempt(ctx, None);
        }
    }

    /// The attempt failed after a connection stood, which was one used before or not. Answers whether the request is
    /// sent again.
    pub(in crate::proxy) fn on_attempt_failure(
        &self,
        session: &Session,
        ctx: &mut Ctx,
        e: &Error,
        reused: bool,
    ) -> bool {
        if ctx.attempts.is_tunnel() {
            // Whichever side ends it, and however.
            return false;
        }
        if ctx.connection.as_ref().is_some_and(|c| c.close_reason() == Some(CloseReason::BackendLate)) {
            report_attempt(ctx, Some(self.timeout_failure(ctx)));
            return false;
        }
        if e.esource != ErrorSource::Upstream {
            return false;
        }
        if !matches!(e.etype, ErrorType::ReadTimedout | ErrorType::WriteTimedout) {
            ctx.attempts.stream_is_over();
        }
        if let Some(upstream) = upstream_of(ctx) {
            upstream.may_have_moved();
        }
        let broken = classify_failure(e);
        // That a server closes a connection while it is idle says nothing about the server.
        let closed_while_idle = reused
            && matches!(e.etype, ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError)
            && !ctx.attempts.is_answered();
        if broken != AttemptFailure::NotProcessed && !closed_while_idle {
            let failure = match e.etype {
                ErrorType::ReadTimedout => self.timeout_failure(ctx),
                ErrorType::WriteTimedout if !self.has_had_its_time(ctx) => ServerFailure::WriteTimeout,
                ErrorType::WriteTimedout => ServerFailure::RequestTimeout,
                _ => ServerFailure::Broken,
            };
            report_attempt(ctx, Some(failure));
            ctx.attempts.mark_tried();
        }
        self.should_retry(session, ctx, broken)
    }

    /// What the backend is late with.
    fn timeout_failure(&self, ctx: &Ctx) -> ServerFailure {
        match ctx.attempts.is_answered() {
            _ if self.has_had_its_time(ctx) => ServerFailure::RequestTimeout,
            true => ServerFailure::ReadTimeout,
            false => ServerFailure::FirstByteTimeout,
        }
    }

    fn should_retry(&self, session: &Session, ctx: &Ctx, broken: AttemptFailure) -> bool {
        let request = RetryRequest {
            idempotent: session.req_header().method.is_idempotent(),
            replayable: (!session.as_ref().retry_buffer_truncated() || rewind::is_possible(ctx))
                && is_asked_for_again(session, ctx),
            answered: ctx.attempts.is_answered() || status_written(session).is_some(),
        };
        let Some(upstream) = upstream_of(ctx) else { return false };
        let may = broken.may_repeat(request)
            && ctx.attempts.attempts < upstream.settings.attempts
            && upstream.has_another(&ctx.attempts.tried);
        if !may {
            return false;
        }
        let granted = upstream.may_repeat();
        let outcome = RETRIES[usize::from(!granted)];
        self.metrics.upstream_retries.with_label_values(&[&*upstream.settings.name, outcome]).inc();
        granted
    }
}

/// Whether Pingora would come for the body of a request that is sent again, where that was read before.
fn is_asked_for_again(session: &Session, ctx: &Ctx) -> bool {
    !ctx.is_body_sent || session.as_ref().get_retry_buffer().is_some()
}

/// The backend has agreed to a tunnel, and done what it was asked for. From now on both sides have a time of their own, and
/// none of a request's.
fn begin_tunnel(ctx: &mut Ctx) {
    let Some(idle) = upstream_of(ctx).map(|upstream| upstream.settings.timeouts.tunnel) else { return };
    ctx.attempts.tunnel = Some(FrameParser::default());
    ctx.attempts.pause = Some(idle);
    if let Some(connection) = &ctx.connection {
        connection.mark_tunnel();
        connection.set_backend_deadline(None);
    }
    restart_read_timeout(ctx);
    report_attempt(ctx, None);
}

/// A part of the answer has come, or something has passed through the tunnel: the next has its time, where it is not
/// Pingora that counts it.
pub(in crate::proxy) fn restart_read_timeout(ctx: &Ctx) {
    if let (Some(pause), Some(connection)) = (ctx.attempts.pause, &ctx.connection) {
        connection.set_backend_read_timeout(pause);
    }
}

/// Tells the upstream how the attempt went.
fn report_attempt(ctx: &mut Ctx, failure: Option<ServerFailure>) {
    ctx.attempts.failure = failure.or(ctx.attempts.failure);
    if ctx.attempts.answer == AnswerState::Well {
        ctx.attempts.answer = AnswerState::Judged;
    }
    if let (Some(recording), Some(failure)) =
        (&mut ctx.recording, failure.filter(|f| *f != ServerFailure::Status))
    {
        recording.failed(failure.as_str());
    }
    let (Some(upstream), Some(busy)) = (upstream_of(ctx), &ctx.attempts.current) else { return };
    match failure {
        Some(failure) => upstream.failed(busy, failure),
        None => upstream.succeeded(busy),
    }
}

fn upstream_of(ctx: &Ctx) -> Option<&Arc<Upstream>> {
    ctx.routing.upstreams.get(ctx.route.as_ref()?.upstream)
}

/// Whether it was the TLS handshake that took too long. Pingora has one kind of error for both, and says more in words.
fn in_handshake(e: &Error) -> bool {
    e.context.as_ref().is_some_and(|context| !context.as_str().starts_with("timeout "))
}

/// What the error says about how far the server has come.
fn classify_failure(e: &Error) -> AttemptFailure {
    match e.etype {
        ErrorType::H2Error | ErrorType::H2Downgrade if e.retry == RetryType::Decided(true) => {
            AttemptFailure::NotProcessed
        }
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError | ErrorType::H2Error => {
            AttemptFailure::Unknown
        }
        _ => AttemptFailure::Misbehaved,
    }
}

/// The random half of the request's own id.
fn random_bits(ctx: &Ctx) -> u64 {
    ctx.id.0.as_u64_pair().1
}

/// The hash of its key.
fn key_of(ctx: &Ctx) -> u64 {
    ctx.admission.as_ref().map_or(0, |admission| hash(admission.entry().key.id.0.as_bytes()))
}

/// What binds the request to a server, where its upstream chooses so.
fn hash_of(upstream: &Upstream, session: &Session, ctx: &Ctx) -> u64 {
    let (Balancing::Hash(by), Some(admission)) = (&upstream.settings.balancing, &ctx.admission) else {
        return 0;
    };
    let key = || key_of(ctx);
    match by {
        HashBy::Key => key(),
        HashBy::EndUser => admission.end_user().map_or_else(key, |id| hash(id.0.as_bytes())),
        HashBy::Header(name) => header(&session.req_header().headers, name).map_or_else(key, hash),
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    headers.get(name).map(HeaderValue::as_bytes).filter(|value| !value.is_empty())
}
