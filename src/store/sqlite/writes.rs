//! The operations that every write needs. In SQLite they complete at once, so a write never waits.

use super::{StoreError, audit, next_version, tenants};
use crate::clock::Timestamp;
use crate::model::id::WorkspaceId;
use crate::model::key::Plan;
use crate::store::shared::rules::AuditLine;
use crate::store::shared::writes::{Rows, WriteTx};
use crate::store::{Actor, Version};
use futures_util::FutureExt as _;
use rusqlite::Transaction;
use std::future::ready;

/// The result of a write, which is complete when it is first polled.
pub(super) fn at_once<T>(write: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let pending = || Err(StoreError::Unavailable("a write of the embedded store did not end".into()));
    write.now_or_never().unwrap_or_else(pending)
}

impl WriteTx for Transaction<'_> {
    fn next_version(&self) -> impl Rows<Version> {
        ready(next_version(self))
    }

    fn undo(&self) -> impl Rows<()> {
        // The transaction that is committed afterwards is empty.
        ready(self.execute_batch("ROLLBACK; BEGIN").map_err(Into::into))
    }

    fn add_audit_line(
        &self,
        version: Version,
        by: &Actor,
        at: Timestamp,
        line: AuditLine<'_>,
    ) -> impl Rows<()> {
        ready(audit::add(self, version, by, at, line))
    }

    fn plan_of(&self, workspace: &WorkspaceId, at: Timestamp) -> impl Rows<Option<Plan>> {
        ready(tenants::plan_of(self, workspace, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::shared::writes;
    use crate::store::sqlite::{SqliteOptions, SqliteStore};
    use crate::store::{Feed as _, Store as _};

    #[tokio::test]
    async fn a_write_that_is_undone_succeeds_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("k.db"), &SqliteOptions::default()).unwrap();
        let undone = store.write(|tx| {
            at_once(async {
                let version = tx.next_version().await?;
                tx.undo().await?;
                Ok(version)
            })
        });
        assert_eq!(undone.await.unwrap(), Version(1));
        assert_eq!(store.version().await.unwrap(), Version(0));
        // The writer works as before.
        let at = Timestamp::from_secs(1);
        let by = Actor { subject: "s".into(), role: "local", address: None, request_id: None };
        let reload =
            store.write(move |tx| at_once(writes::note_reload(tx, "node", serde_json::Map::new(), &by, at)));
        reload.await.unwrap();
        assert_eq!(store.version().await.unwrap(), Version(1));
        store.close().await;
    }
}
