//! What an upstream needs beside its requests: names looked up again, servers probed, the ejected let back in.
//!
//! Runs on the I/O runtime for as long as the upstream is in use. Must not know: requests.

use super::{Upstream, probe};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Longest time to look one name up; a resolver that hangs must not hold the others' answers back.
const LOOK_UP_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

/// Tends `upstream` until this is dropped.
pub async fn tend(upstream: Arc<Upstream>) {
    let probing = async {
        if let Some(probe) = &upstream.settings.probe {
            probe::probe_for_ever(&upstream, probe).await;
        }
    };
    tokio::join!(resolve_for_ever(&upstream), readmit_for_ever(&upstream), probing);
}

impl Upstream {
    /// Looks the servers' names up and uses what is found from now on. A name that cannot be looked up keeps the
    /// addresses found before.
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
                    tracing::warn!(upstream, host, reason, "a backend's name cannot be looked up");
                }
            }
        }
        self.settle(&found);
    }
}

async fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let answer = tokio::time::timeout(LOOK_UP_WITHIN, tokio::net::lookup_host((host, port))).await;
    let mut addresses: Vec<SocketAddr> = match answer {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no answer within {LOOK_UP_WITHIN:?}")),
    };
    // Resolvers turn their answers round to spread clients that take the first.
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() { Err("the name has no address".to_owned()) } else { Ok(addresses) }
}

async fn resolve_for_ever(upstream: &Upstream) {
    let named = |n: &super::Named| n.host.parse::<IpAddr>().is_err();
    if !upstream.settings.names.iter().any(named) {
        return;
    }
    loop {
        tokio::time::sleep(upstream.settings.resolve_every).await;
        upstream.resolve().await;
    }
}

async fn readmit_for_ever(upstream: &Upstream) {
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
