//! A list of prices as JSON: what the admin API takes and shows, and what the store keeps.
//!
//! A price is a decimal number as text, `"2.5"`; a JSON number is read as well. Whoever reads a list learns every mistake
//! with its place.

use super::decimal::{BadDecimal, shifted, shown};
use super::{BadPrices, ModelPrice, PATTERN_MAX, PRICES_MAX, PriceTable, Rates, TIERS_MAX, Tier, is_pattern};
use crate::model::key::CEILING_MAX;
use serde_json::{Map, Value, json};

/// The exponent of the unit of a price: billionths.
const NANO: i32 = 9;
/// Most mistakes that are reported.
const MISTAKES_MAX: usize = 100;
/// The names of the prices, in the order of [`given`].
const KINDS: [&str; 5] = ["input", "cached", "cache_write", "output", "reasoning"];

/// A mistake and where it is, as in `[3].tiers[0].input`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceMistake {
    /// The place in the list.
    pub place: String,
    /// What is allowed.
    pub message: String,
}

/// The list as JSON.
pub fn to_json(prices: &[ModelPrice]) -> Value {
    prices.iter().map(entry_to_json).collect()
}

fn entry_to_json(price: &ModelPrice) -> Value {
    let ModelPrice { model, rates, tiers } = price;
    let mut entry = rates_to_json(rates);
    entry.insert("model".into(), json!(&**model));
    let tier = |tier: &Tier| {
        let mut shown = rates_to_json(&tier.rates);
        shown.insert("above".into(), json!(tier.above));
        Value::Object(shown)
    };
    entry.insert("tiers".into(), tiers.iter().map(tier).collect());
    Value::Object(entry)
}

fn rates_to_json(rates: &Rates) -> Map<String, Value> {
    let Rates { input, cached, cache_write, output, reasoning } = *rates;
    let prices = [input, cached, cache_write, output, reasoning];
    KINDS.iter().zip(prices).map(|(name, price)| ((*name).to_owned(), json!(shown(price)))).collect()
}

/// The list from JSON; on failure every mistake.
pub fn from_json(list: &Value) -> Result<Vec<ModelPrice>, Vec<PriceMistake>> {
    let mistake = |message: String| vec![PriceMistake { place: String::new(), message }];
    let Some(items) = list.as_array() else { return Err(mistake("must be a list of prices".into())) };
    if items.len() > PRICES_MAX {
        return Err(mistake(format!("must be at most {PRICES_MAX} prices")));
    }
    let mut mistakes = Mistakes(Vec::new());
    let entries = items.iter().enumerate().map(|(n, item)| entry(&format!("[{n}]"), item, &mut mistakes));
    let prices: Vec<ModelPrice> = entries.collect::<Vec<_>>().into_iter().flatten().collect();
    if mistakes.0.is_empty()
        && let Err(bad) = PriceTable::new(prices.iter().cloned())
    {
        let (BadPrices::Twice(model) | BadPrices::Pattern(model) | BadPrices::Tiers(model)) = &bad;
        let at = prices.iter().rposition(|price| price.model == *model).unwrap_or_default();
        mistakes.add(&format!("[{at}]"), bad.to_string());
    }
    if mistakes.0.is_empty() { Ok(prices) } else { Err(mistakes.0) }
}

struct Mistakes(Vec<PriceMistake>);

