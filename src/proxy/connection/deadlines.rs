//! What a connection is at, and until when: whom it waits for, how long it has, and who goes first when there is no room.

use super::{CloseReason, Connection};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// How often the connections are looked at, and so how exact a deadline is: never early, at most this late.
pub(in crate::proxy) const TICK: Duration = Duration::from_millis(100);
/// A deadline that is none.
const NEVER: u64 = u64::MAX;
/// Ranks from here on are of connections that have asked for something before.
pub(in crate::proxy) const IDLE_RANK: u64 = 1 << 63;
/// A client that closes its side so soon after its request may only have nothing more to say. After that time it is asked
/// whether it is still there.
const HALF_CLOSE: Duration = Duration::from_secs(1);
/// How long the rest of a request may come once its answer is whole.
pub(in crate::proxy) const REST_WITHIN: Duration = Duration::from_secs(30);

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

/// What a backend was too slow with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum BackendTimeout {
    /// Answering, or going on with its answer.
    Read,
    /// Taking the request.
    Write,
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
pub(super) struct StageTimer {
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
    /// Since when it is the client that something written waits for; [`NEVER`]: it is not.
    write_since: AtomicU64,
    /// How long that was before, and how many bytes it took, since both were last looked at together.
    write_waited: AtomicU64,
    took: AtomicU64,
    /// When the backend must have begun to answer, or be done; [`NEVER`]: nobody waits for that.
    backend: AtomicU64,
    /// How long it may pause within its answer, where it is not Pingora that counts; 0: as long as it likes. And until when.
    pause: AtomicU64,
    pause_ends: AtomicU64,
    /// When the backend must have taken the part of the request's body that it was given last; [`NEVER`]: it has.
    upload: AtomicU64,
    /// Whether the backend has begun to answer: from then on it is a conversation, in which the client owes nothing.
    answered: AtomicBool,
    /// Until when the rest of the request's body may come, once the answer is whole; [`NEVER`]: it is not.
    rest: AtomicU64,
    /// When the client closed its side after its request; [`NEVER`]: it has not.
    half_closed: AtomicU64,
}

// === impl StageTimer ===

impl StageTimer {
    pub(super) const fn new() -> Self {
        Self {
            stage: AtomicU8::new(Stage::FirstByte as u8),
            since: AtomicU64::new(0),
            read: AtomicU64::new(NEVER),
            waits_since: AtomicU64::new(NEVER),
            waited: AtomicU64::new(0),
            came: AtomicU64::new(0),
            write: AtomicU64::new(NEVER),
            write_since: AtomicU64::new(NEVER),
            write_waited: AtomicU64::new(0),
            took: AtomicU64::new(0),
            backend: AtomicU64::new(NEVER),
            pause: AtomicU64::new(0),
            pause_ends: AtomicU64::new(NEVER),
            upload: AtomicU64::new(NEVER),
            answered: AtomicBool::new(false),
            rest: AtomicU64::new(NEVER),
            half_closed: AtomicU64::new(NEVER),
        }
    }

