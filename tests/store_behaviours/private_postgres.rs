//! Private PostgreSQL servers: one for all tests of a process, more for tests that damage theirs, and a database per test.
//!
//! Everything is in one temporary folder, runs as an unprivileged user, and is removed when this process ends, however it
//! ends. Nothing is skipped: without PostgreSQL's programs a test fails and says what to install. Other test crates include
//! this file with `#[path]`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio_postgres::{Client, NoTls};

/// A server, stopped and removed when it is dropped.
pub(crate) struct Server {
    programs: PathBuf,
    folder: PathBuf,
    pub(crate) port: u16,
    user: Option<(u32, u32)>,
    keeper: Option<Child>,
    /// Settings that override the usual ones.
    settings: &'static str,
}

/// The role that owns everything.
const OWNER: &str = "keygate";
/// A database with the schema, from which others are copied.
const TEMPLATE: &str = "keygate_template";
/// Committed data survives a crash of the server but not of the machine, which no test causes.
const SETTINGS: &str = "-c fsync=off -c full_page_writes=off -c max_connections=300 \
     -c shared_buffers=64MB -c listen_addresses=127.0.0.1 -c autovacuum=off";

/// Runs the server and waits for input. When its standard input ends because this process has ended, it stops the server
/// and cleans up.
const KEEPER: &str = r#"
    "$1/pg_ctl" -D "$2/data" -w -t 60 -l "$2/log" -o "$3" start >/dev/null || { cat "$2/log" >&2; exit 1; }
    echo ready
    read -r word
    pid=$(head -n 1 "$2/data/postmaster.pid" 2>/dev/null) &&
        kill -CONT "$pid" $(cat "/proc/$pid/task/$pid/children") 2>/dev/null
    "$1/pg_ctl" -D "$2/data" -m immediate -w stop >/dev/null 2>&1
    [ "$word" = keep ] || rm -rf "$2"
"#;

// === impl Server ===

impl Server {
    /// The server of this process.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Another server, for a test that stops, freezes or damages it.
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// Another server with further settings, as `-c name=value`.
    pub(crate) fn start_with(settings: &'static str) -> Self {
        let programs = programs();
        let folder = tempfile::Builder::new().prefix("keygate-pg-").tempdir().unwrap().keep();
        let user = unprivileged();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).unwrap();
        if let Some((uid, gid)) = user {
            chown(&folder, Some(uid), Some(gid)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { programs, folder, port, user, keeper: None, settings };
        server.initialise();
        server.start_again();
        server
    }

    /// Starts a stopped server again, at the same address with the same data.
    pub(crate) fn start_again(&mut self) {
        assert!(self.keeper.is_none(), "it runs");
        let options = format!(
            "-p {} -k {} {SETTINGS} {} {}",
            self.port,
            self.folder.display(),
            self.tls_settings(),
            self.settings
        );
        let mut shell = self.command(Path::new("/bin/sh"));
        shell.args(["-c", KEEPER, "sh"]).arg(&self.programs).arg(&self.folder).arg(options);
        let mut keeper = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready", "PostgreSQL did not start; its log is above");
        self.keeper = Some(keeper);
    }

    /// Stops it like a power failure, and keeps its data.
    pub(crate) fn stop(&mut self) {
        let mut keeper = self.keeper.take().expect("it runs");
        keeper.stdin.take().unwrap().write_all(b"keep\n").unwrap();
        assert!(keeper.wait().unwrap().success() || !self.folder.join("data/postmaster.pid").exists());
    }

    /// The server answers nothing any more, but every connection stays open.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Continues after [`Server::freeze`].
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    /// A new database with the schema. Returns its URL.
    pub(crate) async fn database(&self) -> String {
        self.make_template().await;
        self.create(&format!("TEMPLATE {TEMPLATE}")).await
    }

    /// A new, empty database with these options of `CREATE DATABASE`. Returns its URL.
    pub(crate) async fn create(&self, options: &str) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.superuser("postgres")
            .await
            .batch_execute(&format!("CREATE DATABASE {name} {options}"))
            .await
            .unwrap();
        self.url(&name)
    }

