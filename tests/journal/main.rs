//! The usage journal under crashes, damage, full disks and stores that refuse records.
//!
//! A crash is a copy of the folder, taken at any moment: what another process would find there.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod descriptors;
mod faults;
mod format;
mod model;
mod slots;
mod stand;
mod tiny_disk;
mod writing;
