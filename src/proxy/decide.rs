//! The story of a decision, as the edge tells it: read the message, ask the gate, begin the record, or refuse.

use super::body::{content_length, is_counted, read_ahead};
use super::connection::Connection;
use super::ctx::Ctx;
use super::reply;
use super::service::Proxy;
use crate::gate::{Admission, Denied, EndUserNamed, Permit, RequestView};
use crate::keyring::Entry;
use crate::policy::credential::end_user_in_body;
use crate::policy::denial::{BadRequest, Denial};
use crate::policy::fault::{Fault, Lang};
use crate::policy::head;
use crate::policy::path::{canonical, check_query, split_target};
use crate::policy::route::{EndUserFrom, Route};
use crate::usage::{Pending, Start};
use http::header::{ACCEPT_LANGUAGE, CONTENT_LENGTH, HOST, HeaderValue, USER_AGENT};
use http::{Method, Version};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use smallvec::SmallVec;
use std::sync::Arc;

impl Proxy {
    pub(super) async fn decide(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<Admission, Box<Denied>> {
        self.check_message(session).map_err(|denial| Denied::early(denial, None))?;
        let mut permit = {
            let header = session.req_header();
            let view = RequestView {
                method: &header.method,
                path: header.uri.path(),
                headers: &header.headers,
                address: ctx.address,
                now: ctx.arrived,
            };
            let authorized = self.gate.authorize(&ctx.site.routes, &view);
            authorized.map_err(|denied| self.slow_down_guessing(denied, ctx))?
        };
        ctx.route = Some(Arc::clone(permit.route()));
        let length = content_length(session);
        if length.is_some_and(|length| length > permit.route().max_body_bytes) {
            return Err(permit.deny(Denial::Plain(Fault::PayloadTooLarge)));
        }
        let is_crowded = ctx.connection.as_ref().is_some_and(|connection| !connection.has_room());
        if is_crowded && holds_body(session, permit.route(), length) {
            return Err(permit.deny(Denial::Plain(Fault::ServiceUnavailable)));
        }
        ctx.rewritten = permit.take_rewritten();
        let (permit, end_user) = self.end_user(session, ctx, permit).await?;
        if self.recorder.may_admit().is_err() {
            return Err(permit.deny(Denial::Plain(Fault::ServiceUnavailable)));
        }
        let admission = self.gate.admit(permit, end_user.as_deref(), ctx.arrived).await?;
        let start = Start {
            charged: true,
            degraded: admission.degraded(),
            end_user_id: admission.end_user(),
            ..self.start_of(session, ctx, admission.entry())
        };
        if let Ok(record) = Pending::admitted(start, &self.recorder, &self.clock) {
            ctx.record = Some(record);
            return Ok(admission);
        }
        Err(admission.deny(Denial::Plain(Fault::ServiceUnavailable), ctx.route.clone()))
    }

    /// What is needed however the request is answered.
    pub(super) fn prepare(&self, session: &mut Session, ctx: &mut Ctx) {
        // The connection itself has the deadlines; Pingora's timers would only be set beside them.
        session.set_read_timeout(None);
        if session.req_header().version == Version::HTTP_2 {
            session.set_write_timeout(Some(self.limits.write_timeout));
            ctx.connection = session.req_header().extensions.get::<Arc<Connection>>().cloned();
            if let Some(stream) = ctx.connection.as_ref().filter(|_| !session.is_body_empty()) {
                stream.read_waits();
            }
        }
        self.find_client(session.req_header(), ctx);
        let header = session.req_header_mut();
        if let Some(wanted) = header.headers.get(ACCEPT_LANGUAGE).and_then(|v| v.to_str().ok()) {
            ctx.lang = Lang::preferred(wanted);
        }
        if self.limits.trust_request_id
            && let Some(given) = header.headers.get("x-request-id")
            && is_request_id(given)
        {
            ctx.request_id = given.clone();
        }
        if let Some(rewritten) = canonical_target(header) {
            header.set_uri(rewritten);
        }
    }

    /// Whoever presents too many wrong secrets is told to wait instead of that they are wrong.
    fn slow_down_guessing(&self, mut denied: Box<Denied>, ctx: &Ctx) -> Box<Denied> {
        if denied.denial == Denial::KeyInvalid
            && let Some(Err(wait)) = self.guesses.as_ref().map(|guesses| guesses.another(ctx.address))
        {
            denied.denial = Denial::TooManyInvalid(wait);
        }
        denied
    }

    /// Who asks, and how, as far as those in between can be believed.
    fn find_client(&self, header: &RequestHeader, ctx: &mut Ctx) {
        let Some(connection) = &ctx.connection else { return };
        ctx.secure = connection.secure;
        ctx.address = connection.client();
        if !self.trusted.contains(ctx.address) {
            return;
        }
        if let Some(proto) = header.headers.get("x-forwarded-proto") {
            ctx.secure = proto.as_bytes().eq_ignore_ascii_case(b"https");
        }
        let hops = header.headers.get_all("x-forwarded-for");
        let values: SmallVec<[&[u8]; 4]> = hops.iter().map(HeaderValue::as_bytes).collect();
        ctx.address = self.trusted.client(ctx.address, values.into_iter());
    }

    /// Step 1: is the request of a permitted size, and does it mean one thing? How it is framed was settled before it
    /// was let in.
    fn check_message(&self, session: &Session) -> Result<(), Denial> {
        let header = session.req_header();
        if header.raw_path().len() > self.limits.uri_bytes {
            return Err(Denial::Plain(Fault::UriTooLong));
        }
        let bytes: usize = header.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 4).sum();
        if bytes > self.limits.header_bytes || header.headers.len() > self.limits.header_fields {
            return Err(Denial::Plain(Fault::HeadersTooLarge));
        }
        if matches!(header.method, Method::TRACE | Method::CONNECT) {
            return Err(Denial::Plain(Fault::NotImplemented));
        }
        if header.version == Version::HTTP_2 {
            check_http2(header)?;
        }
        let bad = |b| Denial::BadRequest(BadRequest::Path(b));
        let (path, query) = split_target(header.raw_path()).map_err(bad)?;
        canonical(path).map_err(bad)?;
        check_query(query).map_err(bad)?;
        Ok(())
    }

