//! Where a request comes from when trusted proxies are in front: the PROXY protocol and `X-Forwarded-For`.
//!
//! Must not know: sockets. Only what a trusted proxy says counts, and of a list only the entries that trusted proxies
//! added.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest header of version 1 of the PROXY protocol, in bytes, CRLF included.
pub const V1_MAX: usize = 107;
/// Bytes of a version 2 header before its addresses.
pub const V2_HEAD: usize = 16;
/// The first bytes of a version 2 header.
pub const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest rest of a version 2 header: addresses and further fields of the proxy.
const V2_REST_MAX: usize = 2_048;
/// Most entries of `X-Forwarded-For` that are examined.
const HOPS_MAX: usize = 32;

/// The trusted proxies.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Box<[IpNet]>);

/// The client, according to trusted proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its address.
    pub address: IpAddr,
    /// Its position in `X-Forwarded-For`, from the first entry; none if it is not from this field.
    pub place: Option<usize>,
    /// The number of entries.
    pub entries: usize,
}

/// An invalid PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadProxyHeader;

/// What counts as one address: an IPv4 address, or an IPv6 /64.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::from((v6.to_bits() & !u128::from(u64::MAX)).to_be_bytes()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

// === impl TrustedProxies ===

impl TrustedProxies {
    /// The proxies in any of `networks`.
    pub fn new(networks: &[IpNet]) -> Self {
        Self(networks.into())
    }

    /// Whether `address` is a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        !self.0.is_empty() && {
            let canonical = address.to_canonical();
            self.0.iter().any(|network| network.contains(&canonical))
        }
    }

    /// The client behind `peer`. `forwarded_for` are the values of `X-Forwarded-For` in order: the client is the last entry
    /// that is not a trusted proxy. An entry that cannot be parsed ends the search.
    pub fn client<'v>(
        &self,
        peer: IpAddr,
        forwarded_for: impl DoubleEndedIterator<Item = &'v [u8]> + Clone,
    ) -> Found {
        self.find(peer, self.contains(peer), forwarded_for)
    }

    /// The same for a listener whose callers are proxies, wherever they are.
    pub fn client_of_proxy<'v>(
        &self,
        peer: IpAddr,
        forwarded_for: impl DoubleEndedIterator<Item = &'v [u8]> + Clone,
    ) -> Found {
        self.find(peer, true, forwarded_for)
    }

    fn find<'v>(
        &self,
        peer: IpAddr,
        trusts_peer: bool,
        forwarded_for: impl DoubleEndedIterator<Item = &'v [u8]> + Clone,
    ) -> Found {
        let entries = forwarded_for.clone().flat_map(|value| value.split(|b| *b == b',')).count();
        let mut client = Found { address: peer, place: None, entries };
        let hops = forwarded_for.rev().flat_map(|value| value.rsplit(|b| *b == b','));
        for (behind, hop) in hops.take(HOPS_MAX).enumerate() {
            if !(self.contains(client.address) || (behind == 0 && trusts_peer)) {
                break;
            }
            let Some(address) = address_of(hop.trim_ascii()) else { break };
            client = Found { address, place: entries.checked_sub(behind + 1), entries };
        }
        client
    }
}

impl Found {
    /// Whether the client's connection is encrypted, by the values of `X-Forwarded-Proto` in order. If there are as many
    /// entries as in `X-Forwarded-For`, the one at the client's position counts, otherwise the first. None if it is not a
    /// scheme of HTTP or WebSocket.
    pub fn is_secure<'v>(&self, forwarded_proto: impl Iterator<Item = &'v [u8]> + Clone) -> Option<bool> {
        let mut entries = forwarded_proto.flat_map(|value| value.split(|b| *b == b','));
        let fits = entries.clone().count() == self.entries;
        let scheme = entries.nth(self.place.filter(|_| fits).unwrap_or(0))?.trim_ascii();
        let is = |name: &[u8]| scheme.eq_ignore_ascii_case(name);
        match (is(b"https") || is(b"wss"), is(b"http") || is(b"ws")) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }
}

