//! A clock for promises such as "within two seconds". It advances only while the machine has capacity to spare.
//!
//! On a stalled or busy machine no process keeps such a promise, and an ordinary clock would blame the gateway. So a
//! witness thread with the lowest priority (`nice`) works a little on each CPU, over and over, and one more writes to the
//! disk. A round of a witness counts for the time it took, but for no more than it takes on a nearly idle machine, and the
//! clock follows the slowest witness. On an idle machine it shows real time. A thing that never happens is still noticed:
//! after [`LONGEST`] the clock shows real time.
//!
//! Other test crates include this file with `#[path]`.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// From then on real time counts.
const LONGEST: Duration = Duration::from_secs(120);
/// A round on a CPU is a pause and some work, and counts for at most about twice what they take.
const CPU_RESTS: Duration = Duration::from_millis(4);
const CPU_WORKS: Duration = Duration::from_micros(400);
const CPU_ROUND_MAX: Duration = Duration::from_millis(10);
/// A round on the disk is a pause and a synced byte, which takes a healthy disk some milliseconds.
const DISK_RESTS: Duration = Duration::from_millis(25);
const DISK_ROUND_MAX: Duration = Duration::from_millis(60);

/// The clock, from its start.
pub(crate) struct Spare {
    witnesses: Arc<Vec<Witness>>,
    begun: Instant,
    /// The time of each witness at the start.
    shown: Vec<Duration>,
}

struct Witness {
    rounds: Mutex<Rounds>,
    round_max: Duration,
}

struct Rounds {
    /// The total of the finished rounds.
    over: Duration,
    /// When the current round began.
    begun: Instant,
}

// === impl Spare ===

impl Spare {
    pub(crate) fn begin() -> Self {
        let witnesses = witnesses();
        let shown = witnesses.iter().map(Witness::shows).collect();
        Self { witnesses, begun: Instant::now(), shown }
    }

    /// The machine's spare time since the start; real time once it is [`LONGEST`].
    pub(crate) fn elapsed(&self) -> Duration {
        let real = self.begun.elapsed();
        let came_to = self.witnesses.iter().zip(&self.shown).map(|(witness, then)| witness.shows() - *then);
        if real < LONGEST { came_to.fold(real, Duration::min) } else { real }
    }
}

// === impl Witness ===

impl Witness {
    fn new(round_max: Duration) -> Self {
        Self { rounds: Mutex::new(Rounds { over: Duration::ZERO, begun: Instant::now() }), round_max }
    }

    fn lock(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shows(&self) -> Duration {
        let rounds = self.lock();
        rounds.over + rounds.begun.elapsed().min(self.round_max)
    }

    fn begins_a_round(&self) {
        let mut rounds = self.lock();
        let over = rounds.over + rounds.begun.elapsed().min(self.round_max);
        *rounds = Rounds { over, begun: Instant::now() };
    }
}

/// The witnesses of this process. They run as long as a clock is in use.
fn witnesses() -> Arc<Vec<Witness>> {
    static THERE: Mutex<Weak<Vec<Witness>>> = Mutex::new(Weak::new());
    let mut there = THERE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(witnesses) = there.upgrade() {
        return witnesses;
    }
    let ours = sched_getaffinity(None).expect("the CPUs that are ours");
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| ours.is_set(*cpu)).collect();
    let of_cpus = cpus.iter().map(|_| Witness::new(CPU_ROUND_MAX));
    let witnesses = Arc::new(of_cpus.chain([Witness::new(DISK_ROUND_MAX)]).collect::<Vec<_>>());
    *there = Arc::downgrade(&witnesses);
    for (n, cpu) in cpus.iter().copied().enumerate() {
        let those = Arc::downgrade(&witnesses);
        std::thread::spawn(move || {
            come_last_on(cpu);
            go_rounds(&those, n, on_cpu);
        });
    }
    let those = Arc::downgrade(&witnesses);
    let mut file = tempfile::tempfile().expect("a file");
    std::thread::spawn(move || go_rounds(&those, cpus.len(), || on_disk(&mut file)));
    witnesses
}

fn go_rounds(those: &Weak<Vec<Witness>>, n: usize, mut round: impl FnMut()) {
    while let Some(witnesses) = those.upgrade() {
        witnesses[n].begins_a_round();
        drop(witnesses);
        round();
    }
}

/// Sets the lowest priority. A witness that may not set it forgives less.
fn come_last_on(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).ok();
    rustix::process::setpriority_process(None, 19).ok();
}

fn on_cpu() {
    std::thread::sleep(CPU_RESTS);
    let worked = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("a time");
    let until = worked() + CPU_WORKS;
    while worked() < until {}
}

fn on_disk(file: &mut File) {
    std::thread::sleep(DISK_RESTS);
    // A failing disk is the subject of other tests.
    file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(b"!")).and_then(|()| file.sync_data()).ok();
}
