//! What a route changes about messages, and its CORS rules: these keys with their rules and defaults.
//!
//! Must not know: the route's pattern; the route table checks the parameters of a rewritten path.

use super::reader::ConfigReader;
use super::rule::{Flag, OrEmpty, ParsedText, quote};
use super::section::Section;
use super::texts::{METHOD, header, is_name};
use super::upstream::span_ms;
use crate::policy::http::cors::{Cors, OriginRule, Origins};
use crate::policy::keys::claims::{TOLD, is_claim};
use crate::policy::routing::forward::{FieldRules, ForwardRules, HostRule};
use crate::policy::routing::rewrite::Rewrite;
use http::{HeaderName, HeaderValue, Method};
use std::time::Duration;

/// Most items of a list.
const ITEMS_MAX: usize = 64;

/// The beginning of the names of headers with metadata.
const METADATA_FIELD: &str = "x-keygate-metadata-";

/// Response headers of Keygate that pages may always read.
const EXPOSED: &str = "X-Request-Id, Retry-After, RateLimit, RateLimit-Policy, X-RateLimit-Limit-QPS, \
     X-RateLimit-Remaining-QPS, X-RateLimit-Limit-Day, X-RateLimit-Remaining-Day, X-RateLimit-Reset, X-Keygate-Degraded";

/// The parsed keys.
pub(super) struct ForwardFile {
    pub(super) forward: ForwardRules,
    cors: CorsFile,
}

/// `[routes.cors]`, parsed.
struct CorsFile {
    origins: Vec<OriginText>,
    methods: Vec<Method>,
    headers: Vec<HeaderName>,
    expose: Vec<HeaderName>,
    credentials: bool,
    max_age: Duration,
}

/// One item of `origins`.
#[derive(Clone)]
struct OriginText {
    /// None for `*`.
    rule: Option<OriginRule>,
    text: String,
}

/// Reads them from a route.
pub(super) fn forward(s: &mut Section<'_, '_>) -> ForwardFile {
    let rewrite = s.value("rewrite", &OrEmpty(REWRITE), None);
    let host = s.value("host", &HOST, HostRule::Client);
    let metadata = s.list("forward_metadata", &METADATA, 0..=ITEMS_MAX, Vec::new());
    let (pass, request) = s.table("request_headers", |s| {
        let pass = s.list("pass", &CLAIM, 0..=ITEMS_MAX, Vec::new()).into();
        (pass, fields(s, &NAME_TO_BACKEND, &FIELD_TO_BACKEND))
    });
    ForwardFile {
        forward: ForwardRules {
            rewrite: rewrite.map(|r| r.template),
            host,
            pass,
            metadata: metadata.into(),
            request,
            response: s.table("response_headers", |s| fields(s, &NAME_TO_CLIENT, &FIELD_TO_CLIENT)),
        },
        cors: s.table("cors", cors),
    }
}

fn fields(
    s: &mut Section<'_, '_>,
    name: &ParsedText<HeaderName>,
    field: &ParsedText<FieldTemplate>,
) -> FieldRules {
    let pairs = |fields: Vec<FieldTemplate>| fields.into_iter().map(|f| (f.name, f.value)).collect();
    FieldRules {
        remove: s.list("remove", name, 0..=ITEMS_MAX, Vec::new()).into(),
        set: pairs(s.list("set", field, 0..=ITEMS_MAX, Vec::new())),
        add: pairs(s.list("add", field, 0..=ITEMS_MAX, Vec::new())),
    }
}

fn cors(s: &mut Section<'_, '_>) -> CorsFile {
    let usual = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    CorsFile {
        origins: s.list("origins", &ORIGIN, 0..=ITEMS_MAX, Vec::new()),
        methods: s.list("methods", &METHOD, 1..=32, usual.to_vec()),
        headers: s.list("headers", &ANY_HEADER, 0..=ITEMS_MAX, Vec::new()),
        expose: s.list("expose", &ANY_HEADER, 0..=ITEMS_MAX, Vec::new()),
        credentials: s.value("credentials", &Flag, false),
        max_age: s.value("max_age", &span_ms(0, 86_400_000), Duration::from_mins(10)),
    }
}

/// The CORS rules of the `n`-th route; none if it lists no origin.
pub(super) fn checked_cors(
    n: usize,
    file: ForwardFile,
    reading: &mut ConfigReader<'_>,
) -> (ForwardRules, Option<Cors>) {
    let ForwardFile { forward, cors } = file;
    if cors.origins.is_empty() {
        return (forward, None);
    }
    let any = cors.origins.iter().any(|o| o.rule.is_none());
    let path = |key: &str| format!("routes[{n}].cors.{key}");
    if any && cors.origins.len() > 1 {
        reading.complain_of_conflict(&[&path("origins")], "must be \"*\" alone, or without it");
    }
    if any && cors.credentials {
        let message = "must be false while origins is \"*\": name the origins";
        reading.complain_of_conflict(&[&path("credentials"), &path("origins")], message);
    }
    let mut expose = EXPOSED.to_owned();
    for name in &cors.expose {
        expose.extend([", ", name.as_str()]);
    }
    let origins = if any {
        Origins::Any
    } else {
        Origins::Listed(cors.origins.into_iter().filter_map(|o| o.rule).collect())
    };
    let cors = Cors {
        origins,
        methods: cors.methods.into(),
        headers: cors.headers.into(),
        expose: HeaderValue::try_from(expose).unwrap_or(HeaderValue::from_static(EXPOSED)),
        credentials: cors.credentials,
        max_age: cors.max_age,
    };
    (forward, Some(cors))
}

