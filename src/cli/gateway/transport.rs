//! The ways to an admin API.

use crate::admin::InProcessApi;
use crate::http_client::{HttpClient, HttpConnection};
use crate::store::Store;
use bytes::Bytes;
use http::{Request, Response};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Largest answer, in bytes.
const ANSWER_MAX: usize = 64 << 20;

/// A way to an admin API.
pub(super) enum Transport {
    /// By its Unix socket.
    Socket { path: PathBuf, open: Option<HttpConnection> },
    /// By its URL.
    Remote { client: Box<HttpClient>, open: Option<HttpConnection> },
    /// In this process, on a store that no gateway has.
    Local { api: Box<InProcessApi>, store: Arc<dyn Store> },
}

impl Transport {
    pub(super) const fn socket(path: PathBuf) -> Self {
        Self::Socket { path, open: None }
    }

    pub(super) fn remote(client: HttpClient) -> Self {
        Self::Remote { client: Box::new(client), open: None }
    }

    /// What an error says of where it comes from.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Socket { path, .. } => path.display().to_string(),
            Self::Remote { client, .. } => client.to_string(),
            Self::Local { .. } => "store".to_owned(),
        }
    }

    /// The request target of `path`.
    pub(super) fn target(&self, path: &str) -> String {
        match self {
            Self::Remote { client, .. } => format!("{}{path}", client.target().trim_end_matches('/')),
            Self::Socket { .. } | Self::Local { .. } => path.to_owned(),
        }
    }

    /// Sends one request. A connection that was closed meanwhile is opened again first.
    pub(super) async fn send(&mut self, request: Request<Bytes>) -> io::Result<Response<Bytes>> {
        let (mut connection, place) = match self {
            Self::Local { api, .. } => return api.call(request, ANSWER_MAX).await,
            Self::Socket { path, open } => match open.take().filter(|open| !open.is_closed()) {
                Some(connection) => (connection, open),
                None => (HttpClient::connect_local(path).await?, open),
            },
            Self::Remote { client, open } => match open.take().filter(|open| !open.is_closed()) {
                Some(connection) => (connection, open),
                None => (client.connect().await?, open),
            },
        };
        let answer = connection.send(request, ANSWER_MAX).await?;
        *place = Some(connection);
        Ok(answer)
    }

    pub(super) fn close(self, runtime: &Runtime) {
        if let Self::Local { store, .. } = self {
            runtime.block_on(store.close());
        }
    }
}
