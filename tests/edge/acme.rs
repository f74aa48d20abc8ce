//! Certificates ordered over ACME from Pebble, Let's Encrypt's test server, with names that resolve to the gateway.

use crate::support::{
    Gateway, Origin, PATIENCE, Raw, Request, ReservedPort, eventually, eventually_true, one_route,
    write_config,
};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The ACME server. Dropping it ends it.
struct Authority(Child);

/// The address and CA of the ACME server, before it is started.
struct Place {
    folder: Arc<TempDir>,
    ports: [ReservedPort; 2],
    /// Where the gateway will speak TLS.
    tls: ReservedPort,
    dns: SocketAddr,
}

impl Place {
    fn new() -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        for (name, text) in
            [("ca.pem", issuer.pem()), ("own.pem", own.pem()), ("own.key", key.serialize_pem())]
        {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let ports = [ReservedPort::any(), ReservedPort::any()];
        Self { folder, ports, tls: ReservedPort::any(), dns: resolver() }
    }

    /// A gateway with TLS that orders certificates for these names there.
    fn config(&self, domains: &str, origin: &Origin) -> String {
        format!(
            "[proxy]\nlisten_tls = [\"{}\"]\n[acme]\ndomains = {domains}\nagree_to_terms = true\nca_file = \"ca.pem\"\n\
             contact = \"ops@example.org\"\ndirectory = \"https://localhost:{}/dir\"\n{}",
            self.tls.address,
            self.ports[0].address.port(),
            one_route(origin.address)
        )
    }

    /// Starts the ACME server; its certificates are valid this long.
    fn start(&self, seconds: u64) -> Authority {
        self.start_looking_at(self.tls.address.port(), seconds)
    }

    /// Starts one that validates names at that port.
    fn start_looking_at(&self, port: u16, seconds: u64) -> Authority {
        let folder = self.folder.path();
        let config = json!({"pebble": {
            "listenAddress": self.ports[0].address.to_string(),
            "managementListenAddress": self.ports[1].address.to_string(),
            "certificate": folder.join("own.pem"),
            "privateKey": folder.join("own.key"),
            "httpPort": 1,
            "tlsPort": port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": seconds,
        }});
        let file = folder.join("pebble.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let child = Command::new("pebble")
            .args(["-config", file.to_str().unwrap(), "-dnsserver", &self.dns.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            // It refuses some valid nonces, as ACME servers may.
            .env("PEBBLE_WFE_NONCEREJECT", "5")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.expect("pebble is installed: on Debian or Ubuntu, apt-get install pebble");
        eventually_true("the authority listens", || TcpStream::connect(self.ports[0].address).is_ok());
        Authority(child)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A DNS server that answers every query with 127.0.0.1.
fn resolver() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((n, who)) = socket.recv_from(&mut question) {
            // The header, the query up to its type and class, and nothing that may follow.
            let name = question[12..n].iter().position(|b| *b == 0).unwrap() + 13;
            let is_v4 = question[name..name + 2] == [0, 1];
            let mut answer = question[..name + 4].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0]);
            if is_v4 {
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
            }
            socket.send_to(&answer, who).ok();
        }
    });
    address
}

/// Accepts every certificate: the tests check it themselves.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate (names and serial number) and the response that a client gets that asks for `name` with these protocols.
fn visit(
    address: SocketAddr,
    name: &str,
    alpn: &[&str],
    request: &[u8],
) -> Option<(Vec<String>, Vec<u8>, String)> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    stream.write_all(request).ok()?;
    stream.flush().ok()?;
    let mut answer = Vec::new();
    if !request.is_empty() {
        // Whatever ends the connection, the received bytes count.
        stream.read_to_end(&mut answer).ok();
    }
    let shown = stream.conn.peer_certificates()?[0].clone();
    let (_, parsed) = X509Certificate::from_der(&shown).unwrap();
    let names =
        parsed.subject_alternative_name().unwrap()?.value.general_names.iter().map(ToString::to_string);
    let (names, serial) = (names.collect(), parsed.raw_serial().to_vec());
    Some((names, serial, String::from_utf8_lossy(&answer).into_owned()))
}

/// The same for a request with that secret; `None` while there is no certificate.
fn ask(address: SocketAddr, name: &str, secret: &str) -> Option<(Vec<String>, Vec<u8>, String)> {
    let request = Request::get("/v1/app/x").bearer(secret).header("Connection", "close").bytes();
    visit(address, name, &["http/1.1"], &request)
}

