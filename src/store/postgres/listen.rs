//! Listens for notifications of writes, on a connection of its own that is reopened whenever it is lost.
//!
//! Must not know: what was written. Without a connection nobody is notified; the keyring polls as well.

use super::PostgresUrl;
use super::link::{Connector, Link};
use super::{PgOptions, StoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_postgres::{AsyncMessage, Client, Error};

/// First delay after a lost connection; doubled each time up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How often the connection is probed: a connection that only listens does not notice a dead server.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// How to connect, with timeouts for connecting and for each answer.
struct ListenOptions {
    connector: Connector,
    connect_within: Duration,
    answer_within: Duration,
}

/// The listener of a store.
pub(super) struct NotifyListener {
    heard: Arc<Notify>,
    task: AbortHandle,
}

// === impl NotifyListener ===

impl NotifyListener {
    /// Listens on `runtime` until it is stopped.
    pub(super) fn start(
        url: &PostgresUrl,
        options: &PgOptions,
        runtime: &Handle,
    ) -> Result<Self, StoreError> {
        let heard = Arc::new(Notify::new());
        let line = ListenOptions {
            connector: Connector::new(url, options, options.statement_timeout)?,
            connect_within: options.connect_timeout,
            answer_within: options.statement_timeout,
        };
        let task = runtime.spawn(line.listen_for_ever(Arc::clone(&heard))).abort_handle();
        Ok(Self { heard, task })
    }

    /// Resolves when somebody may have written since the last time it resolved. For one waiter.
    pub(super) async fn heard(&self) {
        self.heard.notified().await;
    }

    /// Closes the connection.
    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for NotifyListener {
    fn drop(&mut self) {
        self.stop();
    }
}

// === impl ListenOptions ===

impl ListenOptions {
    async fn listen_for_ever(self, heard: Arc<Notify>) {
        let mut wait = BACKOFF;
        loop {
            let error = self.listen_once(&heard, &mut wait).await.err();
            tracing::debug!(
                error = error.map(|e| e.to_string()),
                "LISTEN connection lost, polling for changes"
            );
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
    }

    async fn listen_once(&self, heard: &Notify, wait: &mut Duration) -> Result<(), StoreError> {
        let (client, link) = within(self.connect_within, self.connector.connect()).await?;
        self.listen(client, link, heard, wait).await
    }

    /// Listens until the connection ends or times out. Writes from before are reported as one change.
    async fn listen(
        &self,
        client: Client,
        mut connection: Link,
        heard: &Notify,
        wait: &mut Duration,
    ) -> Result<(), StoreError> {
        let speak = async {
            within(self.answer_within, client.batch_execute("LISTEN keygate_changes")).await?;
            *wait = BACKOFF;
            heard.notify_one();
            loop {
                tokio::time::sleep(PROBE_EVERY).await;
                within(self.answer_within, client.batch_execute("")).await?;
            }
        };
        let hear = async {
            loop {
                match std::future::poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(_))) => heard.notify_one(),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.into()),
                    None => return Ok(()),
                }
            }
        };
        tokio::select! {
            ended = hear => ended,
            ended = speak => ended,
        }
    }
}

async fn within<T>(
    patience: Duration,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(StoreError::Unavailable("the database did not answer in time".into())),
    }
}
