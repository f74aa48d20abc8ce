//! How an exchange ends: with the backend's response, with a response of Keygate's own, or without any.
//!
//! Must not know: why. [`crate::proxy::response::reply`] builds Keygate's own responses.

use super::{Exchange, Exchanged, heads};
use crate::gate::Denied;
use crate::model::fault::Fault;
use crate::policy::http::head::Framing;
use crate::policy::keys::denial::Denial;
use crate::proxy::request::attempt::ForwardError;
use crate::proxy::request::outcome::{give_back, outcome_of, release_permits};
use crate::proxy::response::reply::{self, DRAIN_WITHIN, DRAINED, Reply};
use http::header::EXPECT;
use std::pin::Pin;
use std::task::{Poll, ready};
use tokio::io::{AsyncRead as _, ReadBuf};

impl Exchange<'_> {
    /// The backend's response is complete.
    pub(super) async fn finish(&mut self) -> Exchanged {
        self.end(None);
        if self.ctx.was_drained() {
            return Exchanged::Gone;
        }
        // The rest of a request body that arrives after the response is discarded. The connection's deadline limits
        // the time.
        if !self.discard_body().await {
            return Exchanged::Gone;
        }
        if self.may_stay { Exchanged::Next } else { Exchanged::Last }
    }

    /// Sends a refusal.
    pub(super) async fn refuse(&mut self, denied: &Denied) -> Exchanged {
        let proxy = self.server.proxy;
        proxy.on_refused(&self.message, self.ctx, denied);
        let at = proxy.clock.now().wall;
        let (left, limits) = (denied.left.as_ref(), &proxy.limits);
        match reply::answer(&self.answered_message(), self.ctx, limits, &denied.denial, left, at) {
            Ok(mut answer) => {
                self.complete_refusal(&mut answer);
                self.answer(&answer).await
            }
            Err(_) => self.abandon(None),
        }
    }

    /// The request was not forwarded, or not completely.
    pub(super) async fn fail(&mut self, error: ForwardError) -> Exchanged {
        if !self.ctx.attempts.connected {
            give_back(self.ctx);
        }
        if self.ctx.is_over || self.ctx.was_drained() {
            // Not a failure of the request: its response was received completely, and the client has it or has not
            // read it.
            return self.abandon(Some(error));
        }
        let Some(denial) = self.ctx.client_fault().or_else(|| error.fault().map(Denial::Plain)) else {
            // The client has disconnected, so no response is sent.
            return self.abandon(Some(error));
        };
        let fault = denial.fault();
        self.ctx.fault = Some(fault);
        if fault == Fault::Internal {
            tracing::error!(
                request_id = self.ctx.request_id.to_str().unwrap_or(""),
                "request failed: internal error"
            );
        }
        if self.written.is_some() {
            return self.abandon(Some(error));
        }
        // An unknown part of the request body is still to come, or the connection is being closed.
        self.may_stay &= self.client.is_between_requests() && self.connection.close_reason().is_none();
        let left = self.ctx.admission.as_ref().map(|admission| admission.left().clone());
        // The request's permits and its hold are released before the client can read the error.
        self.take_reader();
        self.ctx.settle_meter(false, self.body.read);
        release_permits(self.ctx);
        let proxy = self.server.proxy;
        let at = proxy.clock.now().wall;
        match reply::answer(&self.message, self.ctx, &proxy.limits, &denial, left.as_ref(), at) {
            Ok(answer) => self.answer_for(&answer, Some(error)).await,
            Err(_) => self.abandon(Some(error)),
        }
    }

    /// Sends a response of Keygate's own.
    pub(super) async fn answer(&mut self, answer: &Reply) -> Exchanged {
        self.answer_for(answer, None).await
    }

    async fn answer_for(&mut self, answer: &Reply, error: Option<ForwardError>) -> Exchanged {
        self.may_stay &= self.may_drain() && !*self.server.stop.borrow();
        let bytes = heads::own_answer(answer, self.may_stay);
        if let Err(error) = self.write(&bytes).await {
            tracing::debug!(%error, "cannot write response: client disconnected");
            return self.abandon(Some(ForwardError::Client));
        }
        self.written = Some(answer.status.as_u16());
        self.sent = u64::try_from(answer.body.len()).unwrap_or(u64::MAX);
        self.end(error);
        if self.may_stay && self.drain().await { Exchanged::Next } else { Exchanged::Last }
    }

    /// Ends the request without a (complete) response.
    pub(super) fn abandon(&mut self, error: Option<ForwardError>) -> Exchanged {
        self.end(error);
        Exchanged::Gone
    }

    /// The meter gets back what has read the request's body.
    fn take_reader(&mut self) {
        if let (Some(meter), Some(reader)) = (&mut self.ctx.meter, self.body.take_reader()) {
            meter.request = reader;
        }
    }

    fn end(&mut self, error: Option<ForwardError>) {
        self.take_reader();
        let outcome = outcome_of(self.ctx, error, self.written);
        let bytes = (self.body.read, self.sent);
        self.server.proxy.ended(&self.message, self.ctx, outcome, self.written, bytes);
    }

    /// Whether the rest of the request body is read and discarded, so that the next request starts at the right
    /// place. The connection is closed instead if the rest is large or of unknown length, or if the client waits for
    /// 100 Continue.
    fn may_drain(&self) -> bool {
        let is_small = matches!(self.body.framing, Framing::Length(length) if length <= DRAINED);
        self.client.is_between_requests() || (is_small && self.message.fields.first(&EXPECT).is_none())
    }

    async fn drain(&mut self) -> bool {
        if self.client.is_between_requests() {
            return true;
        }
        tokio::time::timeout(DRAIN_WITHIN, self.discard_body()).await.unwrap_or(false)
    }

    /// Reads and discards the rest of the request body. Returns false if the client does not send all of it. The
    /// buffer is on the stack, because one in the future would be part of every idle connection's task.
    async fn discard_body(&mut self) -> bool {
        if self.client.is_between_requests() {
            // Usually. The buffer is not even cleared.
            return true;
        }
        std::future::poll_fn(|context| {
            let mut rest = [0; 4_096];
            while !self.client.is_between_requests() {
                let mut into = ReadBuf::new(&mut rest);
                let read = ready!(Pin::new(&mut *self.client).poll_read(context, &mut into));
                if read.is_err() || into.filled().is_empty() {
                    return Poll::Ready(false);
                }
            }
            Poll::Ready(true)
        })
        .await
    }
}
