//! Request bodies: read ahead on routes that find the end user in them, and counted on the way to a backend.

use crate::model::fault::Fault;
use crate::policy::keys::denial::Denial;
use crate::proxy::connection::{BufferedBody, Connection};
use crate::proxy::ctx::{BodyStart, Ctx};
use crate::proxy::message::content_length;
use bytes::Bytes;
use http::header::EXPECT;
use pingora::proxy::Session;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

/// How much of a body Pingora keeps for a retry: its `BODY_BUF_LIMIT`.
const REPLAYED: u64 = 64 * 1024;

/// The first bytes of a body are not counted, and neither are small parts. The memory they can take is small, and
/// usual requests need no counting.
const UNCOUNTED: u64 = 16 * 1024;
const COUNTED_PART: usize = 1024;

/// Whether a body of this length may exceed the uncounted bytes; none: the length is unknown.
pub(in crate::proxy) fn is_counted(length: Option<u64>) -> bool {
    length.is_none_or(|length| length > UNCOUNTED)
}

/// Puts the part of a body that was read ahead in front of the first part that follows it.
pub(in crate::proxy) fn start_body(ctx: &mut Ctx, part: &mut Option<Bytes>) {
    let BodyStart { bytes: Some(start), is_sent: is_sent @ false } = &mut ctx.body_start else { return };
    *is_sent = true;
    *part = Some(match part.take() {
        Some(part) if !part.is_empty() => [&start[..], &part[..]].concat().into(),
        _ => start.clone(),
    });
}

/// Passes a part of a body on to the backend once there is room for it. `so_far` includes this part. No more is read
/// until this returns.
pub(in crate::proxy) async fn forward_part(
    connection: &Arc<Connection>,
    part: &mut Option<Bytes>,
    is_last: bool,
    so_far: u64,
) {
    if connection.is_stream() {
        // An HTTP/1.1 socket records its own reads; a stream does not.
        connection.on_read(part.as_ref().map_or(0, Bytes::len));
    }
    if is_counted(Some(so_far))
        && let Some(large) = part.take_if(|part| part.len() >= COUNTED_PART)
    {
        connection.wait_for_room().await;
        *part = Some(connection.count_upload(large));
    }
    if connection.is_stream() && !is_last {
        connection.on_read_pending();
    }
}

/// What was read of a body ahead of its forwarding.
pub(in crate::proxy) enum ReadAhead {
    /// All of it. It may be longer if it came with its head.
    Whole(Bytes),
    /// More than may be read; the rest is still to come.
    TooLong(Bytes),
}

/// Reads the whole body, unless it is longer than `max` bytes.
///
/// Pingora forwards a body that was read here from its replay buffer, which holds 64 KiB. A longer body is forwarded
/// from the copy made here; its last part, kept in the replay buffer, makes Pingora send it. If the last part cannot
/// be known in advance, the end of the body takes its place: the connection withholds the end until all else has been
/// read.
///
/// The bytes count as an upload of `connection`. Without room for them, the request is refused.
pub(in crate::proxy) async fn read_ahead(
    session: &mut Session,
    max: u64,
    connection: &Arc<Connection>,
) -> Result<ReadAhead, Denial> {
    let length = content_length(session);
    if length.is_some_and(|l| l > max) {
        return Ok(ReadAhead::TooLong(Bytes::new()));
    }
    // A body that has come with its head is in memory already.
    let is_here = length.is_none() && !connection.is_stream() && connection.has_whole_body();
    if session.req_header().headers.contains_key(EXPECT) {
        session.write_continue_response().await.map_err(|_| Denial::Plain(Fault::RequestTimeout))?;
    }
    let mut body = BufferedBody::new(connection, length);
    let _end = (length.is_none() && !connection.has_whole_body()).then(|| KeptEnd::of(connection));
    loop {
        let rest = length.map(|length| length.saturating_sub(body.so_far()));
        if rest.map_or_else(|| connection.has_whole_body(), |rest| rest <= REPLAYED) {
            // The rest fits into the replay buffer, so Pingora will send the body.
            session.enable_retry_buffering();
        }
        match next_part(session, connection).await {
            Ok(Some(part)) => {
                if connection.is_stream() {
                    connection.on_read(part.len());
                    connection.on_read_pending();
                }
                if !body.add(&part) {
                    return Err(Denial::Plain(Fault::ServiceUnavailable));
                }
            }
            Ok(None) => {
                if connection.is_stream() {
                    connection.on_read(0);
                }
                // Only the end of the body is still to be read, or nothing. Pingora has nothing to replay except the
                // copy made here.
                session.enable_retry_buffering();
                return Ok(ReadAhead::Whole(body.whole()));
            }
            Err(_) => return Err(Denial::Plain(Fault::RequestTimeout)),
        }
        if body.so_far() > max && !is_here {
            // Makes Pingora send a body of which only the end is still to come.
            session.enable_retry_buffering();
            return Ok(ReadAhead::TooLong(body.whole()));
        }
    }
}

/// The next part of a body; none at its end, or if only its withheld end is left.
async fn next_part(session: &mut Session, connection: &Connection) -> pingora::Result<Option<Bytes>> {
    let mut part = pin!(session.read_request_body());
    std::future::poll_fn(|context| match part.as_mut().poll(context) {
        Poll::Pending if connection.has_kept_end() => Poll::Ready(Ok(None)),
        polled => polled,
    })
    .await
}

/// Withholds the end of a body from its reader until this is dropped.
struct KeptEnd<'c>(&'c Connection);

impl<'c> KeptEnd<'c> {
    fn of(connection: &'c Connection) -> Self {
        connection.set_keep_body_end(true);
        Self(connection)
    }
}

impl Drop for KeptEnd<'_> {
    fn drop(&mut self) {
        self.0.set_keep_body_end(false);
    }
}
