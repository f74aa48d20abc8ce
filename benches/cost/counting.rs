//! The gateway's allocator, which also counts.
#![expect(unsafe_code, reason = "an allocator is one; every call goes on to mimalloc as it came")]

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) struct Counting {
    allocations: AtomicU64,
    bytes: AtomicU64,
    inner: mimalloc::MiMalloc,
}

impl Counting {
    pub(crate) const fn new() -> Self {
        Self { allocations: AtomicU64::new(0), bytes: AtomicU64::new(0), inner: mimalloc::MiMalloc }
    }

    /// Allocations so far, and the bytes they asked for.
    pub(crate) fn so_far(&self) -> [u64; 2] {
        [self.allocations.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed)]
    }

    fn count(&self, bytes: usize) {
        self.allocations.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
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
