//! Prices as decimal numbers: exactly what was written, never through a floating-point number.

use super::PRICE_MAX;

/// Why a text is no price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDecimal {
    /// It is not a decimal number.
    #[error("must be a number, 0 or more")]
    NotANumber,
    /// It is below 0.
    #[error("must not be negative")]
    Negative,
    /// It is above [`PRICE_MAX`].
    #[error("must be at most a billion per million tokens")]
    TooLarge,
}

/// The number in `text` (`2.5`, `1e-6`) times 10 to the power of `shift`, rounded to the nearest whole number, up if in the
/// middle. With a shift of 9 it is a price per million tokens in billionths; with 15 the same of a price per token.
pub fn shifted(text: &str, shift: i32) -> Result<u64, BadDecimal> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        None => (text, 0),
        Some((mantissa, exponent)) => {
            let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
            (mantissa, exponent.parse::<i32>().map_err(|_| BadDecimal::NotANumber)?)
        }
    };
    let (is_negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa.strip_prefix('+').unwrap_or(mantissa)),
    };
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || whole.bytes().chain(part.bytes());
    if digits().next().is_none() || !digits().all(|digit| digit.is_ascii_digit()) {
        return Err(BadDecimal::NotANumber);
    }
    if digits().all(|digit| digit == b'0') {
        return Ok(0);
    }
    if is_negative {
        return Err(BadDecimal::Negative);
    }
    // The point stands after so many digits; further ones are dropped, and the first of them rounds.
    let whole_digits = i64::try_from(whole.len()).unwrap_or(i64::MAX);
    let point = whole_digits.saturating_add(exponent.into()).saturating_add(shift.into());
    let mut value = 0_u64;
    let mut at = 0_i64;
    let mut written = digits();
    while at < point {
        let digit = written.next().map_or(0, |digit| u64::from(digit - b'0'));
        value =
            value.checked_mul(10).and_then(|value| value.checked_add(digit)).ok_or(BadDecimal::TooLarge)?;
        if value > PRICE_MAX {
            return Err(BadDecimal::TooLarge);
        }
        at += 1;
    }
    let rounds_up = point >= 0 && written.next().is_some_and(|digit| digit >= b'5');
    let value = value + u64::from(rounds_up);
    if value > PRICE_MAX { Err(BadDecimal::TooLarge) } else { Ok(value) }
}

/// A price in billionths per million tokens as people write it, the reverse of [`shifted`] with 9.
pub fn shown(price: u64) -> String {
    let (whole, part) = (price / 1_000_000_000, price % 1_000_000_000);
    let part = format!("{part:09}");
    match part.trim_end_matches('0') {
        "" => whole.to_string(),
        part => format!("{whole}.{part}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_read_exactly() {
        for (text, shift, expected) in [
            ("2.5", 9, Ok(2_500_000_000)),
            ("3", 9, Ok(3_000_000_000)),
            ("0", 9, Ok(0)),
            ("-0.0", 9, Ok(0)),
            (".5", 9, Ok(500_000_000)),
            ("1.", 9, Ok(1_000_000_000)),
            ("0.075", 9, Ok(75_000_000)),
            ("1.5e-07", 15, Ok(150_000_000)),
            ("0.00000015", 15, Ok(150_000_000)),
            ("3E-6", 15, Ok(3_000_000_000)),
            ("1e+1", 9, Ok(10_000_000_000)),
            ("1.0000000004", 9, Ok(1_000_000_000)),
            ("1.0000000005", 9, Ok(1_000_000_001)),
            ("1e-10", 9, Ok(0)),
            ("5e-10", 9, Ok(1)),
            ("5e-11", 9, Ok(0)),
            ("1e9", 9, Ok(PRICE_MAX)),
            ("1.000000000000000000001e9", 9, Ok(PRICE_MAX)),
            ("1000000001", 9, Err(BadDecimal::TooLarge)),
            ("1e400", 9, Err(BadDecimal::TooLarge)),
            ("-1", 9, Err(BadDecimal::Negative)),
            ("-1e-400", 9, Err(BadDecimal::Negative)),
            ("", 9, Err(BadDecimal::NotANumber)),
            (".", 9, Err(BadDecimal::NotANumber)),
            ("nan", 9, Err(BadDecimal::NotANumber)),
            ("inf", 9, Err(BadDecimal::NotANumber)),
            ("1e", 9, Err(BadDecimal::NotANumber)),
            ("1e99999999999", 9, Err(BadDecimal::NotANumber)),
            ("1,5", 9, Err(BadDecimal::NotANumber)),
            ("1 ", 9, Err(BadDecimal::NotANumber)),
        ] {
            assert_eq!(shifted(text, shift), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn displayed_values_parse_back(price in 0..=PRICE_MAX) {
            prop_assert_eq!(shifted(&shown(price), 9), Ok(price));
        }

        #[test]
        fn nothing_panics(text in "[0-9.eE+-]{0,12}", shift in -20..20) {
            shifted(&text, shift).ok();
        }
    }
}
