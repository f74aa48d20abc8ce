//! Calls of applications that ask by themselves: `POST /verify`, and `POST /settle` when it is known what was used.
//!
//! Must not know: what a hold is made of. A call to verify is decided, charged, recorded and refused like a request.

use super::{Exchange, Exchanged, read_ahead};
use crate::clock::Timestamp;
use crate::counter::LimitsLeft;
use crate::envelope::Envelope;
use crate::gate::{Admission, Denied};
use crate::model::fault::Fault;
use crate::model::id::RequestId;
use crate::model::key::Per;
use crate::model::scope::{Scopes, check_required};
use crate::model::tokens::TokenCounts;
use crate::policy::http::field_lines::EditFields as _;
use crate::policy::keys::authorize::{AuthorizationRequest, ResourceRequest};
use crate::policy::keys::credential::is_end_user;
use crate::policy::keys::denial::{Denial, limit_field, owner, whole_secs};
use crate::policy::keys::limit::{Limit, Remaining};
use crate::proxy::ctx::AskedHold;
use crate::proxy::message::ratelimit;
use crate::proxy::request::body::ReadAhead;
use crate::proxy::request::listener::empty;
use crate::proxy::request::outcome::release_permits;
use crate::proxy::response::reply::{DEGRADED, Reply};
use crate::proxy::state::Proxy;
use crate::proxy::verified::{Ended, VerifiedHold};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::{HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use uuid::Uuid;

/// Longest body of a call, in bytes.
const BODY_MAX: u64 = 64 * 1024;
/// Most tokens of a kind in one call.
const TOKENS_MAX: u64 = 1_000_000_000_000;
/// Longest name of a model, in bytes.
const MODEL_MAX: usize = 256;

/// What an application asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApplicationCall {
    Verify,
    Settle,
}

/// The body of a call to verify.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifyInput {
    key: String,
    #[serde(default)]
    scopes: Vec<String>,
    resource: Option<String>,
    #[serde(default)]
    any_resource: bool,
    end_user: Option<String>,
    address: Option<IpAddr>,
    hold: Option<HoldInput>,
}

/// What the application may use.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HoldInput {
    #[serde(default)]
    model: String,
    #[serde(default)]
    input_tokens: u64,
    #[serde(default)]
    max_output_tokens: u64,
}

/// The body of a call to settle.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettleInput {
    hold: Uuid,
    model: Option<String>,
    #[serde(default)]
    input_tokens: u64,
    #[serde(default)]
    cached_tokens: u64,
    #[serde(default)]
    cache_write_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
    #[serde(default)]
    reasoning_tokens: u64,
}

impl ApplicationCall {
    /// The call with this path.
    pub(super) fn at(path: &str) -> Option<Self> {
        match path {
            "/verify" => Some(Self::Verify),
            "/settle" => Some(Self::Settle),
            _ => None,
        }
    }
}

