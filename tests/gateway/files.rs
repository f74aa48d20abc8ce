//! Files named in the config: accepted modes, changes, and FIFOs and the like that never block.

use crate::redis::{RedisServer, free_port};
use crate::support::{
    Gateway, Origin, Raw, Request, Response, eventually_true, one_route, stand, write_config,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use keygate::config::known_keys;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

fn reload(gateway: &Gateway, token: &str) -> Response {
    gateway.admin_as(token, "POST", "/reload", None)
}

/// The errors of a reload that must be refused, each as `field: message`.
#[track_caller]
fn refusal(gateway: &Gateway, token: &str) -> String {
    let refused = reload(gateway, token);
    assert_eq!(refused.fault(), (400, 1001, "validation_failed".into()));
    let errors = refused.data()["errors"].as_array().expect("errors").clone();
    let line = |e: &Value| format!("{}: {}\n", e["field"].as_str().unwrap(), e["message"].as_str().unwrap());
    errors.iter().map(line).collect()
}

fn private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn fifo(path: &Path) {
    fs::remove_file(path).unwrap();
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// A gateway with `config` in a mount namespace of its own, which `setup` (shell) has prepared.
fn in_namespace(config: &str, setup: &str) -> Result<Gateway, String> {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    write_config(folder.path(), config);
    let program = folder.path().join("in-a-mount-namespace");
    let script = format!(
        "#!/bin/sh\n\
         if [ -z \"$INSIDE\" ]; then\n\
           [ \"$(id -u)\" = 0 ] || root=--map-root-user\n\
           INSIDE=1 exec unshare $root --mount \"$0\" \"$@\"\n\
         fi\n\
         set -e\n\
         {setup}\n\
         exec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_keygate")
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Gateway::run_program(&program, folder, &[])
}

/// Secrets as containers get them: links into a mount, with `mode`; `after` runs on the mount.
fn from_mount(mode: &str, after: &str) -> Result<Gateway, String> {
    let config = "[secrets]\npepper_file = \"secrets/pepper\"\n\
                  [admin.jwt]\nhs256_secret_file = \"secrets/admin.jwt.secret\"\n";
    let secret = "0123456789abcdef".repeat(4);
    let setup = format!(
        "mkdir secrets\n\
         mount -t tmpfs tmpfs secrets\n\
         mkdir secrets/..2026\n\
         echo 1:{secret} >secrets/..2026/pepper\n\
         echo {secret} >secrets/..2026/admin.jwt.secret\n\
         chmod {mode} secrets/..2026/*\n\
         ln -s ..2026 secrets/..data\n\
         ln -s ..data/pepper secrets/pepper\n\
         ln -s ..data/admin.jwt.secret secrets/admin.jwt.secret\n\
         {after}"
    );
    in_namespace(config, &setup)
}

#[test]
fn secrets_that_nobody_can_change_may_be_readable_by_all() {
    let read_only = "mount -o remount,ro secrets";
    for mode in ["0444", "0644", "0400"] {
        let gateway = from_mount(mode, read_only).unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert_eq!(Raw::connect(gateway.admin).call(&Request::get("/healthz")).status, 200);
    }
    for (mode, after) in [("0444", ":"), ("0644", ":"), ("0666", read_only)] {
        let why = from_mount(mode, after).err().expect("it is refused");
        let mode = mode.trim_start_matches('0');
        assert!(why.contains(&format!("(mode {mode}); run: chmod 600 secrets/pepper")), "{why}");
        assert!(why.contains("on a read-only file system"), "{why}");
    }
}

#[test]
fn no_reload_waits_for_a_file_that_may_never_come() {
    let origin = Origin::start();
    let gateway = Gateway::start(&one_route(origin.address));
    let config = gateway.folder().join("keygate.toml");
    let text = fs::read_to_string(&config).unwrap();
    let token = gateway.token();
    let alive = || Raw::connect(gateway.admin).call(&Request::get("/healthz")).status;
    fifo(&config);
    let why = refusal(&gateway, &token);
    assert!(why.contains("it is not a regular file"), "{why}");
    assert_eq!(alive(), 200);
    gateway.signal("HUP");
    eventually_true("the log says why", || gateway.stderr().contains("it is not a regular file"));

    // The same for a file that the config names.
    fs::remove_file(&config).unwrap();
    fs::write(&config, &text).unwrap();
    let ca = gateway.folder().join("ca.pem");
    fs::write(&ca, "").unwrap();
    fifo(&ca);
    let mut named: toml::Table = text.parse().unwrap();
    let tls = toml::Table::from_iter([
        ("enabled".to_owned(), toml::Value::Boolean(true)),
        ("ca_file".to_owned(), toml::Value::String("ca.pem".to_owned())),
    ]);
    named["upstreams"][0].as_table_mut().unwrap().insert("tls".to_owned(), tls.into());
    fs::write(&config, named.to_string()).unwrap();
    let why = refusal(&gateway, &token);
    assert!(why.contains("ca_file: ") && why.contains("it is not a regular file"), "{why}");
    // And for a file that is polled.
    fs::write(&config, &text).unwrap();
    let secret = gateway.folder().join("data/admin.jwt.secret");
    fifo(&secret);
    let why = refusal(&gateway, &token);
    assert!(why.starts_with("admin.jwt.hs256_secret_file: "), "{why}");
    assert_eq!(alive(), 200);
}

/// A file system whose server has hung: it is mounted, and nobody answers for it. Opening a file there takes for ever.
const HUNG: &str = "mkdir hung\nexec 3<>/dev/fuse\n\
                    mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hung hung";

#[test]
fn a_mount_that_hangs_holds_up_reloads_and_nothing_else() {
    let origin = Origin::start();
    let text = one_route(origin.address);
    let mut gateway = in_namespace(&text, HUNG).unwrap_or_else(|error| panic!("{error}"));
    let key = gateway.create_key(json!({"rate_limit": 1000}));
    let (token, config) = (gateway.token(), gateway.folder().join("keygate.toml"));
    let named: toml::Table = fs::read_to_string(&config).unwrap().parse().unwrap();
    let named_in = |file: &str| {
        let mut named = named.clone();
        let upstream = named["upstreams"][0].as_table_mut().unwrap();
        match file {
            "ca_file" => {
                let tls = [("enabled".to_owned(), true.into()), (file.to_owned(), "hung/file".into())];
                upstream.insert("tls".to_owned(), toml::Table::from_iter(tls).into());
            }
            _ => {
                let credential = toml::Table::from_iter([(file.to_owned(), "hung/file".into())]);
                upstream.insert("credentials".to_owned(), vec![toml::Value::Table(credential)].into());
            }
        }
        fs::write(&config, named.to_string()).unwrap();
    };
    std::thread::scope(|scope| {
        for file in ["ca_file", "secret_file"] {
            named_in(file);
            let refused = scope.spawn(|| refusal(&gateway, &token));
            // Meanwhile everything else goes on.
            while !refused.is_finished() {
                assert_eq!(Raw::connect(gateway.admin).call(&Request::get("/healthz")).status, 200);
                assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 200);
                assert_eq!(gateway.admin_as(&token, "GET", "/apikeys", None).status, 200);
            }
            let why = refused.join().unwrap();
            assert!(why.contains("their file system does not answer"), "{why}");
        }
    });
    assert!(gateway.stop().success(), "{}", gateway.stderr());
}

fn signing_key(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn key_set(seeds: &[u8]) -> String {
    let key = |seed: &u8| {
        let x = B64.encode(signing_key(*seed).public_key());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": seed.to_string(), "x": x})
    };
    json!({"keys": seeds.iter().map(key).collect::<Vec<_>>()}).to_string()
}

fn token_of(seed: u8) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({
        "iss": "keygate", "aud": "keygate-admin", "sub": "somebody", "role": "platform", "exp": now + 3_600
    });
    let header = json!({"alg": "EdDSA", "kid": seed.to_string()});
    let signed = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
    let signature = B64.encode(signing_key(seed).sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

#[test]
fn a_new_signing_key_is_believed_and_a_removed_one_is_not() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let jwks = folder.path().join("jwks.json");
    fs::write(&jwks, key_set(&[1])).unwrap();
    let config = "[admin.jwt]\njwks_file = \"jwks.json\"\nalgorithms = [\"EdDSA\"]\n";
    write_config(folder.path(), config);
    let gateway = Gateway::run(folder).unwrap();
    let status = |seed| gateway.admin_as(&token_of(seed), "GET", "/plans", None).status;
    assert_eq!([status(1), status(2)], [200, 401]);
    // By a reload, at once.
    fs::write(&jwks, key_set(&[1, 2])).unwrap();
    assert_eq!(reload(&gateway, &token_of(1)).status, 200);
    assert_eq!([status(1), status(2)], [200, 200]);
    fs::write(&jwks, key_set(&[2])).unwrap();
    assert_eq!(reload(&gateway, &token_of(2)).status, 200);
    assert_eq!([status(1), status(2)], [401, 200]);
    // An unusable file is reported and changes nothing.
    fs::write(&jwks, "{}").unwrap();
    let why = refusal(&gateway, &token_of(2));
    assert!(why.starts_with("admin.jwt.jwks_file: the JWKS is not valid"), "{why}");
    assert_eq!([status(1), status(2)], [401, 200]);
    // By polling, soon.
    fs::write(&jwks, key_set(&[3])).unwrap();
    eventually_true("the new key is believed", || status(3) == 200);
    assert_eq!(status(2), 401);
}

#[test]
fn changed_secrets_of_the_admin_api_come_into_force() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    private(&folder.path().join("scrape"), "first");
    write_config(folder.path(), "[admin]\nmetrics_token_file = \"scrape\"\n");
    let gateway = Gateway::run(folder).unwrap();
    let scraped = |token| Raw::connect(gateway.admin).call(&Request::get("/metrics").bearer(token)).status;
    let first = gateway.token();
    assert_eq!([scraped("first"), scraped("second")], [200, 401]);
    private(&gateway.folder().join("scrape"), "second");
    assert_eq!(reload(&gateway, &first).status, 200);
    assert_eq!([scraped("first"), scraped("second")], [401, 200]);

    private(&gateway.folder().join("data/admin.jwt.secret"), &"s".repeat(40));
    let second = gateway.mint("platform", "default");
    let status = |token| gateway.admin_as(token, "GET", "/plans", None).status;
    eventually_true("the new secret is in force", || status(&second) == 200);
    assert_eq!(status(&first), 401);
    fs::set_permissions(gateway.folder().join("scrape"), fs::Permissions::from_mode(0o644)).unwrap();
    let why = refusal(&gateway, &second);
    assert!(why.starts_with("admin.metrics_token_file: ") && why.contains("chmod 600"), "{why}");
}

#[test]
fn a_file_that_only_a_start_reads_is_named_by_the_reload() {
    let (_origin, gateway) = stand("");
    let token = gateway.token();
    assert_eq!(reload(&gateway, &token).status, 200);
    let pepper = gateway.folder().join("data/pepper");
    let before = fs::read_to_string(&pepper).unwrap();
    private(&pepper, &format!("{before}2:{}\n", "ab".repeat(32)));
    let why = refusal(&gateway, &token);
    assert_eq!(why, "secrets.pepper_file: data/pepper has changed, and that takes a restart\n");
    private(&pepper, &before);
    assert_eq!(reload(&gateway, &token).status, 200);
}

/// A CA's certificate, and one that it signed for this machine with its key; all in PEM.
pub(crate) fn authority() -> [String; 3] {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "an authority");
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().unwrap();
    let mut certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    certificate.distinguished_name.push(DnType::CommonName, "127.0.0.1");
    [ca, certificate.signed_by(&own, &issuer).unwrap().pem(), own.serialize_pem()]
}

