//! Where a request has been: the server it is at, those it could not be served by, what it holds there.
//!
//! Must not know: when a request is sent again.

use super::{Busy, Failure, Opening, Seat, Server, Upstream};
use crate::policy::http::websocket::Frames;
use crate::proxy::upstream::Stream;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

/// Where a request has been.
#[derive(Default)]
pub struct Trip {
    pub(in crate::proxy) seat: Option<Seat>,
    /// What opens a connection, where not all may wait for one.
    pub(in crate::proxy) opening: Option<Arc<Opening>>,
    /// The server it is at.
    pub(in crate::proxy) busy: Option<Busy>,
    /// Those it could not be served by.
    pub(in crate::proxy) tried: SmallVec<[Arc<Server>; 2]>,
    pub(in crate::proxy) attempts: u32,
    /// Whether a connection to a backend stood.
    pub reached: bool,
    /// What of an answer has come.
    pub(in crate::proxy) answer: Answer,
    /// Whether its connection counts the backend's time.
    pub(in crate::proxy) is_awaited: bool,
    /// How long the backend may pause, where the connection counts that as well and not Pingora. Of a tunnel, how long
    /// both sides may.
    pub(in crate::proxy) pause: Option<Duration>,
    /// What HTTP/2 connections are chosen by, where it may be spoken.
    pub(in crate::proxy) stream: Option<Stream>,
    /// Whether the request asks for a tunnel.
    pub(in crate::proxy) asks_tunnel: bool,
    /// The tunnel that it has become, by what has passed to the client.
    pub(in crate::proxy) tunnel: Option<Frames>,
    /// Why the last attempt that failed did.
    pub(in crate::proxy) failure: Option<Failure>,
}

/// How far an answer is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::proxy) enum Answer {
    #[default]
    None,
    /// Its head has come, and nothing stands against its server so far.
    Well,
    /// Its server has been judged by it.
    Judged,
}

impl Trip {
    /// The server it is at.
    pub(in crate::proxy) fn server(&self) -> Option<&Server> {
        self.busy.as_deref()
    }

    pub(in crate::proxy) fn is_answered(&self) -> bool {
        self.answer != Answer::None
    }

    /// Whether it has become a tunnel.
    pub(in crate::proxy) const fn is_tunnel(&self) -> bool {
        self.tunnel.is_some()
    }

    /// The frames that have passed to the client, where it has become a tunnel.
    pub(in crate::proxy) const fn frames(&mut self) -> Option<&mut Frames> {
        self.tunnel.as_mut()
    }

    /// Nothing of it is left that would have to be cancelled.
    pub(in crate::proxy) const fn stream_is_over(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.is_over();
        }
    }

    /// The request has ended, and has no place any more.
    pub(in crate::proxy) fn ends(&mut self) {
        (self.seat, self.busy) = (None, None);
    }

    /// Why the last attempt that failed did; none: none did.
    pub(in crate::proxy) fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// How long the first byte of an answer may take once the request is sent, where its connection counts that.
    pub(in crate::proxy) fn first_byte(&self, upstream: &Upstream) -> Option<Duration> {
        upstream.settings.timeouts.first_byte.or(self.pause)
    }

    /// The request does not come back to the server it is at.
    pub(in crate::proxy) fn leave(&mut self) {
        self.tried.extend(self.busy.take().map(|busy| Arc::clone(busy.server())));
    }
}
