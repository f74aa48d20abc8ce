//! Serves one request over HTTP/1.1 whose backend speaks HTTP/1.1: decide, forward, respond, record.
//!
//! [`serve`] is the entry point. The routing, header, retry and recording rules are the same functions that are used
//! for HTTP/2, where Pingora carries the messages.
//!
//! *Invariant:* an exchange holds one buffer per direction, of a fixed size, or a large one of a fixed number of them. It
//! holds more of a body only if the body is read ahead or kept for a retry.

mod attempt;
mod body;
mod decide;
pub(super) mod ext_authz;
mod heads;
mod pipe;
mod refuse;
mod tunnel;
mod verify;

pub(super) use heads::spell;

use self::attempt::{Attempt, Broken, Part};
use self::body::RequestBody;
use self::decide::Call;
use self::heads::ParsedHead;
use self::pipe::{Pipe, WireFraming};
use self::tunnel::{Passing, Tunnel};
use super::connection::h1_stream::H1ClientStream;
use super::connection::{BufferedBody, Connection, EXCHANGE_BUFFER};
use super::ctx::Ctx;
use super::message::RequestMessage;
use super::request::attempt::{ForwardError, RetryFacts, restart_read_timeout, upstream_of};
use super::request::body::ReadAhead;
use super::request::decide::coding_of;
use super::request::preflight::EarlyDecision;
use super::request::rewrite::failed_read;
use super::request::tunnel::{is_asked_for, last_frame};
use super::response::reply::Reply;
use super::state::Proxy;
use super::upstream::{ConnectError, Upstream, UpstreamConnection};
use crate::gate::{Denied, Permit};
use crate::model::fault::Fault;
use crate::policy::http::answer::BodyEnd;
use crate::policy::http::field_lines::FieldLines;
use crate::policy::http::head::Framing;
use crate::policy::keys::denial::Denial;
use bytes::{Bytes, BytesMut};
use http::header::EXPECT;
use http::{Method, StatusCode, Version};
use pingora::connectors::TransportConnector;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

/// The interim response for a client that sent `Expect: 100-continue`.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A request as it was read: its normalized head, and the part of the body that arrived with it.
pub(super) struct ReadRequest {
    pub(super) head: BytesMut,
    pub(super) along: Bytes,
    pub(super) framing: Framing,
}

/// Result of serving a request.
pub(super) enum Exchanged {
    /// The client has its response; the connection stays open for the next request.
    Next,
    /// The client has its response; the connection is closed.
    Last,
    /// The client has disconnected, or its response is incomplete.
    Gone,
    /// Pingora must serve the request, with the state so far, because its backend may speak HTTP/2.
    Pingora(Box<Ctx>, ReadRequest),
}

/// What an exchange needs besides the client's connection.
#[derive(Clone, Copy)]
pub(super) struct Server<'x> {
    pub(super) proxy: &'x Arc<Proxy>,
    pub(super) connector: &'x TransportConnector,
    /// Becomes true when the gateway stops.
    pub(super) stop: &'x watch::Receiver<bool>,
    /// Whether requests are decided for a proxy in front, and not forwarded.
    pub(super) decides: bool,
}

/// A request being served.
struct Exchange<'x> {
    server: Server<'x>,
    client: &'x mut H1ClientStream,
    connection: &'x Arc<Connection>,
    message: RequestMessage<'x>,
    ctx: &'x mut Ctx,
    body: RequestBody,
    /// Whether the client's connection can stay open after this request.
    may_stay: bool,
    /// The status of the response, once its head is on the way to the client.
    written: Option<u16>,
    /// Body bytes of the response sent to the client.
    sent: u64,
    /// The call of the proxy that asks about the request; none: it is forwarded.
    asked: Option<Call>,
}

/// The decision about a request.
enum Decision {
    /// Forward it to its backend.
    Forward,
    /// Let Pingora forward it.
    Pingora,
    /// Send this response.
    Answer(Reply),
    /// Refuse it.
    Refuse(Box<Denied>),
}

