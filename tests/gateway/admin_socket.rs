//! Commands that talk to a running gateway: by its Unix socket, which needs no token, or by a URL with one.

use crate::installation::{Installation, mode, says};
use crate::support::{Gateway, PATIENCE, Request, eventually_true};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

const SOCKET: &str = "data/keygate.sock";

fn status(gateway: &Gateway, secret: &str) -> u16 {
    gateway.call(&Request::get("/v1/app/x").bearer(secret)).status
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The lines of a table without its heads, cut into cells.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table
        .lines()
        .skip(1)
        .map(|line| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect())
        .collect()
}

#[test]
fn commands_change_the_keys_of_a_running_gateway_at_once() {
    let place = Installation::new();
    let gateway = place.start();
    assert_eq!(mode(&place.path(SOCKET)), 0o600, "only the user of the gateway");
    let (id, secret) = place.make_key(&["--name", "one"]);
    assert_eq!(status(&gateway, &secret), 200);
    let table = place.done(&["keys", "list"]);
    assert!(table.starts_with("ID  ") && !table.contains('\x1b'), "heads, and no colours in a pipe: {table}");
    assert_eq!(rows(&table)[0][..3], [id.as_str(), "active", "service"]);

    place.done(&["keys", "disable", &id]);
    assert_eq!(status(&gateway, &secret), 401);
    assert_eq!(rows(&place.done(&["keys", "list"])), Vec::<Vec<&str>>::new());
    assert_eq!(rows(&place.done(&["keys", "list", "--all"]))[0][1], "disabled");
    place.done(&["keys", "enable", &id]);
    place.done(&[
        "keys",
        "update",
        &id,
        "--rate-limit",
        "7",
        "--daily-request-limit",
        "none",
        "--name",
        "two",
    ]);
    let key = json_of(&place.done(&["keys", "get", &id, "--json"]));
    assert_eq!(
        (&key["rate_limit"], &key["daily_request_limit"], &key["name"]),
        (&json!(7), &Value::Null, &json!("two"))
    );
    let new = place.done(&["keys", "regenerate", &id]);
    assert_eq!((status(&gateway, &secret), status(&gateway, &new)), (401, 200));
    place.done(&["keys", "delete", &id]);
    assert_eq!(status(&gateway, &new), 401);
    place.done(&["keys", "restore", &id]);
    assert_eq!(status(&gateway, &new), 200);

    let made = [
        "keys",
        "create",
        "--name",
        "j",
        "--scopes",
        "app",
        "--json",
        "--fields",
        r#"{"metadata": {"a": "b"}}"#,
    ];
    let made = json_of(&place.done(&made));
    assert_eq!(status(&gateway, made["api_key"].as_str().expect("a secret")), 200);
    assert_eq!(made["metadata"], json!({"a": "b"}));
    let lines = place.done(&["keys", "list", "--json"]);
    let names: Vec<Value> = lines.lines().map(|line| json_of(line)["name"].clone()).collect();
    assert_eq!(names, ["j", "two"]);

    let by = made["created_by"].as_str().expect("somebody");
    assert!(by.starts_with("socket:") && by[7..].parse::<u32>().is_ok(), "{by}");
    let audit = gateway.managed("GET", "/audit?pagesize=100", None);
    let subjects = audit["items"].as_array().expect("lines").iter().filter(|line| line["subject"] == by);
    assert!(subjects.count() >= 7, "{audit}");
}

