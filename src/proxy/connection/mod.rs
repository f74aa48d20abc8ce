//! One client connection, as seen by code that does not own its socket: its stage, its deadlines, and why it is
//! closed.
//!
//! Must not know: HTTP, other connections. The task that serves a connection records what it waits for
//! ([`deadlines`]) and which bytes it holds ([`buffered`]). [`table`] checks all connections; to close one
//! ([`close`]), it wakes the task, and the socket returns an error.

/// An enum that is stored as a number in an atomic.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$case_doc:meta])* $case:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$case_doc])* $case,)+ }

        impl $name {
            const ALL: &'static [Self] = &[$(Self::$case,)+];

            fn of(number: u8) -> Option<Self> {
                Self::ALL.get(usize::from(number)).copied()
            }
        }
    };
}

pub mod address_limiter;
mod buffered;
mod close;
mod deadlines;
mod drain;
pub(super) mod h1_stream;
pub(super) mod h2_stream;
pub(super) mod kept_body;
pub(super) mod large_buffer;
pub(super) mod socket;
pub mod table;

pub(super) use buffered::EXCHANGE_BUFFER;
pub use buffered::{BufferedBody, KeptBytesGuard};
pub use close::CloseReason;
pub(super) use deadlines::{BackendTimeout, REST_WITHIN, TICK, ms};
pub use deadlines::{Deadlines, Stage};
pub use drain::{AnswerDrains, DRAIN_RESULTS};

use crate::keyring::Presented;
use buffered::{BufferedBytes, MemoryBudget};
use bytes::Bytes;
use close::CloseState;
use deadlines::StageTimer;
use drain::DrainState;
use http::HeaderValue;
use large_buffer::LargeBuffers;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::time::Instant;

/// How much of a request body has been read: not all, all but its withheld end, or all.
pub(super) const BODY_COMES: u8 = 0;
pub(super) const BODY_BUT_END: u8 = 1;
pub(super) const BODY_WHOLE: u8 = 2;

/// Settings and state shared by all connections.
pub(super) struct ConnectionDefaults {
    deadlines: Deadlines,
    body_rate: u64,
    /// Time zero of all deadlines.
    begun: Instant,
    budget: MemoryBudget,
    large_buffers: LargeBuffers,
}

/// One client connection, or one stream of it.
pub struct Connection {
    /// The other end of the socket.
    pub peer: SocketAddr,
    /// Whether it uses TLS.
    pub secure: bool,
    /// The client's address if a trusted proxy has reported another than [`Self::peer`].
    client: OnceLock<IpAddr>,
    /// The key of the request being served. The request ends if the key does.
    key: Mutex<Option<Presented>>,
    /// The `Date` of the response that is about to be written.
    date: Mutex<Option<HeaderValue>>,
    /// The connection of a stream.
    parent: Option<Arc<Connection>>,
    shared: Arc<ConnectionDefaults>,
    /// Whether it may only ask whether this node is ready, because its proxy did not say whose connection it is.
    for_health_checks: AtomicBool,
    tunnel: AtomicBool,
    /// Whether its request is served by an exchange, not by Pingora.
    in_exchange: AtomicBool,
    /// Whether it stays open although Pingora drops it.
    stays: AtomicBool,
    /// For a stream: the part of its request body to be sent again.
    rewound: Mutex<Option<Bytes>>,
    /// Whether the client speaks HTTP/1.0.
    http10: AtomicBool,
    /// Whether the end of the request body is withheld from the reader, and how much of the body has been read.
    keep_body_end: AtomicBool,
    body: AtomicU8,
    /// Whether a response is being sent whose end is the end of the connection.
    close_ends_answer: AtomicBool,
    /// Whether its request still holds permits.
    holds: AtomicBool,
    /// The permits of a stream's request, until the rest of its response has been handed over.
    permits: Mutex<Option<Box<dyn Send>>>,
    due: StageTimer,
    buffered: BufferedBytes,
    drain: DrainState,
    close: CloseState,
}

// === impl ConnectionDefaults ===

impl ConnectionDefaults {
    pub(super) fn new(deadlines: Deadlines, body_rate: u64, budget: u64) -> Self {
        Self {
            deadlines,
            body_rate,
            begun: Instant::now(),
            budget: MemoryBudget::new(budget),
            large_buffers: LargeBuffers::within(budget),
        }
    }

