//! What Envoy is told: of a request that passes, what to change in it so that the backend gets what a backend of Keygate gets; of
//! another, the answer for its client.

use super::message::{
    BoolValue, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus, OkHttpResponse,
    Status,
};
use crate::policy::http::field_lines::{EditFields as _, FieldLines, FieldList};
use crate::policy::http::fields::HeaderFields;
use crate::proxy::ctx::Ctx;
use crate::proxy::message::RequestMessage;
use crate::proxy::message::headers::X_REQUEST_ID;
use crate::proxy::response::error_body::grpc_status;
use crate::proxy::response::reply::{DEGRADED, Reply};
use http::HeaderName;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH};

/// The answer to a call about `message`.
pub(super) fn of(message: &RequestMessage<'_>, ctx: &Ctx, reply: &Reply) -> CheckResponse {
    match ctx.fault {
        None => passes(message, ctx, &reply.fields),
        Some(fault) => {
            let status = Status { code: grpc_status(fault).into(), message: fault.name().into() };
            CheckResponse { status: Some(status), denied_response: Some(denied(reply)), ok_response: None }
        }
    }
}

fn passes(message: &RequestMessage<'_>, ctx: &Ctx, told: &FieldList) -> CheckResponse {
    // The backend's response has a body and a framing of its own.
    let of_decision = |name: &HeaderName| [CONTENT_LENGTH, CACHE_CONTROL].contains(name);
    let identifies = |name: &HeaderName| name.as_str().starts_with("x-keygate-") && *name != DEGRADED.0;
    let for_client = told.iter().filter(|(name, _)| !of_decision(name) && !identifies(name));
    // What is empty claims nothing.
    let for_backend =
        told.iter().filter(|(name, value)| (identifies(name) || **name == X_REQUEST_ID) && !value.is_empty());
    let mut headers = options(for_backend);
    let set: Vec<String> =
        headers.iter().filter_map(|option| Some(option.header.as_ref()?.key.clone())).collect();
    // A client may claim nothing either, and Envoy does not always tell what it has sent.
    let is_empty = told.iter().filter(|(name, value)| identifies(name) && value.is_empty());
    let mut headers_to_remove: Vec<String> = is_empty.map(|(name, _)| name.as_str().to_owned()).collect();
    if let (HeaderFields::List(sent), Some(route)) = (message.fields, &ctx.route) {
        let mut left = FieldLines::new(sent.iter().copied());
        ctx.routing.headers.clean(&mut left, route, true);
        for (n, (name, _)) in sent.iter().enumerate() {
            let Ok(name) = HeaderName::from_bytes(name) else { continue };
            let is_first = sent[..n].iter().all(|(earlier, _)| *earlier != name.as_str().as_bytes());
            let is_done = |all: &[String]| all.iter().any(|done| *done == name.as_str());
            if !is_first || is_done(&set) || is_done(&headers_to_remove) {
                continue;
            }
            let before: Vec<&[u8]> = message.fields.all(&name).collect();
            let after: Vec<&[u8]> = left.values(&name).collect();
            if after.is_empty() {
                headers_to_remove.push(name.as_str().to_owned());
            } else if after != before
                && let Ok(value) = http::HeaderValue::from_bytes(&after.join(&b", "[..]))
            {
                headers.extend(options([(&name, &value)].into_iter()));
            }
        }
    }
    let ok = OkHttpResponse { headers, headers_to_remove, response_headers_to_add: options(for_client) };
    CheckResponse { status: Some(Status::default()), denied_response: None, ok_response: Some(ok) }
}

fn denied(reply: &Reply) -> DeniedHttpResponse {
    // Envoy frames the body itself.
    let fields = reply.fields.iter().filter(|(name, _)| **name != CONTENT_LENGTH);
    DeniedHttpResponse {
        status: Some(HttpStatus { code: reply.status.as_u16().into() }),
        headers: options(fields),
        body: String::from_utf8_lossy(&reply.body).into_owned(),
    }
}

/// Fields that replace those of their names; a name that occurs again is added.
fn options<'f>(
    fields: impl Iterator<Item = (&'f HeaderName, &'f http::HeaderValue)>,
) -> Vec<HeaderValueOption> {
    let mut all: Vec<HeaderValueOption> = Vec::new();
    for (name, value) in fields {
        // Ours are text; Envoy takes no others.
        let Ok(value) = value.to_str() else { continue };
        let is_again = all.iter().any(|o| o.header.as_ref().is_some_and(|h| h.key == name.as_str()));
        let header =
            HeaderValue { key: name.as_str().to_owned(), value: value.to_owned(), ..HeaderValue::default() };
        all.push(HeaderValueOption { header: Some(header), append: Some(BoolValue { value: is_again }) });
    }
    all
}
