//! Chooses the server of a request: round robin, the less busy of two, or consistent hashing.
//!
//! Must not know: servers, connections, health. The caller says which servers are usable and how busy each is.
//!
//! *Invariant:* the chosen server was usable.
//! *Invariant:* all three rules follow the weights: over time a candidate gets its weight's share of the requests.

use crate::model::key::UnknownWord;
use http::HeaderName;
use std::fmt;

/// Largest weight. A round has at most this many turns per candidate.
pub const WEIGHT_MAX: u16 = 100;

/// How a server is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Balancing {
    /// Weighted round robin.
    #[default]
    RoundRobin,
    /// The less busy of two random servers.
    LeastConnections,
    /// The same server for the same name.
    Hash(HashBy),
}

/// The source of the name that is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashBy {
    /// The key's id.
    Key,
    /// The end user, or the key if a request names none.
    EndUser,
    /// A header of the request, or the key if it is absent.
    Header(HeaderName),
}

/// A server that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its share, from 1 to [`WEIGHT_MAX`].
    pub weight: u16,
    /// Its identity, the same on every node and after every restart: [`hash`] of its address.
    pub identity: u64,
}

/// Candidates in a fixed order, and their turns.
#[derive(Debug, Default)]
pub struct Balancer {
    candidates: Box<[Candidate]>,
    /// One round of turns; the numbers are indices into `candidates`.
    round: Box<[u16]>,
    weight_sum: u64,
}

// === impl Balancer ===

impl Balancer {
    /// A balancer for `candidates`; those after the 65 536th are ignored.
    pub fn new(mut candidates: Vec<Candidate>) -> Self {
        candidates.truncate(usize::from(u16::MAX) + 1);
        for candidate in &mut candidates {
            candidate.weight = candidate.weight.clamp(1, WEIGHT_MAX);
        }
        let round = round(&candidates).into();
        let weight_sum = candidates.iter().map(|c| u64::from(c.weight)).sum();
        Self { candidates: candidates.into(), round, weight_sum }
    }

    /// Smooth weighted round robin: the candidate of `turn`, or the next usable one.
    pub fn round_robin(&self, turn: usize, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let turns = self.round.len();
        (0..turns)
            .map(|n| usize::from(self.round[turn.wrapping_add(n) % turns]))
            .find(|candidate| usable(*candidate))
    }

    /// Power of two choices (Mitzenmacher): of two usable candidates, drawn by weight with the bits of `random`, the one
    /// with fewer requests in flight for its weight. If they are equal, the first, so that only the draw decides at low
    /// load.
    pub fn least_loaded(
        &self,
        random: u64,
        in_flight: impl Fn(usize) -> u64,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let draw = |bits: u64| usize::try_from(bits % self.round.len().max(1) as u64).unwrap_or(0);
        let first = self.round_robin(draw(mix(random)), &usable)?;
        let Some(second) = self.round_robin(draw(mix(!random)), |c| c != first && usable(c)) else {
            return Some(first);
        };
        // Cross-multiplied, so that nothing is rounded.
        let load = |c: usize, other: usize| in_flight(c) * u64::from(self.candidates[other].weight);
        Some(if load(second, first) < load(first, second) { second } else { first })
    }

    /// Weighted rendezvous hashing (Thaler and Ravishankar): the usable candidate with the highest score for `name`. When
    /// one leaves, only its names move; when one is added, names move only to it.
    ///
    /// With a `load_percent` of 100 or more, candidates that exceed this share of the mean load for their weight are
    /// skipped (consistent hashing with bounded loads: Mirrokni, Thorup, Zadimoghaddam). With 0, the load does not matter.
    pub fn rendezvous(
        &self,
        name: u64,
        load_percent: u32,
        in_flight: impl Fn(usize) -> u64,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let (mut best, mut best_below) = (None, None);
        let total = match load_percent {
            0 => 0,
            _ => (0..self.candidates.len()).map(&in_flight).sum(),
        };
        for (n, candidate) in self.candidates.iter().enumerate().filter(|(n, _)| usable(*n)) {
            let score = score(name, *candidate);
            if best.is_none_or(|(_, other)| score > other) {
                best = Some((n, score));
            }
            let below = load_percent > 0 && in_flight(n) < self.bound(*candidate, load_percent, total);
            if below && best_below.is_none_or(|(_, other)| score > other) {
                best_below = Some((n, score));
            }
        }
        best_below.or(best).map(|(n, _)| n)
    }

