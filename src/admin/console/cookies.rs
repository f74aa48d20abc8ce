//! The cookies: the session, and what a visitor prefers.

use crate::model::fault::Lang;
use axum::http::{HeaderMap, HeaderValue, header};

/// The cookie of the session.
pub(super) const SESSION: &str = "keygate_session";
/// The cookie of a sign-in that an identity provider has not answered yet.
pub(super) const FLOW: &str = "keygate_sign_in";
/// The cookie of the language: `en` or `zh`.
pub(super) const LANGUAGE: &str = "keygate_lang";
/// The cookie of the colours: `light` or `dark`.
pub(super) const THEME: &str = "keygate_theme";

/// How a visitor wants to see the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Preferences {
    pub(super) lang: Lang,
    /// `auto`, `light` or `dark`.
    pub(super) theme: &'static str,
}

impl Preferences {
    /// From the cookies, or else from what the browser says.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let accepted = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        let lang = match read(headers, LANGUAGE) {
            Some("en") => Lang::En,
            Some("zh") => Lang::Zh,
            _ => accepted.map(Lang::preferred).unwrap_or_default(),
        };
        let theme = match read(headers, THEME) {
            Some("light") => "light",
            Some("dark") => "dark",
            _ => "auto",
        };
        Self { lang, theme }
    }
}

/// The value of a cookie of a request.
pub(super) fn read<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).find_map(|pair| {
        let (found, value) = pair.trim().split_once('=')?;
        (found == name).then_some(value)
    })
}

/// Sets the session. It lasts as long as the browser is open, and is sent only by pages of this server. `is_encrypted`: only
/// over TLS, too.
pub(super) fn session(value: &str, is_encrypted: bool) -> Option<HeaderValue> {
    let secure = if is_encrypted { "; Secure" } else { "" };
    let text = format!("{SESSION}={value}; Path=/console; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::from_str(&text).ok()
}

/// Ends the session.
pub(super) fn no_session() -> HeaderValue {
    HeaderValue::from_static("keygate_session=; Path=/console; HttpOnly; SameSite=Strict; Max-Age=0")
}

/// Remembers a sign-in until the identity provider leads back here, which is a page of another site.
pub(super) fn flow(value: &str, is_encrypted: bool) -> Option<HeaderValue> {
    let secure = if is_encrypted { "; Secure" } else { "" };
    let age = super::session::FLOW_MAX.as_secs();
    let text = format!("{FLOW}={value}; Path=/console/oidc; HttpOnly; SameSite=Lax; Max-Age={age}{secure}");
    HeaderValue::from_str(&text).ok()
}

/// Ends it.
pub(super) fn no_flow() -> HeaderValue {
    HeaderValue::from_static("keygate_sign_in=; Path=/console/oidc; HttpOnly; SameSite=Lax; Max-Age=0")
}

/// Remembers a preference for a year.
pub(super) fn preference(name: &str, value: &str) -> Option<HeaderValue> {
    let text = format!("{name}={value}; Path=/console; HttpOnly; SameSite=Lax; Max-Age=31536000");
    HeaderValue::from_str(&text).ok()
}
