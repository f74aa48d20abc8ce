//! Why a connection ends before it ends by itself, and how whoever serves it hears of it.

use super::{Connection, Stage};
use crate::keyring::Presented;
use atomic_waker::AtomicWaker;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

/// No end.
const NONE: u8 = u8::MAX;

/// The end of a connection, if it has one, and whom that wakes.
pub(super) struct CloseState {
    end: AtomicU8,
    /// The first reason, where there were several.
    first: AtomicU8,
    waker: AtomicWaker,
}

numbered!(
    /// Why a connection ends before it ends by itself.
    CloseReason {
        /// Nothing came.
        Silent,
        /// The head of a request took too long.
        HeadLate,
        /// The next part of a body took too long.
        BodyLate,
        /// The body comes too slowly.
        BodySlow,
        /// The answer is whole, and the rest of the body comes for too long.
        RestLate,
        /// The body's chunks make no sense.
        BadChunks,
        /// The key that is served was deleted, or its secret replaced.
        KeyGone,
        /// It was switched off.
        KeyInactive,
        /// It has expired.
        KeyExpired,
        /// The backend does not begin to answer, or pauses.
        BackendLate,
        /// Nothing has passed through the tunnel for too long, in either direction.
        TunnelIdle,
        /// The client takes nothing of what is written to it.
        WriteStalled,
        /// It takes what is written to it too slowly.
        WriteSlow,
        /// It was to be told why it ends, and whoever serves it does not come to that.
        Unheard,
        /// It made room for a new one.
        Crowded,
        /// Bodies took up too much memory, and this client takes nothing.
        OverBudget,
        /// Bodies took up too much memory, and this one has been held back for long.
        HeldBack,
        /// The gateway stops.
        Stopping,
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
    /// Ends it for this reason.
    pub fn close_with(&self, end: CloseReason) {
        self.await_notification();
        // Only the first counts.
        self.close.first.compare_exchange(NONE, end as u8, Ordering::AcqRel, Ordering::Acquire).ok();
        self.close.end.store(end as u8, Ordering::Release);
        self.close.wake();
    }

    /// Wakes whoever serves it.
    pub(in crate::proxy) fn wake(&self) {
        self.close.wake();
    }

    /// Ends it for this reason if it still serves this key, as found a moment ago. What has been answered meanwhile was
    /// answered, and what is served now may be another's.
    pub(in crate::proxy) fn close_if_serving(&self, presented: &Presented, end: CloseReason) -> bool {
        let key = self.key();
        let serves = key.as_ref().is_some_and(|key| key.is(presented));
        if serves {
            self.close_with(end);
        }
        drop(key);
        serves
    }

    /// Why it ends, if it does.
    pub fn close_reason(&self) -> Option<CloseReason> {
        CloseReason::of(self.close.end.load(Ordering::Acquire))
    }

    /// Why it was ended at first.
    pub fn first_end(&self) -> Option<CloseReason> {
        CloseReason::of(self.close.first.load(Ordering::Acquire))
    }

    /// Returns when it has been ended and whoever serves it does not come to tell why.
    pub async fn is_unheard(&self) {
        std::future::poll_fn(|context| {
            self.register_waker(context);
            if self.close_reason() == Some(CloseReason::Unheard) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Returns when it is ended from elsewhere and its client cannot be told. Otherwise whoever waits for the client or
    /// for the backend finds out by itself, is woken by the same means, and can answer.
    pub async fn closed(&self) {
        std::future::poll_fn(|context| {
            self.register_waker(context);
            let ends = self.close_reason().is_some_and(|end| !end.can_answer());
            if ends { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Whether it has been ended while an answer of the backend's is under way, of which no more is to be written.
    pub fn is_cut_off(&self) -> bool {
        self.close_reason().is_some() && self.has_answer()
    }

    /// Has the task of `context` woken when the connection is ended.
    pub fn register_waker(&self, context: &Context<'_>) {
        self.close.waker.register(context.waker());
    }

    /// Forgets the end it was given, so that what is still to be said can be written and lingered over.
    pub fn clear_close_reason(&self, stage: Stage) {
        self.close.end.store(NONE, Ordering::Release);
        self.close.first.store(NONE, Ordering::Release);
        self.enter(stage);
    }
}

// === impl CloseReason ===

impl CloseReason {
    /// All of them, as metrics say them.
    pub fn reasons() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().map(|end| end.as_str())
    }

    /// As metrics say it.
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
        }
    }

    /// Whether it is between requests that it ends, with nobody to blame for not taking what is written.
    pub const fn can_take_leave(self) -> bool {
        matches!(self, Self::Silent | Self::Crowded | Self::Stopping)
    }

    /// Whether the client can still be told something.
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
