//! Scopes: free words that a route requires and a key grants.
//!
//! Must not know: routes or keys. A granted scope may end in `*` and then grants every scope that begins with the part
//! before it. A required scope is always a whole word.

use std::fmt;
use std::hash::Hash;
use std::str::FromStr;
use std::sync::Arc;

/// Longest scope, in characters.
pub const SCOPE_MAX: usize = 64;
/// Most scopes of one key or route.
pub const SCOPES_MAX: usize = 64;

/// A set of scopes, in alphabetical order. Cloning it shares the text.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Scopes(Arc<str>);

/// Why a scope, or a set of scopes, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadScope {
    /// Not 1 to 64 of the allowed characters.
    Malformed,
    /// A `*` that is not at the end, or that is not allowed here.
    Wildcard,
    /// The same scope twice.
    Twice,
    /// More than [`SCOPES_MAX`].
    TooMany,
}

/// Checks that `scope` is a word that a route may require.
pub fn check_required(scope: &str) -> Result<(), BadScope> {
    if scope.contains('*') {
        return Err(BadScope::Wildcard);
    }
    check_granted(scope)
}

/// Checks that `scope` is a word that a key may grant: like a required one, but it may end in `*`.
pub fn check_granted(scope: &str) -> Result<(), BadScope> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    if !(1..=SCOPE_MAX).contains(&scope.len()) {
        return Err(BadScope::Malformed);
    }
    let word = scope.strip_suffix('*').unwrap_or(scope);
    if word.contains('*') {
        return Err(BadScope::Wildcard);
    }
    if word.bytes().all(is_plain) { Ok(()) } else { Err(BadScope::Malformed) }
}

// === impl Scopes ===

impl Scopes {
    /// The set of `words`, each checked with `check`. On failure, also the position of the word.
    pub fn of<'w>(
        words: impl IntoIterator<Item = &'w str>,
        check: fn(&str) -> Result<(), BadScope>,
    ) -> Result<Self, (usize, BadScope)> {
        let mut list: Vec<&str> = Vec::new();
        for (place, word) in words.into_iter().enumerate() {
            check(word).map_err(|bad| (place, bad))?;
            if list.contains(&word) {
                return Err((place, BadScope::Twice));
            }
            if list.len() == SCOPES_MAX {
                return Err((place, BadScope::TooMany));
            }
            list.push(word);
        }
        list.sort_unstable();
        Ok(Self(list.join(",").into()))
    }

    /// Whether a key with these scopes grants `wanted`.
    pub fn grants(&self, wanted: &str) -> bool {
        self.iter().any(|granted| match granted.strip_suffix('*') {
            Some(prefix) => wanted.starts_with(prefix),
            None => granted == wanted,
        })
    }

    /// The scopes of `wanted` that a key with these scopes does not grant.
    #[must_use]
    pub fn lacking(&self, wanted: &Self) -> Self {
        // Nearly every key grants exactly what its routes require.
        if wanted.is_empty() || self == wanted || wanted.iter().all(|scope| self.grants(scope)) {
            return Self::default();
        }
        let lacking: Vec<&str> = wanted.iter().filter(|scope| !self.grants(scope)).collect();
        Self(lacking.join(",").into())
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The scopes, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(',').filter(|word| !word.is_empty())
    }

    /// The scopes, joined by commas, as headers and tables contain them.
    pub fn joined(&self) -> &str {
        &self.0
    }
}

impl FromStr for Scopes {
    type Err = BadScope;

    /// Parses the output of [`Scopes::joined`].
    fn from_str(text: &str) -> Result<Self, BadScope> {
        Self::of(text.split(',').filter(|word| !word.is_empty()), check_granted).map_err(|(_, bad)| bad)
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.joined())
    }
}

// === impl BadScope ===

impl fmt::Display for BadScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => write!(f, "must be 1 to {SCOPE_MAX} characters of A-Z a-z 0-9 . _ : / -"),
            Self::Wildcard => f.write_str("may have a * only at its end, and only on a key"),
            Self::Twice => f.write_str("is in the list twice"),
            Self::TooMany => write!(f, "is one too many; at most {SCOPES_MAX} scopes are allowed"),
        }
    }
}

impl std::error::Error for BadScope {}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(words: &[&str]) -> Scopes {
        Scopes::of(words.iter().copied(), check_granted).expect("scopes")
    }

    #[test]
    fn a_set_reads_back_whatever_its_order() {
        let set = granted(&["rag", "app", "orders:*"]);
        assert_eq!(set.joined(), "app,orders:*,rag");
        assert_eq!(set.joined().parse(), Ok(set.clone()));
        assert_eq!(set, granted(&["orders:*", "rag", "app"]));
        assert_eq!(Scopes::default().joined().parse(), Ok(Scopes::default()));
    }

    #[test]
    fn a_wildcard_grants_what_begins_so() {
        let cases: &[(&[&str], &str, bool)] = &[
            (&["orders:read"], "orders:read", true),
            (&["orders:read"], "orders:readers", false),
            (&["orders:readers"], "orders:read", false),
            (&["orders:*"], "orders:read", true),
            (&["orders:*"], "orders:", true),
            (&["orders:*"], "orders", false),
            (&["orders:*"], "Orders:read", false),
            (&["a", "b*"], "bc", true),
            (&["*"], "anything", true),
            (&[], "anything", false),
        ];
        for (key, wanted, expected) in cases {
            assert_eq!(granted(key).grants(wanted), *expected, "{key:?} {wanted}");
        }
    }

    #[test]
    fn missing_parts_are_reported() {
        let wanted = Scopes::of(["orders:read", "orders:write", "app"], check_required).expect("scopes");
        assert_eq!(granted(&["orders:read"]).lacking(&wanted).joined(), "app,orders:write");
        assert!(granted(&["orders:*", "app"]).lacking(&wanted).is_empty());
        assert!(Scopes::default().lacking(&Scopes::default()).is_empty());
    }

    #[test]
    fn only_words_are_scopes() {
        let longest = "x".repeat(SCOPE_MAX);
        for word in ["a", "A.b_c:d/e-9", longest.as_str()] {
            assert_eq!((check_required(word), check_granted(word)), (Ok(()), Ok(())), "{word}");
        }
        let too_long = "x".repeat(SCOPE_MAX + 1);
        for word in ["", " ", "a b", "a,b", "é", "a\n", too_long.as_str()] {
            assert_eq!(check_granted(word), Err(BadScope::Malformed), "{word:?}");
        }
        assert_eq!(check_required("orders:*"), Err(BadScope::Wildcard));
        assert_eq!(check_granted("*:read"), Err(BadScope::Wildcard));
        assert_eq!(check_granted("**"), Err(BadScope::Wildcard));
        assert_eq!(Scopes::of(["a", "b", "a"], check_granted), Err((2, BadScope::Twice)));
        let many: Vec<String> = (0..=SCOPES_MAX).map(|n| n.to_string()).collect();
        let outcome = Scopes::of(many.iter().map(String::as_str), check_granted);
        assert_eq!(outcome, Err((SCOPES_MAX, BadScope::TooMany)));
    }
}