#[test]
fn the_next_connection_to_redis_is_made_with_the_certificates_of_now() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let port = free_port().to_string();
    // A server, and what clients need to be trusted by it, all from one CA.
    let server = |[ca, certificate, key]: &[String; 3], n: u8| {
        let file = |name: &str, text: &str| {
            let path = folder.path().join(format!("{n}-{name}"));
            private(&path, text);
            path.display().to_string()
        };
        let (ca, certificate, key) = (file("ca", ca), file("certificate", certificate), file("key", key));
        let files = ["--tls-ca-cert-file", &ca, "--tls-cert-file", &certificate, "--tls-key-file", &key];
        RedisServer::with(&[&["--tls-port", &port, "--tls-auth-clients", "yes"], &files[..]].concat())
    };
    let to_gateway = |[ca, certificate, key]: &[String; 3]| {
        for (name, text) in [("ca.pem", ca), ("own.pem", certificate), ("own.key", key)] {
            private(&folder.path().join(name), text);
        }
    };
    let (old, new) = (authority(), authority());
    to_gateway(&old);
    let mut first = server(&old, 1);
    let config = format!(
        "[counters]\nurl = \"rediss://127.0.0.1:{port}\"\ntls_ca_file = \"ca.pem\"\n\
         tls_cert_file = \"own.pem\"\ntls_key_file = \"own.key\"\n"
    );
    write_config(folder.path(), &config);
    let gateway = Gateway::run(Arc::clone(&folder)).unwrap();
    let metrics = || Raw::connect(gateway.admin).call(&Request::get("/metrics")).text();
    let is_up = || metrics().contains("\nkeygate_counter_up 1");
    eventually_true("Redis is there", is_up);
    first.stop();
    eventually_true("Redis is gone", || !is_up());
    let _second = server(&new, 2);
    let tries = || {
        let text = metrics();
        let line = text.lines().find_map(|line| line.strip_prefix("keygate_counter_connects_total "));
        line.and_then(|n| n.parse::<u64>().ok()).expect("a number")
    };
    let before = tries();
    eventually_true("it is tried", || tries() > before + 1);
    assert!(!is_up(), "its certificate is not believed");
    to_gateway(&new);
    eventually_true("Redis is there again", is_up);
}

#[test]
fn the_operating_guide_says_of_every_file_what_happens_when_it_changes() {
    let guide = include_str!("../../docs/how-to/operating.md");
    let section = guide.split_once("\n### Files\n").expect("a section").1;
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let told: BTreeSet<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let others = ["proxy.certificates", "admin.certificates", "acme.folder"];
    let keys = known_keys();
    let files = keys.iter().map(|key| key.path.as_str());
    let files: BTreeSet<&str> = files.filter(|key| key.ends_with("_file") || others.contains(key)).collect();
    assert!(files.len() > 15, "{files:?}");
    let more = BTreeSet::from(["--config", "store.url"]);
    assert_eq!(told, files.union(&more).copied().collect());
}
