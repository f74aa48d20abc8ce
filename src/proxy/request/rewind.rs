//! Keeps a request body until the backend's response starts. If a backend over HTTP/2 reports that it has not
//! processed the request (GOAWAY, `REFUSED_STREAM`), the request can be retried.
//!
//! Pingora keeps the first 64 KiB of a body itself and cannot send a longer one again. The bytes kept here count as
//! bodies in memory; without room for them the request is not retried.

use crate::proxy::connection::kept_body::KeptBody;
use crate::proxy::ctx::Ctx;
use bytes::BytesMut;
use http::Version;
use http::header::CONTENT_LENGTH;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

/// Whether a body can be sent again although Pingora has not kept all of it.
pub(in crate::proxy) fn is_possible(ctx: &Ctx) -> bool {
    ctx.kept_body.as_ref().is_some_and(KeptBody::is_whole)
}

/// Makes Pingora read the body from the beginning again, if Pingora has not kept all of it.
pub(in crate::proxy) async fn rewind(session: &mut Session, ctx: &mut Ctx) -> Result<()> {
    let Some(mut kept) = ctx.kept_body.take().filter(|_| session.as_ref().retry_buffer_truncated()) else {
        return Ok(());
    };
    let Some(connection) = &ctx.connection else { return Ok(()) };
    if connection.is_stream() {
        connection.rewind_to(kept.joined().freeze());
        return Ok(());
    }
    if !has_length(session) {
        // Only the session knows the position within a chunk, so it reads the rest.
        while let Some(part) = session.read_request_body().await.map_err(Error::into_down)? {
            kept.keep(&part, connection);
        }
        if !kept.is_whole() {
            let lost = Error::explain(ErrorType::H2Error, "request body too long to be sent again");
            return Err(lost.into_up());
        }
    }
    begin_anew(session, &kept.joined()).await
}

fn has_length(session: &Session) -> bool {
    session.req_header().headers.contains_key(CONTENT_LENGTH)
}

/// Replaces the session by a new one that has read nothing yet. The new session reads the received head and the body
/// kept so far first, then the rest from the socket.
async fn begin_anew(session: &mut Session, body: &[u8]) -> Result<()> {
    let is_chunked = !has_length(session);
    let head = session.req_header().clone();
    let (keepalive, reuses) = (session.get_keepalive(), session.get_keepalive_reuses_remaining());
    let write_timeout = session.get_write_timeout();
    // A placeholder, because the session cannot be moved out.
    let nobody = ServerSession::new_http1(Box::new(tokio::io::duplex(1).0));
    let ServerSession::H1(old) = std::mem::replace(&mut *session.downstream_session, nobody) else {
        return Error::e_explain(ErrorType::InternalError, "only HTTP/1.1 begins anew");
    };
    let mut bytes = BytesMut::from(&old.get_headers_raw_bytes()[..]);
    if is_chunked {
        bytes.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(body);
    if is_chunked {
        bytes.extend_from_slice(b"\r\n0\r\n\r\n");
    }
    let mut anew = ServerSession::new_http1(old.into_inner());
    anew.set_pipelined_prefix(bytes);
    anew.read_request().await?;
    *anew.req_header_mut() = head;
    anew.set_read_timeout(None);
    anew.set_write_timeout(write_timeout);
    anew.set_keepalive(keepalive);
    anew.set_keepalive_reuses_remaining(reuses);
    anew.set_ignore_info_resp(anew.req_header().version == Version::HTTP_10);
    *session.downstream_session = anew;
    Ok(())
}
