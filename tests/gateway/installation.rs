//! A folder with a configuration in which commands and gateways run one after the other.

use crate::support::{
    CommandOutput, Gateway, Origin, PATIENCE, eventually, keygate, route, signal_to, upstream, write_config,
};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_keygate");
const CONFIG: &str = "keygate.toml";

/// A folder with a configuration, and the origin of its routes.
pub(crate) struct Installation {
    pub(crate) origin: Origin,
    folder: Arc<TempDir>,
}

/// A process of the binary that has written its first line. Dropping it kills it.
pub(crate) struct Process {
    pub(crate) line: String,
    child: Child,
}

/// `/v1/{app,rag}/…` to `origin`, one scope each, and whatever `more` says.
fn config(origin: &Origin, more: &str) -> String {
    let route = |scope: &str| {
        route(scope, &format!("/v1/{scope}/{{rest*}}"), "origin", &format!("scopes = [\"{scope}\"]"))
    };
    format!("{more}\n{}{}{}", upstream("origin", origin.address), route("app"), route("rag"))
}

/// The mode of a file or folder.
pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

/// Fails unless every one of `parts` is in `text`.
#[track_caller]
pub(crate) fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

// === impl Installation ===

impl Installation {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// With `more` (TOML) in its configuration.
    pub(crate) fn with(more: &str) -> Self {
        let origin = Origin::start();
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        write_config(folder.path(), &config(&origin, more));
        Self { origin, folder }
    }

    /// A file of the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the folder, readable by its owner only, in a folder of the same kind.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        let folder = path.parent().expect("a folder");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).expect("made");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
    }

    /// The text of a file of the folder.
    #[track_caller]
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("text")
    }

    /// Runs `keygate ARGS --config …` to its end.
    pub(crate) fn command(&self, args: &[&str]) -> CommandOutput {
        let mut all = args.to_vec();
        all.extend(["--config", CONFIG]);
        keygate(self.folder.path(), &all)
    }

    /// Runs a command that must succeed; what it wrote to standard output, trimmed.
    #[track_caller]
    pub(crate) fn done(&self, args: &[&str]) -> String {
        let output = self.command(args);
        assert_eq!(output.code, Some(0), "{args:?}: {output:?}");
        output.stdout.trim().to_owned()
    }

    /// Runs a command that must fail with `code`; what it wrote to standard error.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.command(args);
        assert_eq!(output.code, Some(code), "{args:?}: {output:?}");
        assert_eq!(output.stdout, "", "a failure has no result: {args:?}");
        output.stderr
    }

    /// Makes a key by the command; its id and its secret.
    #[track_caller]
    pub(crate) fn make_key(&self, args: &[&str]) -> (String, String) {
        let given = args.iter().any(|arg| ["--type", "--scopes"].contains(arg));
        let scopes: &[&str] = if given { &[] } else { &["--scopes", "app,memory,rag"] };
        let output = self.command(&[&["keys", "create"], scopes, args].concat());
        assert_eq!(output.code, Some(0), "{args:?}: {output:?}");
        let id = output.stderr.split("created ").nth(1).and_then(|rest| rest.split(';').next());
        (id.expect("an id").to_owned(), output.stdout.trim().to_owned())
    }

    #[track_caller]
    pub(crate) fn start(&self) -> Gateway {
        let started = Gateway::run(Arc::clone(&self.folder));
        started.unwrap_or_else(|stderr| panic!("the gateway does not start:\n{stderr}"))
    }

    /// The output of `keygate run` when it refuses to start; it must exit with 1 and never be ready.
    #[track_caller]
    pub(crate) fn refusal(&self) -> String {
        let written = self.path("refusal.txt");
        let file = File::create(&written).expect("a file");
        let mut command = Command::new(BINARY);
        command.env_clear().current_dir(self.folder.path()).args(["run", "--ready-json", "--config", CONFIG]);
        let mut process = Process::spawn(command.stderr(file));
        let code = process.wait().code();
        assert_eq!((process.line.as_str(), code), ("", Some(1)), "it must not start");
        fs::read_to_string(written).expect("text")
    }

    /// The store's file, for reading beside the gateway.
    pub(crate) fn database(&self) -> Connection {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        Connection::open_with_flags(self.path("data/keygate.db"), flags).expect("a database")
    }
}

// === impl Process ===

impl Process {
    /// Runs `keygate ARGS` in `folder`, with only `variables` in its environment.
    pub(crate) fn start(folder: &Path, variables: &[(&str, &str)], args: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.env_clear().envs(variables.iter().copied()).current_dir(folder).args(args);
        Self::spawn(command.stderr(Stdio::null()))
    }

    fn spawn(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("the binary runs");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (to, line) = sync_channel(1);
        std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_line(&mut text).ok();
            to.send(text).ok();
        });
        // Created before the wait, so that a failed wait leaves no process behind.
        let mut process = Self { line: String::new(), child };
        process.line = line.recv_timeout(PATIENCE).expect("a first line, or the end, in time");
        process
    }

    /// The first line, which must be JSON.
    #[track_caller]
    pub(crate) fn ready(&self) -> Value {
        serde_json::from_str(&self.line).unwrap_or_else(|e| panic!("{e}: {:?}", self.line))
    }

    /// SIGTERM, then waits for the end.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> ExitStatus {
        signal_to(self.child.id(), "TERM");
        self.wait()
    }

    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the process ends", || child.try_wait().expect("a child of ours"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
