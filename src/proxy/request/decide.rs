//! The decision about a request: checks the message, asks the gate, and starts the usage record or refuses the
//! request.

use super::attempt::upstream_of;
use super::body::is_counted;
use super::rewrite::can_be_clamped;
use crate::gate::{Authorized, Denied, KeylessPermit, Permit, RequestView};
use crate::keyring::Entry;
use crate::model::fault::{Fault, Lang};
use crate::model::id::{KeyId, WorkspaceId};
use crate::model::key::Measure;
use crate::policy::http::coding::Coding;
use crate::policy::http::fields::HeaderFields;
use crate::policy::http::head::{self, METHOD_MAX, TARGET_MAX};
use crate::policy::http::path::{canonical, check_query, escape_loose, has_encoded_slash, split_target};
use crate::policy::keys::denial::{BadRequest, Denial};
use crate::policy::meter::{HoldBounds, HoldRequest, PlannedHold};
use crate::policy::prices::PriceTable;
use crate::policy::routing::route::Route;
use crate::proxy::connection::Connection;
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::message::headers::{X_FORWARDED_FOR, X_FORWARDED_PROTO, X_REQUEST_ID};
use crate::proxy::meter::RequestMeter;
use crate::proxy::state::Proxy;
use crate::usage::{PendingRecord, RecordStart};
use http::header::{
    ACCEPT_LANGUAGE, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HOST, HeaderValue, USER_AGENT,
};
use http::{Method, Version};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

