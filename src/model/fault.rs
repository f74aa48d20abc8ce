//! The table of errors: every refusal and failure that Keygate answers, with its status, code, name and message.
//!
//! Contract 4.6. Both listeners use it; a new error is a new line here and nowhere else.

use crate::model::key::words;

/// The language of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Lang {
    /// English.
    #[default]
    En,
    /// Simplified Chinese.
    Zh,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $variant:ident = $status:literal, $code:literal, $name:literal, $en:literal, $zh:literal;)+) => {
        /// An error that Keygate answers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Fault { $($(#[$doc])* $variant,)+ }

        impl Fault {
            /// Every line of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// HTTP status.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// The envelope's `code`.
            pub const fn code(self) -> u32 {
                match self { $(Self::$variant => $code,)+ }
            }

            /// The envelope's `error`: stable, for programs. Also the metric label.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The envelope's `msg`, unless a more specific one is known.
            pub const fn message(self, lang: Lang) -> &'static str {
                match (self, lang) {
                    $((Self::$variant, Lang::En) => $en, (Self::$variant, Lang::Zh) => $zh,)+
                }
            }

            /// The fault with this name, as usage records store it.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::str::FromStr for Fault {
            type Err = &'static str;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                Self::from_name(name).ok_or("is no known reason")
            }
        }
    };
}

