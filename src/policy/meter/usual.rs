//! How much output is usual: a small sketch of the output of recent answers. Pure.
//!
//! Buckets grow with the value, four for each power of two, and old answers fade, so that a change of habit is seen.

/// Values with a bucket each; above, every power of two has as many buckets.
const SUB: u64 = 4;
/// The number of buckets: up to 2²² tokens.
const BUCKETS: usize = 84;
/// Answers before the sketch says anything.
const ENOUGH: u32 = 20;
/// Answers after which all counts are halved.
const FADES_AT: u32 = 512;

/// The output tokens of recent answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSketch {
    counts: [u16; BUCKETS],
    total: u32,
}

impl Default for OutputSketch {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], total: 0 }
    }
}

impl OutputSketch {
    /// Counts an answer with that much output.
    pub fn add(&mut self, tokens: u64) {
        let bucket = &mut self.counts[bucket_of(tokens)];
        *bucket = bucket.saturating_add(1);
        self.total += 1;
        if self.total >= FADES_AT {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().map(|count| u32::from(*count)).sum();
        }
    }

    /// What 95 of 100 answers did not exceed, rounded up to the end of a bucket; none until there were enough.
    pub fn usual(&self) -> Option<u64> {
        if self.total < ENOUGH {
            return None;
        }
        let rank = (self.total * 95).div_ceil(100);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += u32::from(*count);
            seen >= rank
        });
        found.map(end_of)
    }
}

fn bucket_of(tokens: u64) -> usize {
    if tokens < SUB {
        return usize::try_from(tokens).unwrap_or(0);
    }
    let exponent = tokens.ilog2();
    let sub = (tokens >> (exponent - SUB.ilog2())) - SUB;
    let bucket = u64::from(exponent - SUB.ilog2() + 1) * SUB + sub;
    usize::try_from(bucket).map_or(BUCKETS - 1, |bucket| bucket.min(BUCKETS - 1))
}

/// The largest value of a bucket.
fn end_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB {
        return bucket;
    }
    let width = 1 << (bucket / SUB - 1);
    (SUB + bucket % SUB) * width + width - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_said_before_there_were_enough() {
        let mut sketch = OutputSketch::default();
        (1..ENOUGH).for_each(|_| sketch.add(100));
        assert_eq!(sketch.usual(), None);
        sketch.add(100);
        assert_eq!(sketch.usual(), Some(111));
    }

    #[test]
    fn a_change_of_habit_is_seen() {
        let mut sketch = OutputSketch::default();
        (0..10_000).for_each(|_| sketch.add(10_000));
        (0..FADES_AT * 6).for_each(|_| sketch.add(10));
        assert!(sketch.usual().is_some_and(|usual| usual < 20), "{:?}", sketch.usual());
    }

    proptest! {
        #[test]
        fn buckets_follow_each_other_and_hold_their_end(tokens in 0..1_u64 << 21) {
            let bucket = bucket_of(tokens);
            prop_assert!(tokens <= end_of(bucket));
            prop_assert!(bucket == 0 || end_of(bucket - 1) < tokens);
        }

        #[test]
        fn at_most_one_of_twenty_exceeds_what_is_usual(answers in prop::collection::vec(0..100_000_u64, 20..400)) {
            let mut sketch = OutputSketch::default();
            answers.iter().for_each(|tokens| sketch.add(*tokens));
            let usual = sketch.usual().expect("enough");
            let above = answers.iter().filter(|tokens| **tokens > usual).count();
            prop_assert!(above * 20 <= answers.len());
        }
    }
}
