//! One client connection, as those see it who do not own its socket: what it is at, until when, and why it ends.
//!
//! Must not know: HTTP, other connections. Whoever serves it notes what it waits for ([`deadlines`]) and what it holds
//! ([`held`]); whoever looks after all of them ([`table`]) reads that, and ends it ([`end`]) by waking its
//! socket with an error.

/// An enum that is kept as a number in an atomic.
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
pub(super) mod h1_stream;
pub(super) mod h2_stream;
pub(super) mod kept_body;
pub(super) mod socket;
pub mod table;

pub(super) use buffered::EXCHANGE_BUFFER;
pub use buffered::{BufferedBody, KeptBytesGuard};
pub use close::CloseReason;
pub(super) use deadlines::{BackendTimeout, REST_WITHIN, TICK, ms};
pub use deadlines::{Deadlines, Stage};

use crate::keyring::Presented;
use buffered::{BufferedBytes, MemoryBudget};
use bytes::Bytes;
use close::CloseState;
use deadlines::StageTimer;
use http::HeaderValue;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::time::Instant;

/// A body is to come, all of it is here but its end, or all of it.
pub(super) const BODY_COMES: u8 = 0;
pub(super) const BODY_BUT_END: u8 = 1;
pub(super) const BODY_WHOLE: u8 = 2;

/// What all connections have in common.
pub(super) struct ConnectionDefaults {
    deadlines: Deadlines,
    body_rate: u64,
    /// When the gateway began to look.
    begun: Instant,
    budget: MemoryBudget,
}

/// One client connection.
pub struct Connection {
    /// The other end of the socket.
    pub peer: SocketAddr,
    /// Whether it is encrypted.
    pub secure: bool,
    /// The client, where a proxy of ours said that it is another than [`Self::peer`].
    client: OnceLock<IpAddr>,
    /// The key that is being served, whose end is the end of this.
    key: Mutex<Option<Presented>>,
    /// The `Date` of the answer that is about to be written.
    date: Mutex<Option<HeaderValue>>,
    /// The connection that this is a stream of.
    parent: Option<Arc<Connection>>,
    shared: Arc<ConnectionDefaults>,
    tunnel: AtomicBool,
    /// Whether its request is served by an exchange of our own.
    in_exchange: AtomicBool,
    /// Whether it goes on although Pingora drops it.
    stays: AtomicBool,
    /// Of a stream: its request's body so far, to be sent again.
    rewound: Mutex<Option<Bytes>>,
    /// Whether its client speaks HTTP/1.0.
    is_old: AtomicBool,
    /// Whether the end of its request's body is kept from whoever reads it, and how much of the body is here.
    keeps_body_end: AtomicBool,
    body: AtomicU8,
    /// Whether an answer is under way whose end is the end of the connection.
    ends_answer: AtomicBool,
    /// Whether what its request has taken is not free yet.
    holds: AtomicBool,
    /// What the request of a stream has taken, until what is left of its answer has been handed over.
    places: Mutex<Option<Box<dyn Send>>>,
    due: StageTimer,
    buffered: BufferedBytes,
    close: CloseState,
}

// === impl ConnectionDefaults ===

impl ConnectionDefaults {
    pub(super) fn new(deadlines: Deadlines, body_rate: u64, budget: u64) -> Self {
        Self { deadlines, body_rate, begun: Instant::now(), budget: MemoryBudget::new(budget) }
    }

    /// Milliseconds since the gateway began to look. Not as of the last look: a machine that stalls makes that old, and what
    /// is counted from it early.
    pub(super) fn now_ms(&self) -> u64 {
        ms(self.begun.elapsed())
    }
}

// === impl Connection ===

impl Connection {
    /// One that has just been accepted.
    pub(super) fn new(peer: SocketAddr, secure: bool, shared: &Arc<ConnectionDefaults>) -> Self {
        let connection = Self::make(peer, secure, None, shared);
        connection.enter(Stage::FirstByte);
        connection
    }

