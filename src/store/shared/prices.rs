//! Prices as they are stored, and what the audit log says of a change.

use super::rules::{self, AuditFields};
use crate::policy::prices::ModelPrice;
use crate::policy::prices::json::{self, PriceMistake};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Most models that an audit line names as changed, and as removed.
const AUDITED_MAX: usize = 100;

/// Prices as they are stored.
pub(in crate::store) fn to_column(prices: &[ModelPrice]) -> String {
    json::to_json(prices).to_string()
}

/// Stored prices.
pub(in crate::store) fn from_column(text: &str) -> Result<Arc<[ModelPrice]>, String> {
    let list: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let told = |mistakes: Vec<PriceMistake>| {
        let first = mistakes.into_iter().next();
        first.map_or_else(String::new, |mistake| format!("{}: {}", mistake.place, mistake.message))
    };
    json::from_json(&list).map(Into::into).map_err(told)
}

/// The changes of prices, for the audit log: how many there are, and which models have others.
pub(in crate::store) fn differences(before: &[ModelPrice], after: &[ModelPrice]) -> AuditFields {
    let known: HashMap<&str, &ModelPrice> = before.iter().map(|price| (&*price.model, price)).collect();
    let kept: HashSet<&str> = after.iter().map(|price| &*price.model).collect();
    let is_new = |price: &&ModelPrice| known.get(&*price.model) != Some(price);
    let changed = after.iter().filter(is_new).map(|price| &*price.model);
    let removed = before.iter().map(|price| &*price.model).filter(|model| !kept.contains(model));
    let (changed, removed): (Vec<&str>, Vec<&str>) =
        (changed.take(AUDITED_MAX).collect(), removed.take(AUDITED_MAX).collect());
    rules::fields([
        ("prices", json!({"from": before.len(), "to": after.len()})),
        ("changed", json!(changed)),
        ("removed", json!(removed)),
    ])
}
