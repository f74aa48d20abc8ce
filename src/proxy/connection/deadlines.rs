//! What a connection is at, and until when: whom it waits for, how long it has, and who goes first when there is no room.

use super::{Connection, End};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// How often the connections are looked at, and so how exact a deadline is: never early, at most this late.
pub(in crate::proxy) const TICK: Duration = Duration::from_millis(100);
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
    /// For a next request once the gateway stops: a client that sends one has not heard of it yet.
    pub last_request: Duration,
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

/// What a connection waits for, and until when. Times are in milliseconds.
pub(super) struct Due {
    stage: AtomicU8,
    /// When its stage began.
    since: AtomicU64,
    read: AtomicU64,
    /// Since when it waits for the next part of a body; [`NEVER`]: it does not.
    waits_since: AtomicU64,
    /// How long it has waited for the body so far, and what came of it, in bytes.
    waited: AtomicU64,
    came: AtomicU64,
    write: AtomicU64,
    /// When the backend must have begun to answer, or be done; [`NEVER`]: nobody waits for that.
    backend: AtomicU64,
    /// How long it may pause within its answer, where it is not Pingora that counts; 0: as long as it likes. And until when.
    pause: AtomicU64,
    pause_ends: AtomicU64,
    /// Whether the backend has begun to answer: from then on it is a conversation, in which the client owes nothing.
    answered: AtomicBool,
}

// === impl Due ===

impl Due {
    pub(super) const fn new() -> Self {
        Self {
            stage: AtomicU8::new(Stage::FirstByte as u8),
            since: AtomicU64::new(0),
            read: AtomicU64::new(NEVER),
            waits_since: AtomicU64::new(NEVER),
            waited: AtomicU64::new(0),
            came: AtomicU64::new(0),
            write: AtomicU64::new(NEVER),
            backend: AtomicU64::new(NEVER),
            pause: AtomicU64::new(0),
            pause_ends: AtomicU64::new(NEVER),
            answered: AtomicBool::new(false),
        }
    }

    /// Another request begins.
    fn begin(&self) {
        self.waited.store(0, Ordering::Relaxed);
        self.came.store(0, Ordering::Relaxed);
        self.backend.store(NEVER, Ordering::Relaxed);
        self.pause.store(0, Ordering::Relaxed);
        self.pause_ends.store(NEVER, Ordering::Relaxed);
        self.answered.store(false, Ordering::Relaxed);
    }
}

impl Connection {
    /// Goes on to `stage`, and to its deadline.
    pub fn enter(&self, stage: Stage) {
        let now = self.shared.now_ms();
        self.due.stage.store(stage as u8, Ordering::Relaxed);
        self.due.since.store(now, Ordering::Relaxed);
        if stage == Stage::Idle || stage == Stage::Request {
            self.due.begin();
        }
        if matches!(stage, Stage::Idle | Stage::Request | Stage::Linger) {
            self.held.begin();
        }
        if stage == Stage::Idle {
            self.serves(None);
        }
        let within = match stage {
            Stage::FirstByte => self.shared.deadlines.first_byte,
            Stage::Idle => self.shared.deadlines.idle,
            Stage::Head => self.shared.deadlines.head,
            Stage::Linger => self.shared.deadlines.linger,
            Stage::Request => return self.due.read.store(NEVER, Ordering::Relaxed),
        };
        self.due.read.store(now.saturating_add(ms(within)), Ordering::Relaxed);
    }

    /// A read of a body must wait for the client.
    pub fn read_waits(&self) {
        if self.due.read.load(Ordering::Relaxed) == NEVER {
            self.due.read.store(self.due_in(self.shared.deadlines.body), Ordering::Relaxed);
            self.due.waits_since.store(self.shared.now_ms(), Ordering::Relaxed);
        }
    }

    /// It waits no longer: so many bytes came.
    pub fn read_goes_on(&self, bytes: usize) {
        self.due.came.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        if self.due.read.load(Ordering::Relaxed) != NEVER {
            let since = self.due.waits_since.swap(NEVER, Ordering::Relaxed);
            self.due.waited.fetch_add(self.shared.now_ms().saturating_sub(since), Ordering::Relaxed);
            self.due.read.store(NEVER, Ordering::Relaxed);
        }
    }

    /// The backend has taken all there was: only from now on is it the client that is waited for.
    pub(super) fn waits_anew(&self) {
        let (now, due) = (self.shared.now_ms(), self.due_in(self.shared.deadlines.body));
        for (waiting, anew) in [(&self.due.waits_since, now), (&self.due.read, due)] {
            let seen = waiting.load(Ordering::Relaxed);
            if seen != NEVER {
                // Who has stopped waiting meanwhile does not begin again.
                waiting.compare_exchange(seen, anew, Ordering::Relaxed, Ordering::Relaxed).ok();
            }
        }
    }

