//! An index of keys by digest or id that needs little memory for a million keys.
//!
//! Must not know: where keys come from. A map would store every digest and id a second time. Here a slot is a hash and a
//! pointer to the key, which contains them. The hash is stored so that a table can grow without reading the keys.

use super::Entry;
use crate::model::digest::Digest;
use crate::model::id::KeyId;
use hashbrown::HashTable;
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Number of tables, each with its own lock; a power of two.
const SHARDS: usize = 64;

/// A value by which keys are found.
pub(super) trait IndexKey {
    /// A hash that is uniform in all its bits.
    fn hash(&self) -> u64;
    /// Whether it belongs to `entry`.
    fn is_of(&self, entry: &Entry) -> bool;
}

/// An index by values of one kind.
#[derive(Debug)]
pub(super) struct Index<N> {
    shards: Box<[Shard]>,
    names: PhantomData<fn(N)>,
}

/// One table, in its own cache lines, because readers write to its lock.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(RwLock<HashTable<IndexSlot>>);

#[derive(Debug)]
struct IndexSlot {
    hash: u64,
    entry: Arc<Entry>,
}

impl<N: IndexKey> Index<N> {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect(), names: PhantomData }
    }

    /// The key with this value.
    pub(super) fn get(&self, name: &N) -> Option<Arc<Entry>> {
        let hash = name.hash();
        let table = self.shard(hash).read();
        table.find(hash, |slot| slot.is(hash, name)).map(|slot| Arc::clone(&slot.entry))
    }

    /// From now on `name`, which belongs to `entry`, finds it.
    pub(super) fn put(&self, name: &N, entry: Arc<Entry>) {
        let hash = name.hash();
        let mut table = self.shard(hash).write();
        match table.find_mut(hash, |slot| slot.is(hash, name)) {
            Some(slot) => slot.entry = entry,
            None => _ = table.insert_unique(hash, IndexSlot { hash, entry }, |slot| slot.hash),
        }
    }

    /// Removes what `name` finds, if `which` returns true for it.
    pub(super) fn take_if(&self, name: &N, which: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        let hash = name.hash();
        let mut table = self.shard(hash).write();
        let found = table.find_entry(hash, |slot| slot.is(hash, name) && which(&slot.entry)).ok()?;
        Some(found.remove().0.entry)
    }

    /// The number of values.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Calls `visit` for every entry. Concurrent changes may be missed.
    pub(super) fn each(&self, mut visit: impl FnMut(&Arc<Entry>)) {
        for shard in &self.shards {
            shard.read().iter().for_each(|slot| visit(&slot.entry));
        }
    }

    /// Replaces every entry by the result of `anew`.
    pub(super) fn replace_each(&self, anew: impl Fn(&Entry) -> Entry) {
        for shard in &self.shards {
            for slot in &mut *shard.write() {
                slot.entry = Arc::new(anew(&slot.entry));
            }
        }
    }

    /// Tables use the lowest bits for the position and the highest for comparison; these are in between.
    fn shard(&self, hash: u64) -> &Shard {
        let place = usize::try_from(hash >> 40).unwrap_or_default() % SHARDS;
        &self.shards[place]
    }
}

impl Shard {
    fn read(&self) -> RwLockReadGuard<'_, HashTable<IndexSlot>> {
        // Nothing under this lock can panic half-way, so a poisoned lock guards a valid table.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashTable<IndexSlot>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IndexSlot {
    fn is(&self, hash: u64, name: &impl IndexKey) -> bool {
        self.hash == hash && name.is_of(&self.entry)
    }
}

impl IndexKey for Digest {
    fn hash(&self) -> u64 {
        // Digests are uniform: eight of their bytes are a good hash.
        self.0.first_chunk().map_or(0, |first| u64::from_ne_bytes(*first))
    }

    fn is_of(&self, entry: &Entry) -> bool {
        entry.credentials.iter().any(|credential| credential.digest == *self)
    }
}

impl IndexKey for KeyId {
    fn hash(&self) -> u64 {
        // Ids made at the same moment differ in their last bytes. Multiplying by 2^64 over the golden ratio spreads them,
        // and the shift moves high bits to the low end.
        let (first, last) = self.0.as_u64_pair();
        let spread = (first ^ last.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        spread ^ spread >> 32
    }

    fn is_of(&self, entry: &Entry) -> bool {
        entry.key.id == *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::keyring::tests::entry;
    use std::collections::HashSet;

    #[test]
    fn ids_of_one_moment_spread() {
        let at = Timestamp::from_secs(1_764_000_000);
        let hashes: Vec<u64> = (0..64_000).map(|_| KeyId::new(at).hash()).collect();
        let index = Index::<KeyId>::new();
        let mut counts = std::collections::HashMap::new();
        for hash in &hashes {
            *counts.entry(std::ptr::from_ref(index.shard(*hash))).or_insert(0) += 1;
        }
        assert!(counts.len() == SHARDS && counts.values().all(|n| (700..1_300).contains(n)), "{counts:?}");
        let places: HashSet<u64> = hashes.iter().map(|hash| hash & 0xFFFF).collect();
        assert!(places.len() > 35_000, "{} places of 65 536", places.len());
    }

    #[test]
    fn entries_are_found_until_removed() {
        let (ids, digests) = (Index::<KeyId>::new(), Index::<Digest>::new());
        let entries: Vec<_> = (0..1_000_u16).map(|n| Arc::new(entry(n))).collect();
        for entry in &entries {
            ids.put(&entry.key.id, Arc::clone(entry));
            entry.credentials.iter().for_each(|c| digests.put(&c.digest, Arc::clone(entry)));
        }
        assert_eq!((ids.len(), digests.len()), (1_000, 2_000));
        for entry in &entries {
            let found = ids.get(&entry.key.id).expect("it is there");
            assert!(Arc::ptr_eq(&found, entry));
            for credential in &entry.credentials {
                assert!(Arc::ptr_eq(&digests.get(&credential.digest).expect("it is there"), entry));
            }
        }
        // The same value again replaces the entry.
        let again = Arc::new(entry(7));
        let digest = again.credentials[1].digest;
        digests.put(&digest, Arc::clone(&again));
        assert!(digests.len() == 2_000 && Arc::ptr_eq(&digests.get(&digest).expect("it is there"), &again));
        assert!(digests.take_if(&digest, |_| false).is_none() && digests.get(&digest).is_some());
        assert!(digests.take_if(&digest, |_| true).is_some() && digests.get(&digest).is_none());
        let first = again.credentials[0].digest;
        assert!(Arc::ptr_eq(&digests.get(&first).expect("another name stays"), &entries[7]));
        ids.replace_each(|held| Entry { version: crate::store::Version(9), ..copy(held) });
        let mut versions = 0;
        ids.each(|held| versions += usize::from(held.version.0 == 9));
        assert_eq!(versions, 1_000);
    }

    fn copy(held: &Entry) -> Entry {
        let Entry { key, details, workspace, credentials, version } = held;
        Entry {
            key: key.clone(),
            details: details.clone(),
            workspace: Arc::clone(workspace),
            credentials: credentials.clone(),
            version: *version,
        }
    }
}
