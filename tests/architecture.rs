//! The sources held against what `src/lib.rs` says of them: its arrows and its *Invariant* lines. What they depend on, held
//! against what is known of it.
//!
//! Reads files only; nothing of the gateway is linked. Comments and tests inside the sources do not count.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, in lines.
const LINES_MAX: usize = 600;
/// Who may be used by everyone, as the map says.
const COMMON: [&str; 5] = ["clock", "durable", "metrics", "envelope", "fileio"];
/// Where in the tests a pause is justified, and why.
const PAUSES: [(&str, usize, &str); 16] = [
    ("src/proxy/upstream/maintain.rs", 3, "time is paused"),
    ("tests/upstreams/tunnels.rs", 1, "a side that speaks now and then"),
    ("tests/propagation/main.rs", 1, "requests come at a rate"),
    ("tests/slow/main.rs", 2, "requests and guesses come at a rate"),
    ("tests/gateway/support/mod.rs", 1, "the one poll of facts that nothing announces"),
    ("tests/gateway/support/spare.rs", 2, "the beat of a clock"),
    ("tests/counters/chaos.rs", 1, "being late is what it is there for"),
    ("tests/counters/exact.rs", 4, "how soon is the subject"),
    ("tests/counters/cluster.rs", 2, "a steady load, for so long, is the subject"),
    ("tests/counters/failing.rs", 5, "how soon, and for how long, is the subject"),
    ("tests/counters/forgotten.rs", 7, "how soon, and for how long, is the subject"),
    ("tests/counters/node.rs", 4, "servers, and whether one answers in time, can only be asked"),
    ("tests/counters/patience.rs", 3, "how soon is the subject"),
    ("tests/counters/redis.rs", 1, "a server that starts can only be asked"),
    ("tests/counters/sentinel.rs", 2, "servers that agree can only be asked; a steady load is the subject"),
    ("tests/counters/share.rs", 4, "a steady load, for so long, is the subject"),
];

