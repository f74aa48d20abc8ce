//! Every reason to refuse a request, and what the client is told.
//!
//! One closed enum. Status, code, name and standard message come from the table in [`crate::model::fault`]. Here are the
//! details of each case: data for programs, the message, and when to retry.

use super::limit::{LimitName, LimitReached, Remaining, RetryAfter};
use crate::model::fault::{Fault, Lang};
use crate::model::key::{Measure, Owner, Per};
use crate::model::scope::Scopes;
use crate::policy::http::coding::CODINGS;
use crate::policy::http::head::BadHead;
use crate::policy::http::original::BadOriginal;
use crate::policy::http::path::{BadPath, shown};
use http::HeaderName;
use serde::Serialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

/// A refusal.
#[derive(Clone, Debug, PartialEq)]
pub enum Denial {
    /// The request is malformed.
    BadRequest(BadRequest),
    /// No route matches.
    RouteNotFound,
    /// The path has routes, for these methods only.
    MethodNotAllowed(Box<str>),
    /// No secret was presented.
    KeyMissing,
    /// The secret is unknown or malformed, or its key is deleted.
    KeyInvalid,
    /// The same, and this address has sent too many; it must wait this long.
    TooManyInvalid(Duration),
    /// Too many preflights without a key from this address; it must wait this long.
    TooManyPreflights(Duration),
    /// Too many requests on public routes from this address; it must wait this long.
    TooManyPublic(Duration),
    /// The key is disabled.
    KeyInactive,
    /// The key has expired.
    KeyExpired,
    /// The key lacks these scopes.
    Scope(Scopes),
    /// The key is bound to another resource than the request names.
    Resource,
    /// The key may not be used from this address.
    Address(IpAddr),
    /// The key is bound to another end user than the request names.
    EndUser,
    /// A limit is used up; with what is left of it.
    Limit(LimitReached, Option<Remaining>),
    /// The end user is new and the plan's quota is reached.
    EndUserQuota {
        /// The plan's `end_user_quota`.
        quota: u64,
    },
    /// The model that the request names has no price, which its route requires. Empty: it names none that can be read.
    Unpriced {
        /// The model.
        model: Box<str>,
    },
    /// The body must be read here and has an unsupported content coding.
    ContentCoding,
    /// A field of a call of an application is not valid.
    Input {
        /// The field.
        field: Box<str>,
        /// What is allowed.
        why: Box<str>,
    },
    /// This node has no hold with the id of the call.
    HoldUnknown {
        /// Its name.
        node: Box<str>,
    },
    /// A fault without further details.
    Plain(Fault),
}

/// The details of a refusal.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum DenialDetail {
    /// Of a limit. A flood gets millions of them, so they are written without a map in between.
    Limit(LimitDetail),
    /// Of another reason.
    Other(Value),
}

/// Which limit refuses, and what is left of it.
#[derive(Debug, Serialize)]
pub struct LimitDetail {
    count: &'static str,
    limit: &'static str,
    max: u64,
    of: &'static str,
    per: Option<&'static str>,
    remaining: Option<u64>,
    resets_in: Option<u64>,
    retry_after: Option<u64>,
    set_by: &'static str,
}

/// Why a request is malformed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// The path or query.
    Path(BadPath),
    /// Two different credentials, in these header fields.
    TwoCredentials(Box<[HeaderName; 2]>),
    /// It is not valid HTTP.
    Syntax,
    /// The length of the message is given twice, wrongly, or in two ways.
    Framing,
    /// HTTP/1.1 without exactly one valid `Host`, or it differs from the target.
    Host,
    /// `Connection` names a field that it must not name.
    Connection,
    /// The connection of a trusted proxy began without a PROXY protocol header.
    ProxyHeader,
    /// The header field with the end user is repeated, empty or too long.
    EndUserHeader,
    /// The query parameter with the end user is repeated, empty or too long.
    EndUserQuery,
    /// The body names no end user where one is expected, or is not a JSON object.
    EndUserBody,
    /// The call of a proxy that asks for a decision does not state the request.
    Original(BadOriginal),
}

