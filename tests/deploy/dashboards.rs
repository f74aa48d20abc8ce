//! Dashboards and alerts query only metrics that a gateway exports.

use super::{path, text, yaml};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

/// Labels that Prometheus puts on every series it scrapes.
const SCRAPED: [&str; 2] = ["instance", "job"];
/// Series that Prometheus adds.
const OF_PROMETHEUS: [&str; 1] = ["up"];
/// Series that only a gateway with certificates or metered routes exports, and their labels; tests/edge checks them.
const OF_OTHERS: [(&str, &[&str]); 3] = [
    ("keygate_certificate_expiry_timestamp_seconds", &["certificate"]),
    ("keygate_tokens_total", &["route", "kind"]),
    ("keygate_cost_nano_total", &["route", "model"]),
];

/// A demo gateway that has served and refused; ends when dropped.
struct Demo {
    child: Child,
    ready: Value,
}

impl Demo {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_keygate"))
            .env_clear()
            .args(["demo", "--ready-json", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let ready = serde_json::from_str(&line).expect("JSON");
        Self { child, ready }
    }

    fn address(&self, listener: &str) -> &str {
        self.ready[listener].as_str().expect("an address")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// How often `/metrics` is polled at most.
const ASKED_MAX: usize = 10_000;

/// Every series with its labels that a gateway exports after it has served and refused.
async fn told() -> BTreeMap<String, BTreeSet<String>> {
    let demo = tokio::task::spawn_blocking(Demo::start).await.expect("a demo");
    let proxy = format!("http://{}/v1/app/hello", demo.address("proxy"));
    let client = reqwest::Client::new();
    let served = client.get(&proxy).bearer_auth(demo.ready["api_key"].as_str().expect("a key"));
    assert_eq!(served.send().await.expect("an answer").status(), 200);
    assert_eq!(client.get(&proxy).send().await.expect("an answer").status(), 401);
    let metrics = format!("http://{}/metrics", demo.address("admin"));
    let mut text = String::new();
    // A request is counted when its client has been answered, which may be a moment later.
    for _ in 0..ASKED_MAX {
        text = client.get(&metrics).send().await.expect("an answer").text().await.expect("text");
        if ["keygate_denials_total{", "outcome=\"served\""].iter().all(|told| text.contains(told)) {
            break;
        }
    }
    let mut series: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().expect("a name");
        let labels = line.split_once('{').map_or("", |(_, rest)| rest.split_once('}').expect("}").0);
        let names = labels.split(',').filter_map(|pair| pair.split_once('=')).map(|(n, _)| n.to_owned());
        series.entry(name.to_owned()).or_default().extend(names);
    }
    for (name, labels) in OF_OTHERS {
        series.insert(name.to_owned(), labels.iter().map(|label| (*label).to_owned()).collect());
    }
    series
}

/// The names of the series and labels in `expression`.
fn asked(expression: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    const WORDS: [&str; 5] = ["and", "or", "sum", "min", "max"];
    let mut series = BTreeSet::new();
    let mut labels = BTreeSet::new();
    let (mut rest, mut in_labels) = (expression, false);
    while let Some(c) = rest.chars().next() {
        let word_end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        if c == '"' {
            let end = rest[1..].find('"').expect("the end of a text") + 2;
            rest = &rest[end..];
        } else if c == '[' {
            // A range, as in [5m] or [$__rate_interval].
            rest = &rest[rest.find(']').expect("the end of a range")..];
        } else if c.is_alphabetic() || c == '_' {
            let (word, after) = rest.split_at(word_end);
            let calls = after.trim_start().starts_with('(');
            if in_labels {
                labels.insert(word);
            } else if word == "by" {
                in_labels = true;
            } else if !calls && !WORDS.contains(&word) {
                series.insert(word);
            }
            rest = after;
        } else {
            match c {
                '{' => in_labels = true,
                '}' | ')' => in_labels = false,
                _ => {}
            }
            rest = &rest[if c.is_ascii_digit() { word_end } else { c.len_utf8() }..];
        }
    }
    (series, labels)
}

fn strings<'v>(value: &'v Value, key: &str, into: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            into.extend(fields.get(key).and_then(Value::as_str));
            fields.values().for_each(|field| strings(field, key, into));
        }
        Value::Array(items) => items.iter().for_each(|item| strings(item, key, into)),
        _ => {}
    }
}

