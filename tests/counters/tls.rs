//! `rediss://`: certificates made by the test, and a real server that presents them.

use crate::node::{Setup, TestKey, place};
use crate::redis::RedisServer;
use keygate::counter::{RedisEndpoint, RedisTls};
use keygate::model::key::Per;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::net::SocketAddr;
use std::path::Path;

/// A test CA.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for `name`, and its key.
    fn vouch_for(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

/// A server with a certificate for `name`, which asks for client certificates or not.
fn server(authority: &Authority, name: &str, clients: &str, folder: &Path) -> (RedisServer, SocketAddr) {
    let (certificate, key) = authority.vouch_for(name);
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let (ca, certificate, key) =
        (file("ca", &authority.pem), file("certificate", &certificate), file("key", &key));
    let port = crate::redis::free_port();
    let server = RedisServer::with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-ca-cert-file",
        &ca,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        clients,
    ]);
    let address = SocketAddr::new(server.address.ip(), port);
    (server, address)
}

fn encrypted(address: SocketAddr, ca: &str, client: Option<(String, String)>) -> RedisEndpoint {
    let client = client.map(|(certificate, key)| (certificate.into_bytes(), key.into_bytes()));
    RedisEndpoint { tls: Some(RedisTls { ca: Some(ca.as_bytes().to_vec()), client }), ..place(address) }
}

/// Charges until Redis answered a charge in time; it may be late now and then on a busy machine.
async fn is_shared(place: RedisEndpoint) {
    let node = Setup::of(1).node_at("n", place).await.expect("a node");
    TestKey::window(Per::Day, 1_000_000).until_shared(&node).await;
}

async fn refusal(place: RedisEndpoint) -> String {
    Setup::of(1).node_at("n", place).await.err().expect("refused").to_string()
}

#[tokio::test]
async fn a_server_is_trusted_by_the_authority_that_the_config_names_and_by_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, others) = (Authority::new(), Authority::new());
    let (_server, address) = server(&ours, "127.0.0.1", "no", folder.path());
    is_shared(encrypted(address, &ours.pem, None)).await;
    let why = refusal(encrypted(address, &others.pem, None)).await;
    assert!(why.contains("not trusted") && why.contains("counters.tls_ca_file"), "{why}");
    // Nor is it trusted by the system's roots.
    let unnamed = RedisEndpoint { tls: Some(RedisTls::default()), ..place(address) };
    assert!(refusal(unnamed).await.contains("not trusted"));
    // Plain text to a TLS port: Redis counts as unreachable, and the node serves without it.
    let node = Setup::of(1).node_at("n", place(address)).await.expect("a node");
    let charged = TestKey::window(Per::Day, 10).charge(&node).await;
    assert!(charged.expect("its share is all").degraded());
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = Authority::new();
    let (_server, address) = server(&ours, "redis.example.com", "no", folder.path());
    let why = refusal(encrypted(address, &ours.pem, None)).await;
    assert!(why.contains("not trusted") && why.contains("NotValidForName"), "{why}");
}

#[tokio::test]
async fn a_server_that_asks_who_we_are_is_shown_our_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = Authority::new();
    let (_server, address) = server(&ours, "127.0.0.1", "yes", folder.path());
    let client = ours.vouch_for("keygate");
    is_shared(encrypted(address, &ours.pem, Some(client))).await;
    let why = refusal(encrypted(address, &ours.pem, None)).await;
    assert!(why.contains("counters.tls_cert_file"), "{why}");
}