#[test]
fn commands_manage_plans_workspaces_and_end_users() {
    let place = Installation::new();
    let gateway = place.start();
    let plan = ["plans", "set", "gold", "--api-ops-rate-limit", "20", "--end-user-quota", "3"];
    place.done(&plan);
    place.done(&["plans", "set", "gold", "--description", "for guests"]);
    let gold = json_of(&place.done(&["plans", "get", "gold", "--json"]));
    assert_eq!((&gold["api_ops_rate_limit"], &gold["description"]), (&json!(20), &json!("for guests")));
    place.done(&["workspaces", "create", "acme", "--plan", "gold", "--name", "Acme"]);
    says(&place.fails(1, &["workspaces", "create", "acme"]), &["there already is a workspace acme"]);
    says(&place.fails(1, &["workspaces", "update", "other"]), &["keygate workspaces create other"]);
    says(&place.fails(1, &["keys", "list", "--workspace", "other"]), &["There is no workspace other"]);
    let table = place.done(&["workspaces", "list"]);
    assert!(rows(&table).iter().any(|row| row[..2] == ["acme", "gold"]), "{table}");
    says(&place.fails(1, &["plans", "delete", "gold"]), &["on this plan"]);

    let (id, secret) = place.make_key(&["--name", "k", "--workspace", "acme", "--rate-limit", "20"]);
    let request = Request::get("/v1/app/x").bearer(&secret);
    assert_eq!(gateway.call(&request.header("x-end-user-id", "guest-1")).status, 200);
    let users = place.done(&["endusers", "list", "--workspace", "acme"]);
    assert_eq!(rows(&users)[0][2], "guest-1");
    let user = rows(&users)[0][0].to_owned();
    says(&place.done(&["endusers", "get", &user, "--workspace", "acme"]), &["other_id", "guest-1"]);
    place.done(&["endusers", "delete", &user, "--workspace", "acme"]);
    eventually_true("the request is counted", || {
        let usage = place.done(&["usage", "show", "--workspace", "acme", "--json"]);
        json_of(&usage)["total_requests"] == 1
    });
    let by_key = place.done(&["usage", "show", "--workspace", "acme", "--by", "key"]);
    assert!(rows(&by_key)[0].last().is_some_and(|of| of.contains(&id)), "{by_key}");
    let logs = place.done(&["logs", &id, "--workspace", "acme"]);
    assert_eq!(rows(&logs)[0][1..3], ["200", "served"], "{logs}");
    says(&place.fails(1, &["workspaces", "delete", "acme"]), &["keys of this workspace are in use"]);
    place.done(&["workspaces", "delete", "acme", "--force"]);
    place.done(&["plans", "delete", "gold"]);
}

#[test]
fn lists_are_complete_over_several_pages_and_imports_reach_a_running_gateway() {
    let place = Installation::new();
    let gateway = place.start();
    let row = |n: u32| json!({"name": format!("key {n}"), "scopes": ["app"], "api_key": format!("legacy_key_{n:04}")});
    let mut text: String = (0..250).map(|n| row(n).to_string() + "\n").collect();
    text.push_str("{\"name\": \"bad\", \"scopes\": [\"app\"]}\n");
    place.write("keys.jsonl", text);
    let told = place.command(&["keys", "import", "keys.jsonl", "--refused", "left.jsonl", "--json"]);
    assert_eq!(told.code, Some(1), "{told:?}");
    says(&told.stderr, &["keys.jsonl:251: api_key: is required", "250 imported, 1 refused"]);
    assert_eq!(json_of(&told.stdout), json!({"imported": 250, "refused": 1, "dry_run": false}));
    says(&place.read("left.jsonl"), &["\"bad\""]);
    assert_eq!(status(&gateway, "legacy_key_0249"), 200);
    let listed = place.done(&["keys", "list", "--json"]);
    let names: std::collections::BTreeSet<String> =
        listed.lines().map(|line| json_of(line)["name"].to_string()).collect();
    assert_eq!((listed.lines().count(), names.len()), (250, 250));
    place.write("users.csv", "other_id\nu1\nu2\nu1\n");
    let told = place.command(&["endusers", "import", "users.csv"]);
    says(&told.stderr, &["imported"]);
    assert_eq!(rows(&place.done(&["endusers", "list"])).len(), 2);
}