/// Serves a request. `is_last`: it is the last one its connection may carry.
pub(super) async fn serve(
    server: Server<'_>,
    client: &mut H1ClientStream,
    connection: &Arc<Connection>,
    request: ReadRequest,
    is_last: bool,
) -> Exchanged {
    let mut ctx = Box::new(server.proxy.ctx());
    ctx.connection = Some(Arc::clone(connection));
    if server.decides {
        return decide::serve(server, client, connection, &request, is_last, &mut ctx).await;
    }
    let exchanged = serve_with(server, client, connection, &request, is_last, &mut ctx).await;
    exchanged.unwrap_or(Exchanged::Pingora(ctx, request))
}

/// The same with the state of the request; none: Pingora must continue.
async fn serve_with(
    server: Server<'_>,
    client: &mut H1ClientStream,
    connection: &Arc<Connection>,
    request: &ReadRequest,
    is_last: bool,
    ctx: &mut Ctx,
) -> Option<Exchanged> {
    let (Some(head), Ok(body)) = (ParsedHead::of(&request.head), RequestBody::of(request)) else {
        return Some(Exchanged::Gone);
    };
    let message = head.message(body.exists());
    connection.set_in_exchange(true);
    server.proxy.begin(&message, ctx);
    let may_stay = !is_last && heads::stays_open(&message);
    let (written, sent, asked) = (None, 0, None);
    let mut exchange =
        Exchange { server, client, connection, message, ctx, body, may_stay, written, sent, asked };
    let exchanged = match exchange.decide().await {
        Decision::Answer(reply) => exchange.answer(&reply).await,
        Decision::Refuse(denied) => exchange.refuse(&denied).await,
        Decision::Forward => match exchange.forward().await {
            Ok(()) => exchange.finish().await,
            Err(error) => exchange.fail(error).await,
        },
        Decision::Pingora => {
            connection.set_in_exchange(false);
            return None;
        }
    };
    Some(exchanged)
}