    /// Whether a database can choose its locale provider: since version 15.
    pub(crate) fn has_locale_providers(&self) -> bool {
        let version = std::fs::read_to_string(self.folder.join("data/PG_VERSION")).unwrap();
        version.trim().parse::<u32>().unwrap() >= 15
    }

    /// The URL of a database of this server.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://{OWNER}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// A connection outside the store, to inspect and damage things.
    pub(crate) async fn superuser(&self, database: &str) -> Client {
        raw(&self.url(database)).await
    }

    async fn make_template(&self) {
        // Once per server by the first caller; others wait for it here.
        static MADE: tokio::sync::Mutex<Vec<u16>> = tokio::sync::Mutex::const_new(Vec::new());
        let mut made = MADE.lock().await;
        if made.contains(&self.port) {
            return;
        }
        let client = self.superuser("postgres").await;
        client.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await.unwrap();
        let url = self.url(TEMPLATE).parse().unwrap();
        let patience = std::time::Duration::from_secs(60);
        let options = keygate::store::postgres::PgOptions {
            connect_timeout: patience,
            statement_timeout: patience,
            ..Default::default()
        };
        keygate::store::postgres::migrate(&url, &options).await.unwrap();
        made.push(self.port);
    }

    /// The server's own locale sorts in natural-language order, so that code that depends on the locale fails.
    fn initialise(&self) {
        let data = self.folder.join("data");
        let common = ["-U", OWNER, "--auth=trust", "-E", "UTF8", "--no-sync", "--locale=C.UTF-8", "-D"];
        let as_people_do = ["--locale-provider=icu", "--icu-locale=en-US"];
        for more in [as_people_do.as_slice(), &[]] {
            let mut initdb = self.command(&self.programs.join("initdb"));
            let done = initdb.args(common).arg(&data).args(more).output().unwrap();
            if done.status.success() {
                return;
            }
            assert!(!more.is_empty(), "initdb failed: {}", String::from_utf8_lossy(&done.stderr));
        }
    }

    /// With `server.crt` and `server.key` in the data folder, the server also speaks TLS.
    fn tls_settings(&self) -> &'static str {
        if self.folder.join("data/server.crt").exists() { "-c ssl=on" } else { "" }
    }

    /// Gives the server a certificate, for its next start.
    pub(crate) fn use_certificate(&self, certificate: &str, key: &str) {
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = self.folder.join("data").join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            if let Some((uid, gid)) = self.user {
                chown(&path, Some(uid), Some(gid)).unwrap();
            }
        }
    }

    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        // It may have ended meanwhile.
        let _status = Command::new("sh")
            .args(["-c", r#"kill "$@""#, "sh", signal, pid])
            .args(children.split_whitespace())
            .stderr(Stdio::null())
            .status()
            .unwrap();
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).env_remove("PGDATA").env("LC_ALL", "C");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match self.keeper.take() {
            // The end of its input tells it to stop.
            Some(mut keeper) => {
                drop(keeper.stdin.take());
                drop(keeper.wait());
            }
            None => drop(std::fs::remove_dir_all(&self.folder)),
        }
    }
}

/// A connection to `url` outside the store.
pub(crate) async fn raw(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    client
}

/// The folder with both `initdb` and `postgres`; the newest of Debian's first, then those of PATH.
fn programs() -> PathBuf {
    let is_whole =
        |folder: &PathBuf| ["initdb", "postgres", "pg_ctl"].iter().all(|name| folder.join(name).exists());
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort_by_key(|path| {
        let version = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        std::cmp::Reverse(version.and_then(|name| name.parse::<u32>().ok()).unwrap_or(0))
    });
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    versions.extend(std::env::split_paths(&on_path));
    versions.into_iter().find(is_whole).expect(
        "PostgreSQL's server programs (initdb, postgres, pg_ctl) are missing: apt-get install postgresql",
    )
}

/// PostgreSQL does not run as root. The user and group to use instead.
fn unprivileged() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let ids = |user: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
        let mut numbers = line.split(':').skip(2).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    Some(ids("postgres").or_else(|| ids("nobody")).expect("a user postgres or nobody"))
}
