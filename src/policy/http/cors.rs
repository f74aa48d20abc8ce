//! CORS: which pages of other origins may use a route from a browser (the Fetch standard).
//!
//! Must not know: keys. A preflight carries none, so it is answered from these rules alone.
//!
//! *Invariant:* an origin is echoed only if it is on the list; `*` never goes with credentials.

use super::field_lines::EditFields;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use std::time::Duration;

/// What a route allows to pages of other origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// The allowed origins.
    pub origins: Origins,
    /// The allowed methods.
    pub methods: Box<[Method]>,
    /// The request headers that are allowed, in lower case; none: any.
    pub headers: Box<[HeaderName]>,
    /// The response headers that a page may read, as one line.
    pub expose: HeaderValue,
    /// Whether cookies and other credentials are allowed.
    pub credentials: bool,
    /// How long a browser may cache a preflight.
    pub max_age: Duration,
}

/// Allowed origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Any origin. Never with credentials.
    Any,
    /// Only these.
    Listed(Box<[OriginRule]>),
}

/// One origin, or all whose host is below a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginRule {
    /// The whole origin, or the part before the `*`.
    front: Box<str>,
    /// The part after the `*`.
    behind: Option<Box<str>>,
}

/// The fields of a preflight.
#[derive(Clone, Copy, Debug)]
pub struct PreflightRequest<'r> {
    /// The origin of the page.
    pub origin: &'r HeaderValue,
    /// The method it asks for.
    pub method: &'r Method,
    /// The header fields it asks for.
    pub headers: Option<&'r HeaderValue>,
}

impl Cors {
    /// Sets the CORS fields of a response to a page of `origin`, replacing the backend's.
    pub fn mark(&self, answer: &mut impl EditFields, origin: Option<&HeaderValue>) {
        answer.remove_if(|name| name.starts_with("access-control-"));
        if self.origins != Origins::Any {
            answer.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        let Some(allowed) = origin.and_then(|o| self.allowed(o)) else { return };
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.credentials {
            answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, self.expose.clone());
    }

    /// The response to a preflight. What is not allowed is left out, and the browser stops there.
    pub fn answer(&self, asked: &PreflightRequest<'_>) -> HeaderMap {
        let mut answer = HeaderMap::new();
        let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        answer.insert(header::VARY, HeaderValue::from_static(vary));
        let Some(origin) = self.allowed(asked.origin) else { return answer };
        if !self.methods.contains(asked.method) || !self.headers_fit(asked.headers) {
            return answer;
        }
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        let methods: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
        if let Ok(methods) = HeaderValue::from_str(&methods.join(", ")) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        if let Some(headers) = asked.headers {
            answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
        }
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.as_secs().into());
        answer
    }

    fn allowed(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match &self.origins {
            Origins::Any => Some(HeaderValue::from_static("*")),
            Origins::Listed(rules) => {
                let text = origin.to_str().ok()?;
                rules.iter().any(|r| r.fits(text)).then(|| origin.clone())
            }
        }
    }

    fn headers_fit(&self, asked: Option<&HeaderValue>) -> bool {
        let Some(asked) = asked else { return true };
        let Ok(names) = asked.to_str() else { return false };
        let known = |name: &str| self.headers.iter().any(|h| h.as_str().eq_ignore_ascii_case(name));
        self.headers.is_empty() || names.split(',').map(str::trim).all(|n| n.is_empty() || known(n))
    }
}

impl OriginRule {
    /// Parses `scheme://host`, optionally with a port, optionally with `*.` before the host.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, host) = text.split_once("://")?;
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
        let below = host.strip_prefix("*.");
        let (name, port) = match below.unwrap_or(host).rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, Some(port)),
            _ => (below.unwrap_or(host), None),
        };
        let is_port = port.is_none_or(|p| p.parse::<u16>().is_ok_and(|n| n > 0) && !p.starts_with('+'));
        let v6 = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
        let is_name = match v6 {
            Some(address) => below.is_none() && address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !name.is_empty() && name.bytes().all(is_host_byte) && !name.starts_with('.'),
        };
        if !is_scheme || !is_port || !is_name || text.len() > 300 {
            return None;
        }
        Some(match below {
            None => Self { front: text.into(), behind: None },
            Some(below) => {
                Self { front: format!("{scheme}://").into(), behind: Some(format!(".{below}").into()) }
            }
        })
    }

    fn fits(&self, origin: &str) -> bool {
        let Some(behind) = &self.behind else { return *origin == *self.front };
        let between = origin.strip_prefix(&*self.front).and_then(|o| o.strip_suffix(&**behind));
        between.is_some_and(|labels| {
            !labels.is_empty() && labels.split('.').all(|l| !l.is_empty() && l.bytes().all(is_host_byte))
        })
    }
}

