//! Prices of models.

use super::row;
use super::writes::at_once;
use super::{SqliteStore, StoreError};
use crate::clock::Timestamp;
use crate::policy::prices::ModelPrice;
use crate::store::shared::decode::read_price_list;
use crate::store::shared::prices::to_column;
use crate::store::shared::writes::Rows;
use crate::store::shared::writes::prices::{self, PriceRows};
use crate::store::{Actor, PriceList, Prices, Version, Written};
use async_trait::async_trait;
use rusqlite::{Transaction, params};
use std::future::ready;

#[async_trait]
impl Prices for SqliteStore {
    async fn price_list(&self) -> Result<PriceList, StoreError> {
        self.read(list).await
    }

    async fn put_price_list(
        &self,
        prices: Vec<ModelPrice>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<PriceList>, StoreError> {
        let by = by.clone();
        self.write(move |tx| at_once(prices::put_price_list(tx, prices, &by, at))).await
    }
}

impl PriceRows for Transaction<'_> {
    fn price_list(&self) -> impl Rows<PriceList> {
        ready(list(self))
    }

    fn put_price_list(&self, list: &PriceList, version: Version) -> impl Rows<()> {
        let sql = "INSERT INTO prices (one, entries, updated_at, version) VALUES (1, ?1, ?2, ?3)
                   ON CONFLICT (one) DO UPDATE SET entries = excluded.entries, updated_at = excluded.updated_at,
                       version = excluded.version";
        let at = list.updated_at.unwrap_or_default().as_micros();
        let values = params![to_column(&list.prices), at, row::int(version.0)];
        ready(row::change(self, sql, values))
    }
}

fn list(tx: &Transaction<'_>) -> Result<PriceList, StoreError> {
    let found = row::one(tx, "SELECT entries, updated_at FROM prices", [], read_price_list)?;
    Ok(found.unwrap_or_default())
}
