//! The protocol to a group's servers: HTTP/1.1 or HTTP/2, in clear text or over TLS.
//!
//! Must not know: where certificates are stored; it gets their bytes. Certificates and keys are validated here, because
//! Pingora panics on invalid ones.
//!
//! *Invariant:* connections with one set of settings are never used for requests with another. Pingora's pool distinguishes
//! them only by address, name and verification; `group` covers the rest.

use super::Server;
use crate::model::server::HttpVersion;
use crate::policy::upstream::balance::hash;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::{ALPN, HttpPeer};
use pingora::utils::tls::{CertKey, WrappedX509};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;

/// Streams of one HTTP/2 connection before another one is opened; most servers allow this many.
const STREAMS: u32 = 100;
/// Window of one HTTP/2 stream, and of a whole connection: clients that do not read, however many, leave room for the
/// responses of others.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS;
/// How often an HTTP/2 connection is pinged, so that a dead one is not used for ever.
const PING_EVERY: Duration = Duration::from_secs(15);

/// The protocol to a group's servers.
#[derive(Clone)]
pub struct UpstreamProtocol {
    version: HttpVersion,
    tls: Option<UpstreamTls>,
    /// Identifies connections that may be shared; 0 for plain HTTP/1.1.
    group: u64,
}

/// The TLS settings.
#[derive(Clone)]
pub struct UpstreamTls {
    server_name: Option<Box<str>>,
    roots: Option<Arc<CaType>>,
    client: Option<Arc<CertKey>>,
    verify: bool,
    fingerprint: u64,
}

/// The configured TLS settings, with the bytes of files.
#[derive(Clone, Default)]
pub struct UpstreamTlsFiles {
    /// The server name to request and verify; none: the server's own.
    pub server_name: Option<Box<str>>,
    /// CA certificates (PEM) to trust instead of the system's.
    pub ca: Option<Vec<u8>>,
    /// The client certificate chain and its private key (both PEM).
    pub client: Option<(Vec<u8>, Vec<u8>)>,
    /// Whether certificates are not verified.
    pub any_certificate: bool,
}

/// An invalid TLS setting.
#[derive(Debug, PartialEq, Eq)]
pub enum BadTls {
    /// The CA certificates.
    Ca(String),
    /// The client certificate.
    ClientCert(String),
    /// The client key.
    ClientKey(String),
}

// === impl UpstreamProtocol ===

impl UpstreamProtocol {
    /// HTTP of this version, over TLS if `tls` is given.
    pub fn new(version: HttpVersion, tls: Option<UpstreamTls>) -> Self {
        let group = match (version, &tls) {
            (HttpVersion::Http1, None) => 0,
            (_, tls) => hash(format!("{version:?} {:?}", tls.as_ref().map(|t| t.fingerprint)).as_bytes()),
        };
        Self { version, tls, group }
    }

    /// Whether TLS is used.
    pub(super) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether HTTP/2 is or may be used.
    pub fn may_be_http2(&self) -> bool {
        self.version != HttpVersion::Http1
    }

    /// Whether tunnels are possible, which HTTP/2 as used here does not support.
    pub fn may_tunnel(&self) -> bool {
        self.version != HttpVersion::Http2
    }

    /// Identifies the connections of this group.
    pub(super) const fn group(&self) -> u64 {
        self.group
    }

    /// Whether both make the same connections.
    pub fn is_same(&self, other: &Self) -> bool {
        self.group == other.group
    }

    /// Pingora's settings for a connection.
    pub(super) fn peer(&self, server: &Server) -> HttpPeer {
        let name = self.tls.as_ref().map_or("", |tls| tls.server_name.as_deref().unwrap_or(&server.host));
        // An empty name would make Pingora skip verification. Hosts are never empty.
        let mut peer = HttpPeer::new(server.address, self.tls.is_some(), name.to_owned());
        peer.group_key = self.group;
        peer.options.alpn = match self.version {
            HttpVersion::Http1 => ALPN::H1,
            HttpVersion::Http2 => ALPN::H2,
            HttpVersion::Auto => ALPN::H2H1,
        };
        if self.version != HttpVersion::Http1 {
            peer.options.max_h2_streams = STREAMS as usize;
            peer.options.h2_stream_window_size = Some(STREAM_WINDOW);
            peer.options.h2_connection_window_size = Some(CONNECTION_WINDOW);
            peer.options.h2_ping_interval = Some(PING_EVERY);
        }
        if let Some(tls) = &self.tls {
            peer.options.verify_cert = tls.verify;
            peer.options.verify_hostname = tls.verify;
            peer.options.ca.clone_from(&tls.roots);
            peer.client_cert_key.clone_from(&tls.client);
        }
        peer
    }
}

