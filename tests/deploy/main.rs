//! Checks the deployment files: each is parsed as its own program parses it and compared with the binary. Checks that need
//! those programs are in `make check-deploy`.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and tests live in real time"
)]

mod dashboards;
#[path = "../gateway/installation.rs"]
#[expect(dead_code, reason = "the gateway's own tests use more of it")]
mod installation;
mod moving;
mod moving_usage;
#[path = "../store_behaviours/private_postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use more of it")]
mod private_postgres;
#[path = "../gateway/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the gateway's own tests use more of it")]
mod support;

use clap::Parser as _;
use keygate::cli::Cli;
use keygate::config::{Config, PROGRAM_VARIABLES, known_keys};
use keygate::policy::keys::secret::Peppers;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Time to stop beyond `proxy.drain_timeout`: the last admin calls and the last records.
const AFTER_DRAINING: Duration = Duration::from_secs(15);

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn yaml(name: &str) -> Value {
    let mut value: serde_yaml::Value =
        serde_yaml::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    // A mapping that is merged in may itself merge another.
    for _depth in 0..2 {
        value.apply_merge().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    serde_json::to_value(value).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn production(environment: &[(String, String)]) -> Config {
    Config::parse(&text("conf/production.toml"), "production.toml", environment, "a-host")
        .unwrap_or_else(|error| panic!("{error}"))
}

/// The whole seconds of `50s`.
fn seconds(text: &str) -> Duration {
    Duration::from_secs(text.strip_suffix('s').and_then(|n| n.parse().ok()).expect("seconds"))
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|word| word.as_str().expect("a word")).collect()
}

/// Every `KEYGATE_…` variable that a text sets or names.
fn variables(text: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !is_name(c)).filter(|word| word.starts_with("KEYGATE_")).collect()
}

fn assert_known(variable: &str, whence: &str) {
    let known = known_keys().into_iter().filter_map(|key| key.variable).any(|name| name == variable);
    assert!(known || PROGRAM_VARIABLES.contains(&variable), "{whence}: {variable} does nothing");
}

// === config files ===

#[test]
fn every_config_file_is_accepted() {
    let mut count = 0;
    for entry in fs::read_dir(path("conf")).expect("a folder") {
        let file = entry.expect("an entry").path();
        if file.extension().is_some_and(|end| end == "toml") {
            Config::load(Some(&file), &[], "a-host").unwrap_or_else(|error| panic!("{error}"));
            count += 1;
        }
    }
    assert!(count >= 2, "keygate.toml and production.toml");
}

#[test]
fn production_keeps_its_secrets_elsewhere_and_a_backend_for_every_scope() {
    let file = text("conf/production.toml");
    for variable in variables(&file) {
        assert_known(variable, "conf/production.toml");
    }
    let settings: String = file.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    assert!(!settings.contains("PASSWORD") && !settings.contains(":@"), "no password is in the file");
    let config = production(&[]);
    let scopes: BTreeSet<_> = config.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(scopes, ["app", "memory", "rag"].into());
    assert!(config.routes.iter().all(|route| route.resource.is_some()), "a bound key reaches its own only");
    assert!(config.admin.listen.ip().is_loopback() && config.usage.journal_dir.is_absolute());
}

// === compose ===

struct Compose {
    file: Value,
}

impl Compose {
    fn read() -> Self {
        Self { file: yaml("docker-compose.yml") }
    }

    fn services(&self) -> BTreeMap<&str, &Value> {
        self.file["services"].as_object().expect("services").iter().map(|(n, s)| (n.as_str(), s)).collect()
    }

    fn gateways(&self) -> Vec<(&str, &Value)> {
        self.services().into_iter().filter(|(name, _)| name.starts_with("gateway-")).collect()
    }
}

/// The environment of a service with every `${NAME:?…}` filled in.
fn environment(service: &Value) -> Vec<(String, String)> {
    let all = service["environment"].as_object().expect("an environment");
    all.iter()
        .map(|(name, value)| {
            let value = value.as_str().expect("text").replace("${KEYGATE_PEPPERS:?run make env}", "1:00");
            let filled = value.split("${").enumerate().map(|(n, part)| match n {
                0 => part.to_owned(),
                _ => format!("0123456789abcdef0123456789abcdef{}", part.split_once('}').expect("}").1),
            });
            (name.clone(), filled.collect())
        })
        .collect()
}

/// The mounts of a service: target and source.
fn mounts(service: &Value) -> BTreeMap<String, String> {
    let Some(all) = service["volumes"].as_array() else { return BTreeMap::new() };
    all.iter()
        .map(|mount| {
            let (source, target) = mount.as_str().expect("text").split_once(':').expect("source:target");
            (target.trim_end_matches(":ro").to_owned(), source.to_owned())
        })
        .collect()
}

