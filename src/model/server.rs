//! Servers that Keygate connects to: their addresses and kinds.

use super::key::words;
use std::fmt;

/// The address of a server. Displayed as written: `host:port`, an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerAddr {
    /// A name or an IP address, the latter without brackets.
    pub host: String,
    /// The port; never 0.
    pub port: u16,
}

/// The kind of Redis deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisKind {
    /// One server.
    Server,
    /// The master with this name, according to the Sentinels.
    Sentinel(String),
    /// A cluster.
    Cluster,
}

words!(
    /// The HTTP version to a backend.
    HttpVersion {
        /// HTTP/1.1.
        Http1 = "http1",
        /// Only HTTP/2; with prior knowledge if there is no TLS.
        Http2 = "http2",
        /// Negotiated in the TLS handshake (ALPN).
        Auto = "auto",
    }
);

// === impl ServerAddr ===

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
