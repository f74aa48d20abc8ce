//! A stream of a client's HTTP/2 connection as a Pingora session: one request and its response.
//!
//! Pingora's own session for streams cannot be interrupted while it waits for the client, and refuses some requests
//! without a response. Here closing a stream also ends its wait, so that the client gets a response, and every
//! request that passes the HTTP/2 layer is checked by Keygate.
//!
//! Must not know: which deadline has passed, or what a refusal says.

use super::Connection;
use async_trait::async_trait;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, Request, Response, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::body_buffer::FixedBuffer;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server as custom;
use pingora::protocols::http::date::get_cached_date;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, OrErr, Result};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Maximum size of a body that Pingora can send again: as much as it keeps over HTTP/1.1.
const REPLAYED: usize = 64 * 1024;
/// Response fields that have no meaning in HTTP/2.
const OF_ONE_HOP: [HeaderName; 5] = [
    TRANSFER_ENCODING,
    CONNECTION,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Messages beside the body, which HTTP does not have.
type CustomMessages = Box<dyn futures_util::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;

/// A client's stream.
pub(in crate::proxy) struct H2ClientStream {
    head: RequestHeader,
    body: RecvStream,
    read: usize,
    replay: Option<FixedBuffer>,
    respond: SendResponse<Bytes>,
    answer: Option<Box<ResponseHeader>>,
    /// The writer of the response body, once the head is sent.
    writer: Option<SendStream<Bytes>>,
    written: usize,
    /// Whether the response is complete.
    ended: bool,
    /// Whether the client has left and its answer is read on: what is written goes nowhere.
    is_sink: bool,
    /// Whether the response is only a head, which is withheld until the request's permits are released.
    kept: bool,
    write_within: Option<Duration>,
    drain_within: Option<Duration>,
    connection: Arc<Connection>,
}

/// Passes `TE: trailers` of an HTTP/2 client on to a backend over HTTP/2: gRPC sends its status in trailers. Pingora
/// removes `TE` as a hop-by-hop field.
pub(in crate::proxy) fn keep_te(session: &Session, request: &mut RequestHeader) -> Result<()> {
    let client = session.req_header();
    let both = client.version == Version::HTTP_2 && request.version == Version::HTTP_2;
    if both && client.headers.get(TE).is_some_and(|te| te.as_bytes() == b"trailers") {
        request.insert_header(TE, "trailers")?;
    }
    Ok(())
}

// === impl H2ClientStream ===

impl H2ClientStream {
    /// A session for a new request.
    pub(in crate::proxy) fn session(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        connection: Arc<Connection>,
    ) -> ServerSession {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(Arc::clone(&connection));
        ServerSession::Custom(Box::new(Self {
            head: parts.into(),
            body,
            read: 0,
            replay: None,
            respond,
            answer: None,
            writer: None,
            written: 0,
            ended: false,
            is_sink: false,
            kept: false,
            write_within: None,
            drain_within: None,
            connection,
        }))
    }

    fn is_empty(&self) -> bool {
        let says_so = || self.head.headers.get(CONTENT_LENGTH).is_some_and(|l| l.as_bytes() == b"0");
        self.read == 0 && (self.body.is_end_stream() || says_so())
    }

    fn is_read(&self) -> bool {
        self.is_empty() || self.body.is_end_stream()
    }

    /// The next part of the body, or an error when the stream is closed. Closing it wakes the task that polls this.
    async fn next_part(&mut self) -> Result<Option<Bytes>> {
        let (body, connection) = (&mut self.body, &self.connection);
        connection.backend_has_taken();
        let came = std::future::poll_fn(|context| match ended(connection) {
            Some(late) => Poll::Ready(Some(Err(late))),
            None => body
                .poll_data(context)
                .map(|came| came.map(|part| part.or_err(ErrorType::ReadError, "a part of a request's body"))),
        });
        let Some(part) = came.await.transpose()? else { return Ok(None) };
        self.read += part.len();
        if let Some(replay) = &mut self.replay {
            replay.write_to_buffer(&part);
        }
        // If the stream was reset meanwhile, the next read reports it.
        self.body.flow_control().release_capacity(part.len()).ok();
        Ok(Some(part))
    }

    /// Returns when the client resets the stream or disconnects, or when the stream is closed. A client whose answer is read on may
    /// do both.
    async fn client_gone(&mut self) -> Error {
        let reason = std::future::poll_fn(|context| match ended(&self.connection) {
            Some(late) => Poll::Ready(Err(late)),
            // The task is woken when the stream is closed.
            None if self.is_sink => Poll::Pending,
            None => match self.poll_reset(context) {
                Poll::Ready(_) if self.become_sink() => Poll::Pending,
                polled => polled.map(Ok),
            },
        });
        match reason.await {
            Ok(Ok(reason)) => {
                *Error::explain(ErrorType::H2Error, format!("client reset the stream: {reason}"))
            }
            Ok(Err(error)) => *Error::because(ErrorType::H2Error, "client reset the stream", error),
            Err(late) => *late,
        }
    }

    /// The client has left after it has sent its whole request. Returns whether its answer is read on.
    fn become_sink(&mut self) -> bool {
        self.is_sink = self.is_sink || (self.is_read() && self.connection.begin_drain());
        self.is_sink
    }

    /// The result of a write, which succeeds if the client has left and its answer is read on.
    fn unless_sink<T: Default>(&mut self, written: Result<T>) -> Result<T> {
        match written {
            Err(error) if error.etype != ErrorType::WriteTimedout && self.become_sink() => Ok(T::default()),
            written => written,
        }
    }

    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<std::result::Result<Reason, h2::Error>> {
        match &mut self.writer {
            Some(writer) => writer.poll_reset(context),
            None => self.respond.poll_reset(context),
        }
    }

    fn write_head(&mut self, mut answer: Box<ResponseHeader>, end: bool) -> Result<()> {
        if self.ended || self.answer.is_some() {
            return Ok(());
        }
        let is_interim = answer.status.is_informational();
        if !is_interim && !answer.headers.contains_key(DATE) {
            answer.insert_header(DATE, get_cached_date())?;
        }
        for name in &OF_ONE_HOP {
            answer.remove_header(name);
        }
        if is_interim {
            let interim = Response::from_parts(answer.as_owned_parts(), ());
            let sent = self.respond.send_informational(interim);
            let sent = sent.or_err(ErrorType::WriteError, "an interim answer");
            return self.unless_sink(sent);
        }
        self.answer = Some(answer);
        self.ended = end;
        if end && !self.connection.release_at_end() {
            self.kept = true;
            return Ok(());
        }
        self.send_head(end)
    }

    fn send_head(&mut self, end: bool) -> Result<()> {
        let Some(answer) = self.answer.as_ref().filter(|_| !self.is_sink) else { return Ok(()) };
        let response = Response::from_parts(answer.as_owned_parts(), ());
        let writer =
            self.respond.send_response(response, end).or_err(ErrorType::WriteError, "the head of an answer");
        self.writer = self.unless_sink(writer.map(Some))?;
        Ok(())
    }

    /// Writes a part as the client's flow control window allows, unless the stream is cut off. `is_last`: no further
    /// part is known.
    async fn write_part(&mut self, mut part: Bytes, end: bool, is_last: bool) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        if part.is_empty() {
            return if end { self.write_end(None) } else { Ok(()) };
        }
        while !part.is_empty() {
            let room = if self.is_sink { Ok(0) } else { self.room_for(part.len()).await };
            let room = self.unless_sink(room)?.min(part.len());
            // Nobody takes the rest.
            let room = if self.is_sink { part.len() } else { room };
            let piece = part.split_to(room);
            let is_end = part.is_empty();
            if is_end && is_last {
                // Releases the request's permits if this is known to be the end of the response.
                self.connection.release_at_end();
            }
            if !self.is_sink {
                let Some(writer) = &mut self.writer else { return Ok(()) };
                let sent = writer.send_data(piece, end && is_end);
                let sent = sent.or_err(ErrorType::WriteError, "a part of an answer");
                self.unless_sink(sent).map_err(Error::into_down)?;
            }
            self.connection.on_flushed(room);
            self.written += room;
        }
        self.ended = end;
        Ok(())
    }

    /// Waits until the client's window has room for some of `bytes` bytes. Returns how many.
    async fn room_for(&mut self, bytes: usize) -> Result<usize> {
        let Some(writer) = &mut self.writer else {
            return Error::e_explain(ErrorType::InternalError, "a body before its head");
        };
        writer.reserve_capacity(bytes);
        let mut waits = self.connection.part_wait_guard();
        let room = std::future::poll_fn(|context| {
            if self.connection.is_cut_off() {
                return Poll::Ready(Error::e_explain(ErrorType::WriteError, "stream closed by the gateway"));
            }
            let polled = writer.poll_capacity(context);
            waits.set(polled.is_pending());
            polled.map(|room| match room {
                Some(room) => room.or_err(ErrorType::WriteError, "a part of an answer"),
                None => Error::e_explain(ErrorType::WriteError, "the client takes no more"),
            })
        });
        let room = match self.write_within {
            None => room.await,
            Some(within) => tokio::time::timeout(within, room)
                .await
                .unwrap_or_else(|_| Error::e_explain(ErrorType::WriteTimedout, "the client takes nothing")),
        };
        room.map_err(Error::into_down)
    }

    /// Writes a head that was withheld.
    fn let_go(&mut self) -> Result<()> {
        if std::mem::take(&mut self.kept) { self.send_head(true) } else { Ok(()) }
    }

    fn write_end(&mut self, trailers: Option<HeaderMap>) -> Result<()> {
        let Some(writer) = self.writer.as_mut().filter(|_| !self.ended) else { return Ok(()) };
        self.connection.release_at_end();
        if self.is_sink {
            self.ended = true;
            return Ok(());
        }
        let written = match trailers {
            Some(trailers) => writer.send_trailers(trailers),
            None => writer.send_data(Bytes::new(), true),
        };
        self.ended = true;
        let written = written.or_err(ErrorType::WriteError, "the end of an answer");
        self.unless_sink(written)
    }
}

