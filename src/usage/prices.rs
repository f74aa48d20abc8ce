//! The prices in force: those of the store and those of the config file.
//!
//! Must not know: who sets them. A request reads them without a lock and without allocating.

use crate::policy::prices::{ModelPrice, PriceTable};
use arc_swap::{ArcSwap, Guard};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The prices in force. An entry of the config file replaces one of the store with the same pattern.
#[derive(Debug, Default)]
pub struct PricesInForce {
    parts: Mutex<Parts>,
    table: ArcSwap<PriceTable>,
}

/// Where the prices come from.
#[derive(Debug, Default)]
struct Parts {
    file: Vec<ModelPrice>,
    stored: Arc<[ModelPrice]>,
}

// === impl PricesInForce ===

impl PricesInForce {
    /// Replaces the prices of the config file.
    pub fn set_file(&self, prices: &[ModelPrice]) {
        self.change(|parts| parts.file = prices.to_vec());
    }

    /// Replaces the prices of the store.
    pub fn set_stored(&self, prices: Arc<[ModelPrice]>) {
        self.change(|parts| parts.stored = prices);
    }

    /// The prices in force now.
    pub fn table(&self) -> Guard<Arc<PriceTable>> {
        self.table.load()
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut parts);
        let Parts { file, stored } = &*parts;
        let replaced: HashSet<&str> = file.iter().map(|price| &*price.model).collect();
        let stored = stored.iter().filter(|price| !replaced.contains(&*price.model));
        match PriceTable::new(file.iter().chain(stored).cloned()) {
            Ok(table) => self.table.store(Arc::new(table)),
            // Both parts were checked before.
            Err(error) => tracing::error!(%error, "new prices rejected, the previous ones stay in force"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::prices::Rates;

    fn price(model: &str, input: u64) -> ModelPrice {
        ModelPrice { model: model.into(), rates: Rates { input, ..Rates::default() }, tiers: Vec::new() }
    }

    #[test]
    fn the_file_replaces_the_same_pattern_of_the_store() {
        let prices = PricesInForce::default();
        let found = |model: &str| prices.table().find(model).map(|price| price.rates.input);
        assert_eq!(found("a"), None);
        prices.set_stored([price("a", 1), price("b*", 2), price("b1", 3)].into());
        assert_eq!([found("a"), found("b"), found("b1")], [Some(1), Some(2), Some(3)]);
        prices.set_file(&[price("a", 7), price("b*", 8)]);
        assert_eq!([found("a"), found("b"), found("b1")], [Some(7), Some(8), Some(3)]);
        prices.set_stored([].into());
        assert_eq!([found("a"), found("b"), found("b1")], [Some(7), Some(8), Some(8)]);
        prices.set_file(&[]);
        assert_eq!(found("a"), None);
    }
}
