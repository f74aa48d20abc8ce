//! One attempt at a server: the request goes there while the answer comes back, in one task and by one poll after the other.
//!
//! Must not know: which server it is, what is told to whom, or what becomes of a failure.
//!
//! *Invariant:* of each body there is at most one part in memory, and nothing more is read until it has been written.

use super::body::RequestBody;
use super::pipe::{Pipe, WireFraming};
use crate::policy::http::answer::{AnswerHead, BodyEnd, check_answer};
use crate::policy::http::chunks::ChunkParser;
use crate::policy::http::head::{Framing, find_end};
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

/// Most bytes of the head of an answer.
const HEAD_MAX: usize = 64 * 1024;
/// Read at once while a head is awaited.
const HEAD_AT_ONCE: usize = 16 * 1024;

/// Why an attempt ended without an answer, or within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// By the backend.
    Backend(AttemptError),
    /// Otherwise.
    Other(ForwardError),
}

/// What one attempt moves.
pub(super) struct Attempt<'a> {
    pub(super) client: &'a mut H1ClientStream,
    pub(super) connection: &'a Arc<Connection>,
    pub(super) body: &'a mut RequestBody,
    pub(super) backend: UpstreamConnection,
    /// Whether the connection to the backend was used before.
    pub(super) reused: bool,
    /// Most bytes of the request's body.
    pub(super) body_max: u64,
    /// How long the backend may take to take a part of it.
    pub(super) write_timeout: Duration,
    up: Pipe,
    upload: Upload,
    down: Pipe,
    /// What has come of the answer's head, and perhaps behind it.
    head: BytesMut,
    /// How far into an answer's chunks we are.
    chunks: ChunkParser,
    /// What of the answer's body is still to come.
    left: BodyEnd,
    /// How it goes on.
    framing: WireFraming,
    /// Whether the backend has sent more than its answer.
    surplus: bool,
    /// Bytes of the answer's body that the client has been given, and of those that are being written.
    pub(super) sent: u64,
    sending: u64,
}

/// How far the request is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upload {
    /// On its way.
    Going,
    /// Sent.
    Done,
    /// The backend takes no more of it. What it has answered is still read.
    Refused,
}

/// What became of waiting for a part of the answer.
pub(super) enum Part {
    /// Something has come, and is to go to the client.
    Some,
    /// With that the answer is whole.
    Last,
}