    /// Milliseconds since time zero. Not the time of the last check: that is old after the machine stalls, and
    /// deadlines counted from it would fire early.
    pub(super) fn now_ms(&self) -> u64 {
        ms(self.begun.elapsed())
    }
}

// === impl Connection ===

impl Connection {
    /// A connection that has just been accepted.
    pub(super) fn new(peer: SocketAddr, secure: bool, shared: &Arc<ConnectionDefaults>) -> Self {
        let connection = Self::make(peer, secure, None, shared);
        connection.enter(Stage::FirstByte);
        connection
    }

    /// A stream of `parent`: a request with deadlines and a close reason of its own.
    pub(super) fn stream(parent: &Arc<Self>, shared: &Arc<ConnectionDefaults>) -> Self {
        let stream = Self::make(parent.peer, parent.secure, Some(Arc::clone(parent)), shared);
        if let Some(client) = parent.client.get() {
            stream.set_client(*client);
        }
        stream.enter(Stage::Request);
        stream
    }

    fn make(
        peer: SocketAddr,
        secure: bool,
        parent: Option<Arc<Self>>,
        shared: &Arc<ConnectionDefaults>,
    ) -> Self {
        Self {
            peer,
            secure,
            client: OnceLock::new(),
            key: Mutex::default(),
            date: Mutex::default(),
            parent,
            shared: Arc::clone(shared),
            for_health_checks: AtomicBool::new(false),
            tunnel: AtomicBool::new(false),
            in_exchange: AtomicBool::new(false),
            stays: AtomicBool::new(false),
            rewound: Mutex::default(),
            http10: AtomicBool::new(false),
            keep_body_end: AtomicBool::new(false),
            body: AtomicU8::new(BODY_COMES),
            close_ends_answer: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            permits: Mutex::default(),
            due: StageTimer::new(),
            buffered: BufferedBytes::default(),
            drain: DrainState::default(),
            close: CloseState::new(),
        }
    }

    /// Records the client's address as reported by a trusted proxy.
    pub(super) fn set_client(&self, client: IpAddr) {
        // It is reported only once.
        self.client.get_or_init(|| client);
    }

    /// Only health checks are answered on it.
    pub(super) fn restrict_to_health_checks(&self) {
        self.for_health_checks.store(true, Ordering::Relaxed);
    }

    /// Whether only health checks are answered on it.
    pub(super) fn is_for_health_checks(&self) -> bool {
        self.parent.as_deref().unwrap_or(self).for_health_checks.load(Ordering::Relaxed)
    }

    /// The client's address, as far as the connection knows it.
    pub fn client(&self) -> IpAddr {
        self.client.get().copied().unwrap_or_else(|| self.peer.ip())
    }

    /// Whether it is a stream of a connection.
    pub const fn is_stream(&self) -> bool {
        self.parent.is_some()
    }

    /// Sets the backend's `Date` for the next response head.
    pub(super) fn set_date(&self, date: HeaderValue) {
        *self.date.lock().unwrap_or_else(PoisonError::into_inner) = Some(date);
    }

