//! Why the gateway closes a connection, and how the task that serves it is notified.

use super::{Connection, Stage};
use crate::keyring::Presented;
use atomic_waker::AtomicWaker;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

/// No reason.
const NONE: u8 = u8::MAX;

/// The reason to close a connection, if any, and the task to wake.
pub(super) struct CloseState {
    end: AtomicU8,
    /// The first of several reasons.
    first: AtomicU8,
    waker: AtomicWaker,
}

numbered!(
    /// Why the gateway closes a connection or stream.
    CloseReason {
        /// No bytes arrived in time: no first byte, no next request, or nothing after the last response.
        Silent,
        /// The head of a request took too long.
        HeadLate,
        /// The next part of a body took too long.
        BodyLate,
        /// The body arrives too slowly.
        BodySlow,
        /// The response is complete, and the rest of the request body took too long.
        RestLate,
        /// The chunked framing of the body is invalid.
        BadChunks,
        /// The key of the request was deleted, or its secret replaced.
        KeyGone,
        /// The key was deactivated.
        KeyInactive,
        /// The key has expired.
        KeyExpired,
        /// The backend's response does not start in time, or pauses too long.
        BackendLate,
        /// No bytes passed through the tunnel for too long, in either direction.
        TunnelIdle,
        /// The client accepts nothing of what is written to it.
        WriteStalled,
        /// The client accepts what is written to it too slowly.
        WriteSlow,
        /// The client should get a last response, but the task that serves the connection did not send it in time.
        Unheard,
        /// Evicted to make room for a new connection.
        Crowded,
        /// Bodies use too much memory, and this client does not read its response.
        OverBudget,
        /// Bodies use too much memory, and this request's body has been incomplete for too long.
        HeldBack,
        /// The gateway stops.
        Stopping,
        /// The client has left, and the backend took too long for the rest of its response.
        DrainLate,
        /// The client has left, and the gateway stops before the backend's response is complete.
        DrainStopped,
    }
);

// === impl CloseState ===

impl CloseState {
    pub(super) const fn new() -> Self {
        Self { end: AtomicU8::new(NONE), first: AtomicU8::new(NONE), waker: AtomicWaker::new() }
    }

    pub(super) fn wake(&self) {
        self.waker.wake();
    }
}

impl Connection {
    /// Closes the connection for this reason.
    pub fn close_with(&self, end: CloseReason) {
        self.await_notification();
        // Keep the first reason.
        self.close.first.compare_exchange(NONE, end as u8, Ordering::AcqRel, Ordering::Acquire).ok();
        self.close.end.store(end as u8, Ordering::Release);
        self.close.wake();
    }

    /// Wakes the task that serves the connection.
    pub(in crate::proxy) fn wake(&self) {
        self.close.wake();
    }

    /// Closes the connection if it still serves this key, which was read a moment ago. A request that has finished
    /// since is left alone; the connection may serve another key now.
    pub(in crate::proxy) fn close_if_serving(&self, presented: &Presented, end: CloseReason) -> bool {
        let key = self.key();
        let serves = key.as_ref().is_some_and(|key| key.is(presented));
        if serves {
            self.close_with(end);
        }
        drop(key);
        serves
    }

    /// Why the connection is being closed, if it is.
    pub fn close_reason(&self) -> Option<CloseReason> {
        CloseReason::of(self.close.end.load(Ordering::Acquire))
    }

    /// The first reason to close the connection.
    pub fn first_end(&self) -> Option<CloseReason> {
        CloseReason::of(self.close.first.load(Ordering::Acquire))
    }

    /// Returns when the connection is being closed and the task that serves it did not send the last response in
    /// time.
    pub async fn is_unheard(&self) {
        std::future::poll_fn(|context| {
            self.register_waker(context);
            if self.close_reason() == Some(CloseReason::Unheard) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Returns when the connection is being closed for a reason that cannot be sent to the client. For any other
    /// reason the task that waits for the client or the backend is woken in the same way, and can respond.
    pub async fn closed(&self) {
        std::future::poll_fn(|context| {
            self.register_waker(context);
            let ends = self.close_reason().is_some_and(|end| !end.can_answer());
            if ends { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Whether the connection is being closed during a backend's response, of which no more may be written.
    pub fn is_cut_off(&self) -> bool {
        self.close_reason().is_some() && self.has_answer()
    }

    /// Registers the task of `context` to be woken when the connection is being closed.
    pub fn register_waker(&self, context: &Context<'_>) {
        self.close.waker.register(context.waker());
    }

    /// Clears the reason, so that a last response can be written. `stage` sets the deadline for that.
    pub fn clear_close_reason(&self, stage: Stage) {
        self.close.end.store(NONE, Ordering::Release);
        self.close.first.store(NONE, Ordering::Release);
        self.enter(stage);
    }
}

// === impl CloseReason ===

impl CloseReason {
    /// The labels of all reasons in metrics.
    pub fn reasons() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().map(|end| end.as_str())
    }

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::HeadLate => "head_late",
            Self::BodyLate => "body_late",
            Self::BodySlow => "body_slow",
            Self::RestLate => "rest_late",
            Self::BadChunks => "bad_chunks",
            Self::BackendLate => "backend_late",
            Self::TunnelIdle => "tunnel_idle",
            Self::KeyGone => "key_gone",
            Self::KeyInactive => "key_inactive",
            Self::KeyExpired => "key_expired",
            Self::WriteStalled => "write_stalled",
            Self::WriteSlow => "write_slow",
            Self::Unheard => "unheard",
            Self::Crowded => "crowded",
            Self::OverBudget => "over_budget",
            Self::HeldBack => "held_back",
            Self::Stopping => "stopping",
            Self::DrainLate => "drain_late",
            Self::DrainStopped => "drain_stopped",
        }
    }

    /// Whether the connection is closed between requests while the client still reads, so that it can get a GOAWAY.
    pub const fn can_take_leave(self) -> bool {
        matches!(self, Self::Silent | Self::Crowded | Self::Stopping)
    }

    /// Whether a response can still be sent to the client.
    pub const fn can_answer(self) -> bool {
        !matches!(
            self,
            Self::Silent
                | Self::WriteStalled
                | Self::WriteSlow
                | Self::Unheard
                | Self::Crowded
                | Self::OverBudget
                | Self::Stopping
        )
    }
}
