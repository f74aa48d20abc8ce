//! Reads the tables of prices that LiteLLM (`model_prices_and_context_window.json`) and models.dev (`api.json`) publish.
//!
//! LiteLLM has prices per token, by model: `input_cost_per_token`, `cache_read_input_token_cost`, …, with the suffix
//! `_above_200k_tokens` for more input. models.dev has prices per million tokens in `cost`, by provider and model, with
//! `tiers` or `context_over_200k`. A model without a price of input or output tokens (images, audio by the second) is left
//! out; a price that is wrong is a mistake that names its entry.

use super::decimal::shifted;
use super::{ModelPrice, PRICES_MAX, Rates, TIERS_MAX, Tier, is_pattern};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// From the unit of a price per token to billionths per million tokens.
const PER_TOKEN: i32 = 15;
/// The same of a price per million tokens.
const PER_MILLION: i32 = 9;
/// Input tokens above which `context_over_200k` is in force.
const LONG_CONTEXT: u64 = 200_000;

/// A table that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportedPrices {
    /// The prices, by model.
    pub prices: Vec<ModelPrice>,
    /// Models without a price of tokens.
    pub left_out: u64,
}

/// The prices that an entry gives.
#[derive(Clone, Copy, Default)]
struct Given {
    input: Option<u64>,
    cached: Option<u64>,
    cache_write: Option<u64>,
    output: Option<u64>,
    reasoning: Option<u64>,
}

/// The prices in a published table; on failure every mistake, each beginning with its entry.
///
/// A models.dev table has many providers, and the same model at several: `provider` chooses one, or else each model is named
/// `provider/model`.
pub fn read(table: &Value, provider: Option<&str>) -> Result<ImportedPrices, Vec<String>> {
    let Some(entries) = table.as_object() else {
        return Err(vec!["must be an object by model or provider".into()]);
    };
    let is_models_dev = entries.values().any(|entry| entry.get("models").is_some_and(Value::is_object));
    let mut import = Import::default();
    if is_models_dev {
        for (name, entry) in entries {
            if provider.is_none_or(|wanted| wanted == name) {
                let models = entry.get("models").and_then(Value::as_object);
                models.into_iter().flatten().for_each(|(model, entry)| {
                    let place = format!("{name}.models.{model}");
                    let model = provider.map_or_else(|| format!("{name}/{model}"), |_| model.clone());
                    import.add(&place, model, entry.get("cost"), models_dev);
                });
            }
        }
    } else {
        for (model, entry) in entries {
            let is_of = |wanted| entry.get("litellm_provider").and_then(Value::as_str) == Some(wanted);
            // An entry of the table explains its fields.
            if model != "sample_spec" && provider.is_none_or(is_of) {
                import.add(model, model.clone(), Some(entry), litellm);
            }
        }
    }
    import.finish(provider)
}

type ReadEntry = fn(&Map<String, Value>) -> Result<(Given, BTreeMap<u64, Given>), String>;

/// A running import.
#[derive(Default)]
struct Import {
    prices: BTreeMap<String, ModelPrice>,
    left_out: u64,
    mistakes: Vec<String>,
}

impl Import {
    fn add(&mut self, place: &str, model: String, entry: Option<&Value>, read: ReadEntry) {
        let Some(entry) = entry.and_then(Value::as_object) else {
            self.left_out += 1;
            return;
        };
        match read(entry) {
            Err(why) => self.mistakes.push(format!("{place}: {why}")),
            Ok((given, tiers)) => match given.rates() {
                Some(rates) if is_pattern(&model) && !model.ends_with('*') => {
                    let tiers = tiers.into_iter().take(TIERS_MAX);
                    let tiers = tiers.map(|(above, given)| Tier { above, rates: given.or(rates) }).collect();
                    let name = model.as_str().into();
                    self.prices.insert(model, ModelPrice { model: name, rates, tiers });
                }
                _ => self.left_out += 1,
            },
        }
    }

    fn finish(self, provider: Option<&str>) -> Result<ImportedPrices, Vec<String>> {
        let Self { prices, left_out, mut mistakes } = self;
        if prices.len() > PRICES_MAX {
            mistakes.push(format!("has {} prices; at most {PRICES_MAX} are kept", prices.len()));
        }
        if prices.is_empty() && mistakes.is_empty() {
            let of = provider.map(|name| format!(" of the provider {name:?}")).unwrap_or_default();
            mistakes.push(format!("has no price of tokens{of}"));
        }
        let prices = prices.into_values().collect();
        if mistakes.is_empty() { Ok(ImportedPrices { prices, left_out }) } else { Err(mistakes) }
    }
}

/// Where a price belongs.
type Slot = fn(&mut Given) -> &mut Option<u64>;