    /// Takes that date.
    pub(super) fn take_date(&self) -> Option<HeaderValue> {
        self.date.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Sets the key of the request being served. The request ends if the key does.
    pub fn set_served_key(&self, key: Option<Presented>) {
        let before = std::mem::replace(&mut *self.key(), key);
        drop(before);
    }

    /// The key of the request being served.
    pub(super) fn served(&self) -> Option<Presented> {
        self.key().clone()
    }

    fn key(&self) -> MutexGuard<'_, Option<Presented>> {
        // The entry is valid even if a thread panicked while it held the lock.
        self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request has its response, and the connection stays open for the next one even if Pingora drops it.
    pub fn keep_open(&self) {
        self.stays.store(true, Ordering::Release);
    }

    /// Whether this was set since the last call.
    pub(super) fn take_keep_open(&self) -> bool {
        self.stays.swap(false, Ordering::AcqRel)
    }

    /// The request is retried with this part of its body.
    pub fn rewind_to(&self, body: Bytes) {
        *self.rewound.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    /// The part of the request body to be sent again.
    pub fn rewound(&self) -> Option<Bytes> {
        self.rewound.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets whether the current request is HTTP/1.0.
    pub fn set_http10(&self, is_http10: bool) {
        self.http10.store(is_http10, Ordering::Relaxed);
    }

    /// Whether it is. Such a client does not know interim responses.
    pub(super) fn is_http10(&self) -> bool {
        self.http10.load(Ordering::Relaxed)
    }

    /// Sets whether the end of the body is withheld from the reader.
    pub fn set_keep_body_end(&self, keeps: bool) {
        self.keep_body_end.store(keeps, Ordering::Relaxed);
    }

    /// Whether it is.
    pub(super) fn keeps_body_end(&self) -> bool {
        self.keep_body_end.load(Ordering::Relaxed)
    }

    /// Sets how much of the body has been read.
    pub(super) fn set_body_progress(&self, much: u8) {
        self.body.store(much, Ordering::Relaxed);
    }

    /// Whether all of it has been read, including its end.
    pub fn has_whole_body(&self) -> bool {
        self.body.load(Ordering::Relaxed) == BODY_WHOLE
    }

    /// Whether all of it has been read and its end is withheld.
    pub fn has_kept_end(&self) -> bool {
        self.body.load(Ordering::Relaxed) == BODY_BUT_END
    }

    /// Sets whether a response is being sent whose end is the end of the connection.
    pub fn set_close_ends_answer(&self, is_under_way: bool) {
        self.close_ends_answer.store(is_under_way, Ordering::Relaxed);
    }

    /// Whether one is: closing the connection would make it look complete.
    pub(super) fn close_ends_answer(&self) -> bool {
        self.close_ends_answer.load(Ordering::Relaxed)
    }

    /// A request has been admitted and holds permits.
    pub(super) fn mark_permits_held(&self) {
        self.holds.store(true, Ordering::Relaxed);
    }

    /// Whether no request holds permits.
    pub(super) fn holds_no_permits(&self) -> bool {
        !self.holds.load(Ordering::Relaxed)
    }

    /// The response is complete, and the request's permits are released. For a stream that may have to wait for the
    /// client to accept the `rest`, that happens when the rest has been handed over.
    pub(super) fn release_with(&self, permits: impl Send + 'static, rest: bool) {
        if rest && self.is_stream() {
            *self.permits() = Some(Box::new(permits));
        } else {
            drop(permits);
            self.holds.store(false, Ordering::Relaxed);
        }
    }

    /// Called before the last byte of a stream's response is handed over: releases the permits. Returns whether they
    /// are released; they are not if the response is not known to be complete.
    pub(super) fn release_at_end(&self) -> bool {
        if self.holds_no_permits() {
            return true;
        }
        let permits = self.permits().take();
        let knew = permits.is_some();
        drop(permits);
        if knew {
            self.holds.store(false, Ordering::Relaxed);
        }
        knew
    }

    /// The request has ended: releases its permits.
    pub(super) fn release_permits(&self) {
        if !self.holds_no_permits() {
            let permits = self.permits().take();
            drop(permits);
            self.holds.store(false, Ordering::Relaxed);
        }
    }

    fn permits(&self) -> MutexGuard<'_, Option<Box<dyn Send>>> {
        // The value is valid even if a thread panicked while it held the lock.
        self.permits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets whether an exchange serves the request. An exchange checks the backend's deadlines itself and is woken
    /// when one has passed. If Pingora serves the request, the connection is closed instead.
    pub(super) fn set_in_exchange(&self, is_ours: bool) {
        self.in_exchange.store(is_ours, Ordering::Relaxed);
    }

    /// Whether an exchange serves it.
    pub(super) fn is_in_exchange(&self) -> bool {
        self.in_exchange.load(Ordering::Relaxed)
    }

    /// From now on all bytes are passed in both directions unchanged.
    pub fn mark_tunnel(&self) {
        self.tunnel.store(true, Ordering::Release);
        self.close.wake();
    }

    /// Whether it has become a tunnel.
    pub fn is_tunnel(&self) -> bool {
        self.tunnel.load(Ordering::Acquire)
    }
}