impl Proxy {
    /// Decides about a request that Pingora has read.
    pub(in crate::proxy) async fn decide(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<(), Box<Denied>> {
        let has_body = !session.is_body_empty();
        let permit = match ctx.permit.take() {
            Some(permit) => permit,
            None => match self.permit(&RequestMessage::of(session.req_header(), has_body), ctx)? {
                Some(permit) => permit,
                None => return Ok(()),
            },
        };
        let (permit, end_user) = self.read_first(session, ctx, permit).await?;
        self.admit(&RequestMessage::of(session.req_header(), has_body), ctx, permit, end_user).await
    }

    /// Checks the message, authorizes the key from memory, and checks the size limits and the memory for its body. None: the
    /// route is public, and the request is admitted.
    pub(in crate::proxy) fn permit(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
    ) -> Result<Option<Permit>, Box<Denied>> {
        self.check_message(message).map_err(|denial| Denied::early(denial, None))?;
        let view = RequestView {
            method: message.method,
            path: message.path,
            target: message.target,
            encoded_slash: has_encoded_slash(message.path),
            fields: message.fields,
            address: ctx.address,
            now: ctx.arrived,
        };
        let authorized = self.gate.authorize(&ctx.routing.routes, &view);
        let mut authorized = authorized.map_err(|denied| self.limit_invalid_keys(denied, ctx))?;
        ctx.route = Some(Arc::clone(authorized.route()));
        let length = message.content_length();
        if length.is_some_and(|length| length > authorized.route().max_body_bytes) {
            return Err(authorized.deny(Denial::Plain(Fault::PayloadTooLarge)));
        }
        let is_crowded = ctx.connection.as_ref().is_some_and(|connection| !connection.check_room());
        if is_crowded && message.has_body && buffers_body(authorized.route(), length) {
            return Err(authorized.deny(Denial::Plain(Fault::ServiceUnavailable)));
        }
        ctx.rewritten = authorized.take_rewritten();
        let longer = ctx.rewritten.as_ref().map_or(0, |path| path.len().saturating_sub(message.path.len()));
        if message.target.len() + longer > TARGET_MAX {
            return Err(authorized.deny(Denial::Plain(Fault::UriTooLong)));
        }
        // Before anything is charged. No other credential is sent instead.
        let key = authorized.entry().map(crate::keyring::Entry::of_request);
        if upstream_of(ctx).is_some_and(|upstream| upstream.settings.lacks_credential_for(key)) {
            return Err(authorized.deny(Denial::Plain(Fault::ServiceUnavailable)));
        }
        match authorized {
            Authorized::Key(permit) => Ok(Some(permit)),
            Authorized::Public(permit) => self.admit_without_key(message, ctx, permit).map(|()| None),
        }
    }

    /// Admits a request on a public route unless its address sends too many, and starts its usage record.
    fn admit_without_key(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
        permit: KeylessPermit,
    ) -> Result<(), Box<Denied>> {
        let denied = |denial| Denied::early(denial, Some(permit.route()));
        if let Some(Err(wait)) = self.public_requests.as_ref().map(|limiter| limiter.check(ctx.address)) {
            return Err(denied(Denial::TooManyPublic(wait)));
        }
        let unavailable = || denied(Denial::Plain(Fault::ServiceUnavailable));
        self.recorder.may_admit().map_err(|_| unavailable())?;
        let start = self.start_of(message, ctx, None);
        let record =
            PendingRecord::admitted(start, &self.recorder, &self.clock).map_err(|_| unavailable())?;
        self.begin_record(ctx, record, message.path);
        ctx.keyless = Some(permit);
        Ok(())
    }

    /// The request is admitted: its record begins, and its meter if the route has one.
    fn begin_record(&self, ctx: &mut Ctx, record: PendingRecord, path: &str) {
        ctx.record = Some(record);
        ctx.meter =
            ctx.route.as_ref().and_then(|route| RequestMeter::of(route, path, &self.metrics, &self.usual));
        if let (Some(meter), Some(connection)) = (&ctx.meter, &ctx.connection)
            && meter.drains()
        {
            connection.offer_drain(&self.drains);
        }
    }

    /// Charges the limits and starts the usage record.
    pub(in crate::proxy) async fn admit(
        &self,
        message: &RequestMessage<'_>,
        ctx: &mut Ctx,
        permit: Permit,
        end_user: Option<Box<str>>,
    ) -> Result<(), Box<Denied>> {
        if self.recorder.may_admit().is_err() {
            return Err(permit.deny(Denial::Plain(Fault::ServiceUnavailable)));
        }
        let permit = self.check_price(message, ctx, permit)?;
        self.count_unreadable(message, ctx, &permit);
        // Nothing of it is looked up for a route without a meter.
        let prices =
            (permit.route().meter.is_some() || ctx.asked_hold.is_some()).then(|| self.recorder.prices());
        let model = prices.as_ref().and_then(|_| Self::model_of(message, ctx));
        let hold =
            prices.as_ref().and_then(|prices| self.hold(message, ctx, &permit, model.as_deref(), prices));
        let mut admission = self.gate.admit(permit, end_user, hold.as_ref(), ctx.charged_at).await?;
        let start = RecordStart {
            charged: true,
            degraded: admission.degraded(),
            end_user_id: admission.end_user(),
            ..self.start_of(message, ctx, Some(admission.entry()))
        };
        let Ok(record) = PendingRecord::admitted(start, &self.recorder, &self.clock) else {
            return Err(admission.deny(Denial::Plain(Fault::ServiceUnavailable), ctx.route.clone()));
        };
        self.begin_record(ctx, record, message.path);
        if let Some(meter) = &mut ctx.meter {
            let is_limited = admission.left().iter().any(|(limit, _)| limit.count != Measure::Requests);
            meter.set_hold(admission.entry().key.id, admission.take_hold(), is_limited);
        }
        if let Some(connection) = &ctx.connection {
            connection.set_served_key(Some(admission.presented().clone()));
            connection.mark_permits_held();
        }
        self.note_key(ctx, admission.entry());
        ctx.degraded = admission.degraded();
        ctx.admission = Some(admission);
        Ok(())
    }

    /// What a request holds; none if its route is not metered.
    fn hold<'r>(
        &self,
        message: &RequestMessage<'_>,
        ctx: &'r Ctx,
        permit: &Permit,
        model: Option<&'r str>,
        prices: &'r PriceTable,
    ) -> Option<PlannedHold<'r>> {
        if let Some(asked) = &ctx.asked_hold {
            let request = HoldRequest::of_tokens(asked.input, asked.max_output, &asked.model);
            let price = prices.find(&asked.model);
            return Some(PlannedHold { request, bounds: HoldBounds::NONE, price, clamp: false });
        }
        let rule = permit.route().meter.as_ref()?;
        let read = ctx.body.as_ref().map(|body| u64::try_from(body.len()).unwrap_or(u64::MAX));
        let input_bytes = read.or_else(|| message.content_length()).unwrap_or(0);
        let model = model.unwrap_or_default();
        let facts = ctx.facts.as_deref();
        let max_output = facts.and_then(|facts| facts.max_output);
        let choices = facts.map_or(1, |facts| facts.choices.max(1));
        let request = HoldRequest { input_bytes, max_output, choices, model };
        let usual = self.usual.of(permit.entry().key.id, model);
        let bounds = HoldBounds { route: rule.hold, usual };
        let clamp = rule.clamp && can_be_clamped(message, ctx);
        Some(PlannedHold { request, bounds, price: prices.find(model), clamp })
    }

    /// Prepares a session of Pingora, and evaluates the request head unless that was done before.
    pub(in crate::proxy) fn prepare(&self, session: &mut Session, ctx: &mut Ctx) {
        // The connection has the read deadlines; timers of Pingora would only add to them.
        session.set_read_timeout(None);
        if session.req_header().version == Version::HTTP_2 {
            session.set_write_timeout(Some(self.limits.write_timeout));
            ctx.connection = session.req_header().extensions.get::<Arc<Connection>>().cloned();
            if let Some(stream) = ctx.connection.as_ref().filter(|_| !session.is_body_empty()) {
                stream.on_read_pending();
            }
        }
        Self::apply_connection_field(session);
        if ctx.begun {
            return;
        }
        if let Some(rewritten) = canonical_target(session.req_header()) {
            session.req_header_mut().set_uri(rewritten);
        }
        let has_body = !session.is_body_empty();
        self.begin(&RequestMessage::of(session.req_header(), has_body), ctx);
    }

    /// Completes Pingora's handling of `Connection`. Pingora reads only the first such field, but `close` may be in a
    /// later one, and it treats HTTP/1.0 like HTTP/1.1.
    fn apply_connection_field(session: &mut Session) {
        let header = session.req_header();
        let mut asked =
            header.headers.get_all(CONNECTION).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
        let closes = asked.any(|name| name.trim_ascii().eq_ignore_ascii_case(b"close"));
        let is_10 = header.version == Version::HTTP_10;
        if closes {
            session.set_keepalive(None);
        }
        if is_10 {
            // RFC 9110, 10.1.1 and 15.2: ignore `Expect` of an HTTP/1.0 client, and send it no interim responses.
            session.req_header_mut().remove_header(&EXPECT);
            session.as_downstream_mut().set_ignore_info_resp(true);
        }
    }

    /// Records what is needed for any response to the request.
    pub(in crate::proxy) fn begin(&self, message: &RequestMessage<'_>, ctx: &mut Ctx) {
        self.find_client(message, ctx);
        if let Some(connection) = &ctx.connection {
            connection.set_http10(message.version == Version::HTTP_10);
        }
        if let Some(wanted) = message.fields.text(&ACCEPT_LANGUAGE) {
            ctx.lang = Lang::preferred(wanted);
        }
        if self.limits.trust_request_id
            && let Some(given) = message.fields.first(&X_REQUEST_ID)
            && let Some(given) = request_id(given)
        {
            ctx.request_id = given;
        }
        self.tracing.begin(message, ctx);
        ctx.begun = true;
    }

    /// The decision has been made: records its time.
    pub(in crate::proxy) fn record_decision_time(&self, ctx: &mut Ctx) {
        let own = self.clock.steady_ns().saturating_sub(ctx.arrived.steady_ns);
        if ctx.body.is_none() {
            self.metrics.own_seconds.observe(Duration::from_nanos(own).as_secs_f64());
        }
        ctx.own_ns = own;
    }

    /// Refuses an address with too many invalid keys with a time to wait, instead of as an invalid key.
    pub(in crate::proxy) fn limit_invalid_keys(&self, mut denied: Box<Denied>, ctx: &Ctx) -> Box<Denied> {
        if denied.denial == Denial::KeyInvalid
            && let Some(Err(wait)) = self.invalid_keys.as_ref().map(|limiter| limiter.check(ctx.address))
        {
            denied.denial = Denial::TooManyInvalid(wait);
        }
        denied
    }

    /// Finds the client's address and scheme, as far as the proxies in between are trusted.
    fn find_client(&self, message: &RequestMessage<'_>, ctx: &mut Ctx) {
        let Some(connection) = &ctx.connection else { return };
        ctx.secure = connection.secure;
        ctx.address = connection.client();
        if !self.trusted.contains(ctx.address) {
            return;
        }
        let hops: SmallVec<[&[u8]; 4]> = message.fields.all(&X_FORWARDED_FOR).collect();
        let schemes: SmallVec<[&[u8]; 4]> = message.fields.all(&X_FORWARDED_PROTO).collect();
        let found = self.trusted.client(ctx.address, hops.iter().copied());
        ctx.address = found.address;
        if let Some(secure) = found.is_secure(schemes.iter().copied()) {
            ctx.secure = secure;
        }
    }

    /// Step 1: checks the size of the request, and that its head has only one meaning. The framing over HTTP/1.1 was
    /// checked when the head was read.
    pub(in crate::proxy) fn check_message(&self, message: &RequestMessage<'_>) -> Result<(), Denial> {
        if message.target.len() > self.limits.uri_bytes {
            return Err(Denial::Plain(Fault::UriTooLong));
        }
        let (mut fields, mut bytes) = message.fields.size();
        if let Some(authority) = message.authority {
            // Counts like `Host` in HTTP/1.1.
            (fields, bytes) = (fields + 1, bytes + "host: \r\n".len() + authority.len());
        }
        if bytes > self.limits.header_bytes || fields > self.limits.header_fields {
            return Err(Denial::Plain(Fault::HeadersTooLarge));
        }
        if matches!(*message.method, Method::TRACE | Method::CONNECT) {
            return Err(Denial::Plain(Fault::NotImplemented));
        }
        if message.version == Version::HTTP_2 {
            check_http2(message)?;
        }
        let bad = |b| Denial::BadRequest(BadRequest::Path(b));
        let (path, query) = split_target(message.target).map_err(bad)?;
        canonical(path).map_err(bad)?;
        check_query(query).map_err(bad)?;
        Ok(())
    }

    /// Records a refusal. Starts a usage record if the key and the route are known.
    pub(in crate::proxy) fn on_refused(&self, message: &RequestMessage<'_>, ctx: &mut Ctx, denied: &Denied) {
        ctx.route.clone_from(&denied.route);
        ctx.degraded = denied.degraded;
        ctx.fault = Some(denied.denial.fault());
        if let Some(entry) = &denied.entry {
            self.note_key(ctx, entry);
        }
        if let (Some(entry), Some(_)) = (&denied.entry, &ctx.route) {
            let start = RecordStart { degraded: ctx.degraded, ..self.start_of(message, ctx, Some(entry)) };
            ctx.record = Some(PendingRecord::refused(start, &self.recorder, &self.clock));
        }
    }

    fn note_key(&self, ctx: &mut Ctx, entry: &Arc<Entry>) {
        ctx.note_key(entry);
        if self.access.is_on() {
            ctx.logged_entry = Some(Arc::clone(entry));
        }
    }

    fn start_of<'r>(
        &'r self,
        message: &RequestMessage<'r>,
        ctx: &'r Ctx,
        entry: Option<&'r Entry>,
    ) -> RecordStart<'r> {
        let (api_key_id, workspace_id) = match entry {
            Some(entry) => (entry.key.id, &entry.key.workspace_id),
            None => (KeyId::NONE, WorkspaceId::none()),
        };
        RecordStart {
            id: ctx.id,
            request_id: ctx.request_id.to_str().unwrap_or(""),
            api_key_id,
            workspace_id,
            arrived: ctx.arrived,
            method: message.method.as_str(),
            endpoint: message.path,
            route: ctx.route_name(),
            ip_address: ctx.address,
            user_agent: message.fields.first(&USER_AGENT).unwrap_or_default(),
            node: &self.node,
            end_user_id: None,
            charged: false,
            degraded: false,
        }
    }
}

