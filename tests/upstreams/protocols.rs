//! Protocols towards backends: HTTP/2 in clear text, and TLS with names, CAs and certificates.

use crate::group::Group;
use crate::speaker::{Authority, Certified, Heard, Inside, Speaker};
use crate::support::{Gateway, Request, eventually_true, route};
use serde_json::json;
use std::net::SocketAddr;
use std::path::Path;

/// A gateway in front of one server with this address.
fn before(server: &str, more: &str) -> (Gateway, String) {
    let upstream = format!("[[upstreams]]\nname = \"app\"\nservers = [\"{server}\"]\n{more}\n");
    let gateway = Gateway::start(&(upstream + &route("app", "/v1/app/{rest*}", "app", "")));
    let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
    (gateway, secret)
}

fn status(server: &str, more: &str) -> u16 {
    let (gateway, secret) = before(server, more);
    gateway.get("/v1/app/x", &secret).status
}

/// Files in a temporary folder.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn named(address: SocketAddr) -> String {
    format!("localhost:{}", address.port())
}

fn http(certified: &Certified) -> Inside<'_> {
    Inside { shown: certified, alpn: &["h2", "http/1.1"], clients_of: None }
}

#[test]
fn http2_in_clear_text_shares_connections() {
    let speaker = Speaker::start(None);
    let (gateway, secret) = before(&speaker.address.to_string(), "protocol = \"http2\"");
    let mut connection = gateway.connect();
    for n in 0..5 {
        let request = Request::post("/v1/app/x?y=1", vec![b'x'; n * 40_000]).bearer(&secret);
        let response = connection.call(&request);
        assert_eq!((response.status, response.text().as_str()), (200, "spoken"));
    }
    let heard = speaker.heard();
    assert!(
        heard.iter().all(|h| (h.version, &*h.method, &*h.path) == ("h2", "POST", "/v1/app/x")),
        "{heard:?}"
    );
    assert_eq!(heard.iter().map(|h| h.body.len()).collect::<Vec<_>>(), [0, 40_000, 80_000, 120_000, 160_000]);
    assert!(heard.iter().all(|h| h.authority == "gateway.test"), "the client's Host is passed on");
    assert_eq!(speaker.connections(), 1);
}

#[test]
fn upstream_certificates_are_verified_against_ca_and_name() {
    let (files, ours, others) = (Files::new(), Authority::new(), Authority::new());
    let certified = ours.certify(&["localhost", "app.internal", "127.0.0.1"]);
    let speaker = Speaker::start(Some(&http(&certified)));
    let (ca, wrong) = (files.write("ca.pem", &ours.pem()), files.write("others.pem", &others.pem()));
    let tls = |more: &str| format!("[upstreams.tls]\nenabled = true\n{more}\n");
    let (name, address) = (named(speaker.address), speaker.address.to_string());
    let with_ca = tls(&format!("ca_file = \"{ca}\""));
    for (server, config, expected) in [
        (&name, with_ca.clone(), 200),
        (&address, with_ca.clone(), 200),
        (&address, with_ca.clone() + "server_name = \"app.internal\"", 200),
        (&address, with_ca.clone() + "server_name = \"other.internal\"", 502),
        (&name, tls(&format!("ca_file = \"{wrong}\"")), 502),
        (&name, tls(""), 502),
        (&name, tls("danger_accept_any_certificate = true"), 200),
        (&name, String::new(), 502),
    ] {
        assert_eq!(status(server, &config), expected, "{server} {config}");
    }
    let sni: Vec<_> = speaker.heard().into_iter().map(|h| h.sni).collect();
    let asked = |name: &str| Some(name.to_owned());
    assert_eq!(
        sni,
        [asked("localhost"), None, asked("app.internal"), asked("localhost")],
        "an address is no SNI"
    );
}