/// An address as proxies write it, optionally in brackets or with a port.
fn address_of(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None if text.matches(':').count() == 1 => text.split_once(':')?.0,
        None => text,
    };
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Parses a header of version 1, its CRLF included. None: the connection is the proxy's own (`UNKNOWN`).
pub fn read_v1(line: &[u8]) -> Result<Option<IpAddr>, BadProxyHeader> {
    let line = line.strip_suffix(b"\r\n").and_then(|l| std::str::from_utf8(l).ok()).ok_or(BadProxyHeader)?;
    let mut words = line.split(' ');
    if words.next() != Some("PROXY") {
        return Err(BadProxyHeader);
    }
    let family = words.next().ok_or(BadProxyHeader)?;
    if family == "UNKNOWN" {
        return Ok(None);
    }
    let [source, destination, source_port, destination_port] =
        std::array::from_fn(|_| words.next().unwrap_or_default());
    let port = |text: &str| text.parse::<u16>().is_ok_and(|n| n.to_string() == text);
    if words.next().is_some() || !port(source_port) || !port(destination_port) {
        return Err(BadProxyHeader);
    }
    let sound = match family {
        "TCP4" => both::<Ipv4Addr>(source, destination),
        "TCP6" => both::<Ipv6Addr>(source, destination),
        _ => None,
    };
    sound.map(|address| Some(address.to_canonical())).ok_or(BadProxyHeader)
}

fn both<A: std::str::FromStr + Into<IpAddr>>(source: &str, destination: &str) -> Option<IpAddr> {
    destination.parse::<A>().ok()?;
    source.parse::<A>().ok().map(Into::into)
}

/// The number of bytes that follow the first [`V2_HEAD`] of a version 2 header.
pub fn v2_rest(head: &[u8; V2_HEAD]) -> Result<usize, BadProxyHeader> {
    let rest = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let sound = head.starts_with(&V2_SIGNATURE) && head[12] >> 4 == 2 && rest <= V2_REST_MAX;
    if sound { Ok(rest) } else { Err(BadProxyHeader) }
}

