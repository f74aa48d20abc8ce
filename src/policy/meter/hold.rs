//! What a metered request holds until it is known what it used.
//!
//! Must not know: where prices and habits come from, what has been spent.

use super::{BYTES_PER_TOKEN, tokens_of};
use crate::model::amounts::Amounts;
use crate::model::key::Measure;
use crate::model::tokens::TokenCounts;
use crate::policy::keys::limit::{Limit, Limits, Remaining};
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

/// What a metered request holds.
#[derive(Clone, Copy, Debug)]
pub struct PlannedHold<'r> {
    /// The request.
    pub request: HoldRequest<'r>,
    /// The bounds of its output.
    pub bounds: HoldBounds,
    /// The price of its model; none: no cost is held.
    pub price: Option<&'r ModelPrice>,
    /// Whether the request's maximum is lowered to what is left, so that it fits.
    pub clamp: bool,
}

// === impl HoldRequest, PlannedHold ===

impl<'r> HoldRequest<'r> {
    /// What an application says that it may use.
    pub const fn of_tokens(input: u64, max_output: u64, model: &'r str) -> Self {
        let input_bytes = input.saturating_mul(BYTES_PER_TOKEN);
        Self { input_bytes, max_output: Some(max_output), choices: 1, model }
    }

    fn input(&self) -> u64 {
        tokens_of(self.input_bytes)
    }
}

impl HoldBounds {
    /// No bound.
    pub const NONE: Self = Self { route: u64::MAX, usual: None };
}

impl PlannedHold<'_> {
    /// The output that is held: the smallest of what is known.
    pub fn output(&self) -> u64 {
        let asked = self.request.max_output.map(|max| max.saturating_mul(self.request.choices.max(1)));
        [asked, self.bounds.usual].into_iter().flatten().fold(self.bounds.route, u64::min)
    }

    /// What the request holds for that much output, beside being one request. At least one unit of each measure, so that a
    /// limit that is used up refuses it.
    pub fn amounts(&self, output: u64) -> Amounts {
        let tokens = self.tokens(output);
        let held = Amounts::used(&tokens, self.price.map(|price| price.cost(&tokens)));
        let at_least_one = |held: Amounts, measure| held.with(measure, held.get(measure).max(1));
        Measure::METERED.into_iter().fold(held, at_least_one).with(Measure::Requests, 1)
    }

    /// How much output fits what is `left` of limits, of which the request holds `held` already. None: no limit bounds it.
    pub fn output_left(&self, left: &[(Limit, Remaining)], held: &Amounts) -> Option<u64> {
        let room = |(limit, left): &(Limit, Remaining)| {
            let units = left.units.saturating_add(held.get(limit.count));
            match limit.count {
                Measure::Requests | Measure::InputTokens => None,
                Measure::Tokens => Some(units.saturating_sub(self.request.input())),
                Measure::OutputTokens => Some(units),
                Measure::Cost => self.price?.output_within(&self.tokens(0), units),
            }
        };
        left.iter().filter_map(room).min()
    }

    fn tokens(&self, output: u64) -> TokenCounts {
        let input = self.request.input();
        TokenCounts { total: input.saturating_add(output), input, output, ..TokenCounts::default() }
    }
}

/// `amounts` with no more of each measure than a limit allows at all, so that each limit can be used up.
pub fn capped(amounts: Amounts, limits: &Limits) -> Amounts {
    limits.iter().filter(|limit| limit.count.metered_index().is_some()).fold(amounts, |amounts, limit| {
        amounts.with(limit.count, amounts.get(limit.count).min(limit.max().max(1)))
    })
}

