//! The nodes that use the store: here the one process that has the file. By SQLite's clock, as PostgreSQL uses its own.

use super::row;
use super::{SqliteStore, StoreError};
use crate::store::shared::decode::{node_columns, read_node};
use crate::store::shared::rules::without_nul;
use crate::store::{NodeReport, NodeRow, Nodes};
use async_trait::async_trait;
use rusqlite::params;
use uuid::Uuid;

/// SQLite's clock, in µs since the epoch.
macro_rules! now {
    () => {
        "CAST(unixepoch('subsec') * 1000000 AS INTEGER)"
    };
}

#[async_trait]
impl Nodes for SqliteStore {
    async fn report(&self, node: &NodeReport) -> Result<(), StoreError> {
        let node = node.clone();
        self.write(move |tx| {
            let sql = concat!(
                "INSERT INTO nodes (boot_id, name, admin, reached, seen_at) VALUES (?1, ?2, ?3, ?4, ",
                now!(),
                ") ON CONFLICT (boot_id) DO UPDATE SET name = excluded.name, admin = excluded.admin,
                       reached = excluded.reached, seen_at = excluded.seen_at"
            );
            let (name, reached) = (without_nul(&node.name), row::int(node.reached.0));
            row::execute(tx, sql, params![node.boot.as_bytes(), name, node.admin, reached])?;
            // Nodes that have been silent for a day are removed.
            let sql = concat!("DELETE FROM nodes WHERE seen_at < ", now!(), " - 86400000000");
            row::execute(tx, sql, [])?;
            Ok(())
        })
        .await
    }

    async fn leave(&self, boot: Uuid) -> Result<(), StoreError> {
        self.write(move |tx| {
            row::execute(tx, "DELETE FROM nodes WHERE boot_id = ?1", [boot.as_bytes()])?;
            Ok(())
        })
        .await
    }

    async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        self.read(|tx| {
            let sql = concat!(
                "SELECT ",
                node_columns!(),
                ", max(",
                now!(),
                " - seen_at, 0) FROM nodes ORDER BY name, boot_id"
            );
            row::all(tx, sql, [], read_node)
        })
        .await
    }
}