#[test]
fn the_gateways_differ_in_nothing_but_name_and_journal() {
    let compose = Compose::read();
    let gateways = compose.gateways();
    assert_eq!(gateways.len(), 2);
    let mut journals = BTreeSet::new();
    for (name, gateway) in &gateways {
        assert_eq!(gateway["environment"], gateways[0].1["environment"], "the same secrets");
        assert_eq!(&gateway["hostname"], name, "records say which node it was");
        let config = production(&environment(gateway));
        let mounts = mounts(gateway);
        assert_eq!(mounts["/etc/keygate/keygate.toml"], "./conf/production.toml");
        let home = mounts.iter().find(|(target, _)| config.usage.journal_dir.starts_with(target));
        let (_, volume) = home.expect("the journal is on a volume");
        assert!(compose.file["volumes"].get(volume).is_some(), "{volume} is a named volume");
        assert!(journals.insert(volume.clone()), "one journal is one node's");
        let patience = seconds(gateway["stop_grace_period"].as_str().expect("a time"));
        assert!(patience >= config.proxy.drain_timeout + AFTER_DRAINING, "it may finish what it serves");
    }
}

#[test]
fn every_container_is_contained() {
    let compose = Compose::read();
    for (name, service) in compose.services() {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(words(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(words(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        let user = service["user"].as_str().unwrap_or_else(|| panic!("{name} runs as root"));
        assert!(user != "root" && !user.starts_with('0'), "{name}");
        let limits = &service["deploy"]["resources"]["limits"];
        assert!(limits["cpus"].is_string() && limits["memory"].is_string(), "{name}");
        let image = service["image"].as_str().expect("an image");
        let tag = image.split_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest"), "{name}: {image}");
        for port in service["ports"].as_array().into_iter().flatten() {
            let port = port.as_str().expect("text");
            assert!(
                port == "8080:8080" || port.starts_with("127.0.0.1:"),
                "{name} opens {port} to everybody"
            );
        }
        for (_, source) in mounts(service) {
            let is_there = source.strip_prefix("./").is_none_or(|file| path(file).exists());
            assert!(is_there, "{name}: there is no {source}");
        }
    }
}

#[test]
fn compose_finds_its_secrets_in_the_example() {
    let example = text(".env.example");
    let given: BTreeSet<_> =
        example.lines().filter_map(|line| line.split_once('=')).map(|(n, _)| n).collect();
    let file = text("docker-compose.yml");
    let asked: BTreeSet<_> =
        file.split("${").skip(1).map(|rest| rest.split([':', '}']).next().expect("a name")).collect();
    assert_eq!(asked, given);
    let asks = file.split("${").skip(1).map(|rest| rest.split('}').next().expect("an end"));
    let all_tell = asks.into_iter().all(|ask| ask.ends_with(":?run make env"));
    assert!(all_tell, "what is missing is said, and how to make it");
}

#[test]
fn make_env_makes_secrets_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("env");
    let make = || {
        let mut make = Command::new("make");
        make.current_dir(path("")).args(["-s", "env"]).arg(format!("ENV_FILE={}", file.display()));
        assert!(make.output().expect("make runs").status.success());
        fs::read_to_string(&file).expect("made")
    };
    let made = make();
    assert_eq!(fs::metadata(&file).expect("made").permissions().mode() & 0o777, 0o600);
    let values: BTreeMap<_, _> = made.lines().filter_map(|line| line.split_once('=')).collect();
    assert_eq!(values.len(), 5, "{made}");
    assert!(values.values().all(|v| v.len() >= 48 && !v.contains("RANDOM")), "{made}");
    let distinct: BTreeSet<_> = values.values().collect();
    assert_eq!(distinct.len(), values.len(), "no two are the same");
    Peppers::parse(values["KEYGATE_PEPPERS"]).expect("peppers");
    assert_eq!(make(), made, "what keys are hashed with is never replaced");
}

#[test]
fn balancer_examples_name_gateways_that_exist() {
    let compose = Compose::read();
    let gateways: BTreeSet<String> = compose.gateways().iter().map(|(name, _)| (*name).to_owned()).collect();
    let prometheus = yaml("conf/prometheus/prometheus.yml");
    let targets = words(&prometheus["scrape_configs"][0]["static_configs"][0]["targets"]);
    let scraped: BTreeSet<_> = targets.iter().map(|t| t.trim_end_matches(":8081").to_owned()).collect();
    assert_eq!(scraped, gateways);
    let haproxy = text("conf/haproxy/haproxy.cfg");
    for (backend, port) in [("gateways", 8080), ("admins", 8081)] {
        let section = haproxy.split(&format!("\nbackend {backend}\n")).nth(1).expect("a backend");
        let servers = section.lines().take_while(|line| line.starts_with("    server "));
        let named: BTreeSet<_> = servers.map(|line| line.trim_start().to_owned()).collect();
        let wanted: BTreeSet<_> =
            gateways.iter().map(|name| format!("server {name} {name}:{port}")).collect();
        assert_eq!(named, wanted);
    }
    // It names the client, which the gateways believe because they trust its network.
    assert!(haproxy.contains("\n    http-request del-header x-forwarded- -m beg\n    option forwardfor\n"));
    let trusted = production(&environment(compose.gateways()[0].1)).proxy.trusted_proxies;
    let network = &compose.file["networks"]["front"]["ipam"]["config"][0]["subnet"];
    assert_eq!(
        trusted.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [network.as_str().expect("a subnet")]
    );
    // The load balancer's timeout must be longer than Keygate's, whose responses have the envelope.
    let config = production(&[]);
    let patience =
        haproxy.lines().find_map(|line| line.trim().strip_prefix("timeout server ")).expect("a timeout");
    assert!(config.upstreams.iter().all(|upstream| upstream.read_timeout < seconds(patience)));
}

// === what starts the binary ===

#[test]
fn commands_in_containers_and_units_exist() {
    let compose = Compose::read();
    let origin = &compose.services()["origin"]["entrypoint"];
    let unit = text("conf/systemd/keygate.service");
    let mut commands: Vec<Vec<String>> = vec![words(origin).iter().map(ToString::to_string).collect()];
    for line in unit.lines().filter(|line| line.starts_with("ExecStart")) {
        let command = line.split_once('=').expect("a command").1;
        commands.push(command.split(' ').map(str::to_owned).collect());
    }
    let dockerfile = text("Dockerfile");
    let instruction = |name: &str| -> Vec<String> {
        let line = dockerfile.lines().find(|line| line.starts_with(name) && line.contains('[')).expect(name);
        serde_json::from_str(&line[line.find('[').expect("a list")..]).expect("a list of words")
    };
    commands.push(instruction("HEALTHCHECK"));
    commands.push([instruction("ENTRYPOINT"), instruction("CMD")].concat());
    assert_eq!(commands.len(), 5);
    for command in commands {
        assert_eq!(command[0], "/usr/local/bin/keygate");
        Cli::try_parse_from(&command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    }
}

#[test]
fn variables_of_image_and_unit_do_something_and_the_unit_waits_long_enough() {
    let unit = text("conf/systemd/keygate.service");
    let shared = text("conf/systemd/several-nodes.conf");
    for (file, whence) in [
        (text("Dockerfile"), "Dockerfile"),
        (unit.clone(), "keygate.service"),
        (shared, "several-nodes.conf"),
    ] {
        let set = variables(&file);
        assert!(!set.is_empty(), "{whence}");
        set.into_iter().for_each(|variable| assert_known(variable, whence));
    }
    let patience = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).expect("a time");
    assert!(seconds(patience) >= production(&[]).proxy.drain_timeout + AFTER_DRAINING);
    // Without this setting systemd kills a main process that it did not start itself: the one after an upgrade.
    let stop = unit.lines().find_map(|line| line.strip_prefix("ExecStop=")).expect("how it stops");
    assert!(stop.contains("kill -TERM $MAINPID") && stop.contains("while kill -0 $MAINPID"), "{stop}");
    assert!(unit.contains("\nStateDirectory=keygate\n"), "the journal of production.toml has a home");
}

#[test]
fn the_image_runs_as_nobody_in_particular_and_is_built_from_what_is_there() {
    let dockerfile = text("Dockerfile");
    let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER ")).expect("a user");
    let numeric = user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0));
    assert!(numeric, "an orchestrator can tell that {user} is not root");
    assert!(dockerfile.contains("\nSTOPSIGNAL SIGTERM\n"));
    let rust = text("Cargo.toml").lines().find_map(|l| l.strip_prefix("rust-version = ").map(str::to_owned));
    let image = format!("FROM rust:{}-", rust.expect("a version").trim_matches('"'));
    assert!(dockerfile.contains(&image), "the image builds with the oldest Rust that is promised");
    let ignored = text(".dockerignore");
    for needed in ["Cargo.toml", "Cargo.lock", "src", "migrations", "conf", "tests"] {
        assert!(
            ignored.lines().any(|line| line == format!("!{needed}")) && path(needed).exists(),
            "{needed}"
        );
    }
}
