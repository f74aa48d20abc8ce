//! Pingora's phases. Each one only calls the responsible module.

use super::connection::h2_stream::keep_te;
use super::ctx::Ctx;
use super::message::RequestMessage;
use super::message::fields::{edit_request, edit_response, forget_case};
use super::message::headers::{ForwardContext, X_REQUEST_ID, clean_trailers, end_hop};
use super::message::ratelimit::{self};
use super::observe::access::{AccessLogLine, LoggedEnd};
use super::request::attempt::{AttemptError, ForwardError, RetryFacts, restart_read_timeout, upstream_of};
use super::request::body::{forward_part, start_body};
use super::request::forward;
use super::request::outcome::{give_back, outcome_of, release_permits};
use super::request::preflight::EarlyOutcome;
use super::request::rewind;
use super::request::rewrite::set_body_fields;
use super::request::tunnel;
use super::response::reply::{self, DEGRADED};
use super::response::reply::{is_final, status_written};
use super::state::Proxy;
use super::upstream::{ConnectError, cause_of};
use crate::gate::KeylessPermit;
use crate::model::fault::Fault;
use crate::model::usage::Outcome;
use crate::policy::http::field_lines::EditFields;
use crate::policy::http::fields::HeaderFields;
use crate::policy::http::trace::TraceContext;
use crate::policy::keys::denial::Denial;
use crate::policy::meter::RequestReader;
use crate::policy::routing::forward::HostRule;
use crate::usage::PendingRecord;
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of fields that Keygate and Pingora add to a response, besides those for CORS.
const ADDED: usize = ratelimit::FIELDS + 4;

/// The proxy as Pingora calls it. For requests over HTTP/1.1 the decision has been made before ([`super::exchange`]).
pub struct Phases(pub Arc<Proxy>);

impl Deref for Phases {
    type Target = Proxy;

    fn deref(&self) -> &Proxy {
        &self.0
    }
}

