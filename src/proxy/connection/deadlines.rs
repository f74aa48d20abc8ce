//! The stage of a connection and its deadlines: what it waits for, how long, and which connection is evicted first.

use super::{CloseReason, Connection};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// Interval at which all connections are checked, and so the precision of deadlines: never early, at most this late.
pub(in crate::proxy) const TICK: Duration = Duration::from_millis(100);
/// No deadline.
const NEVER: u64 = u64::MAX;
/// Ranks from here on belong to connections that have sent a request before.
pub(in crate::proxy) const IDLE_RANK: u64 = 1 << 63;
/// A client that closes its side soon after its request may just have nothing more to send. After this time the
/// gateway probes whether it is still there.
const HALF_CLOSE: Duration = Duration::from_secs(1);
/// Longest time for the rest of a request body once the response is complete.
pub(in crate::proxy) const REST_WITHIN: Duration = Duration::from_secs(30);

/// Deadlines of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For the first byte of the first request.
    pub first_byte: Duration,
    /// For a request head, from its first byte to its last.
    pub head: Duration,
    /// Between a response and the first byte of the next request.
    pub idle: Duration,
    /// For the next part of a body.
    pub body: Duration,
    /// For the client to accept any of what is written to it.
    pub write: Duration,
    /// For bytes that still arrive after the last response, before the connection is closed.
    pub linger: Duration,
    /// For another request once the gateway stops: a client that sends one does not know yet.
    pub last_request: Duration,
}

/// Which deadline a backend missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum BackendTimeout {
    /// For the start of its response, or the next part of it.
    Read,
    /// For accepting the request.
    Write,
}

numbered!(
    /// The stage of a connection.
    Stage {
        /// Waits for its first byte.
        FirstByte,
        /// Between requests.
        Idle,
        /// Receives the head of a request.
        Head,
        /// Serves a request. Reads and writes have their own deadlines.
        Request,
        /// After the last response: bytes that still arrive are discarded.
        Linger,
    }
);

/// What a connection waits for, and until when. Times are in milliseconds.
pub(super) struct StageTimer {
    stage: AtomicU8,
    /// When the stage began.
    since: AtomicU64,
    read: AtomicU64,
    /// Since when it waits for the next part of a body; [`NEVER`]: it does not.
    waits_since: AtomicU64,
    /// Total time it has waited for the body, and the body bytes received.
    waited: AtomicU64,
    received: AtomicU64,
    write: AtomicU64,
    /// Since when a write waits for the client; [`NEVER`]: none does.
    write_since: AtomicU64,
    /// Time that earlier writes have waited, and bytes accepted by the client, both since the last check of its
    /// speed.
    write_waited: AtomicU64,
    sent: AtomicU64,
    /// Deadline for the start of the backend's response, or for its end; [`NEVER`]: none.
    backend: AtomicU64,
    /// Longest pause in the backend's response, if Pingora does not time it; 0: no limit. And the deadline that
    /// follows from it.
    pause: AtomicU64,
    pause_ends: AtomicU64,
    /// Deadline for the backend to accept the current part of the request body; [`NEVER`]: none is pending.
    upload: AtomicU64,
    /// Whether the backend's response has started. From then on the two may be in a dialogue, so the client owes no
    /// upload rate.
    answered: AtomicBool,
    /// Deadline for the rest of the request body once the response is complete; [`NEVER`]: it is not.
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
            received: AtomicU64::new(0),
            write: AtomicU64::new(NEVER),
            write_since: AtomicU64::new(NEVER),
            write_waited: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            backend: AtomicU64::new(NEVER),
            pause: AtomicU64::new(0),
            pause_ends: AtomicU64::new(NEVER),
            upload: AtomicU64::new(NEVER),
            answered: AtomicBool::new(false),
            rest: AtomicU64::new(NEVER),
            half_closed: AtomicU64::new(NEVER),
        }
    }

    /// Resets the state for the next request.
    fn begin(&self) {
        self.write_waited.store(0, Ordering::Relaxed);
        self.sent.store(0, Ordering::Relaxed);
        self.waited.store(0, Ordering::Relaxed);
        self.received.store(0, Ordering::Relaxed);
        self.backend.store(NEVER, Ordering::Relaxed);
        self.pause.store(0, Ordering::Relaxed);
        self.pause_ends.store(NEVER, Ordering::Relaxed);
        self.upload.store(NEVER, Ordering::Relaxed);
        self.answered.store(false, Ordering::Relaxed);
        self.rest.store(NEVER, Ordering::Relaxed);
    }
}

