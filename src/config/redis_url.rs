//! The URL of Redis: `redis://`, `rediss://`, and both with `+sentinel` or `+cluster`.
//!
//! Must not know: how connections are made. The URL is never repeated, because it may contain a password.

use super::texts::server;
use super::types::RedisUrl;
use crate::model::server::{RedisKind, ServerAddr};

/// What [`read`] accepts, to follow "must be".
pub(super) const MUST: &str = r#""memory:", or redis://[user:password@]host[:port][/database] (rediss:// with TLS), redis+sentinel://…host,host/master-name, or redis+cluster://…host,host"#;

const PORT: u16 = 6_379;
const SENTINEL_PORT: u16 = 26_379;

/// Parses a URL; none if it is not a Redis URL.
pub(super) fn read(url: &str) -> Option<RedisUrl> {
    let (scheme, rest) = url.split_once("://")?;
    let (base, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
    let tls = match base {
        "redis" => false,
        "rediss" => true,
        _ => return None,
    };
    // A password may contain an unescaped @; a host cannot.
    let (who, place) = rest.rsplit_once('@').map_or((None, rest), |(who, place)| (Some(who), place));
    let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
    let (kind, database) = match kind {
        "" => (RedisKind::Server, path),
        "cluster" => (RedisKind::Cluster, path),
        "sentinel" => {
            let (name, database) = path.split_once('/').unwrap_or((path, ""));
            let name = unescape(name).filter(|name| !name.is_empty())?;
            (RedisKind::Sentinel(name), database)
        }
        _ => return None,
    };
    let port = if matches!(kind, RedisKind::Sentinel(_)) { SENTINEL_PORT } else { PORT };
    let servers: Vec<ServerAddr> = hosts.split(',').map(|host| host_of(host, port)).collect::<Option<_>>()?;
    let database = if database.is_empty() { 0 } else { database.parse().ok()? };
    let alone = servers.len() == 1 || kind != RedisKind::Server;
    let fits = alone && (database == 0 || kind != RedisKind::Cluster);
    let (user, password) = who.map_or(Some((None, None)), credentials)?;
    fits.then_some(RedisUrl { kind, servers, tls, user, password, database })
}

/// The URL without user and password.
pub(super) fn show(url: &RedisUrl) -> String {
    let kind = match url.kind {
        RedisKind::Server => "",
        RedisKind::Sentinel(_) => "+sentinel",
        RedisKind::Cluster => "+cluster",
    };
    let host = |s: &ServerAddr| {
        if s.host.contains(':') {
            format!("[{}]:{}", s.host, s.port)
        } else {
            format!("{}:{}", s.host, s.port)
        }
    };
    let hosts = url.servers.iter().map(host).collect::<Vec<_>>().join(",");
    let name = if let RedisKind::Sentinel(name) = &url.kind { format!("/{name}") } else { String::new() };
    let database = if url.database == 0 { String::new() } else { format!("/{}", url.database) };
    let who = if url.user.is_some() || url.password.is_some() { "…@" } else { "" };
    format!("redis{}{kind}://{who}{hosts}{name}{database}", if url.tls { "s" } else { "" })
}

fn host_of(text: &str, port: u16) -> Option<ServerAddr> {
    let has_port = if text.starts_with('[') { text.contains("]:") } else { text.contains(':') };
    if has_port { server(text) } else { server(&format!("{text}:{port}")) }
}

type UrlCredentials = (Option<String>, Option<String>);

fn credentials(text: &str) -> Option<UrlCredentials> {
    let (user, password) = text.split_once(':').map_or((text, None), |(u, p)| (u, Some(p)));
    let given = |text: &str| unescape(text).map(|t| Some(t).filter(|t| !t.is_empty()));
    Some((given(user)?, password.map_or(Some(None), given)?))
}

/// Decodes `%XX` in a text.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        bytes.push(digit(rest.next()?)? * 16 + digit(rest.next()?)?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown_without_what_is_secret() {
        for (given, shown) in [
            ("redis://cache", "redis://cache:6379"),
            ("redis://[::1]:7000/3", "redis://[::1]:7000/3"),
            ("rediss://keygate:p%40ss@cache.internal:6380", "rediss://…@cache.internal:6380"),
            ("redis://:hunter2@10.0.0.1", "redis://…@10.0.0.1:6379"),
            ("redis+sentinel://:pw@a,b:1/main/2", "redis+sentinel://…@a:26379,b:1/main/2"),
            ("rediss+cluster://a,b,c", "rediss+cluster://a:6379,b:6379,c:6379"),
        ] {
            let read = read(given).unwrap_or_else(|| panic!("{given}"));
            assert_eq!(show(&read), shown);
            assert!(!format!("{read:?}").contains("hunter2"));
        }
        let read = read("redis://me:a%3Ab%2Fc@h").expect("a URL");
        assert_eq!((read.user.as_deref(), read.password.as_deref()), (Some("me"), Some("a:b/c")));
    }

    #[test]
    fn invalid_redis_urls_are_refused() {
        for bad in [
            "redis:",
            "redis://",
            "redis://a,b",
            "redis://a/x",
            "redis://a:0",
            "redis+sentinel://a",
            "http://a",
            "redis+cluster://a/1",
            "redis+other://a",
            "redis://u:%zz@a",
            "redis://a/70000",
        ] {
            assert!(read(bad).is_none(), "{bad}");
        }
    }
}
