//! What requests in flight hold, and how much output is usual for a key and a model.
//!
//! Must not know: limits. The rule of a hold is [`crate::policy::meter::PlannedHold`].

use crate::counter::Hold;
use crate::metrics::Metrics;
use crate::model::amounts::Amounts;
use crate::model::id::KeyId;
use crate::model::key::Measure;
use crate::policy::meter::OutputSketch;
use quick_cache::sync::Cache;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

/// Most pairs of a key and a model whose output is remembered; of others, those that were used last.
const PAIRS: usize = 4_096;

/// The usual output of each key and model.
pub struct UsualOutput {
    sketches: Cache<(KeyId, u64), Arc<Mutex<OutputSketch>>>,
    names: RandomState,
}

/// What one request holds, counted in the metrics. Dropping it releases the hold.
pub(super) struct HeldUnits {
    key: KeyId,
    hold: Option<Hold>,
    amounts: Amounts,
    metrics: Arc<Metrics>,
}

// === impl UsualOutput ===

impl Default for UsualOutput {
    fn default() -> Self {
        Self { sketches: Cache::new(PAIRS), names: RandomState::new() }
    }
}

impl UsualOutput {
    /// Counts an answer to this key, which asked for this model.
    pub fn add(&self, key: KeyId, model: &str, tokens: u64) {
        let pair = (key, self.names.hash_one(model));
        let sketch = self.sketches.get(&pair).unwrap_or_else(|| {
            let new = Arc::<Mutex<OutputSketch>>::default();
            self.sketches.insert(pair, Arc::clone(&new));
            new
        });
        sketch.lock().unwrap_or_else(PoisonError::into_inner).add(tokens);
    }

    /// What the answers rarely exceed; none if there were too few.
    pub fn of(&self, key: KeyId, model: &str) -> Option<u64> {
        let sketch = self.sketches.get(&(key, self.names.hash_one(model)))?;
        sketch.lock().unwrap_or_else(PoisonError::into_inner).usual()
    }
}

// === impl HeldUnits ===

impl HeldUnits {
    /// The hold of a request of this key.
    pub(super) fn new(key: KeyId, hold: Hold, metrics: Arc<Metrics>) -> Self {
        let counted = Self { key, amounts: *hold.amounts(), hold: Some(hold), metrics };
        counted.count(1);
        counted
    }

    /// The key.
    pub(super) const fn key(&self) -> KeyId {
        self.key
    }

    /// Replaces the hold by what was used.
    pub(super) fn settle(mut self, used: &Amounts) {
        let Some(hold) = self.hold.take() else { return };
        for (measure, passed) in Measure::METERED.iter().zip(hold.settle(used)) {
            if passed > 0 {
                self.metrics.limit_overshoot.with_label_values(&[measure.as_str()]).inc_by(passed);
            }
        }
    }

    fn count(&self, sign: i64) {
        for measure in Measure::METERED {
            let units = i64::try_from(self.amounts.get(measure)).unwrap_or(i64::MAX);
            self.metrics.held_units.with_label_values(&[measure.as_str()]).add(sign.saturating_mul(units));
        }
    }
}

impl Drop for HeldUnits {
    fn drop(&mut self) {
        self.count(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn usual_output_is_known_by_key_and_model_in_bounded_memory() {
        let usual = UsualOutput::default();
        let key = |n| KeyId::new(Timestamp::from_secs(n));
        let (one, other) = (key(1), key(2));
        for _ in 0..100 {
            usual.add(one, "a", 50);
            usual.add(one, "b", 5_000);
        }
        let found = [usual.of(one, "a"), usual.of(one, "b"), usual.of(other, "a")];
        assert!(matches!(found, [Some(50..=64), Some(5_000..=6_200), None]), "{found:?}");
        for n in 0..20_000 {
            usual.add(other, &n.to_string(), 1);
        }
        assert!(usual.sketches.len() <= PAIRS);
    }
}
