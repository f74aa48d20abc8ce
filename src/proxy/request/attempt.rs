//! The attempts of a request at the servers of its upstream: the choice of a server, the result of each attempt, and
//! whether to retry.
//!
//! Must not know: how servers are chosen, or the response when none is left.

use super::rewind;
use super::tunnel;
use crate::gate::Admission;
use crate::model::fault::Fault;
use crate::policy::http::websocket::FrameParser;
use crate::policy::upstream::balance::{Balancing, HashBy, hash};
use crate::policy::upstream::retry::{AttemptFailure, RetryRequest};
use crate::proxy::connection::kept_body::KeptBody;
use crate::proxy::connection::{BackendTimeout, CloseReason};
use crate::proxy::ctx::{BodyStart, Ctx};
use crate::proxy::message::RequestMessage;
use crate::proxy::response::reply::status_written;
use crate::proxy::state::Proxy;
use crate::proxy::upstream::attempts::AnswerState;
use crate::proxy::upstream::{
    ConnectError, NoServer, PickContext, RETRIES, RequestPermit, ServerFailure, ServerInFlightGuard,
    Upstream, is_local_shortage,
};
use http::StatusCode;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, RetryType};
use std::sync::Arc;
use std::time::Duration;

/// What a request holds while it is in flight: the counts of its key and workspace, and its permits at the upstream
/// and a server. Dropping it releases all of them.
struct ReleasedPermits {
    _admission: Option<Admission>,
    _permit: Option<RequestPermit>,
    _busy: Option<ServerInFlightGuard>,
}

/// How early Pingora's timers may fire.
const TIMER_GRAIN: Duration = Duration::from_millis(10);

/// Why a request was not forwarded, or not completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum ForwardError {
    /// The client has disconnected, or its connection was closed by another task.
    Client,
    /// The client's body did not arrive in time.
    ClientLate,
    /// The body is larger than the route allows.
    TooLarge,
    /// No server may be used, or this machine lacks resources for another connection.
    Unavailable,
    /// The servers were too slow.
    BackendLate,
    /// The servers failed.
    Backend,
    /// An internal error.
    Internal,
}

/// How an attempt failed after the connection was open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct AttemptError {
    /// How far the server may have processed the request.
    pub(in crate::proxy) progress: AttemptFailure,
    /// The timeout that the server exceeded, if that is the reason.
    pub(in crate::proxy) timeout: Option<BackendTimeout>,
    /// Whether the server closed a reused connection.
    pub(in crate::proxy) closed_while_idle: bool,
}

/// The properties of a request that decide whether it may be retried.
#[derive(Clone, Copy)]
pub(in crate::proxy) struct RetryFacts {
    pub(in crate::proxy) idempotent: bool,
    /// Whether all of its body read so far is still in memory.
    pub(in crate::proxy) replayable: bool,
    /// Whether any part of a response was sent to the client.
    pub(in crate::proxy) answer_written: bool,
}

