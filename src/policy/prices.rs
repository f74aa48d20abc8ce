//! What tokens cost: prices by model, and the cost of one answer as a whole number of billionths of the currency unit.
//!
//! Must not know: where prices come from, which currency they are in, requests. Everything is integers. A price is in
//! billionths per million tokens, so that the smallest is a 10⁻¹⁵th of the unit per token; a cost is rounded once.

pub mod decimal;
pub mod import;
pub mod json;

use crate::model::tokens::{MeterReading, TokenCounts};
use std::collections::HashMap;
use std::sync::Arc;

/// Most entries of one table.
pub const PRICES_MAX: usize = 20_000;
/// Most tiers of one entry.
pub const TIERS_MAX: usize = 16;
/// Longest pattern, in bytes.
pub const PATTERN_MAX: usize = 200;
/// The highest price: a billion units per million tokens.
pub const PRICE_MAX: u64 = 1_000_000_000_000_000_000;
/// What metrics call a model that no entry of the table is for.
pub const OTHER: &str = "other";

/// The prices of one million tokens of each kind, in billionths of the currency unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Rates {
    /// Input that was neither read from nor written to a cache, and tokens of no known kind.
    pub input: u64,
    /// Input that was read from a cache.
    pub cached: u64,
    /// Input that was written to a cache.
    pub cache_write: u64,
    /// Output that was not reasoning.
    pub output: u64,
    /// Output that was reasoning.
    pub reasoning: u64,
}

/// Prices for answers with much input. They are for all tokens of such an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// The tier is for answers with more input tokens than this.
    pub above: u64,
    /// Its prices.
    pub rates: Rates,
}

/// What the tokens of some models cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPrice {
    /// The name of a model, or its first characters and `*`.
    pub model: Arc<str>,
    /// The prices.
    pub rates: Rates,
    /// Prices for more input, by ascending `above`.
    pub tiers: Vec<Tier>,
}

/// A table of prices. An exact name takes precedence over a pattern, and a longer pattern over a shorter one, so the order
/// of the entries does not matter.
#[derive(Debug, Default)]
pub struct PriceTable {
    exact: HashMap<Arc<str>, ModelPrice>,
    /// By descending length, without the `*`.
    prefixes: Vec<(Box<str>, ModelPrice)>,
}

/// Why entries are no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPrices {
    /// Two entries have the same pattern.
    #[error("{0:?} has a price already")]
    Twice(Arc<str>),
    /// An entry's pattern is not one.
    #[error("{0:?}: must be 1 to {PATTERN_MAX} characters without spaces, with a * at the end only")]
    Pattern(Arc<str>),
    /// Tiers do not ascend.
    #[error("tiers of {0:?}: must have different thresholds above 0")]
    Tiers(Arc<str>),
}

/// Whether a text is a pattern of models.
pub fn is_pattern(text: &str) -> bool {
    let is_plain = |c: char| c != '*' && !c.is_whitespace() && !c.is_control();
    let name = text.strip_suffix('*').unwrap_or(text);
    (1..=PATTERN_MAX).contains(&text.len()) && name.chars().all(is_plain)
}

// === impl Rates ===

impl Rates {
    /// The cost of an answer: the sum of tokens times price over the kinds, rounded once to the nearest billionth, up if in the
    /// middle. Cached, cache-written and reasoning tokens are parts of input and output and are not counted twice.
    pub fn cost(&self, tokens: &TokenCounts) -> u64 {
        let TokenCounts { total, input, cached, cache_write, output, reasoning, audio: _ } = *tokens;
        let plain_input = input.saturating_sub(cached).saturating_sub(cache_write);
        let unknown = total.saturating_sub(input).saturating_sub(output);
        let kinds = [
            (plain_input, self.input),
            (unknown, self.input),
            (cached, self.cached),
            (cache_write, self.cache_write),
            (output.saturating_sub(reasoning), self.output),
            (reasoning, self.reasoning),
        ];
        let products = kinds.iter().map(|(count, price)| u128::from(*count) * u128::from(*price));
        let billionths = products.fold(500_000_u128, u128::saturating_add) / 1_000_000;
        u64::try_from(billionths).unwrap_or(u64::MAX)
    }
}

// === impl ModelPrice ===

impl ModelPrice {
    /// The cost of an answer with these tokens.
    pub fn cost(&self, tokens: &TokenCounts) -> u64 {
        let tier = self.tiers.iter().rev().find(|tier| tokens.input > tier.above);
        tier.map_or(&self.rates, |tier| &tier.rates).cost(tokens)
    }

