//! `keygate health`: asks a running gateway whether it is ready. For health checks of containers, whose images have no
//! other program for this.

use super::{ConfigArgs, Environment, Failure, load, say};
use clap::Args;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Longest time for each step.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest response that is read, in bytes.
const ANSWER_MAX: u64 = 64 * 1024;

/// Arguments of `keygate health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The address of the admin API; the default is the configured one
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<SocketAddr>,
}

pub(super) fn run(args: &HealthArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let config = load(&args.config, environment);
    let (admin, has_tls) = match (args.admin, config) {
        // Another gateway's, perhaps, of which this config says nothing.
        (Some(address), config) => (address, config.is_ok_and(|config| config.admin.has_tls())),
        (None, config) => config.map(|config| (config.admin.listen, config.admin.has_tls()))?,
    };
    let admin = reachable(admin);
    let answer = ask(admin, has_tls).map_err(|e| Failure::Failed(format!("{admin} did not answer: {e}")))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    say(format_args!("{}", body.trim_end()))?;
    match status {
        "200" => Ok(()),
        _ => Err(Failure::Failed(format!("{admin} is not ready (status {status})"))),
    }
}

/// An address to connect to: a listener on all addresses is reached on loopback.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

fn ask(admin: SocketAddr, has_tls: bool) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if has_tls { exchange(admin, encrypted(admin, stream)?) } else { exchange(admin, stream) }
}

fn exchange(admin: SocketAddr, mut stream: impl Read + Write) -> io::Result<String> {
    write!(stream, "GET /readyz?verbose HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

fn encrypted(admin: SocketAddr, stream: TcpStream) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = ServerName::IpAddress(admin.ip().into());
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, stream))
}

/// Accepts every certificate: the address of this machine, which is asked, is rarely in one, and nothing secret is sent or
/// believed. Probes of Kubernetes do the same.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