impl Proxy {
    /// Chooses the server for the next attempt. Returns the time left for the request, if it is limited.
    pub(in crate::proxy) fn choose_server(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>, ForwardError> {
        let routing = Arc::clone(&ctx.routing);
        let Some(upstream) = ctx.route.as_ref().and_then(|r| routing.upstreams.get(r.upstream)) else {
            return Err(ForwardError::Internal);
        };
        let left = self.time_left(upstream, ctx)?;
        if ctx.attempts.permit.is_none() {
            ctx.attempts.permit = Some(upstream.enter().map_err(|why| self.no_server(upstream, why))?);
        }
        let context = PickContext {
            random: random_bits(ctx),
            name: hash_of(upstream, message, ctx),
            tried: &ctx.attempts.tried,
        };
        // A retried request has left its previous server and must not count there.
        ctx.attempts.current = None;
        let busy = upstream.pick(&context).map_err(|why| self.no_server(upstream, why))?;
        if let Some(record) = &mut ctx.record {
            record.upstream(&busy.text);
        }
        ctx.attempts.asks_tunnel = upstream.settings.protocol.may_tunnel() && tunnel::is_asked_for(message);
        ctx.attempts.stream = None;
        ctx.note_attempt(upstream, &busy);
        ctx.attempts.attempts += 1;
        // A retry counts its body again.
        ctx.body_bytes = 0;
        ctx.attempts.current = Some(busy);
        Ok(left)
    }

    /// Lets the client's connection time the attempt if there is a timeout for the whole request or for the first
    /// byte of the response.
    pub(in crate::proxy) fn await_backend(ctx: &mut Ctx, left: Option<Duration>) {
        let is_bounded = upstream_of(ctx)
            .is_some_and(|upstream| left.is_some() || ctx.attempts.first_byte(upstream).is_some());
        if let Some(connection) = ctx.connection.as_ref().filter(|_| is_bounded) {
            connection.set_backend_deadline(left);
            ctx.attempts.is_awaited = true;
        }
    }

    /// Chooses a server and returns Pingora's settings for a connection to it.
    pub(in crate::proxy) fn next_server(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<Box<HttpPeer>, ForwardError> {
        let has_body = !session.is_body_empty();
        let left = self.choose_server(&RequestMessage::of(session.req_header(), has_body), ctx)?;
        let (Some(upstream), Some(busy)) = (upstream_of(ctx).map(Arc::clone), &ctx.attempts.current) else {
            return Err(ForwardError::Internal);
        };
        let mut peer = upstream.peer(busy);
        let asks_tunnel = ctx.attempts.asks_tunnel;
        if asks_tunnel {
            upstream.make_tunnel(&mut peer);
        } else if let Some(stream) = upstream.stream(busy.server(), key_of(ctx)) {
            Upstream::choose_connections(&mut peer, &stream);
            ctx.attempts.stream = Some(stream);
        }
        ctx.attempts.connect_permit = upstream.connect_permit(&mut peer, asks_tunnel);
        // Over HTTP/2, Pingora's read timeout starts with the request, however long sending it takes; in a tunnel it
        // covers only bytes from the backend. In these cases the client's connection times the backend.
        let is_ours = asks_tunnel || upstream.settings.protocol.may_be_http2() && has_body;
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
        Self::await_backend(ctx, left);
        // A retry keeps its body again.
        let is_kept = ctx.attempts.stream.is_some() && has_body && !ctx.is_read_ahead;
        ctx.kept_body = is_kept.then(KeptBody::default);
        Ok(peer)
    }

    /// The time left for the whole request; an error if it is used up.
    fn time_left(&self, upstream: &Upstream, ctx: &Ctx) -> Result<Option<Duration>, ForwardError> {
        let left = self.left(upstream, ctx);
        if left.is_some_and(|left| left.is_zero()) { Err(ForwardError::BackendLate) } else { Ok(left) }
    }

    /// The same, which may be zero; none if the request has no timeout.
    fn left(&self, upstream: &Upstream, ctx: &Ctx) -> Option<Duration> {
        Some(upstream.settings.timeouts.request?.saturating_sub(self.elapsed(ctx)))
    }

    /// Whether the step that has just failed was cut short by the timeout of the whole request.
    fn is_past_time(&self, ctx: &Ctx) -> bool {
        upstream_of(ctx).and_then(|upstream| self.left(upstream, ctx)).is_some_and(|left| left <= TIMER_GRAIN)
    }

    /// Whether the request may continue after a part of the response has arrived.
    pub(in crate::proxy) fn check_time_left(&self, ctx: &Ctx) -> Result<(), ForwardError> {
        restart_read_timeout(ctx);
        let upstream = upstream_of(ctx).filter(|_| !ctx.attempts.is_tunnel());
        upstream.map_or(Ok(()), |upstream| self.time_left(upstream, ctx).map(|_| ()))
    }

    fn no_server(&self, upstream: &Upstream, why: NoServer) -> ForwardError {
        self.count_no_server(upstream, why);
        ForwardError::Unavailable
    }

    fn count_no_server(&self, upstream: &Upstream, why: NoServer) {
        self.metrics.upstream_unavailable.with_label_values(&[&*upstream.settings.name, why.as_str()]).inc();
    }

    /// No connection to the server could be opened. Returns whether to retry with another server.
    pub(in crate::proxy) fn on_connect_failure(
        &self,
        ctx: &mut Ctx,
        error: ConnectError,
        request: RetryFacts,
    ) -> bool {
        ctx.attempts.connect_permit = None;
        ctx.attempts.stream_is_over();
        let failure = match error {
            ConnectError::Pending => {
                // Says nothing about the server.
                if let Some(upstream) = upstream_of(ctx) {
                    self.count_no_server(upstream, NoServer::Pending);
                }
                return false;
            }
            // Any other server would fail in the same way.
            ConnectError::LocalShortage => return false,
            ConnectError::Timeout | ConnectError::TlsTimeout if self.is_past_time(ctx) => {
                ServerFailure::RequestTimeout
            }
            ConnectError::TlsTimeout => ServerFailure::TlsTimeout,
            ConnectError::Timeout => ServerFailure::ConnectTimeout,
            ConnectError::Failed => ServerFailure::Connect,
        };
        report_attempt(ctx, Some(failure));
        if let Some(upstream) = upstream_of(ctx) {
            upstream.may_have_moved();
        }
        ctx.attempts.mark_tried();
        self.should_retry(ctx, AttemptFailure::NotConnected, request)
    }

    /// The connection to the server is open. `reused`: it was used before.
    pub(in crate::proxy) fn on_connected(ctx: &mut Ctx, reused: bool) {
        if let Some(upstream) = upstream_of(ctx).filter(|_| !reused) {
            // The server at this address may be another than when the name was resolved.
            upstream.may_have_moved();
        }
        if let Some(opening) = ctx.attempts.connect_permit.take() {
            opening.finish();
        }
        ctx.attempts.connected = true;
    }

    /// The request has been sent completely: the timeout for the first byte of the response starts.
    pub(in crate::proxy) fn on_request_sent(&self, ctx: &Ctx) {
        let Some(upstream) = upstream_of(ctx).filter(|_| !ctx.attempts.is_answered()) else { return };
        if let (Some(first_byte), Some(connection)) = (ctx.attempts.first_byte(upstream), &ctx.connection) {
            let left = self.left(upstream, ctx).unwrap_or(first_byte);
            connection.set_backend_deadline(Some(first_byte.min(left)));
        }
    }

    /// A part of the request body is being sent to the backend. Over HTTP/2 only Keygate notices a backend that
    /// accepts nothing: Pingora would keep waiting for the response.
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

    /// The head of a final response has arrived.
    pub(in crate::proxy) fn on_answer(&self, ctx: &mut Ctx, status: u16) {
        ctx.attempts.answer = AnswerState::Well;
        ctx.kept_body = None;
        if ctx.body_start.is_sent {
            ctx.body_start = BodyStart::default();
        }
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
            // The rest of the response has the time left for the whole request, if that is limited.
            connection.set_backend_deadline(upstream_of(ctx).and_then(|upstream| self.left(upstream, ctx)));
        }
        restart_read_timeout(ctx);
        if status >= 500 {
            report_attempt(ctx, Some(ServerFailure::Status));
        }
    }

    /// The response has been received completely and is about to reach the client, which must then find the request's
    /// permits released. A part of a stream's response (`rest`) may wait for the client; the request stays in flight
    /// until then. `request_bytes` of its body have come.
    pub(in crate::proxy) fn on_response_complete(ctx: &mut Ctx, rest: bool, request_bytes: u64) {
        if std::mem::replace(&mut ctx.is_over, true) {
            return;
        }
        Self::on_served(ctx, false);
        ctx.settle_meter(false, request_bytes);
        let permits = ReleasedPermits {
            _admission: ctx.admission.take(),
            _permit: ctx.attempts.permit.take(),
            _busy: ctx.attempts.current.take(),
        };
        if let Some(connection) = &ctx.connection {
            connection.set_close_ends_answer(false);
            connection.mark_answer_complete();
            connection.release_with(permits, rest);
        }
    }

    /// The request has ended, with a complete response or not. An attempt without a failure counts as successful.
    pub(in crate::proxy) fn on_served(ctx: &mut Ctx, whole: bool) {
        if whole {
            ctx.attempts.stream_is_over();
        }
        if ctx.attempts.answer == AnswerState::Well {
            report_attempt(ctx, None);
        }
    }

    /// The attempt failed after the connection was open; `error` is none if the backend was not the cause. Returns
    /// whether to retry.
    pub(in crate::proxy) fn on_attempt_failure(
        &self,
        ctx: &mut Ctx,
        error: Option<AttemptError>,
        request: RetryFacts,
    ) -> bool {
        if ctx.attempts.is_tunnel() {
            // A tunnel may be ended by either side, in any way.
            return false;
        }
        if ctx.connection.as_ref().is_some_and(|c| c.close_reason() == Some(CloseReason::BackendLate)) {
            report_attempt(ctx, Some(self.timeout_failure(ctx)));
            return false;
        }
        let Some(error) = error else { return false };
        if error.timeout.is_none() {
            ctx.attempts.stream_is_over();
        }
        if let Some(upstream) = upstream_of(ctx) {
            upstream.may_have_moved();
        }
        // A server may close an idle connection; that is no failure.
        let closed_while_idle = error.closed_while_idle && !ctx.attempts.is_answered();
        if error.progress != AttemptFailure::NotProcessed && !closed_while_idle {
            let failure = match error.timeout {
                Some(BackendTimeout::Read) => self.timeout_failure(ctx),
                Some(BackendTimeout::Write) if !self.is_past_time(ctx) => ServerFailure::WriteTimeout,
                Some(BackendTimeout::Write) => ServerFailure::RequestTimeout,
                None => ServerFailure::Broken,
            };
            report_attempt(ctx, Some(failure));
            ctx.attempts.mark_tried();
        }
        self.should_retry(ctx, error.progress, request)
    }

    /// Which timeout the backend has exceeded.
    fn timeout_failure(&self, ctx: &Ctx) -> ServerFailure {
        match ctx.attempts.is_answered() {
            _ if self.is_past_time(ctx) => ServerFailure::RequestTimeout,
            true => ServerFailure::ReadTimeout,
            false => ServerFailure::FirstByteTimeout,
        }
    }

    fn should_retry(&self, ctx: &Ctx, broken: AttemptFailure, facts: RetryFacts) -> bool {
        let request = RetryRequest {
            idempotent: facts.idempotent,
            replayable: facts.replayable,
            answered: ctx.attempts.is_answered() || facts.answer_written,
        };
        let Some(upstream) = upstream_of(ctx).filter(|_| !ctx.was_drained()) else { return false };
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

impl From<ConnectError> for ForwardError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Pending | ConnectError::LocalShortage => Self::Unavailable,
            ConnectError::Timeout | ConnectError::TlsTimeout => Self::BackendLate,
            ConnectError::Failed => Self::Backend,
        }
    }
}