impl Connection {
    /// Enters `stage` and sets its deadline.
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

    /// A read of a body waits for the client.
    pub fn on_read_pending(&self) {
        self.backend_has_taken();
        if self.due.read.load(Ordering::Relaxed) == NEVER {
            let Deadlines { body, linger, .. } = self.shared.deadlines;
            let within = if self.has_complete_answer() { linger } else { body };
            self.due.read.store(self.due_in(within), Ordering::Relaxed);
            self.due.waits_since.store(self.shared.now_ms(), Ordering::Relaxed);
        }
    }

    /// A read of a body returned this many bytes.
    pub fn on_read(&self, bytes: usize) {
        self.backend_has_taken();
        self.due.received.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        if self.due.read.load(Ordering::Relaxed) != NEVER {
            let since = self.due.waits_since.swap(NEVER, Ordering::Relaxed);
            self.due.waited.fetch_add(self.shared.now_ms().saturating_sub(since), Ordering::Relaxed);
            self.due.read.store(NEVER, Ordering::Relaxed);
        }
    }

    /// The backend has accepted all parts. Only from now on does the request wait for the client.
    pub(super) fn restart_body_deadline(&self) {
        let (now, due) = (self.shared.now_ms(), self.due_in(self.shared.deadlines.body));
        for (waiting, anew) in [(&self.due.waits_since, now), (&self.due.read, due)] {
            let seen = waiting.load(Ordering::Relaxed);
            if seen != NEVER {
                // If the wait has ended meanwhile, it is not started again.
                waiting.compare_exchange(seen, anew, Ordering::Relaxed, Ordering::Relaxed).ok();
            }
        }
    }

    /// The backend's response has started.
    pub fn mark_answered(&self) {
        self.due.answered.store(true, Ordering::Relaxed);
    }

    /// The response is complete. The backend has no more deadlines, and the rest of the request no longer matters.
    pub fn mark_answer_complete(&self) {
        self.due.rest.store(self.due_in(REST_WITHIN), Ordering::Relaxed);
        self.due.backend.store(NEVER, Ordering::Relaxed);
        self.due.pause.store(0, Ordering::Relaxed);
        self.due.pause_ends.store(NEVER, Ordering::Relaxed);
    }

    fn has_complete_answer(&self) -> bool {
        self.due.rest.load(Ordering::Relaxed) != NEVER
    }

    /// Whether the backend's response has started.
    pub(in crate::proxy) fn has_answer(&self) -> bool {
        self.due.answered.load(Ordering::Relaxed)
    }

    /// Sets whether a write waits for the client.
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