faults! {
    /// The request is malformed.
    BadRequest = 400, 1000, "bad_request", "The request is malformed", "请求格式错误";
    /// The body does not match its schema.
    ValidationFailed = 400, 1001, "validation_failed", "Some fields are not valid", "部分字段无效";
    /// A parameter of the query or path is not valid.
    InvalidParameter = 400, 1003, "invalid_parameter", "A parameter is not valid", "参数无效";
    /// No admin token.
    Unauthorized = 401, 2001, "unauthorized", "An admin token is required", "需要管理令牌";
    /// A bad admin token.
    TokenInvalid = 401, 2002, "token_invalid", "The admin token is not valid", "管理令牌无效";
    /// An expired admin token.
    TokenExpired = 401, 2003, "token_expired", "The admin token has expired", "管理令牌已过期";
    /// A call of an application without the token of the decision listener.
    DecideTokenInvalid = 401, 2004, "decide_token_invalid", "The token of decide.token_file is required: Authorization: Bearer <token>", "需要 decide.token_file 中的令牌：Authorization: Bearer <令牌>";
    /// The role does not allow this.
    Forbidden = 403, 3001, "forbidden", "Your role does not allow this", "您的角色无权执行此操作";
    /// Another workspace.
    WorkspaceNoAccess = 403, 3003, "workspace_no_access", "You have no access to this workspace", "您无权访问该工作空间";
    /// No secret was presented.
    KeyMissing = 401, 3007, "api_key_missing", "An API key is required: Authorization: Bearer <key> or X-API-Key: <key>", "需要 API 密钥：Authorization: Bearer <密钥> 或 X-API-Key: <密钥>";
    /// Admin: no such key in this workspace.
    KeyNotFound = 404, 3007, "api_key_not_found", "There is no such API key", "该 API 密钥不存在";
    /// The name is taken.
    KeyDuplicateName = 409, 3008, "api_key_duplicate_name", "This resource already has a key of that name", "该资源下已有同名密钥";
    /// An unknown, malformed or deleted secret.
    KeyInvalid = 401, 3009, "api_key_invalid", "The API key is not valid", "API 密钥无效";
    /// The key has expired.
    KeyExpired = 401, 3010, "api_key_expired", "The API key has expired", "API 密钥已过期";
    /// The key is disabled.
    KeyInactive = 401, 3011, "api_key_inactive", "The API key is disabled", "API 密钥已停用";
    /// The key lacks a scope.
    KeyInvalidScope = 403, 3012, "api_key_invalid_scope", "The API key lacks a scope that this route needs", "API 密钥缺少该路由所需的权限范围";
    /// The key is bound to another resource.
    KeyInvalidResource = 403, 3013, "api_key_invalid_resource", "The API key is bound to another resource", "API 密钥绑定了其他资源";
    /// The rate is used up.
    RateLimitExceeded = 429, 3014, "rate_limit_exceeded", "Too many requests per second", "每秒请求数超限";
    /// The day is used up.
    DailyLimitExceeded = 429, 3015, "daily_limit_exceeded", "The daily request limit is used up", "每日请求数已用完";
    /// The key's life is used up.
    QuotaExceeded = 429, 3016, "quota_exceeded", "The key's request quota is used up", "密钥的请求总额度已用完";
    /// A further limit is used up.
    LimitExceeded = 429, 3017, "limit_exceeded", "A request limit is used up", "请求限额已用完";
    /// The plan has no room for another end user.
    EndUserQuotaExceeded = 402, 3018, "end_user_quota_exceeded", "The workspace's plan has no room for another end user", "工作空间套餐的终端用户数量已满";
    /// The key may not be used from this address.
    AddressNotAllowed = 403, 3020, "address_not_allowed", "The API key may not be used from this address", "不允许从该地址使用此 API 密钥";
    /// The key is bound to another end user.
    EndUserNotAllowed = 403, 3021, "end_user_not_allowed", "The API key is bound to another end user", "API 密钥绑定了其他终端用户";
    /// The route refuses models without a price.
    ModelUnpriced = 403, 3022, "model_unpriced", "The request names no model that has a price here", "请求所用的模型在此没有定价";
    /// No route matches.
    RouteNotFound = 404, 4000, "route_not_found", "No route matches this request", "没有匹配该请求的路由";
    /// Admin: nothing has this id.
    NotFound = 404, 4000, "not_found", "Not found", "未找到";
    /// Admin: no such end user.
    EndUserNotFound = 404, 4001, "end_user_not_found", "There is no such end user", "该终端用户不存在";
    /// No hold of this process has this id.
    HoldNotFound = 404, 4002, "hold_not_found", "There is no such hold here: it has expired, or another process made it", "此处没有该预占：它已过期，或由其他进程创建";
    /// Admin: it already exists.
    Conflict = 409, 1000, "conflict", "The change conflicts with what exists", "与现有数据冲突";
    /// Admin: the same `Idempotency-Key` with another request.
    IdempotencyKeyReused = 422, 1000, "idempotency_key_reused", "Another request had this Idempotency-Key within a day", "该 Idempotency-Key 在一天内已用于另一请求";
    /// Admin: the same request is being processed.
    IdempotencyKeyInUse = 409, 1000, "idempotency_key_in_use", "A request with this Idempotency-Key is being processed", "使用该 Idempotency-Key 的请求正在处理中";
    /// Admin: the URL exists, the method does not.
    MethodNotAllowed = 405, 1000, "method_not_allowed", "The method is not allowed here", "不允许使用该方法";
    /// The client was too slow.
    RequestTimeout = 408, 1000, "request_timeout", "The request took too long to arrive", "请求接收超时";
    /// The length must be known.
    LengthRequired = 411, 1000, "length_required", "This request needs a Content-Length", "请求需要 Content-Length";
    /// The body is too large.
    PayloadTooLarge = 413, 1000, "payload_too_large", "The request body is too large", "请求体过大";
    /// The URI is too long.
    UriTooLong = 414, 1000, "uri_too_long", "The request URI is too long", "请求 URI 过长";
    /// The body has a type or coding that is not supported.
    UnsupportedMediaType = 415, 1000, "unsupported_media_type", "The request body must be application/json", "请求体必须为 application/json";
    /// The header block is too large.
    HeadersTooLarge = 431, 1000, "request_header_fields_too_large", "The request header fields are too large", "请求头过大";
    /// The method or transfer coding is not supported.
    NotImplemented = 501, 1000, "not_implemented", "The request uses a method or transfer coding that is not supported", "不支持该请求方法或传输编码";
    /// A fault inside Keygate.
    Internal = 500, 10001, "internal_error", "Something went wrong inside the gateway", "网关内部错误";
    /// The backend could not be reached or broke off its response.
    BadGateway = 502, 10003, "bad_gateway", "The backend could not be reached or broke off", "后端无法连接或响应中断";
    /// No server is available, or no safe decision is possible.
    ServiceUnavailable = 503, 10003, "service_unavailable", "The service is unavailable, try again soon", "服务暂不可用，请稍后重试";
    /// The backend was too slow.
    GatewayTimeout = 504, 10003, "gateway_timeout", "The backend did not answer in time", "后端响应超时";
}

