//! A client's HTTP/2 stream whose wait for a backend can be ended: Pingora waits for the client to leave, and here also for
//! the backend's time to be over.
//!
//! Pingora knows one timeout for the head of an answer and for each pause in its body, and over HTTP/1.1 our own socket
//! ends a wait by failing to read. A stream has no socket of its own, so a request whose backend has a time for its first
//! byte gets this in front of its session. Must not know: whose time that is, or what the client is told.

use super::connection::{Connection, End};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use http::header::TE;
use http::{HeaderMap, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server as custom;
use pingora::protocols::http::v2::server::HttpSession;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Messages beside the body, which HTTP has not.
type Messages = Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;

/// The stream.
struct Awaited {
    session: HttpSession,
    connection: Arc<Connection>,
}

/// Puts this in front of `session`, if that is a stream and nothing is in front of it yet.
pub(super) fn watch(session: &mut ServerSession, connection: &Arc<Connection>) {
    if !matches!(session, ServerSession::H2(_)) {
        return;
    }
    let nobody = ServerSession::Custom(Box::new(()));
    *session = match std::mem::replace(session, nobody) {
        ServerSession::H2(session) => {
            ServerSession::Custom(Box::new(Awaited { session, connection: Arc::clone(connection) }))
        }
        other => other,
    };
}

/// Tells a backend over HTTP/2 that trailers are welcome, as the client did: gRPC has its outcome there. Of a stream that
/// something is in front of, Pingora takes that off with what ends at the next hop.
pub(super) fn keep_te(session: &Session, request: &mut RequestHeader) -> Result<()> {
    let client = session.req_header();
    let both = client.version == Version::HTTP_2 && request.version == Version::HTTP_2;
    if both && client.headers.get(TE).is_some_and(|te| te.as_bytes() == b"trailers") {
        request.insert_header(TE, "trailers")?;
    }
    Ok(())
}

#[async_trait]
impl custom::Session for Awaited {
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let mut read = pin!(self.session.read_body_or_idle(no_body_expected));
        // Whoever ends the stream wakes the task that polls this.
        std::future::poll_fn(|context| {
            if self.connection.ends() == Some(End::BackendLate) {
                return Poll::Ready(Error::e_explain(ErrorType::ReadTimedout, "the backend is late"));
            }
            read.as_mut().poll(context)
        })
        .await
    }

    // All else is the stream's own.

    fn req_header(&self) -> &RequestHeader {
        self.session.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.session.req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.session.read_body_bytes().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.session.drain_request_body().await
    }

    async fn write_response_header(&mut self, response: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.session.write_response_header(response, end)
    }

    async fn write_response_header_ref(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        self.session.write_response_header_ref(response, end)
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.session.write_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.session.write_trailers(trailers)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        self.session.response_duplex_vec(tasks).await
    }

    fn set_read_timeout(&mut self, _: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.session.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.session.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.session.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.session.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.session.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.session.response_written()
    }

    async fn shutdown(&mut self, _code: u32, _: &str) {
        self.session.shutdown();
    }

    fn is_body_done(&mut self) -> bool {
        self.session.is_body_done()
    }

    async fn finish(&mut self) -> Result<()> {
        self.session.finish()
    }

    fn is_body_empty(&mut self) -> bool {
        self.session.is_body_empty()
    }

    fn body_bytes_sent(&self) -> usize {
        self.session.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.session.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.session.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.session.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.session.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.session.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.session.pseudo_raw_h1_request_header()
    }

    fn enable_retry_buffering(&mut self) {
        self.session.enable_retry_buffering();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.session.retry_buffer_truncated()
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.session.get_retry_buffer()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<Messages> {
        None
    }

    fn restore_custom_message_reader(&mut self, _: Messages) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
