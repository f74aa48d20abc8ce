//! The body of an error response, in the form that the route's clients understand.
//!
//! Must not know: HTTP messages. Status and header fields are those of [`super::reply`], whatever the form.

use crate::clock::Timestamp;
use crate::envelope::Envelope;
use crate::model::fault::{ErrorForm, Fault, Lang};
use crate::policy::keys::denial::Denial;
use serde::Serialize;
use serde_json::{Value, json};

/// Usual size of a body, in bytes.
const BODY: usize = 512;

/// What a body says.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct ErrorParts<'d> {
    pub(in crate::proxy) denial: &'d Denial,
    pub(in crate::proxy) lang: Lang,
    pub(in crate::proxy) request_id: &'d str,
    pub(in crate::proxy) at: Timestamp,
}

/// The media type of a form.
pub(in crate::proxy) const fn media_type(form: ErrorForm) -> &'static str {
    match form {
        ErrorForm::Problem => "application/problem+json",
        _ => "application/json",
    }
}

/// The body as bytes.
pub(in crate::proxy) fn body(form: ErrorForm, parts: &ErrorParts<'_>) -> Vec<u8> {
    match form {
        ErrorForm::Envelope => {
            let message = parts.denial.message(parts.lang);
            written(&Envelope::fault(parts.denial.fault(), message, parts.denial.detail(), parts.at))
        }
        ErrorForm::OpenAi => written(&openai(parts)),
        ErrorForm::Anthropic => written(&anthropic(parts)),
        ErrorForm::Problem => written(&problem(parts)),
    }
}

/// The status that a gRPC caller gets, with its number.
/// <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>
pub(in crate::proxy) const fn grpc_status(fault: Fault) -> u16 {
    match fault.status() {
        // INVALID_ARGUMENT
        400 | 411 | 415 => 3,
        // DEADLINE_EXCEEDED
        408 | 504 => 4,
        // PERMISSION_DENIED
        403 => 7,
        // RESOURCE_EXHAUSTED
        402 | 413 | 414 | 429 | 431 => 8,
        // UNIMPLEMENTED
        404 | 405 | 501 => 12,
        // UNAVAILABLE
        502 | 503 => 14,
        // UNAUTHENTICATED
        401 => 16,
        // INTERNAL
        _ => 13,
    }
}

/// `{"error": {"message", "type", "param", "code"}}`. Programs compare `code`, where `OpenAI` has a word for the fault it is
/// that word; `details` is ours.
fn openai(parts: &ErrorParts<'_>) -> Value {
    let fault = parts.denial.fault();
    let (kind, code) = match fault {
        Fault::KeyInvalid | Fault::KeyMissing => ("invalid_request_error", "invalid_api_key"),
        Fault::QuotaExceeded => ("insufficient_quota", "insufficient_quota"),
        _ => (openai_type(fault.status()), fault.name()),
    };
    json!({ "error": {
        "message": parts.denial.message(parts.lang),
        "type": kind,
        "param": null,
        "code": code,
        "details": details(parts),
    }})
}

const fn openai_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