#[test]
fn a_refusal_names_the_field_and_what_helps() {
    let place = Installation::new();
    let gateway = place.start();
    let wrong = ["keys", "create", "--name", "n", "--scopes", "a pp", "--rate-limit", "0"];
    says(&place.fails(64, &wrong), &["(validation_failed)", "\n  rate_limit: must be", "\n  scopes"]);
    let unknown = "019378a0-0000-7000-8000-000000000000";
    says(&place.fails(1, &["keys", "get", unknown]), &["api_key_not_found"]);
    let twice = ["keys", "create", "--name", "n", "--fields", r#"{"name": "m"}"#];
    says(&place.fails(64, &twice), &["--fields: name has an argument of its own"]);

    let url = format!("http://{}", gateway.admin);
    place.write("viewer", gateway.mint("viewer", "default"));
    let by_token = |role: &str, more: &[&str]| {
        let args = [more, &["--admin", &url, "--token-file", role]].concat();
        place.command(&args)
    };
    let created = by_token("viewer", &["keys", "create", "--name", "n", "--scopes", "app"]);
    assert_eq!(created.code, Some(1));
    says(&created.stderr, &["(forbidden)", "hint: the role of the token is too low"]);
    assert_eq!(by_token("viewer", &["keys", "list"]).code, Some(0));
    place.write("admin", gateway.mint("admin", "default"));
    let created = by_token("admin", &["keys", "create", "--name", "n", "--scopes", "app"]);
    assert_eq!(status(&gateway, created.stdout.trim()), 200);
    place.write("broken", "nonsense\n");
    says(&by_token("broken", &["keys", "list"]).stderr, &["(token_invalid)", "hint: `keygate token`"]);
    says(&place.fails(64, &["keys", "list", "--admin", &url]), &["--token-file"]);
    says(&place.fails(64, &["keys", "list", "--admin", "nowhere"]), &["must be https://HOST:PORT"]);
    // A token on the socket counts as everywhere: it can only lower what the caller may.
    let socket = format!("unix:{SOCKET}");
    let lower =
        ["keys", "create", "--name", "m", "--scopes", "app", "--admin", &socket, "--token-file", "viewer"];
    says(&place.fails(1, &lower), &["(forbidden)"]);
    // The other addresses of the admin API need a token, as before.
    assert_eq!(crate::support::Raw::connect(gateway.admin).call(&Request::get("/apikeys")).status, 401);
}

#[test]
fn the_socket_of_a_killed_gateway_is_replaced_and_meanwhile_commands_use_the_store() {
    let place = Installation::new();
    let mut gateway = place.start();
    let (id, secret) = place.make_key(&["--name", "k"]);
    gateway.kill9();
    assert!(place.path(SOCKET).exists(), "nobody could remove it");
    place.done(&["keys", "disable", &id]);
    let mut gateway = gateway.restart();
    assert_eq!(status(&gateway, &secret), 401, "what the command did counts");
    place.done(&["keys", "enable", &id]);
    assert_eq!(status(&gateway, &secret), 200, "now the gateway did it");
    assert!(gateway.stop().success());
    assert!(!place.path(SOCKET).exists(), "one that stops removes it");
}

#[test]
fn a_socket_that_another_process_accepts_on_is_left_alone() {
    let place = Installation::with("[admin]\nsocket = \"a.sock\"\nsocket_mode = \"0660\"\n");
    let other = UnixListener::bind(place.path("a.sock")).expect("a socket");
    says(&place.refusal(), &["admin.socket: a.sock: another process accepts connections there"]);
    drop(other);
    let _gateway = place.start();
    assert_eq!(mode(&place.path("a.sock")), 0o660);
    place.done(&["keys", "list"]);
}

#[test]
fn an_upgrade_hands_the_socket_on() {
    let place = Installation::new();
    let mut gateway = place.start();
    let (id, secret) = place.make_key(&["--name", "k"]);
    for _ in 0..2 {
        let before = gateway.upgrade();
        // Both processes are there; the commands reach the new one.
        place.done(&["keys", "disable", &id]);
        assert_eq!(status(&gateway, &secret), 401);
        eventually_true("the process before ends", || gateway.has_ended(before));
        place.done(&["keys", "enable", &id]);
        assert_eq!(status(&gateway, &secret), 200);
    }
}

/// A command that goes on; its lines.
struct Following {
    lines: Receiver<String>,
    child: Child,
}

impl Following {
    fn start(place: &Installation, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_keygate"))
            .env_clear()
            .current_dir(place.path(""))
            .args(args)
            .args(["--config", "keygate.toml"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let (to, lines) = sync_channel(100);
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| drop(to.send(line))));
        Self { lines, child }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_log_is_followed_without_repetition() {
    let place = Installation::new();
    let gateway = place.start();
    let (id, secret) = place.make_key(&["--name", "k"]);
    let get = |path: &str| gateway.call(&Request::get(&format!("/v1/app/{path}")).bearer(&secret)).status;
    assert_eq!((get("long-before"), get("before")), (200, 200));
    eventually_true("they are recorded", || place.done(&["logs", &id, "--json"]).lines().count() == 2);
    let log = Following::start(&place, &["logs", &id, "--follow", "--json", "--lines", "1"]);
    let endpoint = || json_of(&log.line())["endpoint"].clone();
    assert_eq!(endpoint(), "/v1/app/before");
    for n in 0..3 {
        assert_eq!(get(&n.to_string()), 200);
        assert_eq!(endpoint(), format!("/v1/app/{n}"));
    }
}

#[test]
fn shells_and_man_learn_every_command() {
    let place = Installation::new();
    let run = |args: &[&str]| crate::support::keygate(&place.path(""), args);
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert_eq!((script.code, script.stderr.as_str()), (Some(0), ""));
        says(&script.stdout, &["regenerate", "token-file"]);
    }
    assert_eq!(run(&["completions", "abacus"]).code, Some(64));
    std::fs::create_dir(place.path("man")).expect("a folder");
    assert_eq!(run(&["man", "man"]).code, Some(0));
    says(&place.read("man/keygate.1"), &["keygate\\-keys(1)"]);
    says(&place.read("man/keygate-keys-list.1"), &["\\-\\-deleted"]);
    assert_eq!(run(&["man", "nowhere"]).code, Some(1));
}