// === impl Denial ===

impl From<BadHead> for Denial {
    fn from(bad: BadHead) -> Self {
        match bad {
            BadHead::Syntax => Self::BadRequest(BadRequest::Syntax),
            BadHead::Framing => Self::BadRequest(BadRequest::Framing),
            BadHead::Host => Self::BadRequest(BadRequest::Host),
            BadHead::Connection => Self::BadRequest(BadRequest::Connection),
            BadHead::Target(bad_path) => Self::BadRequest(BadRequest::Path(bad_path)),
            BadHead::Coding | BadHead::Connect => Self::Plain(Fault::NotImplemented),
            BadHead::Fields => Self::Plain(Fault::HeadersTooLarge),
        }
    }
}

impl Denial {
    /// The fault in the table.
    pub const fn fault(&self) -> Fault {
        match self {
            Self::BadRequest(_) => Fault::BadRequest,
            Self::RouteNotFound => Fault::RouteNotFound,
            Self::MethodNotAllowed(_) => Fault::MethodNotAllowed,
            Self::KeyMissing => Fault::KeyMissing,
            Self::KeyInvalid => Fault::KeyInvalid,
            Self::TooManyInvalid(_) | Self::TooManyPreflights(_) | Self::TooManyPublic(_) => {
                Fault::RateLimitExceeded
            }
            Self::KeyInactive => Fault::KeyInactive,
            Self::KeyExpired => Fault::KeyExpired,
            Self::Scope(_) => Fault::KeyInvalidScope,
            Self::Resource => Fault::KeyInvalidResource,
            Self::Address(_) => Fault::AddressNotAllowed,
            Self::EndUser => Fault::EndUserNotAllowed,
            Self::Limit(refused, _) => match refused.limit.name {
                LimitName::Rate { .. } => Fault::RateLimitExceeded,
                LimitName::Daily => Fault::DailyLimitExceeded,
                LimitName::Quota => Fault::QuotaExceeded,
                LimitName::Concurrency
                | LimitName::Key(_)
                | LimitName::PlanKey(_)
                | LimitName::Workspace(_)
                | LimitName::EndUser(_) => Fault::LimitExceeded,
            },
            Self::EndUserQuota { .. } => Fault::EndUserQuotaExceeded,
            Self::Unpriced { .. } => Fault::ModelUnpriced,
            Self::ContentCoding => Fault::UnsupportedMediaType,
            Self::Input { .. } => Fault::ValidationFailed,
            Self::HoldUnknown { .. } => Fault::HoldNotFound,
            Self::Plain(fault) => *fault,
        }
    }

