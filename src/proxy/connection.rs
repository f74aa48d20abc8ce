//! One client connection, as those see it who do not own its socket: what it is at, until when, and why it ends.
//!
//! Must not know: HTTP, other connections. Whoever serves it notes what it waits for; whoever looks after all of them
//! ([`super::connections`]) reads that, and ends it by waking its socket with an error.

use crate::keyring::Entry;
use atomic_waker::AtomicWaker;
use bytes::Bytes;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// How often the connections are looked at, and so how exact a deadline is: never early, at most this late.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// A deadline that is none.
const NEVER: u64 = u64::MAX;
/// What may be on its way to a client beside what was handed to its socket: Pingora's pipe of four parts of 64 KiB.
const PIPE_BYTES: u64 = 4 * 64 * 1024;

/// Deadlines of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For the first byte of its first request.
    pub first_byte: Duration,
    /// For a request's head, from its first byte to its last, however it drips.
    pub head: Duration,
    /// Between an answer and the first byte of the next request.
    pub idle: Duration,
    /// For the next part of a body.
    pub body: Duration,
    /// For the client to take any of what is written to it.
    pub write: Duration,
    /// For what still comes after a last answer, before the connection is closed.
    pub linger: Duration,
    /// For a next request once the gateway stops: a client that sends one has not heard of it yet.
    pub last_request: Duration,
}

/// What all connections have in common.
pub(super) struct Shared {
    deadlines: Deadlines,
    body_rate: u64,
    /// When the gateway began to look.
    begun: Instant,
    /// Bytes of bodies that may be in memory.
    budget: u64,
    /// Bytes of answers that clients have yet to take, as of the last look.
    answers: AtomicU64,
    /// Bytes of requests' bodies that backends have yet to take.
    uploads: AtomicU64,
}

/// A part of a request's body on its way to a backend, counted until it is there or nowhere.
struct Part {
    bytes: Bytes,
    connection: Arc<Connection>,
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
    key: Mutex<Option<Arc<Entry>>>,
    /// The connection that this is a stream of.
    parent: Option<Arc<Connection>>,
    shared: Arc<Shared>,
    stage: AtomicU8,
    /// When its stage began.
    since: AtomicU64,
    read_due: AtomicU64,
    /// Since when it waits for the next part of a body; [`NEVER`]: it does not.
    waits_since: AtomicU64,
    /// How long it has waited for the body so far, in milliseconds, and what came of it, in bytes.
    waited: AtomicU64,
    came: AtomicU64,
    /// Bytes of bodies taken for this client, and bytes that it has taken in turn.
    taken: AtomicU64,
    given: AtomicU64,
    write_due: AtomicU64,
    /// When the backend must have begun to answer; [`NEVER`]: nobody waits for that.
    backend_due: AtomicU64,
    end: AtomicU8,
    tunnel: AtomicBool,
    /// Whether the backend has begun to answer: from then on it is a conversation, in which the client owes nothing.
    answered: AtomicBool,
    /// Bytes of the request's body that the backend has yet to take, as far as they are counted.
    carried: AtomicU64,
    /// Whether a part of a body waits for others to be taken.
    waits_for_room: AtomicBool,
    waker: AtomicWaker,
}

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

numbered!(
    /// What a connection is at.
    Stage {
        /// Waiting for its first byte.
        FirstByte,
        /// Between requests.
        Idle,
        /// In the head of a request.
        Head,
        /// In a request: its deadlines are those of its reads and writes.
        Request,
        /// After a last answer: what still comes is thrown away.
        Linger,
    }
);

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
        /// The backend does not begin to answer.
        BackendLate,
        /// The client takes nothing of what is written to it.
        WriteStalled,
        /// It made room for a new one.
        Crowded,
        /// Bodies took up too much memory, and this client takes nothing.
        OverBudget,
        /// The gateway stops.
        Stopping,
    }
);

// === impl Shared ===

impl Shared {
    pub(super) fn new(deadlines: Deadlines, body_rate: u64, budget: u64) -> Self {
        Self {
            deadlines,
            body_rate,
            begun: Instant::now(),
            budget,
            answers: AtomicU64::new(0),
            uploads: AtomicU64::new(0),
        }
    }

    /// Milliseconds since the gateway began to look. Not as of the last look: a machine that stalls makes that old, and what
    /// is counted from it early.
    pub(super) fn now_ms(&self) -> u64 {
        ms(self.begun.elapsed())
    }

