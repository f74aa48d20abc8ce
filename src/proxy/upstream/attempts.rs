//! Where a request has been: the server it is at, those it could not be served by, what it holds there.
//!
//! Must not know: when a request is sent again.

use super::{ConnectPermit, RequestPermit, Server, ServerFailure, ServerInFlightGuard, Upstream};
use crate::policy::http::websocket::FrameParser;
use crate::proxy::upstream::UpstreamStream;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

/// Where a request has been.
#[derive(Default)]
pub struct UpstreamAttempts {
    pub(in crate::proxy) permit: Option<RequestPermit>,
    /// What opens a connection, where not all may wait for one.
    pub(in crate::proxy) connect_permit: Option<Arc<ConnectPermit>>,
    /// The server it is at.
    pub(in crate::proxy) current: Option<ServerInFlightGuard>,
    /// Those it could not be served by.
    pub(in crate::proxy) tried: SmallVec<[Arc<Server>; 2]>,
    pub(in crate::proxy) attempts: u32,
    /// Whether a connection to a backend stood.
    pub connected: bool,
    /// What of an answer has come.
    pub(in crate::proxy) answer: AnswerState,
    /// Whether its connection counts the backend's time.
    pub(in crate::proxy) is_awaited: bool,
    /// How long the backend may pause, where the connection counts that as well and not Pingora. Of a tunnel, how long
    /// both sides may.
    pub(in crate::proxy) pause: Option<Duration>,
    /// What HTTP/2 connections are chosen by, where it may be spoken.
    pub(in crate::proxy) stream: Option<UpstreamStream>,
    /// Whether the request asks for a tunnel.
    pub(in crate::proxy) asks_tunnel: bool,
    /// The tunnel that it has become, by what has passed to the client.
    pub(in crate::proxy) tunnel: Option<FrameParser>,
    /// Why the last attempt that failed did.
    pub(in crate::proxy) failure: Option<ServerFailure>,
}

/// How far an answer is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::proxy) enum AnswerState {
    #[default]
    None,
    /// Its head has come, and nothing stands against its server so far.
    Well,
    /// Its server has been judged by it.
    Judged,
}

impl UpstreamAttempts {
    /// The server it is at.
    pub(in crate::proxy) fn server(&self) -> Option<&Server> {
        self.current.as_deref()
    }

    pub(in crate::proxy) fn is_answered(&self) -> bool {
        self.answer != AnswerState::None
    }

    /// Whether it has become a tunnel.
    pub(in crate::proxy) const fn is_tunnel(&self) -> bool {
        self.tunnel.is_some()
    }

    /// The frames that have passed to the client, where it has become a tunnel.
    pub(in crate::proxy) const fn frames(&mut self) -> Option<&mut FrameParser> {
        self.tunnel.as_mut()
    }

    /// Nothing of it is left that would have to be cancelled.
    pub(in crate::proxy) const fn stream_is_over(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.finish();
        }
    }

    /// The request has ended, and has no place any more.
    pub(in crate::proxy) fn ends(&mut self) {
        (self.permit, self.current) = (None, None);
    }

    /// Why the last attempt that failed did; none: none did.
    pub(in crate::proxy) fn failure(&self) -> Option<ServerFailure> {
        self.failure
    }

    /// How long the first byte of an answer may take once the request is sent, where its connection counts that.
    pub(in crate::proxy) fn first_byte(&self, upstream: &Upstream) -> Option<Duration> {
        upstream.settings.timeouts.first_byte.or(self.pause)
    }

    /// The request does not come back to the server it is at.
    pub(in crate::proxy) fn mark_tried(&mut self) {
        self.tried.extend(self.current.take().map(|busy| Arc::clone(busy.server())));
    }
}
