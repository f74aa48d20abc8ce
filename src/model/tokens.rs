//! What an answer of a language model used: tokens by kind, the model, and the cost. Plain data.

use crate::model::key::words;
use std::sync::Arc;

words!(
    /// Where the numbers of a [`MeterReading`] come from.
    ReadingSource {
        /// The backend reported them.
        Reported = "reported",
        /// Estimated from the bytes of the request and of the response.
        Estimated = "estimated",
        /// What was held at admission, because nothing was reported.
        Held = "held",
        /// Nothing was reported, and the route counts that as nothing.
        Missing = "missing",
    }
);

/// Tokens of one answer. Every wire is brought to this form: a kind that is part of another is counted in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TokenCounts {
    /// All tokens: input and output, or the single number of a meter that knows no kinds.
    pub total: u64,
    /// Input, including what was read from and written to a cache.
    pub input: u64,
    /// Input that was read from a cache.
    pub cached: u64,
    /// Input that was written to a cache.
    pub cache_write: u64,
    /// Output, including reasoning.
    pub output: u64,
    /// Output that was reasoning.
    pub reasoning: u64,
    /// Audio, of the input and of the output.
    pub audio: u64,
}

impl TokenCounts {
    /// Each kind by its name in metrics, in the order of the fields.
    pub const fn kinds(&self) -> [(&'static str, u64); 7] {
        [
            ("total", self.total),
            ("input", self.input),
            ("cached", self.cached),
            ("cache_write", self.cache_write),
            ("output", self.output),
            ("reasoning", self.reasoning),
            ("audio", self.audio),
        ]
    }
}

/// What the meter found out about one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterReading {
    /// The tokens.
    pub tokens: TokenCounts,
    /// The model that the request named; empty if none.
    pub model_requested: Arc<str>,
    /// The model that the answer named; empty if none.
    pub model_served: Arc<str>,
    /// The provider's id of the request; empty if none.
    pub provider_request_id: Arc<str>,
    /// The cost in billionths of the currency unit, if it is known.
    pub cost_nano: Option<u64>,
    /// Where the tokens come from.
    pub source: ReadingSource,
}
