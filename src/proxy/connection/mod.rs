//! One client connection, as those see it who do not own its socket: what it is at, until when, and why it ends.
//!
//! Must not know: HTTP, other connections. Whoever serves it notes what it waits for ([`deadlines`]) and what it holds
//! ([`held`]); whoever looks after all of them ([`super::connections`]) reads that, and ends it ([`end`]) by waking its
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

mod deadlines;
mod end;
mod held;

pub use deadlines::{Deadlines, Stage};
pub(super) use deadlines::{TICK, ms};
pub use end::End;
pub use held::{HeldBack, Kept};

use crate::keyring::Presented;
use bytes::Bytes;
use deadlines::Due;
use end::Ending;
use held::{Budget, Held};
use http::HeaderValue;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::time::Instant;

/// What all connections have in common.
pub(super) struct Shared {
    deadlines: Deadlines,
    body_rate: u64,
    /// When the gateway began to look.
    begun: Instant,
    budget: Budget,
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
    shared: Arc<Shared>,
    tunnel: AtomicBool,
    /// Whether it goes on although Pingora drops it.
    stays: AtomicBool,
    /// Of a stream: its request's body so far, to be sent again.
    rewound: Mutex<Option<Bytes>>,
    due: Due,
    held: Held,
    ending: Ending,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(deadlines: Deadlines, body_rate: u64, budget: u64) -> Self {
        Self { deadlines, body_rate, begun: Instant::now(), budget: Budget::new(budget) }
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
    pub(super) fn new(peer: SocketAddr, secure: bool, shared: &Arc<Shared>) -> Self {
        let connection = Self::make(peer, secure, None, shared);
        connection.enter(Stage::FirstByte);
        connection
    }

    /// A stream of `parent`: a request with deadlines and an end of its own.
    pub(super) fn stream(parent: &Arc<Self>, shared: &Arc<Shared>) -> Self {
        let stream = Self::make(parent.peer, parent.secure, Some(Arc::clone(parent)), shared);
        if let Some(client) = parent.client.get() {
            stream.is_from(*client);
        }
        stream.enter(Stage::Request);
        stream
    }

    fn make(peer: SocketAddr, secure: bool, parent: Option<Arc<Self>>, shared: &Arc<Shared>) -> Self {
        Self {
            peer,
            secure,
            client: OnceLock::new(),
            key: Mutex::default(),
            date: Mutex::default(),
            parent,
            shared: Arc::clone(shared),
            tunnel: AtomicBool::new(false),
            stays: AtomicBool::new(false),
            rewound: Mutex::default(),
            due: Due::new(),
            held: Held::default(),
            ending: Ending::new(),
        }
    }

    /// A proxy of ours says who the client is.
    pub(super) fn is_from(&self, client: IpAddr) {
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
    pub fn serves(&self, key: Option<Presented>) {
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
    pub fn stays(&self) {
        self.stays.store(true, Ordering::Release);
    }

    /// Whether that was said since it was last asked for.
    pub(super) fn takes_stay(&self) -> bool {
        self.stays.swap(false, Ordering::AcqRel)
    }

    /// Its request is sent again, and so is this of its body.
    pub fn is_rewound(&self, body: Bytes) {
        *self.rewound.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    /// What of its request's body is to be sent again.
    pub fn rewound(&self) -> Option<Bytes> {
        self.rewound.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on bytes pass in both directions, whatever they are.
    pub fn becomes_tunnel(&self) {
        self.tunnel.store(true, Ordering::Release);
        self.ending.wake();
    }

    /// Whether it has become one.
    pub fn is_tunnel(&self) -> bool {
        self.tunnel.load(Ordering::Acquire)
    }
}