impl Drop for H2ClientStream {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            tracing::trace!(%error, "a client was gone before it was answered");
        }
    }
}

/// The error for a task that waits for the client of a stream that is being closed.
fn ended(connection: &Connection) -> Option<Box<Error>> {
    connection.close_reason().map(|_| Error::explain(ErrorType::ReadTimedout, "stream closed by the gateway"))
}

#[async_trait]
impl custom::Session for H2ClientStream {
    fn req_header(&self) -> &RequestHeader {
        &self.head
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.head
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.next_part().await
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if no_body_expected || self.is_read() {
            return Err(Box::new(self.client_gone().await));
        }
        self.next_part().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        let within = self.drain_within;
        let drain = async {
            while !self.is_read() && self.next_part().await?.is_some() {}
            Ok(())
        };
        match within {
            None => drain.await,
            Some(within) => tokio::time::timeout(within, drain).await.unwrap_or_else(|_| {
                Error::e_explain(ErrorType::ReadTimedout, "the rest of a request's body does not come")
            }),
        }
    }

    async fn write_response_header(&mut self, answer: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.write_head(answer, end)
    }

    async fn write_response_header_ref(&mut self, answer: &ResponseHeader, end: bool) -> Result<()> {
        self.write_head(Box::new(answer.clone()), end)
    }

