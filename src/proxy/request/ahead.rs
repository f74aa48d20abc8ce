//! Requests that are admitted by what their body says: who the end user is, or what a language model may use.
//!
//! Must not know: how the body arrives.

use super::body::{ReadAhead, read_ahead};
use super::decide::coding_of;
use crate::gate::{Denied, NamedEndUser, Permit};
use crate::model::fault::Fault;
use crate::policy::http::coding::Coding;
use crate::policy::keys::credential::end_user_in_coded_body;
use crate::policy::keys::denial::Denial;
use crate::policy::meter::{
    MeterRule, RequestFacts, RequestReader, Unpriced, Unreadable, model_in_path, uses_nothing,
};
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::state::Proxy;
use bytes::Bytes;
use pingora::proxy::Session;
use std::io::Read as _;

/// Decoded bytes that are looked at at once.
const DECODED_AT_ONCE: usize = 4096;

impl Proxy {
    /// Whether the body must be read before the request is admitted.
    pub(in crate::proxy) fn has_to_read_first(
        &self,
        message: &RequestMessage<'_>,
        ctx: &Ctx,
        permit: &Permit,
    ) -> bool {
        message.has_body
            && (matches!(permit.end_user(), NamedEndUser::Body(_))
                || self.reads_for_meter(message, ctx, permit))
    }

    /// Whether it is to be read for what it says about its use, and can be.
    fn reads_for_meter(&self, message: &RequestMessage<'_>, ctx: &Ctx, permit: &Permit) -> bool {
        message.content_length().is_none_or(|length| length <= self.limits.end_user_body_bytes)
            && coding_of(message.fields).is_some()
            && self.is_looked_at(message, ctx, permit)
    }

    /// Whether the admission depends on what the request says about its use.
    fn is_looked_at(&self, message: &RequestMessage<'_>, ctx: &Ctx, permit: &Permit) -> bool {
        let rule =
            permit.route().meter.as_ref().filter(|rule| rule.is_llm() && !uses_nothing(message.method));
        rule.is_some_and(|rule| {
            rule.unpriced == Unpriced::Refuse || rule.clamp || self.gate.is_metered(permit, ctx.arrived.wall)
        })
    }

    /// Counts a request whose body should have been looked at, and could not be.
    pub(in crate::proxy) fn count_unreadable(
        &self,
        message: &RequestMessage<'_>,
        ctx: &Ctx,
        permit: &Permit,
    ) {
        if message.has_body && ctx.facts.is_none() && self.is_looked_at(message, ctx, permit) {
            self.metrics.meter_unreadable.with_label_values(&[Unreadable::Request.as_str()]).inc();
        }
    }

    /// Reads the body of a request that Pingora forwards, if its admission depends on it.
    pub(in crate::proxy) async fn read_first(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        permit: Permit,
    ) -> Result<(Permit, Option<Box<str>>), Box<Denied>> {
        let has_body = !session.is_body_empty();
        let message = RequestMessage::of(session.req_header(), has_body);
        if !self.has_to_read_first(&message, ctx, &permit) {
            let name = permit.end_user().outside_body();
            return Ok((permit, name));
        }
        let Some(connection) = ctx.connection.clone() else {
            return Err(permit.deny(Denial::Plain(Fault::Internal)));
        };
        let coding = coding_of(message.fields);
        let read = read_ahead(session, self.limits.end_user_body_bytes, &connection);
        self.read_body(ctx, permit, coding, read).await
    }

    /// Finds in a body what the admission depends on. `read` reads it. Returns the end user.
    pub(in crate::proxy) async fn read_body(
        &self,
        ctx: &mut Ctx,
        permit: Permit,
        coding: Option<Coding>,
        read: impl Future<Output = Result<ReadAhead, Denial>>,
    ) -> Result<(Permit, Option<Box<str>>), Box<Denied>> {
        // A buffered body counts as a request in flight: a key with one request in flight has at most one body
        // buffered.
        let (permit, place) = self.gate.hold(permit, ctx.arrived)?;
        let found = self.find_in_body(ctx, &permit, coding, read).await;
        drop(place);
        // Other requests have been charged meanwhile, so the charge uses the current time. The record keeps the time
        // of arrival. If a window has ended in between, this process counts the request in the later window, and a
        // process that starts in that window counts it in the earlier one.
        ctx.charged_at = self.clock.now();
        match found {
            Ok(name) => Ok((permit, name)),
            Err(denial) => Err(permit.deny(ctx.client_fault().unwrap_or(denial))),
        }
    }

