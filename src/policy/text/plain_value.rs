//! A value outside the config file: in a variable, or in a file that contains nothing else. One rule for all.
//!
//! Must not know: what the value is for. It may be a secret, so no error repeats any part of it.

use std::fmt;

/// The byte order mark that some editors write at the start of UTF-8 files.
const BOM: char = '\u{feff}';

/// Why a value is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadValue {
    /// It is in quotes.
    Quoted,
    /// It has a control character inside.
    Control,
}

/// The text without a byte order mark in front.
pub fn without_bom(text: &str) -> &str {
    text.strip_prefix(BOM).unwrap_or(text)
}

/// The value in `text`, without a byte order mark and white space around it.
pub fn value(text: &str) -> Result<&str, BadValue> {
    trimmed(text, char::is_control)
}

/// The same for a value of several lines.
pub fn lines(text: &str) -> Result<&str, BadValue> {
    trimmed(text, |c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
}

fn trimmed(text: &str, is_wrong: fn(char) -> bool) -> Result<&str, BadValue> {
    let value = without_bom(text).trim();
    let (first, last) = (value.chars().next(), value.chars().next_back());
    let quotes = [('"', '"'), ('\'', '\''), ('`', '`'), ('“', '”'), ('‘', '’'), ('„', '“'), ('«', '»')];
    if value.chars().nth(1).is_some() && first.zip(last).is_some_and(|ends| quotes.contains(&ends)) {
        return Err(BadValue::Quoted);
    }
    if value.contains(is_wrong) { Err(BadValue::Control) } else { Ok(value) }
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quoted => "is in quotes, which would be a part of it: write it without them",
            Self::Control => "has a line end or another control character in it",
        })
    }
}

impl std::error::Error for BadValue {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitespace_around_a_value_is_trimmed_and_quotes_are_reported() {
        for (text, expected) in [
            ("", Ok("")),
            ("plain", Ok("plain")),
            (" a b\r\n", Ok("a b")),
            ("\u{feff}a\n", Ok("a")),
            ("it's", Ok("it's")),
            ("\"half", Ok("\"half")),
            ("'", Ok("'")),
            ("\"quoted\"", Err(BadValue::Quoted)),
            (" 'quoted'\n", Err(BadValue::Quoted)),
            ("“quoted”", Err(BadValue::Quoted)),
            ("\"\"", Err(BadValue::Quoted)),
            ("a\nb", Err(BadValue::Control)),
            ("a\0", Err(BadValue::Control)),
            ("a\u{85}b", Err(BadValue::Control)),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
        assert_eq!(lines("\u{feff}a: b\r\nc:\td\n"), Ok("a: b\r\nc:\td"));
        assert_eq!(lines("'a: b\nc: d'"), Err(BadValue::Quoted));
        assert_eq!(lines("a\u{1b}"), Err(BadValue::Control));
    }
}