impl Exchange<'_> {
    async fn decide(&mut self) -> Decision {
        let proxy = Arc::clone(self.server.proxy);
        let early = if self.asked.is_some() {
            proxy.decide_preflight(&self.message, self.ctx)
        } else {
            proxy.decide_early(&self.message, self.ctx)
        };
        let decided = match early {
            EarlyDecision::Answer(reply) => return Decision::Answer(reply),
            EarlyDecision::Decided(decided) => decided,
            EarlyDecision::No => match proxy.permit(&self.message, self.ctx) {
                Err(denied) => Err(denied),
                Ok(Some(permit))
                    if proxy.has_to_read_first(&self.message, self.ctx, &permit) && !self.is_ours() =>
                {
                    self.ctx.permit = Some(permit);
                    return Decision::Pingora;
                }
                Ok(Some(permit)) => self.admit(&proxy, permit).await,
                Ok(None) => Ok(()),
            },
        };
        proxy.record_decision_time(self.ctx);
        match decided {
            Err(denied) => Decision::Refuse(denied),
            Ok(()) if self.is_ours() => Decision::Forward,
            Ok(()) => {
                self.ctx.decided = Some(Ok(()));
                Decision::Pingora
            }
        }
    }

    /// Whether the exchange can serve this request to the end: it is not forwarded, its backend speaks HTTP/1.1, or it asks
    /// for a tunnel.
    fn is_ours(&self) -> bool {
        if self.asked.is_some() {
            return true;
        }
        let protocol = upstream_of(self.ctx).map(|upstream| &upstream.settings.protocol);
        protocol.is_some_and(|p| !p.may_be_http2() || (p.may_tunnel() && is_asked_for(&self.message)))
    }

    async fn admit(&mut self, proxy: &Proxy, permit: Permit) -> Result<(), Box<Denied>> {
        let max = proxy.limits.end_user_body_bytes;
        let expects = self.message.fields.first(&EXPECT).is_some();
        let read = read_ahead(self.client, self.connection, &mut self.body, max, expects);
        proxy.admit_reading(&self.message, self.ctx, permit, read).await
    }

    /// Reads the body and changes it, where that is needed.
    async fn prepare_body(&mut self) -> Result<(), ForwardError> {
        let proxy = Arc::clone(self.server.proxy);
        if proxy.has_to_read_for_usage(&self.message, self.ctx) {
            self.ctx.is_read_ahead = true;
            let max = proxy.limits.end_user_body_bytes;
            let expects = self.message.fields.first(&EXPECT).is_some();
            let read = read_ahead(self.client, self.connection, &mut self.body, max, expects).await;
            if let ReadAhead::Whole(body) = read.map_err(|denial| failed_read(&denial))? {
                self.ctx.body = Some(body);
            }
        }
        if let Some(changed) = proxy.change_body(&self.message, self.ctx)? {
            self.body.change(changed);
        }
        Ok(())
    }

    /// Forwards the request, to one server after another until one responds.
    async fn forward(&mut self) -> Result<(), ForwardError> {
        let proxy = Arc::clone(self.server.proxy);
        self.prepare_body().await?;
        if let Some(meter) = &mut self.ctx.meter {
            self.body.read_with(std::mem::take(&mut meter.request));
        }
        loop {
            let left = proxy.choose_server(&self.message, self.ctx)?;
            let upstream = upstream_of(self.ctx).map(Arc::clone).ok_or(ForwardError::Internal)?;
            self.ctx.attempts.pause = Some(upstream.settings.timeouts.read);
            Proxy::await_backend(self.ctx, left);
            let connected = match idle_connection(self.ctx, &upstream) {
                Some(_) if self.connection.close_reason().is_some() => return Err(ForwardError::Client),
                Some(idle) => Ok((idle, true)),
                // Boxed: opening a connection takes a large future, which would be moved for every request.
                None => tokio::select! {
                    biased;
                    () = ended(self.connection) => return Err(ForwardError::Client),
                    opened = Box::pin(open(self.server, self.ctx, &upstream, left)) => opened,
                },
            };
            let (backend, reused) = match connected {
                Ok(connected) => connected,
                Err(error) => {
                    tracing::debug!(
                        request_id = self.ctx.request_id.to_str().unwrap_or(""),
                        ?error,
                        "cannot connect to upstream server"
                    );
                    let facts = self.facts();
                    if proxy.on_connect_failure(self.ctx, error, facts) {
                        continue;
                    }
                    return Err(error.into());
                }
            };
            Proxy::on_connected(self.ctx, reused);
            match self.attempt(&upstream, backend, reused).await {
                Ok(()) => return Ok(()),
                Err(Broken::Other(error)) => {
                    let facts = self.facts();
                    proxy.on_attempt_failure(self.ctx, None, facts);
                    return Err(error);
                }
                Err(Broken::Backend(error)) => {
                    let facts = self.facts();
                    if !proxy.on_attempt_failure(self.ctx, Some(error), facts) {
                        return Err(if error.timeout.is_some() {
                            ForwardError::BackendLate
                        } else {
                            ForwardError::Backend
                        });
                    }
                    self.body.rewind();
                }
            }
        }
    }

    fn facts(&self) -> RetryFacts {
        RetryFacts {
            idempotent: self.message.method.is_idempotent(),
            replayable: self.body.is_replayable(),
            answer_written: self.written.is_some(),
        }
    }

    /// Sends the request over `backend` and passes the response on to the client.
    async fn attempt(
        &mut self,
        upstream: &Arc<Upstream>,
        backend: UpstreamConnection,
        reused: bool,
    ) -> Result<(), Broken> {
        let proxy = Arc::clone(self.server.proxy);
        let server = self.ctx.attempts.current.as_ref().map(|busy| Arc::clone(busy.server()));
        let (head, body_max) = self.request_to_send(upstream)?;
        let mut attempt = Attempt::new(
            (self.client, self.connection, &mut self.body),
            (backend, reused),
            (body_max, upstream.settings.timeouts.write),
            head,
        );
        let (answer, mut read) = loop {
            let (answer, mut read) = attempt.answer_head(|| proxy.on_request_sent(self.ctx)).await?;
            if !answer.is_interim() {
                break (answer, read);
            }
            if self.message.version == Version::HTTP_11 {
                attempt.tell(&heads::interim_head(self.ctx, &answer, &mut read)).await?;
            }
        };
        let (is_upgrade, end) = (answer.status == 101, answer.body_end(*self.message.method == Method::HEAD));
        if is_upgrade && !(self.ctx.attempts.asks_tunnel && answer.is_11) {
            return Err(attempt::misbehaved());
        }
        proxy.on_answer(self.ctx, answer.status);
        if let Some(meter) = &mut self.ctx.meter {
            let fields = FieldLines::new(answer.fields(&mut read));
            let status = StatusCode::from_u16(answer.status).unwrap_or_default();
            meter.answer_head(self.message.method, &self.ctx.request_id, status, &fields);
        }
        let filter = self.ctx.meter.as_mut().and_then(|meter| meter.take_filter());
        // A body of which a part is hidden has no known length.
        let end_shown = if filter.is_some() { BodyEnd::Close } else { end };
        let framing = heads::framing_for(&self.message, end_shown);
        let by_close =
            matches!(end_shown, BodyEnd::Close | BodyEnd::Chunked) && framing == WireFraming::Plain;
        self.may_stay &= !by_close && !is_upgrade && attempt.may_follow() && !*self.server.stop.borrow();
        let told = (framing, self.may_stay);
        let lead =
            heads::answer_head(&proxy, self.ctx, &self.message, (&answer, &mut read, filter.is_some()), told);
        let lead = lead.map_err(|_| Broken::Other(ForwardError::Internal))?;
        // Its memory is read into again.
        drop(read);
        // An invalid start of the body is found here, before any of the response is sent to the client.
        let part = attempt.begin_answer(lead, end, (framing, filter))?;
        proxy.note_first_byte(self.ctx, answer.status);
        self.connection.set_close_ends_answer(by_close);
        self.written = Some(answer.status);
        if is_upgrade {
            let tunnel = attempt.into_tunnel();
            self.tunnel(tunnel).await;
            return Ok(());
        }
        let sent = send_part(&proxy, self.ctx, &mut attempt, part).await;
        self.sent = attempt.sent;
        sent?;
        if let (Some(backend), Some(server)) = (attempt.into_reusable(&answer, end), server) {
            upstream.keep_connection(&server, backend);
        }
        Ok(())
    }

    /// The request head for the backend, and the maximum size of the body.
    fn request_to_send(&mut self, upstream: &Upstream) -> Result<(Vec<u8>, u64), Broken> {
        let head = heads::request_head(self.server.proxy, self.ctx, &self.message, self.body.framing);
        let head = head.ok().flatten().ok_or(Broken::Other(ForwardError::Internal))?;
        if self.message.method.is_idempotent() && upstream.settings.attempts > 1 && self.body.exists() {
            self.body.keep();
        }
        let of_route = self.ctx.route.as_ref().map_or(0, |route| route.max_body_bytes);
        // A body that was read ahead has a limit of its own.
        let body_max = if self.ctx.body.is_some() { u64::MAX } else { of_route };
        if self.body.read > body_max {
            return Err(Broken::Other(ForwardError::TooLarge));
        }
        Ok((head, body_max))
    }

    /// Passes bytes in both directions through a tunnel. `down` holds the first bytes for the client.
    async fn tunnel(&mut self, (backend, down): (UpstreamConnection, Pipe)) {
        let tunnel = Tunnel::new(self.client, self.connection, backend, down);
        let ctx = &mut *self.ctx;
        let passed = tunnel
            .run(|passing| {
                if let (Passing::ToClient(part), Some(frames)) = (passing, ctx.attempts.frames()) {
                    frames.pass(part);
                }
                restart_read_timeout(ctx);
            })
            .await;
        self.body.read = passed.from_client;
        self.sent = passed.from_backend;
        if let Some(frame) = last_frame(self.ctx)
            && let Err(error) = self.write(&frame).await
        {
            tracing::debug!(%error, "cannot write close frame: client disconnected");
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.client.write_all(bytes).await?;
        self.client.flush().await
    }
}

