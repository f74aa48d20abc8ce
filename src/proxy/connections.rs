//! Every client connection, as those see it who do not own its socket: how long it may still take, and why it ends.
//!
//! Must not know: HTTP. One task looks at all connections every [`TICK`] and ends those that are late, so that no
//! request sets a timer and reads no clock for its deadlines.

use crate::metrics::Metrics;
use atomic_waker::AtomicWaker;
use slab::Slab;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often the connections are looked at, and so how exact a deadline is: never early, at most this late.
const TICK: Duration = Duration::from_millis(100);
/// Parts of the table, so that accepting does not wait for the look at all of them.
const SHARDS: usize = 16;
/// A deadline that is none.
const NEVER: u64 = u64::MAX;

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
}

/// The table of connections.
pub struct Connections {
    now_ms: Arc<AtomicU64>,
    shards: [Mutex<Slab<Arc<Connection>>>; SHARDS],
    next: AtomicUsize,
    deadlines: Deadlines,
    metrics: Arc<Metrics>,
}

/// One client connection.
pub struct Connection {
    /// The client's end.
    pub peer: SocketAddr,
    deadlines: Deadlines,
    now_ms: Arc<AtomicU64>,
    stage: AtomicU8,
    read_due: AtomicU64,
    write_due: AtomicU64,
    end: AtomicU8,
    tunnel: AtomicBool,
    waker: AtomicWaker,
}

/// A place in the table; dropping it gives it back.
pub struct Registered {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
    shard: usize,
    key: usize,
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
        /// The body's chunks make no sense.
        BadChunks,
        /// The client takes nothing of what is written to it.
        WriteStalled,
        /// The gateway stops.
        Stopping,
    }
);

// === impl Connections ===

impl Connections {
    /// An empty table.
    pub fn new(deadlines: Deadlines, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            now_ms: Arc::default(),
            shards: std::array::from_fn(|_| Mutex::default()),
            next: AtomicUsize::new(0),
            deadlines,
            metrics,
        })
    }

    /// Takes a connection in.
    pub fn register(self: &Arc<Self>, peer: SocketAddr) -> Registered {
        let connection = Arc::new(Connection {
            peer,
            deadlines: self.deadlines,
            now_ms: Arc::clone(&self.now_ms),
            stage: AtomicU8::new(Stage::FirstByte as u8),
            read_due: AtomicU64::new(NEVER),
            write_due: AtomicU64::new(NEVER),
            end: AtomicU8::new(u8::MAX),
            tunnel: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        connection.enter(Stage::FirstByte);
        let shard = self.next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let key = self.shard(shard).insert(Arc::clone(&connection));
        self.metrics.connections.inc();
        Registered { connections: Arc::clone(self), connection, shard, key }
    }

    /// Looks after all connections until the runtime ends.
    pub async fn watch(self: Arc<Self>, stop: watch::Receiver<bool>) {
        let begun = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let now = ms(begun.elapsed());
            self.now_ms.store(now, Ordering::Relaxed);
            self.look(now, *stop.borrow());
        }
    }

    fn look(&self, now: u64, stopping: bool) {
        for shard in 0..SHARDS {
            for (_, connection) in self.shard(shard).iter() {
                if let Some(end) = connection.is_due(now, stopping) {
                    connection.end_with(end);
                    self.metrics.connections_cut.with_label_values(&[end.as_str()]).inc();
                }
            }
        }
    }

    fn shard(&self, shard: usize) -> std::sync::MutexGuard<'_, Slab<Arc<Connection>>> {
        // A slab is whole whatever happened to the thread that held it.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Registered ===

impl Registered {
    /// The connection.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.shard(self.shard).remove(self.key);
        self.connections.metrics.connections.dec();
    }
}

// === impl Connection ===

impl Connection {
    /// Goes on to `stage`, and to its deadline.
    pub fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
        let within = match stage {
            Stage::FirstByte => self.deadlines.first_byte,
            Stage::Idle => self.deadlines.idle,
            Stage::Head => self.deadlines.head,
            Stage::Linger => self.deadlines.linger,
            Stage::Request => return self.read_due.store(NEVER, Ordering::Relaxed),
        };
        self.read_due.store(self.due_in(within), Ordering::Relaxed);
    }

    /// A read of a body must wait for the client.
    pub fn read_waits(&self) {
        if self.read_due.load(Ordering::Relaxed) == NEVER {
            self.read_due.store(self.due_in(self.deadlines.body), Ordering::Relaxed);
        }
    }

    /// It waits no longer.
    pub fn read_goes_on(&self) {
        if self.read_due.load(Ordering::Relaxed) != NEVER {
            self.read_due.store(NEVER, Ordering::Relaxed);
        }
    }

    /// A write must wait for the client, or waits no longer.
    pub fn write_waits(&self, waits: bool) {
        let due = self.write_due.load(Ordering::Relaxed);
        if waits && due == NEVER {
            self.write_due.store(self.due_in(self.deadlines.write), Ordering::Relaxed);
        } else if !waits && due != NEVER {
            self.write_due.store(NEVER, Ordering::Relaxed);
        }
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

    fn due_in(&self, within: Duration) -> u64 {
        // What is read here is up to a tick old, and a deadline is never early.
        self.now_ms.load(Ordering::Relaxed).saturating_add(ms(within + TICK))
    }

    fn is_due(&self, now: u64, stopping: bool) -> Option<End> {
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
        if stopping && matches!(stage, Stage::FirstByte | Stage::Idle | Stage::Head) {
            return Some(End::Stopping);
        }
        if now < self.read_due.load(Ordering::Relaxed) {
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
            Self::BadChunks => "bad_chunks",
            Self::WriteStalled => "write_stalled",
            Self::Stopping => "stopping",
        }
    }

    /// Whether the client can still be told something.
    pub const fn can_answer(self) -> bool {
        matches!(self, Self::HeadLate | Self::BodyLate | Self::BadChunks)
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
