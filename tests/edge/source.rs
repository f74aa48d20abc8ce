//! TLS, certificates, and the client's address behind trusted proxies.

use crate::http2::{Client, request};
use crate::support::{Gateway, Origin, Raw, Request, eventually_true, one_route, stand, write_config};
use rcgen::{CertifiedKey, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A test CA.
struct Authority(CertifiedKey<KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let signing_key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&signing_key).unwrap();
        Self(CertifiedKey { cert, signing_key })
    }

    fn issue(&self, name: &str) -> (String, String, Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = Issuer::from_params(&params, &self.0.signing_key);
        let cert =
            rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        (cert.pem(), key.serialize_pem(), cert.der().to_vec(), key.serialize_der())
    }

    /// Writes one file with chain and key.
    fn write(&self, path: &Path, name: &str) {
        let (chain, key, ..) = self.issue(name);
        std::fs::write(path, chain + &key).unwrap();
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.cert.der().clone()).unwrap();
        roots
    }

    async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
        alpn: &[u8],
        identity: Option<(Vec<u8>, Vec<u8>)>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let key = PrivateKeyDer::try_from(key).unwrap();
                builder.with_client_auth_cert(vec![CertificateDer::from(cert)], key).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

/// A gateway with TLS in a folder that has the certificates already.
fn with_tls(origin: &Origin, folder: &Arc<TempDir>, more: &str) -> Gateway {
    let config = format!("[proxy]\nlisten_tls = [\"127.0.0.1:0\"]\n{more}\n");
    write_config(folder.path(), &(one_route(origin.address) + &config));
    Gateway::run(Arc::clone(folder)).unwrap_or_else(|stderr| panic!("{stderr}"))
}

fn tls(gateway: &Gateway) -> SocketAddr {
    gateway.ready["proxy_tls"].as_str().expect("an address").parse().unwrap()
}

