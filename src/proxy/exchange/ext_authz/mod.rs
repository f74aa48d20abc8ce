//! Decides for Envoy's filter `ext_authz` over gRPC: `envoy.service.auth.v3.Authorization/Check`, one call on each HTTP/2 stream.
//!
//! Must not know: how a request is decided. What a call states becomes a head as bytes, which is checked and spelled like any
//! other and takes the same steps. A call that states no request gets a status of gRPC and no decision.
//!
//! *Invariant:* only a request that was admitted is answered with the status 0.

mod answer;
mod message;

use self::message::{BadFrame, CheckRequest, HttpRequest, PREFIX, framed, unframed};
use super::decide::spelled;
use super::heads::ParsedHead;
use crate::gate::Denied;
use crate::policy::http::head::Framing;
use crate::policy::http::original::head_of_parts;
use crate::policy::keys::denial::Denial;
use crate::proxy::connection::{BufferedBody, Connection};
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::message::headers::X_FORWARDED_FOR;
use crate::proxy::request::attempt::ForwardError;
use crate::proxy::request::body::ReadAhead;
use crate::proxy::request::outcome::{outcome_of, release_permits};
use crate::proxy::request::preflight::EarlyDecision;
use crate::proxy::response::reply::{self, Reply};
use crate::proxy::state::Proxy;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use prost::Message as _;
use smallvec::SmallVec;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;

/// The one method that is served.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Envoy's field for a body that it has cut off.
const PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
/// Room for what a message holds beside head and body of a request: certificates, names, extensions.
const AROUND: usize = 64 * 1024;

/// Why a call gets no decision. The texts have no character that would have to be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallFailure {
    /// Another method.
    Method,
    /// A message that is compressed.
    Compressed,
    /// A message that is too large.
    TooLarge,
    /// There is no room for the message.
    NoRoom,
    /// Not one message.
    Frame,
    /// Not a message of this method.
    Message,
    /// It has no request, or one that no client can send.
    Request,
    /// It does not say who the client is.
    Source,
    /// The client of the call is gone.
    Gone,
}

/// A request that a call asks about.
struct Asked {
    http: HttpRequest,
    head: Result<(bytes::BytesMut, Framing), Denial>,
    source: Option<IpAddr>,
}

/// Serves one call.
pub(in crate::proxy) async fn serve(
    proxy: &Arc<Proxy>,
    fields_max: usize,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    stream: &Arc<Connection>,
) {
    let (call, mut body) = request.into_parts();
    let is_grpc = |value: &HeaderValue| value.as_bytes().starts_with(GRPC.as_bytes());
    if !call.headers.get(CONTENT_TYPE).is_some_and(is_grpc) {
        // As gRPC asks: the caller speaks HTTP, and would not look for a status in the fields.
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return log_unsent(respond.send_response(response, true).map(drop));
    }
    let asked = if call.method == Method::POST && call.uri.path() == CHECK {
        asked(proxy, &mut body, stream, fields_max).await
    } else {
        Err(CallFailure::Method)
    };
    match asked {
        Ok(asked) => decide(proxy, &call, &asked, &mut respond, stream).await,
        Err(CallFailure::Gone) => {}
        Err(failure) => log_unsent(fail(&mut respond, failure)),
    }
}

/// Reads what a call asks.
async fn asked(
    proxy: &Proxy,
    body: &mut RecvStream,
    stream: &Arc<Connection>,
    fields_max: usize,
) -> Result<Asked, CallFailure> {
    let limits = &proxy.limits;
    let body_max = usize::try_from(limits.end_user_body_bytes).unwrap_or(usize::MAX);
    let most = (2 * limits.header_bytes + limits.uri_bytes + AROUND).saturating_add(body_max);
    let whole = read(body, stream, most).await?;
    let message = unframed(&whole).map_err(|bad| match bad {
        BadFrame::Compressed => CallFailure::Compressed,
        BadFrame::Length => CallFailure::Frame,
    })?;
    let message = CheckRequest::decode(message).map_err(|_| CallFailure::Message)?;
    let attributes = message.attributes.ok_or(CallFailure::Request)?;
    let http = attributes.request.and_then(|request| request.http).ok_or(CallFailure::Request)?;
    let parts = [&http.method, &http.path, &http.host].map(String::as_bytes);
    let head = head_of_parts(parts[0], parts[1], parts[2], http.fields()).ok_or(CallFailure::Request)?;
    let source = attributes.source.and_then(|peer| peer.address?.socket_address);
    let source = source.and_then(|source| source.address.parse::<IpAddr>().ok());
    Ok(Asked { head: spelled(head, fields_max), http, source: source.map(|ip| ip.to_canonical()) })
}