impl Proxy {
    /// Charges the limits and starts the usage record. `read` reads the body, where the admission depends on it.
    async fn admit_reading(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
        permit: Permit,
        read: impl Future<Output = Result<ReadAhead, Denial>>,
    ) -> Result<(), Box<Denied>> {
        if self.has_to_read_first(message, ctx, &permit) {
            let coding = coding_of(message.fields);
            let (permit, name) = self.read_body(ctx, permit, coding, read).await?;
            return self.admit(message, ctx, permit, name).await;
        }
        let name = permit.end_user().outside_body();
        self.admit(message, ctx, permit, name).await
    }
}

/// Sends the rest of a response to the client; `part` is the result for the bytes received so far.
async fn send_part(
    proxy: &Proxy,
    ctx: &mut Ctx,
    attempt: &mut Attempt<'_>,
    mut part: Part,
) -> Result<(), Broken> {
    meter_part(ctx, attempt);
    while let Part::Some = part {
        part = attempt.next_part().await?;
        meter_part(ctx, attempt);
        proxy.check_time_left(ctx).map_err(Broken::Other)?;
    }
    // The request's permits are released, and its hold is settled, before the client can see the end of the response.
    if let (Some(meter), Some(reader)) = (&mut ctx.meter, attempt.body.take_reader()) {
        meter.request = reader;
    }
    Proxy::on_response_complete(ctx, true, attempt.body.read);
    attempt.finish().await
}

