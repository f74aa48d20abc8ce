//! What a single value may be. A key names its rule where it is read, so no key is without one.
//!
//! Must not know: which keys there are. A rule reads one value and says what it must be if it is not; it never repeats
//! what was given.

use super::given::Given;
use super::types::{CountersLocation, ServerAddr, StoreLocation};
use crate::policy::key::{Count, UnknownWord};
use http::{HeaderName, Method};
use std::fmt::Display;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What a value may be.
pub(super) trait Rule {
    /// What it is read into.
    type Value;

    /// What is allowed, to follow "must be".
    fn must(&self) -> String;

    /// The value, or what is wrong with it.
    fn read(&self, given: Given<'_>) -> Result<Self::Value, String>;

    /// The value as TOML.
    fn show(&self, value: &Self::Value) -> String;
}

/// `true` or `false`.
pub(super) struct Flag;

/// A whole number from `min` to `max`.
pub(super) struct Whole<T> {
    pub(super) min: T,
    pub(super) max: T,
}

/// A duration such as `"250ms"` or `"10s"`, from `min` to `max`.
pub(super) struct Span {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

/// A number of bytes, plain or such as `"32KiB"`, from `min` to `max`.
pub(super) struct Size<T> {
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

/// Text that `read` understands.
pub(super) struct Parsed<T> {
    must: &'static str,
    read: fn(&str) -> Option<T>,
    show: fn(&T) -> String,
}

/// What the rule inside allows, or empty text for none.
pub(super) struct OrEmpty<R>(pub(super) R);

/// Where keys and usage are kept.
pub(super) struct StoreUrl;

/// Where what has been spent is counted.
pub(super) struct CountersUrl;

/// What a ceiling counts.
pub(super) struct Counted;

/// An address to listen on.
pub(super) const LISTEN: Parsed<SocketAddr> = Parsed {
    must: r#"IP:port, such as "127.0.0.1:8080" or "[::1]:8080""#,
    read: |text| text.parse().ok(),
    show: quote,
};

/// A file or folder.
pub(super) const FILE: Parsed<PathBuf> = Parsed {
    must: "a path of 1 to 4096 bytes",
    read: |text| ((1..=4096).contains(&text.len()) && !text.contains('\0')).then(|| PathBuf::from(text)),
    show: |path| quote(&path.display()),
};

/// A name of the user's choice.
pub(super) const NAME: Parsed<String> = Parsed {
    must: "1 to 64 characters of A-Z a-z 0-9 . _ -",
    read: |text| is_name(text).then(|| text.to_owned()),
    show: quote,
};

/// The first part of every secret.
pub(super) const SECRET_PREFIX: Parsed<String> = Parsed {
    must: "1 to 16 characters of a-z 0-9 _",
    read: |text| {
        let fits = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        (fits && (1..=16).contains(&text.len())).then(|| text.to_owned())
    },
    show: quote,
};

/// A header field that may carry something for Keygate.
pub(super) const HEADER: Parsed<HeaderName> = Parsed {
    must: "the name of a header that is neither about framing or the connection nor Keygate's own (x-keygate-…)",
    read: header,
    show: quote,
};

/// An HTTP method.
pub(super) const METHOD: Parsed<Method> = Parsed {
    must: r#"an HTTP method in capitals, such as "GET""#,
    read: |text| {
        let fits =
            (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
        if fits { text.parse().ok() } else { None }
    },
    show: quote,
};

/// A backend server.
pub(super) const SERVER: Parsed<ServerAddr> = Parsed {
    must: r#"host:port, such as "backend.internal:9000" or "[::1]:9000", without a scheme or a path"#,
    read: server,
    show: quote,
};

/// The pattern of a route. The table of routes looks at the rest of it.
pub(super) const ROUTE_PATH: Parsed<String> = Parsed {
    must: r#"a path of 1 to 1024 visible ASCII characters that begins with "/", without ? or #"#,
    read: |text| {
        let fits = text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
        (fits && text.starts_with('/') && text.len() <= 1024).then(|| text.to_owned())
    },
    show: quote,
};

// === impl Flag ===

impl Rule for Flag {
    type Value = bool;

    fn must(&self) -> String {
        "true or false".into()
    }

    fn read(&self, given: Given<'_>) -> Result<bool, String> {
        given.flag().ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

// === impl Whole ===

impl<T: Copy + PartialOrd + Display + TryFrom<i128>> Rule for Whole<T> {
    type Value = T;

    fn must(&self) -> String {
        format!("a whole number from {} to {}", self.min, self.max)
    }

    fn read(&self, given: Given<'_>) -> Result<T, String> {
        let number = given.whole().and_then(|whole| T::try_from(whole).ok());
        number.filter(|n| *n >= self.min && *n <= self.max).ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }
}

// === impl Span ===

impl Rule for Span {
    type Value = Duration;

    fn must(&self) -> String {
        format!(
            r#"a duration from {} to {}, such as "250ms", "10s", "5m", "1h" or "7d""#,
            show_duration(self.min),
            show_duration(self.max)
        )
    }

    fn read(&self, given: Given<'_>) -> Result<Duration, String> {
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
        if ms >= unit_ms && ms % unit_ms == 0 {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}

// === impl Size ===

impl<T: Copy + PartialOrd + TryFrom<u64> + TryInto<u64>> Rule for Size<T> {
    type Value = T;

    fn must(&self) -> String {
        format!(
            r#"a number of bytes from {} to {}, plain or with a unit, such as "32KiB", "1MiB" or "2GiB""#,
            show_size(self.min),
            show_size(self.max)
        )
    }

    fn read(&self, given: Given<'_>) -> Result<T, String> {
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
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

// === impl Word ===

impl<T> Word<T> {
    /// The rule.
    pub(super) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: FromStr<Err = UnknownWord> + Display> Rule for Word<T> {
    type Value = T;

    fn must(&self) -> String {
        match T::from_str("") {
            Err(unknown) => format!("one of: {}", unknown.allowed.join(", ")),
            Ok(word) => word.to_string(),
        }
    }

    fn read(&self, given: Given<'_>) -> Result<T, String> {
        given.text().and_then(|text| text.parse().ok()).ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &T) -> String {
        quote(value)
    }
}

// === impl Text ===

impl Rule for Text {
    type Value = String;

    fn must(&self) -> String {
        format!("text of {} to {} characters, none of them a control character", self.min, self.max)
    }

    fn read(&self, given: Given<'_>) -> Result<String, String> {
        let text = given.text().ok_or_else(|| refusal(self))?;
        let fits =
            (self.min..=self.max).contains(&text.chars().count()) && !text.chars().any(char::is_control);
        if fits { Ok(text.to_owned()) } else { Err(refusal(self)) }
    }

    fn show(&self, value: &String) -> String {
        quote(value)
    }
}

// === impl Parsed ===

impl<T> Parsed<T> {
    /// A rule for text that `read` understands and `show` writes; `must` says what that is.
    pub(super) const fn new(must: &'static str, read: fn(&str) -> Option<T>, show: fn(&T) -> String) -> Self {
        Self { must, read, show }
    }
}

impl<T> Rule for Parsed<T> {
    type Value = T;

    fn must(&self) -> String {
        self.must.into()
    }

    fn read(&self, given: Given<'_>) -> Result<T, String> {
        given.text().and_then(self.read).ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &T) -> String {
        (self.show)(value)
    }
}

/// Whether `text` can be what [`NAME`] allows.
pub(super) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Headers that say where a message ends or whose connection it is; Keygate must read these as HTTP does.
const RESERVED_HEADERS: [&str; 11] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The header that [`HEADER`] allows under that name.
pub(super) fn header(text: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok()?;
    // A header with `_` is the same as one with `-` to many backends, so both spellings are Keygate's.
    let is_own = name.as_str().replace('_', "-").starts_with("x-keygate-");
    (!is_own && !RESERVED_HEADERS.contains(&name.as_str()) && name.as_str().len() <= 128).then_some(name)
}

fn server(text: &str) -> Option<ServerAddr> {
    let (host, port) = text.rsplit_once(':')?;
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok().filter(|port| *port > 0)?;
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address: IpAddr = address.parse().ok().filter(IpAddr::is_ipv6)?;
        return Some(ServerAddr { host: address.to_string(), port });
    }
    is_host_name(host).then(|| ServerAddr { host: host.to_owned(), port })
}

/// Whether `text` is a host name (RFC 1123; `_` is allowed, as resolvers and Compose do) or an IPv4 address.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let looks_like_an_address = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.len() <= 253
        && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
        && (!looks_like_an_address || text.parse::<IpAddr>().is_ok())
}

// === impl OrEmpty ===

impl<R: Rule> Rule for OrEmpty<R> {
    type Value = Option<R::Value>;

    fn must(&self) -> String {
        format!("{}, or \"\" for none", self.0.must())
    }

    fn read(&self, given: Given<'_>) -> Result<Option<R::Value>, String> {
        if given.text() == Some("") {
            return Ok(None);
        }
        self.0.read(given).map(Some).map_err(|_| refusal(self))
    }

    fn show(&self, value: &Option<R::Value>) -> String {
        value.as_ref().map_or_else(|| "\"\"".into(), |inner| self.0.show(inner))
    }
}

// === impl StoreUrl ===

impl Rule for StoreUrl {
    type Value = StoreLocation;

    fn must(&self) -> String {
        r#"sqlite:PATH, such as "sqlite:data/keygate.db""#.into()
    }

    fn read(&self, given: Given<'_>) -> Result<StoreLocation, String> {
        let url = given.text().ok_or_else(|| refusal(self))?;
        if scheme_is(url, &["postgres", "postgresql"]) {
            return Err(format!("PostgreSQL is not supported by this version; must be {}", self.must()));
        }
        // `sqlite://a/b` would name the host a; `sqlite::memory:` would forget every key at exit.
        let path =
            url.strip_prefix("sqlite:").filter(|path| !path.starts_with("//") && !path.starts_with(':'));
        let path = path.filter(|path| (1..=4096).contains(&path.len()) && !path.contains('\0'));
        path.map(|path| StoreLocation::Sqlite(path.into())).ok_or_else(|| refusal(self))
    }

    fn show(&self, value: &StoreLocation) -> String {
        let StoreLocation::Sqlite(path) = value;
        quote(&format_args!("sqlite:{}", path.display()))
    }
}

// === impl CountersUrl ===

impl Rule for CountersUrl {
    type Value = CountersLocation;

    fn must(&self) -> String {
        r#""memory:""#.into()
    }

    fn read(&self, given: Given<'_>) -> Result<CountersLocation, String> {
        let url = given.text().ok_or_else(|| refusal(self))?;
        if url == "memory:" {
            return Ok(CountersLocation::Memory);
        }
        if scheme_is(
            url,
            &["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"],
        ) {
            return Err(format!("Redis is not supported by this version; must be {}", self.must()));
        }
        Err(refusal(self))
    }

    fn show(&self, value: &CountersLocation) -> String {
        let CountersLocation::Memory = value;
        quote(&"memory:")
    }
}

// === impl Counted ===

impl Rule for Counted {
    type Value = Count;

    fn must(&self) -> String {
        Word::<Count>::new().must()
    }

    fn read(&self, given: Given<'_>) -> Result<Count, String> {
        if given.text() == Some("tokens") {
            return Err(format!("tokens cannot be counted by this version; must be {}", self.must()));
        }
        Word::new().read(given)
    }

    fn show(&self, value: &Count) -> String {
        quote(value)
    }
}

// === helpers ===

fn refusal(rule: &impl Rule) -> String {
    format!("must be {}", rule.must())
}

fn scheme_is(url: &str, schemes: &[&str]) -> bool {
    url.split_once(':').is_some_and(|(scheme, _)| schemes.iter().any(|s| scheme.eq_ignore_ascii_case(s)))
}

/// `value` as a TOML string.
pub(super) fn quote(value: &impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}