/// The body of a call of at most `most` bytes beside the prefix.
async fn read(body: &mut RecvStream, stream: &Arc<Connection>, most: usize) -> Result<Bytes, CallFailure> {
    let most = u64::try_from(most.saturating_add(PREFIX)).unwrap_or(u64::MAX);
    let mut whole = BufferedBody::new(stream, None);
    loop {
        stream.on_read_pending();
        let came = std::future::poll_fn(|context| {
            stream.register_waker(context);
            match stream.close_reason() {
                // Late, or its memory is needed.
                Some(_) => Poll::Ready(Err(CallFailure::Gone)),
                None => body.poll_data(context).map(|came| came.transpose().map_err(|_| CallFailure::Gone)),
            }
        });
        let part = came.await?;
        stream.on_read(part.as_ref().map_or(0, Bytes::len));
        let Some(part) = part else { return Ok(whole.whole()) };
        if !whole.add(&part) {
            return Err(CallFailure::NoRoom);
        }
        if whole.so_far() > most {
            return Err(CallFailure::TooLarge);
        }
        // If the stream was reset meanwhile, the next read reports it.
        body.flow_control().release_capacity(part.len()).ok();
    }
}

/// Decides, answers and records.
async fn decide(
    proxy: &Arc<Proxy>,
    call: &http::request::Parts,
    asked: &Asked,
    respond: &mut SendResponse<Bytes>,
    stream: &Arc<Connection>,
) {
    let parsed = asked.head.as_ref().ok().and_then(|(head, _)| ParsedHead::of(head));
    let body = asked.http.body();
    let has_body = !body.is_empty() || matches!(&asked.head, Ok((_, framing)) if *framing != Framing::NoBody);
    let message = match &parsed {
        Some(parsed) => parsed.message(has_body),
        None => of_call(call),
    };
    let Some(address) = proxy.client_of(&message, asked.source) else {
        return log_unsent(fail(respond, CallFailure::Source));
    };
    let mut ctx = Box::new(proxy.ctx());
    ctx.connection = Some(Arc::clone(stream));
    ctx.is_decision = true;
    proxy.begin(&message, &mut ctx);
    (ctx.address, ctx.secure) = (address, asked.http.scheme.eq_ignore_ascii_case("https"));
    let read = u64::try_from(body.len()).unwrap_or(u64::MAX);
    let decided = match &asked.head {
        Err(denial) => Err(Denied::early(denial.clone(), None)),
        Ok(_) => decided(proxy, &message, &mut ctx, body).await,
    };
    proxy.record_decision_time(&mut ctx);
    let reply = match decided {
        Ok(reply) => {
            // As in every decision: it is not in flight any longer, and nobody tells what the backend used.
            ctx.settle_meter(false, read);
            release_permits(&mut ctx);
            reply
        }
        Err(denied) => {
            proxy.on_refused(&message, &mut ctx, &denied);
            let at = proxy.clock.now().wall;
            reply::answer(&message, &ctx, &proxy.limits, &denied.denial, denied.left.as_ref(), at).ok()
        }
    };
    let status = reply.as_ref().map(|reply| reply.status.as_u16());
    let sent = reply.as_ref().map_or(0, |reply| u64::try_from(reply.body.len()).unwrap_or(u64::MAX));
    let written = match reply {
        Some(reply) => answer(respond, &framed(&answer::of(&message, &ctx, &reply))),
        None => Err(h2::Error::from(h2::Reason::INTERNAL_ERROR)),
    };
    let (status, sent, error) = match &written {
        Ok(()) => (status, sent, None),
        Err(_) => (None, 0, Some(ForwardError::Client)),
    };
    log_unsent(written);
    let outcome = outcome_of(&ctx, error, status);
    proxy.ended(&message, &mut ctx, outcome, status, (read, sent));
}

