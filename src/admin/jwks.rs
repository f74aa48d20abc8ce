//! The public keys of an identity provider, read from its URL: at startup, every few minutes, and when a token names a key
//! that is not among them.
//!
//! Must not know: how tokens are verified. One task reads; calls ask it to, and wait for a bounded time.
//!
//! *Invariant:* the URL is read at most once per `retry`, whatever tokens clients send.
//! *Invariant:* keys older than `max_stale` verify nothing.

use super::auth::{Auth, AuthKeys, Claimed, NotVerified};
use super::error::AdminError;
use crate::clock::{Clock, Timestamp};
use crate::fileio;
use crate::http_client::HttpClient;
use crate::metrics::Metrics;
use crate::model::fault::Fault;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// Where keys are read, and how often.
#[derive(Debug)]
pub struct JwksOptions {
    /// The client of the URL.
    pub client: HttpClient,
    /// How long after a successful read the next one follows.
    pub refresh: Duration,
    /// How long after a failed read the next one follows, and the shortest time between two reads.
    pub retry: Duration,
    /// How old keys may be while the URL cannot be read.
    pub max_stale: Duration,
}

/// Keys that are read from a URL.
pub struct RemoteJwks {
    options: JwksOptions,
    auth: Arc<Auth>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// A token names an unknown key.
    wanted: Notify,
    state: watch::Sender<ReadState>,
}

/// What is known of the reads. Instants are of the steady clock, in nanoseconds.
#[derive(Clone, Copy, Default)]
struct ReadState {
    /// The number of reads that ended.
    attempts: u64,
    /// When the last one ended.
    ended_at: u64,
    /// When the keys in force were read.
    read_at: Option<u64>,
}

/// Longest time for one read.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// Longest time that a call waits for one.
const CALL_WAITS: Duration = Duration::from_secs(2);
/// Largest key set, in bytes.
const JWKS_BYTES: usize = 1 << 20;

/// Reads the key set that `client` is for, within a few seconds.
pub async fn read_key_set(client: &HttpClient) -> Result<String, String> {
    let request = Request::get(client.target()).header(header::ACCEPT, "application/json");
    let request = request.body(Bytes::new()).map_err(|error| error.to_string())?;
    let response = timeout(READ_WITHIN, client.call(request, JWKS_BYTES)).await;
    let response = response.map_err(|_| format!("no answer within {READ_WITHIN:?}"))?;
    let response = response.map_err(|error| error.to_string())?;
    if response.status() != StatusCode::OK {
        return Err(format!("the answer is {}", response.status().as_u16()));
    }
    fileio::text_of(response.into_body().to_vec()).map_err(|error| error.to_string())
}

impl RemoteJwks {
    /// Keys for `auth`, which has none before the first read.
    pub fn new(options: JwksOptions, auth: Arc<Auth>, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        for result in ["read", "failed"] {
            metrics.admin_jwks_reads.with_label_values(&[result]);
        }
        let state = watch::Sender::new(ReadState::default());
        Self { options, auth, clock, metrics, wanted: Notify::new(), state }
    }

    /// Reads the keys as long as the runtime runs.
    pub async fn keep(self: Arc<Self>) {
        let mut is_failing = false;
        loop {
            let read = self.read().await;
            let now = self.clock.now().steady_ns;
            let result = if read.is_ok() { "read" } else { "failed" };
            self.metrics.admin_jwks_reads.with_label_values(&[result]).inc();
            let pause = match &read {
                Ok(()) if std::mem::take(&mut is_failing) => {
                    tracing::info!("admin.jwt.jwks_url is read again");
                    self.options.refresh
                }
                Ok(()) => self.options.refresh,
                Err(why) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%why, "cannot read admin.jwt.jwks_url, the last keys stay in force for a time");
                    }
                    self.options.retry
                }
            };
            self.state.send_modify(|state| {
                state.attempts += 1;
                state.ended_at = now;
                if read.is_ok() {
                    state.read_at = Some(now);
                }
            });
            tokio::select! {
                () = sleep(pause) => {}
                () = self.wanted_and_due() => {}
            }
        }
    }

    /// Returns when a call wants the keys to be read, and the last read is long enough ago.
    async fn wanted_and_due(&self) {
        loop {
            self.wanted.notified().await;
            if self.is_due() {
                return;
            }
        }
    }

    /// Whether the last read is long enough ago for another one.
    fn is_due(&self) -> bool {
        self.age_of(self.state.borrow().ended_at) >= self.options.retry
    }

    /// Whether keys are in force, and not too old.
    fn has_keys(&self) -> bool {
        self.state.borrow().read_at.is_some_and(|at| self.age_of(at) <= self.options.max_stale)
    }

    fn age_of(&self, then: u64) -> Duration {
        Duration::from_nanos(self.clock.now().steady_ns.saturating_sub(then))
    }

    async fn read(&self) -> Result<(), String> {
        let text = read_key_set(&self.options.client).await?;
        self.auth.replace_keys(AuthKeys::Jwks(text)).map_err(|error| error.to_string())
    }

    /// What `token` says, by keys that are not too old. A token that names an unknown key has them read again.
    pub(super) async fn verify(&self, token: &str, now: Timestamp) -> Result<Claimed, NotVerified> {
        let found = self.auth.verify(token, now);
        if let Err(NotVerified::Foreign) = found {
            return found;
        }
        if !self.has_keys() {
            // Before the first read, all keys are unknown.
            self.next_read().await;
            if !self.has_keys() {
                return Err(NotVerified::Refused(AdminError::of(Fault::ServiceUnavailable)));
            }
            return self.auth.verify(token, now);
        }
        if let Err(NotVerified::UnknownKey) = found
            && self.is_due()
        {
            self.next_read().await;
            return self.auth.verify(token, now);
        }
        found
    }

    /// Waits for the end of a read, if one is running or due.
    async fn next_read(&self) {
        let mut state = self.state.subscribe();
        let seen = state.borrow_and_update().attempts;
        if seen > 0 && !self.is_due() {
            return;
        }
        self.wanted.notify_one();
        // Late or not, the caller looks at the keys in force.
        timeout(CALL_WAITS, state.wait_for(|state| state.attempts > seen)).await.ok();
    }
}