    /// That so many bytes of answers were found. Answers how many there are of all bodies.
    pub(super) fn found(&self, answers: u64) -> u64 {
        self.answers.store(answers, Ordering::Relaxed);
        answers + self.uploads.load(Ordering::Relaxed)
    }

    /// Whether more of requests' bodies may be read. They have at most half of the memory, so that backends which take
    /// nothing cost clients nothing that take their answers.
    pub(super) fn has_room(&self) -> bool {
        let uploads = self.uploads.load(Ordering::Relaxed);
        uploads < self.budget / 2 && uploads + self.answers.load(Ordering::Relaxed) < self.budget
    }
}

// === impl Part ===

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let (bytes, connection) = (len(&self.bytes), &self.connection);
        connection.shared.uploads.fetch_sub(bytes, Ordering::Relaxed);
        if connection.carried.fetch_sub(bytes, Ordering::Relaxed) == bytes {
            connection.waits_anew();
        }
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
            parent,
            shared: Arc::clone(shared),
            stage: AtomicU8::new(Stage::FirstByte as u8),
            since: AtomicU64::new(0),
            read_due: AtomicU64::new(NEVER),
            waits_since: AtomicU64::new(NEVER),
            waited: AtomicU64::new(0),
            came: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            given: AtomicU64::new(0),
            write_due: AtomicU64::new(NEVER),
            backend_due: AtomicU64::new(NEVER),
            end: AtomicU8::new(u8::MAX),
            tunnel: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            carried: AtomicU64::new(0),
            waits_for_room: AtomicBool::new(false),
            waker: AtomicWaker::new(),
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

    /// What is served to it ends with this key.
    pub fn serves(&self, key: Option<Arc<Entry>>) {
        let before = std::mem::replace(&mut *self.key(), key);
        drop(before);
    }

    /// The key that is being served.
    pub(super) fn served(&self) -> Option<Arc<Entry>> {
        self.key().clone()
    }

    /// Ends it for this reason if it still serves this key, as found a moment ago. What has been answered meanwhile was
    /// answered, and what is served now may be another's.
    pub(super) fn end_if_serving(&self, entry: &Arc<Entry>, end: End) -> bool {
        let key = self.key();
        let serves = key.as_ref().is_some_and(|key| Arc::ptr_eq(key, entry));
        if serves {
            self.end_with(end);
        }
        drop(key);
        serves
    }

    fn key(&self) -> MutexGuard<'_, Option<Arc<Entry>>> {
        // An entry is whole whatever happened to the thread that held it.
        self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when it is ended from elsewhere, but for a backend that is late: whoever waits for that one finds out by
    /// itself, is woken by the same means, and can answer.
    pub async fn ended(&self) {
        std::future::poll_fn(|context| {
            self.wakes(context);
            let ends = self.ends().is_some_and(|end| end != End::BackendLate);
            if ends { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Goes on to `stage`, and to its deadline.
    pub fn enter(&self, stage: Stage) {
        let now = self.shared.now_ms();
        self.stage.store(stage as u8, Ordering::Relaxed);
        self.since.store(now, Ordering::Relaxed);
        if stage == Stage::Idle || stage == Stage::Request {
            self.waited.store(0, Ordering::Relaxed);
            self.came.store(0, Ordering::Relaxed);
            self.backend_due.store(NEVER, Ordering::Relaxed);
            self.taken.store(0, Ordering::Relaxed);
            self.given.store(0, Ordering::Relaxed);
            self.answered.store(false, Ordering::Relaxed);
        }
        if stage == Stage::Idle {
            self.serves(None);
        }
        let within = match stage {
            Stage::FirstByte => self.shared.deadlines.first_byte,
            Stage::Idle => self.shared.deadlines.idle,
            Stage::Head => self.shared.deadlines.head,
            Stage::Linger => self.shared.deadlines.linger,
            Stage::Request => return self.read_due.store(NEVER, Ordering::Relaxed),
        };
        self.read_due.store(now.saturating_add(ms(within)), Ordering::Relaxed);
    }

    /// A read of a body must wait for the client.
    pub fn read_waits(&self) {
        if self.read_due.load(Ordering::Relaxed) == NEVER {
            self.read_due.store(self.due_in(self.shared.deadlines.body), Ordering::Relaxed);
            self.waits_since.store(self.shared.now_ms(), Ordering::Relaxed);
        }
    }

    /// It waits no longer: so many bytes came.
    pub fn read_goes_on(&self, bytes: usize) {
        self.came.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        if self.read_due.load(Ordering::Relaxed) != NEVER {
            let since = self.waits_since.swap(NEVER, Ordering::Relaxed);
            let waited = self.shared.now_ms().saturating_sub(since);
            self.waited.fetch_add(waited, Ordering::Relaxed);
            self.read_due.store(NEVER, Ordering::Relaxed);
        }
    }

    /// So many bytes of bodies are held for this client.
    pub fn takes(&self, bytes: usize) {
        if let Some(parent) = &self.parent {
            return parent.takes(bytes);
        }
        self.taken.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The client has taken so many bytes.
    pub fn gives(&self, bytes: usize) {
        self.given.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether there is room for more bodies in memory.
    pub fn has_room(&self) -> bool {
        self.shared.has_room()
    }

    /// Returns when there is room for more of the request's body, or the connection ends.
    pub async fn room(&self) {
        std::future::poll_fn(|context| {
            self.wakes(context);
            self.waits_for_room.store(true, Ordering::Release);
            let goes_on = self.has_room() || self.ends().is_some();
            if goes_on { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.waits_for_room.store(false, Ordering::Release);
    }

    /// There is room: whoever waits for it goes on.
    pub(super) fn has_found_room(&self) {
        if self.waits_for_room.load(Ordering::Acquire) {
            self.waker.wake();
        }
    }

    /// Counts a part of the request's body until the backend has it.
    pub fn carries(self: &Arc<Self>, part: Bytes) -> Bytes {
        self.shared.uploads.fetch_add(len(&part), Ordering::Relaxed);
        self.carried.fetch_add(len(&part), Ordering::Relaxed);
        Bytes::from_owner(Part { bytes: part, connection: Arc::clone(self) })
    }

    /// The backend has taken all there was: only from now on is it the client that is waited for.
    fn waits_anew(&self) {
        let (now, due) = (self.shared.now_ms(), self.due_in(self.shared.deadlines.body));
        for (waiting, anew) in [(&self.waits_since, now), (&self.read_due, due)] {
            let seen = waiting.load(Ordering::Relaxed);
            if seen != NEVER {
                // Who has stopped waiting meanwhile does not begin again.
                waiting.compare_exchange(seen, anew, Ordering::Relaxed, Ordering::Relaxed).ok();
            }
        }
    }

    /// Whether a stream waits for the backend to take what it has. A socket is not read then, and so waits for nobody.
    fn waits_for_backend(&self) -> bool {
        self.is_stream() && self.carried.load(Ordering::Relaxed) > 0
    }

    /// The backend has begun to answer.
    pub fn is_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// A write must wait for the client, or waits no longer.
    pub fn write_waits(&self, waits: bool) {
        let due = self.write_due.load(Ordering::Relaxed);
        if waits && due == NEVER {
            self.write_due.store(self.due_in(self.shared.deadlines.write), Ordering::Relaxed);
        } else if !waits && due != NEVER {
            self.write_due.store(NEVER, Ordering::Relaxed);
        }
    }

    /// The backend must begin to answer within that time; none: it has, or nobody waits for it. Where Pingora counts the same
    /// time, it has a moment more to say what it was that took so long.
    pub fn backend_within(&self, within: Option<Duration>) {
        let due = within.map_or(NEVER, |within| self.due_in(within + TICK));
        self.backend_due.store(due, Ordering::Relaxed);
    }

    /// From now on bytes pass in both directions, whatever they are.
    pub fn becomes_tunnel(&self) {
        self.tunnel.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether it has become one.
    pub fn is_tunnel(&self) -> bool {
        self.tunnel.load(Ordering::Acquire)
    }

    /// Ends it for this reason.
    pub fn end_with(&self, end: End) {
        self.end.store(end as u8, Ordering::Release);
        self.waker.wake();
    }

    /// Why it ends, if it does.
    pub fn ends(&self) -> Option<End> {
        End::of(self.end.load(Ordering::Acquire))
    }

    /// Forgets the end it was given, so that what is still to be said can be written and lingered over.
    pub fn survive(&self, stage: Stage) {
        self.end.store(u8::MAX, Ordering::Release);
        self.enter(stage);
    }

    /// Has the task of `context` woken when the connection is ended.
    pub fn wakes(&self, context: &Context<'_>) {
        self.waker.register(context.waker());
    }

    /// Bytes of bodies held for this client, about.
    pub(super) fn bytes(&self) -> u64 {
        let taken = self.taken.load(Ordering::Relaxed).saturating_sub(self.given.load(Ordering::Relaxed));
        taken + if self.is_stalled() { PIPE_BYTES } else { 0 }
    }

    /// Whether the client is to take something and does not.
    pub(super) fn is_stalled(&self) -> bool {
        self.write_due.load(Ordering::Relaxed) != NEVER
    }

    /// Whether ending it may free memory: it takes nothing, or has streams, each of which may take nothing.
    pub(super) fn may_hold(&self) -> bool {
        self.is_stalled() || (self.is_tunnel() && self.bytes() > 0)
    }

    /// Who goes first when there is no room: the lowest. None: it is being served.
    pub(super) fn rank(&self) -> Option<u64> {
        let since = self.since.load(Ordering::Relaxed) >> 1;
        match Stage::of(self.stage.load(Ordering::Relaxed))? {
            Stage::FirstByte | Stage::Head => Some(since),
            Stage::Idle => Some(since | 1 << 63),
            Stage::Request | Stage::Linger => None,
        }
    }

    /// Whether the body it waits for comes too slowly.
    fn is_slow(&self, now: u64) -> bool {
        let since = self.waits_since.load(Ordering::Relaxed);
        if since == NEVER || self.shared.body_rate == 0 || self.answered.load(Ordering::Relaxed) {
            return false;
        }
        let waited = self.waited.load(Ordering::Relaxed) + now.saturating_sub(since);
        let owed = self.shared.body_rate.saturating_mul(waited) / 1_000;
        let came = self.came.load(Ordering::Relaxed);
        // Nothing at all may be because it is the backend's word that the client waits for.
        waited > ms(self.shared.deadlines.head) && came > 0 && came < owed
    }

    fn due_in(&self, within: Duration) -> u64 {
        self.shared.now_ms().saturating_add(ms(within))
    }

    /// Why it has to end at `now`, if it has. `stopping` is since when the gateway stops.
    pub(super) fn is_due(&self, now: u64, stopping: Option<u64>) -> Option<End> {
        let ends = self.ends();
        if ends.is_some_and(|end| !end.can_answer()) {
            return None;
        }
        if now >= self.write_due.load(Ordering::Relaxed) {
            return Some(End::WriteStalled);
        }
        if ends.is_some() {
            // It is being told why.
            return None;
        }
        let stage = Stage::of(self.stage.load(Ordering::Relaxed))?;
        if let (Stage::FirstByte | Stage::Idle, Some(stopping)) = (stage, stopping) {
            let since = stopping.max(self.since.load(Ordering::Relaxed));
            if now >= since.saturating_add(ms(self.shared.deadlines.last_request)) {
                return Some(End::Stopping);
            }
        }
        if stage == Stage::Request && self.is_slow(now) && !self.waits_for_backend() {
            return Some(End::BodySlow);
        }
        if stage == Stage::Request && now >= self.backend_due.load(Ordering::Relaxed) {
            return Some(End::BackendLate);
        }
        if now < self.read_due.load(Ordering::Relaxed)
            || (stage == Stage::Request && self.waits_for_backend())
        {
            return None;
        }
        Some(match stage {
            Stage::FirstByte | Stage::Idle | Stage::Linger => End::Silent,
            Stage::Head => End::HeadLate,
            Stage::Request => End::BodyLate,
        })
    }
}

// === impl End ===

impl End {
    /// As metrics say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::HeadLate => "head_late",
            Self::BodyLate => "body_late",
            Self::BodySlow => "body_slow",
            Self::BadChunks => "bad_chunks",
            Self::BackendLate => "backend_late",
            Self::KeyGone => "key_gone",
            Self::KeyInactive => "key_inactive",
            Self::KeyExpired => "key_expired",
            Self::WriteStalled => "write_stalled",
            Self::Crowded => "crowded",
            Self::OverBudget => "over_budget",
            Self::Stopping => "stopping",
        }
    }

    /// Whether the client can still be told something.
    pub const fn can_answer(self) -> bool {
        !matches!(self, Self::Silent | Self::WriteStalled | Self::Crowded | Self::OverBudget | Self::Stopping)
    }
}

fn len(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