/// The answer to a request that passes; none: it cannot be written. The steps are those of [`super::Exchange`].
async fn decided(
    proxy: &Proxy,
    message: &RequestMessage<'_>,
    ctx: &mut Ctx,
    body: Bytes,
) -> Result<Option<Reply>, Box<Denied>> {
    match proxy.decide_preflight(message, ctx) {
        // A preflight that Keygate would answer: what it would say is of use to the proxy.
        EarlyDecision::Answer(reply) => return Ok(Some(Reply { status: StatusCode::OK, ..reply })),
        EarlyDecision::Decided(decided) => decided?,
        EarlyDecision::No => {
            if let Some(permit) = proxy.permit(message, ctx)? {
                let is_cut = message.fields.all(&PARTIAL_BODY).any(|said| said == b"true");
                let is_whole =
                    !is_cut && message.content_length().is_none_or(|length| length <= body.len() as u64);
                let read =
                    async { Ok(if is_whole { ReadAhead::Whole(body) } else { ReadAhead::TooLong(body) }) };
                proxy.admit_reading(message, ctx, permit, read).await?;
            }
        }
    }
    Ok(proxy.allowed(ctx).ok())
}

/// The call itself, for the refusal of a request that is none.
fn of_call(call: &http::request::Parts) -> RequestMessage<'_> {
    RequestMessage {
        method: &call.method,
        target: CHECK.as_bytes(),
        path: CHECK,
        authority: None,
        // Its answer is not that of gRPC: that goes around it.
        version: Version::HTTP_11,
        fields: (&call.headers).into(),
        has_body: true,
    }
}

/// Sends a message and the status 0.
fn answer(respond: &mut SendResponse<Bytes>, message: &Bytes) -> Result<(), h2::Error> {
    let mut head = Response::new(());
    head.headers_mut().insert(CONTENT_TYPE, GRPC);
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(message.clone(), false)?;
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}

/// Sends a status without a message.
fn fail(respond: &mut SendResponse<Bytes>, failure: CallFailure) -> Result<(), h2::Error> {
    let (status, text) = failure.told();
    let mut head = Response::new(());
    let fields = head.headers_mut();
    fields.insert(CONTENT_TYPE, GRPC);
    fields.insert(GRPC_STATUS, HeaderValue::from_static(status));
    fields.insert(GRPC_MESSAGE, HeaderValue::from_static(text));
    respond.send_response(head, true).map(drop)
}

fn log_unsent(sent: Result<(), h2::Error>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "cannot answer a call for a decision: proxy disconnected");
    }
}

impl CallFailure {
    /// The status of gRPC, and what is wrong.
    const fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::Method => ("12", "this listener serves envoy.service.auth.v3.Authorization/Check"),
            Self::Compressed => ("12", "compressed messages are not supported"),
            Self::TooLarge => {
                ("8", "the message is larger than proxy.max_header_bytes and proxy.end_user_body_bytes allow")
            }
            Self::NoRoom => {
                ("14", "too many bytes of requests are being read, see proxy.max_bytes_in_flight")
            }
            Self::Frame => ("3", "the call must have one whole message"),
            Self::Message => ("3", "the message is not a CheckRequest"),
            Self::Request => {
                ("3", "attributes.request.http must be a request with method, path and valid headers")
            }
            Self::Source => (
                "3",
                "attributes.source.address or the header x-forwarded-for must name the address of the client",
            ),
            // Nobody reads it.
            Self::Gone => ("1", "cancelled"),
        }
    }
}

impl Proxy {
    /// The client's address: the one that connected to the proxy, or the one that a trusted proxy before it reports. Where clients
    /// connect over something without addresses, the proxy must report it.
    fn client_of(&self, message: &RequestMessage<'_>, source: Option<IpAddr>) -> Option<IpAddr> {
        let hops: SmallVec<[&[u8]; 4]> = message.fields.all(&X_FORWARDED_FOR).collect();
        if let Some(source) = source {
            return Some(self.trusted.client(source, hops.iter().copied()).address);
        }
        let unknown = IpAddr::from([0, 0, 0, 0]);
        let found = self.trusted.client_of_proxy(unknown, hops.iter().copied()).address;
        Some(found).filter(|found| *found != unknown)
    }
}
