//! Whether a change comes from a page of this server, by what browsers say about it.
//!
//! Every browser sends `Origin` with a POST; over TLS and to this machine itself also `Sec-Fetch-Site`. No page can set or leave out
//! either. This is checked besides the token in every form of a session.

use crate::admin::caller::OverTls;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether a page of this server sent the request.
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
    if let Some(site) = fetch_site(headers) {
        return site == "same-origin";
    }
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(_, from)| Some(from) == text(header::HOST))
}

/// Whether a page of another site leads here: the session's cookie is then not sent.
pub(super) fn is_led_here(headers: &HeaderMap) -> bool {
    fetch_site(headers).is_some_and(|site| site == "cross-site" || site == "same-site")
}

/// Whether the browser speaks TLS: with this server, or with whatever stands in front of it.
pub(super) fn is_encrypted(parts: &Parts) -> bool {
    parts.extensions.get::<OverTls>().is_some()
        || parts.headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"))
}

fn fetch_site(headers: &HeaderMap) -> Option<&str> {
    headers.get(FETCH_SITE).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn only_pages_of_this_server_may_change_something() {
        let host = ("host", "console.test:8081");
        for (pairs, expected) in [
            (&[host, ("sec-fetch-site", "same-origin")][..], true),
            (&[host, ("sec-fetch-site", "cross-site"), ("origin", "http://console.test:8081")], false),
            (&[host, ("sec-fetch-site", "same-site")], false),
            (&[host, ("sec-fetch-site", "none")], false),
            (&[host, ("origin", "http://console.test:8081")], true),
            (&[host, ("origin", "http://console.test")], false),
            (&[host, ("origin", "https://other.test")], false),
            (&[host, ("origin", "null")], false),
            (&[host], false),
            (&[], false),
        ] {
            assert_eq!(is_same_origin(&headers(pairs)), expected, "{pairs:?}");
        }
    }
}