    /// The message for people.
    pub fn message(&self, lang: Lang) -> Cow<'static, str> {
        match self {
            Self::BadRequest(what) => what.message(lang),
            Self::TooManyInvalid(_) => match lang {
                Lang::En => "Too many invalid API keys came from this address".into(),
                Lang::Zh => "来自该地址的无效 API 密钥过多".into(),
            },
            Self::TooManyPreflights(_) => match lang {
                Lang::En => "Too many preflight requests came from this address".into(),
                Lang::Zh => "来自该地址的预检请求过多".into(),
            },
            Self::TooManyPublic(_) => match lang {
                Lang::En => "Too many requests without an API key came from this address".into(),
                Lang::Zh => "来自该地址的无密钥请求过多".into(),
            },
            Self::Scope(lacking) => match lang {
                Lang::En => format!("The API key lacks the scope {}", lacking.joined()),
                Lang::Zh => format!("API 密钥缺少权限范围 {}", lacking.joined()),
            }
            .into(),
            Self::Limit(refused, _) => limit_message(refused, lang).into(),
            Self::EndUserQuota { quota } => match lang {
                Lang::En => {
                    format!("The workspace's plan has no room for another end user: it allows {quota}")
                }
                Lang::Zh => format!("工作空间套餐的终端用户数量已满：最多 {quota} 个"),
            }
            .into(),
            Self::Unpriced { model } if !model.is_empty() => match lang {
                Lang::En => format!("The model {model} has no price here"),
                Lang::Zh => format!("模型 {model} 在此没有定价"),
            }
            .into(),
            Self::ContentCoding => match lang {
                Lang::En => "The body must come as it is or in one coding: gzip, deflate or zstd",
                Lang::Zh => "请求体必须未经编码，或仅使用一种编码：gzip、deflate 或 zstd",
            }
            .into(),
            Self::Input { field, why } => match lang {
                Lang::En => format!("{}: {field} {why}", Fault::ValidationFailed.message(lang)),
                Lang::Zh => format!("{}：{field} {why}", Fault::ValidationFailed.message(lang)),
            }
            .into(),
            other => other.fault().message(lang).into(),
        }
    }

    /// The details for programs.
    pub fn detail(&self) -> DenialDetail {
        match self {
            Self::Limit(refused, left) => DenialDetail::Limit(LimitDetail {
                count: refused.limit.count.as_str(),
                limit: limit_field(refused.limit.name),
                max: refused.limit.max(),
                of: owner(refused.limit.name).as_str(),
                per: refused.limit.per().map(Per::as_str),
                remaining: left.map(|left| left.units),
                resets_in: left.and_then(|left| left.reset).map(whole_secs),
                retry_after: self.retry_after_secs(),
                set_by: set_by(refused.limit.name),
            }),
            _ => DenialDetail::Other(self.other_detail()),
        }
    }

    fn other_detail(&self) -> Value {
        match self {
            Self::BadRequest(BadRequest::TwoCredentials(headers)) => json!({
                "reason": "two_credentials",
                "headers": headers.iter().map(HeaderName::as_str).collect::<Vec<_>>(),
                "setting": "secret_from",
            }),
            Self::BadRequest(BadRequest::Original(bad)) => {
                json!({ "reason": "original_request", "field": bad.field() })
            }
            Self::BadRequest(what) => json!({ "reason": what.reason() }),
            Self::MethodNotAllowed(allowed) => json!({ "allow": allowed }),
            Self::Scope(lacking) => {
                json!({ "missing_scopes": lacking.iter().collect::<Vec<_>>() })
            }
            Self::Address(address) => json!({ "address": address }),
            Self::TooManyInvalid(_) => {
                json!({ "limit": "invalid_keys", "set_by": "gateway", "retry_after": self.retry_after_secs() })
            }
            Self::TooManyPreflights(_) => {
                json!({ "limit": "preflights", "set_by": "gateway", "retry_after": self.retry_after_secs() })
            }
            Self::TooManyPublic(_) => {
                json!({ "limit": "public_requests", "set_by": "gateway", "retry_after": self.retry_after_secs() })
            }
            Self::EndUserQuota { quota } => {
                json!({ "limit": "end_user_quota", "max": quota, "set_by": "plan" })
            }
            Self::Unpriced { model } if !model.is_empty() => json!({ "model": model }),
            Self::ContentCoding => json!({ "accept_encoding": CODINGS }),
            Self::Input { field, why } => json!({ "errors": [{ "field": field, "message": why }] }),
            Self::HoldUnknown { node } => json!({ "node": node }),
            _ => json!({}),
        }
    }

    /// When the same request would be admitted; none if waiting does not help.
    ///
    /// For requests in flight, a second is only a hint when to try again.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyInvalid(wait)
            | Self::TooManyPreflights(wait)
            | Self::TooManyPublic(wait)
            | Self::Limit(LimitReached { retry: RetryAfter::Wait(wait), .. }, _) => Some(*wait),
            Self::Limit(LimitReached { retry: RetryAfter::Release, .. }, _)
            | Self::Plain(Fault::ServiceUnavailable) => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The same in whole seconds, at least 1.
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after().map(|wait| whole_secs(wait).max(1))
    }
}

