//! Hearing that somebody may have written: one connection that listens, opened anew whenever it is lost.
//!
//! Must not know: what was written. While there is no connection nobody is woken; the keyring polls as well.

use super::{PgOptions, StoreError, connect, tls};
use crate::config::PostgresUrl;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Error, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// First wait after a lost connection; doubled each time up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The ear of a store.
pub(super) struct Listener {
    heard: Arc<Notify>,
    task: AbortHandle,
}

// === impl Listener ===

impl Listener {
    /// Listens on `runtime` until it is stopped.
    pub(super) fn start(
        url: &PostgresUrl,
        options: &PgOptions,
        runtime: &Handle,
    ) -> Result<Self, StoreError> {
        let heard = Arc::new(Notify::new());
        let config = connect::config(url, options, options.statement_timeout);
        let listening = listen_for_ever(config, tls::connector(url)?, Arc::clone(&heard));
        let task = runtime.spawn(listening).abort_handle();
        Ok(Self { heard, task })
    }

    /// Resolves when somebody may have written since the last time it did. For one waiter.
    pub(super) async fn heard(&self) {
        self.heard.notified().await;
    }

    /// Closes the connection.
    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn listen_for_ever(config: Config, tls: Option<MakeRustlsConnect>, heard: Arc<Notify>) {
    let mut wait = BACKOFF;
    loop {
        let ended = match &tls {
            None => match config.connect(NoTls).await {
                Ok((client, connection)) => listen(client, connection, &heard, &mut wait).await,
                Err(error) => Err(error),
            },
            Some(tls) => match config.connect(tls.clone()).await {
                Ok((client, connection)) => listen(client, connection, &heard, &mut wait).await,
                Err(error) => Err(error),
            },
        };
        let error = ended.err().map(StoreError::from);
        tracing::debug!(?error, "not listening for changes; they are polled for meanwhile");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BACKOFF_MAX);
    }
}

/// Listens until the connection ends. Whatever was written before the first word is heard as one change.
async fn listen<S>(
    client: Client,
    mut connection: Connection<Socket, S>,
    heard: &Notify,
    wait: &mut Duration,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut asked = pin!(client.batch_execute("LISTEN keygate_changes"));
    let mut is_listening = false;
    loop {
        let message = std::future::poll_fn(|context| connection.poll_message(context));
        tokio::select! {
            answer = &mut asked, if !is_listening => {
                answer?;
                is_listening = true;
                *wait = BACKOFF;
                heard.notify_one();
            }
            message = message => match message {
                Some(Ok(AsyncMessage::Notification(_))) => heard.notify_one(),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
        }
    }
}