impl RetryFacts {
    /// The properties of a request that Pingora forwards.
    pub(in crate::proxy) fn of(session: &Session, ctx: &Ctx) -> Self {
        // Whether Pingora would send the body in a retry, if it was read before the first attempt.
        let is_asked_for_again = !ctx.is_body_sent || session.as_ref().get_retry_buffer().is_some();
        Self {
            idempotent: session.req_header().method.is_idempotent(),
            replayable: (!session.as_ref().retry_buffer_truncated() || rewind::is_possible(ctx))
                && is_asked_for_again,
            answer_written: status_written(session).is_some(),
        }
    }
}

impl AttemptError {
    /// The reason for an error of Pingora; `reused` as for the connection. None: the backend was not the cause.
    pub(in crate::proxy) fn of(error: &Error, reused: bool) -> Option<Self> {
        if error.esource != ErrorSource::Upstream {
            return None;
        }
        let is_closed =
            matches!(error.etype, ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError);
        let progress = match error.etype {
            ErrorType::H2Error | ErrorType::H2Downgrade if error.retry == RetryType::Decided(true) => {
                AttemptFailure::NotProcessed
            }
            ErrorType::H2Error => AttemptFailure::Unknown,
            _ if is_closed => AttemptFailure::Unknown,
            _ => AttemptFailure::Misbehaved,
        };
        let timeout = match error.etype {
            ErrorType::ReadTimedout => Some(BackendTimeout::Read),
            ErrorType::WriteTimedout => Some(BackendTimeout::Write),
            _ => None,
        };
        Some(Self { progress, timeout, closed_while_idle: reused && is_closed })
    }
}

