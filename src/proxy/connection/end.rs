//! Why a connection ends before it ends by itself, and how whoever serves it hears of it.

use super::{Connection, Stage};
use crate::keyring::Presented;
use atomic_waker::AtomicWaker;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

/// No end.
const NONE: u8 = u8::MAX;

/// The end of a connection, if it has one, and whom that wakes.
pub(super) struct Ending {
    end: AtomicU8,
    waker: AtomicWaker,
}

numbered!(
    /// Why a connection ends before it ends by itself.
    End {
        /// Nothing came.
        Silent,
        /// The head of a request took too long.
        HeadLate,
        /// The next part of a body took too long.
        BodyLate,
        /// The body comes too slowly.
        BodySlow,
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

// === impl Ending ===

impl Ending {
    pub(super) const fn new() -> Self {
        Self { end: AtomicU8::new(NONE), waker: AtomicWaker::new() }
    }

    pub(super) fn wake(&self) {
        self.waker.wake();
    }
}

impl Connection {
    /// Ends it for this reason.
    pub fn end_with(&self, end: End) {
        self.is_to_be_told();
        self.ending.end.store(end as u8, Ordering::Release);
        self.ending.wake();
    }

    /// Ends it for this reason if it still serves this key, as found a moment ago. What has been answered meanwhile was
    /// answered, and what is served now may be another's.
    pub(in crate::proxy) fn end_if_serving(&self, presented: &Presented, end: End) -> bool {
        let key = self.key();
        let serves = key.as_ref().is_some_and(|key| key.is(presented));
        if serves {
            self.end_with(end);
        }
        drop(key);
        serves
    }

    /// Why it ends, if it does.
    pub fn ends(&self) -> Option<End> {
        End::of(self.ending.end.load(Ordering::Acquire))
    }

    /// Returns when it is ended from elsewhere and its client cannot be told. Otherwise whoever waits for the client or
    /// for the backend finds out by itself, is woken by the same means, and can answer.
    pub async fn ended(&self) {
        std::future::poll_fn(|context| {
            self.wakes(context);
            let ends = self.ends().is_some_and(|end| !end.can_answer());
            if ends { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Whether it has been ended while an answer of the backend's is under way, of which no more is to be written.
    pub fn is_cut_off(&self) -> bool {
        self.ends().is_some() && self.has_answer()
    }

    /// Has the task of `context` woken when the connection is ended.
    pub fn wakes(&self, context: &Context<'_>) {
        self.ending.waker.register(context.waker());
    }

    /// Forgets the end it was given, so that what is still to be said can be written and lingered over.
    pub fn survive(&self, stage: Stage) {
        self.ending.end.store(NONE, Ordering::Release);
        self.enter(stage);
    }
}

// === impl End ===

impl End {
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
            Self::BadChunks => "bad_chunks",
            Self::BackendLate => "backend_late",
            Self::TunnelIdle => "tunnel_idle",
            Self::KeyGone => "key_gone",
            Self::KeyInactive => "key_inactive",
            Self::KeyExpired => "key_expired",
            Self::WriteStalled => "write_stalled",
            Self::Crowded => "crowded",
            Self::OverBudget => "over_budget",
            Self::HeldBack => "held_back",
            Self::Stopping => "stopping",
        }
    }

    /// Whether the client can still be told something.
    pub const fn can_answer(self) -> bool {
        !matches!(self, Self::Silent | Self::WriteStalled | Self::Crowded | Self::OverBudget | Self::Stopping)
    }
}
