//! How much of each measure a request holds, or has used. Plain data.

use super::key::Measure;
use super::tokens::{MeterReading, TokenCounts};

/// Units of each measure. The default is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct Amounts([u64; Measure::ALL.len()]);

impl Amounts {
    /// What an admission is charged: one request, and nothing that a meter finds out.
    pub const REQUEST: Self = {
        let mut one = [0; Measure::ALL.len()];
        one[Measure::Requests as usize] = 1;
        Self(one)
    };

    /// What this reading says, and no request.
    pub fn of(reading: &MeterReading) -> Self {
        Self::used(&reading.tokens, reading.cost_nano)
    }

    /// These tokens, at this cost; a cost that is unknown is none.
    pub fn used(tokens: &TokenCounts, cost_nano: Option<u64>) -> Self {
        Self::default()
            .with(Measure::Tokens, tokens.total)
            .with(Measure::InputTokens, tokens.input)
            .with(Measure::OutputTokens, tokens.output)
            .with(Measure::Cost, cost_nano.unwrap_or(0))
    }

    /// The same with so many units of a measure.
    #[must_use]
    pub const fn with(mut self, measure: Measure, units: u64) -> Self {
        self.0[measure as usize] = units;
        self
    }

    /// The units of a measure.
    pub const fn get(&self, measure: Measure) -> u64 {
        self.0[measure as usize]
    }

    /// Whether there is anything that only a meter finds out.
    pub fn is_metered(&self) -> bool {
        Measure::METERED.iter().any(|measure| self.get(*measure) > 0)
    }

    /// What only a meter finds out, in the order of [`Measure::METERED`].
    pub fn metered(&self) -> [u64; Measure::METERED.len()] {
        Measure::METERED.map(|measure| self.get(measure))
    }
}