impl<'a> Attempt<'a> {
    /// One that sends `head` and then the body.
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
            chunks: ChunkParser::new(),
            left: BodyEnd::None,
            framing: WireFraming::Plain,
            surplus: false,
            sent: 0,
            sending: 0,
        }
    }

    /// Sends the request until its answer's head has come, which is at the front of what is answered. `on_sent` is called when
    /// all has been sent.
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

    /// Writes `head` to the client: word that an answer will come.
    pub(super) async fn tell(&mut self, head: &[u8]) -> Result<(), Broken> {
        self.down.lead().extend_from_slice(head);
        self.down.send(0..0, WireFraming::Plain, false);
        std::future::poll_fn(|context| {
            self.check(context)?;
            self.poll_give(context)
        })
        .await
    }

    /// Begins to give the answer to the client: its head is `lead`, and what has come behind the head that was read is the first
    /// part of its body. Answers whether that is all.
    pub(super) fn begin_answer(
        &mut self,
        lead: Vec<u8>,
        end: BodyEnd,
        framing: WireFraming,
    ) -> Result<Part, Broken> {
        self.body.stop_keeping();
        *self.down.lead() = lead;
        (self.left, self.framing) = (end, framing);
        let came = std::mem::take(&mut self.head);
        self.down.set_filled(came);
        self.take_part()
    }

    /// Gives the client what is to go out, and reads the next part then. Meanwhile the request goes on.
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

    /// Gives the client the last of it.
    pub(super) async fn finish(&mut self) -> Result<(), Broken> {
        std::future::poll_fn(|context| self.poll_give(context)).await
    }

    /// The connection to the backend, if it may be used again: both messages have come to their ends, and nothing behind them.
    pub(super) fn into_reusable(self, answer: &AnswerHead, end: BodyEnd) -> Option<UpstreamConnection> {
        let is_clean = self.upload == Upload::Done && !self.surplus && end != BodyEnd::Close;
        (is_clean && answer.may_reuse()).then_some(self.backend)
    }

    /// Whether another request may follow this one on the client's connection: this one has been read.
    pub(super) fn may_follow(&self) -> bool {
        self.client.is_between_requests()
    }

    /// The connection to the backend, which is a tunnel from now on, and what has come through it for the client.
    pub(super) fn into_tunnel(mut self) -> (UpstreamConnection, Pipe) {
        self.down.send_all();
        (self.backend, self.down)
    }

    /// Whether the backend is late, or the connection was ended.
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

    /// Sends the request as far as it goes. Ready: all of it is sent, or refused.
    fn poll_upload(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while self.upload == Upload::Going {
            let Self { up, backend, .. } = self;
            let drained = up.poll_drain(|bytes| Pin::new(&mut *backend).poll_write_vectored(context, bytes));
            let drained = match drained {
                Poll::Ready(Ok(())) => Pin::new(&mut self.backend).poll_flush(context),
                other => other,
            };
            match drained {
                Poll::Ready(Ok(())) => self.connection.backend_has_taken(),
                Poll::Ready(Err(_)) => {
                    // Who closes its side may have answered before.
                    self.upload = Upload::Refused;
                    self.connection.backend_has_taken();
                    break;
                }
                Poll::Pending => {
                    self.connection.backend_must_take(self.write_timeout);
                    return Poll::Pending;
                }
            }
            if self.client.is_between_requests() {
                self.upload = Upload::Done;
                break;
            }
            ready!(self.poll_body(context))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads the next part of the request's body.
    fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let gone = Broken::Other(ForwardError::Client);
        let came = ready!(self.up.poll_fill(self.client, context)).map_err(|_| gone)?;
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
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(Err(self.closed())),
            }
        }
    }

    /// The backend's connection has ended.
    fn closed(&self) -> Broken {
        let closed_while_idle = self.reused && self.head.is_empty();
        Broken::Backend(AttemptError { progress: AttemptFailure::Unknown, timeout: None, closed_while_idle })
    }

    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Result<Part, Broken>> {
        ready!(self.poll_give(context))?;
        loop {
            match ready!(self.down.poll_fill(&mut self.backend, context)) {
                Ok(0) | Err(_) if self.left != BodyEnd::Close => return Poll::Ready(Err(self.closed())),
                Ok(0) => self.left = BodyEnd::None,
                Ok(_) => {}
                Err(_) => return Poll::Ready(Err(self.closed())),
            }
            let part = self.take_part()?;
            // Framing alone is nothing to give.
            if matches!(part, Part::Last) || !self.down.is_empty() {
                return Poll::Ready(Ok(part));
            }
        }
    }

    /// Takes what was read for the next part of the answer.
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
        self.sending = data as u64;
        let is_end = is_last && self.framing == WireFraming::Chunked;
        self.down.send(0..data, self.framing, is_end);
        Ok(if is_last { Part::Last } else { Part::Some })
    }

    /// Gives the client what is to go out.
    fn poll_give(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Self { down, client, .. } = self;
        let gone = Broken::Other(ForwardError::Client);
        if !down.is_empty() {
            ready!(down.poll_drain(|bytes| client.poll_send(context, bytes))).map_err(|_| gone)?;
            ready!(Pin::new(&mut *self.client).poll_flush(context)).map_err(|_| gone)?;
            self.sent += std::mem::take(&mut self.sending);
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the client has left, once all of its request has been read.
    fn poll_client(&mut self, context: &mut Context<'_>) -> Poll<Broken> {
        if !self.client.is_between_requests() {
            return Poll::Pending;
        }
        let mut nothing = [0; 1];
        let polled = Pin::new(&mut *self.client).poll_read(context, &mut ReadBuf::new(&mut nothing));
        polled.map(|_| Broken::Other(ForwardError::Client))
    }
}

/// The backend has sent what makes no sense.
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