    /// How many output tokens a request with these tokens may have for that cost in all; none: output costs nothing.
    pub fn output_within(&self, tokens: &TokenCounts, cost: u64) -> Option<u64> {
        let tier = self.tiers.iter().rev().find(|tier| tokens.input > tier.above);
        let price = tier.map_or(&self.rates, |tier| &tier.rates).output;
        let billionths = u128::from(cost.saturating_sub(self.cost(tokens))) * 1_000_000;
        let count = billionths.checked_div(u128::from(price))?;
        Some(u64::try_from(count).unwrap_or(u64::MAX))
    }
}

// === impl PriceTable ===

impl PriceTable {
    /// A table of these entries.
    pub fn new(entries: impl IntoIterator<Item = ModelPrice>) -> Result<Self, BadPrices> {
        let mut table = Self::default();
        for entry in entries {
            let model = Arc::clone(&entry.model);
            if !is_pattern(&model) {
                return Err(BadPrices::Pattern(model));
            }
            let thresholds = entry.tiers.iter().map(|tier| tier.above);
            if !std::iter::once(0).chain(thresholds).is_sorted_by(|a, b| a < b) {
                return Err(BadPrices::Tiers(model));
            }
            let is_new = match model.strip_suffix('*') {
                None => table.exact.insert(Arc::clone(&model), entry).is_none(),
                Some(prefix) => {
                    let is_new = table.prefixes.iter().all(|(other, _)| **other != *prefix);
                    table.prefixes.push((prefix.into(), entry));
                    is_new
                }
            };
            if !is_new {
                return Err(BadPrices::Twice(model));
            }
        }
        table.prefixes.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        Ok(table)
    }

    /// The entry for a model.
    pub fn find(&self, model: &str) -> Option<&ModelPrice> {
        if model.is_empty() {
            return None;
        }
        let by_prefix = || self.prefixes.iter().find(|(prefix, _)| model.starts_with(&**prefix));
        self.exact.get(model).or_else(|| by_prefix().map(|(_, entry)| entry))
    }

    /// The entry for the model that answered, or else for the one that was asked for.
    pub fn of_models(&self, served: &str, requested: &str) -> Option<&ModelPrice> {
        self.find(served).or_else(|| self.find(requested))
    }

    /// The cost of an answer: what the provider reported, or else what its tokens cost. None: there is no price.
    pub fn cost(&self, reading: &MeterReading) -> Option<u64> {
        let MeterReading { tokens, model_served, model_requested, cost_nano, .. } = reading;
        cost_nano.or_else(|| Some(self.of_models(model_served, model_requested)?.cost(tokens)))
    }