fn metric(gateway: &Gateway, series: &str) -> Option<i64> {
    let text = Raw::connect(gateway.admin).call(&Request::get("/metrics")).text();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    line.parse().ok()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn each_name_gets_a_certificate_which_is_kept_over_a_restart() {
    let (place, origin) = (Place::new(), Origin::start());
    let authority = place.start(90 * 86_400);
    write_config(place.folder.path(), &place.config("[\"one.example.test\", \"two.example.test\"]", &origin));
    let gateway = Gateway::run(Arc::clone(&place.folder)).unwrap();
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    assert_eq!(
        gateway.get("/v1/app/x", &secret).status,
        200,
        "what needs no certificate is served meanwhile"
    );
    let mut serials = Vec::new();
    for name in ["one.example.test", "two.example.test"] {
        let (names, serial, answer) = eventually("there is a certificate", || {
            ask(place.tls.address, name, &secret).filter(|(names, ..)| names[0].contains(name))
        });
        assert_eq!(names, [format!("DNSName({name})")]);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        serials.push(serial);
    }
    assert_eq!(metric(&gateway, "keygate_acme_orders_total{result=\"issued\"}"), Some(2));
    assert_eq!(metric(&gateway, "keygate_acme_orders_total{result=\"failed\"}"), Some(0));
    let folder = Path::new("data/acme").join(format!("localhost_{}", place.ports[0].address.port()));
    let series = |name: &str| {
        let file = folder.join(format!("{name}.pem"));
        format!("keygate_certificate_expiry_timestamp_seconds{{certificate=\"{}\"}}", file.display())
    };
    let ends = metric(&gateway, &series("one.example.test")).expect("its end is shown");
    assert!(ends > 1_700_000_000 + 80 * 86_400);
    let at = place.folder.path().join(&folder);
    assert_eq!(
        (mode(&at), mode(&at.join("account.json")), mode(&at.join("one.example.test.pem"))),
        (0o700, 0o600, 0o600)
    );
    // The challenge certificate is shown only for the ACME protocol, while an order is under way.
    assert!(visit(place.tls.address, "one.example.test", &["acme-tls/1"], b"").is_none());

    drop(authority);
    let gateway = gateway.restart();
    let again = ask(place.tls.address, "two.example.test", &secret)
        .expect("it is there at once, without the authority");
    assert_eq!(again.1, serials[1]);
    assert_eq!(
        metric(&gateway, "keygate_acme_orders_total{result=\"failed\"}"),
        Some(0),
        "nothing was ordered"
    );
    let log = gateway.stderr();
    assert!(!log.contains("PRIVATE KEY") && !log.contains("cannot obtain certificate"), "{log}");
}

#[test]
fn a_certificate_is_renewed_before_it_ends_with_the_same_account() {
    let (place, origin) = (Place::new(), Origin::start());
    // A third of its lifetime is longer than it takes to notice a changed file.
    let _authority = place.start(24);
    write_config(place.folder.path(), &place.config("[\"short.example.test\"]", &origin));
    let gateway = Gateway::run(Arc::clone(&place.folder)).unwrap();
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let shown = || ask(place.tls.address, "short.example.test", &secret);
    let first = eventually("there is a certificate", shown);
    let folder =
        place.folder.path().join("data/acme").join(format!("localhost_{}", place.ports[0].address.port()));
    let account = std::fs::read(folder.join("account.json")).unwrap();
    eventually_true("there is another, and never none in between", || {
        let (_, serial, answer) = shown().expect("it is served");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        serial != first.1
    });
    assert_eq!(std::fs::read(folder.join("account.json")).unwrap(), account);
}

#[test]
fn an_unreachable_authority_is_logged_and_asked_again() {
    let (place, origin) = (Place::new(), Origin::start());
    write_config(place.folder.path(), &place.config("[\"late.example.test\"]", &origin));
    let gateway = Gateway::run(Arc::clone(&place.folder)).unwrap();
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    eventually_true("it is told", || gateway.stderr().contains("unexpected answer from the ACME server"));
    assert!(metric(&gateway, "keygate_acme_orders_total{result=\"failed\"}").is_some_and(|n| n >= 1));
    assert!(ask(place.tls.address, "late.example.test", &secret).is_none(), "there is nothing to show");
    assert_eq!(gateway.get("/v1/app/x", &secret).status, 200);
    let _authority = place.start(90 * 86_400);
    let (names, ..) =
        eventually("there is a certificate", || ask(place.tls.address, "late.example.test", &secret));
    assert_eq!(names, ["DNSName(late.example.test)"]);
}

#[test]
fn a_refusal_of_the_authority_is_logged_with_its_reason() {
    let (place, origin, elsewhere) = (Place::new(), Origin::start(), ReservedPort::any());
    let _authority = place.start_looking_at(elsewhere.address.port(), 90 * 86_400);
    write_config(place.folder.path(), &place.config("[\"lost.example.test\"]", &origin));
    let gateway = Gateway::run(Arc::clone(&place.folder)).unwrap();
    let line = eventually("it is told", || {
        let log = gateway.stderr();
        log.lines().find(|line| line.contains("ACME server refused the order")).map(str::to_owned)
    });
    for part in ["ERROR", "lost.example.test", "urn:ietf:params:acme:error:", "again_in_seconds=1"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(
        metric(&gateway, "keygate_acme_orders_total{result=\"failed\"}"),
        Some(1),
        "and not asked at once again"
    );
    // The challenge certificate is not shown any more.
    assert!(visit(place.tls.address, "lost.example.test", &["acme-tls/1"], b"").is_none());
}

#[test]
fn processes_that_share_a_folder_take_turns() {
    let (place, origin) = (Place::new(), Origin::start());
    let _authority = place.start(90 * 86_400);
    let folder =
        place.folder.path().join("data/acme").join(format!("localhost_{}", place.ports[0].address.port()));
    std::fs::create_dir_all(&folder).unwrap();
    let other = std::fs::File::create(folder.join("lock")).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let config = place.config("[\"shared.example.test\"]", &origin);
    write_config(place.folder.path(), &(config + "[log]\nlevel = \"debug\"\n"));
    let gateway = Gateway::run(Arc::clone(&place.folder)).unwrap();
    let secret = gateway.create_key(json!({})).secret;
    eventually_true("it leaves it to the other", || {
        gateway.stderr().contains("another process is ordering certificates, skipped")
    });
    assert!(!folder.join("account.json").exists(), "nothing was begun");
    drop(other);
    eventually("there is a certificate", || ask(place.tls.address, "shared.example.test", &secret));
}