fn litellm(entry: &Map<String, Value>) -> Result<(Given, BTreeMap<u64, Given>), String> {
    let mut given = Given::default();
    let mut tiers = BTreeMap::<u64, Given>::new();
    for (name, value) in entry {
        let Some((slot, above)) = litellm_field(name) else { continue };
        let Some(price) = price(name, value, PER_TOKEN)? else { continue };
        let of = match above {
            None => &mut given,
            Some(above) => tiers.entry(above).or_default(),
        };
        *slot(of) = Some(price);
    }
    Ok((given, tiers))
}

/// Which price a field is, and above how many input tokens; none: another field.
fn litellm_field(name: &str) -> Option<(Slot, Option<u64>)> {
    let (kind, above) = match name.split_once("_above_") {
        None => (name, None),
        // Others are rates of a cache that lives an hour, or of a class of service.
        Some((kind, above)) => (kind, Some(tokens_above(above)?)),
    };
    let slot: Slot = match kind {
        "input_cost_per_token" => |given| &mut given.input,
        "cache_read_input_token_cost" => |given| &mut given.cached,
        "cache_creation_input_token_cost" => |given| &mut given.cache_write,
        "output_cost_per_token" => |given| &mut given.output,
        "output_cost_per_reasoning_token" => |given| &mut given.reasoning,
        _ => return None,
    };
    Some((slot, above))
}

/// The number in `200k_tokens`.
fn tokens_above(text: &str) -> Option<u64> {
    let thousands: u64 = text.strip_suffix("k_tokens")?.parse().ok()?;
    thousands.checked_mul(1_000).filter(|above| *above > 0)
}

fn models_dev(cost: &Map<String, Value>) -> Result<(Given, BTreeMap<u64, Given>), String> {
    let given = models_dev_rates(cost)?;
    let mut tiers = BTreeMap::new();
    for (n, tier) in cost.get("tiers").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let size = tier.pointer("/tier/size").and_then(Value::as_u64).filter(|size| *size > 0);
        let is_context = tier.pointer("/tier/type").and_then(Value::as_str) == Some("context");
        let (Some(size), true, Some(rates)) = (size, is_context, tier.as_object()) else {
            return Err(format!("tiers[{n}]: must have a tier of type context with a size"));
        };
        tiers.insert(size, models_dev_rates(rates)?);
    }
    if tiers.is_empty()
        && let Some(long) = cost.get("context_over_200k").and_then(Value::as_object)
    {
        tiers.insert(LONG_CONTEXT, models_dev_rates(long)?);
    }
    Ok((given, tiers))
}

fn models_dev_rates(cost: &Map<String, Value>) -> Result<Given, String> {
    let of = |name: &str| cost.get(name).map_or(Ok(None), |value| price(name, value, PER_MILLION));
    Ok(Given {
        input: of("input")?,
        cached: of("cache_read")?,
        cache_write: of("cache_write")?,
        output: of("output")?,
        reasoning: of("reasoning")?,
    })
}

/// A price; null is none.
fn price(name: &str, value: &Value, shift: i32) -> Result<Option<u64>, String> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    shifted(&text, shift).map(Some).map_err(|bad| format!("{name}: {bad}"))
}

// === impl Given ===

impl Given {
    /// The prices of an entry; none if it has no price of input or output.
    fn rates(self) -> Option<Rates> {
        let Self { input, cached, cache_write, output, reasoning } = self;
        if input.is_none() && output.is_none() {
            return None;
        }
        let (input, output) = (input.unwrap_or(0), output.unwrap_or(0));
        Some(Rates {
            input,
            cached: cached.unwrap_or(input),
            cache_write: cache_write.unwrap_or(input),
            output,
            reasoning: reasoning.unwrap_or(output),
        })
    }

