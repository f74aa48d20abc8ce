//! Keygate with everything on: a hashed key, three limits, a record of every request.

use super::private_postgres::Server as Postgres;
use super::targets::{Owned, free, start};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_keygate");

/// The stores behind the gateway.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    /// SQLite, limits in memory.
    Embedded,
    /// The ledger in PostgreSQL.
    Postgres,
    /// Limits shared over Redis.
    Redis,
    /// Like [`Self::Embedded`]; requests take a route with a meter.
    Metered,
}

impl Setup {
    pub(crate) const ALL: &[Self] = &[Self::Embedded, Self::Postgres, Self::Redis, Self::Metered];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Embedded => "Keygate",
            Self::Postgres => "Keygate, Postgres",
            Self::Redis => "Keygate, Redis",
            Self::Metered => "Keygate, metered",
        }
    }
}

/// The servers behind the gateways of a scenario.
#[derive(Default)]
pub(crate) struct Servers {
    postgres: Option<Postgres>,
    redis: Option<Owned>,
}

/// A serving gateway.
pub(crate) struct Ready {
    pub(crate) address: SocketAddr,
    pub(crate) process: Owned,
}

/// Starts a gateway in front of `origin` that knows `secrets`, each limited to `rate` requests per second, and to more per
/// day and in total than any run sends.
pub(crate) fn serve(
    setup: Setup,
    place: &Path,
    origin: SocketAddr,
    secrets: &[String],
    rate: u32,
    servers: &mut Servers,
) -> Ready {
    let folder = place.join(setup.name());
    fs::create_dir(&folder).unwrap();
    let more = match setup {
        Setup::Embedded | Setup::Metered => String::new(),
        Setup::Postgres => {
            let server = servers.postgres.insert(Postgres::start());
            let runtime = tokio::runtime::Runtime::new().unwrap();
            format!("[store]\nurl = \"{}\"\n", runtime.block_on(server.create("")))
        }
        Setup::Redis => {
            let address = free();
            let mut command = Command::new("redis-server");
            command.args([
                "--port",
                &address.port().to_string(),
                "--save",
                "",
                "--maxmemory-policy",
                "noeviction",
            ]);
            servers.redis = Some(start(command.args(["--bind", "127.0.0.1"]), address));
            format!("[counters]\nurl = \"redis://{address}\"\n")
        }
    };
    let config = format!(
        "[proxy]\nlisten = [\"127.0.0.1:0\"]\nthreads = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n{more}\
         [plans.default]\napi_ops_rate_limit = 1000000\nend_user_quota = 10000\n\
         [[upstreams]]\nname = \"app\"\nservers = [\"{origin}\"]\n\
         [[routes]]\npath = \"/v1/app/{{rest*}}\"\nupstream = \"app\"\nscopes = [\"app\"]\n\
         [[routes]]\npath = \"/v1/metered/{{rest*}}\"\nupstream = \"app\"\nscopes = [\"app\"]\nmeter = \"llm\"\n"
    );
    fs::write(folder.join("keygate.toml"), config).unwrap();
    import(&folder, secrets, rate);
    run(&folder)
}

/// Creates the keys before the gateway starts, because a running gateway locks its database.
fn import(folder: &Path, secrets: &[String], rate: u32) {
    let mut file = BufWriter::new(File::create(folder.join("keys.jsonl")).unwrap());
    let mut name = String::new();
    for (number, secret) in secrets.iter().enumerate() {
        name.clear();
        write!(name, "key {number}").unwrap();
        let key = json!({
            "name": name, "type": "service", "scopes": ["app"], "api_key": secret, "rate_limit": rate,
            "daily_request_limit": 1_000_000_000, "quota_limit": 1_000_000_000,
        });
        writeln!(file, "{key}").unwrap();
    }
    file.into_inner().unwrap();
    let output = Command::new(BINARY)
        .current_dir(folder)
        .args(["keys", "--config", "keygate.toml", "import", "keys.jsonl"])
        .output()
        .unwrap();
    assert!(output.status.success(), "import: {}", String::from_utf8_lossy(&output.stderr));
}

fn run(folder: &Path) -> Ready {
    let mut child = Command::new(BINARY)
        .current_dir(folder)
        .args(["run", "--ready-json", "--config", "keygate.toml"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(folder.join("log")).unwrap())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
        panic!("the gateway does not start: {}", fs::read_to_string(folder.join("log")).unwrap())
    });
    Ready { address: ready["proxy"].as_str().unwrap().parse().unwrap(), process: Owned::new(child) }
}
