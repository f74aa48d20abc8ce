//! Text in forms (`application/x-www-form-urlencoded`).

use std::fmt::Write as _;

/// `text` with all bytes percent-encoded that are not letters, digits, `-`, `.` or `_`.
pub fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            write!(out, "%{byte:02X}").ok();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_with_a_meaning_in_forms_are_encoded() {
        assert_eq!(percent_encoded("aZ09-._"), "aZ09-._");
        assert_eq!(percent_encoded("a b+c&d=e:é%"), "a%20b%2Bc%26d%3De%3A%C3%A9%25");
    }
}