/// `{"type": "error", "error": {"type", "message"}, "request_id"}`
fn anthropic(parts: &ErrorParts<'_>) -> Value {
    let kind = match parts.denial.fault().status() {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({
        "type": "error",
        "error": {
            "type": kind,
            "message": parts.denial.message(parts.lang),
            "details": details(parts),
        },
        "request_id": parts.request_id,
    })
}

/// Problem details (RFC 9457). The type is a name, because there is no page that every gateway could point to.
fn problem(parts: &ErrorParts<'_>) -> Value {
    let fault = parts.denial.fault();
    json!({
        "type": format!("urn:keygate:error:{}", fault.name()),
        "title": fault.message(parts.lang),
        "status": fault.status(),
        "detail": parts.denial.message(parts.lang),
        "request_id": parts.request_id,
        "code": fault.code(),
        "error": fault.name(),
        "data": parts.denial.detail(),
    })
}

/// What the envelope says besides the message, for forms that have no place of their own for it.
fn details(parts: &ErrorParts<'_>) -> Value {
    let fault = parts.denial.fault();
    json!({ "error": fault.name(), "code": fault.code(), "data": parts.denial.detail() })
}

fn written(body: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BODY);
    // Texts, numbers and values that were made here always can be written.
    let written = serde_json::to_writer(&mut bytes, body);
    debug_assert!(written.is_ok());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::key::{Measure, Per};
    use crate::policy::keys::limit::{Limit, LimitName, LimitReached, LimitRule, RetryAfter};

    fn shown(form: ErrorForm, denial: &Denial) -> Value {
        let at = Timestamp::from_secs(1);
        let parts = ErrorParts { denial, lang: Lang::En, request_id: "r-1", at };
        serde_json::from_slice(&body(form, &parts)).expect("JSON")
    }

    fn spent_quota() -> Denial {
        let rule = LimitRule::Window { per: Per::Total, max: 5 };
        let limit = Limit { name: LimitName::Quota, count: Measure::Requests, rule };
        Denial::Limit(LimitReached { limit, retry: RetryAfter::Never }, None)
    }

    #[test]
    fn each_form_says_the_same() {
        for (form, message) in [
            (ErrorForm::Envelope, "/msg"),
            (ErrorForm::OpenAi, "/error/message"),
            (ErrorForm::Anthropic, "/error/message"),
            (ErrorForm::Problem, "/detail"),
        ] {
            for (denial, text) in [
                (spent_quota(), "The key's 5 requests are used up"),
                (Denial::KeyInvalid, "The API key is not valid"),
            ] {
                let body = shown(form, &denial);
                assert_eq!(body.pointer(message).and_then(Value::as_str), Some(text), "{form} {body}");
                assert!(body.to_string().contains(denial.fault().name()), "{form} {body}");
            }
        }
    }

    #[test]
    fn openai_clients_find_their_words() {
        for (denial, kind, code) in [
            (Denial::KeyInvalid, "invalid_request_error", "invalid_api_key"),
            (spent_quota(), "insufficient_quota", "insufficient_quota"),
            (Denial::Resource, "permission_error", "api_key_invalid_resource"),
            (Denial::Plain(Fault::BadGateway), "server_error", "bad_gateway"),
        ] {
            let body = shown(ErrorForm::OpenAi, &denial);
            assert_eq!(body["error"]["type"], kind);
            assert_eq!(body["error"]["code"], code);
            assert_eq!(body["error"]["param"], Value::Null);
        }
    }

    #[test]
    fn anthropic_clients_find_their_words() {
        for (denial, kind) in [
            (Denial::KeyMissing, "authentication_error"),
            (spent_quota(), "rate_limit_error"),
            (Denial::RouteNotFound, "not_found_error"),
            (Denial::Plain(Fault::PayloadTooLarge), "request_too_large"),
            (Denial::Plain(Fault::ServiceUnavailable), "overloaded_error"),
            (Denial::Plain(Fault::Internal), "api_error"),
        ] {
            let body = shown(ErrorForm::Anthropic, &denial);
            assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!(kind)));
            assert_eq!(body["request_id"], "r-1");
        }
    }

    #[test]
    fn problems_have_the_members_of_the_rfc() {
        let body = shown(ErrorForm::Problem, &spent_quota());
        assert_eq!(body["type"], "urn:keygate:error:quota_exceeded");
        assert_eq!(body["title"], "The key's request quota is used up");
        assert_eq!(body["status"], 429);
        assert_eq!(body["data"]["limit"], "quota_limit");
    }

    #[test]
    fn every_fault_has_a_grpc_status() {
        for (fault, status) in [
            (Fault::KeyInvalid, 16),
            (Fault::KeyInvalidScope, 7),
            (Fault::RateLimitExceeded, 8),
            (Fault::EndUserQuotaExceeded, 8),
            (Fault::RouteNotFound, 12),
            (Fault::BadRequest, 3),
            (Fault::BadGateway, 14),
            (Fault::GatewayTimeout, 4),
            (Fault::Internal, 13),
        ] {
            assert_eq!(grpc_status(fault), status, "{}", fault.name());
        }
    }
}