/// Shows the meter the part of the response that goes to the client next.
fn meter_part(ctx: &mut Ctx, attempt: &Attempt<'_>) {
    if let Some(meter) = &mut ctx.meter {
        meter.answer_part(attempt.part());
    }
}

/// An idle connection to the chosen server. A tunnel gets one of its own.
fn idle_connection(ctx: &Ctx, upstream: &Upstream) -> Option<UpstreamConnection> {
    let chosen = ctx.attempts.server().filter(|_| !ctx.attempts.asks_tunnel)?;
    upstream.idle_connection(chosen)
}

/// Opens a connection to the chosen server, which is not a reused one.
async fn open(
    server: Server<'_>,
    ctx: &Ctx,
    upstream: &Arc<Upstream>,
    left: Option<Duration>,
) -> Result<(UpstreamConnection, bool), ConnectError> {
    let Some(chosen) = ctx.attempts.server() else { return Err(ConnectError::Failed) };
    upstream.connect(chosen, server.connector, left).await.map(|connection| (connection, false))
}

/// Returns when `connection` is closed by another task.
async fn ended(connection: &Connection) {
    std::future::poll_fn(|context| {
        connection.register_waker(context);
        if connection.close_reason().is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Reads the whole body, unless it is longer than `max` bytes. The bytes count as an upload of `connection`; the request is refused if
/// there is no room for them.
async fn read_ahead(
    client: &mut H1ClientStream,
    connection: &Arc<Connection>,
    body: &mut RequestBody,
    max: u64,
    expects: bool,
) -> Result<ReadAhead, Denial> {
    let late = || Denial::Plain(Fault::RequestTimeout);
    let length = match body.framing {
        Framing::Length(length) if length > max => return Ok(ReadAhead::TooLong(Bytes::new())),
        Framing::Length(length) => Some(length),
        _ => None,
    };
    if expects && !client.is_between_requests() {
        client.write_all(CONTINUE).await.map_err(|_| late())?;
        client.flush().await.map_err(|_| late())?;
    }
    let mut whole = BufferedBody::new(connection, length);
    let mut part = BytesMut::from(&body.here[..]);
    loop {
        if !whole.add(&part) {
            return Err(Denial::Plain(Fault::ServiceUnavailable));
        }
        let is_whole = client.is_between_requests();
        if is_whole || whole.so_far() > max {
            let read = whole.whole();
            body.set_here(read.clone());
            return Ok(if is_whole { ReadAhead::Whole(read) } else { ReadAhead::TooLong(read) });
        }
        part.clear();
        part.reserve(EXCHANGE_BUFFER);
        if client.read_buf(&mut part).await.map_err(|_| late())? == 0 {
            return Err(late());
        }
        let data = body.take(&mut part, connection).map_err(|_| late())?;
        part.truncate(data);
    }
}
