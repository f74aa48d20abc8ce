//! How a group's servers are spoken to: HTTP/1.1 or HTTP/2, in clear text or inside TLS.
//!
//! Must not know: where certificates are kept; it is given their bytes. What is made here has been tried: Pingora panics
//! on certificates and keys that it cannot read.
//!
//! *Invariant:* connections made in one way are never used for requests that ask for another. Pingora's own pool tells
//! them apart by address, name and verification only; the rest is in `group`.

use super::Server;
use crate::policy::upstream::balance::hash;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::{ALPN, HttpPeer};
use pingora::utils::tls::{CertKey, WrappedX509};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;

/// Streams of one HTTP/2 connection before another is opened; what most servers allow.
const STREAMS: u32 = 100;
/// Bytes of an answer that may be on their way in one stream of HTTP/2, and in all of a connection: clients that take nothing,
/// however many, leave room for the others' answers.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS;
/// How often an HTTP/2 connection is tried, so that one that died silently is not used for ever.
const PING_EVERY: Duration = Duration::from_secs(15);

/// Which HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 and nothing else; in clear text with prior knowledge.
    Http2,
    /// What the server picks in the TLS handshake.
    Auto,
}

/// How a group's servers are spoken to.
#[derive(Clone)]
pub struct UpstreamProtocol {
    version: HttpVersion,
    tls: Option<UpstreamTls>,
    /// Who shares connections; 0 for plain HTTP/1.1.
    group: u64,
}

/// What TLS is made of.
#[derive(Clone)]
pub struct UpstreamTls {
    server_name: Option<Box<str>>,
    roots: Option<Arc<CaType>>,
    client: Option<Arc<CertKey>>,
    verify: bool,
    fingerprint: u64,
}

/// What TLS is to be made of, files as their bytes.
#[derive(Clone, Default)]
pub struct UpstreamTlsFiles {
    /// The name asked for and expected; none for the server's own.
    pub server_name: Option<Box<str>>,
    /// Certificates (PEM) to trust instead of the system's.
    pub ca: Option<Vec<u8>>,
    /// The client's certificates and its private key (PEM both).
    pub client: Option<(Vec<u8>, Vec<u8>)>,
    /// Whether any certificate is believed.
    pub any_certificate: bool,
}

/// A part of TLS that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum BadTls {
    /// The certificates to trust.
    Ca(String),
    /// The client's certificate.
    ClientCert(String),
    /// The client's key.
    ClientKey(String),
}

// === impl UpstreamProtocol ===

impl UpstreamProtocol {
    /// HTTP of that version, inside `tls` if there is some.
    pub fn new(version: HttpVersion, tls: Option<UpstreamTls>) -> Self {
        let group = match (version, &tls) {
            (HttpVersion::Http1, None) => 0,
            (_, tls) => hash(format!("{version:?} {:?}", tls.as_ref().map(|t| t.fingerprint)).as_bytes()),
        };
        Self { version, tls, group }
    }

    /// Whether connections are inside TLS.
    pub(super) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether HTTP/2 is spoken, or may be.
    pub fn may_be_http2(&self) -> bool {
        self.version != HttpVersion::Http1
    }

    /// Whether a tunnel can be asked for, which HTTP/2 as it is spoken here has not.
    pub fn may_tunnel(&self) -> bool {
        self.version != HttpVersion::Http2
    }

    /// What tells its connections from those of others.
    pub(super) const fn group(&self) -> u64 {
        self.group
    }

    /// Whether both make the same connections.
    pub fn is_same(&self, other: &Self) -> bool {
        self.group == other.group
    }

    /// A peer that is spoken to so.
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
    /// TLS of these parts, or the first that cannot be used.
    pub fn new(parts: &UpstreamTlsFiles) -> Result<Self, BadTls> {
        let fingerprint = parts.fingerprint();
        let roots = parts.ca.as_deref().map(roots).transpose().map_err(BadTls::Ca)?;
        let client = parts.client.as_ref().map(|(chain, key)| client(chain, key)).transpose()?;
        let (server_name, verify) = (parts.server_name.clone(), !parts.any_certificate);
        Ok(Self { server_name, roots, client, verify, fingerprint })
    }
}

impl UpstreamTlsFiles {
    /// The same for the same parts, in the same order.
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
    // Pingora tells the kind of key by its bytes, each time it connects.
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

/// The certificate as Pingora holds it.
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
    /// The key of the config that names it.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Ca(_) => "ca_file",
            Self::ClientCert(_) => "client_cert_file",
            Self::ClientKey(_) => "client_key_file",
        }
    }

    /// Why.
    pub fn reason(&self) -> &str {
        match self {
            Self::Ca(reason) | Self::ClientCert(reason) | Self::ClientKey(reason) => reason,
        }
    }
}
