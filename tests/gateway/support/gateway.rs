//! A gateway in its own process and folder.

use super::{PATIENCE, Raw, Request, Response, eventually};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_keygate");
const CONFIG: &str = "keygate.toml";

/// A running gateway. Dropping it kills the process and removes the folder.
pub(crate) struct Gateway {
    /// Where the proxy listens.
    pub(crate) proxy: SocketAddr,
    /// Where the admin API listens.
    pub(crate) admin: SocketAddr,
    /// The ready line.
    pub(crate) ready: Value,
    child: Child,
    /// Further ready lines, from processes after an upgrade.
    lines: Mutex<Receiver<String>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    folder: Arc<TempDir>,
}

/// How a finished command ended and what it wrote.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `keygate ARGS` in `folder` with an empty environment and waits for its end.
pub(crate) fn keygate(folder: &Path, args: &[&str]) -> CommandOutput {
    let output = command(folder).args(args).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    CommandOutput { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn command(folder: &Path) -> Command {
    command_of(Path::new(BINARY), folder)
}

fn command_of(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir(folder).stdin(Stdio::null());
    command
}

// === impl Gateway ===

impl Gateway {
    /// Starts with `config` (TOML) in a new folder. Listeners use free ports unless `config` sets them; data is under
    /// `data/` of the folder, as by default.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        write_config(folder.path(), config);
        Self::run(folder).unwrap_or_else(|stderr| panic!("the gateway does not start:\n{stderr}"))
    }

    /// Starts in a folder that has a `keygate.toml`, with an environment. The error is what it wrote to standard error.
    pub(crate) fn run_with(folder: Arc<TempDir>, environment: &[(&str, &str)]) -> Result<Self, String> {
        Self::run_program(Path::new(BINARY), folder, environment)
    }

    /// The same with another binary than the built one, for upgrades.
    pub(crate) fn run_program(
        program: &Path,
        folder: Arc<TempDir>,
        environment: &[(&str, &str)],
    ) -> Result<Self, String> {
        let mut child = command_of(program, folder.path())
            .args(["run", "--ready-json", "--config", CONFIG])
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let (stderr, captured) = capture(child.stderr.take().unwrap());
        let (to, lines) = sync_channel(1);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        // Reads everything, so that the pipe does not fill up.
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|l| drop(to.send(l))));
        let line = lines.recv_timeout(PATIENCE).unwrap_or_default();
        let Ok(ready) = serde_json::from_str::<Value>(&line) else {
            child.kill().ok();
            child.wait().ok();
            // What it wrote before it ended may still be in the pipe.
            captured.join().unwrap();
            let text = stderr.lock().unwrap();
            return Err(format!("{line}{}", String::from_utf8_lossy(&text)));
        };
        let (proxy, admin) = addresses(&ready);
        Ok(Self { proxy, admin, ready, child, lines: Mutex::new(lines), stderr, folder })
    }

    /// The id of the serving process.
    pub(crate) fn pid(&self) -> u32 {
        self.ready["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a number")
    }

    /// Its resident memory.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        1_024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB")
    }

    /// SIGUSR2, then waits until another process serves. Returns the id of the previous one, which may still drain.
    #[track_caller]
    pub(crate) fn upgrade(&mut self) -> u32 {
        self.signal("USR2");
        self.wait_for_successor()
    }

    /// Waits until another process serves, after SIGUSR2. Returns the id of the previous one, which may still drain.
    #[track_caller]
    pub(crate) fn wait_for_successor(&mut self) -> u32 {
        let before = self.pid();
        let line = self.lines.lock().unwrap().recv_timeout(PATIENCE);
        self.ready = line.ok().and_then(|line| serde_json::from_str(&line).ok()).expect("a ready line");
        (self.proxy, self.admin) = addresses(&self.ready);
        assert_ne!(self.pid(), before);
        before
    }

    /// Whether a process of this gateway has ended.
    pub(crate) fn has_ended(&mut self, pid: u32) -> bool {
        if pid == self.child.id() {
            return self.child.try_wait().expect("a child of ours").is_some();
        }
        // Only init waits for the other processes, so one that has ended may be a zombie. The first thread of a process is
        // one too while other threads still run and keep its files open.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_zombie = stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'));
        is_zombie && std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) <= 1
    }

    /// Starts in a folder that has a `keygate.toml`. The error is what it wrote to standard error.
    pub(crate) fn run(folder: Arc<TempDir>) -> Result<Self, String> {
        Self::run_with(folder, &[])
    }

    /// Opens a connection to the proxy.
    pub(crate) fn connect(&self) -> Raw {
        Raw::connect(self.proxy)
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub(crate) fn call(&self, request: &Request) -> Response {
        self.connect().call(request)
    }

    /// `GET target` with a secret.
    #[track_caller]
    pub(crate) fn get(&self, target: &str, secret: &str) -> Response {
        self.call(&Request::get(target).bearer(secret))
    }

    /// Everything it wrote to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    /// The folder it runs in.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs another command of the binary on the same folder and configuration.
    pub(crate) fn command(&self, args: &[&str]) -> CommandOutput {
        let mut all = args.to_vec();
        all.extend(["--config", CONFIG]);
        keygate(self.folder(), &all)
    }

    /// Sends a signal, e.g. `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        signal_to(self.pid(), name);
    }

    /// Waits until the process has ended.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the process ends", || child.try_wait().expect("a child of ours"))
    }

    /// SIGTERM, then waits for the end.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// SIGKILL: no drain.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }

    /// Starts again on the same folder, after [`Self::stop`] or [`Self::kill9`].
    #[track_caller]
    pub(crate) fn restart(self) -> Self {
        let folder = Arc::clone(&self.folder);
        drop(self);
        Self::run(folder).unwrap_or_else(|stderr| panic!("the gateway does not start again:\n{stderr}"))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let pid = self.pid();
        if !self.has_ended(pid) {
            signal_to(pid, "KILL");
        }
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- standard error of the gateway ---\n{}", self.stderr());
        }
    }
}

/// Sends a signal to a process of a gateway.
pub(crate) fn signal_to(pid: u32, name: &str) {
    let pid = pid.to_string();
    let status = Command::new("sh").args(["-c", r#"kill -s "$1" "$2""#, "sh", name, &pid]).status();
    assert!(status.expect("sh runs").success(), "no signal {name} to {pid}");
}

fn addresses(ready: &Value) -> (SocketAddr, SocketAddr) {
    let address = |field: &str| ready[field].as_str().and_then(|a| a.parse().ok());
    let proxy = address("proxy").or_else(|| address("proxy_tls"));
    (proxy.expect("an address"), address("admin").expect("an address"))
}

/// Writes `config` as a gateway's `keygate.toml`, on free ports unless it says where.
pub(crate) fn write_config(folder: &Path, config: &str) {
    let mut table: toml::Table = config.parse().expect("the test's config is TOML");
    let free = toml::Value::String("127.0.0.1:0".to_owned());
    for (name, value) in [("proxy", toml::Value::Array(vec![free.clone()])), ("admin", free)] {
        let section = table.entry(name).or_insert_with(|| toml::Table::new().into());
        section.as_table_mut().expect("a section").entry("listen").or_insert(value);
    }
    std::fs::write(folder.join(CONFIG), table.to_string()).expect("written");
}

fn capture(mut from: impl Read + Send + 'static) -> (Arc<Mutex<Vec<u8>>>, JoinHandle<()>) {
    let captured = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&captured);
    let capturing = std::thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut part) {
            into.lock().unwrap().extend_from_slice(&part[..n]);
        }
    });
    (captured, capturing)
}
