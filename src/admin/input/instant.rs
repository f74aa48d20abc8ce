//! Parses instants: epoch seconds, epoch milliseconds or RFC 3339.

use crate::clock::Timestamp;

/// What [`parse_instant`] accepts, for messages.
pub const INSTANT_ALLOWED: &str =
    "must be epoch seconds, epoch milliseconds or RFC 3339, from the year 1970 to the year 9999";

/// Whole numbers from here on are milliseconds: as seconds they would be the year 5138, as milliseconds March 1973.
const MILLIS_FROM: i64 = 100_000_000_000;

/// Parses an instant; none if it is invalid or outside the years 1970 to 9999.
pub fn parse_instant(text: &str) -> Option<Timestamp> {
    let at = match text.parse::<i64>() {
        Ok(number) => from_number(number),
        Err(_) => Timestamp::from_micros(chrono::DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros()),
    };
    (Timestamp::default()..=Timestamp::MAX).contains(&at).then_some(at)
}

fn from_number(number: i64) -> Timestamp {
    if number >= MILLIS_FROM { Timestamp::from_millis(number) } else { Timestamp::from_secs(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_as_seconds_milliseconds_or_rfc_3339() {
        let day = 1_767_225_600;
        for (text, expected) in [
            ("0", Some(0)),
            ("1767225600", Some(day * 1_000)),
            ("1767225600000", Some(day * 1_000)),
            ("99999999999", Some(99_999_999_999_000)),
            ("100000000000", Some(100_000_000_000)),
            ("2026-01-01T00:00:00Z", Some(day * 1_000)),
            ("2026-01-01T08:00:00.250+08:00", Some(day * 1_000 + 250)),
            ("253402300799999", Some(253_402_300_799_999)),
            ("253402300800000", None),
            ("9223372036854775807", None),
            ("99999999999999999999", None),
            ("-1", None),
            ("1969-12-31T23:59:59Z", None),
            ("2026-01-01", None),
            ("2026-13-01T00:00:00Z", None),
            ("tomorrow", None),
            ("", None),
        ] {
            assert_eq!(parse_instant(text).map(Timestamp::as_millis), expected, "{text}");
        }
    }
}