/// Seconds, rounded up, so that waiting this long is enough.
pub fn whole_secs(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// The field that sets a limit.
pub const fn limit_field(name: LimitName) -> &'static str {
    match name {
        LimitName::Rate { plan: false } => "rate_limit",
        LimitName::Rate { plan: true } => "api_ops_rate_limit",
        LimitName::Daily => "daily_request_limit",
        LimitName::Quota => "quota_limit",
        LimitName::Concurrency => "concurrency_limit",
        LimitName::Key(_) | LimitName::PlanKey(_) | LimitName::Workspace(_) | LimitName::EndUser(_) => {
            "limits"
        }
    }
}

/// Whose usage a limit counts.
pub const fn owner(name: LimitName) -> Owner {
    match name {
        LimitName::Workspace(_) => Owner::Workspace,
        LimitName::EndUser(_) => Owner::EndUser,
        _ => Owner::Key,
    }
}

fn set_by(name: LimitName) -> &'static str {
    match name {
        LimitName::Rate { plan: true }
        | LimitName::PlanKey(_)
        | LimitName::Workspace(_)
        | LimitName::EndUser(_) => "plan",
        _ => "key",
    }
}

fn limit_message(refused: &LimitReached, lang: Lang) -> String {
    let max = refused.limit.max();
    let per = refused.limit.per();
    match (refused.limit.name, lang) {
        (LimitName::Rate { plan: false }, Lang::En) => {
            format!("Too many requests: the key allows {max} per second")
        }
        (LimitName::Rate { plan: false }, Lang::Zh) => format!("请求过于频繁：密钥每秒最多 {max} 次"),
        (LimitName::Rate { plan: true }, Lang::En) => {
            format!("Too many requests: the workspace's plan allows {max} per second for one key")
        }
        (LimitName::Rate { plan: true }, Lang::Zh) => {
            format!("请求过于频繁：工作空间套餐规定单个密钥每秒最多 {max} 次")
        }
        (LimitName::Daily, Lang::En) => format!("The key's {max} requests of this day are used up"),
        (LimitName::Daily, Lang::Zh) => format!("密钥今日的 {max} 次请求已用完"),
        (LimitName::Quota, Lang::En) => format!("The key's {max} requests are used up"),
        (LimitName::Quota, Lang::Zh) => format!("密钥的 {max} 次请求总额度已用完"),
        (LimitName::Concurrency, Lang::En) => format!("The key allows {max} requests in flight"),
        (LimitName::Concurrency, Lang::Zh) => format!("密钥最多允许 {max} 个并发请求"),
        (name, Lang::En) => {
            let whose = match owner(name) {
                Owner::Key => "key",
                Owner::Workspace => "workspace",
                Owner::EndUser => "end user",
            };
            let (unit, state) = (unit(refused.limit.count, lang), state(refused.retry, lang));
            format!("The {whose}'s {max} {unit} {} are {state}", span(per, lang))
        }
        (name, Lang::Zh) => {
            let whose = match owner(name) {
                Owner::Key => "密钥",
                Owner::Workspace => "工作空间",
                Owner::EndUser => "终端用户",
            };
            let (unit, state) = (unit(refused.limit.count, lang), state(refused.retry, lang));
            format!("{whose}{}的 {max} {unit}{state}", span(per, lang))
        }
    }
}

const fn unit(count: Measure, lang: Lang) -> &'static str {
    match (count, lang) {
        (Measure::Requests, Lang::En) => "requests",
        (Measure::Requests, Lang::Zh) => "次请求",
        (Measure::Tokens, Lang::En) => "tokens",
        (Measure::Tokens, Lang::Zh) => "个令牌",
        (Measure::InputTokens, Lang::En) => "input tokens",
        (Measure::InputTokens, Lang::Zh) => "个输入令牌",
        (Measure::OutputTokens, Lang::En) => "output tokens",
        (Measure::OutputTokens, Lang::Zh) => "个输出令牌",
        (Measure::Cost, Lang::En) => "billionths of cost",
        (Measure::Cost, Lang::Zh) => "十亿分之一费用单位",
    }
}

