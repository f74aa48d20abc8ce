//! Reads the secret and the end user of a request from header fields and bodies.
//!
//! Must not know: whether the secret is valid. Never uses the query string.

use super::denial::{BadRequest, Denial};
use crate::model::fault::Fault;
use crate::policy::http::coding::{Coding, is_too_much};
use crate::policy::http::fields::HeaderFields;
use crate::policy::http::path::decode_segment;
use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use http::header::{AUTHORIZATION, HeaderName, SEC_WEBSOCKET_PROTOCOL};
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::io;

/// Longest end user id, in characters.
pub const END_USER_MAX: usize = 255;

/// Base64 with or without padding, as clients send it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A place in a request that may carry a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretPlace {
    /// A header field. `Authorization` counts only with the scheme `Bearer`; other schemes are for the backend.
    Header(HeaderName),
    /// The user name of `Authorization: Basic`.
    BasicUser,
    /// The password of `Authorization: Basic`.
    BasicPassword,
    /// An entry `PREFIX.SECRET` of `Sec-WebSocket-Protocol`, where a browser's script can put it.
    Subprotocol {
        /// The prefix with its dot.
        prefix: Box<str>,
    },
}

/// The secret in one of `places`; none if there is none.
pub fn presented<'h>(
    fields: HeaderFields<'h>,
    places: &[SecretPlace],
) -> Result<Option<Cow<'h, [u8]>>, BadRequest> {
    let mut found: Option<(Cow<'h, [u8]>, &SecretPlace)> = None;
    for place in places {
        for value in fields.all(place.header()) {
            let Some(secret) = place.secret_in(value.trim_ascii()).filter(|secret| !secret.is_empty()) else {
                continue;
            };
            match &found {
                Some((other, _)) if *other == secret => {}
                Some((_, other)) => {
                    let headers = [other.header().clone(), place.header().clone()];
                    return Err(BadRequest::TwoCredentials(Box::new(headers)));
                }
                None => found = Some((secret, place)),
            }
        }
    }
    Ok(found.map(|(secret, _)| secret))
}

/// The challenges of a 401 on a route that reads the secret from `places`: Basic where it can be sent so, and Bearer unless it
/// can only be sent so. A client that knows no header for the secret still learns that there is one.
pub fn challenges(places: &[SecretPlace]) -> impl Iterator<Item = &'static str> {
    let all = ["Bearer", "Basic realm=\"API key\""];
    let is_any = |challenge: &str| places.iter().any(|place| place.challenge() == challenge);
    let given = all.map(|challenge| is_any(challenge) || (places.is_empty() && challenge == all[0]));
    all.into_iter().zip(given).filter_map(|(challenge, is_given)| is_given.then_some(challenge))
}

impl SecretPlace {
    /// The header field that it is in.
    pub fn header(&self) -> &HeaderName {
        match self {
            Self::Header(name) => name,
            Self::BasicUser | Self::BasicPassword => &AUTHORIZATION,
            Self::Subprotocol { .. } => &SEC_WEBSOCKET_PROTOCOL,
        }
    }

    /// The challenge of a 401 for it (RFC 9110, 11.6.1).
    fn challenge(&self) -> &'static str {
        match self {
            Self::BasicUser | Self::BasicPassword => "Basic realm=\"API key\"",
            Self::Header(_) | Self::Subprotocol { .. } => "Bearer",
        }
    }

    /// The secret in `value`, a value of its header field.
    pub fn secret_in<'v>(&self, value: &'v [u8]) -> Option<Cow<'v, [u8]>> {
        match self {
            Self::Header(name) if *name == AUTHORIZATION => bearer(value).map(Cow::Borrowed),
            Self::Header(_) => Some(value.into()),
            Self::BasicUser => basic(value).map(|(user, _)| user.into()),
            Self::BasicPassword => basic(value).map(|(_, password)| password.into()),
            Self::Subprotocol { prefix } => {
                let mut entries = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                entries.find_map(|entry| entry.strip_prefix(prefix.as_bytes())).map(Cow::Borrowed)
            }
        }
    }
}

/// The value after `Bearer`, with the scheme in any case.
pub fn bearer(value: &[u8]) -> Option<&[u8]> {
    after_scheme(value, b"bearer")
}

