//! Signals that arrive before the gateway serves: none kills it, none is lost.

use crate::support::{eventually, signal_to, write_config};
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A gateway that is starting and waits for a silent server.
struct Starting {
    child: Child,
    /// The silent server.
    _silent: (TcpListener, TcpStream),
    _folder: TempDir,
}

impl Starting {
    /// `config` names the silent server as `SILENT`. Returns when the gateway has connected to it.
    fn begin(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        write_config(folder.path(), &config.replace("SILENT", &listener.local_addr().unwrap().to_string()));
        let child = Command::new(env!("CARGO_BIN_EXE_keygate"))
            .args(["run", "--ready-json", "--config", "keygate.toml"])
            .env_clear()
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (silent, _) = listener.accept().unwrap();
        Self { child, _silent: (listener, silent), _folder: folder }
    }

    /// Its exit code, and what it wrote to standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

#[test]
fn a_gateway_that_is_told_to_stop_while_it_starts_stops() {
    for signal in ["TERM", "INT"] {
        let starting = Starting::begin(
            "[store]\nurl = \"postgres://u@SILENT/db?sslmode=disable\"\nconnect_timeout = \"60s\"\n",
        );
        signal_to(starting.child.id(), signal);
        let (code, text) = starting.end();
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("stopped before it served, as asked"), "{text}");
    }
}

#[test]
fn a_reload_and_an_upgrade_asked_for_early_come_when_the_gateway_serves() {
    for (signal, done) in [("HUP", "config reloaded"), ("USR2", "new process is serving")] {
        let mut starting = Starting::begin("[counters]\nurl = \"redis://SILENT\"\n");
        signal_to(starting.child.id(), signal);
        let child = &mut starting.child;
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        out.read_line(&mut ready).unwrap();
        assert!(ready.contains(&format!("\"pid\":{}", child.id())), "{signal}: {ready}");
        let mut err = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(err.any(|line| line.contains(done)), "{signal}: it ended before");
        // Ends whichever process serves now.
        let mut serves = child.id();
        if signal == "USR2" {
            let mut ready = String::new();
            out.read_line(&mut ready).unwrap();
            let ready: serde_json::Value = serde_json::from_str(&ready).expect("another ready line");
            serves = ready["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a number");
            assert_ne!(serves, child.id());
        }
        signal_to(serves, "TERM");
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}");
        eventually("the last one has ended", || {
            let stat = std::fs::read_to_string(format!("/proc/{serves}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z')).then_some(())
        });
    }
}