words!(
    /// The form of the body of an error response.
    ErrorForm {
        /// Keygate's own envelope.
        Envelope = "envelope",
        /// As the API of `OpenAI` writes errors.
        OpenAi = "openai",
        /// As Anthropic's API writes errors.
        Anthropic = "anthropic",
        /// Problem details (RFC 9457).
        Problem = "problem",
    }
);

words!(
    /// The contents of the field `error` in the admin API's error responses.
    ErrorText {
        /// A stable name.
        Name = "name",
        /// The text for people.
        Message = "message",
    }
);

impl Lang {
    /// The language that an `Accept-Language` header asks for: Chinese if the known language with the highest weight is
    /// `zh`.
    pub fn preferred(accept_language: &str) -> Self {
        let mut best = (0.0_f32, Self::En);
        for part in accept_language.split(',').take(32) {
            let (tag, params) = part.split_once(';').unwrap_or((part, ""));
            let weight = params.trim().strip_prefix("q=").map_or(1.0, |q| q.trim().parse().unwrap_or(0.0));
            let primary = tag.trim().split('-').next().unwrap_or_default();
            let lang = match primary {
                p if p.eq_ignore_ascii_case("zh") => Self::Zh,
                p if p.eq_ignore_ascii_case("en") || p == "*" => Self::En,
                _ => continue,
            };
            if weight > best.0 {
                best = (weight, lang);
            }
        }
        best.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_read_back() {
        for (n, fault) in Fault::ALL.iter().enumerate() {
            assert_eq!(Fault::from_name(fault.name()), Some(*fault));
            assert!(Fault::ALL[..n].iter().all(|f| f.name() != fault.name()), "{}", fault.name());
        }
    }

    /// The page has a row for each fault, with its status and code, and no other rows.
    #[test]
    fn the_page_on_errors_is_this_table() {
        let page = include_str!("../../docs/reference/errors.md");
        let rows: Vec<_> =
            page.lines().filter(|line| line.contains("| `") && line.starts_with("| ")).collect();
        let rows = rows.iter().filter(|line| line[2..].starts_with(|c: char| c.is_ascii_digit()));
        let told: Vec<_> =
            rows.map(|row| row.splitn(5, " | ").take(3).collect::<Vec<_>>().join(" ")).collect();
        let known = Fault::ALL.iter().map(|f| format!("| {} {} `{}`", f.status(), f.code(), f.name()));
        assert_eq!(told, known.collect::<Vec<_>>());
    }

    #[test]
    fn language_follows_the_weights() {
        for (header, lang) in [
            ("", Lang::En),
            ("zh-CN", Lang::Zh),
            ("ZH", Lang::Zh),
            ("en-US,en;q=0.9,zh;q=0.8", Lang::En),
            ("zh;q=0.9,en;q=0.5", Lang::Zh),
            ("fr, zh;q=0.3", Lang::Zh),
            ("zh;q=0", Lang::En),
            ("zh;q=abc", Lang::En),
            ("fr", Lang::En),
            ("*", Lang::En),
        ] {
            assert_eq!(Lang::preferred(header), lang, "{header}");
        }
    }
}
