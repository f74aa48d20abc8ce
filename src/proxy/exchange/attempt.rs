//! One attempt to forward a request to a server. Request and response move in one task; each direction is polled in
//! turn.
//!
//! Must not know: how the server was chosen, what the heads contain, or whether a failed attempt is retried.
//!
//! *Invariant:* at most one part of each body is in memory; the next part is read after the last one has been
//! written.

use super::body::RequestBody;
use super::pipe::{Pipe, WireFraming};
use crate::policy::http::answer::{AnswerHead, BodyEnd, check_answer};
use crate::policy::http::chunks::ChunkParser;
use crate::policy::http::head::{Framing, find_end};
use crate::policy::meter::UsageEventFilter;
use crate::policy::upstream::retry::AttemptFailure;
use crate::proxy::connection::Connection;
use crate::proxy::connection::h1_stream::H1ClientStream;
use crate::proxy::request::attempt::{AttemptError, ForwardError};
use crate::proxy::upstream::UpstreamConnection;
use bytes::BytesMut;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Maximum size of a response head, in bytes.
const HEAD_MAX: usize = 64 * 1024;
/// Size of one read while a response head is awaited.
const HEAD_AT_ONCE: usize = 16 * 1024;

/// Why an attempt failed, before or during the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The backend failed.
    Backend(AttemptError),
    /// Another failure, for example of the client.
    Other(ForwardError),
}

/// The state of one attempt.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the attempt")]
pub(super) struct Attempt<'a> {
    pub(super) client: &'a mut H1ClientStream,
    pub(super) connection: &'a Arc<Connection>,
    pub(super) body: &'a mut RequestBody,
    pub(super) backend: UpstreamConnection,
    /// Whether the connection to the backend is reused.
    pub(super) reused: bool,
    /// Maximum size of the request body, in bytes.
    pub(super) body_max: u64,
    /// Longest time the backend may take to accept a part of the body.
    pub(super) write_timeout: Duration,
    up: Pipe,
    upload: Upload,
    down: Pipe,
    /// Bytes of the response head received so far, possibly followed by the first bytes of the body.
    head: BytesMut,
    /// Whether the last read of it filled its buffer.
    is_head_large: bool,
    /// Position in the chunks of the response.
    chunks: ChunkParser,
    /// The part of the response body still to be received.
    left: BodyEnd,
    /// How the response body is framed for the client.
    framing: WireFraming,
    /// Whether the backend has sent bytes after the end of its response.
    surplus: bool,
    /// Body bytes of the response written to the client, and body bytes being written.
    pub(super) sent: u64,
    sending: u64,
    /// Whether the last bytes for the client may still be in the buffers of its TLS session.
    is_unflushed: bool,
    /// Hides the usage from the client, who did not ask for it.
    filter: Option<UsageEventFilter>,
    /// Bytes of the pending part as the backend has sent it.
    came: usize,
}

/// State of the upload, which is the request's head and body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upload {
    /// Being sent.
    Going,
    /// Sent completely.
    Done,
    /// The backend accepts no more of it. Its response is still read.
    Refused,
}

/// Result of reading a part of the response body.
pub(super) enum Part {
    /// Some data, to be written to the client.
    Some,
    /// The same, and the response is complete.
    Last,
}