impl ForwardError {
    /// The fault in the response to the client; none if the client has disconnected.
    pub(in crate::proxy) const fn fault(self) -> Option<Fault> {
        match self {
            Self::Client => None,
            Self::ClientLate => Some(Fault::RequestTimeout),
            Self::TooLarge => Some(Fault::PayloadTooLarge),
            Self::Unavailable => Some(Fault::ServiceUnavailable),
            Self::BackendLate => Some(Fault::GatewayTimeout),
            Self::Backend => Some(Fault::BadGateway),
            Self::Internal => Some(Fault::Internal),
        }
    }

    /// The reason for an error of Pingora.
    pub(in crate::proxy) const fn of(error: &Error) -> Self {
        match (&error.etype, &error.esource) {
            (ErrorType::HTTPStatus(413), _) => Self::TooLarge,
            (ErrorType::HTTPStatus(503), _) => Self::Unavailable,
            (etype, ErrorSource::Upstream) if is_local_shortage(etype) => Self::Unavailable,
            (ErrorType::ReadTimedout, ErrorSource::Downstream) => Self::ClientLate,
            (_, ErrorSource::Downstream) => Self::Client,
            (ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout, _) => {
                Self::BackendLate
            }
            (_, ErrorSource::Upstream) => Self::Backend,
            _ => Self::Internal,
        }
    }

