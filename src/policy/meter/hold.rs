//! What a metered request holds until it is known what it used.
//!
//! Must not know: limits, where prices and habits come from.

use super::tokens_of;
use crate::model::amounts::Amounts;
use crate::model::key::Measure;
use crate::model::tokens::TokenCounts;
use crate::policy::prices::ModelPrice;

/// What a metered request says about its use, before it is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldRequest<'r> {
    /// The size of its body, or of what is known of it.
    pub input_bytes: u64,
    /// The most output tokens of one answer that it asks for; none: it names no maximum.
    pub max_output: Option<u64>,
    /// How many answers it asks for.
    pub choices: u64,
    /// The model that it names; empty if none.
    pub model: &'r str,
}

/// What else bounds the output that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldBounds {
    /// The route's `hold`.
    pub route: u64,
    /// What the key's answers of this model rarely exceed, if there were enough of them.
    pub usual: Option<u64>,
}

impl HoldRequest<'_> {
    /// What the request holds, beside being one request. At least one unit of each measure, so that a limit that is used up
    /// refuses it.
    pub fn amounts(&self, bounds: HoldBounds, price: Option<&ModelPrice>) -> Amounts {
        let input = tokens_of(self.input_bytes);
        let asked = self.max_output.map(|max| max.saturating_mul(self.choices.max(1)));
        let output = [asked, bounds.usual].into_iter().flatten().fold(bounds.route, u64::min);
        let tokens =
            TokenCounts { total: input.saturating_add(output), input, output, ..TokenCounts::default() };
        let held = Amounts::used(&tokens, price.map(|price| price.cost(&tokens)));
        let at_least_one = |held: Amounts, measure| held.with(measure, held.get(measure).max(1));
        Measure::METERED.into_iter().fold(held, at_least_one).with(Measure::Requests, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::prices::Rates;

    const ROUTE: HoldBounds = HoldBounds { route: 4_096, usual: None };
    const REQUEST: HoldRequest<'_> =
        HoldRequest { input_bytes: 401, max_output: None, choices: 1, model: "m" };

    fn held(amounts: Amounts) -> [u64; 4] {
        amounts.metered()
    }

    #[test]
    fn the_output_is_the_smallest_of_what_is_known() {
        assert_eq!(held(REQUEST.amounts(ROUTE, None)), [101 + 4_096, 101, 4_096, 1]);
        let asks = HoldRequest { max_output: Some(100), choices: 3, ..REQUEST };
        assert_eq!(held(asks.amounts(ROUTE, None)), [401, 101, 300, 1]);
        let usual = HoldBounds { usual: Some(50), ..ROUTE };
        assert_eq!(held(asks.amounts(usual, None)), [151, 101, 50, 1]);
        let much = HoldRequest { max_output: Some(u64::MAX), choices: u64::MAX, ..REQUEST };
        assert_eq!(held(much.amounts(ROUTE, None)), [101 + 4_096, 101, 4_096, 1]);
        let huge = HoldRequest { input_bytes: u64::MAX, ..much };
        assert_eq!(huge.amounts(ROUTE, None).get(Measure::Requests), 1);
    }

    #[test]
    fn the_cost_is_that_of_the_tokens_and_nothing_is_held_without_a_price() {
        let rates = Rates { input: 1_000_000_000, output: 2_000_000_000, ..Rates::default() };
        let price = ModelPrice { model: "m".into(), rates, tiers: Vec::new() };
        assert_eq!(REQUEST.amounts(ROUTE, Some(&price)).get(Measure::Cost), 101_000 + 2 * 4_096_000);
        let nothing = HoldRequest { input_bytes: 0, max_output: Some(0), ..REQUEST };
        assert_eq!(held(nothing.amounts(ROUTE, Some(&price))), [1, 1, 1, 1]);
    }
}
