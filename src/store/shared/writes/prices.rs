//! The administrative write of the prices.

use super::{Rows, WriteTx};
use crate::clock::Timestamp;
use crate::policy::prices::ModelPrice;
use crate::store::shared::prices;
use crate::store::shared::rules::AuditLine;
use crate::store::{Actor, PriceList, StoreError, Version, Written};

/// The operations on the row of the prices.
pub(in crate::store) trait PriceRows: WriteTx {
    fn price_list(&self) -> impl Rows<PriceList>;
    fn put_price_list(&self, list: &PriceList, version: Version) -> impl Rows<()>;
}

/// Replaces all prices.
pub(in crate::store) async fn put_price_list(
    tx: &impl PriceRows,
    list: Vec<ModelPrice>,
    by: &Actor,
    at: Timestamp,
) -> Result<Written<PriceList>, StoreError> {
    let version = tx.next_version().await?;
    let before = tx.price_list().await?;
    let after = PriceList { prices: list.into(), updated_at: Some(at) };
    tx.put_price_list(&after, version).await?;
    let changes = prices::differences(&before.prices, &after.prices);
    let line = AuditLine { action: "prices.update", workspace: None, target: "prices".into(), changes };
    tx.add_audit_line(version, by, at, line).await?;
    Ok(Written { value: after, version })
}
