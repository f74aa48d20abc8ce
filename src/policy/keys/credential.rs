//! Reads the secret and the end user of a request from header fields and bodies.
//!
//! Must not know: whether the secret is valid. Never uses the query string.

use super::denial::{BadRequest, Denial};
use crate::model::fault::Fault;
use crate::policy::http::coding::{Coding, is_too_much};
use crate::policy::http::fields::HeaderFields;
use http::header::{AUTHORIZATION, HeaderName};
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use std::io;

/// Longest end user id, in characters.
pub const END_USER_MAX: usize = 255;

/// The secret in one of the header fields `names`; none if there is none. `Authorization` counts only with the scheme
/// `Bearer`; other schemes are for the backend.
pub fn presented<'h>(fields: HeaderFields<'h>, names: &[HeaderName]) -> Result<Option<&'h [u8]>, BadRequest> {
    let mut found: Option<&[u8]> = None;
    for name in names {
        for value in fields.all(name) {
            let bytes = value.trim_ascii();
            let secret = if *name == AUTHORIZATION {
                let Some(secret) = bearer(bytes) else { continue };
                secret
            } else {
                bytes
            };
            if secret.is_empty() {
                continue;
            }
            if found.is_some_and(|other| other != secret) {
                return Err(BadRequest::TwoCredentials);
            }
            found = Some(secret);
        }
    }
    Ok(found)
}

/// The value after `Bearer`, with the scheme in any case.
pub fn bearer(value: &[u8]) -> Option<&[u8]> {
    let scheme = value.get(..6)?;
    let rest = &value[6..];
    if !scheme.eq_ignore_ascii_case(b"bearer") || !(rest.is_empty() || matches!(rest[0], b' ' | b'\t')) {
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
        let names = [AUTHORIZATION, HeaderName::from_static("x-api-key")];
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
            (&[("authorization", "Bearer abc"), ("x-api-key", "xyz")], Err(BadRequest::TwoCredentials)),
            (&[("authorization", "Basic abc"), ("x-api-key", "xyz")], Ok(Some("xyz"))),
            (
                &[("authorization", "Bearer abc"), ("authorization", "Bearer xyz")],
                Err(BadRequest::TwoCredentials),
            ),
            (&[("authorization", "Bearer abc"), ("authorization", "Bearer abc")], Ok(Some("abc"))),
            (&[("x-api-key", "abc"), ("x-api-key", "abd")], Err(BadRequest::TwoCredentials)),
        ];
        for (given, expected) in rows {
            let mut map = HeaderMap::new();
            for (name, value) in *given {
                map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            assert_eq!(
                presented(HeaderFields::Map(&map), &names),
                expected.map(|s| s.map(str::as_bytes)),
                "{given:?}"
            );
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
    fn the_end_user_is_read_from_a_top_level_string_and_other_types_are_refused() {
        let bad = Err(BadRequest::EndUserBody);
        for (body, expected) in [
            (r#"{"user":"ann"}"#, Ok(Some("ann"))),
            (r#"{"messages":[{"user":"eve"}],"user":"ann"}"#, Ok(Some("ann"))),
            (r#"{"us\u0065r":"ann"}"#, Ok(Some("ann"))),
            (r#"{"user":null}"#, Ok(None)),
            ("{}", Ok(None)),
            (r#"{"user":""}"#, bad),
            (r#"{"user":7}"#, bad),
            (r#"{"user":"a\u0000b"}"#, bad),
            (r#"{"user":"ann","user":"bob"}"#, bad),
            (r#"{"user":"ann"} x"#, bad),
            (r#"["user"]"#, bad),
            ("", bad),
            (r#"{"user":"ann""#, bad),
        ] {
            assert_eq!(
                end_user_in_body(body.as_bytes(), "user"),
                expected.map(|o| o.map(str::to_owned)),
                "{body}"
            );
        }
    }
}
