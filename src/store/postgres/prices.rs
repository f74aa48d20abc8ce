//! Prices of models.

use super::tx::Tx;
use super::{PgStore, StoreError};
use crate::clock::Timestamp;
use crate::policy::prices::ModelPrice;
use crate::store::shared::decode::read_price_list;
use crate::store::shared::fields::int;
use crate::store::shared::prices::to_column;
use crate::store::shared::writes::prices::{self, PriceRows};
use crate::store::{Actor, PriceList, Prices, Version, Written};
use async_trait::async_trait;

#[async_trait]
impl Prices for PgStore {
    async fn price_list(&self) -> Result<PriceList, StoreError> {
        self.read(|tx| Box::pin(list(tx))).await
    }

    async fn put_price_list(
        &self,
        prices: Vec<ModelPrice>,
        by: &Actor,
        at: Timestamp,
    ) -> Result<Written<PriceList>, StoreError> {
        let by = by.clone();
        self.write(move |tx| Box::pin(async move { prices::put_price_list(tx, prices, &by, at).await })).await
    }
}

impl PriceRows for Tx<'_> {
    async fn price_list(&self) -> Result<PriceList, StoreError> {
        list(self).await
    }

    async fn put_price_list(&self, list: &PriceList, version: Version) -> Result<(), StoreError> {
        let sql = "INSERT INTO prices (one, entries, updated_at, version) VALUES (1, $1, $2, $3)
                   ON CONFLICT (one) DO UPDATE SET entries = excluded.entries, updated_at = excluded.updated_at,
                       version = excluded.version";
        let at = list.updated_at.unwrap_or_default().as_micros();
        self.execute(sql, &[&to_column(&list.prices), &at, &int(version.0)]).await?;
        Ok(())
    }
}

async fn list(tx: &Tx<'_>) -> Result<PriceList, StoreError> {
    let found = tx.one("SELECT entries, updated_at FROM prices", &[], read_price_list).await?;
    Ok(found.unwrap_or_default())
}