#[test]
fn certificates_of_upstreams_change_without_a_reload() {
    let (files, ours, others) = (Files::new(), Authority::new(), Authority::new());
    let certified = ours.certify(&["localhost"]);
    let speaker = Speaker::start(Some(&http(&certified)));
    let ca = files.write("ca.pem", &others.pem());
    let (gateway, secret) =
        before(&named(speaker.address), &format!("[upstreams.tls]\nenabled = true\nca_file = \"{ca}\"\n"));
    let status = || gateway.get("/v1/app/x", &secret).status;
    assert_eq!(status(), 502);
    files.write("ca.pem", "nonsense");
    let told = "upstreams[0].tls.ca_file: it cannot be used";
    eventually_true("what cannot be used is told", || gateway.stderr().contains(told));
    files.write("ca.pem", &ours.pem());
    let is_in_force = || gateway.stderr().contains("changed files of upstreams reloaded");
    eventually_true("the new one is in force", is_in_force);
    assert_eq!(status(), 200);
    // Connections made with the previous CA are not used any more.
    files.write("ca.pem", &others.pem());
    eventually_true("it is not believed any more", || status() == 502);
    assert_eq!(gateway.stderr().matches(told).count(), 1, "once");
}

#[test]
fn alpn_selects_the_http_version() {
    let (files, ours) = (Files::new(), Authority::new());
    let certified = ours.certify(&["localhost"]);
    let ca = files.write("ca.pem", &ours.pem());
    for (protocol, alpn, heard) in [
        ("auto", &["h2", "http/1.1"][..], Some("h2")),
        ("auto", &["http/1.1"], Some("h1")),
        ("auto", &[], Some("h1")),
        ("http2", &["h2"], Some("h2")),
        ("http1", &["h2", "http/1.1"], Some("h1")),
    ] {
        let speaker = Speaker::start(Some(&Inside { alpn, ..http(&certified) }));
        let config =
            format!("protocol = \"{protocol}\"\n[upstreams.tls]\nenabled = true\nca_file = \"{ca}\"\n");
        assert_eq!(status(&named(speaker.address), &config), 200, "{protocol} {alpn:?}");
        assert_eq!(speaker.heard().pop().map(|h| h.version), heard, "{protocol} {alpn:?}");
    }
}

#[test]
fn a_client_certificate_is_presented_when_requested() {
    let (files, ours) = (Files::new(), Authority::new());
    let (server, client) = (ours.certify(&["localhost"]), ours.certify(&["gateway"]));
    let speaker = Speaker::start(Some(&Inside { clients_of: Some(&ours), ..http(&server) }));
    let ca = files.write("ca.pem", &ours.pem());
    let (cert, key) = (files.write("client.pem", &client.chain), files.write("client.key", &client.key));
    let plain = format!("[upstreams.tls]\nenabled = true\nca_file = \"{ca}\"\n");
    let shown = format!("{plain}client_cert_file = \"{cert}\"\nclient_key_file = \"{key}\"\n");
    assert_eq!(status(&named(speaker.address), &plain), 502);
    assert_eq!(status(&named(speaker.address), &shown), 200);
    assert!(matches!(&speaker.heard()[..], [Heard { certified: true, .. }]), "{:?}", speaker.heard());
}

#[test]
fn probes_use_the_protocol_of_requests() {
    let (files, ours) = (Files::new(), Authority::new());
    let certified = ours.certify(&["localhost"]);
    let speaker = Speaker::start(Some(&http(&certified)));
    let ca = files.write("ca.pem", &ours.pem());
    let config = format!(
        "protocol = \"auto\"\n[upstreams.tls]\nenabled = true\nca_file = \"{ca}\"\n\
         [upstreams.health]\ncheck = \"http\"\npath = \"/up\"\ninterval = \"50ms\"\nhost = \"probe.test\"\n"
    );
    let (_gateway, _) = before(&named(speaker.address), &config);
    eventually_true("probes come", || speaker.heard().len() >= 2);
    let probe = speaker.heard().remove(0);
    assert_eq!((probe.version, &*probe.path, &*probe.authority), ("h2", "/up", "probe.test"));
}

