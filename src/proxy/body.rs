//! Bodies of requests: read ahead on routes that find the end user in them, counted on their way to a backend.

use super::connection::{Connection, HeldBack};
use crate::policy::denial::Denial;
use crate::policy::fault::Fault;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT};
use pingora::proxy::Session;
use std::sync::Arc;

/// What Pingora keeps to send again: its `BODY_BUF_LIMIT`.
const REPLAYED: u64 = 64 * 1024;

/// So much of a body passes uncounted, and so do small parts: what could be held that way is little, and the usual
/// request costs nothing more.
const UNCOUNTED: u64 = 16 * 1024;
const COUNTED_PART: usize = 1024;

/// Whether a body of this length, none if it is not known, may be more than passes uncounted.
pub(super) fn is_counted(length: Option<u64>) -> bool {
    length.is_none_or(|length| length > UNCOUNTED)
}

/// Lets a part of a body go on to the backend once there is room for it. With it `so_far` bytes came, and until it
/// returns no more are read.
pub(super) async fn pass_on(
    connection: &Arc<Connection>,
    part: &mut Option<Bytes>,
    is_last: bool,
    so_far: u64,
) {
    if connection.is_stream() {
        // A socket of its own would note this; a stream has none.
        connection.read_goes_on(part.as_ref().map_or(0, Bytes::len));
    }
    if is_counted(Some(so_far))
        && let Some(large) = part.take_if(|part| part.len() >= COUNTED_PART)
    {
        connection.room().await;
        *part = Some(connection.carries(large));
    }
    if connection.is_stream() && !is_last {
        connection.read_waits();
    }
}

/// Reads the whole body, at most `max` bytes of it.
///
/// Pingora forwards what was read here from its own replay buffer, which holds 64 KiB; a longer body therefore goes on
/// from the copy made here, whose last part makes Pingora ask for it. That needs the length in advance, so a longer body
/// without a `Content-Length` is refused with 411.
///
/// What is read counts as an upload of `connection`, and without room for it the request is refused.
pub(super) async fn read_ahead(
    session: &mut Session,
    max: u64,
    connection: &Arc<Connection>,
) -> Result<Bytes, Denial> {
    let length = content_length(session);
    if length.is_some_and(|l| l > max) {
        return Err(Denial::Plain(Fault::PayloadTooLarge));
    }
    if session.req_header().headers.contains_key(EXPECT) {
        session.write_continue_response().await.map_err(|_| Denial::Plain(Fault::RequestTimeout))?;
    }
    let mut body = HeldBack::new(connection, length);
    loop {
        match length {
            // The rest fits into the replay buffer, so Pingora will come asking for it.
            Some(l) if l - body.so_far().min(l) <= REPLAYED => session.enable_retry_buffering(),
            None => session.enable_retry_buffering(),
            Some(_) => {}
        }
        match session.read_request_body().await {
            Ok(Some(part)) => {
                if connection.is_stream() {
                    connection.read_goes_on(part.len());
                    connection.read_waits();
                }
                if !body.add(&part) {
                    return Err(Denial::Plain(Fault::ServiceUnavailable));
                }
            }
            Ok(None) => {
                if connection.is_stream() {
                    connection.read_goes_on(0);
                }
                return Ok(body.whole());
            }
            Err(_) => return Err(Denial::Plain(Fault::RequestTimeout)),
        }
        if length.is_none() && body.so_far() > REPLAYED {
            return Err(Denial::Plain(Fault::LengthRequired));
        }
        if body.so_far() > max {
            return Err(Denial::Plain(Fault::PayloadTooLarge));
        }
    }
}

/// The declared length of the body.
pub(super) fn content_length(session: &Session) -> Option<u64> {
    session.req_header().headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
