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

/// The URL of a service that Keygate calls. Displayed without anything secret: it has no user, and no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpUrl {
    /// Whether TLS is used.
    pub tls: bool,
    /// Its address.
    pub server: ServerAddr,
    /// The path, with a query if there is one.
    pub target: String,
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

// === impl HttpUrl ===

impl HttpUrl {
    /// What `Host` contains: the port is left out if it is the scheme's.
    pub fn authority(&self) -> String {
        let shown = self.server.to_string();
        let port = if self.tls { 443 } else { 80 };
        match shown.strip_suffix(&format!(":{port}")) {
            Some(host) if self.server.port == port => host.to_owned(),
            _ => shown,
        }
    }

    /// The URL as browsers write it: without the port if it is the scheme's.
    pub fn location(&self) -> String {
        format!("http{}://{}{}", if self.tls { "s" } else { "" }, self.authority(), self.target)
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http{}://{}{}", if self.tls { "s" } else { "" }, self.server, self.target)
    }
}
