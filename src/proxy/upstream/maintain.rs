//! Periodic work for an upstream: resolving names, probing servers, readmitting ejected ones.
//!
//! Runs on the I/O runtime as long as the upstream is in use.
//!
//! Must not know: requests.

use super::{Upstream, probe};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Longest time to resolve one name; a resolver that hangs must not delay the results of others.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(10);
/// Shortest time between two look-ups of a name that requests trigger.
const LOOK_UP_PAUSE: Duration = Duration::from_secs(1);

/// How often idle connections are looked at.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// Maintains `upstream` until this is dropped.
pub async fn maintain(upstream: Arc<Upstream>) {
    let probing = async {
        if let Some(probe) = &upstream.settings.probe {
            probe::probe_loop(&upstream, probe).await;
        }
    };
    tokio::join!(resolve_loop(&upstream), readmit_loop(&upstream), idle_loop(&upstream), probing);
}

impl Upstream {
    /// Resolves the servers' names and uses the results from now on. A name that cannot be resolved keeps its previous
    /// addresses.
    pub async fn resolve(&self) {
        let mut lookups = JoinSet::new();
        for (n, named) in self.settings.names.iter().enumerate() {
            let (host, port) = (named.host.clone(), named.port);
            lookups.spawn(async move { (n, look_up(&host, port).await) });
        }
        let mut found = vec![None; self.settings.names.len()];
        while let Some(Ok((n, answer))) = lookups.join_next().await {
            match answer {
                Ok(addresses) => found[n] = Some(addresses),
                Err(reason) => {
                    let (upstream, host) = (&*self.settings.name, &*self.settings.names[n].host);
                    tracing::warn!(upstream, host, reason, "DNS lookup of upstream server failed");
                }
            }
        }
        self.apply_lookup(&found);
    }
}

pub(super) async fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let answer = tokio::time::timeout(LOOK_UP_WITHIN, tokio::net::lookup_host((host, port))).await;
    let mut addresses: Vec<SocketAddr> = match answer {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no answer within {LOOK_UP_WITHIN:?}")),
    };
    // Resolvers rotate their results to spread clients that use the first.
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() { Err("no address found for this name".to_owned()) } else { Ok(addresses) }
}

/// Resolves names at intervals, and at once when a request suggests that a server has moved.
async fn resolve_loop(upstream: &Upstream) {
    if !upstream.has_names() {
        return;
    }
    repeat_when_due(&upstream.moved, upstream.settings.resolve_every, || upstream.resolve()).await;
}

/// Calls `look_up` every `interval` and when triggered, but never within [`LOOK_UP_PAUSE`] of the last call.
async fn repeat_when_due<F: Future<Output = ()>>(
    asked: &Notify,
    interval: Duration,
    mut look_up: impl FnMut() -> F,
) {
    let pause = LOOK_UP_PAUSE.min(interval);
    loop {
        tokio::time::sleep(pause).await;
        tokio::select! {
            () = tokio::time::sleep(interval.saturating_sub(pause)) => {}
            () = asked.notified() => {}
        }
        look_up().await;
    }
}

/// Closes connections that nobody uses any more.
async fn idle_loop(upstream: &Upstream) {
    loop {
        tokio::time::sleep(IDLE_LOOK).await;
        upstream.close_idle_connections();
    }
}

async fn readmit_loop(upstream: &Upstream) {
    loop {
        match upstream.readmit(upstream.now()) {
            None => upstream.ejected.notified().await,
            Some(wait) => {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = upstream.ejected.notified() => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn names_are_looked_up_at_once_when_asked_for_and_at_most_once_a_second() {
        let (asked, begun) = (Notify::new(), Instant::now());
        let times = std::sync::Mutex::new(Vec::new());
        let looking = repeat_when_due(&asked, Duration::from_secs(30), || {
            times.lock().expect("times").push(begun.elapsed());
            std::future::ready(())
        });
        let asking = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            // A thousand requests per second reach a server that no longer exists, for three seconds.
            for _ in 0..3_000 {
                asked.notify_one();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_secs(40)).await;
        };
        tokio::select! {
            () = looking => unreachable!("it has no end"),
            () = asking => {}
        }
        let times = times.into_inner().expect("times");
        let secs: Vec<u64> = times.iter().map(|t| (t.as_millis() as u64 + 500) / 1_000).collect();
        assert_eq!(secs, [10, 11, 12, 13, 43], "{times:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_interval_is_kept() {
        let (asked, count) = (Notify::new(), AtomicUsize::new(0));
        let looking = repeat_when_due(&asked, Duration::from_millis(100), || {
            count.fetch_add(1, Ordering::Relaxed);
            std::future::ready(())
        });
        assert!(tokio::time::timeout(Duration::from_secs(10), looking).await.is_err());
        assert!(count.load(Ordering::Relaxed) >= 99, "{count:?}");
    }
}