impl Exchange<'_> {
    /// Serves a call of an application.
    pub(super) async fn serve_application(&mut self, call: ApplicationCall) -> Exchanged {
        let answered = self.answer_application(call).await;
        self.server.proxy.record_decision_time(self.ctx);
        match answered {
            Ok(reply) => {
                release_permits(self.ctx);
                self.answer(&reply).await
            }
            Err(denied) => self.refuse(&denied).await,
        }
    }

    async fn answer_application(&mut self, call: ApplicationCall) -> Result<Reply, Box<Denied>> {
        let early = |denial| Denied::early(denial, None);
        if *self.message.method != Method::POST {
            return Err(early(Denial::MethodNotAllowed("POST".into())));
        }
        if !self.server.proxy.applications.admits(self.message.fields) {
            return Err(early(Denial::Plain(Fault::DecideTokenInvalid)));
        }
        let body = self.read_call().await.map_err(early)?;
        match call {
            ApplicationCall::Verify => self.verify(&body).await,
            ApplicationCall::Settle => self.settle(&body).map_err(early),
        }
    }

    async fn read_call(&mut self) -> Result<Bytes, Denial> {
        let expects = self.message.fields.first(&EXPECT).is_some();
        match read_ahead(self.client, self.connection, &mut self.body, BODY_MAX, expects).await? {
            ReadAhead::Whole(body) => Ok(body),
            ReadAhead::TooLong(_) => Err(Denial::Plain(Fault::PayloadTooLarge)),
        }
    }

    async fn verify(&mut self, body: &[u8]) -> Result<Reply, Box<Denied>> {
        let proxy = Arc::clone(self.server.proxy);
        let applications = &proxy.applications;
        let early = |denial| Denied::early(denial, None);
        let input: VerifyInput = parsed(body).map_err(early)?;
        let scopes = input.check().map_err(early)?;
        self.ctx.route = Some(Arc::clone(&applications.route));
        if let Some(address) = input.address {
            self.ctx.address = address;
        }
        let asked = AuthorizationRequest {
            scopes: &scopes,
            resource: match &input.resource {
                _ if input.any_resource => ResourceRequest::Any,
                None => ResourceRequest::None,
                Some(resource) => ResourceRequest::For(Some(resource)),
            },
            address: self.ctx.address,
            at: self.ctx.arrived.wall,
        };
        let permit = proxy.gate.verify(input.key.as_bytes(), &asked, &applications.route);
        let permit = permit.map_err(|denied| proxy.limit_invalid_keys(denied, self.ctx))?;
        if input.hold.is_some() && !applications.holds.has_room() {
            return Err(permit.deny(Denial::Plain(Fault::ServiceUnavailable)));
        }
        self.ctx.asked_hold = input.hold.as_ref().map(|hold| {
            let model = hold.model.as_str().into();
            Box::new(AskedHold { model, input: hold.input_tokens, max_output: hold.max_output_tokens })
        });
        let end_user = input.end_user.as_deref().map(Into::into);
        proxy.admit(&self.message, self.ctx, permit, end_user).await?;
        let hold = self.keep_hold(&proxy, &input);
        let internal = |_| early(Denial::Plain(Fault::Internal));
        let Some(admission) = &self.ctx.admission else { return Err(early(Denial::Plain(Fault::Internal))) };
        let data = json!({
            "allowed": true,
            "request_id": self.ctx.request_id.to_str().unwrap_or_default(),
            "node": &*proxy.node,
            "key": key_of(admission),
            "end_user": end_user_of(admission),
            "limits": limits_of(admission.left()),
            "degraded": self.ctx.degraded,
            "hold": hold,
        });
        let mut reply = self.ok(data, proxy.clock.now().wall);
        ratelimit::write(
            &mut reply.fields,
            proxy.limits.families,
            admission.left(),
            self.ctx.charged_at,
            None,
        )
        .map_err(internal)?;
        if self.ctx.degraded {
            reply.fields.insert(DEGRADED.0, DEGRADED.1);
        }
        Ok(reply)
    }

    /// Keeps what the call holds, with its record, until that is settled.
    fn keep_hold(&mut self, proxy: &Proxy, input: &VerifyInput) -> Value {
        let Some(admission) = &mut self.ctx.admission else { return Value::Null };
        let Some(asked) = &input.hold else { return Value::Null };
        let key = admission.entry().key.id;
        let (Some(hold), Some(record)) = (admission.take_hold(), self.ctx.record.take()) else {
            return Value::Null;
        };
        let holds = &proxy.applications.holds;
        let model = asked.model.as_str().into();
        let kept = VerifiedHold::new(record, key, hold, model, Arc::clone(&proxy.metrics));
        let told = json!({
            "id": self.ctx.id.0,
            "expires_in": holds.timeout.as_secs(),
        });
        holds.add(self.ctx.id, kept, proxy.clock.now().steady_ns);
        told
    }

    fn settle(&mut self, body: &[u8]) -> Result<Reply, Denial> {
        let proxy = self.server.proxy;
        let input: SettleInput = parsed(body)?;
        let tokens = input.tokens()?;
        let model = input.model.as_deref().map(Arc::from);
        match proxy.applications.holds.settle(RequestId(input.hold), tokens, model) {
            Ended::Unknown => Err(Denial::HoldUnknown { node: proxy.node.clone() }),
            ended => {
                let data =
                    json!({ "settled": true, "repeated": ended == Ended::Before, "node": &*proxy.node });
                Ok(self.ok(data, proxy.clock.now().wall))
            }
        }
    }

    /// A response of success with this content.
    fn ok(&self, data: Value, at: Timestamp) -> Reply {
        let body = serde_json::to_vec(&Envelope::ok(data, at)).unwrap_or_default();
        let mut reply = empty(StatusCode::OK, self.ctx);
        reply.fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        reply.fields.insert(CONTENT_LENGTH, body.len().into());
        Reply { body: body.into(), ..reply }
    }
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Denial> {
    serde_json::from_slice(body).map_err(|error| input("body", &error.to_string()))
}

