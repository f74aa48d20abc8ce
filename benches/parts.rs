//! Nanoseconds of Keygate's own parts of a request: `make bench-parts`. For reproducible instruction counts see `make
//! cost`.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a measurement that cannot go on says where"
)]

#[path = "cost/stage.rs"]
mod stage;

use divan::{Bencher, black_box};
use stage::Stage;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

static STAGE: LazyLock<Stage> = LazyLock::new(Stage::new);

fn main() {
    divan::main();
}

/// Calls `part` with one number after the other, on as many threads as divan is configured for.
fn each<T>(bencher: Bencher<'_, '_>, part: impl Fn(&Stage, usize) -> T + Sync) {
    let (stage, next) = (&*STAGE, AtomicUsize::new(0));
    bencher.bench(|| black_box(part(stage, next.fetch_add(1, Ordering::Relaxed))));
}

#[divan::bench(sample_count = 500, sample_size = 1_000, threads = [1, 2])]
fn digest(bencher: Bencher<'_, '_>) {
    each(bencher, Stage::digest);
}

#[divan::bench(sample_count = 500, sample_size = 1_000, threads = [1, 2])]
fn find(bencher: Bencher<'_, '_>) {
    each(bencher, Stage::find);
}

#[divan::bench(sample_count = 500, sample_size = 1_000, threads = [1, 2])]
fn charge_and_end(bencher: Bencher<'_, '_>) {
    each(bencher, Stage::charge);
}

/// Digest, look-up, authorization, charge of three limits, and end.
#[divan::bench(sample_count = 500, sample_size = 1_000, threads = [1, 2])]
fn decide(bencher: Bencher<'_, '_>) {
    each(bencher, Stage::decide);
}

/// Both journal records of a request.
#[divan::bench(sample_count = 500, sample_size = 1_000, threads = [1, 2])]
fn record(bencher: Bencher<'_, '_>) {
    each(bencher, Stage::record);
}
