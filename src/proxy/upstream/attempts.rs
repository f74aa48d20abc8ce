//! The attempts of a request: its current server, the servers that failed, and the permits it holds there.
//!
//! Must not know: when a request is retried.

use super::{ConnectPermit, RequestPermit, Server, ServerFailure, ServerInFlightGuard, Upstream};
use crate::policy::http::websocket::FrameParser;
use crate::proxy::upstream::UpstreamStream;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

/// The attempts of a request.
#[derive(Default)]
pub struct UpstreamAttempts {
    pub(in crate::proxy) permit: Option<RequestPermit>,
    /// Opens a connection, if the number of waiting requests is limited.
    pub(in crate::proxy) connect_permit: Option<Arc<ConnectPermit>>,
    /// The current server.
    pub(in crate::proxy) current: Option<ServerInFlightGuard>,
    /// Servers that could not serve the request.
    pub(in crate::proxy) tried: SmallVec<[Arc<Server>; 2]>,
    pub(in crate::proxy) attempts: u32,
    /// Whether a connection to a backend was made.
    pub connected: bool,
    /// How much of a response has arrived.
    pub(in crate::proxy) answer: AnswerState,
    /// Whether the client's connection times the backend.
    pub(in crate::proxy) is_awaited: bool,
    /// Longest pause of the backend, if the client's connection times it and not Pingora. For a tunnel, of both sides.
    pub(in crate::proxy) pause: Option<Duration>,
    /// The choice of HTTP/2 connections, if HTTP/2 may be used.
    pub(in crate::proxy) stream: Option<UpstreamStream>,
    /// Whether the request asks for a tunnel.
    pub(in crate::proxy) asks_tunnel: bool,
    /// The tunnel it has become, with the frames sent to the client.
    pub(in crate::proxy) tunnel: Option<FrameParser>,
    /// Why the last failed attempt failed.
    pub(in crate::proxy) failure: Option<ServerFailure>,
}

/// The state of a response.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::proxy) enum AnswerState {
    #[default]
    None,
    /// Its head has arrived, and does not count as a failure of its server.
    Well,
    /// Its result has been reported to the server.
    Judged,
}

impl UpstreamAttempts {
    /// The current server.
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

    /// The frames sent to the client, if it has become a tunnel.
    pub(in crate::proxy) const fn frames(&mut self) -> Option<&mut FrameParser> {
        self.tunnel.as_mut()
    }

    /// The stream has ended and need not be cancelled.
    pub(in crate::proxy) const fn stream_is_over(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.finish();
        }
    }

    /// The request has ended, and releases its permits.
    pub(in crate::proxy) fn ends(&mut self) {
        (self.permit, self.current) = (None, None);
    }

    /// Why the last failed attempt failed; none: none did.
    pub(in crate::proxy) fn failure(&self) -> Option<ServerFailure> {
        self.failure
    }

    /// Longest time from the end of the request to the first byte of a response, if the client's connection times it.
    pub(in crate::proxy) fn first_byte(&self, upstream: &Upstream) -> Option<Duration> {
        upstream.settings.timeouts.first_byte.or(self.pause)
    }

    /// The request is not sent to its current server again.
    pub(in crate::proxy) fn mark_tried(&mut self) {
        self.tried.extend(self.current.take().map(|busy| Arc::clone(busy.server())));
    }
}