fn input(field: &str, why: &str) -> Denial {
    Denial::Input { field: field.into(), why: why.into() }
}

impl VerifyInput {
    /// Checks what its types do not; returns the scopes.
    fn check(&self) -> Result<Scopes, Denial> {
        if self.key.is_empty() {
            return Err(input("key", "must not be empty"));
        }
        if self.any_resource && self.resource.is_some() {
            return Err(input("any_resource", "excludes resource"));
        }
        if self.end_user.as_deref().is_some_and(|name| !is_end_user(name)) {
            return Err(input("end_user", "must have 1 to 255 characters, none of them a control character"));
        }
        if let Some(hold) = &self.hold {
            check_model(&hold.model, "hold.model")?;
            check_tokens(hold.input_tokens, "hold.input_tokens")?;
            check_tokens(hold.max_output_tokens, "hold.max_output_tokens")?;
        }
        Scopes::of(self.scopes.iter().map(String::as_str), check_required)
            .map_err(|(place, bad)| input(&format!("scopes[{place}]"), &bad.to_string()))
    }
}

impl SettleInput {
    /// What was used.
    fn tokens(&self) -> Result<TokenCounts, Denial> {
        check_model(self.model.as_deref().unwrap_or_default(), "model")?;
        check_tokens(self.input_tokens, "input_tokens")?;
        check_tokens(self.output_tokens, "output_tokens")?;
        if self.cached_tokens.saturating_add(self.cache_write_tokens) > self.input_tokens {
            return Err(input("cached_tokens", "must be a part of input_tokens, like cache_write_tokens"));
        }
        if self.reasoning_tokens > self.output_tokens {
            return Err(input("reasoning_tokens", "must be a part of output_tokens"));
        }
        Ok(TokenCounts {
            total: self.input_tokens + self.output_tokens,
            input: self.input_tokens,
            cached: self.cached_tokens,
            cache_write: self.cache_write_tokens,
            output: self.output_tokens,
            reasoning: self.reasoning_tokens,
            audio: 0,
        })
    }
}

fn check_tokens(count: u64, field: &str) -> Result<(), Denial> {
    if count > TOKENS_MAX {
        return Err(input(field, &format!("must be at most {TOKENS_MAX}")));
    }
    Ok(())
}

fn check_model(model: &str, field: &str) -> Result<(), Denial> {
    if model.len() > MODEL_MAX || model.chars().any(char::is_control) {
        return Err(input(field, &format!("must have at most {MODEL_MAX} bytes and no control characters")));
    }
    Ok(())
}

fn key_of(admission: &Admission) -> Value {
    let entry = admission.entry();
    json!({
        "id": entry.key.id.0,
        "type": entry.key.kind.as_str(),
        "workspace_id": entry.key.workspace_id.as_str(),
        "scopes": entry.key.scopes.iter().collect::<Vec<_>>(),
        "resource_id": &*entry.key.resource_id,
        "created_by": &*entry.details.created_by,
    })
}

fn end_user_of(admission: &Admission) -> Value {
    match (admission.end_user(), admission.end_user_name()) {
        (Some(id), Some(name)) => json!({ "id": id.0, "other_id": name }),
        _ => Value::Null,
    }
}

fn limits_of(left: &LimitsLeft) -> Vec<Value> {
    left.iter().map(|(limit, left)| limit_of(limit, left)).collect()
}

fn limit_of(limit: &Limit, left: &Remaining) -> Value {
    json!({
        "limit": limit_field(limit.name),
        "count": limit.count.as_str(),
        "of": owner(limit.name).as_str(),
        "per": limit.per().map(Per::as_str),
        "max": limit.max(),
        "remaining": left.units,
        "resets_in": left.reset.map(whole_secs),
    })
}