    /// Another request begins.
    fn begin(&self) {
        self.write_waited.store(0, Ordering::Relaxed);
        self.took.store(0, Ordering::Relaxed);
        self.waited.store(0, Ordering::Relaxed);
        self.came.store(0, Ordering::Relaxed);
        self.backend.store(NEVER, Ordering::Relaxed);
        self.pause.store(0, Ordering::Relaxed);
        self.pause_ends.store(NEVER, Ordering::Relaxed);
        self.upload.store(NEVER, Ordering::Relaxed);
        self.answered.store(false, Ordering::Relaxed);
        self.rest.store(NEVER, Ordering::Relaxed);
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
            self.buffered.begin();
        }
        if stage == Stage::Idle {
            self.set_served_key(None);
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
    pub fn on_read_pending(&self) {
        self.backend_has_taken();
        if self.due.read.load(Ordering::Relaxed) == NEVER {
            let Deadlines { body, linger, .. } = self.shared.deadlines;
            let within = if self.has_whole_answer() { linger } else { body };
            self.due.read.store(self.due_in(within), Ordering::Relaxed);
            self.due.waits_since.store(self.shared.now_ms(), Ordering::Relaxed);
        }
    }

    /// It waits no longer: so many bytes came.
    pub fn on_read(&self, bytes: usize) {
        self.backend_has_taken();
        self.due.came.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        if self.due.read.load(Ordering::Relaxed) != NEVER {
            let since = self.due.waits_since.swap(NEVER, Ordering::Relaxed);
            self.due.waited.fetch_add(self.shared.now_ms().saturating_sub(since), Ordering::Relaxed);
            self.due.read.store(NEVER, Ordering::Relaxed);
        }
    }

    /// The backend has taken all there was: only from now on is it the client that is waited for.
    pub(super) fn restart_body_deadline(&self) {
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
    pub fn mark_answered(&self) {
        self.due.answered.store(true, Ordering::Relaxed);
    }

    /// All of its answer has come: whatever of the request is still to come matters to nobody, and the backend is done.
    pub fn answer_is_whole(&self) {
        self.due.rest.store(self.due_in(REST_WITHIN), Ordering::Relaxed);
        self.due.backend.store(NEVER, Ordering::Relaxed);
        self.due.pause.store(0, Ordering::Relaxed);
        self.due.pause_ends.store(NEVER, Ordering::Relaxed);
    }

    fn has_whole_answer(&self) -> bool {
        self.due.rest.load(Ordering::Relaxed) != NEVER
    }

    /// Whether it has.
    pub(in crate::proxy) fn has_answer(&self) -> bool {
        self.due.answered.load(Ordering::Relaxed)
    }

    /// A write must wait for the client, or waits no longer.
    pub fn set_write_pending(&self, waits: bool) {
        let due = self.due.write.load(Ordering::Relaxed);
        if waits && due == NEVER {
            self.due.write.store(self.due_in(self.shared.deadlines.write), Ordering::Relaxed);
            self.set_part_pending(true);
        } else if !waits && due != NEVER {
            self.due.write.store(NEVER, Ordering::Relaxed);
            self.set_part_pending(false);
        }
    }

    /// The client has taken so many bytes.
    pub(super) fn takes_bytes(&self, bytes: usize) {
        self.due.took.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A part of the answer must wait for the client, or waits no longer: meanwhile it is not the backend that pauses.
    pub fn set_part_pending(&self, waits: bool) {
        let now = self.shared.now_ms();
        if waits {
            self.due.write_since.store(now, Ordering::Relaxed);
        } else {
            let since = self.due.write_since.swap(NEVER, Ordering::Relaxed);
            self.due.write_waited.fetch_add(now.saturating_sub(since), Ordering::Relaxed);
        }
        let pause = self.due.pause.load(Ordering::Relaxed);
        if pause != 0 {
            let ends = if waits { NEVER } else { self.due_in(Duration::from_millis(pause)) };
            self.due.pause_ends.store(ends, Ordering::Relaxed);
        }
    }

    /// The backend must begin to answer within that time; none: it has, or nobody waits for it. Where Pingora counts the same
    /// time, it has a moment more to say what it was that took so long.
    pub fn set_backend_deadline(&self, within: Option<Duration>) {
        let due = within.map_or(NEVER, |within| self.due_in(within + TICK));
        self.due.backend.store(due, Ordering::Relaxed);
    }

    /// Whoever serves a request that has been ended has the time of a connection that lingers to tell the client why.
    pub(super) fn await_notification(&self) {
        self.due.read.store(self.due_in(self.shared.deadlines.linger), Ordering::Relaxed);
    }

    /// A part of the request's body is given to a backend, which has that time to take it.
    pub fn backend_takes_within(&self, within: Duration) {
        self.due.upload.store(self.due_in(within), Ordering::Relaxed);
    }

    /// The same of a part that it has been given before, as of the first time that it had to be waited for.
    pub(in crate::proxy) fn backend_must_take(&self, within: Duration) {
        if self.due.upload.load(Ordering::Relaxed) == NEVER {
            self.backend_takes_within(within);
        }
    }

    /// It has taken it: whoever sends the body reads on.
    pub fn backend_has_taken(&self) {
        self.due.upload.store(NEVER, Ordering::Relaxed);
    }

    /// The client has closed its side after its request, and may still read. Whoever looks after all connections wakes whoever
    /// reads it, so that it can find out ([`Self::may_have_left`]).
    pub fn is_half_closed(&self) {
        self.due.half_closed.store(self.shared.now_ms(), Ordering::Relaxed);
    }

    /// Whether it did so a while ago and has been given nothing since that would have shown whether it is still there.
    pub(in crate::proxy) fn may_have_left(&self, now: u64) -> bool {
        let since = self.due.half_closed.load(Ordering::Relaxed);
        since != NEVER && now >= since.saturating_add(ms(HALF_CLOSE)) && !self.has_answer()
    }

    /// The same, as of now.
    pub fn has_perhaps_left(&self) -> bool {
        self.may_have_left(self.shared.now_ms())
    }

    /// From now on the backend may pause for so long within its answer, or either side of a tunnel.
    pub fn set_backend_read_timeout(&self, within: Duration) {
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
            Stage::Idle => Some(since | IDLE_RANK),
            Stage::Request | Stage::Linger => None,
        }
    }

    /// How long it has waited for its request's body in all, if it does so now.
    fn waited_for_body(&self, now: u64) -> Option<u64> {
        let since = self.due.waits_since.load(Ordering::Relaxed);
        (since != NEVER).then(|| self.due.waited.load(Ordering::Relaxed) + now.saturating_sub(since))
    }

    /// How long others have done without what is held back of the body it waits for, once that is longer than a head may take.
    pub(in crate::proxy) fn buffered_for(&self, now: u64) -> Option<u64> {
        self.waited_for_body(now)
            .filter(|waited| self.buffered_body_bytes() > 0 && *waited > ms(self.shared.deadlines.head))
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

    /// Whether the client takes what is written to it too slowly: less than it owes of bodies, in all the time of one wait at
    /// most that it is waited for. Then that time begins anew.
    fn takes_slowly(&self, now: u64) -> bool {
        let since = self.due.write_since.load(Ordering::Relaxed);
        let waited = self.due.write_waited.load(Ordering::Relaxed) + now.saturating_sub(since);
        if waited < ms(self.shared.deadlines.write) {
            return false;
        }
        if since != NEVER {
            // Who has stopped waiting meanwhile does not begin again.
            self.due.write_since.compare_exchange(since, now, Ordering::Relaxed, Ordering::Relaxed).ok();
        }
        self.due.write_waited.store(0, Ordering::Relaxed);
        let took = self.due.took.swap(0, Ordering::Relaxed);
        took < self.shared.body_rate.saturating_mul(waited) / 1_000
    }

    fn backend_is_late_at(&self, now: u64) -> bool {
        let backend = [&self.due.backend, &self.due.pause_ends, &self.due.upload];
        backend.iter().any(|due| now >= due.load(Ordering::Relaxed))
    }

    /// What the backend is late with, if it is.
    pub(in crate::proxy) fn backend_late(&self) -> Option<BackendTimeout> {
        let now = self.shared.now_ms();
        if !self.backend_is_late_at(now) {
            return None;
        }
        let takes_nothing = now >= self.due.upload.load(Ordering::Relaxed);
        Some(if takes_nothing { BackendTimeout::Write } else { BackendTimeout::Read })
    }

    fn due_in(&self, within: Duration) -> u64 {
        self.shared.now_ms().saturating_add(ms(within))
    }

    /// Why it has to end at `now`, if it has. `stopping` is since when the gateway stops.
    pub(in crate::proxy) fn overdue_reason(&self, now: u64, stopping: Option<u64>) -> Option<CloseReason> {
        let ends = self.close_reason();
        if ends.is_some_and(|end| !end.can_answer()) {
            return None;
        }
        if now >= self.due.write.load(Ordering::Relaxed) {
            return Some(CloseReason::WriteStalled);
        }
        if self.takes_slowly(now) {
            return Some(CloseReason::WriteSlow);
        }
        if ends.is_some() {
            // It is being told why. That may be nobody's concern at the moment, while its backend takes nothing.
            let is_told = now < self.due.read.load(Ordering::Relaxed);
            let is_served = Stage::of(self.due.stage.load(Ordering::Relaxed)) == Some(Stage::Request);
            return (is_served && !is_told && !self.is_tunnel()).then_some(CloseReason::Unheard);
        }
        let stage = Stage::of(self.due.stage.load(Ordering::Relaxed))?;
        if let (Stage::FirstByte | Stage::Idle, Some(stopping)) = (stage, stopping) {
            let since = stopping.max(self.due.since.load(Ordering::Relaxed));
            if now >= since.saturating_add(ms(self.shared.deadlines.last_request)) {
                return Some(CloseReason::Stopping);
            }
        }
        if stage == Stage::Request && self.is_slow(now) && !self.waits_for_backend() {
            return Some(CloseReason::BodySlow);
        }
        if stage == Stage::Request && self.backend_is_late_at(now) {
            if self.is_tunnel() {
                return Some(CloseReason::TunnelIdle);
            }
            if !self.is_in_exchange() {
                return Some(CloseReason::BackendLate);
            }
            self.wake();
        }
        let waits = self.due.waits_since.load(Ordering::Relaxed) != NEVER;
        if stage == Stage::Request && waits && now >= self.due.rest.load(Ordering::Relaxed) {
            return Some(CloseReason::RestLate);
        }
        if now < self.due.read.load(Ordering::Relaxed)
            || (stage == Stage::Request && self.waits_for_backend())
        {
            return None;
        }
        Some(match stage {
            Stage::FirstByte | Stage::Idle | Stage::Linger => CloseReason::Silent,
            Stage::Head => CloseReason::HeadLate,
            Stage::Request if self.has_whole_answer() => CloseReason::RestLate,
            Stage::Request => CloseReason::BodyLate,
        })
    }
}

pub(in crate::proxy) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