    /// The end user that the request names, reading its body ahead where the route says so.
    async fn end_user(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        permit: Permit,
    ) -> Result<(Permit, Option<Box<str>>), Box<Denied>> {
        let EndUserFrom::JsonField(field) = &permit.route().end_user else {
            let named = match permit.end_user() {
                EndUserNamed::Header(name) => Some(name.clone()),
                EndUserNamed::Nobody | EndUserNamed::Body => None,
            };
            return Ok((permit, named));
        };
        let held = ctx.connection.clone();
        let found = match read_ahead(session, self.limits.end_user_body_bytes, held.as_deref()).await {
            Ok(None) => Ok(None),
            Ok(Some(body)) => {
                let found = end_user_in_body(&body, field).map_err(Denial::BadRequest);
                ctx.body = Some(body);
                found
            }
            Err(denial) => Err(ctx.client_fault().unwrap_or(denial)),
        };
        match found {
            Ok(name) => Ok((permit, name.map(Into::into))),
            Err(denial) => Err(permit.deny(denial)),
        }
    }

    pub(super) async fn refuse(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        denied: Denied,
    ) -> pingora::Result<()> {
        ctx.route = denied.route;
        ctx.degraded = denied.degraded;
        if let Some(entry) = &denied.entry {
            ctx.note_key(entry);
        }
        if let (Some(entry), Some(_)) = (&denied.entry, &ctx.route) {
            let start = Start { degraded: ctx.degraded, ..self.start_of(session, ctx, entry) };
            ctx.record = Some(Pending::refused(start, &self.recorder, &self.clock));
        }
        let at = self.clock.now().wall;
        reply::deny(session, ctx, &self.limits, &denied.denial, denied.left.as_ref(), at).await
    }

    fn start_of<'r>(&'r self, session: &'r Session, ctx: &'r Ctx, entry: &'r Entry) -> Start<'r> {
        let header = session.req_header();
        Start {
            id: ctx.id,
            request_id: ctx.request_id.to_str().unwrap_or(""),
            api_key_id: entry.key.id,
            workspace_id: &entry.key.workspace_id,
            arrived: ctx.arrived,
            method: header.method.as_str(),
            endpoint: header.uri.path(),
            route: ctx.route_name(),
            ip_address: ctx.address,
            user_agent: header.headers.get(USER_AGENT).map_or(b"", HeaderValue::as_bytes),
            node: &self.node,
            end_user_id: None,
            charged: false,
            degraded: false,
        }
    }
}

/// Whether the request has a body of which more than a little may have to be held.
fn holds_body(session: &mut Session, route: &Route, length: Option<u64>) -> bool {
    let is_read_ahead = matches!(route.end_user, EndUserFrom::JsonField(_));
    (is_read_ahead || is_counted(length)) && !session.is_body_empty()
}

/// The request target as it is forwarded, where the client wrote it differently: an absolute form, or another spelling.
fn canonical_target(header: &RequestHeader) -> Option<http::Uri> {
    let raw = header.raw_path();
    let (path, query) = split_target(raw).ok()?;
    let path = canonical(path).ok()?;
    if raw.starts_with(path.as_bytes()) && !path.was_respelled() {
        return None;
    }
    let mut target = path.into_string();
    if !query.is_empty() {
        target.push('?');
        target.push_str(std::str::from_utf8(query).ok()?);
    }
    // Over HTTP/2 the authority is part of it, and stays.
    let mut parts = header.uri.clone().into_parts();
    parts.path_and_query = Some(target.parse().ok()?);
    http::Uri::from_parts(parts).ok()
}

/// What the reader of HTTP/1.1 has looked at before, of a request over HTTP/2.
fn check_http2(header: &RequestHeader) -> Result<(), Denial> {
    let mut lengths = header.headers.get_all(CONTENT_LENGTH).iter();
    let sound = lengths.next().is_none_or(|length| head::content_length(length.as_bytes()).is_some());
    if !sound || lengths.next().is_some() {
        return Err(Denial::BadRequest(BadRequest::Framing));
    }
    let authority = header.uri.authority().map(|a| a.as_str().as_bytes());
    let mut hosts = header.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let (host, second) = (hosts.next(), hosts.next());
    let differ = authority.zip(host).is_some_and(|(authority, host)| authority != host);
    if differ || second.is_some() || !authority.or(host).is_some_and(head::is_host) {
        return Err(Denial::BadRequest(BadRequest::Host));
    }
    Ok(())
}

fn is_request_id(value: &HeaderValue) -> bool {
    (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
}
