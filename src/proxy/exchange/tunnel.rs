//! A tunnel: passes bytes between client and backend after an upgrade.
//!
//! Must not know: the protocol inside the tunnel, or its idle timeout.

use super::pipe::Pipe;
use crate::proxy::connection::Connection;
use crate::proxy::connection::h1_stream::H1ClientStream;
use crate::proxy::upstream::UpstreamConnection;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite as _;

/// Both sides of a tunnel, and the bytes between them.
pub(super) struct Tunnel<'a> {
    client: &'a mut H1ClientStream,
    connection: &'a Arc<Connection>,
    backend: UpstreamConnection,
    up: Pipe,
    down: Pipe,
    passed: Passed,
}

/// Number of bytes passed in each direction.
#[derive(Clone, Copy, Default)]
pub(super) struct Passed {
    pub(super) from_client: u64,
    pub(super) from_backend: u64,
}

/// A part that is being passed on.
pub(super) enum Passing<'p> {
    ToBackend,
    ToClient(&'p [u8]),
}

impl<'a> Tunnel<'a> {
    /// A tunnel whose first bytes for the client are in `down`.
    pub(super) fn new(
        client: &'a mut H1ClientStream,
        connection: &'a Arc<Connection>,
        backend: UpstreamConnection,
        mut down: Pipe,
    ) -> Self {
        let passed = Passed { from_client: 0, from_backend: down.filled().len() as u64 };
        Self { client, connection, backend, up: Pipe::default(), down, passed }
    }

    /// Passes bytes until one side closes, or another task closes the connection.
    pub(super) async fn run(mut self, mut on_part: impl FnMut(Passing<'_>)) -> Passed {
        if !self.down.filled().is_empty() {
            on_part(Passing::ToClient(self.down.filled()));
        }
        std::future::poll_fn(|context| {
            self.connection.register_waker(context);
            let is_over = self.connection.close_reason().is_some()
                || self.poll_down(context, &mut on_part).is_ready()
                || self.poll_up(context, &mut on_part).is_ready();
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.passed
    }

    fn poll_down(
        &mut self,
        context: &mut Context<'_>,
        on_part: &mut impl FnMut(Passing<'_>),
    ) -> Poll<io::Result<()>> {
        loop {
            let Self { down, client, .. } = self;
            ready!(down.poll_drain(|bytes| client.poll_send(context, bytes)))?;
            ready!(Pin::new(&mut *self.client).poll_flush(context))?;
            let Self { down, backend, connection, .. } = self;
            let came = ready!(down.poll_fill(backend, context, || connection.large_buffer()))?;
            if came == 0 {
                return Poll::Ready(Ok(()));
            }
            self.passed.from_backend += came as u64;
            on_part(Passing::ToClient(self.down.filled()));
            self.down.send_all();
        }
    }

    fn poll_up(
        &mut self,
        context: &mut Context<'_>,
        on_part: &mut impl FnMut(Passing<'_>),
    ) -> Poll<io::Result<()>> {
        loop {
            let Self { up, backend, .. } = self;
            ready!(up.poll_drain(|bytes| Pin::new(&mut *backend).poll_write_vectored(context, bytes)))?;
            ready!(Pin::new(&mut self.backend).poll_flush(context))?;
            let Self { up, client, connection, .. } = self;
            let came = ready!(up.poll_fill(*client, context, || connection.large_buffer()))?;
            if came == 0 {
                return Poll::Ready(Ok(()));
            }
            self.passed.from_client += came as u64;
            on_part(Passing::ToBackend);
            self.up.send_all();
        }
    }
}