/// The tokens by kind of what a request holds: no more of any measure than that.
pub fn held_tokens(held: &Amounts) -> TokenCounts {
    let total = held.get(Measure::Tokens);
    let input = held.get(Measure::InputTokens).min(total);
    let output = held.get(Measure::OutputTokens).min(total - input);
    TokenCounts { total: input + output, input, output, ..TokenCounts::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::key::Per;
    use crate::policy::keys::limit::{LimitName, LimitRule};
    use crate::policy::prices::Rates;

    const PLAN: PlannedHold<'_> = PlannedHold {
        request: HoldRequest { input_bytes: 401, max_output: None, choices: 1, model: "m" },
        bounds: HoldBounds { route: 4_096, usual: None },
        price: None,
        clamp: false,
    };

    fn asking(max_output: u64, choices: u64) -> PlannedHold<'static> {
        PlannedHold { request: HoldRequest { max_output: Some(max_output), choices, ..PLAN.request }, ..PLAN }
    }

    fn held(plan: &PlannedHold<'_>) -> [u64; 4] {
        plan.amounts(plan.output()).metered()
    }

    fn limit(count: Measure, max: u64) -> Limit {
        Limit { name: LimitName::Key(0), count, rule: LimitRule::of(Per::Day, max) }
    }

    #[test]
    fn the_output_is_the_smallest_of_what_is_known() {
        assert_eq!(held(&PLAN), [101 + 4_096, 101, 4_096, 1]);
        assert_eq!(held(&asking(100, 3)), [401, 101, 300, 1]);
        let usual = HoldBounds { usual: Some(50), ..PLAN.bounds };
        assert_eq!(held(&PlannedHold { bounds: usual, ..asking(100, 3) }), [151, 101, 50, 1]);
        assert_eq!(held(&asking(u64::MAX, u64::MAX)), [101 + 4_096, 101, 4_096, 1]);
        let request = HoldRequest { input_bytes: u64::MAX, ..PLAN.request };
        assert_eq!(PlannedHold { request, ..PLAN }.amounts(u64::MAX).get(Measure::Requests), 1);
    }

    #[test]
    fn the_cost_is_that_of_the_tokens_and_one_unit_is_held_without_a_price() {
        let rates = Rates { input: 1_000_000_000, output: 2_000_000_000, ..Rates::default() };
        let price = ModelPrice { model: "m".into(), rates, tiers: Vec::new() };
        let priced = PlannedHold { price: Some(&price), ..PLAN };
        assert_eq!(priced.amounts(4_096).get(Measure::Cost), 101_000 + 2 * 4_096_000);
        let nothing = HoldRequest { input_bytes: 0, max_output: Some(0), ..PLAN.request };
        assert_eq!(held(&PlannedHold { request: nothing, ..priced }), [1, 1, 1, 1]);
    }

    #[test]
    fn a_hold_never_exceeds_a_limit_and_is_never_nothing() {
        let limits: Limits =
            [limit(Measure::Tokens, 500), limit(Measure::OutputTokens, 0)].into_iter().collect();
        assert_eq!(capped(PLAN.amounts(4_096), &limits).metered(), [500, 101, 1, 1]);
    }

    #[test]
    fn holds_never_exceed_the_tokens_of_any_measure() {
        let kinds = |amounts: Amounts| {
            let tokens = held_tokens(&amounts);
            (tokens.total, tokens.input, tokens.output)
        };
        assert_eq!(kinds(PLAN.amounts(4_096)), (4_197, 101, 4_096));
        for (max, expected) in [(500, (500, 101, 399)), (60, (60, 60, 0))] {
            let limits: Limits = [limit(Measure::Tokens, max)].into_iter().collect();
            assert_eq!(kinds(capped(PLAN.amounts(4_096), &limits)), expected);
        }
    }

    #[test]
    fn the_output_that_fits_is_what_the_tightest_limit_leaves() {
        let rates = Rates { input: 1_000_000_000, output: 2_000_000_000, ..Rates::default() };
        let price = ModelPrice { model: "m".into(), rates, tiers: Vec::new() };
        let plan = PlannedHold { price: Some(&price), ..PLAN };
        let left = |count, units| (limit(count, 1_000_000), Remaining { units, reset: None });
        let nothing = Amounts::default();
        assert_eq!(
            plan.output_left(&[left(Measure::Requests, 1), left(Measure::InputTokens, 1)], &nothing),
            None
        );
        let tokens = left(Measure::Tokens, 301);
        assert_eq!(plan.output_left(&[tokens, left(Measure::OutputTokens, 250)], &nothing), Some(200));
        assert_eq!(plan.output_left(&[tokens], &plan.amounts(99)), Some(400));
        assert_eq!(plan.output_left(&[left(Measure::Cost, 101_000 + 50_000)], &nothing), Some(25));
        assert_eq!(plan.output_left(&[left(Measure::Cost, 7)], &nothing), Some(0));
        assert_eq!(PLAN.output_left(&[left(Measure::Cost, 7)], &nothing), None, "no price is known");
    }
}