/// What is left may be held by requests in flight, which may use less.
const fn state(retry: RetryAfter, lang: Lang) -> &'static str {
    match (retry, lang) {
        (RetryAfter::Release, Lang::En) => "used up or held by requests in flight",
        (RetryAfter::Release, Lang::Zh) => "已用完或被进行中的请求占用",
        (_, Lang::En) => "used up",
        (_, Lang::Zh) => "已用完",
    }
}

fn span(per: Option<Per>, lang: Lang) -> &'static str {
    match (per, lang) {
        (Some(Per::Second), Lang::En) => "per second",
        (Some(Per::Second), Lang::Zh) => "每秒",
        (Some(Per::Minute), Lang::En) => "of this minute",
        (Some(Per::Minute), Lang::Zh) => "本分钟",
        (Some(Per::Hour), Lang::En) => "of this hour",
        (Some(Per::Hour), Lang::Zh) => "本小时",
        (Some(Per::Day), Lang::En) => "of this day",
        (Some(Per::Day), Lang::Zh) => "今日",
        (Some(Per::Week), Lang::En) => "of this week",
        (Some(Per::Week), Lang::Zh) => "本周",
        (Some(Per::Month), Lang::En) => "of this month",
        (Some(Per::Month), Lang::Zh) => "本月",
        (Some(Per::Total) | None, Lang::En) => "in total",
        (Some(Per::Total) | None, Lang::Zh) => "全部",
    }
}

// === impl BadRequest ===

