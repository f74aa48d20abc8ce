//! The nodes that use the store, and the versions they have applied, by the database's clock, which all share.

use super::tx::TxKind;
use super::{PgStore, StoreError};
use crate::store::shared::decode::{node_columns, read_node};
use crate::store::shared::fields::int;
use crate::store::shared::rules::without_nul;
use crate::store::{NodeReport, NodeRow, Nodes};
use async_trait::async_trait;
use uuid::Uuid;

/// The database's clock, in µs since the epoch.
macro_rules! now {
    () => {
        "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    };
}

#[async_trait]
impl Nodes for PgStore {
    async fn report(&self, node: &NodeReport) -> Result<(), StoreError> {
        let node = node.clone();
        let report = self.follow(TxKind::Write, move |tx| {
            Box::pin(async move {
                // Nodes that have been silent for a day are removed.
                let sql = concat!(
                    "WITH gone AS (DELETE FROM nodes WHERE boot_id <> $1 AND seen_at < ",
                    now!(),
                    " - 86400000000)
                     INSERT INTO nodes (boot_id, name, admin, reached, seen_at) VALUES ($1, $2, $3, $4, ",
                    now!(),
                    ") ON CONFLICT (boot_id) DO UPDATE SET name = excluded.name, admin = excluded.admin,
                           reached = excluded.reached, seen_at = excluded.seen_at"
                );
                let admin = node.admin.as_deref();
                tx.execute(sql, &[&node.boot, &without_nul(&node.name), &admin, &int(node.reached.0)])
                    .await?;
                Ok(())
            })
        });
        report.await
    }

    async fn leave(&self, boot: Uuid) -> Result<(), StoreError> {
        let leave = self.follow(TxKind::Write, move |tx| {
            Box::pin(async move {
                tx.execute("DELETE FROM nodes WHERE boot_id = $1", &[&boot]).await?;
                Ok(())
            })
        });
        leave.await
    }

    async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        self.read(|tx| {
            Box::pin(async move {
                let sql = concat!(
                    "SELECT ",
                    node_columns!(),
                    ", greatest(",
                    now!(),
                    " - seen_at, 0) FROM nodes ORDER BY name COLLATE \"C\", boot_id"
                );
                tx.all(sql, &[], read_node).await
            })
        })
        .await
    }
}