    /// The prices of a tier; those that it does not give are the entry's.
    fn or(self, rates: Rates) -> Rates {
        let Self { input, cached, cache_write, output, reasoning } = self;
        Rates {
            input: input.unwrap_or(rates.input),
            cached: cached.unwrap_or(rates.cached),
            cache_write: cache_write.unwrap_or(rates.cache_write),
            output: output.unwrap_or(rates.output),
            reasoning: reasoning.or(output).unwrap_or(rates.reasoning),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::prices::decimal::shown;
    use serde_json::json;

    fn shown_prices(import: &ImportedPrices) -> Vec<String> {
        let rates = |rates: &Rates| {
            let Rates { input, cached, cache_write, output, reasoning } = *rates;
            [input, cached, cache_write, output, reasoning].map(shown).join(" ")
        };
        let line = |price: &ModelPrice| {
            let tiers = price.tiers.iter().map(|tier| format!("; >{} {}", tier.above, rates(&tier.rates)));
            format!("{}: {}{}", price.model, rates(&price.rates), tiers.collect::<String>())
        };
        import.prices.iter().map(line).collect()
    }

    #[test]
    fn a_table_of_litellm_is_read() {
        let table = json!({
            "sample_spec": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "mode": "one of: chat, …"},
            "gpt-4o": {
                "litellm_provider": "openai", "mode": "chat", "max_input_tokens": 128_000,
                "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05,
                "cache_read_input_token_cost": 1.25e-06, "input_cost_per_token_batches": 1.25e-06,
                "input_cost_per_token_priority": 4.25e-06, "cache_read_input_token_cost_priority": null,
            },
            "claude-sonnet-4": {
                "litellm_provider": "anthropic",
                "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05,
                "cache_read_input_token_cost": 3e-07, "cache_creation_input_token_cost": 3.75e-06,
                "cache_creation_input_token_cost_above_1hr": 6e-06,
                "input_cost_per_token_above_200k_tokens": 6e-06,
                "output_cost_per_token_above_200k_tokens": 2.25e-05,
                "cache_read_input_token_cost_above_200k_tokens_priority": 1.0,
            },
            "text-embedding-3-small": {"input_cost_per_token": 2e-08, "output_cost_per_token": 0.0},
            "dall-e-3": {"litellm_provider": "openai", "mode": "image_generation", "input_cost_per_pixel": 3.8e-08},
        });
        let import = read(&table, None).expect("a table");
        assert_eq!(
            shown_prices(&import),
            [
                "claude-sonnet-4: 3 0.3 3.75 15 15; >200000 6 0.3 3.75 22.5 22.5",
                "gpt-4o: 2.5 1.25 2.5 10 10",
                "text-embedding-3-small: 0.02 0.02 0.02 0 0",
            ]
        );
        assert_eq!(import.left_out, 1);
        let of_one = read(&table, Some("anthropic")).expect("a table");
        assert_eq!((of_one.prices.len(), of_one.left_out), (1, 0));
    }

    #[test]
    fn a_table_of_models_dev_is_read() {
        let table = json!({
            "openai": {"id": "openai", "models": {
                "gpt-5.5": {"cost": {
                    "input": 5, "output": 30, "cache_read": 0.5,
                    "tiers": [{"input": 10, "output": 45, "cache_read": 1, "tier": {"type": "context", "size": 272_000}}],
                    "context_over_200k": {"input": 10, "output": 45, "cache_read": 1},
                }},
                "whisper": {"name": "Whisper"},
            }},
            "google": {"id": "google", "models": {
                "gemini-3-pro": {"cost": {
                    "input": 2, "output": 12, "reasoning": 13, "context_over_200k": {"input": 4, "output": 18},
                }},
            }},
        });
        let import = read(&table, None).expect("a table");
        assert_eq!(
            shown_prices(&import),
            [
                "google/gemini-3-pro: 2 2 2 12 13; >200000 4 2 2 18 18",
                "openai/gpt-5.5: 5 0.5 5 30 30; >272000 10 1 5 45 45",
            ]
        );
        assert_eq!(import.left_out, 1);
        let of_one = read(&table, Some("openai")).expect("a table");
        assert_eq!(shown_prices(&of_one), ["gpt-5.5: 5 0.5 5 30 30; >272000 10 1 5 45 45"]);
    }

    #[test]
    fn a_wrong_price_names_its_entry() {
        let refused = |table: Value, provider| read(&table, provider).expect_err("a mistake");
        assert_eq!(
            refused(
                json!({"a": {"input_cost_per_token": -1e-6}, "b": {"output_cost_per_token": "free"}, "c": {"input_cost_per_token": 1}}),
                None
            ),
            [
                "a: input_cost_per_token: must not be negative",
                "b: output_cost_per_token: must be a number, 0 or more",
            ]
        );
        assert_eq!(
            refused(json!({"p": {"models": {"m": {"cost": {"input": true, "output": 1}}}}}), None),
            ["p.models.m: input: must be a number, 0 or more"]
        );
        assert_eq!(
            refused(json!({"p": {"models": {"m": {"cost": {"input": 1, "tiers": [{"input": 2}]}}}}}), None),
            ["p.models.m: tiers[0]: must have a tier of type context with a size"]
        );
        assert_eq!(refused(json!([]), None), ["must be an object by model or provider"]);
        assert_eq!(refused(json!({"a": {}}), None), ["has no price of tokens"]);
        assert_eq!(
            refused(json!({"a": {"input_cost_per_token": 1e-6}}), Some("x")),
            ["has no price of tokens of the provider \"x\""]
        );
    }
}