    async fn write_body(&mut self, part: Bytes, end: bool) -> Result<()> {
        self.write_part(part, end, true).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.write_end(Some(trailers))
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut is_last = false;
        let mut parts = tasks
            .iter()
            .filter(|task| matches!(task, HttpTask::Body(Some(part), _) if !part.is_empty()))
            .count();
        for task in tasks {
            is_last |= task.is_end();
            match task {
                HttpTask::Header(answer, end) => self.write_head(answer, end).map_err(Error::into_down)?,
                HttpTask::Body(Some(part), end) if !part.is_empty() => {
                    parts -= 1;
                    self.write_part(part, end, parts == 0).await?;
                }
                HttpTask::Trailer(Some(trailers)) => {
                    self.write_end(Some(*trailers)).map_err(Error::into_down)?;
                }
                HttpTask::Body(..) | HttpTask::Trailer(None) | HttpTask::Done => {}
                HttpTask::UpgradedBody(..) => {
                    return Error::e_explain(ErrorType::InternalError, "a tunnel over HTTP/2");
                }
                HttpTask::Failed(error) => return Err(error),
            }
        }
        if is_last {
            self.write_end(None).map_err(Error::into_down)?;
        }
        Ok(is_last)
    }

    async fn finish(&mut self) -> Result<()> {
        // Pingora calls this twice: at the end of the response, and at the end of the request.
        if self.connection.holds_no_permits() {
            self.let_go()?;
        }
        self.write_end(None)
    }

    async fn shutdown(&mut self, _code: u32, _: &str) {
        if !self.ended {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.answer.as_deref()
    }

    fn is_body_done(&mut self) -> bool {
        self.is_read()
    }

    fn is_body_empty(&mut self) -> bool {
        self.is_empty()
    }

    fn body_bytes_sent(&self) -> usize {
        self.written
    }

    fn body_bytes_read(&self) -> usize {
        self.read
    }

    fn enable_retry_buffering(&mut self) {
        self.replay.get_or_insert_with(|| FixedBuffer::new(REPLAYED));
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.replay.as_ref().is_some_and(FixedBuffer::is_truncated)
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        let Some(replay) = self.replay.as_ref().filter(|replay| !replay.is_truncated()) else {
            return self.connection.rewound();
        };
        // If the body was read before buffering was enabled, the buffer is empty, but it still tells Pingora to send
        // the body.
        replay.get_buffer().or_else(|| (self.read > 0 && self.body.is_end_stream()).then(Bytes::new))
    }

    fn set_write_timeout(&mut self, within: Option<Duration>) {
        self.write_within = within;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_within
    }

    fn set_total_drain_timeout(&mut self, within: Option<Duration>) {
        self.drain_within = within;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.drain_within
    }

    // The connection has the read deadlines and the addresses. HTTP/2 has no equivalent of the rest.

    fn set_read_timeout(&mut self, _: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn request_summary(&self) -> String {
        format!("{} {}", self.head.method, self.head.uri.path())
    }

    fn digest(&self) -> Option<&Digest> {
        None
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        None
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<CustomMessages> {
        None
    }

    fn restore_custom_message_reader(&mut self, _: CustomMessages) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
