//! Late answers of the store.

use super::*;
use crate::clock::{ManualClock, Timestamp};
use crate::store::{Actor, EndUserRecord, Page, PageRequest, Written};
use async_trait::async_trait;
use std::sync::Mutex;
use tokio::sync::oneshot;

/// A table whose next answer waits for the test.
#[derive(Default)]
struct Late {
    /// Signals that it was called, and that it may answer.
    next: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
    /// The existing end users.
    ids: Mutex<Vec<EndUserId>>,
}

impl Late {
    fn hold_next(&self) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((asked, was_asked), (answer, may_answer)) = (oneshot::channel(), oneshot::channel());
        *self.next.lock().expect("sound") = Some((asked, may_answer));
        (was_asked, answer)
    }
}

fn gone<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("not asked here".into()))
}

#[async_trait]
impl Table for Late {
    async fn admit_end_user_as(
        &self,
        _: &WorkspaceId,
        _: &str,
        id: EndUserId,
        _: Timestamp,
    ) -> Result<EndUserAdmission, StoreError> {
        self.ids.lock().expect("sound").push(id);
        let held = self.next.lock().expect("sound").take();
        if let Some((asked, may_answer)) = held {
            asked.send(()).expect("the test waits");
            may_answer.await.expect("the test answers");
        }
        Ok(EndUserAdmission::Admitted(id))
    }

    async fn restore_end_users(
        &self,
        _: &WorkspaceId,
        _: Vec<EndUserRecord>,
        _: &Actor,
        _: Timestamp,
    ) -> Result<u64, StoreError> {
        gone()
    }

    async fn end_users(
        &self,
        _: &WorkspaceId,
        _: Option<&str>,
        _: PageRequest,
    ) -> Result<Page<EndUserRecord>, StoreError> {
        gone()
    }

    async fn end_user(&self, _: &WorkspaceId, _: EndUserId) -> Result<Option<EndUserRecord>, StoreError> {
        gone()
    }

    async fn delete_end_user(
        &self,
        _: &WorkspaceId,
        _: EndUserId,
        _: &Actor,
        _: Timestamp,
    ) -> Result<Written<()>, StoreError> {
        gone()
    }
}

fn end_users(store: &Arc<Late>, when_unavailable: WhenStoreUnavailable) -> Arc<EndUserCache> {
    Arc::new(EndUserCache::new(EndUserParts {
        store: store.clone(),
        clock: Arc::new(ManualClock::at(Timestamp::from_secs(1_800_000_000))),
        metrics: Arc::new(Metrics::new().expect("metrics")),
        io: tokio::runtime::Handle::current(),
        options: EndUserOptions {
            entries: 100,
            patience: Duration::from_secs(600),
            when_unavailable,
            pending_entries: 10,
        },
    }))
}

async fn admit(end_users: &EndUserCache) -> EndUserId {
    let workspace = "w".parse().expect("an id");
    end_users.admit(&workspace, "somebody", Version(1), 10).await.expect("there is room")
}

#[tokio::test]
async fn end_users_deleted_during_a_lookup_are_forgotten() {
    let store = Arc::new(Late::default());
    let end_users = end_users(&store, WhenStoreUnavailable::Refuse);
    let (asked, answer) = store.hold_next();
    let asking = tokio::spawn({
        let end_users = Arc::clone(&end_users);
        async move { admit(&end_users).await }
    });
    asked.await.expect("asked");
    // Deleted, and this node learns of that first.
    end_users.forget(&"w".parse().expect("an id"), "somebody");
    answer.send(()).expect("still waiting");
    let before = asking.await.expect("answered");
    let after = admit(&end_users).await;
    assert_ne!(before, after, "the store is asked again");
    assert_eq!(admit(&end_users).await, after, "and that is remembered");
    end_users.forget_all();
    assert_ne!(admit(&end_users).await, after);
}

#[tokio::test]
async fn end_users_deleted_while_being_settled_are_forgotten() {
    let store = Arc::new(Late::default());
    let end_users = end_users(&store, WhenStoreUnavailable::Admit);
    let (workspace, id) =
        ("w".parse::<WorkspaceId>().expect("an id"), EndUserId::new(Timestamp::from_secs(1)));
    end_users.pending.add(EndUserName(workspace.clone(), "somebody".into()), id, 10, 10).expect("room");
    let (asked, answer) = store.hold_next();
    let settling = tokio::spawn({
        let end_users = Arc::clone(&end_users);
        async move { end_users.settle_all().await }
    });
    asked.await.expect("asked");
    end_users.forget(&workspace, "somebody");
    answer.send(()).expect("still waiting");
    assert!(settling.await.expect("settled"));
    assert_ne!(admit(&end_users).await, id, "the store is asked again");
}