// === impl UpstreamTls ===

impl UpstreamTls {
    /// Validates TLS settings, or returns the first invalid one.
    pub fn new(parts: &UpstreamTlsFiles) -> Result<Self, BadTls> {
        let fingerprint = parts.fingerprint();
        let roots = parts.ca.as_deref().map(roots).transpose().map_err(BadTls::Ca)?;
        let client = parts.client.as_ref().map(|(chain, key)| client(chain, key)).transpose()?;
        let (server_name, verify) = (parts.server_name.clone(), !parts.any_certificate);
        Ok(Self { server_name, roots, client, verify, fingerprint })
    }
}

impl UpstreamTlsFiles {
    /// The same value for the same settings, in the same order.
    fn fingerprint(&self) -> u64 {
        let (chain, key) = self.client.as_ref().map_or((None, None), |(c, k)| (Some(&c[..]), Some(&k[..])));
        let name = self.server_name.as_deref().map(str::as_bytes);
        let any: &[u8] = if self.any_certificate { b"any" } else { b"" };
        let mut all = Vec::new();
        for part in [name, self.ca.as_deref(), chain, key, Some(any)] {
            all.extend(part.map_or(0, hash).to_le_bytes());
        }
        hash(&all)
    }
}

fn roots(pem: &[u8]) -> Result<Arc<CaType>, String> {
    let certificates = certificates(pem)?;
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store.add(certificate.clone()).map_err(|error| error.to_string())?;
    }
    certificates.iter().map(wrapped).collect()
}

fn client(chain: &[u8], key: &[u8]) -> Result<Arc<CertKey>, BadTls> {
    let chain = certificates(chain).map_err(BadTls::ClientCert)?;
    for certificate in &chain {
        wrapped(certificate).map_err(BadTls::ClientCert)?;
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| BadTls::ClientKey(error.to_string()))?;
    let bytes = key.secret_der().to_vec();
    // Pingora detects the kind of key from its bytes, at each connection.
    PrivateKeyDer::try_from(bytes.clone()).map_err(|error| BadTls::ClientKey(error.to_owned()))?;
    // Tried once here, as each connection will: does the key belong to the certificate?
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|b| {
            b.with_root_certificates(RootCertStore::empty()).with_client_auth_cert(chain.clone(), key)
        })
        .map_err(|error| BadTls::ClientKey(error.to_string()))?;
    Ok(Arc::new(CertKey::new(chain.iter().map(|c| c.to_vec()).collect(), bytes)))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| error.to_string())?;
    if found.is_empty() { Err("no PEM certificate found".to_owned()) } else { Ok(found) }
}

/// The certificate in Pingora's type.
fn wrapped(certificate: &CertificateDer<'_>) -> Result<WrappedX509, String> {
    WrappedX509::try_new(certificate.to_vec(), |raw| parse(raw)).map_err(|error| error.to_string())
}

fn parse(raw: &[u8]) -> Result<x509_parser::certificate::X509Certificate<'_>, x509_parser::error::X509Error> {
    use x509_parser::prelude::FromDer as _;
    match x509_parser::certificate::X509Certificate::from_der(raw) {
        Ok((_, certificate)) => Ok(certificate),
        Err(x509_parser::nom::Err::Error(error) | x509_parser::nom::Err::Failure(error)) => Err(error),
        Err(x509_parser::nom::Err::Incomplete(_)) => Err(x509_parser::error::X509Error::InvalidCertificate),
    }
}

// === impl BadTls ===

impl BadTls {
    /// The config key that it is from.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Ca(_) => "ca_file",
            Self::ClientCert(_) => "client_cert_file",
            Self::ClientKey(_) => "client_key_file",
        }
    }

    /// The reason.
    pub fn reason(&self) -> &str {
        match self {
            Self::Ca(reason) | Self::ClientCert(reason) | Self::ClientKey(reason) => reason,
        }
    }
}