/// The content coding of a body; none if it is not supported.
pub(in crate::proxy) fn coding_of(fields: HeaderFields<'_>) -> Option<Coding> {
    Coding::of(fields.all(&CONTENT_ENCODING))
}

/// Whether more than a little of a body may have to be buffered.
fn buffers_body(route: &Route, length: Option<u64>) -> bool {
    route.end_user_field().is_some() || is_counted(length)
}

/// The request target to be forwarded, if it differs from the client's: it was in absolute form, or not in canonical
/// spelling.
fn canonical_target(header: &RequestHeader) -> Option<http::Uri> {
    let raw = header.raw_path();
    // Over HTTP/1.1 this has been done before.
    let escaped = escape_loose(raw);
    let written = escaped.as_deref().unwrap_or(raw);
    let (path, query) = split_target(written).ok()?;
    let path = canonical(path).ok()?;
    if raw.starts_with(path.as_bytes()) && !path.was_respelled() && escaped.is_none() {
        return None;
    }
    let mut target = path.into_string();
    if !query.is_empty() {
        target.push('?');
        target.push_str(std::str::from_utf8(query).ok()?);
    }
    // Over HTTP/2 the URI includes the authority, which is kept.
    let mut parts = header.uri.clone().into_parts();
    parts.path_and_query = Some(target.parse().ok()?);
    http::Uri::from_parts(parts).ok()
}

