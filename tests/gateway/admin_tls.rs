//! TLS on the admin listener: for the console, for commands and for health checks.

use crate::files::authority;
use crate::installation::{Installation, says};
use crate::support::{Gateway, PATIENCE, Request, Response, eventually_true};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

const TLS: &str = "[admin]\ncertificates = [\"admin\"]\n";

/// What a server answers over TLS to a client that trusts `ca`.
fn over_tls(admin: SocketAddr, ca: &str, request: &Request) -> io::Result<Response> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut config = config;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let connection =
        ClientConnection::new(Arc::new(config), ServerName::IpAddress(admin.ip().into())).unwrap();
    let stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(connection, stream);
    stream.write_all(&request.clone().header("Connection", "close").bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]), "no HTTP/2 here");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Ok(Response { status, headers, body: body.as_bytes().to_vec() })
}

/// Writes certificate and key as in a Secret of Kubernetes; the CA.
fn certify(place: &Installation) -> String {
    let [ca, certificate, key] = authority();
    place.write("admin/tls.key", key);
    place.write("admin/tls.crt", certificate);
    place.write("ca.pem", &ca);
    ca
}

fn status(gateway: &Gateway, ca: &str) -> Option<u16> {
    over_tls(gateway.admin, ca, &Request::get("/healthz")).ok().map(|response| response.status)
}

#[test]
fn the_admin_listener_speaks_tls_with_certificates_that_are_read_again() {
    let place = Installation::with(TLS);
    let old = certify(&place);
    let gateway = place.start();
    assert_eq!(status(&gateway, &old), Some(200));
    assert_eq!(place.done(&["keys", "list", "--json"]), "", "the socket is as it was");

    // Plain HTTP is not answered, and counted.
    let mut plain = TcpStream::connect(gateway.admin).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).ok();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let metrics = || over_tls(gateway.admin, &old, &Request::get("/metrics")).unwrap().body;
    let counted = String::from_utf8(metrics()).unwrap();
    says(&counted, &["keygate_admin_connections_closed_total{reason=\"tls\"} 1"]);
    says(&counted, &["keygate_certificate_expiry_timestamp_seconds{certificate=\"admin\"}"]);

    let new = certify(&place);
    eventually_true("the new certificate is in force", || status(&gateway, &new) == Some(200));
    assert_eq!(status(&gateway, &old), None, "and the old one is not");

    // One that cannot be used changes nothing, and a reload names it.
    place.write("admin/tls.crt", "nonsense");
    let token = place.done(&["token", "--role", "platform"]);
    let reload = over_tls(gateway.admin, &new, &Request::post("/reload", "").bearer(&token)).unwrap();
    assert_eq!(reload.status, 400);
    says(&String::from_utf8_lossy(&reload.body), &["admin.certificates admin/tls.crt: holds no certificate"]);
    assert_eq!(status(&gateway, &new), Some(200));
}

#[test]
fn commands_and_health_checks_reach_a_gateway_over_tls() {
    let place = Installation::with(TLS);
    certify(&place);
    let gateway = place.start();
    let url = format!("https://{}", gateway.admin);
    place.write("platform.token", place.done(&["token", "--role", "platform", "--workspace", "default"]));
    let over = ["--admin", &url, "--token-file", "platform.token"];
    let id = place.make_key(&[&over[..], &["--name", "n", "--ca-file", "ca.pem"]].concat()).0;
    let listed = place.done(&[&["keys", "list", "--ca-file", "ca.pem"][..], &over].concat());
    says(&listed, &[&id]);
    let refused = place.fails(1, &[&["keys", "list"][..], &over].concat());
    says(&refused, &["invalid peer certificate", &url, "hint: name the CA"]);

    let admin = gateway.admin.to_string();
    says(&place.done(&["health", "--admin", &admin]), &["\"ready\":true"]);
}

#[test]
fn the_cookie_of_a_session_over_tls_is_sent_over_tls_only() {
    for (config, ends) in [(TLS, "; Secure"), ("", "SameSite=Strict")] {
        let place = Installation::with(config);
        let ca = certify(&place);
        let gateway = place.start();
        let token = place.done(&["token", "--role", "platform"]);
        let form = Request::post("/console/sign-in", format!("token={token}"))
            .header("Content-Type", "application/x-www-form-urlencoded")
            .header("Sec-Fetch-Site", "same-origin");
        let response = match config {
            "" => crate::support::Raw::connect(gateway.admin).call(&form),
            _ => over_tls(gateway.admin, &ca, &form).unwrap(),
        };
        assert_eq!(response.status, 303, "{response:?}");
        assert!(response.header("set-cookie").is_some_and(|cookie| cookie.ends_with(ends)), "{response:?}");
    }
}

#[test]
fn unusable_certificates_are_told_by_check_and_at_start() {
    let place = Installation::with(TLS);
    let told = place.fails(64, &["check"]);
    says(&told, &["keygate.toml:", " admin.certificates[0]: admin: ", "No such file"]);
    place.write("admin/tls.crt", "nonsense");
    place.write("admin/tls.key", "nonsense");
    for command in ["check", "run"] {
        says(&place.fails(64, &[command]), &["admin.certificates[0]: admin/tls."]);
    }
    certify(&place);
    says(&place.done(&["check"]), &["ok: "]);
}

#[test]
fn an_admin_listener_for_other_machines_without_tls_is_warned_of() {
    let open = "admin.listen = \"0.0.0.0:0\"\n";
    let place = Installation::with(open);
    let told = place.command(&["check"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    says(&told.stderr, &["warning: admin.listen: 0.0.0.0:0 is not a loopback address and has no TLS"]);
    let place = Installation::with(&format!("{open}admin.certificates = [\"admin\"]\n"));
    certify(&place);
    let told = place.command(&["check"]);
    assert_eq!((told.code, &*told.stderr), (Some(0), ""), "{told:?}");
}
