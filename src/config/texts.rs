//! Texts with a meaning: addresses, names, headers, URLs.
//!
//! Must not know: which key contains them. As in every rule, the text is never repeated: a URL may contain a password.

use super::raw_value::RawValue;
use super::redis_url;
use super::rule::{ParsedText, ValueRule, quote, refusal};
use super::types::{AdminSocket, CountersLocation, StoreLocation};
use crate::model::server::HttpUrl;
pub(super) use crate::policy::http::fields::settable_header as header;
use crate::policy::text::url::private_url;
pub(super) use crate::policy::text::url::{http_url, server};
use crate::store::postgres::BadPostgresUrl;
use http::{HeaderName, Method};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The URL of the store.
pub(super) struct StoreUrl;

/// The URL of the counters.
pub(super) struct CountersUrl;

/// An address to listen on.
pub(super) const LISTEN: ParsedText<SocketAddr> = ParsedText {
    must: r#"IP:port, such as "127.0.0.1:8080" or "[::1]:8080""#,
    read: |text| text.parse().ok(),
    show: quote,
};

/// A network, or one address.
pub(super) const NETWORK: ParsedText<IpNet> = ParsedText {
    must: r#"a network such as "10.0.0.0/8" or "fd00::/8", or one address"#,
    read: |text| text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)),
    show: quote,
};

/// A file or folder.
pub(super) const FILE: ParsedText<PathBuf> = ParsedText {
    must: "a path of 1 to 4096 bytes",
    read: |text| ((1..=4096).contains(&text.len()) && !text.contains('\0')).then(|| PathBuf::from(text)),
    show: |path| quote(&path.display()),
};

/// The place of a Unix socket. The kernel takes no longer path, and a new socket is prepared under a name with `.new` at its
/// end.
pub(super) const SOCKET: ParsedText<AdminSocket> = ParsedText {
    must: "\"auto\" or a path of 1 to 103 bytes",
    read: |text| match text {
        "auto" => Some(AdminSocket::BesideStore),
        _ => ((1..=103).contains(&text.len()) && !text.contains('\0')).then(|| AdminSocket::At(text.into())),
    },
    show: |place| match place {
        AdminSocket::BesideStore => quote(&"auto"),
        AdminSocket::At(path) => quote(&path.display()),
    },
};

/// A name of the user's choice.
pub(super) const NAME: ParsedText<String> = ParsedText {
    must: "1 to 64 characters of A-Z a-z 0-9 . _ -",
    read: |text| is_name(text).then(|| text.to_owned()),
    show: quote,
};

/// The prefix of secrets.
pub(super) const SECRET_PREFIX: ParsedText<String> = ParsedText {
    must: "1 to 16 characters of a-z 0-9 _",
    read: |text| {
        let fits = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        (fits && (1..=16).contains(&text.len())).then(|| text.to_owned())
    },
    show: quote,
};

/// A header field that may carry something for Keygate.
pub(super) const HEADER: ParsedText<HeaderName> = ParsedText {
    must: "the name of a header that is neither about framing or the connection nor Keygate's own (x-keygate-…)",
    read: header,
    show: quote,
};

/// An HTTP method.
pub(super) const METHOD: ParsedText<Method> = ParsedText {
    must: r#"an HTTP method in capitals, such as "GET""#,
    read: |text| {
        let fits =
            (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
        if fits { text.parse().ok() } else { None }
    },
    show: quote,
};

/// The pattern of a route. The route table checks the rest of its syntax.
pub(super) const ROUTE_PATH: ParsedText<String> = ParsedText {
    must: r#"a path of 1 to 1024 visible ASCII characters that begins with "/", without ? or #"#,
    read: |text| {
        let fits = text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
        (fits && text.starts_with('/') && text.len() <= 1024).then(|| text.to_owned())
    },
    show: quote,
};

/// The URL of an identity service.
pub(super) const IDENTITY_URL: ParsedText<HttpUrl> = ParsedText {
    must: r#"an https URL without a user or a fragment, such as "https://id.example/jwks"; http only to localhost, 127.0.0.1 or [::1]"#,
    read: private_url,
    show: quote,
};

// === what the texts look like ===

/// Whether `text` is allowed by [`NAME`].
pub(super) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

// === impl StoreUrl ===

impl ValueRule for StoreUrl {
    type Value = StoreLocation;

    fn must(&self) -> String {
        r#"sqlite:PATH, such as "sqlite:data/keygate.db", or postgres://USER:PASSWORD@HOST:PORT/DATABASE"#
            .into()
    }

    fn read(&self, given: RawValue<'_>) -> Result<StoreLocation, String> {
        let url = given.text().ok_or_else(|| refusal(self))?;
        if scheme_is(url, &["postgres", "postgresql"]) {
            return url
                .parse()
                .map(StoreLocation::Postgres)
                .map_err(|error: BadPostgresUrl| error.to_string());
        }
        // `sqlite://a/b` would name the host a; `sqlite::memory:` would lose every key at exit.
        let path =
            url.strip_prefix("sqlite:").filter(|path| !path.starts_with("//") && !path.starts_with(':'));
        let path = path.filter(|path| (1..=4096).contains(&path.len()) && !path.contains('\0'));
        path.map(|path| StoreLocation::Sqlite(path.into())).ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &StoreLocation) -> String {
        match value {
            StoreLocation::Sqlite(path) => quote(&format_args!("sqlite:{}", path.display())),
            // Without user and password, which must not be shown.
            StoreLocation::Postgres(url) => quote(&format_args!("postgres:…/{}", url.database)),
        }
    }
}

// === impl CountersUrl ===

impl ValueRule for CountersUrl {
    type Value = CountersLocation;

    fn must(&self) -> String {
        redis_url::MUST.into()
    }

    fn read(&self, given: RawValue<'_>) -> Result<CountersLocation, String> {
        let url = given.text().ok_or_else(|| refusal(self))?;
        if url == "memory:" {
            return Ok(CountersLocation::Memory);
        }
        redis_url::read(url).map(CountersLocation::Redis).ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &CountersLocation) -> String {
        match value {
            CountersLocation::Memory => quote(&"memory:"),
            CountersLocation::Redis(url) => quote(&redis_url::show(url)),
        }
    }
}

// === helpers ===

fn scheme_is(url: &str, schemes: &[&str]) -> bool {
    url.split_once(':').is_some_and(|(scheme, _)| schemes.iter().any(|s| scheme.eq_ignore_ascii_case(s)))
}