    /// What metrics call a model: the pattern that its price is under, or [`OTHER`], so that their number is bounded.
    pub fn label(&self, served: &str, requested: &str) -> &str {
        self.of_models(served, requested).map_or(OTHER, |entry| &*entry.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokens::ReadingSource;
    use proptest::prelude::*;

    const MILLION: u64 = 1_000_000;
    const UNIT: u64 = 1_000_000_000;

    fn entry(model: &str, input: u64) -> ModelPrice {
        let rates = Rates { input, ..Rates::default() };
        ModelPrice { model: model.into(), rates, tiers: Vec::new() }
    }

    fn reading(served: &str, requested: &str, input: u64, cost_nano: Option<u64>) -> MeterReading {
        MeterReading {
            tokens: TokenCounts { total: input, input, ..TokenCounts::default() },
            model_requested: requested.into(),
            model_served: served.into(),
            provider_request_id: "".into(),
            cost_nano,
            source: ReadingSource::Reported,
        }
    }

    #[test]
    fn each_kind_has_its_price_and_is_counted_once() {
        let rates = Rates {
            input: 3 * UNIT,
            cached: UNIT / 2,
            cache_write: 4 * UNIT,
            output: 15 * UNIT,
            reasoning: 20 * UNIT,
        };
        let tokens = TokenCounts {
            total: 1_700,
            input: 1_000,
            cached: 600,
            cache_write: 100,
            output: 500,
            reasoning: 200,
            audio: 50,
        };
        // 300 input, 600 cached, 100 written, 300 output, 200 reasoning, 200 of no known kind.
        let expected = 500 * 3_000 + 600 * 500 + 100 * 4_000 + 300 * 15_000 + 200 * 20_000;
        assert_eq!(rates.cost(&tokens), expected);
        assert_eq!(rates.cost(&TokenCounts::default()), 0);
        let most = TokenCounts { input: u64::MAX, total: u64::MAX, ..TokenCounts::default() };
        assert_eq!(Rates { input: PRICE_MAX, ..Rates::default() }.cost(&most), u64::MAX);
    }

    #[test]
    fn a_cost_is_rounded_once_and_up_from_the_middle() {
        let tokens =
            |input, output| TokenCounts { total: input + output, input, output, ..TokenCounts::default() };
        let rates = Rates { input: 250_000, output: 250_000, ..Rates::default() };
        for (input, output, expected) in [(1, 0, 0), (1, 1, 1), (2, 0, 1), (5, 0, 1), (6, 0, 2), (3, 3, 2)] {
            assert_eq!(rates.cost(&tokens(input, output)), expected, "{input} and {output}");
        }
    }

    #[test]
    fn a_tier_is_for_all_tokens_of_an_answer_with_more_input() {
        let tier = |above, input| Tier { above, rates: Rates { input, ..Rates::default() } };
        let price =
            ModelPrice { tiers: vec![tier(1_000, 2 * UNIT), tier(2_000, 4 * UNIT)], ..entry("m", UNIT) };
        for (input, expected) in
            [(1_000, 1_000_000), (1_001, 2_002_000), (2_000, 4_000_000), (2_001, 8_004_000)]
        {
            let tokens = TokenCounts { total: input, input, ..TokenCounts::default() };
            assert_eq!(price.cost(&tokens), expected, "{input}");
        }
    }

    #[test]
    fn the_most_precise_entry_is_taken_in_any_order() {
        let entries =
            [entry("*", 1), entry("gpt-*", 2), entry("gpt-4o*", 3), entry("gpt-4o", 4), entry("o1", 5)];
        for rotation in 0..entries.len() {
            let mut entries = entries.clone();
            entries.rotate_left(rotation);
            let table = PriceTable::new(entries).expect("sound");
            for (model, pattern) in [
                ("gpt-4o", Some("gpt-4o")),
                ("gpt-4o-2024-08-06", Some("gpt-4o*")),
                ("gpt-3.5", Some("gpt-*")),
                ("o1", Some("o1")),
                ("o1-mini", Some("*")),
                ("", None),
            ] {
                assert_eq!(table.find(model).map(|entry| &*entry.model), pattern, "{model}");
            }
        }
    }

    #[test]
    fn the_model_that_answered_is_charged_and_a_reported_cost_wins() {
        let table = PriceTable::new([entry("asked", 7 * UNIT), entry("served*", 2 * UNIT)]).expect("sound");
        for (served, requested, reported, expected, label) in [
            ("served-1", "asked", None, Some(2 * UNIT), "served*"),
            ("unknown", "asked", None, Some(7 * UNIT), "asked"),
            ("", "asked", None, Some(7 * UNIT), "asked"),
            ("unknown", "unknown", None, None, OTHER),
            ("unknown", "unknown", Some(0), Some(0), OTHER),
            ("served-1", "asked", Some(5), Some(5), "served*"),
        ] {
            let reading = reading(served, requested, MILLION, reported);
            assert_eq!(table.cost(&reading), expected, "{served} {requested}");
            assert_eq!(table.label(served, requested), label);
        }
    }

    #[test]
    fn documents_that_are_no_price_table_are_refused() {
        let tier = |above| Tier { above, rates: Rates::default() };
        let tiers =
            |above: &[u64]| ModelPrice { tiers: above.iter().map(|n| tier(*n)).collect(), ..entry("m", 1) };
        for (entries, expected) in [
            (vec![entry("a", 1), entry("a", 2)], BadPrices::Twice("a".into())),
            (vec![entry("a*", 1), entry("a*", 2)], BadPrices::Twice("a*".into())),
            (vec![entry("", 1)], BadPrices::Pattern("".into())),
            (vec![entry("a*b", 1)], BadPrices::Pattern("a*b".into())),
            (vec![entry("a b", 1)], BadPrices::Pattern("a b".into())),
            (vec![tiers(&[0])], BadPrices::Tiers("m".into())),
            (vec![tiers(&[5, 5])], BadPrices::Tiers("m".into())),
            (vec![tiers(&[5, 4])], BadPrices::Tiers("m".into())),
        ] {
            assert_eq!(PriceTable::new(entries).map(|_| ()), Err(expected));
        }
        assert!(PriceTable::new([tiers(&[1, 2]), entry("*", 0)]).is_ok());
    }

    proptest! {
        #[test]
        fn a_cost_is_within_half_a_billionth_of_the_exact_one(
            prices in prop::array::uniform5(0_u64..=PRICE_MAX / 1_000),
            counts in prop::array::uniform5(0_u64..10_000_000),
        ) {
            let [input, cached, cache_write, output, reasoning] = prices;
            let [a, b, c, d, e] = counts;
            let tokens = TokenCounts {
                total: a + b + c + d + e,
                input: a + b + c,
                cached: b,
                cache_write: c,
                output: d + e,
                reasoning: e,
                audio: 0,
            };
            let rates = Rates { input, cached, cache_write, output, reasoning };
            let exact: u128 = prices.iter().zip(counts).map(|(p, n)| u128::from(*p) * u128::from(n)).sum();
            let cost = u128::from(rates.cost(&tokens)) * 1_000_000;
            prop_assert!(cost.abs_diff(exact) <= 500_000);
        }
    }
}