/// A source file.
struct Source {
    /// From the root of the repository.
    path: String,
    /// The module of the crate it belongs to.
    module: String,
    /// All of it.
    text: String,
    /// What the compiler makes the gateway of: no comments, no tests.
    code: String,
    /// Its tests, without comments.
    tests: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every `*.rs` under `folder`, in order.
fn sources(folder: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    collect(&root().join(folder), &mut paths);
    paths.sort_unstable();
    assert!(!paths.is_empty(), "no sources under {folder}");
    paths.iter().map(|path| Source::read(path)).collect()
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

impl Source {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let mut parts = path.split('/').skip(1);
        let module = parts.next().unwrap().trim_end_matches(".rs").to_owned();
        let bare: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let bare = bare.join("\n");
        let all_tests = path.starts_with("tests/") || parts.any(|p| p == "tests.rs" || p == "tests");
        let (code, tests) = match bare.split_once("#[cfg(test)]\nmod tests {") {
            _ if all_tests => ("", bare.as_str()),
            Some((code, tests)) => (code, tests),
            None => (bare.as_str(), ""),
        };
        let (code, tests) = (code.to_owned(), tests.to_owned());
        Self { path, module, text, code, tests }
    }

    /// The modules of the crate that the code names as `crate::x` or, in `main.rs`, as `keygate::x`.
    fn names(&self) -> BTreeSet<String> {
        let front = if self.module == "main" { "keygate::" } else { "crate::" };
        let mut found = BTreeSet::new();
        for (at, _) in self.code.match_indices(front) {
            let before = self.code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &self.code[at + front.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                let group = group.split_once("};").expect("the end of a use").0;
                found.extend(top_level(group).iter().map(|item| word(item)));
            } else {
                found.insert(word(rest));
            }
        }
        found.remove(&self.module);
        found
    }

    fn has_word(&self, wanted: &str) -> bool {
        self.code.match_indices(wanted).any(|(at, _)| {
            let ends = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
            ends(self.code[..at].chars().next_back()) && ends(self.code[at + wanted.len()..].chars().next())
        })
    }
}

/// The parts between commas that are not inside inner braces.
fn top_level(group: &str) -> Vec<String> {
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(c);
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// The identifier that `text` begins with.
fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The arrows as `src/lib.rs` draws them: `a → b → { c, d }` says that a uses b, and b uses c and d.
fn drawn() -> Arrows {
    let map = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let drawing = map.split_once("```text").expect("a drawing").1.split_once("```").expect("its end").0;
    let mut arrows = Arrows::new();
    for line in drawing.lines() {
        for chain in line.trim_start_matches("//!").trim().split("  ").filter(|c| c.contains('→')) {
            let stations: Vec<BTreeSet<String>> = chain.split('→').map(station).collect();
            for pair in stations.windows(2) {
                for from in &pair[0] {
                    arrows.entry(from.clone()).or_default().extend(pair[1].iter().cloned());
                }
            }
        }
    }
    assert!(arrows.len() > 10, "the drawing is read: {arrows:?}");
    arrows
}

fn station(text: &str) -> BTreeSet<String> {
    text.trim_matches(|c: char| c == '{' || c == '}' || c.is_whitespace())
        .split(',')
        .map(word)
        .filter(|w| !w.is_empty())
        .collect()
}

/// The arrows as they are.
fn taken() -> Arrows {
    let mut arrows = Arrows::new();
    for source in sources("src").iter().filter(|s| s.module != "lib") {
        let names = source.names().into_iter().filter(|n| !COMMON.contains(&n.as_str()));
        arrows.entry(source.module.clone()).or_default().extend(names);
    }
    arrows
}

#[test]
fn modules_use_each_other_as_the_map_says_and_in_no_other_way() {
    let (drawn, taken) = (drawn(), taken());
    let none = BTreeSet::new();
    let mut wrong = Vec::new();
    for (from, used) in &taken {
        let allowed = drawn.get(from).unwrap_or(&none);
        wrong.extend(
            used.difference(allowed).map(|to| format!("{from} uses {to}, and src/lib.rs has no such arrow")),
        );
    }
    for (from, allowed) in &drawn {
        let used = taken.get(from).unwrap_or(&none);
        let unused = allowed.difference(used).filter(|to| !COMMON.contains(&to.as_str()));
        wrong.extend(unused.map(|to| format!("src/lib.rs draws {from} → {to}, and nobody takes it")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn policy_is_pure() {
    for source in sources("src").iter().filter(|s| s.module == "policy") {
        for word in ["async", "dyn", "await", "tokio", "SystemTime", "Instant"] {
            assert!(!source.has_word(word), "{} has `{word}`", source.path);
        }
        assert!(!source.code.contains("now()"), "{} asks what time it is", source.path);
    }
}

#[test]
fn each_library_of_the_edges_is_known_where_its_edge_is() {
    let homes: [(&str, &[&str]); 7] = [
        ("pingora::", &["src/proxy/", "src/app/"]),
        // The demo and whoever tries a gateway out bring a backend of their own.
        ("axum::", &["src/admin/", "src/app/", "src/cli/echo.rs"]),
        ("rusqlite::", &["src/store/"]),
        ("tokio_postgres", &["src/store/postgres/"]),
        ("deadpool", &["src/store/postgres/"]),
        ("PgStore", &["src/store/postgres/", "src/app/"]),
        ("SqliteStore", &["src/store/sqlite/", "src/app/", "src/cli/"]),
    ];
    for source in sources("src") {
        for (library, allowed) in homes {
            let at_home = allowed.iter().any(|home| source.path.starts_with(home));
            assert!(at_home || !source.code.contains(library), "{} names {library}", source.path);
        }
    }
}

#[test]
fn the_gate_knows_neither_edge_nor_driver() {
    for source in sources("src").iter().filter(|s| s.module == "gate") {
        for word in ["pingora", "axum", "hyper", "rusqlite", "sqlite", "proxy", "admin"] {
            assert!(!source.has_word(word), "{} names {word}", source.path);
        }
    }
}

#[test]
fn only_the_composition_root_and_commands_on_a_store_name_a_backend() {
    for source in sources("src") {
        let may = ["app", "cli", "store"].contains(&source.module.as_str());
        assert!(
            may || !source.has_word("sqlite") || source.module == "config",
            "{} names a backend",
            source.path
        );
        // The config knows the word in an address, and no module of that name.
        assert!(may || !source.code.contains("sqlite::"), "{} names a backend", source.path);
    }
}

#[test]
fn only_the_request_filter_admits_and_charges() {
    let all = sources("src");
    let callers = |call: &str| -> Vec<(String, usize)> {
        let count = |s: &Source| s.code.matches(call).count();
        all.iter().filter(|s| count(s) > 0).map(|s| (s.path.clone(), count(s))).collect()
    };
    assert_eq!(callers("gate.admit("), [("src/proxy/request/decide.rs".to_owned(), 1)]);
    assert_eq!(callers("counters.admit("), [("src/gate.rs".to_owned(), 1)]);
    assert_eq!(callers(".decide("), [("src/proxy/service.rs".to_owned(), 1)]);
    let service = all.iter().find(|s| s.path == "src/proxy/service.rs").unwrap();
    let filter = service.code.split_once("async fn request_filter").expect("the filter").1;
    let filter = filter.split_once("\n    }\n").expect("its end").0;
    assert!(filter.contains(".decide("), "the decision is called in the request filter");
}

#[test]
fn nothing_in_the_request_path_reads_the_ledger() {
    for source in sources("src") {
        if ["proxy", "gate", "counter", "enduser", "keyring", "policy"].contains(&source.module.as_str()) {
            for word in ["Ledger", "LogFilter", "KeyStats"] {
                assert!(!source.has_word(word), "{} names {word}", source.path);
            }
        }
    }
}

#[test]
fn time_and_environment_are_arguments_and_queues_have_bounds() {
    for source in sources("src") {
        let only_in = |what: &str, home: &str| {
            assert!(source.path == home || !source.code.contains(what), "{} has {what}", source.path);
        };
        only_in("SystemTime::now", "src/clock.rs");
        only_in("std::time::Instant", "src/clock.rs");
        only_in("Utc::now", "src/clock.rs");
        only_in("env::var", "src/main.rs");
        only_in("unbounded_channel", "");
        only_in("mpsc::unbounded", "");
    }
}

#[test]
fn no_source_is_longer_than_it_can_be_read() {
    for source in sources("src") {
        let lines = source.text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", source.path);
    }
}

#[test]
fn every_module_says_what_it_is() {
    for source in sources("src").into_iter().chain(sources("tests")) {
        assert!(source.text.starts_with("//!"), "{} does not begin with its own documentation", source.path);
    }
}

#[test]
fn nothing_is_left_for_later() {
    // Written in two parts, so that this file does not find itself.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["unimpl", "emented!"], ["to", "do!"]].map(|m| m.concat());
    for source in sources("src").into_iter().chain(sources("tests")) {
        for mark in &marks {
            assert!(!source.text.contains(mark), "{} has a {mark}", source.path);
        }
    }
}

#[test]
fn tests_do_not_wait_by_sleeping() {
    // Written in two parts, so that this file does not find itself.
    let call = ["sle", "ep("].concat();
    for source in sources("src").into_iter().chain(sources("tests")) {
        let pauses = source.tests.matches(&call).count();
        let justified =
            PAUSES.iter().find(|(path, ..)| *path == source.path).map_or(0, |(_, count, _)| *count);
        assert_eq!(pauses, justified, "{} pauses; wait for something instead", source.path);
    }
}

/// `major.minor.patch`, as far as it has them.
fn release(version: &str) -> Vec<u64> {
    let numbers = version.split(['-', '+']).next().unwrap_or_default();
    numbers.split('.').map(|n| n.parse().unwrap_or_else(|_| panic!("{version} is no version"))).collect()
}

/// Names and versions of all that a lock file has.
fn locked(file: &str) -> Vec<(String, String)> {
    let lock: toml::Table = fs::read_to_string(root().join(file)).unwrap().parse().unwrap();
    let text = |package: &toml::Value, name: &str| package[name].as_str().unwrap().to_owned();
    let packages = lock["package"].as_array().unwrap();
    packages.iter().map(|package| (text(package, "name"), text(package, "version"))).collect()
}

#[test]
fn no_dependency_has_a_known_advisory() {
    let known = fs::read_to_string(root().join("tests/advisories.toml")).unwrap();
    let known: toml::Table = known.parse().unwrap();
    for lock in ["Cargo.lock", "tests/fuzz/Cargo.lock"] {
        let packages = locked(lock);
        assert!(packages.len() > 100, "{lock} is read");
        for advisory in known["advisory"].as_array().unwrap() {
            let text = |name: &str| advisory.get(name).map(|value| value.as_str().unwrap());
            let (id, name) = (text("id").unwrap(), text("crate").unwrap());
            let is_affected =
                |version: &str| text("patched").is_none_or(|patched| release(version) < release(patched));
            let affected: Vec<_> =
                packages.iter().filter(|(n, version)| n == name && is_affected(version)).collect();
            match text("tolerated") {
                None => assert!(affected.is_empty(), "{lock}: {id} concerns {affected:?}"),
                Some(why) => {
                    assert!(!why.is_empty() && !affected.is_empty(), "{id}: {name} has gone from {lock}")
                }
            }
        }
    }
}