    /// The most requests of a candidate while `total` are in flight and one more arrives, rounded up. The sum over all
    /// candidates is greater than `total`, so one is always below its bound.
    fn bound(&self, candidate: Candidate, load_percent: u32, total: u64) -> u64 {
        let share = u128::from(load_percent) * u128::from(total + 1) * u128::from(candidate.weight);
        u64::try_from(share.div_ceil(100 * u128::from(self.weight_sum.max(1)))).unwrap_or(u64::MAX)
    }
}

/// The turns of one round: smooth weighted round robin as in nginx, which spreads the turns of a heavy candidate over the
/// round. Its length is the sum of the weights divided by their greatest common divisor.
fn round(candidates: &[Candidate]) -> Vec<u16> {
    let common = candidates.iter().fold(0, |d, c| greatest_common_divisor(d, c.weight)).max(1);
    let weights: Vec<i64> = candidates.iter().map(|c| i64::from(c.weight / common)).collect();
    let sum: i64 = weights.iter().sum();
    if weights.iter().all(|w| *w == 1) {
        return (0..=u16::MAX).take(candidates.len()).collect();
    }
    let mut current = vec![0_i64; weights.len()];
    let mut turns = Vec::new();
    for _ in 0..sum {
        for (c, w) in current.iter_mut().zip(&weights) {
            *c += w;
        }
        // The first of the largest.
        let Some(next) = (0..current.len()).rev().max_by_key(|n| current[*n]) else { break };
        current[next] -= sum;
        turns.push(u16::try_from(next).unwrap_or(u16::MAX));
    }
    turns
}

const fn greatest_common_divisor(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The score of a candidate for a name: -w / ln(u) with u uniform in (0, 1), which wins with probability w / Σw.
fn score(name: u64, candidate: Candidate) -> f64 {
    const STEPS: u64 = 1 << 53;
    let drawn = mix(name ^ candidate.identity.rotate_left(32)) >> 11;
    #[expect(clippy::cast_precision_loss, reason = "both are below 2^53, which an f64 holds exactly")]
    let uniform = (drawn as f64 + 0.5) / STEPS as f64;
    -f64::from(candidate.weight) / uniform.ln()
}

/// A hash of `bytes` that never changes: FNV-1a, 64 bits, mixed.
pub fn hash(bytes: &[u8]) -> u64 {
    let fold = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// The finalizer of `SplitMix64`: each input bit changes about half of the output bits.
const fn mix(seed: u64) -> u64 {
    let a = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let b = (a ^ (a >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let c = (b ^ (b >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    c ^ (c >> 31)
}

// === impl Balancing ===

impl fmt::Display for Balancing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoundRobin => f.write_str("round-robin"),
            Self::LeastConnections => f.write_str("least-connections"),
            Self::Hash(HashBy::Key) => f.write_str("hash:key"),
            Self::Hash(HashBy::EndUser) => f.write_str("hash:end-user"),
            Self::Hash(HashBy::Header(name)) => write!(f, "hash:header:{name}"),
        }
    }
}

impl std::str::FromStr for Balancing {
    type Err = UnknownWord;

    /// Parses the displayed form. The config checks whether the header may be used.
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let unknown = UnknownWord {
            allowed: &["round-robin", "least-connections", "hash:key", "hash:end-user", "hash:header:NAME"],
        };
        Ok(match text {
            "round-robin" => Self::RoundRobin,
            "least-connections" => Self::LeastConnections,
            "hash:key" => Self::Hash(HashBy::Key),
            "hash:end-user" => Self::Hash(HashBy::EndUser),
            _ => {
                let name =
                    text.strip_prefix("hash:header:").and_then(|n| HeaderName::from_bytes(n.as_bytes()).ok());
                Self::Hash(HashBy::Header(name.ok_or(unknown)?))
            }
        })
    }
}

#[cfg(test)]
mod tests;