    /// The client has accepted this many bytes.
    pub(super) fn takes_bytes(&self, bytes: usize) {
        self.due.sent.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Sets whether a part of the response waits for the client. Meanwhile the backend's pause is not timed.
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

    /// Sets the deadline for the backend's response; none: no deadline. One tick is added, so that a Pingora timer of
    /// the same length fires first and reports which step was slow.
    pub fn set_backend_deadline(&self, within: Option<Duration>) {
        let due = within.map_or(NEVER, |within| self.due_in(within + TICK));
        self.due.backend.store(due, Ordering::Relaxed);
    }

    /// Gives the task that serves a closed request the linger time to send a last response.
    pub(super) fn await_notification(&self) {
        self.due.read.store(self.due_in(self.shared.deadlines.linger), Ordering::Relaxed);
    }

    /// The backend has this time to accept a part of the request body.
    pub fn backend_takes_within(&self, within: Duration) {
        self.due.upload.store(self.due_in(within), Ordering::Relaxed);
    }

    /// The same for a part given earlier: the time starts when a write of it is first pending.
    pub(in crate::proxy) fn backend_must_take(&self, within: Duration) {
        if self.due.upload.load(Ordering::Relaxed) == NEVER {
            self.backend_takes_within(within);
        }
    }

    /// The backend has accepted the part.
    pub fn backend_has_taken(&self) {
        self.due.upload.store(NEVER, Ordering::Relaxed);
    }

    /// The client has closed its side after its request, and may still read. The periodic check wakes the task that
    /// reads from the client, so that it can probe ([`Self::may_have_left`]).
    pub fn mark_half_closed(&self) {
        self.due.half_closed.store(self.shared.now_ms(), Ordering::Relaxed);
    }

    /// Whether the client closed its side some time ago and the response has not started since. Writing the response
    /// would show whether the client is still there.
    pub(in crate::proxy) fn may_have_left(&self, now: u64) -> bool {
        let since = self.due.half_closed.load(Ordering::Relaxed);
        since != NEVER && now >= since.saturating_add(ms(HALF_CLOSE)) && !self.has_answer()
    }

    /// The same, as of now.
    pub fn may_have_left_now(&self) -> bool {
        self.may_have_left(self.shared.now_ms())
    }

    /// From now on the backend may pause this long within its response, or both sides of a tunnel.
    pub fn set_backend_read_timeout(&self, within: Duration) {
        self.due.pause.store(ms(within), Ordering::Relaxed);
        self.due.pause_ends.store(self.due_in(within), Ordering::Relaxed);
    }

    /// Whether a write waits for the client.
    pub(in crate::proxy) fn is_stalled(&self) -> bool {
        self.due.write.load(Ordering::Relaxed) != NEVER
    }

    /// Eviction order: the lowest rank is evicted first. None: a request is being served.
    pub(in crate::proxy) fn rank(&self) -> Option<u64> {
        let since = self.due.since.load(Ordering::Relaxed) >> 1;
        match Stage::of(self.due.stage.load(Ordering::Relaxed))? {
            Stage::FirstByte | Stage::Head => Some(since),
            Stage::Idle => Some(since | IDLE_RANK),
            Stage::Request | Stage::Linger => None,
        }
    }

    /// Total time it has waited for the request body, if it waits now.
    fn waited_for_body(&self, now: u64) -> Option<u64> {
        let since = self.due.waits_since.load(Ordering::Relaxed);
        (since != NEVER).then(|| self.due.waited.load(Ordering::Relaxed) + now.saturating_sub(since))
    }

    /// The same for a body that is buffered until it is complete, if the time exceeds that for a head. The buffer
    /// takes memory that others could use.
    pub(in crate::proxy) fn buffered_for(&self, now: u64) -> Option<u64> {
        self.waited_for_body(now)
            .filter(|waited| self.buffered_body_bytes() > 0 && *waited > ms(self.shared.deadlines.head))
    }

    /// Whether the request body arrives too slowly.
    fn is_slow(&self, now: u64) -> bool {
        let Some(waited) = self.waited_for_body(now) else { return false };
        if self.shared.body_rate == 0 || self.has_answer() {
            return false;
        }
        let owed = self.shared.body_rate.saturating_mul(waited) / 1_000;
        let received = self.due.received.load(Ordering::Relaxed);
        // If nothing has arrived, the client may be waiting for the backend's 100 Continue.
        waited > ms(self.shared.deadlines.head) && received > 0 && received < owed
    }

    /// Whether the client accepts the response too slowly: below the minimum rate for bodies. The rate is measured
    /// over the time writes have waited, once that reaches the write timeout. Then the measurement starts again.
    fn takes_slowly(&self, now: u64) -> bool {
        let since = self.due.write_since.load(Ordering::Relaxed);
        let waited = self.due.write_waited.load(Ordering::Relaxed) + now.saturating_sub(since);
        if waited < ms(self.shared.deadlines.write) {
            return false;
        }
        if since != NEVER {
            // If the wait has ended meanwhile, it is not started again.
            self.due.write_since.compare_exchange(since, now, Ordering::Relaxed, Ordering::Relaxed).ok();
        }
        self.due.write_waited.store(0, Ordering::Relaxed);
        let sent = self.due.sent.swap(0, Ordering::Relaxed);
        sent < self.shared.body_rate.saturating_mul(waited) / 1_000
    }

    fn backend_is_late_at(&self, now: u64) -> bool {
        let backend = [&self.due.backend, &self.due.pause_ends, &self.due.upload];
        backend.iter().any(|due| now >= due.load(Ordering::Relaxed))
    }

    /// Which deadline the backend has missed, if any.
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

    /// Why the connection must be closed at `now`, if it must. `stopping` is when the gateway began to stop.
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
            // A last response is to be sent. The task may not get to it while its backend accepts nothing.
            let is_told = now < self.due.read.load(Ordering::Relaxed);
            let is_served = Stage::of(self.due.stage.load(Ordering::Relaxed)) == Some(Stage::Request);
            return (is_served && !is_told && !self.is_tunnel()).then_some(CloseReason::Unheard);
        }
        if let Some(end) = self.drain_overdue(now, stopping.is_some()) {
            return Some(end);
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
            Stage::Request if self.has_complete_answer() => CloseReason::RestLate,
            Stage::Request => CloseReason::BodyLate,
        })
    }
}

pub(in crate::proxy) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