impl BadRequest {
    /// The reason, for programs.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Path(_) => "path",
            Self::TwoCredentials(_) => "two_credentials",
            Self::Syntax => "syntax",
            Self::Framing => "framing",
            Self::Host => "host",
            Self::Connection => "connection",
            Self::ProxyHeader => "proxy_header",
            Self::EndUserHeader => "end_user_header",
            Self::EndUserQuery => "end_user_query",
            Self::EndUserBody => "end_user_body",
            Self::Original(_) => "original_request",
        }
    }

    fn message(&self, lang: Lang) -> Cow<'static, str> {
        match (self, lang) {
            (Self::TwoCredentials(headers), Lang::En) => {
                let [one, other] = &**headers;
                format!(
                    "The request presents two different API keys, in {one} and in {other}: send one, \
                     or let secret_from of the route name the one that counts"
                )
                .into()
            }
            (Self::TwoCredentials(headers), Lang::Zh) => {
                let [one, other] = &**headers;
                format!("请求在 {one} 和 {other} 中携带了两个不同的 API 密钥：请只发送一个，或由路由的 secret_from 指定").into()
            }
            (Self::Path(bad), Lang::En) => bad.to_string().into(),
            (Self::Path(bad), Lang::Zh) => match bad.offending() {
                Some(byte) => format!("请求路径有歧义或包含不允许的字符：{}", shown(byte)).into(),
                None => "请求路径有歧义或包含不允许的字符".into(),
            },
            (Self::Original(bad), Lang::En) => bad.to_string().into(),
            (other, lang) => other.standard(lang).into(),
        }
    }

    /// The standard message.
    const fn standard(&self, lang: Lang) -> &'static str {
        match (self, lang) {
            (Self::Path(_), Lang::En) => "The path or query is ambiguous",
            (Self::Path(_), Lang::Zh) => "请求路径有歧义",
            (Self::TwoCredentials(_), Lang::En) => "The request presents two different API keys",
            (Self::TwoCredentials(_), Lang::Zh) => "请求携带了两个不同的 API 密钥",
            (Self::Syntax, Lang::En) => "The request is not written as HTTP/1.1 demands",
            (Self::Syntax, Lang::Zh) => "请求不符合 HTTP/1.1 语法",
            (Self::Framing, Lang::En) => {
                "The length of the request body is given twice, wrongly or in two ways"
            }
            (Self::Framing, Lang::Zh) => "请求体长度重复、错误或以两种方式声明",
            (Self::Host, Lang::En) => {
                "The request needs exactly one Host, the one that its target names if it does"
            }
            (Self::Host, Lang::Zh) => "请求必须且只能有一个 Host，且须与请求目标一致",
            (Self::Connection, Lang::En) => {
                "The Connection header must be a list of at most 9 names, none of them of a field that is decided by"
            }
            (Self::Connection, Lang::Zh) => {
                "Connection 头必须是至多 9 个名称的列表，且不得包含用于判定的字段"
            }
            (Self::ProxyHeader, Lang::En) => "The proxy in front must send a PROXY protocol header",
            (Self::ProxyHeader, Lang::Zh) => "前置代理必须发送 PROXY 协议头",
            (Self::EndUserHeader, Lang::En) => {
                "The header that names the end user must be there once, with 1 to 255 visible characters"
            }
            (Self::EndUserHeader, Lang::Zh) => "标识终端用户的请求头只能出现一次，且为 1 到 255 个可见字符",
            (Self::EndUserQuery, Lang::En) => {
                "The query parameter that names the end user must be there once, with 1 to 255 visible characters"
            }
            (Self::EndUserQuery, Lang::Zh) => "标识终端用户的查询参数只能出现一次，且为 1 到 255 个可见字符",
            (Self::EndUserBody, Lang::En) => {
                "The body must be a JSON object whose field for the end user is a text of 1 to 255 characters, given once"
            }
            (Self::EndUserBody, Lang::Zh) => {
                "请求体必须为 JSON 对象，其终端用户字段为 1 到 255 个字符的文本且只出现一次"
            }
            (Self::Original(_), Lang::En) => {
                "The proxy in front does not state the request that it asks about"
            }
            (Self::Original(_), Lang::Zh) => "前置代理未说明所要判定的请求",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::key::Measure;
    use crate::policy::keys::limit::{Limit, LimitRule};

    #[test]
    fn a_limit_tells_which_and_when() {
        let refused = LimitReached {
            limit: Limit {
                name: LimitName::Rate { plan: true },
                count: Measure::Requests,
                rule: LimitRule::Bucket { rate: 5, burst: 5 },
            },
            retry: RetryAfter::Wait(Duration::from_millis(1_001)),
        };
        let left = Remaining { units: 0, reset: Some(Duration::from_millis(900)) };
        let denial = Denial::Limit(refused, Some(left));
        assert_eq!(denial.fault().code(), 3014);
        assert_eq!(denial.retry_after_secs(), Some(2));
        assert_eq!(
            serde_json::to_value(denial.detail()).expect("it can be written"),
            json!({
                "limit": "api_ops_rate_limit",
                "count": "requests",
                "of": "key",
                "max": 5,
                "per": "second",
                "remaining": 0,
                "resets_in": 1,
                "set_by": "plan",
                "retry_after": 2,
            })
        );
        assert!(denial.message(Lang::En).contains("plan allows 5 per second"));
    }

    #[test]
    fn a_wait_is_rounded_up_and_never_zero() {
        for (ms, secs) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (86_400_000, 86_400)] {
            let refused = LimitReached {
                limit: Limit {
                    name: LimitName::Daily,
                    count: Measure::Requests,
                    rule: LimitRule::of(Per::Day, 1),
                },
                retry: RetryAfter::Wait(Duration::from_millis(ms)),
            };
            assert_eq!(Denial::Limit(refused, None).retry_after_secs(), Some(secs), "{ms} ms");
        }
    }
}
