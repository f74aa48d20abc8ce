//! Requests that ask for a tunnel, which is a WebSocket, and the close frame of one that is ended from here.
//!
//! Must not know: how long a tunnel may be idle, or whether its key still stands; it is told why it ends.

use crate::policy::http::websocket::close_frame;
use crate::proxy::connection::{CloseReason, Stage};
use crate::proxy::ctx::Ctx;
use bytes::Bytes;
use http::Version;
use http::header::UPGRADE;
use pingora::http::RequestHeader;
use pingora::proxy::Session;

/// Why a WebSocket is closed (RFC 6455, 7.4.1).
const GOING_AWAY: u16 = 1001;
const POLICY_VIOLATION: u16 = 1008;

/// Whether the request asks for what Pingora makes a tunnel of.
pub(in crate::proxy) fn is_asked_for(request: &RequestHeader) -> bool {
    let wanted = request.headers.get(UPGRADE).filter(|_| request.version == Version::HTTP_11);
    wanted.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// A tunnel has broken off, or is ended from here: then a WebSocket's client is told why, where that can be put between two
/// frames. That its key has lost its right is in the record; any other end is none of a request's failures.
pub(in crate::proxy) async fn end(session: &mut Session, ctx: &mut Ctx) {
    ctx.fault = ctx.client_fault().map(|denial| denial.fault());
    let Some(connection) = ctx.connection.clone() else { return };
    let code = match connection.close_reason() {
        None => return,
        Some(CloseReason::KeyGone | CloseReason::KeyInactive | CloseReason::KeyExpired) => POLICY_VIOLATION,
        Some(_) => GOING_AWAY,
    };
    if ctx.attempts.frames().is_none_or(|frames| !frames.may_add()) {
        return;
    }
    connection.clear_close_reason(Stage::Linger);
    let frame = Bytes::copy_from_slice(&close_frame(code));
    if let Err(error) = session.write_response_body(Some(frame), true).await {
        tracing::debug!(%error, "cannot write close frame: client disconnected");
    }
}