    async fn find_in_body(
        &self,
        ctx: &mut Ctx,
        permit: &Permit,
        coding: Option<Coding>,
        read: impl Future<Output = Result<ReadAhead, Denial>>,
    ) -> Result<Option<Box<str>>, Denial> {
        let Some(connection) = &ctx.connection else { return Err(Denial::Plain(Fault::Internal)) };
        let names_end_user = matches!(permit.end_user(), NamedEndUser::Body(_));
        if names_end_user && coding.is_none() {
            return Err(Denial::ContentCoding);
        }
        // The key may be revoked while the body is awaited.
        connection.set_served_key(Some(permit.presented().clone()));
        ctx.is_read_ahead = true;
        let max = self.limits.end_user_body_bytes;
        let is_short = |body: &Bytes| u64::try_from(body.len()).is_ok_and(|length| length <= max);
        match read.await? {
            ReadAhead::Whole(body) if !names_end_user || is_short(&body) => ctx.body = Some(body),
            _ if names_end_user => return Err(Denial::Plain(Fault::PayloadTooLarge)),
            ReadAhead::Whole(start) | ReadAhead::TooLong(start) => ctx.body_start.bytes = Some(start),
        }
        self.gate.revalidate(permit.presented(), self.clock.now().wall)?;
        let (Some(body), Some(coding)) = (&ctx.body, coding) else {
            return Ok(permit.end_user().outside_body());
        };
        if is_short(body) && permit.route().meter.as_ref().is_some_and(MeterRule::is_llm) {
            ctx.facts = facts_of(body, coding, max).map(Box::new);
        }
        let Some(field) = permit.route().end_user_field().filter(|_| names_end_user) else {
            return Ok(permit.end_user().outside_body());
        };
        let found = end_user_in_coded_body(body, coding, max, field)?;
        Ok(found.map(Into::into).or_else(|| permit.end_user().outside_body()))
    }

    /// The model that the request names, as far as it has been looked at.
    pub(in crate::proxy) fn model_of(message: &RequestMessage<'_>, ctx: &Ctx) -> Option<Box<str>> {
        let in_body = ctx.facts.as_ref().and_then(|facts| facts.model.clone());
        in_body.or_else(|| model_in_path(message.path))
    }

    /// Refuses a request for a model without a price, if its route says so. Nothing is charged yet.
    pub(in crate::proxy) fn check_price(
        &self,
        message: &RequestMessage<'_>,
        ctx: &Ctx,
        permit: Permit,
    ) -> Result<Permit, Box<Denied>> {
        let rule =
            permit.route().meter.as_ref().filter(|rule| rule.is_llm() && !uses_nothing(message.method));
        if rule.is_none_or(|rule| rule.unpriced != Unpriced::Refuse) {
            return Ok(permit);
        }
        let model = Self::model_of(message, ctx).unwrap_or_default();
        if self.recorder.prices().find(&model).is_some() {
            return Ok(permit);
        }
        Err(permit.deny(Denial::Unpriced { model }))
    }
}

/// What a body says about its use; none if it cannot be read, or not within `max` decoded bytes.
pub(in crate::proxy) fn facts_of(body: &Bytes, coding: Coding, max: u64) -> Option<RequestFacts> {
    let mut reader = RequestReader::of_all();
    if coding == Coding::Identity {
        reader.push(body);
        return reader.finish();
    }
    let mut decoded = coding.decoded(body, max).ok()?;
    let mut piece = [0; DECODED_AT_ONCE];
    loop {
        let read = decoded.read(&mut piece).ok()?;
        if read == 0 {
            return reader.finish();
        }
        reader.push(&piece[..read]);
    }
}
