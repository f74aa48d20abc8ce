//! Decimal numbers as JSON writes them, brought to whole ones.

/// The decimal number `text` times ten to the power of `scale`, rounded to a whole number. None if it is negative, no number,
/// or more than a count that every store and every client keeps exactly.
pub(super) fn whole(text: &str, scale: i32) -> Option<u64> {
    const EXACT_MAX: u128 = 1 << 53;
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (before, negative) = before.strip_prefix('-').map_or((before, false), |before| (before, true));
    if before.is_empty() {
        return None;
    }
    let mut digits: u128 = 0;
    let mut power = exponent.checked_add(scale)?;
    for digit in before.bytes() {
        let digit = char::from(digit).to_digit(10)?;
        digits = digits.checked_mul(10)?.checked_add(digit.into())?;
    }
    for digit in after.bytes() {
        let digit = char::from(digit).to_digit(10)?;
        // Digits behind these change nothing that is kept.
        if digits < u128::MAX / 100 {
            digits = digits * 10 + u128::from(digit);
            power = power.checked_sub(1)?;
        }
    }
    let value = if digits == 0 {
        0
    } else if power >= 0 {
        digits.checked_mul(10_u128.checked_pow(power.unsigned_abs())?)?
    } else {
        // Too small to round to anything but nothing if the power is out of reach.
        10_u128
            .checked_pow(power.unsigned_abs())
            .map_or(0, |by| digits / by + u128::from(digits % by >= by / 2))
    };
    let value = u64::try_from(value).ok().filter(|value| u128::from(*value) <= EXACT_MAX)?;
    (value == 0 || !negative).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_numbers_become_whole_ones() {
        for (text, scale, value) in [
            ("0", 0, Some(0)),
            ("12", 0, Some(12)),
            ("12.0", 0, Some(12)),
            ("1.2e1", 0, Some(12)),
            ("2.5", 0, Some(3)),
            ("2.4", 0, Some(2)),
            ("0.00095", 9, Some(950_000)),
            ("1.5e-8", 9, Some(15)),
            ("0.123456789123456789123456789123456789123456789", 9, Some(123_456_789)),
            ("1e-400", 9, Some(0)),
            ("0e99", 9, Some(0)),
            ("9007199254740992", 0, Some(1 << 53)),
            ("9007199254740993", 0, None),
            ("1e99", 0, None),
            ("1e99999999999", 0, None),
            ("-0", 0, Some(0)),
            ("-1", 0, None),
            ("", 0, None),
            (".5", 0, None),
            ("1e", 0, None),
            ("1-2", 0, None),
        ] {
            assert_eq!(whole(text, scale), value, "{text}");
        }
    }
}