    /// The backend has begun to answer.
    pub fn is_answered(&self) {
        self.due.answered.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    pub(super) fn has_answer(&self) -> bool {
        self.due.answered.load(Ordering::Relaxed)
    }

    /// A write must wait for the client, or waits no longer.
    pub fn write_waits(&self, waits: bool) {
        let due = self.due.write.load(Ordering::Relaxed);
        if waits && due == NEVER {
            self.due.write.store(self.due_in(self.shared.deadlines.write), Ordering::Relaxed);
            self.part_waits(true);
        } else if !waits && due != NEVER {
            self.due.write.store(NEVER, Ordering::Relaxed);
            self.part_waits(false);
        }
    }

    /// A part of the answer must wait for the client, or waits no longer: meanwhile it is not the backend that pauses.
    pub fn part_waits(&self, waits: bool) {
        let pause = self.due.pause.load(Ordering::Relaxed);
        if pause != 0 {
            let ends = if waits { NEVER } else { self.due_in(Duration::from_millis(pause)) };
            self.due.pause_ends.store(ends, Ordering::Relaxed);
        }
    }

    /// The backend must begin to answer within that time; none: it has, or nobody waits for it. Where Pingora counts the same
    /// time, it has a moment more to say what it was that took so long.
    pub fn backend_within(&self, within: Option<Duration>) {
        let due = within.map_or(NEVER, |within| self.due_in(within + TICK));
        self.due.backend.store(due, Ordering::Relaxed);
    }

    /// A stream that has been ended is told why within the time of a connection that lingers.
    pub(super) fn is_to_be_told(&self) {
        if self.is_stream() {
            self.due.read.store(self.due_in(self.shared.deadlines.linger), Ordering::Relaxed);
        }
    }

    /// From now on the backend may pause for so long within its answer, or either side of a tunnel.
    pub fn backend_may_pause(&self, within: Duration) {
        self.due.pause.store(ms(within), Ordering::Relaxed);
        self.due.pause_ends.store(self.due_in(within), Ordering::Relaxed);
    }

    /// Whether the client is to take something and does not.
    pub(in crate::proxy) fn is_stalled(&self) -> bool {
        self.due.write.load(Ordering::Relaxed) != NEVER
    }

    /// Who goes first when there is no room: the lowest. None: it is being served.
    pub(in crate::proxy) fn rank(&self) -> Option<u64> {
        let since = self.due.since.load(Ordering::Relaxed) >> 1;
        match Stage::of(self.due.stage.load(Ordering::Relaxed))? {
            Stage::FirstByte | Stage::Head => Some(since),
            Stage::Idle => Some(since | 1 << 63),
            Stage::Request | Stage::Linger => None,
        }
    }

    /// How long it has waited for its request's body in all, if it does so now.
    fn waited_for_body(&self, now: u64) -> Option<u64> {
        let since = self.due.waits_since.load(Ordering::Relaxed);
        (since != NEVER).then(|| self.due.waited.load(Ordering::Relaxed) + now.saturating_sub(since))
    }

    /// How long others have done without what is held back of the body it waits for, once that is longer than a head may take.
    pub(in crate::proxy) fn holds_back_for(&self, now: u64) -> Option<u64> {
        self.waited_for_body(now)
            .filter(|waited| self.held_back() > 0 && *waited > ms(self.shared.deadlines.head))
    }

    /// Whether the body it waits for comes too slowly.
    fn is_slow(&self, now: u64) -> bool {
        let Some(waited) = self.waited_for_body(now) else { return false };
        if self.shared.body_rate == 0 || self.has_answer() {
            return false;
        }
        let owed = self.shared.body_rate.saturating_mul(waited) / 1_000;
        let came = self.due.came.load(Ordering::Relaxed);
        // Nothing at all may be because it is the backend's word that the client waits for.
        waited > ms(self.shared.deadlines.head) && came > 0 && came < owed
    }

    fn due_in(&self, within: Duration) -> u64 {
        self.shared.now_ms().saturating_add(ms(within))
    }

    /// Why it has to end at `now`, if it has. `stopping` is since when the gateway stops.
    pub(in crate::proxy) fn is_due(&self, now: u64, stopping: Option<u64>) -> Option<End> {
        let ends = self.ends();
        if ends.is_some_and(|end| !end.can_answer()) {
            return None;
        }
        if now >= self.due.write.load(Ordering::Relaxed) {
            return Some(End::WriteStalled);
        }
        if ends.is_some() {
            // It is being told why. Of a stream that may be nobody's concern at the moment, while its backend takes nothing.
            let is_told = now < self.due.read.load(Ordering::Relaxed);
            return (self.is_stream() && !is_told).then_some(End::Silent);
        }
        let stage = Stage::of(self.due.stage.load(Ordering::Relaxed))?;
        if let (Stage::FirstByte | Stage::Idle, Some(stopping)) = (stage, stopping) {
            let since = stopping.max(self.due.since.load(Ordering::Relaxed));
            if now >= since.saturating_add(ms(self.shared.deadlines.last_request)) {
                return Some(End::Stopping);
            }
        }
        if stage == Stage::Request && self.is_slow(now) && !self.waits_for_backend() {
            return Some(End::BodySlow);
        }
        if stage == Stage::Request {
            let (backend, pause) = (&self.due.backend, &self.due.pause_ends);
            if now >= backend.load(Ordering::Relaxed).min(pause.load(Ordering::Relaxed)) {
                return Some(if self.is_tunnel() { End::TunnelIdle } else { End::BackendLate });
            }
        }
        if now < self.due.read.load(Ordering::Relaxed)
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

pub(in crate::proxy) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