#[test]
fn files_that_cannot_be_used_are_told_before_anything_starts() {
    let (files, ours) = (Files::new(), Authority::new());
    let (one, other) = (ours.certify(&["a"]), ours.certify(&["b"]));
    let (cert, key) = (files.write("c.pem", &one.chain), files.write("k.pem", &other.key));
    let (text, gone) = (files.write("t.pem", "no certificate"), "/nowhere/ca.pem");
    let config = format!(
        "[[upstreams]]\nname = \"a\"\nservers = [\"h:1\"]\n[upstreams.tls]\nenabled = true\nca_file = \"{gone}\"\n\
         [[upstreams]]\nname = \"b\"\nservers = [\"h:1\"]\n[upstreams.tls]\nenabled = true\nca_file = \"{text}\"\n\
         [[upstreams]]\nname = \"c\"\nservers = [\"h:1\"]\n[upstreams.tls]\nenabled = true\n\
         client_cert_file = \"{cert}\"\nclient_key_file = \"{key}\"\n"
    );
    let path = files.write("keygate.toml", &config);
    for command in ["check", "run"] {
        let checked = crate::support::keygate(Path::new(files.0.path()), &[command, "--config", &path]);
        assert_eq!(checked.code, Some(64), "{checked:?}");
        for expected in [
            "upstreams[0].tls.ca_file: /nowhere/ca.pem cannot be read: ",
            "upstreams[1].tls.ca_file: it cannot be used: no PEM certificate found",
            "upstreams[2].tls.client_key_file: it cannot be used: ",
        ] {
            assert!(checked.stderr.contains(expected), "{expected}\n{}", checked.stderr);
        }
    }
}

#[test]
fn connections_are_not_shared_between_tls_settings() {
    // One address in two upstreams: one trusts its CA, the other does not.
    let ours = Authority::new();
    let certified = ours.certify(&["localhost"]);
    let speaker = Speaker::start(Some(&http(&certified)));
    let upstream = |name: &str, more: &str| {
        let server = named(speaker.address);
        format!(
            "[[upstreams]]\nname = \"{name}\"\nservers = [\"{server}\"]\n[upstreams.tls]\nenabled = true\n{more}\n"
        )
    };
    let files = Files::new();
    let wrong = files.write("others.pem", &Authority::new().pem());
    let right = files.write("ours.pem", &ours.pem());
    let config = upstream("right", &format!("ca_file = \"{right}\""))
        + &upstream("wrong", &format!("ca_file = \"{wrong}\""))
        + &route("right", "/right", "right", "")
        + &route("wrong", "/wrong", "wrong", "");
    let gateway = Gateway::start(&config);
    let secret = gateway.create_key(json!({})).secret;
    assert_eq!(gateway.get("/right", &secret).status, 200);
    assert_eq!(gateway.get("/wrong", &secret).status, 502, "a connection that others believe is not taken");
    assert_eq!(gateway.get("/right", &secret).status, 200);
}

#[test]
fn a_group_of_http2_servers_takes_turns() {
    let speakers = [Speaker::start(None), Speaker::start(None)];
    let addresses = [speakers[0].address, speakers[1].address];
    let group = Group::start_with(&addresses, "protocol = \"http2\"");
    group.get_many(6, ("X-Any", "1"));
    assert_eq!(speakers.iter().map(|s| s.heard().len()).collect::<Vec<_>>(), [3, 3]);
}

#[test]
fn grpc_passes_from_end_to_end() {
    let speaker = Speaker::start(None);
    let config = format!(
        "[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\n[[upstreams]]\nname = \"app\"\nservers = [\"{}\"]\nprotocol = \"http2\"\n",
        speaker.address
    );
    let more = "rewrite = \"/{rest}\"\nhost = \"name:backend.test\"";
    let gateway = Gateway::start(&(config + &route("app", "/v1/app/{rest*}", "app", more)));
    let secret = gateway.create_key(json!({})).secret;
    let address = gateway.ready["proxy_h2c"].as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(call_by_grpc(address, &secret));
    let heard = speaker.heard().remove(0);
    assert_eq!(
        (&*heard.path, &*heard.authority, &heard.body[5..]),
        ("/pkg.Service/Call", "backend.test", &b"hi"[..])
    );
}

/// One gRPC call whose response must be right, trailers included.
async fn call_by_grpc(address: String, secret: &str) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let request = http::Request::post("http://gateway.test/v1/app/pkg.Service/Call")
        .header("authorization", format!("Bearer {secret}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut body) = send.ready().await.unwrap().send_request(request, false).unwrap();
    body.send_data(bytes::Bytes::from_static(b"\0\0\0\0\x02hi"), true).unwrap();
    let (head, mut answer) = response.await.unwrap().into_parts();
    assert_eq!(head.status, 200);
    let mut came = Vec::new();
    while let Some(part) = answer.data().await {
        came.extend_from_slice(&part.unwrap());
    }
    assert_eq!(came, b"spoken");
    assert_eq!(answer.trailers().await.unwrap().expect("trailers")["grpc-status"], "0");
}
