//! The queue of keys whose digest has to be made again with the current pepper. A key is queued once, however often it is
//! used.

use crate::model::digest::Digest;
use crate::model::id::KeyId;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// A key whose digest can be made again with the current pepper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rehash {
    /// Which key.
    pub key: KeyId,
    /// The digest it was found by.
    pub old: Digest,
    /// The digest of the same secret under the current pepper.
    pub new: Digest,
    /// The current pepper.
    pub pepper_version: u32,
}

/// The sending side of the queue.
#[derive(Debug)]
pub struct RehashQueue {
    to: mpsc::Sender<Rehash>,
    waiting: Waiting,
}

/// The receiving side of the queue.
#[derive(Debug)]
pub struct RehashJobs {
    from: mpsc::Receiver<Rehash>,
    waiting: Waiting,
}

/// The old digests of keys that wait or are being re-hashed; at most one more than the queue has room for.
type Waiting = Arc<Mutex<HashSet<Digest>>>;

/// A queue with room for `most` keys. A key that finds no room is queued at its next use.
pub fn rehash_queue(most: usize) -> (RehashQueue, RehashJobs) {
    let (to, from) = mpsc::channel(most.max(1));
    let waiting = Waiting::default();
    (RehashQueue { to, waiting: Arc::clone(&waiting) }, RehashJobs { from, waiting })
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashSet<Digest>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl RehashQueue, RehashJobs ===

impl RehashQueue {
    /// Queues a key, unless it waits already or there is no room. `new` computes its new digest.
    pub(super) fn ask(&self, key: KeyId, old: Digest, pepper_version: u32, new: impl FnOnce() -> Digest) {
        let Ok(room) = self.to.try_reserve() else {
            tracing::debug!(%key, "re-hash queue full, key is re-hashed at its next use");
            return;
        };
        if lock(&self.waiting).insert(old) {
            room.send(Rehash { key, old, new: new(), pepper_version });
        }
    }
}

impl RehashJobs {
    /// The next job; none when the sending side was dropped. The key is not queued again before [`RehashJobs::finished`].
    pub async fn next(&mut self) -> Option<Rehash> {
        self.from.recv().await
    }

    /// The job is done, or may be tried again.
    pub fn finished(&self, job: &Rehash) {
        lock(&self.waiting).remove(&job.old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[tokio::test]
    async fn a_busy_key_takes_one_place_and_leaves_room_for_others() {
        let (queue, mut jobs) = rehash_queue(2);
        let [busy, other] = [1, 2].map(|n| (KeyId::new(Timestamp::from_secs(n)), Digest([7; 32]), n));
        let other = (other.0, Digest([8; 32]), other.2);
        let mut made = 0;
        for _ in 0..1_000 {
            queue.ask(busy.0, busy.1, 2, || {
                made += 1;
                Digest([17; 32])
            });
        }
        queue.ask(other.0, other.1, 2, || Digest([18; 32]));
        assert_eq!(made, 1, "and its new digest is made once");
        let first = jobs.next().await.expect("the busy one");
        assert_eq!((first.key, first.old, first.new), (busy.0, busy.1, Digest([17; 32])));
        // The key is not queued again while it is being re-hashed.
        queue.ask(busy.0, busy.1, 2, || Digest([17; 32]));
        let second = jobs.next().await.expect("the other one");
        assert_eq!(second.key, other.0);
        jobs.finished(&first);
        queue.ask(busy.0, busy.1, 2, || Digest([17; 32]));
        assert_eq!(jobs.next().await, Some(first), "it failed, and is tried again");
        drop(queue);
        assert_eq!(jobs.next().await, None);
    }
}