/// Checks of an HTTP/2 request that the HTTP/1.1 reader has made for HTTP/1.1 requests.
fn check_http2(message: &RequestMessage<'_>) -> Result<(), Denial> {
    if message.method.as_str().len() > METHOD_MAX {
        return Err(Denial::BadRequest(BadRequest::Syntax));
    }
    let mut lengths = message.fields.all(&CONTENT_LENGTH);
    let sound = lengths.next().is_none_or(|length| head::content_length(length).is_some());
    if !sound || lengths.next().is_some() {
        return Err(Denial::BadRequest(BadRequest::Framing));
    }
    let authority = message.authority.map(str::as_bytes);
    let mut hosts = message.fields.all(&HOST);
    let (host, second) = (hosts.next(), hosts.next());
    let differ = authority.zip(host).is_some_and(|(authority, host)| authority != host);
    if differ || second.is_some() || !authority.or(host).is_some_and(head::is_host) {
        return Err(Denial::BadRequest(BadRequest::Host));
    }
    Ok(())
}

fn request_id(given: &[u8]) -> Option<HeaderValue> {
    let is_fit = (1..=128).contains(&given.len()) && given.iter().all(u8::is_ascii_graphic);
    HeaderValue::from_bytes(given).ok().filter(|_| is_fit)
}
