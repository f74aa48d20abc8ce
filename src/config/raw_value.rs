//! The value of a key as written in the file or in a variable.
//!
//! A variable is untyped text: the rule that reads it decides whether it is a number, a flag or a list.

use toml::Spanned;
use toml::de::DeValue;

/// A value as written.
#[derive(Clone, Copy)]
pub(super) enum RawValue<'a> {
    /// In the file.
    File(&'a Spanned<DeValue<'a>>),
    /// In a variable.
    Variable(&'a str),
}

impl<'a> RawValue<'a> {
    /// The text, if it is one.
    pub(super) fn text(self) -> Option<&'a str> {
        match self {
            Self::File(value) => value.get_ref().as_str(),
            Self::Variable(text) => Some(text),
        }
    }

    /// The whole number, if it is one.
    pub(super) fn whole(self) -> Option<i128> {
        match self {
            Self::File(value) => {
                let number = value.get_ref().as_integer()?;
                i128::from_str_radix(number.as_str(), number.radix()).ok()
            }
            Self::Variable(text) => text.trim().parse().ok(),
        }
    }

    /// The decimal number as text, if it is one.
    pub(super) fn decimal(self) -> Option<String> {
        match self {
            Self::File(value) => match value.get_ref() {
                DeValue::Float(number) => Some(number.as_str().to_owned()),
                _ => self.whole().map(|number| number.to_string()),
            },
            Self::Variable(text) => Some(text.trim().to_owned()),
        }
    }

    /// The flag, if it is one.
    pub(super) fn flag(self) -> Option<bool> {
        match self {
            Self::File(value) => value.get_ref().as_bool(),
            Self::Variable(text) => text.trim().parse().ok(),
        }
    }

    /// The items, if it is a list. A variable separates them by commas; an empty one has none.
    pub(super) fn items(self) -> Option<Vec<Self>> {
        match self {
            Self::File(value) => Some(value.get_ref().as_array()?.iter().map(Self::File).collect()),
            Self::Variable(text) if text.trim().is_empty() => Some(Vec::new()),
            Self::Variable(text) => Some(text.split(',').map(|item| Self::Variable(item.trim())).collect()),
        }
    }
}
