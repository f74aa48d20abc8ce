//! The traits that Pingora requires of a stream besides reading and writing.

use super::H1ClientStream;
use async_trait::async_trait;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType, raw_connect::ProxyDigest,
};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

#[async_trait]
impl Shutdown for H1ClientStream {
    async fn shutdown(&mut self) {
        if let Err(error) = AsyncWriteExt::shutdown(self).await {
            tracing::trace!(%error, "client disconnected");
        }
    }
}

impl UniqueID for H1ClientStream {
    fn id(&self) -> UniqueIDType {
        self.id
    }
}

impl Ssl for H1ClientStream {}
impl Peek for H1ClientStream {}

impl GetTimingDigest for H1ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for H1ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }

    fn set_proxy_digest(&mut self, _digest: ProxyDigest) {}
}

impl GetSocketDigest for H1ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }

    fn set_socket_digest(&mut self, _digest: SocketDigest) {}
}