fn entry(place: &str, value: &Value, mistakes: &mut Mistakes) -> Option<ModelPrice> {
    let Some(map) = value.as_object() else {
        mistakes
            .add(place, "must be an object {model, input, cached, cache_write, output, reasoning, tiers}");
        return None;
    };
    let model = map.get("model").and_then(Value::as_str).filter(|model| is_pattern(model));
    if model.is_none() {
        let allowed = format!(
            "must be the name of a model, or its first characters and *, of 1 to {PATTERN_MAX} characters without spaces"
        );
        mistakes.add(&format!("{place}.model"), allowed);
    }
    let given = given(place, map, mistakes);
    for (name, price) in [("input", given[0]), ("output", given[3])] {
        if price.is_none() && map.get(name).is_none_or(Value::is_null) {
            mistakes.add(&format!("{place}.{name}"), "is required");
        }
    }
    let (input, output) = (given[0].unwrap_or(0), given[3].unwrap_or(0));
    let usual = Rates { input, cached: input, cache_write: input, output, reasoning: output };
    let rates = rates_of(given, usual);
    let tiers = tiers(place, map.get("tiers"), rates, mistakes);
    unknown(place, map, &["model", "tiers"], mistakes);
    Some(ModelPrice { model: model?.into(), rates, tiers })
}

fn tiers(place: &str, value: Option<&Value>, rates: Rates, mistakes: &mut Mistakes) -> Vec<Tier> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Vec::new() };
    let place = format!("{place}.tiers");
    let Some(items) = value.as_array().filter(|items| items.len() <= TIERS_MAX) else {
        mistakes.add(&place, format!("must be a list of at most {TIERS_MAX} tiers"));
        return Vec::new();
    };
    let mut found: Vec<Tier> = Vec::with_capacity(items.len());
    for (n, item) in items.iter().enumerate() {
        let place = format!("{place}[{n}]");
        let Some(map) = item.as_object() else {
            mistakes.add(&place, "must be an object {above, input, cached, cache_write, output, reasoning}");
            continue;
        };
        let given = given(&place, map, mistakes);
        unknown(&place, map, &["above"], mistakes);
        let before = found.last().map_or(0, |tier| tier.above);
        match map.get("above").and_then(tokens).filter(|above| *above > before) {
            Some(above) => found.push(Tier { above, rates: rates_of(given, rates) }),
            None => mistakes.add(
                &format!("{place}.above"),
                "must be a number of tokens, 1 or more, and more than in the tier before",
            ),
        }
    }
    found
}

/// A number of tokens. JSON does not distinguish 5 and 5.0.
fn tokens(value: &Value) -> Option<u64> {
    let text = value.as_number()?.to_string();
    text.strip_suffix(".0").unwrap_or(&text).parse().ok().filter(|tokens| *tokens <= CEILING_MAX)
}

/// The prices that are given, in the order of [`KINDS`].
fn given(place: &str, map: &Map<String, Value>, mistakes: &mut Mistakes) -> [Option<u64>; 5] {
    KINDS.map(|name| {
        let read = match map.get(name) {
            None | Some(Value::Null) => return None,
            Some(Value::String(text)) => shifted(text, NANO),
            Some(Value::Number(number)) => shifted(&number.to_string(), NANO),
            Some(_) => Err(BadDecimal::NotANumber),
        };
        read.inspect_err(|bad| mistakes.add(&format!("{place}.{name}"), bad.to_string())).ok()
    })
}

fn rates_of(given: [Option<u64>; 5], usual: Rates) -> Rates {
    let [input, cached, cache_write, output, reasoning] = given;
    Rates {
        input: input.unwrap_or(usual.input),
        cached: cached.unwrap_or(usual.cached),
        cache_write: cache_write.unwrap_or(usual.cache_write),
        output: output.unwrap_or(usual.output),
        reasoning: reasoning.unwrap_or(usual.reasoning),
    }
}

fn unknown(place: &str, map: &Map<String, Value>, others: &[&str], mistakes: &mut Mistakes) {
    let is_known = |name: &str| KINDS.contains(&name) || others.contains(&name);
    if map.keys().any(|name| !is_known(name)) {
        let known = [&KINDS[..], others].concat().join(", ");
        mistakes.add(place, format!("has a field that is not known here; known: {known}"));
    }
}

// === impl Mistakes ===