/// Parses a header of version 2. None: the connection is the proxy's own (`LOCAL`).
pub fn read_v2(head: &[u8; V2_HEAD], rest: &[u8]) -> Result<Option<IpAddr>, BadProxyHeader> {
    match (head[12] & 15, head[13]) {
        // LOCAL, and families without an address.
        (0, _) | (1, 0x00 | 0x31 | 0x32) => Ok(None),
        (1, 0x11 | 0x12) if rest.len() >= 12 => {
            let source: [u8; 4] = rest[..4].try_into().map_err(|_| BadProxyHeader)?;
            Ok(Some(IpAddr::from(source)))
        }
        (1, 0x21 | 0x22) if rest.len() >= 36 => {
            let source: [u8; 16] = rest[..16].try_into().map_err(|_| BadProxyHeader)?;
            Ok(Some(IpAddr::from(source).to_canonical()))
        }
        _ => Err(BadProxyHeader),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn only_what_trusted_proxies_added_counts() {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|n| n.parse().expect("a network"));
        let trusted = TrustedProxies::new(&networks);
        for (peer, values, client) in [
            ("192.0.2.1", &["1.1.1.1"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["9.9.9.9, 1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["9.9.9.9", "1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["9.9.9.9, 1.1.1.1, 10.2.3.4"], "1.1.1.1"),
            ("10.0.0.1", &["10.1.1.1,10.2.2.2"], "10.1.1.1"),
            ("10.0.0.1", &["1.1.1.1:8080"], "1.1.1.1"),
            ("10.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["1.1.1.1, nonsense"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1,"], "10.0.0.1"),
            ("::ffff:10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("fd00::1", &["::ffff:1.1.1.1"], "1.1.1.1"),
        ] {
            let found = trusted.client(ip(peer), values.iter().map(|v| v.as_bytes()));
            assert_eq!(found.address, ip(client), "{peer} {values:?}");
        }
        let nobody = TrustedProxies::default().client(ip("10.0.0.1"), [b"1.1.1.1".as_slice()].into_iter());
        assert_eq!(nobody, Found { address: ip("10.0.0.1"), place: None, entries: 1 });
    }

    #[test]
    fn a_caller_that_is_a_proxy_is_trusted_and_no_other() {
        let trusted = TrustedProxies::new(&["10.0.0.0/8".parse().expect("a network")]);
        for (values, client) in [
            (&["9.9.9.9, 1.1.1.1"][..], "1.1.1.1"),
            (&["9.9.9.9, 1.1.1.1, 10.2.2.2"], "1.1.1.1"),
            (&["unknown"], "127.0.0.1"),
            (&[], "127.0.0.1"),
        ] {
            let found = trusted.client_of_proxy(ip("127.0.0.1"), values.iter().map(|v| v.as_bytes()));
            assert_eq!(found.address, ip(client), "{values:?}");
        }
    }

    #[test]
    fn the_scheme_is_that_of_the_client() {
        let trusted = TrustedProxies::new(&["10.0.0.0/8".parse().expect("a network")]);
        for (hops, protos, secure) in [
            (&[][..], &["https"][..], Some(true)),
            (&[], &["HTTPS , http"], Some(true)),
            (&[], &["http, https"], Some(false)),
            (&[], &["wss"], Some(true)),
            (&[], &["ws"], Some(false)),
            (&["1.1.1.1"], &["https, http"], Some(true)),
            (&["1.1.1.1, 10.2.2.2"], &["https, http"], Some(true)),
            (&["1.1.1.1", "10.2.2.2"], &["https", "http"], Some(true)),
            // The first address and the first scheme were sent by the client itself.
            (&["9.9.9.9, 1.1.1.1, 10.2.2.2"], &["https, http, https"], Some(false)),
            (&["1.1.1.1"], &["", "https"], None),
            (&[], &["ftp"], None),
            (&[], &["https http"], None),
            (&[], &[""], None),
            (&[], &[], None),
        ] {
            let found = trusted.client(ip("10.0.0.1"), hops.iter().map(|v| v.as_bytes()));
            assert_eq!(found.is_secure(protos.iter().map(|v| v.as_bytes())), secure, "{hops:?} {protos:?}");
        }
    }

    #[test]
    fn a_proxy_protocol_v1_line_gives_the_address_or_is_refused() {
        assert_eq!(read_v1(b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65535\r\n"), Ok(Some(ip("1.1.1.1"))));
        assert_eq!(read_v1(b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n"), Ok(Some(ip("2001:db8::1"))));
        assert_eq!(read_v1(b"PROXY UNKNOWN\r\n"), Ok(None));
        assert_eq!(read_v1(b"PROXY UNKNOWN whatever is here\r\n"), Ok(None));
        for bad in [
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY\r\n",
            "GET / HTTP/1.1\r\n",
        ] {
            assert_eq!(read_v1(bad.as_bytes()), Err(BadProxyHeader), "{bad:?}");
        }
    }

    #[test]
    fn a_proxy_protocol_v2_header_gives_the_address_or_is_refused() {
        let head = |command: u8, family: u8, rest: u16| {
            let mut head = [0; V2_HEAD];
            head[..12].copy_from_slice(&V2_SIGNATURE);
            (head[12], head[13]) = (command, family);
            head[14..].copy_from_slice(&rest.to_be_bytes());
            head
        };
        let v4 = [1, 1, 1, 1, 2, 2, 2, 2, 0, 1, 0, 2];
        assert_eq!(v2_rest(&head(0x21, 0x11, 12)), Ok(12));
        assert_eq!(read_v2(&head(0x21, 0x11, 12), &v4), Ok(Some(ip("1.1.1.1"))));
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().expect("an address").octets());
        assert_eq!(read_v2(&head(0x21, 0x21, 36), &v6), Ok(Some(ip("2001:db8::1"))));
        assert_eq!(read_v2(&head(0x20, 0, 0), &[]), Ok(None));
        assert_eq!(read_v2(&head(0x21, 0x11, 11), &v4[..11]), Err(BadProxyHeader));
        assert_eq!(read_v2(&head(0x22, 0x11, 12), &v4), Err(BadProxyHeader));
        assert_eq!(v2_rest(&head(0x11, 0x11, 12)), Err(BadProxyHeader));
        assert_eq!(v2_rest(&head(0x21, 0x11, 60_000)), Err(BadProxyHeader));
        assert_eq!(v2_rest(b"GET / HTTP/1.1\r\n"), Err(BadProxyHeader));
    }
}