/// User name and password after `Basic` (RFC 7617).
pub fn basic(value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut user = BASE64.decode(after_scheme(value, b"basic")?).ok()?;
    let password = user.split_off(user.iter().position(|byte| *byte == b':')?);
    Some((user, password[1..].to_vec()))
}

fn after_scheme<'v>(value: &'v [u8], scheme: &[u8]) -> Option<&'v [u8]> {
    let (given, rest) = value.split_at_checked(scheme.len())?;
    if !given.eq_ignore_ascii_case(scheme) || !(rest.is_empty() || matches!(rest[0], b' ' | b'\t')) {
        return None;
    }
    Some(rest.trim_ascii())
}

/// The end user in the header field `name`; none if it is absent.
pub fn end_user_in_header<'h>(
    fields: HeaderFields<'h>,
    name: &HeaderName,
) -> Result<Option<&'h str>, BadRequest> {
    let mut values = fields.all(name);
    let Some(value) = values.next() else { return Ok(None) };
    let text = std::str::from_utf8(value).map_err(|_| BadRequest::EndUserHeader)?.trim();
    if values.next().is_some() || !is_end_user(text) {
        return Err(BadRequest::EndUserHeader);
    }
    Ok(Some(text))
}

/// The end user in the parameter `name` of a query; none if it is absent.
pub fn end_user_in_query(query: &[u8], name: &str) -> Result<Option<String>, BadRequest> {
    let mut found = None;
    for pair in query.split(|byte| *byte == b'&') {
        let at = pair.iter().position(|byte| *byte == b'=');
        let (key, value) = pair.split_at(at.unwrap_or(pair.len()));
        if decoded(key).as_deref() != Some(name) {
            continue;
        }
        let value = decoded(value.get(1..).unwrap_or_default()).filter(|text| is_end_user(text));
        if found.replace(value.ok_or(BadRequest::EndUserQuery)?).is_some() {
            return Err(BadRequest::EndUserQuery);
        }
    }
    Ok(found)
}

/// A name or value of a query, as forms write it.
fn decoded(part: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(part).ok()?.replace('+', " ");
    decode_segment(&text).map(Cow::into_owned)
}

/// The end user in the top-level `field` of a JSON object; none if it is absent or null.
pub fn end_user_in_body(body: &[u8], field: &str) -> Result<Option<String>, BadRequest> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let found = reader.deserialize_map(FieldVisitor(field)).map_err(|_| BadRequest::EndUserBody)?;
    reader.end().map_err(|_| BadRequest::EndUserBody)?;
    sound(found)
}

/// The same for an encoded body, which may decode to `max` bytes.
pub fn end_user_in_coded_body(
    body: &[u8],
    coding: Coding,
    max: u64,
    field: &str,
) -> Result<Option<String>, Denial> {
    if coding == Coding::Identity {
        return end_user_in_body(body, field).map_err(Denial::BadRequest);
    }
    let refused = |error: io::Error| {
        if is_too_much(&error) {
            Denial::Plain(Fault::PayloadTooLarge)
        } else {
            Denial::BadRequest(BadRequest::EndUserBody)
        }
    };
    let mut reader = serde_json::Deserializer::from_reader(coding.decoded(body, max).map_err(refused)?);
    let read = reader.deserialize_map(FieldVisitor(field)).and_then(|found| reader.end().map(|()| found));
    let found = read.map_err(|error| refused(error.into()))?;
    sound(found).map_err(Denial::BadRequest)
}

fn sound(found: Option<String>) -> Result<Option<String>, BadRequest> {
    match found {
        Some(text) if is_end_user(&text) => Ok(Some(text)),
        Some(_) => Err(BadRequest::EndUserBody),
        None => Ok(None),
    }
}

/// Whether `text` is a valid end user id.
pub fn is_end_user(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= END_USER_MAX && !text.chars().any(char::is_control)
}

struct FieldVisitor<'f>(&'f str);

impl<'de> Visitor<'de> for FieldVisitor<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<String>, A::Error> {
        let mut found = None;
        let mut seen = false;
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if name != self.0 {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            // A repeated field is an error, because the backend might read the other one.
            if seen {
                return Err(serde::de::Error::custom("the field is there twice"));
            }
            seen = true;
            found = map.next_value::<Option<String>>()?;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};

