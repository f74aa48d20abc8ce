//! WebSocket requests, which become tunnels, and the close frame when the gateway ends one.
//!
//! Must not know: the idle timeout of a tunnel, or whether its key is still valid. It reads the close reason of the
//! connection.

use crate::policy::http::websocket::close_frame;
use crate::proxy::connection::{CloseReason, Stage};
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use bytes::Bytes;
use http::Version;
use http::header::UPGRADE;
use pingora::proxy::Session;

/// WebSocket close codes (RFC 6455, 7.4.1).
const GOING_AWAY: u16 = 1001;
const POLICY_VIOLATION: u16 = 1008;

/// Whether the request asks for a WebSocket, the upgrade that becomes a tunnel.
pub(in crate::proxy) fn is_asked_for(request: &RequestMessage<'_>) -> bool {
    let wanted = request.fields.first(&UPGRADE).filter(|_| request.version == Version::HTTP_11);
    wanted.is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"))
}

/// A tunnel has ended. Sends the client a close frame if the gateway has ended it and the last frame is complete. If
/// the key has become invalid, the record says so; any other end is not a failure of the request.
pub(in crate::proxy) async fn end(session: &mut Session, ctx: &mut Ctx) {
    let Some(frame) = last_frame(ctx) else { return };
    if let Err(error) = session.write_response_body(Some(Bytes::copy_from_slice(&frame)), true).await {
        tracing::debug!(%error, "cannot write close frame: client disconnected");
    }
}

/// The close frame to be sent to the client, if possible. Also records the fault.
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