impl Mistakes {
    fn add(&mut self, place: &str, message: impl Into<String>) {
        if self.0.len() < MISTAKES_MAX {
            self.0.push(PriceMistake { place: place.to_owned(), message: message.into() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNIT: u64 = 1_000_000_000;

    #[test]
    fn missing_prices_are_derived_from_given_ones() {
        let list = json!([
            {"model": "a", "input": "2.5", "output": 10},
            {"model": "b*", "input": 3, "cached": 0.3, "cache_write": "3.75", "output": 15, "reasoning": null,
             "tiers": [{"above": 200_000, "input": 6}, {"above": 400_000, "output": "22.5", "reasoning": 30}]},
        ]);
        let rates = |[input, cached, cache_write, output, reasoning]: [u64; 5]| Rates {
            input,
            cached,
            cache_write,
            output,
            reasoning,
        };
        let milli = UNIT / 1_000;
        let second = rates([3 * UNIT, 300 * milli, 3_750 * milli, 15 * UNIT, 15 * UNIT]);
        let expected = vec![
            ModelPrice {
                model: "a".into(),
                rates: rates([2_500 * milli, 2_500 * milli, 2_500 * milli, 10 * UNIT, 10 * UNIT]),
                tiers: vec![],
            },
            ModelPrice {
                model: "b*".into(),
                rates: second,
                tiers: vec![
                    Tier { above: 200_000, rates: Rates { input: 6 * UNIT, ..second } },
                    Tier {
                        above: 400_000,
                        rates: Rates { output: 22_500 * milli, reasoning: 30 * UNIT, ..second },
                    },
                ],
            },
        ];
        let read = from_json(&list).expect("sound");
        assert_eq!(read, expected);
        assert_eq!(from_json(&to_json(&read)), Ok(expected));
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let told = |list: Value| {
            let mistakes = from_json(&list).expect_err("a mistake");
            mistakes.into_iter().map(|m| format!("{}: {}", m.place, m.message)).collect::<Vec<_>>()
        };
        let lines = told(json!([
            {"model": "a", "input": -1, "output": "x"},
            {"model": "a*b", "input": 1},
            7,
            {"model": "c", "input": 1, "output": true, "tiers": [{"above": 5}, {"above": 5, "input": "-0.1"}, {}]},
            {"model": "d", "input": 1, "output": 1, "outptu": 1},
        ]));
        for expected in [
            "[0].input: must not be negative",
            "[0].output: must be a number, 0 or more",
            "[1].output: is required",
            "[2]: must be an object",
            "[3].output: must be a number, 0 or more",
            "[3].tiers[1].input: must not be negative",
            "[3].tiers[1].above: must be a number of tokens",
            "[3].tiers[2].above: must be a number of tokens",
            "[4]: has a field that is not known here",
        ] {
            assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected}\n{lines:#?}");
        }
        assert!(lines.iter().any(|line| line.starts_with("[1].model: must be the name of a model")));
        assert_eq!(lines.len(), 10, "{lines:#?}");
        let entry = json!({"model": "a", "input": 1, "output": 1});
        assert_eq!(told(json!([entry, entry])), ["[1]: \"a\" has a price already"]);
        assert_eq!(told(json!({})), [": must be a list of prices"]);
    }

    proptest! {
        #[test]
        fn every_list_comes_back(
            prices in prop::collection::btree_map("[a-z]{1,5}[*]?", prop::array::uniform10(0_u64..=10 * UNIT), 0..5),
        ) {
            let rates = |p: &[u64]| Rates {
                input: p[0], cached: p[1], cache_write: p[2], output: p[3], reasoning: p[4],
            };
            let entry = |(model, p): (&String, &[u64; 10])| ModelPrice {
                model: model.as_str().into(),
                rates: rates(&p[..5]),
                tiers: vec![Tier { above: 1 + p[0], rates: rates(&p[5..]) }],
            };
            let list: Vec<ModelPrice> = prices.iter().map(entry).collect();
            prop_assert_eq!(from_json(&to_json(&list)), Ok(list));
        }
    }
}
