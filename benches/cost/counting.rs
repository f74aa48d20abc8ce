//! The gateway's allocator, wrapped to count allocations per thread.
#![expect(unsafe_code, reason = "an allocator is one; every call goes on to mimalloc as it came")]

use std::alloc::{GlobalAlloc, Layout};
use std::array;
use std::cell::Cell;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

/// So many threads have a counter of their own; all later threads share one.
const SLOTS: usize = 256;

thread_local! {
    /// This thread's counter, once it has allocated anything.
    static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
}

pub(crate) struct Counting {
    slots: [ThreadSlot; SLOTS],
    taken: AtomicUsize,
    inner: mimalloc::MiMalloc,
}

/// What one thread has allocated.
struct ThreadSlot {
    thread: AtomicI32,
    allocations: AtomicU64,
    bytes: AtomicU64,
}

impl ThreadSlot {
    const EMPTY: Self =
        Self { thread: AtomicI32::new(0), allocations: AtomicU64::new(0), bytes: AtomicU64::new(0) };
}

impl Counting {
    pub(crate) const fn new() -> Self {
        Self { slots: [ThreadSlot::EMPTY; SLOTS], taken: AtomicUsize::new(0), inner: mimalloc::MiMalloc }
    }

    /// The allocations and allocated bytes so far of the threads with that name. The figure of the ledger's writer depends
    /// on how much it finds to write at a time.
    pub(crate) fn so_far(&self, name: &str) -> [u64; 2] {
        let is_named = |slot: &&ThreadSlot| {
            let thread = slot.thread.load(Ordering::Relaxed);
            let path = format!("/proc/self/task/{thread}/comm");
            std::fs::read_to_string(path).is_ok_and(|found| found.trim_end() == name)
        };
        self.slots.iter().filter(is_named).fold([0; 2], |sum, slot| {
            let more = [&slot.allocations, &slot.bytes].map(|count| count.load(Ordering::Relaxed));
            array::from_fn(|n| sum[n] + more[n])
        })
    }

    fn count(&self, bytes: usize) {
        let slot = SLOT.get().unwrap_or_else(|| {
            let taken = self.taken.fetch_add(1, Ordering::Relaxed).min(SLOTS - 1);
            SLOT.set(Some(taken));
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            self.slots[taken].thread.store(thread, Ordering::Relaxed);
            taken
        });
        self.slots[slot].allocations.fetch_add(1, Ordering::Relaxed);
        self.slots[slot].bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: each call is mimalloc's own, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        unsafe { self.inner.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        unsafe { self.inner.dealloc(place, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        unsafe { self.inner.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count(size);
        unsafe { self.inner.realloc(place, layout, size) }
    }
}