/// Browsers write origins in lower case.
const fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: Origins) -> Cors {
        Cors {
            origins,
            methods: [Method::GET, Method::POST].into(),
            headers: [header::AUTHORIZATION, header::CONTENT_TYPE].into(),
            expose: HeaderValue::from_static("X-Request-Id"),
            credentials: false,
            max_age: Duration::from_mins(10),
        }
    }

    fn listed(rules: &[&str]) -> Origins {
        Origins::Listed(rules.iter().map(|r| OriginRule::parse(r).expect("a rule")).collect())
    }

    #[test]
    fn an_origin_fits_whole_and_a_star_takes_labels_only() {
        let rules = listed(&["https://app.example", "https://*.example.com:8443", "http://[::1]:3000"]);
        let cors = cors(rules);
        for (origin, fits) in [
            ("https://app.example", true),
            ("http://app.example", false),
            ("https://app.example:443", false),
            ("https://app.example.evil", false),
            ("https://evilapp.example", false),
            ("https://a.example.com:8443", true),
            ("https://a.b.example.com:8443", true),
            ("https://example.com:8443", false),
            ("https://.example.com:8443", false),
            ("https://evil.org/.example.com:8443", false),
            ("https://evil.org:1.example.com:8443", false),
            ("https://u@a.example.com:8443", false),
            ("http://[::1]:3000", true),
            ("null", false),
            ("", false),
        ] {
            let origin = HeaderValue::from_static(origin);
            assert_eq!(cors.allowed(&origin).is_some(), fits, "{origin:?}");
        }
        for bad in [
            "*",
            "https://",
            "https://a/",
            "https://A.b",
            "a.b",
            "https://*",
            "https://*.[::1]",
            "https://a:0",
        ] {
            assert_eq!(OriginRule::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_preflight_is_told_all_or_nothing() {
        let cors = cors(listed(&["https://app.example"]));
        for (origin, method, headers, allowed) in [
            ("https://app.example", Method::POST, Some("Content-Type,authorization"), true),
            ("https://app.example", Method::GET, None, true),
            ("https://app.example", Method::DELETE, None, false),
            ("https://app.example", Method::POST, Some("x-other"), false),
            ("https://other.example", Method::POST, None, false),
        ] {
            let (origin, headers) = (HeaderValue::from_static(origin), headers.map(HeaderValue::from_static));
            let asked = PreflightRequest { origin: &origin, method: &method, headers: headers.as_ref() };
            let answer = cors.answer(&asked);
            assert_eq!(answer.get("access-control-allow-origin"), allowed.then_some(&origin));
            assert_eq!(answer.get("access-control-allow-headers"), headers.as_ref().filter(|_| allowed));
            assert_eq!(answer.contains_key("access-control-max-age"), allowed);
            assert!(answer["vary"].to_str().is_ok_and(|v| v.starts_with("Origin, ")));
        }
    }

    #[test]
    fn claims_of_the_backend_do_not_count() {
        let origin = HeaderValue::from_static("https://app.example");
        let mut answer = HeaderMap::new();
        answer.insert("access-control-allow-origin", HeaderValue::from_static("*"));
        answer.insert("access-control-allow-private-network", HeaderValue::from_static("true"));
        answer.insert("vary", HeaderValue::from_static("Accept"));
        cors(Origins::Any).mark(&mut answer, Some(&origin));
        assert_eq!(answer["access-control-allow-origin"], "*");
        assert!(!answer.contains_key("access-control-allow-private-network"));
        assert_eq!(answer.get_all("vary").iter().count(), 1, "the same for every origin");
        let mut strict = cors(listed(&["https://app.example"]));
        strict.credentials = true;
        strict.mark(&mut answer, Some(&origin));
        assert_eq!(
            (&answer["access-control-allow-origin"], &answer["access-control-allow-credentials"]),
            (&origin, &HeaderValue::from_static("true"))
        );
        assert_eq!(answer.get_all("vary").iter().count(), 2);
        strict.mark(&mut answer, Some(&HeaderValue::from_static("https://other.example")));
        assert!(!answer.keys().any(|name| name.as_str().starts_with("access-control-")));
    }
}
