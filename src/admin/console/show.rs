//! How numbers and instants are written on pages.

use crate::clock::Timestamp;
use crate::model::fault::Lang;

/// `12,345,678`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Cost, from billionths of the currency unit.
pub(super) fn money(nano: u64) -> String {
    const NANO: u64 = 1_000_000_000;
    let rest = format!("{:09}", nano % NANO);
    let rest = rest.trim_end_matches('0');
    format!("{}.{rest:0<2}", count(nano / NANO))
}

/// Milliseconds with at most one decimal.
pub(super) fn millis(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// `12.3 %`.
pub(super) fn percent(share: f64) -> String {
    match share {
        0.0 | 10.0.. => format!("{share:.0} %"),
        0.05.. => format!("{share:.1} %"),
        _ => "< 0.1 %".to_owned(),
    }
}

/// Bytes in the largest unit that leaves a digit before the point.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub(super) fn bytes(number: u64) -> String {
    let (mut rest, mut unit) = (number as f64, "B");
    for larger in ["kB", "MB", "GB", "TB"] {
        if rest < 1_000.0 {
            break;
        }
        (rest, unit) = (rest / 1_000.0, larger);
    }
    if unit == "B" { format!("{number} B") } else { format!("{rest:.1} {unit}") }
}

/// `2026-12-01 11:36:05`, in UTC.
pub(super) fn instant(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .map(|at| at.format("%Y-%m-%d %H:%M:%S").to_string())
        .unwrap_or_default()
}

/// `2026-12-01T11:36`, as a form field for it has it.
pub(super) fn form_instant(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .map(|at| at.format("%Y-%m-%dT%H:%M").to_string())
        .unwrap_or_default()
}

/// How long ago, or until when, roughly: `3 min ago`, `in 2 d`.
pub(super) fn distance(ms: i64, now: Timestamp, lang: Lang) -> String {
    let away = ms - now.as_millis();
    let seconds = away.unsigned_abs() / 1_000;
    let (number, en, zh) = match seconds {
        0..60 => (seconds, "s", "秒"),
        60..3_600 => (seconds / 60, "min", "分钟"),
        3_600..172_800 => (seconds / 3_600, "h", "小时"),
        _ => (seconds / 86_400, "d", "天"),
    };
    match (lang, away > 0) {
        (Lang::En, true) => format!("in {number} {en}"),
        (Lang::En, false) => format!("{number} {en} ago"),
        (Lang::Zh, true) => format!("{number} {zh}后"),
        (Lang::Zh, false) => format!("{number} {zh}前"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0, 1, 1_500_000_000, 2_000_000_000_000].map(money),
            ["0.00", "0.000000001", "1.50", "2,000.00"]
        );
        assert_eq!([0, 999, 1_000, 2_340_000].map(bytes), ["0 B", "999 B", "1.0 kB", "2.3 MB"]);
        assert_eq!([0.0, 0.01, 2.34, 97.6].map(percent), ["0 %", "< 0.1 %", "2.3 %", "98 %"]);
        assert_eq!(instant(1_767_225_600_000), "2026-01-01 00:00:00");
        let now = Timestamp::from_secs(1_767_225_600);
        let at = |seconds: i64| distance(now.as_millis() + seconds * 1_000, now, Lang::En);
        assert_eq!([at(-5), at(-300), at(7_200), at(500_000)], ["5 s ago", "5 min ago", "in 2 h", "in 5 d"]);
    }
}