async fn over_http1(mut stream: TlsStream<TcpStream>, secret: &str) -> String {
    let request = Request::get("/v1/app/x").bearer(secret).header("Connection", "close").bytes();
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_follows_the_name_and_changes_without_a_restart() {
    let (origin, authority) = (Origin::start(), Authority::new());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    authority.write(&folder.path().join("one.pem"), "one.test");
    let two = folder.path().join("two");
    std::fs::create_dir(&two).unwrap();
    let (chain, key, ..) = authority.issue("*.two.test");
    std::fs::write(two.join("tls.crt"), chain).unwrap();
    std::fs::write(two.join("tls.key"), key).unwrap();
    let gateway = with_tls(&origin, &folder, "certificates = [\"one.pem\", \"two\"]");
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    for name in ["one.test", "a.two.test"] {
        let stream = authority.connect(tls(&gateway), name, b"http/1.1", None).await.unwrap();
        assert!(over_http1(stream, &secret).await.starts_with("HTTP/1.1 200"), "{name}");
        assert_eq!(origin.last().header("x-forwarded-proto"), Some("https"));
        let stream = authority.connect(tls(&gateway), name, b"h2", None).await.unwrap();
        let answer = Client::over(stream).await.call(request("GET", "/v1/app/x", &secret)).await.unwrap();
        assert_eq!(answer.status, 200);
    }
    assert!(authority.connect(tls(&gateway), "three.test", b"http/1.1", None).await.is_err());
    // An invalid file changes nothing; the next valid one takes effect without a restart.
    std::fs::write(folder.path().join("one.pem"), "nonsense").unwrap();
    eventually_true("the mistake is told", || gateway.stderr().contains("cannot reload certificate"));
    assert!(authority.connect(tls(&gateway), "one.test", b"http/1.1", None).await.is_ok());
    authority.write(&folder.path().join("one.pem"), "three.test");
    eventually_true("the new one is read", || gateway.stderr().contains("certificates reloaded"));
    assert!(authority.connect(tls(&gateway), "three.test", b"http/1.1", None).await.is_ok());
    assert!(authority.connect(tls(&gateway), "one.test", b"http/1.1", None).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_tls_a_request_is_redirected_where_the_config_says_so() {
    let (origin, authority) = (Origin::start(), Authority::new());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    authority.write(&folder.path().join("one.pem"), "one.test");
    let gateway = with_tls(
        &origin,
        &folder,
        "certificates = [\"one.pem\"]\nredirect_to_https = true\nhealth_path = \"/up\"",
    );
    let secret = gateway.create_key(json!({})).secret;
    let post = Request::post("/v1/app/a|b?x=1", "body").bearer(&secret);
    let answer = gateway.call(&post);
    assert_eq!(
        (answer.status, answer.header("location")),
        (308, Some("https://gateway.test/v1/app/a%7Cb?x=1"))
    );
    assert_eq!(gateway.call(&Request::get("/up")).status, 200);
    assert_eq!(origin.count(), 0);
    let stream = authority.connect(tls(&gateway), "one.test", b"http/1.1", None).await.unwrap();
    assert!(over_http1(stream, &secret).await.starts_with("HTTP/1.1 200"));
    assert_eq!(origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_may_listen_with_tls_only() {
    let (origin, authority) = (Origin::start(), Authority::new());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    authority.write(&folder.path().join("one.pem"), "one.test");
    let gateway = with_tls(&origin, &folder, "certificates = [\"one.pem\"]\nlisten = []");
    assert_eq!(gateway.ready["proxy"], serde_json::Value::Null);
    let secret = gateway.create_key(json!({})).secret;
    let stream = authority.connect(tls(&gateway), "one.test", b"http/1.1", None).await.unwrap();
    assert!(over_http1(stream, &secret).await.starts_with("HTTP/1.1 200"));
}

/// The last bytes of a response wait in the TLS session while the socket is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_over_tls_gets_the_end_of_a_response() {
    /// More than the kernel's buffers on both sides take, and not a multiple of what is passed at once.
    const SIZE: usize = 24 * 1024 * 1024 + 12_345;
    let (origin, authority) = (Origin::start(), Authority::new());
    origin.answer(200, &[], Box::leak(vec![b'x'; SIZE].into_boxed_slice()));
    let folder = Arc::new(tempfile::tempdir().unwrap());
    authority.write(&folder.path().join("one.pem"), "one.test");
    let gateway = with_tls(&origin, &folder, "certificates = [\"one.pem\"]");
    let secret = gateway.create_key(json!({})).secret;
    let mut stream = authority.connect(tls(&gateway), "one.test", b"http/1.1", None).await.unwrap();
    stream.write_all(&Request::get("/v1/app/x").bearer(&secret).bytes()).await.unwrap();
    let (mut part, mut read) = (vec![0; 64 * 1024], 0);
    while read < SIZE {
        let next = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut part)).await;
        let came = next.unwrap_or_else(|_| panic!("nothing after {read} bytes")).unwrap();
        assert!(came > 0, "closed after {read} bytes");
        let head = part[..came].windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |at| at + 4);
        read += came - head;
        // The pace of the client: slower than the gateway, so that the socket is full when the last part comes.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert_eq!(read, SIZE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_upgrade_those_who_have_tls_keep_it_and_the_rest_come_to_the_same_socket() {
    let (origin, authority) = (Origin::start(), Authority::new());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    authority.write(&folder.path().join("one.pem"), "one.test");
    let more = "certificates = [\"one.pem\"]\ndrain_idle = \"1m\"\ndrain_timeout = \"1m\"";
    let mut gateway = with_tls(&origin, &folder, more);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let (address, before) = (tls(&gateway), authority.connect(tls(&gateway), "one.test", b"http/1.1", None));
    let before = before.await.unwrap();
    authority.write(&folder.path().join("one.pem"), "next.test");
    let old = gateway.upgrade();
    assert_eq!(tls(&gateway), address);
    assert!(over_http1(before, &secret).await.starts_with("HTTP/1.1 200"), "the old process has it");
    eventually_true("the old process ends", || gateway.has_ended(old));
    let stream = authority.connect(address, "next.test", b"h2", None).await.unwrap();
    let answer = Client::over(stream).await.call(request("GET", "/v1/app/x", &secret)).await.unwrap();
    assert_eq!(answer.status, 200, "the new one has read the certificates anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_end_of_an_upload_can_be_read_after_it() {
    let (origin, authority) = (Origin::start(), Authority::new());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    authority.write(&folder.path().join("one.pem"), "one.test");
    let gateway = with_tls(&origin, &folder, "certificates = [\"one.pem\"]");
    let mut stream = authority.connect(tls(&gateway), "one.test", b"http/1.1", None).await.unwrap();
    let upload = Request::post("/v1/app/x", vec![b'x'; 20 << 20]).bearer("nonsense").bytes();
    stream.write_all(&upload).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 401 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(origin.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_can_be_asked_for_certificates() {
    let (origin, authority, others) = (Origin::start(), Authority::new(), Authority::new());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    authority.write(&folder.path().join("own.pem"), "one.test");
    std::fs::write(folder.path().join("ca.pem"), authority.0.cert.pem()).unwrap();
    let more =
        "certificates = [\"own.pem\"]\nclient_ca_file = \"ca.pem\"\nclient_certificates = \"required\"";
    let gateway = with_tls(&origin, &folder, more);
    let secret = gateway.create_key(json!({})).secret;
    let good = authority.issue("client.test");
    let stream =
        authority.connect(tls(&gateway), "one.test", b"http/1.1", Some((good.2, good.3))).await.unwrap();
    assert!(over_http1(stream, &secret).await.starts_with("HTTP/1.1 200"));
    let foreign = others.issue("client.test");
    for identity in [None, Some((foreign.2, foreign.3))] {
        // With TLS 1.3 the client learns of the refusal when it first reads.
        if let Ok(mut stream) = authority.connect(tls(&gateway), "one.test", b"http/1.1", identity).await {
            stream.write_all(&Request::get("/v1/app/x").bearer(&secret).bytes()).await.ok();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.ok();
            assert!(answer.is_empty());
        }
    }
    assert_eq!(origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_of_clients_changes_without_a_restart() {
    let (origin, authority, next) = (Origin::start(), Authority::new(), Authority::new());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let ca = folder.path().join("ca.pem");
    authority.write(&folder.path().join("own.pem"), "one.test");
    std::fs::write(&ca, authority.0.cert.pem()).unwrap();
    let more =
        "certificates = [\"own.pem\"]\nclient_ca_file = \"ca.pem\"\nclient_certificates = \"required\"";
    let gateway = with_tls(&origin, &folder, more);
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    let is_served = async |issuer: &Authority| {
        let (_, _, chain, key) = issuer.issue("client.test");
        let identity = Some((chain, key));
        let Ok(mut stream) = authority.connect(tls(&gateway), "one.test", b"http/1.1", identity).await else {
            return false;
        };
        // With TLS 1.3 the client learns of the refusal when it first reads.
        let request = Request::get("/v1/app/x").bearer(&secret).header("Connection", "close").bytes();
        stream.write_all(&request).await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        answer.starts_with(b"HTTP/1.1 200")
    };
    assert_eq!([is_served(&authority).await, is_served(&next).await], [true, false]);
    std::fs::write(&ca, next.0.cert.pem()).unwrap();
    assert_eq!(gateway.admin("POST", "/reload", None).status, 200);
    assert_eq!([is_served(&authority).await, is_served(&next).await], [false, true]);
    // An unusable file is reported and changes nothing.
    std::fs::write(&ca, "nonsense").unwrap();
    let refused = gateway.admin("POST", "/reload", None);
    assert_eq!(refused.data()["errors"][0]["field"], "proxy.client_ca_file", "{}", refused.text());
    assert_eq!([is_served(&authority).await, is_served(&next).await], [false, true]);
    let own = folder.path().join("own.pem");
    std::fs::write(&own, "nonsense").unwrap();
    let refused = gateway.admin("POST", "/reload", None);
    assert_eq!(refused.data()["errors"][0]["field"], "proxy.certificates", "{}", refused.text());
    authority.write(&own, "one.test");
    std::fs::write(&ca, authority.0.cert.pem()).unwrap();
    let read_again = || gateway.stderr().matches("proxy.client_ca_file reloaded").count() == 2;
    eventually_true("it is read without a reload", read_again);
    assert_eq!([is_served(&authority).await, is_served(&next).await], [true, false]);
}

#[test]
fn forwarded_addresses_count_when_a_trusted_proxy_says_them() {
    let (origin, gateway) = stand("[proxy]\ntrusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n");
    let limited = gateway.create_key(json!({"allowed_ips": ["192.0.2.0/24"], "rate_limit": 1000})).secret;
    let call = |value: &str| {
        gateway.call(&Request::get("/v1/app/x").bearer(&limited).header("X-Forwarded-For", value))
    };
    assert_eq!(call("192.0.2.7").status, 200);
    assert_eq!(origin.last().header("x-forwarded-for"), Some("192.0.2.7"));
    assert_eq!(call("203.0.113.1, 192.0.2.8, 10.1.1.1").status, 200);
    assert_eq!(origin.last().header("x-forwarded-for"), Some("192.0.2.8"));
    for value in ["203.0.113.1", "192.0.2.7, 203.0.113.1", "nonsense", "192.0.2.7, nonsense"] {
        assert_eq!(call(value).fault(), (403, 3020, "address_not_allowed".into()), "{value}");
    }
    assert_eq!(origin.count(), 2);
    let https = Request::get("/v1/app/x").bearer(&limited).header("X-Forwarded-For", "192.0.2.7");
    assert_eq!(gateway.call(&https.header("X-Forwarded-Proto", "https")).status, 200);
    assert_eq!(origin.last().header("x-forwarded-proto"), Some("https"));
}

#[test]
fn forwarded_addresses_of_untrusted_peers_are_ignored() {
    let (origin, gateway) = stand("[proxy]\ntrusted_proxies = [\"10.0.0.0/8\"]\nproxy_protocol = true\n");
    let limited = gateway.create_key(json!({"allowed_ips": ["192.0.2.0/24"]})).secret;
    let request = Request::get("/v1/app/x").bearer(&limited).header("X-Forwarded-For", "192.0.2.7");
    assert_eq!(gateway.call(&request).fault(), (403, 3020, "address_not_allowed".into()));
    let mut client = gateway.connect();
    client.send(&[b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n".as_slice(), &request.bytes()].concat());
    assert_eq!(client.response().fault(), (400, 1000, "bad_request".into()), "it is a bad request line");
    assert_eq!(origin.count(), 0);
}

#[test]
fn the_proxy_protocol_says_who_the_client_is() {
    let config = "[proxy]\ntrusted_proxies = [\"127.0.0.1\"]\nproxy_protocol = true\nmax_connections_per_address = 2\n";
    let (origin, gateway) = stand(config);
    let limited = gateway.create_key(json!({"allowed_ips": ["192.0.2.0/24"], "rate_limit": 1000})).secret;
    let request = Request::get("/v1/app/x").bearer(&limited).bytes();
    let v2 = |address: [u8; 4]| {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        header.extend_from_slice(&address);
        header.extend_from_slice(&[192, 0, 2, 1, 0, 1, 0, 2]);
        header
    };
    for (header, status) in [
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n".to_vec(), 200),
        (v2([192, 0, 2, 8]), 200),
        (b"PROXY TCP4 203.0.113.1 192.0.2.1 1 2\r\n".to_vec(), 403),
        (v2([203, 0, 113, 1]), 403),
        (b"PROXY UNKNOWN\r\n".to_vec(), 403),
    ] {
        let mut client = gateway.connect();
        client.send(&[header.as_slice(), &request].concat());
        assert_eq!(client.response().status, status, "{header:?}");
    }
    assert_eq!(origin.last().header("x-forwarded-for"), Some("192.0.2.8"));
    for header in [
        b"PROXY TCP4 nonsense\r\n".as_slice(),
        b"GET /v1/app/x HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c",
    ] {
        let mut client = gateway.connect();
        client.try_send(header);
        client.try_send(&request);
        assert!(client.ends(), "{header:?}");
    }
    assert_eq!(origin.count(), 2);
    // Connections count for the client, not for the trusted proxy.
    let open = |address: u8| {
        let mut client: Raw = gateway.connect();
        client
            .send(&[format!("PROXY TCP4 192.0.2.{address} 192.0.2.1 1 2\r\n").as_bytes(), &request].concat());
        client
    };
    let mut held = [open(1), open(1), open(2)];
    assert!(held.iter_mut().all(|client| client.response().status == 200));
    assert!(open(1).ends(), "a third of one client");
}