    fn headers(rows: &[(&'static str, &'static str)]) -> HeaderMap {
        rows.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn the_secret_is_read_from_the_configured_headers_and_two_different_ones_are_refused() {
        type Row<'r> = (&'r [(&'static str, &'static str)], Result<Option<&'r str>, BadRequest>);
        let x_api_key = HeaderName::from_static("x-api-key");
        let two = |a: &HeaderName, b: &HeaderName| {
            Err(BadRequest::TwoCredentials(Box::new([a.clone(), b.clone()])))
        };
        let places = [AUTHORIZATION, x_api_key.clone()].map(SecretPlace::Header);
        let rows: &[Row<'_>] = &[
            (&[], Ok(None)),
            (&[("authorization", "Bearer abc")], Ok(Some("abc"))),
            (&[("authorization", "bEARER   abc ")], Ok(Some("abc"))),
            (&[("authorization", "Bearer")], Ok(None)),
            (&[("authorization", "Bearer ")], Ok(None)),
            (&[("authorization", "Bearerabc")], Ok(None)),
            // Some backends accept any white space.
            (&[("authorization", "Bearer\tabc")], Ok(Some("abc"))),
            (&[("authorization", "Basic abc")], Ok(None)),
            (&[("authorization", "Bearer a b")], Ok(Some("a b"))),
            (&[("x-api-key", "abc")], Ok(Some("abc"))),
            (&[("x-api-key", "")], Ok(None)),
            (&[("x-api-key", "Bearer abc")], Ok(Some("Bearer abc"))),
            (&[("api-key", "abc")], Ok(None)),
            (&[("authorization", "Bearer abc"), ("x-api-key", "abc")], Ok(Some("abc"))),
            (&[("authorization", "Bearer abc"), ("x-api-key", "xyz")], two(&AUTHORIZATION, &x_api_key)),
            (&[("authorization", "Basic abc"), ("x-api-key", "xyz")], Ok(Some("xyz"))),
            (
                &[("authorization", "Bearer abc"), ("authorization", "Bearer xyz")],
                two(&AUTHORIZATION, &AUTHORIZATION),
            ),
            (&[("authorization", "Bearer abc"), ("authorization", "Bearer abc")], Ok(Some("abc"))),
            (&[("x-api-key", "abc"), ("x-api-key", "abd")], two(&x_api_key, &x_api_key)),
        ];
        for (given, expected) in rows {
            let mut map = HeaderMap::new();
            for (name, value) in *given {
                map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            assert_eq!(
                presented(HeaderFields::Map(&map), &places),
                expected.clone().map(|s| s.map(|s| Cow::from(s.as_bytes()))),
                "{given:?}"
            );
        }
    }

    #[test]
    fn the_secret_is_read_from_basic_credentials_and_from_a_subprotocol_where_a_route_says_so() {
        let user = [SecretPlace::BasicUser];
        let password = [SecretPlace::BasicPassword];
        let either = [SecretPlace::BasicUser, SecretPlace::BasicPassword];
        let subprotocol = [SecretPlace::Subprotocol { prefix: "key.".into() }];
        let protocol = "sec-websocket-protocol";
        let basic = |text: &str| format!("Basic {}", BASE64.encode(text));
        let unpadded = format!("basic {}", BASE64.encode("ab:").trim_end_matches('='));
        for (places, name, value, expected) in [
            (&user[..], "authorization", basic("abc:"), Some("abc")),
            (&user, "authorization", basic("abc:x:y"), Some("abc")),
            (&user, "authorization", unpadded, Some("ab")),
            (&user, "authorization", basic(":abc"), None),
            (&user, "authorization", basic("abc"), None),
            (&user, "authorization", "Basic !".into(), None),
            (&user, "authorization", "Bearer abc".into(), None),
            (&password, "authorization", basic("api:abc"), Some("abc")),
            (&password, "authorization", basic("api:a:c"), Some("a:c")),
            (&password, "authorization", basic("abc:"), None),
            (&either, "authorization", basic(":abc"), Some("abc")),
            (&either, "authorization", basic("abc:"), Some("abc")),
            (&subprotocol, protocol, "chat, key.abc".into(), Some("abc")),
            (&subprotocol, protocol, "key.abc,chat".into(), Some("abc")),
            (&subprotocol, protocol, "chat, xkey.abc, key".into(), None),
            (&subprotocol, protocol, "key.".into(), None),
        ] {
            let map: HeaderMap =
                [(HeaderName::from_static(name), HeaderValue::from_str(&value).expect("a value"))]
                    .into_iter()
                    .collect();
            let found = presented(HeaderFields::Map(&map), places).expect("one credential");
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{places:?} {value}");
        }
    }

    #[test]
    fn an_end_user_header_is_trimmed_and_an_empty_repeated_or_long_one_refused() {
        let name = HeaderName::from_static("x-end-user-id");
        assert_eq!(end_user_in_header(HeaderFields::Map(&headers(&[])), &name), Ok(None));
        assert_eq!(
            end_user_in_header(HeaderFields::Map(&headers(&[("x-end-user-id", " ann ")])), &name),
            Ok(Some("ann"))
        );
        assert_eq!(
            end_user_in_header(HeaderFields::Map(&headers(&[("x-end-user-id", "")])), &name),
            Err(BadRequest::EndUserHeader)
        );
        let mut twice = headers(&[("x-end-user-id", "ann")]);
        twice.append(&name, HeaderValue::from_static("bob"));
        assert_eq!(end_user_in_header(HeaderFields::Map(&twice), &name), Err(BadRequest::EndUserHeader));
        let mut long = HeaderMap::new();
        long.insert(&name, HeaderValue::from_str(&"a".repeat(END_USER_MAX + 1)).expect("a value"));
        assert_eq!(end_user_in_header(HeaderFields::Map(&long), &name), Err(BadRequest::EndUserHeader));
    }

    #[test]
    fn the_end_user_is_read_from_the_query_in_every_spelling_and_a_repeated_one_refused() {
        let bad = || Err(BadRequest::EndUserQuery);
        for (query, expected) in [
            ("", Ok(None)),
            ("other=1&users=2", Ok(None)),
            ("user=ann", Ok(Some("ann"))),
            ("a&user=ann%20b+c&b=1", Ok(Some("ann b c"))),
            ("us%65r=%C3%A9", Ok(Some("é"))),
            ("user=a=b", Ok(Some("a=b"))),
            ("user", bad()),
            ("user=", bad()),
            ("user=%ff", bad()),
            ("user=%00", bad()),
            ("user=ann&us%65r=ann", bad()),
        ] {
            let found = end_user_in_query(query.as_bytes(), "user");
            assert_eq!(found, expected.map(|user| user.map(str::to_owned)), "{query}");
        }
        assert_eq!(
            end_user_in_query(format!("user={}", "a".repeat(256)).as_bytes(), "user"),
            bad().map(|_: Option<&str>| None)
        );
    }

    #[test]
    fn the_end_user_is_read_from_a_top_level_string_and_other_types_are_refused() {
        const BAD: Result<Option<&str>, BadRequest> = Err(BadRequest::EndUserBody);
        for (body, expected) in [
            (r#"{"user":"ann"}"#, Ok(Some("ann"))),
            (r#"{"messages":[{"user":"eve"}],"user":"ann"}"#, Ok(Some("ann"))),
            (r#"{"us\u0065r":"ann"}"#, Ok(Some("ann"))),
            (r#"{"user":null}"#, Ok(None)),
            ("{}", Ok(None)),
            (r#"{"user":""}"#, BAD),
            (r#"{"user":7}"#, BAD),
            (r#"{"user":"a\u0000b"}"#, BAD),
            (r#"{"user":"ann","user":"bob"}"#, BAD),
            (r#"{"user":"ann"} x"#, BAD),
            (r#"["user"]"#, BAD),
            ("", BAD),
            (r#"{"user":"ann""#, BAD),
        ] {
            assert_eq!(
                end_user_in_body(body.as_bytes(), "user"),
                expected.map(|o| o.map(str::to_owned)),
                "{body}"
            );
        }
    }
}
