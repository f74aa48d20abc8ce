//! Rules for single values. A key is read together with its rule, so no key is without one.
//!
//! Must not know: which keys there are. A rule reads one value or says what is allowed; it never repeats the value.

use super::raw_value::RawValue;
use crate::model::key::UnknownWord;
use std::fmt::Display;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

/// A rule for values.
pub(super) trait ValueRule {
    /// The type of the value.
    type Value;

    /// What is allowed, to follow "must be".
    fn must(&self) -> String;

    /// The value, or what is wrong with it.
    fn read(&self, given: RawValue<'_>) -> Result<Self::Value, String>;

    /// The value as TOML.
    fn show(&self, value: &Self::Value) -> String;
}

/// `true` or `false`.
pub(super) struct Flag;

/// A whole number from `min` to `max`.
pub(super) struct Integer<T> {
    pub(super) min: T,
    pub(super) max: T,
}

/// A duration such as `"250ms"` or `"10s"`, from `min` to `max`.
pub(super) struct DurationRange {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

/// A number of bytes, plain or such as `"32KiB"`, from `min` to `max`.
pub(super) struct ByteSize<T> {
    pub(super) min: T,
    pub(super) max: T,
}

/// One of the words of a closed list.
pub(super) struct Word<T>(PhantomData<T>);

/// Text of `min` to `max` characters, none of them a control character.
pub(super) struct Text {
    pub(super) min: usize,
    pub(super) max: usize,
}

/// Text that `read` can parse.
pub(super) struct ParsedText<T> {
    pub(super) must: &'static str,
    pub(super) read: fn(&str) -> Option<T>,
    pub(super) show: fn(&T) -> String,
}

/// A whole number that the inner rule allows, or 0.
pub(super) struct OrZero<T>(pub(super) Integer<T>);

/// A value that the inner rule allows, or empty text for none.
pub(super) struct OrEmpty<R>(pub(super) R);

// === impl Flag ===

impl ValueRule for Flag {
    type Value = bool;

    fn must(&self) -> String {
        "true or false".into()
    }

    fn read(&self, given: RawValue<'_>) -> Result<bool, String> {
        given.flag().ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

// === impl Integer ===

impl<T: Copy + PartialOrd + Display + TryFrom<i128>> ValueRule for Integer<T> {
    type Value = T;

    fn must(&self) -> String {
        format!("a whole number from {} to {}", self.min, self.max)
    }

    fn read(&self, given: RawValue<'_>) -> Result<T, String> {
        let number = given.whole().and_then(|whole| T::try_from(whole).ok());
        number.filter(|n| *n >= self.min && *n <= self.max).ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }
}

// === impl DurationRange ===

impl ValueRule for DurationRange {
    type Value = Duration;

    fn must(&self) -> String {
        format!(
            r#"a duration from {} to {}, such as "250ms", "10s", "5m", "1h" or "7d""#,
            show_duration(self.min),
            show_duration(self.max)
        )
    }

    fn read(&self, given: RawValue<'_>) -> Result<Duration, String> {
        let duration = given.text().and_then(parse_duration);
        duration.filter(|d| *d >= self.min && *d <= self.max).ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &Duration) -> String {
        quote(&show_duration(*value))
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (1_000, "s")] {
        if ms >= unit_ms && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}

// === impl ByteSize ===

impl<T: Copy + PartialOrd + TryFrom<u64> + TryInto<u64>> ValueRule for ByteSize<T> {
    type Value = T;

    fn must(&self) -> String {
        format!(
            r#"a number of bytes from {} to {}, plain or with a unit, such as "32KiB", "1MiB" or "2GiB""#,
            show_size(self.min),
            show_size(self.max)
        )
    }

    fn read(&self, given: RawValue<'_>) -> Result<T, String> {
        let plain = given.whole().and_then(|whole| u64::try_from(whole).ok());
        let bytes = plain.or_else(|| given.text().and_then(parse_size));
        let size = bytes.and_then(|bytes| T::try_from(bytes).ok());
        size.filter(|n| *n >= self.min && *n <= self.max).ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &T) -> String {
        quote(&show_size(*value))
    }
}

const SIZE_UNITS: [(u32, &str); 5] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "B")];

fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let (shift, _) =
        SIZE_UNITS.into_iter().find(|(_, name)| *name == unit || (unit.is_empty() && *name == "B"))?;
    number.checked_mul(1 << shift)
}

fn show_size(size: impl TryInto<u64>) -> String {
    let bytes = size.try_into().unwrap_or(u64::MAX);
    for (shift, unit) in SIZE_UNITS {
        if bytes >= 1 << shift && bytes % (1 << shift) == 0 {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    "0B".into()
}

/// Splits `"250ms"` into 250 and `"ms"`.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    Some((number.parse().ok()?, unit))
}

// === impl Word ===

impl<T> Word<T> {
    /// The rule.
    pub(super) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: FromStr<Err = UnknownWord> + Display> ValueRule for Word<T> {
    type Value = T;

    fn must(&self) -> String {
        match T::from_str("") {
            Err(unknown) => format!("one of: {}", unknown.allowed.join(", ")),
            Ok(word) => word.to_string(),
        }
    }

    fn read(&self, given: RawValue<'_>) -> Result<T, String> {
        given.text().and_then(|text| text.parse().ok()).ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &T) -> String {
        quote(value)
    }
}

// === impl Text ===

impl ValueRule for Text {
    type Value = String;

    fn must(&self) -> String {
        format!("text of {} to {} characters, none of them a control character", self.min, self.max)
    }

    fn read(&self, given: RawValue<'_>) -> Result<String, String> {
        let text = given.text().ok_or_else(|| refusal(self))?;
        let fits =
            (self.min..=self.max).contains(&text.chars().count()) && !text.chars().any(char::is_control);
        if fits { Ok(text.to_owned()) } else { Err(refusal(self)) }
    }

    fn show(&self, value: &String) -> String {
        quote(value)
    }
}

// === impl ParsedText ===

impl<T> ValueRule for ParsedText<T> {
    type Value = T;

    fn must(&self) -> String {
        self.must.into()
    }

    fn read(&self, given: RawValue<'_>) -> Result<T, String> {
        given.text().and_then(self.read).ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &T) -> String {
        (self.show)(value)
    }
}

// === impl OrZero ===

impl<T: Copy + PartialOrd + Display + TryFrom<i128> + From<u8>> ValueRule for OrZero<T> {
    type Value = T;

    fn must(&self) -> String {
        format!("0, or {}", self.0.must())
    }

    fn read(&self, given: RawValue<'_>) -> Result<T, String> {
        if given.whole() == Some(0) {
            return Ok(T::from(0));
        }
        self.0.read(given).map_err(|_| refusal(self))
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }
}

// === impl OrEmpty ===

impl<R: ValueRule> ValueRule for OrEmpty<R> {
    type Value = Option<R::Value>;

    fn must(&self) -> String {
        format!("{}, or \"\" for none", self.0.must())
    }

    fn read(&self, given: RawValue<'_>) -> Result<Option<R::Value>, String> {
        if given.text() == Some("") {
            return Ok(None);
        }
        self.0.read(given).map(Some).map_err(|_| refusal(self))
    }

    fn show(&self, value: &Option<R::Value>) -> String {
        value.as_ref().map_or_else(|| "\"\"".into(), |inner| self.0.show(inner))
    }
}

// === helpers ===

/// Says what the rule allows.
pub(super) fn refusal(rule: &impl ValueRule) -> String {
    format!("must be {}", rule.must())
}

/// `value` as a TOML string.
pub(super) fn quote(value: &impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}