    /// A stream of `parent`: a request with deadlines and an end of its own.
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
            tunnel: AtomicBool::new(false),
            in_exchange: AtomicBool::new(false),
            stays: AtomicBool::new(false),
            rewound: Mutex::default(),
            is_old: AtomicBool::new(false),
            keeps_body_end: AtomicBool::new(false),
            body: AtomicU8::new(BODY_COMES),
            ends_answer: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            places: Mutex::default(),
            due: StageTimer::new(),
            buffered: BufferedBytes::default(),
            close: CloseState::new(),
        }
    }

    /// A proxy of ours says who the client is.
    pub(super) fn set_client(&self, client: IpAddr) {
        // It says so once.
        self.client.get_or_init(|| client);
    }

    /// The client, as far as the connection tells.
    pub fn client(&self) -> IpAddr {
        self.client.get().copied().unwrap_or_else(|| self.peer.ip())
    }

    /// Whether it is one stream among others.
    pub const fn is_stream(&self) -> bool {
        self.parent.is_some()
    }

    /// The backend has dated the answer whose head comes next.
    pub(super) fn set_date(&self, date: HeaderValue) {
        *self.date.lock().unwrap_or_else(PoisonError::into_inner) = Some(date);
    }

    /// That date, once.
    pub(super) fn take_date(&self) -> Option<HeaderValue> {
        self.date.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What is served to it ends with this key.
    pub fn set_served_key(&self, key: Option<Presented>) {
        let before = std::mem::replace(&mut *self.key(), key);
        drop(before);
    }

    /// The key that is being served.
    pub(super) fn served(&self) -> Option<Presented> {
        self.key().clone()
    }

    fn key(&self) -> MutexGuard<'_, Option<Presented>> {
        // An entry is whole whatever happened to the thread that held it.
        self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its request has been answered, and the next one may come, whatever Pingora does with it.
    pub fn keep_open(&self) {
        self.stays.store(true, Ordering::Release);
    }

    /// Whether that was said since it was last asked for.
    pub(super) fn take_keep_open(&self) -> bool {
        self.stays.swap(false, Ordering::AcqRel)
    }

    /// Its request is sent again, and so is this of its body.
    pub fn rewind_to(&self, body: Bytes) {
        *self.rewound.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    /// What of its request's body is to be sent again.
    pub fn rewound(&self) -> Option<Bytes> {
        self.rewound.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The request in hand is of HTTP/1.0, or is not.
    pub fn is_old(&self, is_old: bool) {
        self.is_old.store(is_old, Ordering::Relaxed);
    }

    /// Whether it is: then the client knows of no interim answers.
    pub(super) fn speaks_old(&self) -> bool {
        self.is_old.load(Ordering::Relaxed)
    }

    /// Whoever reads the body is to have all of it but its end, or that as well.
    pub fn keeps_body_end(&self, keeps: bool) {
        self.keeps_body_end.store(keeps, Ordering::Relaxed);
    }

    /// Whether its end is to be kept.
    pub(super) fn is_to_keep_body_end(&self) -> bool {
        self.keeps_body_end.load(Ordering::Relaxed)
    }

    /// So much of the body is here.
    pub(super) fn has_of_body(&self, much: u8) {
        self.body.store(much, Ordering::Relaxed);
    }

    /// Whether all of it is, its end included.
    pub fn has_whole_body(&self) -> bool {
        self.body.load(Ordering::Relaxed) == BODY_WHOLE
    }

    /// Whether all of it is, and its end kept.
    pub fn has_kept_end(&self) -> bool {
        self.body.load(Ordering::Relaxed) == BODY_BUT_END
    }

    /// An answer begins whose end is the end of the connection, or has come to its end.
    pub fn ends_answer(&self, is_under_way: bool) {
        self.ends_answer.store(is_under_way, Ordering::Relaxed);
    }

    /// Whether one is under way: closing the connection would say that it is whole.
    pub(super) fn would_end_answer(&self) -> bool {
        self.ends_answer.load(Ordering::Relaxed)
    }

    /// A request has been admitted: it is in flight until its places are free.
    pub(super) fn holds(&self) {
        self.holds.store(true, Ordering::Relaxed);
    }

    /// Whether no request is in flight, as far as limits go.
    pub(super) fn is_free(&self) -> bool {
        !self.holds.load(Ordering::Relaxed)
    }

    /// All of the answer has come, and with it the request's places are free: at once, or where a stream may have to wait for
    /// the client to take what is left of it, when that has been handed over.
    pub(super) fn release_with(&self, places: impl Send + 'static, rest: bool) {
        if rest && self.is_stream() {
            *self.places() = Some(Box::new(places));
        } else {
            drop(places);
            self.holds.store(false, Ordering::Relaxed);
        }
    }

    /// The last byte of a stream's answer is about to be handed over, and all must be free before that. Answers whether it is:
    /// nobody may have heard yet that the answer is at its end.
    pub(super) fn may_end(&self) -> bool {
        if self.is_free() {
            return true;
        }
        let places = self.places().take();
        let knew = places.is_some();
        drop(places);
        if knew {
            self.holds.store(false, Ordering::Relaxed);
        }
        knew
    }

    /// The request has ended, and what it had taken is free.
    pub(super) fn frees(&self) {
        if !self.is_free() {
            let places = self.places().take();
            drop(places);
            self.holds.store(false, Ordering::Relaxed);
        }
    }

    fn places(&self) -> MutexGuard<'_, Option<Box<dyn Send>>> {
        // A place is whole whatever happened to the thread that held it.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its request is served by an exchange of our own, which looks at the backend's deadlines by itself and is woken when one
    /// is over; or by Pingora, and then the connection is closed.
    pub(super) fn set_in_exchange(&self, is_ours: bool) {
        self.in_exchange.store(is_ours, Ordering::Relaxed);
    }

    /// Whether it is.
    pub(super) fn is_in_exchange(&self) -> bool {
        self.in_exchange.load(Ordering::Relaxed)
    }

    /// From now on bytes pass in both directions, whatever they are.
    pub fn mark_tunnel(&self) {
        self.tunnel.store(true, Ordering::Release);
        self.close.wake();
    }

    /// Whether it has become one.
    pub fn is_tunnel(&self) -> bool {
        self.tunnel.load(Ordering::Acquire)
    }
}