    /// The error that Pingora gets.
    #[expect(clippy::unnecessary_box_returns, reason = "this is how Pingora passes errors")]
    pub(in crate::proxy) fn into_pingora(self) -> Box<Error> {
        match self {
            Self::Unavailable => Error::explain(ErrorType::HTTPStatus(503), "no upstream server"),
            Self::BackendLate => Error::explain(ErrorType::ReadTimedout, "request timeout reached").into_up(),
            Self::ClientLate => {
                Error::explain(ErrorType::ReadTimedout, "request body did not arrive in time").into_down()
            }
            _ => Error::explain(ErrorType::InternalError, "request without a route"),
        }
    }

    /// Whether the client caused it.
    pub(in crate::proxy) const fn is_client(self) -> bool {
        matches!(self, Self::Client | Self::ClientLate | Self::TooLarge)
    }
}

/// The backend has accepted a tunnel, and the attempt has succeeded. From now on the tunnel's idle timeout applies to
/// both sides, and no timeout of a request.
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

/// A part of the response has arrived, or bytes have passed through the tunnel: restarts the read timeout, unless
/// Pingora times it.
pub(in crate::proxy) fn restart_read_timeout(ctx: &Ctx) {
    if let (Some(pause), Some(connection)) = (ctx.attempts.pause, &ctx.connection) {
        connection.set_backend_read_timeout(pause);
    }
}

/// Reports the result of the attempt to the upstream.
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

pub(in crate::proxy) fn upstream_of(ctx: &Ctx) -> Option<&Arc<Upstream>> {
    ctx.routing.upstreams.get(ctx.route.as_ref()?.upstream)
}

/// The random half of the request id.
fn random_bits(ctx: &Ctx) -> u64 {
    ctx.id.0.as_u64_pair().1
}

/// The hash of the key's id.
fn key_of(ctx: &Ctx) -> u64 {
    ctx.admission.as_ref().map_or(0, |admission| hash(admission.entry().key.id.0.as_bytes()))
}

/// The hash that selects a server, if the upstream uses hashing.
fn hash_of(upstream: &Upstream, message: &RequestMessage<'_>, ctx: &Ctx) -> u64 {
    let (Balancing::Hash(by), Some(admission)) = (&upstream.settings.balancing, &ctx.admission) else {
        return 0;
    };
    let key = || key_of(ctx);
    match by {
        HashBy::Key => key(),
        HashBy::EndUser => admission.end_user().map_or_else(key, |id| hash(id.0.as_bytes())),
        HashBy::Header(name) => {
            message.fields.first(name).filter(|value| !value.is_empty()).map_or_else(key, hash)
        }
    }
}