#[test]
fn an_expression_is_taken_apart() {
    let text = r#"histogram_quantile(0.99, sum by (le, route) (rate(a_bucket{instance=~"$x", b!="c"}[5m]))) > 5e3 * up"#;
    let (series, labels) = asked(text);
    assert_eq!(series, ["a_bucket", "up"].into());
    assert_eq!(labels, ["b", "instance", "le", "route"].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dashboards_and_alerts_ask_for_series_that_exist() {
    let told = told().await;
    let board: Value = serde_json::from_str(&text("conf/grafana/dashboards/keygate.json")).expect("JSON");
    let alerts = yaml("conf/prometheus/alerts.yml");
    let mut expressions = Vec::new();
    strings(&board, "expr", &mut expressions);
    assert!(expressions.len() > 20, "the dashboard is read");
    let alerted = expressions.len();
    strings(&alerts, "expr", &mut expressions);
    assert!(expressions.len() >= alerted + 5, "the alerts are read");
    for expression in expressions {
        let (series, labels) = asked(expression);
        assert!(!series.is_empty(), "{expression}");
        let mut has: BTreeSet<&str> = SCRAPED.into();
        for name in series.iter().filter(|name| !OF_PROMETHEUS.contains(name)) {
            let known = told.get(*name).unwrap_or_else(|| panic!("no gateway tells {name}: {expression}"));
            has.extend(known.iter().map(String::as_str));
        }
        assert!(labels.is_subset(&has), "{labels:?} of {has:?}: {expression}");
    }
    for variable in ["instance", "route"] {
        let listed = board["templating"]["list"].as_array().expect("variables");
        let query = listed.iter().find(|v| v["name"] == variable).expect(variable)["definition"].as_str();
        let (series, label) = query
            .and_then(|q| q.strip_prefix("label_values(")?.strip_suffix(')')?.split_once(", "))
            .expect("label_values(series, label)");
        let labels = told.get(series).unwrap_or_else(|| panic!("no gateway tells {series}"));
        assert!(labels.contains(label) || SCRAPED.contains(&label), "{series} has no {label}");
    }
}

#[test]
fn every_panel_says_what_it_shows_and_grafana_finds_it() {
    let board: Value = serde_json::from_str(&text("conf/grafana/dashboards/keygate.json")).expect("JSON");
    let source = yaml("conf/grafana/provisioning/datasources/prometheus.yml");
    let variable = &board["templating"]["list"][0];
    assert_eq!((&variable["name"], &variable["type"]), (&"datasource".into(), &"datasource".into()));
    assert_eq!(variable["query"], source["datasources"][0]["type"], "the reader chooses one of this kind");
    let mut ids = BTreeSet::new();
    for panel in board["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: two panels have one id");
        if panel["type"] != "row" {
            assert!(panel["description"].as_str().is_some_and(|d| d.len() > 10), "{title}");
            let mut uids = Vec::new();
            strings(panel, "uid", &mut uids);
            assert!(uids.len() > 1 && uids.iter().all(|uid| *uid == "${datasource}"), "{title}: {uids:?}");
        }
    }
    let provider = yaml("conf/grafana/provisioning/dashboards/keygate.yml");
    let folder = provider["providers"][0]["options"]["path"].as_str().expect("a path");
    let compose = yaml("docker-compose.yml");
    let mounts = super::mounts(&compose["services"]["grafana"]);
    let mounted = mounts.get(folder).expect("the dashboards are mounted where Grafana looks");
    assert!(path(mounted.trim_start_matches("./")).join("keygate.json").exists());
}