#[async_trait]
impl ProxyHttp for Phases {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        self.ctx()
    }

    fn init_downstream_modules(&self, _modules: &mut pingora::modules::http::HttpModules) {}

    fn on_connection_reuse(&self, _session: &mut Session, ctx: &mut Ctx, known: Box<dyn Any + Send + Sync>) {
        if let Ok(known) = known.downcast::<Ctx>() {
            *ctx = *known;
        }
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<bool> {
        self.prepare(session, ctx);
        let decided = if let Some(decided) = ctx.decided.take() {
            decided
        } else {
            let decided = match self.answer_early(session, ctx).await.map_err(Error::into_down)? {
                EarlyOutcome::Answered => return Ok(true),
                EarlyOutcome::Decided(decided) => decided,
                EarlyOutcome::No => self.decide(session, ctx).await,
            };
            self.record_decision_time(ctx);
            decided
        };
        match decided {
            Ok(()) => {
                self.prepare_body(session, ctx).await.map_err(ForwardError::into_pingora)?;
                forget_case(session.req_header_mut());
                Ok(false)
            }
            Err(denied) => {
                let has_body = !session.is_body_empty();
                self.on_refused(&RequestMessage::of(session.req_header(), has_body), ctx, &denied);
                let at = self.clock.now().wall;
                let told = reply::deny(session, ctx, &self.limits, &denied.denial, denied.left.as_ref(), at);
                // If writing the refusal fails, the client has disconnected.
                told.await.map_err(Error::into_down)?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<Box<HttpPeer>> {
        rewind::rewind(session, ctx).await?;
        ctx.body_start.is_sent = false;
        if let Some(meter) = &mut ctx.meter {
            // Another attempt sends the body from its beginning.
            meter.request = RequestReader::default();
        }
        self.next_server(session, ctx).map_err(ForwardError::into_pingora)
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&pingora::protocols::Digest>,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        Proxy::on_connected(ctx, reused);
        Ok(())
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        peer: &HttpPeer,
        ctx: &mut Ctx,
        mut e: Box<Error>,
    ) -> Box<Error> {
        tracing::debug!(request_id = ctx.request_id.to_str().unwrap_or(""), server = %peer, error = e.etype.as_str(), "cannot connect to upstream server");
        let request = RetryFacts::of(session, ctx);
        if let Some(server) = ctx.attempts.server() {
            server.note_connect_error(cause_of(&e));
        }
        e.set_retry(self.on_connect_failure(ctx, ConnectError::of(&e), request));
        e
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        mut e: Box<Error>,
        ctx: &mut Ctx,
        client_reused: bool,
    ) -> Box<Error> {
        tracing::debug!(request_id = ctx.request_id.to_str().unwrap_or(""), server = %peer, error = e.etype.as_str(), "upstream attempt failed");
        let request = RetryFacts::of(session, ctx);
        let again = self.on_attempt_failure(ctx, AttemptError::of(&e, client_reused), request);
        e.set_retry(again);
        e
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        keep_te(session, request)?;
        if session.is_body_empty() {
            // Without a body, a request to a backend over HTTP/2 has no last part that would report this.
            self.on_request_sent(ctx);
        }
        // Pingora does not see a 100 Continue from a backend over HTTP/2, so Keygate sends it.
        let asks_us =
            request.version == Version::HTTP_2 && request.headers.contains_key(http::header::EXPECT);
        if asks_us && !session.is_body_done() {
            session.write_continue_response().await.map_err(Error::into_down)?;
        }
        let trace = self.tracing.forwarded_context(HeaderFields::from(&request.headers), ctx);
        let Some(told) = self.forward_context(ctx, session.req_header().uri.path(), trace) else {
            return Error::e_explain(ErrorType::InternalError, "request not admitted");
        };
        if let Some(path) = &ctx.rewritten {
            forward::set_path(request, path)?;
        }
        let version = session.req_header().version;
        edit_request(request, |fields| {
            ctx.routing.headers.to_backend(fields, &told)?;
            // After `to_backend`, which reports the Host of the client to the backend, and before Pingora checks that
            // both agree.
            forward::set_host(fields, &told.route.forward.host, ctx.attempts.server())?;
            match version {
                Version::HTTP_10 if !fields.contains_key(HOST) => {
                    forward::set_host(fields, &HostRule::Server, ctx.attempts.server())?;
                }
                Version::HTTP_2 => forward::join_cookies(fields)?,
                _ => {}
            }
            forward::apply(fields, &told.route.forward.request);
            if ctx.is_read_ahead || asks_us {
                fields.remove(http::header::EXPECT);
            }
            set_body_fields(fields, ctx);
            Ok(())
        })
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        if end_of_stream {
            self.on_request_sent(ctx);
        }
        if let Some(read_ahead) = &ctx.body {
            // Pingora replays only what it has kept, possibly just the tail, so the copy of the whole body replaces
            // it. The other parts are empty but present: none would mean the end.
            *body = Some(if end_of_stream { read_ahead.clone() } else { Bytes::new() });
            if let (Some(meter), true) = (&mut ctx.meter, end_of_stream) {
                meter.request.push(read_ahead);
            }
            ctx.is_body_sent |= end_of_stream;
            return Ok(());
        }
        if ctx.attempts.is_tunnel() {
            // A tunnel has no body: its bytes have no length limit, and each part restarts the idle timeout of both
            // sides.
            restart_read_timeout(ctx);
            return Ok(());
        }
        start_body(ctx, body);
        ctx.body_bytes += body.as_ref().map_or(0, |b| u64::try_from(b.len()).unwrap_or(u64::MAX));
        if ctx.route.as_ref().is_some_and(|route| ctx.body_bytes > route.max_body_bytes) {
            // The client is the cause. Over HTTP/2, Pingora takes an error without a source for one of the backend,
            // and would wait for the response to a request that never ends.
            return Err(
                Error::explain(ErrorType::HTTPStatus(413), "request body exceeds max_body_bytes").into_down()
            );
        }
        if let (Some(part), Some(meter)) = (&body, &mut ctx.meter) {
            meter.request.push(part);
        }
        if let Some(connection) = &ctx.connection {
            if let (Some(part), Some(rewind)) = (&body, &mut ctx.kept_body) {
                rewind.keep(part, connection);
            }
            forward_part(connection, body, end_of_stream, ctx.body_bytes).await;
        }
        if !end_of_stream {
            Proxy::part_goes(ctx);
        }
        if end_of_stream && body.as_ref().is_some_and(Bytes::is_empty) {
            // Over HTTP/1.1 Pingora would write the end of a chunked body twice, for the empty part and for the end.
            // The backend would read the second as the next request.
            *body = None;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        if !is_final(response.status) {
            // An interim response.
            return edit_response(response, |fields| {
                end_hop(fields, false);
                fields.insert(X_REQUEST_ID, ctx.request_id.clone());
                Ok(())
            });
        }
        forward::check_framing(response)?;
        self.on_answer(ctx, response.status.as_u16());
        if let Some(meter) = &mut ctx.meter {
            let method = &session.req_header().method;
            meter.answer_head(method, &ctx.request_id, response.status, &response.headers);
            if meter.hides_usage() {
                reply::frame_without_length(session, response)?;
            }
        }
        reply::close_if_stopping(session);
        if session.req_header().version == Version::HTTP_10 {
            reply::frame_by_close(session, response, ctx.connection.as_ref())?;
        }
        let is_upgrade = response.status == StatusCode::SWITCHING_PROTOCOLS;
        let origin = session.req_header().headers.get(ORIGIN);
        edit_response(response, |fields| {
            fields.reserve(ADDED);
            self.edit_answer(fields, ctx, is_upgrade, origin)?;
            reply::keep_date(fields, session.req_header().version, ctx);
            Ok(())
        })?;
        self.note_first_byte(ctx, response.status.as_u16());
        ctx.answer_left = reply::body_length(session, response);
        if ctx.answer_left == Some(0) {
            Proxy::on_response_complete(ctx, false, ctx.body_bytes);
        }
        Ok(())
    }

    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Ctx,
    ) -> pingora::Result<Option<Bytes>> {
        clean_trailers(trailers);
        Proxy::on_response_complete(ctx, true, ctx.body_bytes);
        // An event that the backend has not ended.
        let left = ctx.meter.as_mut().and_then(|meter| meter.shown(b"", true));
        Ok(left.filter(|left| !left.is_empty()))
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> pingora::Result<Option<Duration>> {
        if let (Some(part), Some(frames)) = (&body, ctx.attempts.frames()) {
            frames.pass(part);
        }
        if let Some(meter) = &mut ctx.meter {
            let part = body.as_deref().unwrap_or_default();
            meter.answer_part(part);
            if let Some(shown) = meter.shown(part, end_of_stream) {
                *body = Some(shown);
            }
        }
        let mut came = 0;
        if let (Some(part), Some(connection)) = (body, &ctx.connection) {
            came = part.len();
            if connection.is_draining() {
                ctx.drained_bytes += u64::try_from(came).unwrap_or_default();
            }
            connection.on_buffered(part);
        }
        self.check_time_left(ctx).map_err(ForwardError::into_pingora)?;
        ctx.answer_left =
            ctx.answer_left.map(|left| left.saturating_sub(u64::try_from(came).unwrap_or(left)));
        if end_of_stream || ctx.answer_left == Some(0) {
            Proxy::on_response_complete(ctx, true, ctx.body_bytes);
        }
        Ok(None)
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        if ctx.attempts.is_tunnel() {
            tunnel::end(session, ctx).await;
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        if !ctx.attempts.connected {
            give_back(ctx);
        }
        if ctx.is_over {
            // Not a failure of the request: its response was received completely, and the client has it or has not
            // read it.
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        if ctx.was_drained() {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        let Some(denial) = ctx.client_fault().or_else(|| ForwardError::of(e).fault().map(Denial::Plain))
        else {
            // The client has disconnected, so no response is sent.
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let fault = denial.fault();
        if fault == Fault::Internal {
            tracing::error!(request_id = ctx.request_id.to_str().unwrap_or(""), error = %e, "request failed: internal error");
        }
        let error_code = fault.status();
        if status_written(session).is_some() {
            ctx.fault = Some(fault);
            return FailToProxy { error_code, can_reuse_downstream: false };
        }
        let is_over = ctx.connection.as_ref().is_some_and(|connection| connection.close_reason().is_some());
        if !session.is_body_done() || is_over {
            // An unknown part of the request body is still to come, or the connection is being closed.
            session.set_keepalive(None);
        }
        if let Some(connection) = &ctx.connection {
            // The `Date` of a response that was not written.
            drop(connection.take_date());
        }
        let left = ctx.admission.as_ref().map(|a| a.left().clone());
        // The request's permits and its hold are released before the client can read the error.
        ctx.settle_meter(false, ctx.body_bytes);
        release_permits(ctx);
        let at = self.clock.now().wall;
        if let Err(error) = reply::deny(session, ctx, &self.limits, &denial, left.as_ref(), at).await {
            tracing::debug!(%error, "cannot write response: client disconnected");
            return FailToProxy { error_code, can_reuse_downstream: false };
        }
        // After an attempt Pingora drops the connection in any case; the stream is then picked up by the server loop.
        if session.get_keepalive().is_some()
            && session.get_keepalive_reuses_remaining() != Some(0)
            && let Some(connection) = &ctx.connection
        {
            connection.keep_open();
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Ctx) {
        let written = status_written(session);
        let outcome = outcome_of(ctx, e.map(ForwardError::of), written);
        let sent = u64::try_from(session.body_bytes_sent()).unwrap_or(u64::MAX);
        let sent = sent.saturating_sub(ctx.drained_bytes);
        let read = u64::try_from(session.body_bytes_read()).unwrap_or(u64::MAX);
        let has_body = read > 0;
        self.ended(&RequestMessage::of(session.req_header(), has_body), ctx, outcome, written, (read, sent));
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Ctx, _error: &Error) -> bool {
        // Pingora would log the whole request line, including the query. Errors are logged where they are handled.
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Ctx,
        _error: &Error,
        _context: pingora::proxy::ProxyWarnLogContext,
    ) -> bool {
        true
    }

    fn request_summary(&self, session: &Session, ctx: &Ctx) -> String {
        format!("{} {} ({:?})", session.req_header().method, session.req_header().uri.path(), ctx.request_id)
    }
}

impl Proxy {
    /// The context of a request that has just arrived.
    pub(super) fn ctx(&self) -> Ctx {
        Ctx::new(self.clock.now(), self.routing.load_full(), self.metrics.in_flight.clone())
    }

    /// Ends a request: writes its record, metrics and access log. `written` is the status sent to the client, `bytes`
    /// are the body bytes read and sent.
    pub(super) fn ended(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
        outcome: Outcome,
        written: Option<u16>,
        (read, sent): (u64, u64),
    ) {
        if ctx.is_health_check {
            return;
        }
        Self::on_served(ctx, outcome == Outcome::Served || (ctx.is_over && ctx.was_drained()));
        let written = written.filter(|_| !ctx.is_unseen);
        let status = match ctx.fault {
            // gRPC says what failed in a field of its own, with a status of success.
            Some(fault) if ctx.is_answered_by_grpc => fault.status(),
            // nginx's status for a client that disconnects before its response.
            _ => written.unwrap_or(499),
        };
        ctx.settle_meter(outcome == Outcome::Aborted, read);
        let is_logged = self.access.wants(status);
        let server = ctx.record.as_ref().and_then(PendingRecord::server).filter(|_| is_logged).cloned();
        if let Some(mut record) = ctx.record.take() {
            record.bytes(read, sent);
            match (outcome, ctx.fault) {
                (Outcome::Denied, Some(fault)) => record.denied(fault),
                _ => record.complete(outcome, status),
            }
        }
        release_permits(ctx);
        let elapsed = self.elapsed(ctx);
        self.count(ctx, outcome, status, elapsed);
        if is_logged {
            let ended = LoggedEnd { outcome, status, server, bytes: (read, sent), elapsed };
            AccessLogLine::of(message, ctx, &ended).write();
        }
        ctx.note_end(outcome, status);
    }

    fn count(&self, ctx: &Ctx, outcome: Outcome, status: u16, elapsed: Duration) {
        self.metrics.count_request(ctx, (outcome, status), elapsed);
        if let (Outcome::Denied, Some(fault)) = (outcome, ctx.fault) {
            self.metrics.denials.with_label_values(&[fault.name()]).inc();
        }
    }

    /// The facts about a request for the header fields sent to the backend; none if the request was not admitted.
    pub(super) fn forward_context<'r>(
        &self,
        ctx: &'r Ctx,
        path: &'r str,
        trace: Option<TraceContext>,
    ) -> Option<ForwardContext<'r>> {
        let is_admitted = ctx.admission.is_some() || ctx.keyless.is_some();
        let is_preflight = ctx.keyless.as_ref().is_some_and(KeylessPermit::is_preflight);
        let key = ctx.admission.as_ref().map(|admission| admission.entry().of_request());
        Some(ForwardContext {
            admission: ctx.admission.as_ref(),
            is_preflight,
            route: ctx.route.as_ref().filter(|_| is_admitted)?,
            credential: upstream_of(ctx)?.settings.credential_for(key, is_preflight)?,
            request_id: &ctx.request_id,
            address: ctx.address,
            trusted: ctx.connection.as_ref().is_some_and(|c| self.trusted.contains(c.client())),
            secure: ctx.secure,
            rewritten: ctx.rewritten.as_deref().map(|rewritten| (path, rewritten)),
            trace,
        })
    }

    /// Edits the fields of a backend's response for the client.
    pub(super) fn edit_answer(
        &self,
        fields: &mut impl EditFields,
        ctx: &Ctx,
        is_upgrade: bool,
        origin: Option<&HeaderValue>,
    ) -> pingora::Result<()> {
        // Before Keygate's own fields are written, so that the backend's `Connection` can name only its own fields.
        end_hop(fields, is_upgrade);
        if let Some(route) = &ctx.route {
            forward::apply(fields, &route.forward.response);
        }
        fields.insert(X_REQUEST_ID, ctx.request_id.clone());
        if let Some(admission) = &ctx.admission {
            ratelimit::write(fields, self.limits.families, admission.left(), ctx.charged_at, None)?;
        }
        if ctx.degraded {
            fields.insert(DEGRADED.0, DEGRADED.1);
        } else {
            fields.remove(&DEGRADED.0);
        }
        if let Some(cors) = ctx.route.as_ref().and_then(|route| route.cors.as_ref()) {
            cors.mark(fields, origin);
        }
        Ok(())
    }

    /// Records that the response head is about to be sent to the client.
    pub(super) fn note_first_byte(&self, ctx: &mut Ctx, status: u16) {
        let so_far = self.elapsed(ctx).saturating_sub(Duration::from_nanos(ctx.own_ns));
        self.metrics.count_first_byte(ctx, so_far);
        ctx.is_unseen = ctx.was_drained();
        if let Some(record) = ctx.record.as_mut().filter(|_| !ctx.is_unseen) {
            record.first_byte(status);
        }
        if let Some(meter) = &mut ctx.meter {
            meter.answer_begins();
        }
    }

    pub(super) fn elapsed(&self, ctx: &Ctx) -> Duration {
        Duration::from_nanos(self.clock.steady_ns().saturating_sub(ctx.arrived.steady_ns))
    }
}