impl<'a> Attempt<'a> {
    /// An attempt that sends `head` and then the body.
    pub(super) fn new(
        (client, connection, body): (&'a mut H1ClientStream, &'a Arc<Connection>, &'a mut RequestBody),
        (backend, reused): (UpstreamConnection, bool),
        (body_max, write_timeout): (u64, Duration),
        head: Vec<u8>,
    ) -> Self {
        let mut up = Pipe::default();
        *up.lead() = head;
        let is_whole = client.is_between_requests();
        up.send_given(body.here.clone(), wire_framing(body.framing), is_whole && body.exists());
        Self {
            client,
            connection,
            body,
            backend,
            reused,
            body_max,
            write_timeout,
            up,
            upload: Upload::Going,
            down: Pipe::default(),
            head: BytesMut::new(),
            is_head_large: false,
            chunks: ChunkParser::new(),
            left: BodyEnd::None,
            framing: WireFraming::Plain,
            surplus: false,
            sent: 0,
            sending: 0,
            is_unflushed: false,
            filter: None,
            came: 0,
        }
    }

    /// Sends the request until the head of a response has arrived. Returns the parsed head and its bytes. Calls
    /// `on_sent` when the request is sent completely.
    pub(super) async fn answer_head(
        &mut self,
        mut on_sent: impl FnMut(),
    ) -> Result<(AnswerHead, BytesMut), Broken> {
        std::future::poll_fn(|context| {
            self.check(context)?;
            let before = self.upload;
            if let Poll::Ready(Err(broken)) = self.poll_upload(context) {
                return Poll::Ready(Err(broken));
            }
            if before != self.upload {
                on_sent();
            }
            match self.poll_head(context) {
                Poll::Pending => {}
                ready @ Poll::Ready(_) => return ready,
            }
            self.poll_client(context).map(Err)
        })
        .await
    }

    /// Writes the head of an interim response (1xx) to the client.
    pub(super) async fn tell(&mut self, head: &[u8]) -> Result<(), Broken> {
        self.down.lead().extend_from_slice(head);
        self.down.send(0..0, WireFraming::Plain, false);
        std::future::poll_fn(|context| {
            self.check(context)?;
            self.poll_give(context)
        })
        .await
    }

    /// Starts the response to the client with the head in `lead`. Bytes received after the backend's head are the
    /// first part of the body. Returns whether they complete the response.
    pub(super) fn begin_answer(
        &mut self,
        lead: Vec<u8>,
        end: BodyEnd,
        (framing, filter): (WireFraming, Option<UsageEventFilter>),
    ) -> Result<Part, Broken> {
        self.body.stop_keeping();
        *self.down.lead() = lead;
        (self.left, self.framing, self.filter) = (end, framing, filter);
        let came = std::mem::take(&mut self.head);
        self.down.set_filled(came, self.is_head_large);
        self.take_part()
    }

    /// Writes the pending part to the client, then reads the next one. The upload continues meanwhile.
    pub(super) async fn next_part(&mut self) -> Result<Part, Broken> {
        std::future::poll_fn(|context| {
            self.check(context)?;
            match self.poll_part(context) {
                Poll::Pending => {}
                ready @ Poll::Ready(_) => return ready,
            }
            if let Poll::Ready(Err(broken)) = self.poll_upload(context) {
                return Poll::Ready(Err(broken));
            }
            self.poll_client(context).map(Err)
        })
        .await
    }

    /// The data of the pending part, as the backend has sent it.
    pub(super) fn part(&self) -> &[u8] {
        self.down.read(self.came)
    }

    /// Writes the last part to the client.
    pub(super) async fn finish(&mut self) -> Result<(), Broken> {
        std::future::poll_fn(|context| self.poll_give(context)).await
    }

    /// The connection to the backend if it can be reused: both messages are complete, and the backend has sent
    /// nothing after its response.
    pub(super) fn into_reusable(self, answer: &AnswerHead, end: BodyEnd) -> Option<UpstreamConnection> {
        let is_clean = self.upload == Upload::Done && !self.surplus && end != BodyEnd::Close;
        (is_clean && answer.may_reuse()).then_some(self.backend)
    }

    /// Whether the client's connection can carry another request: this one has been read completely.
    pub(super) fn may_follow(&self) -> bool {
        self.client.is_between_requests()
    }

    /// Turns the attempt into a tunnel: the connection to the backend, and the bytes already received for the client.
    pub(super) fn into_tunnel(mut self) -> (UpstreamConnection, Pipe) {
        self.down.send_all();
        (self.backend, self.down)
    }

    /// Fails if the backend missed a deadline or the client's connection was closed.
    fn check(&self, context: &Context<'_>) -> Result<(), Broken> {
        self.connection.register_waker(context);
        if let Some(late) = self.connection.backend_late() {
            return Err(Broken::Backend(AttemptError {
                progress: AttemptFailure::Misbehaved,
                timeout: Some(late),
                closed_while_idle: false,
            }));
        }
        match self.connection.close_reason() {
            Some(_) => Err(Broken::Other(ForwardError::Client)),
            None => Ok(()),
        }
    }

    /// Sends as much of the request as possible. Ready when it is sent completely or refused.
    fn poll_upload(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while self.upload == Upload::Going {
            let Self { up, backend, connection, .. } = self;
            let drained = up.poll_drain(|bytes| {
                let polled = Pin::new(&mut *backend).poll_write_vectored(context, bytes);
                if polled.is_ready() {
                    // It may pause as long after each part of a part.
                    connection.backend_has_taken();
                }
                polled
            });
            let drained = match drained {
                Poll::Ready(Ok(())) => Pin::new(&mut self.backend).poll_flush(context),
                other => other,
            };
            match drained {
                Poll::Ready(Ok(())) => self.connection.backend_has_taken(),
                Poll::Ready(Err(_)) => {
                    // The backend may have sent a response before it closed its side.
                    self.upload = Upload::Refused;
                    self.connection.backend_has_taken();
                    self.up = Pipe::default();
                    break;
                }
                Poll::Pending => {
                    self.connection.backend_must_take(self.write_timeout);
                    return Poll::Pending;
                }
            }
            if self.client.is_between_requests() {
                self.upload = Upload::Done;
                // The response may take long, and nothing is sent meanwhile.
                self.up = Pipe::default();
                break;
            }
            ready!(self.poll_body(context))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads the next part of the request body.
    fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let gone = Broken::Other(ForwardError::Client);
        let Self { up, client, connection, .. } = self;
        // Chunks are read in small parts: where they end is not known before.
        let is_chunked = self.body.framing == Framing::Chunked;
        let larger = || if is_chunked { None } else { connection.large_buffer() };
        let came = ready!(up.poll_fill(*client, context, larger)).map_err(|_| gone)?;
        if came == 0 {
            return Poll::Ready(Err(gone));
        }
        let data = self.body.take(self.up.filled(), self.connection).map_err(|_| gone)?;
        if self.body.read > self.body_max {
            return Poll::Ready(Err(Broken::Other(ForwardError::TooLarge)));
        }
        let is_last = self.client.is_between_requests();
        self.up.send(0..data, wire_framing(self.body.framing), is_last);
        Poll::Ready(Ok(()))
    }

    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<(AnswerHead, BytesMut), Broken>> {
        let mut searched = 0;
        loop {
            if let Some(end) = find_end(&self.head, searched) {
                let came = self.head.split_off(end);
                let bytes = std::mem::replace(&mut self.head, came);
                let head = check_answer(&bytes).map_err(|_| misbehaved())?;
                return Poll::Ready(Ok((head, bytes)));
            }
            searched = self.head.len();
            if searched > HEAD_MAX {
                return Poll::Ready(Err(misbehaved()));
            }
            self.head.reserve(HEAD_AT_ONCE);
            match ready!(poll_read_buf(Pin::new(&mut self.backend), context, &mut self.head)) {
                Ok(read @ 1..) => self.is_head_large = read >= HEAD_AT_ONCE,
                Ok(0) | Err(_) => return Poll::Ready(Err(self.closed())),
            }
        }
    }

    /// The error for a connection that the backend has closed.
    fn closed(&self) -> Broken {
        let closed_while_idle = self.reused && self.head.is_empty();
        Broken::Backend(AttemptError { progress: AttemptFailure::Unknown, timeout: None, closed_while_idle })
    }

    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Result<Part, Broken>> {
        ready!(self.poll_give(context))?;
        loop {
            let Self { down, backend, connection, .. } = self;
            match ready!(down.poll_fill(backend, context, || connection.large_buffer())) {
                Ok(0) | Err(_) if self.left != BodyEnd::Close => return Poll::Ready(Err(self.closed())),
                Ok(0) => self.left = BodyEnd::None,
                Ok(_) => {}
                Err(_) => return Poll::Ready(Err(self.closed())),
            }
            let part = self.take_part()?;
            // A part with only chunk framing holds no data for the client.
            if matches!(part, Part::Last) || self.came > 0 {
                return Poll::Ready(Ok(part));
            }
        }
    }

    /// Decodes the bytes just read into the next part of the response.
    fn take_part(&mut self) -> Result<Part, Broken> {
        let came = self.down.filled();
        let (data, taken, is_last) = match &mut self.left {
            BodyEnd::None => (0, 0, true),
            BodyEnd::Close => (came.len(), came.len(), false),
            BodyEnd::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(came.len());
                *left -= here as u64;
                (here, here, *left == 0)
            }
            BodyEnd::Chunked => {
                let (data, taken) = self.chunks.decode(came).map_err(|_| misbehaved())?;
                (data, taken, self.chunks.is_done())
            }
        };
        self.surplus |= taken < came.len();
        self.came = data;
        let is_end = is_last && self.framing == WireFraming::Chunked;
        let Some(filter) = &mut self.filter else {
            self.sending = data as u64;
            self.down.send(0..data, self.framing, is_end);
            return Ok(if is_last { Part::Last } else { Part::Some });
        };
        let mut shown = Vec::with_capacity(data);
        filter.push(self.down.read(data), &mut shown);
        if is_last {
            filter.finish(&mut shown);
        }
        self.sending = shown.len() as u64;
        self.down.send_given(shown.into(), self.framing, is_end);
        Ok(if is_last { Part::Last } else { Part::Some })
    }

    /// Writes the pending part to the client.
    fn poll_give(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Self { down, client, .. } = self;
        let gone = Broken::Other(ForwardError::Client);
        if !down.is_empty() {
            ready!(down.poll_drain(|bytes| client.poll_send(context, bytes))).map_err(|_| gone)?;
            self.is_unflushed = true;
        }
        if self.is_unflushed {
            ready!(Pin::new(&mut *self.client).poll_flush(context)).map_err(|_| gone)?;
            self.is_unflushed = false;
            let sent = std::mem::take(&mut self.sending);
            if !self.client.is_sink() {
                self.sent += sent;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the client has disconnected. Only checked once the request has been read completely.
    fn poll_client(&mut self, context: &mut Context<'_>) -> Poll<Broken> {
        if !self.client.is_between_requests() {
            return Poll::Pending;
        }
        let mut nothing = [0; 1];
        let polled = Pin::new(&mut *self.client).poll_read(context, &mut ReadBuf::new(&mut nothing));
        polled.map(|_| Broken::Other(ForwardError::Client))
    }
}

/// The error for a response that is invalid.
pub(super) fn misbehaved() -> Broken {
    Broken::Backend(AttemptError {
        progress: AttemptFailure::Misbehaved,
        timeout: None,
        closed_while_idle: false,
    })
}

fn wire_framing(framing: Framing) -> WireFraming {
    if framing == Framing::Chunked { WireFraming::Chunked } else { WireFraming::Plain }
}