// === rules ===

/// A template with its source text.
struct Template {
    template: Rewrite,
    text: String,
}

/// A field with its source text, because names and values of HTTP are displayed differently.
#[derive(Clone)]
struct FieldTemplate {
    name: HeaderName,
    value: HeaderValue,
}

const REWRITE: ParsedText<Template> = ParsedText {
    must: r#"a path such as "/internal/{id}/{rest}": whole segments, each canonical or a parameter of the route's path"#,
    read: |text| Some(Template { template: Rewrite::parse(text).ok()?, text: text.to_owned() }),
    show: |template| quote(&template.text),
};

const HOST: ParsedText<HostRule> = ParsedText {
    must: r#""client", "server", or "name:HOST" with a host and perhaps a port"#,
    read: |text| match text {
        "client" => Some(HostRule::Client),
        "server" => Some(HostRule::Server),
        _ => {
            let host = text.strip_prefix("name:")?;
            super::upstream::is_host_and_port(host)
                .then(|| HeaderValue::from_str(host).ok())?
                .map(HostRule::Fixed)
        }
    },
    show: |rule| match rule {
        HostRule::Client => quote(&"client"),
        HostRule::Server => quote(&"server"),
        HostRule::Fixed(host) => quote(&format_args!("name:{}", host.to_str().unwrap_or_default())),
    },
};

const METADATA: ParsedText<(Box<str>, HeaderName)> = ParsedText {
    must: "the name of an entry of a key's metadata: 1 to 64 characters of A-Z a-z 0-9 . _ -",
    read: |text| {
        // Servers treat `_` and `.` in the name of a header in several ways.
        let dashed = text.to_ascii_lowercase().replace(['_', '.'], "-");
        let name = HeaderName::try_from(format!("{METADATA_FIELD}{dashed}")).ok()?;
        is_name(text).then(|| (text.into(), name))
    },
    show: |(entry, _)| quote(entry),
};

const CLAIM: ParsedText<HeaderName> = ParsedText {
    must: r#"the name of a header that is removed otherwise and that Keygate does not set, such as "X-Forwarded-Port" (docs/reference/edge.md has all)"#,
    read: |text| {
        let name = HeaderName::from_bytes(text.as_bytes()).ok()?;
        (is_claim(name.as_str()) && !TOLD.contains(&name.as_str())).then_some(name)
    },
    show: quote,
};

const NAME_TO_BACKEND: ParsedText<HeaderName> = ParsedText {
    must: "the name of a header that is not about framing, the connection or the trace, and that Keygate does not set by itself",
    read: to_backend,
    show: quote,
};

const FIELD_TO_BACKEND: ParsedText<FieldTemplate> = ParsedText {
    must: r#""NAME: VALUE" with a header that is not about framing, the connection or the trace, and that Keygate does not set by itself"#,
    read: |text| field(text, to_backend),
    show: show_field,
};

const NAME_TO_CLIENT: ParsedText<HeaderName> = ParsedText {
    must: "the name of a header that is not about framing or the connection, and that Keygate does not set by itself",
    read: to_client,
    show: quote,
};

const FIELD_TO_CLIENT: ParsedText<FieldTemplate> = ParsedText {
    must: r#""NAME: VALUE" with a header that is not about framing or the connection, and that Keygate does not set by itself"#,
    read: |text| field(text, to_client),
    show: show_field,
};

const ANY_HEADER: ParsedText<HeaderName> = ParsedText {
    must: "the name of a header",
    read: |text| HeaderName::from_bytes(text.as_bytes()).ok().filter(|n| n.as_str().len() <= 128),
    show: quote,
};

const ORIGIN: ParsedText<OriginText> = ParsedText {
    must: r#"an origin in lower case such as "https://app.example" or "https://*.example:8443", or "*""#,
    read: |text| {
        let rule = if text == "*" { None } else { Some(OriginRule::parse(text)?) };
        Some(OriginText { rule, text: text.to_owned() })
    },
    show: |origin| quote(&origin.text),
};

/// Header fields that Keygate sets on requests, in the spelling with `-`.
fn to_backend(text: &str) -> Option<HeaderName> {
    let name = header(text)?;
    let dashed = name.as_str().replace('_', "-");
    let own = dashed.starts_with("x-forwarded-")
        || ["x-request-id", "x-real-ip", "forwarded", "traceparent", "tracestate"].contains(&&*dashed);
    (!own).then_some(name)
}

/// Header fields that Keygate sets on responses.
fn to_client(text: &str) -> Option<HeaderName> {
    let name = header(text)?;
    let own = ["x-request-id", "retry-after", "ratelimit", "ratelimit-policy", "date"]
        .contains(&name.as_str())
        || name.as_str().starts_with("x-ratelimit-")
        || name.as_str().starts_with("access-control-");
    (!own).then_some(name)
}

fn field(text: &str, name: fn(&str) -> Option<HeaderName>) -> Option<FieldTemplate> {
    let (before, value) = text.split_once(':')?;
    let name = name(before)?;
    let value = value.trim();
    let fits = value.len() <= 4096 && value.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    let mut value = HeaderValue::from_str(value).ok().filter(|_| fits)?;
    // It may be a credential of the backend.
    value.set_sensitive(true);
    Some(FieldTemplate { name, value })
}

fn show_field(field: &FieldTemplate) -> String {
    quote(&format_args!("{}: …", field.name))
}
