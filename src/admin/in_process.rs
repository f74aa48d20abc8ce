//! The admin API without a listener, for a command that has opened the store itself.

use super::caller::LocalCaller;
use super::context::AdminDeps;
use super::router::router;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use std::io;

/// Answers calls of this process.
pub struct InProcessApi {
    service: TowerToHyperService<Router>,
    caller: LocalCaller,
}

impl InProcessApi {
    /// The API with the dependencies `deps`; the audit log names `subject`.
    pub fn new(deps: AdminDeps, subject: &str) -> Self {
        let service = TowerToHyperService::new(router(deps));
        Self { service, caller: LocalCaller { subject: subject.to_owned() } }
    }

    /// The answer to a request, of up to `most` bytes.
    pub async fn call(&self, mut request: Request<Bytes>, most: usize) -> io::Result<Response<Bytes>> {
        request.extensions_mut().insert(self.caller.clone());
        let answer = self.service.call(request.map(Body::from)).await;
        let (head, body) = answer.unwrap_or_else(|never| match never {}).into_parts();
        let body = Limited::new(body, most).collect().await.map_err(io::Error::other)?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}
