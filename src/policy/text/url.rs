//! URLs of services, and the servers in them.
//!
//! A URL may contain a password, so nothing here repeats a text that it refuses.

use crate::model::server::{HttpUrl, ServerAddr};
use std::net::IpAddr;

/// The server at `host:port`.
pub fn server(text: &str) -> Option<ServerAddr> {
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

/// An http or https URL without a user or a fragment. Its target is empty where the URL has no path.
pub fn http_url(text: &str) -> Option<HttpUrl> {
    let (scheme, rest) = text.split_once("://")?;
    let (tls, port) = match scheme {
        "http" => (false, 80),
        "https" => (true, 443),
        _ => return None,
    };
    let (place, target) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let has_port = if place.starts_with('[') { place.contains("]:") } else { place.contains(':') };
    let server = if has_port { server(place)? } else { server(&format!("{place}:{port}"))? };
    let fits = target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') && target.len() <= 1024;
    fits.then(|| HttpUrl { tls, server, target: target.to_owned() })
}

/// The URL of an identity service: nobody on the way can read or replace what it answers.
pub fn private_url(text: &str) -> Option<HttpUrl> {
    let url = http_url(text)?;
    let is_here = |host: &str| {
        host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    };
    let target = if url.target.is_empty() { "/".to_owned() } else { url.target };
    (url.tls || is_here(&url.server.host)).then_some(HttpUrl { target, ..url })
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
