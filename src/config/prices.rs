//! `[[prices]]`: what tokens of a model cost.

use super::raw_value::RawValue;
use super::reader::ConfigReader;
use super::rule::{Integer, OrEmpty, ParsedText, ValueRule, quote, refusal};
use super::section::Section;
use crate::model::key::CEILING_MAX;
use crate::policy::prices::decimal::{BadDecimal, shifted, shown};
use crate::policy::prices::{ModelPrice, Rates, TIERS_MAX, Tier, is_pattern};
use std::collections::HashSet;

/// The exponent of the unit of a price: billionths.
const NANO: i32 = 9;

/// A price per million tokens, as a decimal number.
struct Price;

const MODEL: ParsedText<String> = ParsedText {
    must: r#"the name of a model, or its first characters and *, such as "gpt-4o" or "gpt-4o*", of 1 to 200 characters without spaces"#,
    read: |text| is_pattern(text).then(|| text.to_owned()),
    show: |name| quote(name),
};

/// A parsed entry; empty parts were missing or wrong.
pub(super) struct PriceFile {
    model: Option<String>,
    rates: Option<Rates>,
    tiers: Vec<Option<TierFile>>,
}

/// A parsed tier. A price that is not given is that of the entry.
struct TierFile {
    above: Option<u64>,
    rates: GivenRates,
}

/// The prices that are given.
struct GivenRates {
    input: Option<u64>,
    cached: Option<u64>,
    cache_write: Option<u64>,
    output: Option<u64>,
    reasoning: Option<u64>,
}

/// Reads one entry.
pub(super) fn price(s: &mut Section<'_, '_>) -> PriceFile {
    let model = s.required("model", &MODEL);
    let (input, output) = (s.required("input", &Price), s.required("output", &Price));
    let [cached, cache_write, reasoning] = ["cached", "cache_write", "reasoning"].map(|key| optional(s, key));
    let rates = input.zip(output).map(|(input, output)| Rates {
        input,
        cached: cached.unwrap_or(input),
        cache_write: cache_write.unwrap_or(input),
        output,
        reasoning: reasoning.unwrap_or(output),
    });
    PriceFile { model, rates, tiers: s.tables("tiers", TIERS_MAX, tier) }
}

fn tier(s: &mut Section<'_, '_>) -> TierFile {
    let above = s.required("above", &Integer { min: 1, max: CEILING_MAX });
    let [input, cached, cache_write, output, reasoning] =
        ["input", "cached", "cache_write", "output", "reasoning"].map(|key| optional(s, key));
    TierFile { above, rates: GivenRates { input, cached, cache_write, output, reasoning } }
}

fn optional(s: &mut Section<'_, '_>, key: &'static str) -> Option<u64> {
    s.value(key, &OrEmpty(Price), None)
}

/// The entries; each pattern is there once, and tiers ascend.
pub(super) fn checked(files: Vec<Option<PriceFile>>, reading: &mut ConfigReader<'_>) -> Vec<ModelPrice> {
    let mut seen = HashSet::new();
    let mut prices = Vec::with_capacity(files.len());
    for (n, file) in files.into_iter().enumerate() {
        let Some(PriceFile { model: Some(model), rates, tiers }) = file else { continue };
        let path = format!("prices[{n}]");
        if !seen.insert(model.clone()) {
            reading.complain_of_conflict(&[&format!("{path}.model")], "has a price already");
        }
        let Some(rates) = rates else { continue };
        let mut before = 0;
        let mut whole = Vec::with_capacity(tiers.len());
        for (t, tier) in tiers.into_iter().enumerate() {
            let Some(TierFile { above: Some(above), rates: given }) = tier else { continue };
            if above <= before {
                let above = format!("{path}.tiers[{t}].above");
                reading.complain_of_conflict(&[&above], "must be more than in the tier before");
            }
            before = above;
            whole.push(Tier { above, rates: given.or(rates) });
        }
        prices.push(ModelPrice { model: model.into(), rates, tiers: whole });
    }
    prices
}

// === impl GivenRates ===

impl GivenRates {
    fn or(self, rates: Rates) -> Rates {
        let Self { input, cached, cache_write, output, reasoning } = self;
        Rates {
            input: input.unwrap_or(rates.input),
            cached: cached.unwrap_or(rates.cached),
            cache_write: cache_write.unwrap_or(rates.cache_write),
            output: output.unwrap_or(rates.output),
            reasoning: reasoning.unwrap_or(rates.reasoning),
        }
    }
}

// === impl Price ===

impl ValueRule for Price {
    type Value = u64;

    fn must(&self) -> String {
        "a price of a million tokens: a number from 0 to 1000000000, such as 2.5".into()
    }

    fn read(&self, given: RawValue<'_>) -> Result<u64, String> {
        let number = given.decimal().ok_or(BadDecimal::NotANumber).and_then(|text| shifted(&text, NANO));
        number.map_err(|_| refusal(self))
    }

    fn show(&self, value: &u64) -> String {
        shown(*value)
    }
}
