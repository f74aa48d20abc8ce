//! A list of prices from a client, validated.

use super::fields::{FieldError, InputFields, ValidationErrors};
use crate::policy::prices::ModelPrice;
use crate::policy::prices::json::{PriceMistake, from_json};
use serde_json::{Map, Value};

/// The prices in `body`; on failure every mistake.
pub fn read_prices(body: &Map<String, Value>) -> Result<Vec<ModelPrice>, Vec<FieldError>> {
    let mut fields = InputFields::of(body);
    let prices = fields.required("prices", |list| from_json(list).map_err(told));
    match (prices, fields.finish()) {
        (Some(prices), errors) if errors.is_empty() => Ok(prices),
        (_, errors) => Err(errors),
    }
}

fn told(mistakes: Vec<PriceMistake>) -> ValidationErrors {
    let error = |PriceMistake { place, message }| FieldError { field: place, message };
    ValidationErrors(mistakes.into_iter().map(error).collect())
}
