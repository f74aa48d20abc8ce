//! Requests that ask for a tunnel, which is a WebSocket, and the close frame of one that is ended from here.
//!
//! Must not know: how long a tunnel may be idle, or whether its key still stands; it is told why it ends.

use crate::policy::http::websocket::close_frame;
use crate::proxy::connection::{CloseReason, Stage};
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use bytes::Bytes;
use http::Version;
use http::header::UPGRADE;
use pingora::proxy::Session;

/// Why a WebSocket is closed (RFC 6455, 7.4.1).
const GOING_AWAY: u16 = 1001;
const POLICY_VIOLATION: u16 = 1008;

/// Whether the request asks for what Pingora makes a tunnel of.
pub(in crate::proxy) fn is_asked_for(request: &RequestMessage<'_>) -> bool {
    let wanted = request.fields.first(&UPGRADE).filter(|_| request.version == Version::HTTP_11);
    wanted.is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"))
}

/// A tunnel has broken off, or is ended from here: then a WebSocket's client is told why, where that can be put between two
/// frames. That its key has lost its right is in the record; any other end is none of a request's failures.
pub(in crate::proxy) async fn end(session: &mut Session, ctx: &mut Ctx) {
    let Some(frame) = last_frame(ctx) else { return };
    if let Err(error) = session.write_response_body(Some(Bytes::copy_from_slice(&frame)), true).await {
        tracing::debug!(%error, "cannot write close frame: client disconnected");
    }
}

/// The close frame that the client is still to be told, if it can be.
pub(in crate::proxy) fn last_frame(ctx: &mut Ctx) -> Option<[u8; 4]> {
    ctx.fault = ctx.client_fault().map(|denial| denial.fault());
    let connection = ctx.connection.clone()?;
    let code = match connection.close_reason()? {
        CloseReason::KeyGone | CloseReason::KeyInactive | CloseReason::KeyExpired => POLICY_VIOLATION,
        _ => GOING_AWAY,
    };
    ctx.attempts.frames().filter(|frames| frames.may_add())?;
    connection.clear_close_reason(Stage::Linger);
    Some(close_frame(code))
}
