//! Servers whose address changes: the name is resolved again as soon as a connection gives reason to.
//!
//! The gateway has its own `/etc/hosts` in its own mount namespace.

use crate::support::{Gateway, Origin, eventually_true, route};
use serde_json::json;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// A gateway for which a test controls the address of `moving.test`.
struct Moving {
    gateway: Gateway,
    hosts: PathBuf,
    secret: String,
}

impl Moving {
    /// A gateway in front of `moving.test` at `port`, which resolves the name once a day by itself.
    fn start(at: &str, port: u16, more: &str) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let hosts = folder.path().join("hosts");
        std::fs::write(&hosts, format!("{at} moving.test\n")).unwrap();
        let upstream = format!(
            "[[upstreams]]\nname = \"app\"\nservers = [\"moving.test:{port}\"]\nresolve_interval = \"24h\"\n{more}\n"
        );
        let config = upstream + &route("app", "/v1/app/{rest*}", "app", "");
        crate::support::write_config(folder.path(), &config);
        let program = in_a_namespace(folder.path(), &hosts);
        let gateway = Gateway::run_program(&program, folder, &[]).unwrap_or_else(|stderr| panic!("{stderr}"));
        let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
        Self { gateway, hosts, secret }
    }

    /// Rewrites the file in place, because that inode is mounted.
    fn moves_to(&self, at: &str) {
        std::fs::write(&self.hosts, format!("{at} moving.test\n")).unwrap();
    }

    fn get(&self) -> u16 {
        self.gateway.get("/v1/app/x", &self.secret).status
    }
}

/// A program that runs the gateway with `hosts` in place of the machine's file.
fn in_a_namespace(folder: &Path, hosts: &Path) -> PathBuf {
    let options = ["--mount", "--map-root-user --mount"];
    let allowed = |options: &&str| {
        let probe = format!("unshare {options} mount --bind {0} {0}", hosts.display());
        Command::new("sh").args(["-c", &probe]).output().is_ok_and(|output| output.status.success())
    };
    let options = options.into_iter().find(allowed);
    let options = options.expect("this test mounts a file: run it as root, or where `unshare` is allowed");
    let program = folder.join("keygate-in-a-namespace");
    let script = format!(
        "#!/bin/sh\nexec unshare {options} sh -c 'mount --bind {} /etc/hosts && exec {} \"$@\"' sh \"$@\"\n",
        hosts.display(),
        env!("CARGO_BIN_EXE_keygate"),
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// Two origins at two addresses with the same port.
fn two() -> (Origin, Origin) {
    loop {
        let here = Origin::start();
        let there: SocketAddr = format!("127.0.0.2:{}", here.address.port()).parse().unwrap();
        // The port may be in use there.
        if std::net::TcpListener::bind(there).is_ok() {
            return (here, Origin::start_at(there));
        }
    }
}

#[test]
fn a_server_that_is_gone_is_looked_for_at_once() {
    let (here, there) = two();
    let moving = Moving::start("127.0.0.1", here.address.port(), "");
    assert_eq!((moving.get(), here.count(), there.count()), (200, 1, 0));
    moving.moves_to("127.0.0.2");
    let gone = here.stop();
    eventually_true("requests find it", || moving.get() == 200);
    assert_eq!(there.count(), 1);
    drop(gone);
}

#[test]
fn a_stranger_at_the_old_address_gets_few_requests() {
    let (here, there) = two();
    let moving = Moving::start("127.0.0.1", here.address.port(), "");
    here.answer(200, &[("Connection", "close")], b"{}");
    assert_eq!(moving.get(), 200);
    moving.moves_to("127.0.0.2");
    // From here on another service answers at the old address.
    here.answer(404, &[], b"{}");
    eventually_true("requests find the server", || moving.get() == 200);
    let (strange, known) = (here.count(), there.count());
    for _ in 0..50 {
        assert_eq!(moving.get(), 200);
    }
    assert_eq!((here.count(), there.count()), (strange, known + 50));
}

#[test]
fn a_group_without_a_server_is_looked_for_at_once() {
    let origin = Origin::start();
    let moving = Moving::start("# nobody is", origin.address.port(), "");
    assert_eq!(moving.get(), 503);
    moving.moves_to("127.0.0.1");
    eventually_true("requests find it", || moving.get() == 200);
}
