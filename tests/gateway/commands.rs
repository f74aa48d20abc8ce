//! The command line: output, effect and refusals of each command, and what a running gateway sees of it.

use crate::installation::{Installation, Process, says};
use crate::support::{CommandOutput, Gateway, Origin, PATIENCE, Raw, Request, Response, keygate};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

// === help and exit codes ===

/// The help of a command and of all its subcommands, in their order.
fn help_of(command: &[&str], all: &mut String) {
    let args = [command, &["--help"]].concat();
    let output = keygate(repository(), &args);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{command:?}");
    all.push_str(&["$ keygate ", &args.join(" "), "\n", &output.stdout, "\n"].concat());
    let listed = output.stdout.split("Commands:\n").nth(1).unwrap_or_default();
    let listed = listed.lines().take_while(|line| !line.is_empty());
    // Names are indented by two columns; continuation lines by more.
    let names = listed.filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    for name in names.filter_map(|line| line.split(' ').next()).filter(|name| *name != "help") {
        help_of(&[command, &[name]].concat(), all);
    }
}

#[test]
fn the_help_of_every_command_says_what_every_flag_does() {
    let mut all = String::new();
    help_of(&[], &mut all);
    insta::assert_snapshot!("help", all);
}

#[test]
fn exit_codes_tell_success_from_failure_and_from_misuse() {
    let place = Installation::new();
    let unknown = "019378a0-0000-7000-8000-000000000000";
    let cases: &[(i32, &[&str])] = &[
        (0, &["check"]),
        (0, &["migrate"]),
        (0, &["keys", "list"]),
        (1, &["keys", "disable", unknown]),
        (1, &["keys", "regenerate", unknown]),
        (1, &["keys", "delete", unknown]),
        (1, &["keys", "restore", unknown]),
        (1, &["keys", "import", "missing.csv"]),
        (1, &["keys", "create", "--name", "n", "--scopes", "app", "--rate-limit", "1001"]),
        (64, &["keys", "create", "--name", "n", "--type", "app"]),
        (64, &["keys", "create", "--name", "n"]),
        (64, &["keys", "create", "--name", "n", "--scopes", "app", "--rate-limit", "0"]),
        (64, &["keys", "create", "--name", "n", "--scopes", "app", "--expires-at", "2020-01-01T00:00:00Z"]),
        (64, &["keys", "create", "--name", "n", "--scopes", "app", "--allowed-ips", "10.0.0.1/8"]),
        (64, &["keys", "create", "--name", "n", "--type", "gadget"]),
        (64, &["keys", "create"]),
        (64, &["keys", "delete", "1"]),
        (64, &["run", "--redy-json"]),
        (64, &["keys"]),
        (64, &["nonsense"]),
    ];
    for (code, args) in cases {
        let output = place.command(args);
        assert_eq!(output.code, Some(*code), "{args:?}: {output:?}");
        assert_eq!(*code == 0, output.stderr.lines().all(is_log), "{args:?}: {output:?}");
    }
    for (code, args) in [
        (64, &[][..]),
        (0, &["--version"]),
        (0, &["openapi"]),
        (64, &["check", "--config", "/nonexistent.toml"]),
        (64, &["openapi", "--config", "/nonexistent.toml"]),
    ] {
        assert_eq!(keygate(repository(), args).code, Some(code), "{args:?}");
    }
}

/// Whether a line of standard error is a log line without a warning.
fn is_log(line: &str) -> bool {
    line.contains(" INFO ")
}

// === check ===

#[test]
fn check_names_every_mistake_of_a_file_with_its_place() {
    let place = Installation::new();
    let bad = r#"
[proxy]
listen = ["nonsense"]
threads = -1
lisen = 3
[admin]
listen = "127.0.0.1"
default_plan = "gold"
[log]
level = "loud"
[usage]
when_full = "panic"
[plans.default]
api_ops_rate_limit = 0
[[upstreams]]
name = "app"
servers = []
[[routes]]
path = "/v1/{rest*}"
upstream = "other"
scopes = ["a pps"]
"#;
    place.write("bad.toml", bad);
    for command in ["check", "run"] {
        let output = keygate(&place.path(""), &[command, "--config", "bad.toml"]);
        assert_eq!((output.code, output.stdout.as_str()), (Some(64), ""), "{output:?}");
        let places: Vec<_> = output.stderr.lines().filter_map(|line| line.split(": ").next()).collect();
        let expected = [
            "bad.toml:3:11 proxy.listen[0]",
            "bad.toml:4:11 proxy.threads",
            "bad.toml:5:1 proxy.lisen",
            "bad.toml:7:10 admin.listen",
            "bad.toml:8:16 admin.default_plan",
            "bad.toml:10:9 log.level",
            "bad.toml:12:13 usage.when_full",
            "bad.toml:14:22 plans.default.api_ops_rate_limit",
            "bad.toml:17:11 upstreams[0].servers",
            "bad.toml:20:12 routes[0].upstream",
            "bad.toml:21:11 routes[0].scopes[0]",
        ];
        assert_eq!(places, expected, "{}", output.stderr);
        says(&output.stderr, &["did you mean \"listen\"?", "must be one of: shed, refuse", "known: app"]);
    }
    assert!(!place.path("data").exists(), "what was refused has touched nothing");
}

#[test]
fn a_config_file_in_the_working_directory_needs_no_argument() {
    let folder = tempfile::tempdir().unwrap();
    let check = || keygate(folder.path(), &["check"]);
    assert_eq!(check().stdout, "ok: 0 routes to 0 upstreams\n");
    std::fs::write(folder.path().join("keygate.toml"), "[proxy]\nlisen = []\n").unwrap();
    let output = check();
    assert_eq!(output.code, Some(64), "{output:?}");
    says(&output.stderr, &["keygate.toml:2:1 proxy.lisen"]);
    // A file that is named is the only one.
    std::fs::write(folder.path().join("other.toml"), "").unwrap();
    let other = keygate(folder.path(), &["check", "--config", "other.toml"]);
    assert_eq!(other.stdout, "ok: 0 routes to 0 upstreams\n");
}

#[test]
fn check_tells_of_every_file_that_cannot_be_used_where_its_name_is_written() {
    let place = Installation::new();
    let text = "\
[proxy]
listen_tls = ['127.0.0.1:0']
certificates = ['good', 'no/certificate.pem']
[admin]
certificates = ['nonsense.pem']
[admin.introspection]
url = 'https://127.0.0.1/i'
client_id = 'c'
client_secret_file = 'no/secret'
[secrets]
encryption_key_file = 'no/key'
[telemetry]
endpoint = 'https://127.0.0.1:1'
headers_file = 'no/headers'
[[upstreams]]
name = 'o'
servers = ['127.0.0.1:1']
protocol = 'http2'
[upstreams.tls]
enabled = true
ca_file = 'no/ca'
";
    place.write("files.toml", text);
    place.write("nonsense.pem", "nonsense");
    let [_, certificate, key] = crate::files::authority();
    place.write("good/fullchain.pem", certificate);
    place.write("good/privkey.pem", key);
    let output = keygate(&place.path(""), &["check", "--config", "files.toml"]);
    assert_eq!(output.code, Some(64), "{output:?}");
    let places = [
        "files.toml:3:25 proxy.certificates[1]: no/certificate.pem: ",
        "files.toml:5:17 admin.certificates[0]: nonsense.pem: ",
        "files.toml:9:22 admin.introspection.client_secret_file: no/secret: ",
        "files.toml:11:23 secrets.encryption_key_file: no/key: ",
        "files.toml:14:16 telemetry.headers_file: no/headers: ",
        "files.toml:21:11 upstreams[0].tls.ca_file: ",
    ];
    let lines: Vec<_> = output.stderr.lines().collect();
    assert_eq!(lines.len(), places.len(), "{output:?}");
    for (line, place) in lines.into_iter().zip(places) {
        assert!(line.starts_with(place), "{line}\nis not at\n{place}");
    }
}

#[test]
fn check_finds_routes_that_cannot_be_and_is_content_with_the_documented_config() {
    let place = Installation::new();
    let route = |path: &str| format!("[[routes]]\npath = '{path}'\nupstream = 'o'\n");
    let twice = [route("/a/{x}"), route("/a/{y}"), route("/a/{z")].concat();
    place.write("routes.toml", &format!("[[upstreams]]\nname = 'o'\nservers = ['127.0.0.1:1']\n{twice}"));
    let output = keygate(&place.path(""), &["check", "--config", "routes.toml"]);
    assert_eq!(output.code, Some(64), "{output:?}");
    let places = ["routes.toml:8:8 routes[1].path: ", "routes.toml:11:8 routes[2].path: "];
    assert!(output.stderr.lines().zip(places).all(|(line, place)| line.starts_with(place)), "{output:?}");

    let output = keygate(repository(), &["check", "--config", "conf/keygate.toml"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(output.stdout, "ok: 1 routes to 1 upstreams\n");
    says(&output.stderr, &["warning: keys that are bound to a resource cannot use these routes", "app"]);
    assert!(!output.stderr.contains("limits on tokens"), "{output:?}");

    let plan = "[plans.gold]\nlimits = [{ count = 'tokens', per = 'day', max = 1 }]\n";
    for (meter, code) in [("", 64), ("meter = 'llm'\n", 0)] {
        let routes = format!("[[upstreams]]\nname = 'o'\nservers = ['127.0.0.1:1']\n{}{meter}", route("/a"));
        place.write("plans.toml", &format!("{plan}{routes}"));
        let output = keygate(&place.path(""), &["check", "--config", "plans.toml"]);
        let told = "plans.gold.limits[0].count: would count nothing: no route that takes a key has a meter that counts tokens";
        assert_eq!((output.code, output.stderr.contains(told)), (Some(code), code == 64), "{output:?}");
    }
}

#[test]
fn check_connects_to_everything_when_asked_to() {
    let place = Installation::new();
    let (origin, gone) = (Origin::start(), Origin::start());
    let (there, not_there) = (origin.address, gone.address);
    let port = gone.stop();
    let config = |servers: &str| {
        format!(
            "[[upstreams]]\nname = 'o'\nservers = [{servers}]\n[[routes]]\npath = '/a'\nupstream = 'o'\nresource = 'none'\n"
        )
    };
    place.write("one.toml", &config(&format!("'{there}'")));
    let output = keygate(&place.path(""), &["check", "--config", "one.toml", "--connect"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    says(
        &output.stdout,
        &["connected  store ", &format!("connected  upstream o, server {there}"), "ok: 1 routes"],
    );

    let redis = "[counters]\nurl = 'redis://127.0.0.1:1'\n";
    place.write(
        "two.toml",
        &[redis, &config(&format!("'{there}', '{not_there}', 'no-such-host.invalid:80'"))].concat(),
    );
    let output = keygate(&place.path(""), &["check", "--config", "two.toml", "--connect"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    says(
        &output.stdout,
        &[
            "failed     counters: ",
            &format!("connected  upstream o, server {there}"),
            &format!("failed     upstream o, server {not_there}: "),
            "failed     upstream o, server no-such-host.invalid:80: DNS lookup failed: ",
        ],
    );
    says(&output.stderr, &["3 of 5 connections failed"]);
    // Without the flag nothing is connected to.
    let output = keygate(&place.path(""), &["check", "--config", "two.toml"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    drop(port);
}

// === token ===

#[test]
fn a_token_opens_what_its_role_may_and_nothing_else() {
    let place = Installation::new();
    let gateway = place.start();
    let key = json!({"name": "k", "type": "service", "scopes": ["app"]});
    for (role, create, plans) in [("viewer", 403, 403), ("admin", 200, 403), ("platform", 200, 200)] {
        let token = gateway.mint(role, role);
        let status = |method, path, body| gateway.admin_as(&token, method, path, body).status;
        let seen = (
            status("GET", "/apikeys", None),
            status("POST", "/apikeys", Some(&key)),
            status("GET", "/plans", None),
        );
        assert_eq!(seen, (200, create, plans), "{role}");
    }
    let everywhere = place.done(&["token", "--role", "platform"]);
    let list = |request: Request| Raw::connect(gateway.admin).call(&request.bearer(&everywhere));
    assert_eq!(list(Request::get("/apikeys")).fault(), (400, 1003, "invalid_parameter".into()));
    let named = list(Request::get("/apikeys").header("X-Workspace-Id", "admin"));
    assert_eq!((named.status, &named.data()["page"]["total"]), (200, &json!(1)), "{named:?}");
}

#[test]
fn token_refuses_nonsense_and_a_token_of_elsewhere_is_not_valid_here() {
    let place = Installation::new();
    for (args, part) in [
        (&["--role", "root", "--workspace", "w"][..], "must be one of: viewer, admin, platform"),
        (&["--role", "viewer"], "needs --workspace"),
        (&["--workspace", "a b"], "A-Z a-z 0-9"),
        (&["--workspace", "w", "--ttl", "366d"], "from 1s to 365d"),
        (&["--workspace", "w", "--ttl", "0s"], "from 1s to 365d"),
        (&["--workspace", "w", "--ttl", "12"], "from 1s to 365d"),
    ] {
        says(&place.fails(64, &[&["token"], args].concat()), &[part]);
    }
    let other = Installation::new();
    let args = ["token", "--workspace", "default", "--role", "platform"];
    says(
        &other.fails(1, &args),
        &["data/admin.jwt.secret", "the first start of the gateway creates it", "--config"],
    );
    let _other = other.start();
    let elsewhere = other.done(&args);
    let output = other.command(&args);
    says(&output.stderr, &["signed with the secret in ", "data/admin.jwt.secret"]);
    let gateway = place.start();
    let refused = gateway.admin_as(&elsewhere, "GET", "/apikeys", None);
    assert_eq!(refused.fault(), (401, 2002, "token_invalid".into()));
}

// === migrate, openapi ===

/// How many migrations the embedded store has.
fn files_of_migrations() -> usize {
    std::fs::read_dir(repository().join("migrations/sqlite")).expect("a folder").count()
}

#[test]
fn migrate_makes_a_store_leaves_a_current_one_alone_and_refuses_a_newer_one() {
    let place = Installation::new();
    let CommandOutput { code, stdout, stderr } = place.command(&["migrate", "--check"]);
    assert_eq!(code, Some(1));
    let pending: Vec<&str> =
        stdout.lines().map(|line| line.strip_prefix("pending  ").expect("pending")).collect();
    let newest = pending.len();
    assert_eq!((pending[0], newest), ("0001_initial", files_of_migrations()));
    says(&stderr, &[&format!("{newest} migrations are pending")]);
    assert!(!place.path("data").exists(), "a check changes nothing");

    for args in [&["migrate"][..], &["migrate"], &["migrate", "--check"]] {
        let applied = place.done(args);
        let applied: Vec<&str> = applied.lines().filter_map(|line| line.strip_prefix("applied  ")).collect();
        assert_eq!(applied, pending, "{args:?}");
    }

    let newer = "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
                 SELECT 999, 'of_tomorrow', applied_on, checksum FROM refinery_schema_history WHERE version = 1";
    assert_eq!(place.database().execute(newer, []).expect("a history"), 1);
    for args in [&["migrate"][..], &["migrate", "--check"], &["keys", "list"]] {
        says(&place.fails(1, args), &["schema 999", &format!("up to {newest}")]);
    }
    says(&place.refusal(), &["schema 999", &format!("up to {newest}")]);
}

#[test]
fn migrate_refuses_a_store_in_use_and_its_check_does_not_mind() {
    let place = Installation::new();
    let _gateway = place.start();
    says(&place.fails(1, &["migrate"]), &["is in use by another Keygate"]);
    let checked = place.done(&["migrate", "--check"]);
    assert!(checked.starts_with("applied  0001_initial") && !checked.contains("pending"), "{checked}");
}

#[test]
fn openapi_prints_what_the_admin_api_serves() {
    let gateway = Installation::new().start();
    let printed = keygate(repository(), &["openapi"]);
    assert_eq!(printed.code, Some(0));
    let printed: Value = serde_json::from_str(&printed.stdout).expect("JSON");
    let served = Raw::connect(gateway.admin).call(&Request::get("/openapi.json"));
    assert_eq!(served.json(), printed);
    assert!(printed["paths"].as_object().is_some_and(|paths| paths.len() > 10), "{printed}");
}

// === keys ===

#[track_caller]
fn answers(gateway: &Gateway, secret: &str) -> (u16, u64) {
    let response: Response = gateway.get("/v1/app/x", secret);
    (response.status, if response.status == 200 { 0 } else { response.fault().1 })
}

#[test]
fn changes_by_keys_commands_are_in_force_at_start() {
    let place = Installation::new();
    let (_, live) = place.make_key(&["--name", "live"]);
    let (disabled_id, disabled) = place.make_key(&["--name", "disabled"]);
    let (deleted_id, deleted) = place.make_key(&["--name", "deleted"]);
    let (renewed_id, renewed) = place.make_key(&["--name", "renewed"]);
    let (grace_id, grace) = place.make_key(&["--name", "grace"]);
    let (_, bound) = place.make_key(&["--name", "bound", "--type", "rag", "--resource-id", "kb-1"]);
    let (_, fenced) = place.make_key(&["--name", "fenced", "--allowed-ips", "192.0.2.0/24"]);
    let (_, once) = place.make_key(&["--name", "once", "--quota-limit", "1"]);

    place.done(&["keys", "disable", &disabled_id]);
    place.done(&["keys", "delete", &deleted_id]);
    let renewed_now = place.done(&["keys", "regenerate", &renewed_id]);
    let grace_now = place.done(&["keys", "regenerate", &grace_id, "--grace-period-seconds", "3600"]);

    let active = place.done(&["keys", "list"]);
    let all = place.done(&["keys", "list", "--all"]);
    assert_eq!((active.lines().count(), all.lines().count()), (7, 8), "{all}");
    assert!(!active.contains(&disabled_id) && all.contains(&format!("{disabled_id}  disabled  service")));
    assert!(!all.contains(&deleted_id), "{all}");
    says(&place.fails(1, &["keys", "list", "--workspace", "other"]), &["There is no workspace other"]);

    let gateway = place.start();
    for (what, secret, expected) in [
        ("live", &live, (200, 0)),
        ("disabled", &disabled, (401, 3011)),
        ("deleted", &deleted, (401, 3009)),
        ("the old secret without grace", &renewed, (401, 3009)),
        ("the new secret", &renewed_now, (200, 0)),
        ("the old secret with grace", &grace, (200, 0)),
        ("the new secret beside it", &grace_now, (200, 0)),
        ("a rag key", &bound, (403, 3012)),
        ("a key from elsewhere", &fenced, (403, 3020)),
        ("the first of one request", &once, (200, 0)),
        ("the second of one request", &once, (429, 3016)),
    ] {
        assert_eq!(answers(&gateway, secret), expected, "{what}");
    }
}

#[test]
fn a_second_process_on_the_same_store_is_refused_and_the_first_does_not_notice() {
    // Without a socket the commands cannot find the gateway.
    let place = Installation::with("[admin]\nsocket = \"\"\n");
    let (id, secret) = place.make_key(&["--name", "k"]);
    let gateway = place.start();
    let in_use = format!("is in use by another Keygate (pid {})", gateway.ready["pid"]);
    for args in [
        &["keys", "list"][..],
        &["keys", "delete", &id],
        &["keys", "create", "--name", "n", "--scopes", "app"],
    ] {
        says(&place.fails(1, args), &[&in_use, "use its admin API"]);
    }
    says(&place.refusal(), &[&in_use]);
    assert_eq!(answers(&gateway, &secret), (200, 0));
}

// === import, export ===

#[test]
fn import_takes_json_lines_and_tells_every_bad_row_by_its_number() {
    let place = Installation::new();
    place.write(
        "keys.jsonl",
        concat!(
            r#"{"name":"one","type":"service","scopes":["app"],"api_key":"legacy_key_0001"}"#,
            "\nnot JSON\n\n",
            r#"{"name":"two","type":"app","resource_id":"a-1","api_key":"sk-proj-T3BlbkFJ","is_active":false}"#,
            "\n",
            r#"{"name":"three","type":"service","scopes":["app"],"api_key":"legacy_key_0001"}"#,
            "\n",
            r#"{"name":"four","type":"service","scopes":["app"]}"#,
            "\n",
            r#"{"name":"one","type":"service","scopes":["app"],"api_key":"legacy_key_0005"}"#,
            "\n",
            r#"{"name":"six","type":"gadget","rate_limit":"fast","api_key":"legacy_key_0006"}"#,
            "\n",
            r#"{"name":"seven","type":"service","scopes":["app"],"api_key":"with blank"}"#,
            "\n",
            r#"{"name":"eight","type":"service","scopes":["app"],"rate_limit":1001,"api_key":"legacy_key_0008"}"#,
            "\n",
            r#"{"name":"nine","type":"service","scopes":["app"],"api_key":"legacy_key_0009","workspace_id":"tenant"}"#,
            "\n",
            r#"{"name":"ten","type":"service","api_key":"legacy_key_0010","rate_limit":1,"rate_limit":1000}"#,
            "\n",
        ),
    );
    let errors = place.fails(1, &["keys", "import", "keys.jsonl"]);
    says(
        &errors,
        &[
            "keys.jsonl:2: is not a JSON object",
            "keys.jsonl:5: secret: must not be the secret of another key",
            "keys.jsonl:6: api_key: is required",
            "keys.jsonl:7: the resource already has a key of that name",
            "keys.jsonl:8: type: must be one of",
            "rate_limit: must be a whole number",
            "keys.jsonl:9: api_key: must be 1 to 128 visible ASCII characters",
            "keys.jsonl:10: note: rate_limit 1001 is above the 1000 requests/s of plan default; the key runs at the plan's",
            "keys.jsonl:12: rate_limit: is there twice",
            "4 imported, 7 refused",
        ],
    );
    assert!(!errors.contains("legacy_key") && !errors.contains("with blank"), "secrets are not repeated");

    let gateway = place.start();
    assert_eq!(answers(&gateway, "legacy_key_0001"), (200, 0));
    assert_eq!(answers(&gateway, "legacy_key_0009"), (200, 0));
    assert_eq!(answers(&gateway, "sk-proj-T3BlbkFJ"), (401, 3011));
    for refused in ["legacy_key_0005", "legacy_key_0006"] {
        assert_eq!(answers(&gateway, refused), (401, 3009), "{refused}");
    }
    assert_eq!(gateway.get("/v1/app/x", "legacy_key_0008").number("x-ratelimit-limit-qps"), 1000);
}

/// The rows of an import that bring a past along.
const WITH_PAST: &str = concat!(
    r#"{"name":"plain","scopes":["app"],"api_key":"sk-service-0123456789_-abcdefghijklmnopqrs","created_by":"ada","#,
    r#""created_at":"2025-12-01 10:00:00","quota_limit":3,"quota_used":1,"usage_count":7,"last_used_at":1767000000}"#,
    "\n",
    // printf %s hashed-secret | sha256sum
    r#"{"name":"hashed","scopes":["app"],"sha256":"SHA"}"#,
    "\n",
    r#"{"name":"over","scopes":["app"],"api_key":"legacy-over","expires_at":"2020-01-01T00:00:00"}"#,
    "\n",
    r#"{"name":"bad","scopes":["app"],"api_key":"sk-service-0123456789abcdefghijklmnopqrstuvwxyz"}"#,
    "\n",
);

fn with_past() -> String {
    WITH_PAST.replace("SHA", &hex::encode(ring::digest::digest(&ring::digest::SHA256, b"hashed-secret")))
}

/// What a gateway makes of the keys of [`WITH_PAST`].
#[track_caller]
fn check_past(gateway: &Gateway) {
    let plain = "sk-service-0123456789_-abcdefghijklmnopqrs";
    let told = [0; 3].map(|_| answers(gateway, plain));
    assert_eq!(told, [(200, 0), (200, 0), (429, 3016)], "one of three was spent before");
    for _ in 0..2 {
        assert_eq!(answers(gateway, "hashed-secret"), (200, 0));
    }
    assert_eq!(answers(gateway, "legacy-over"), (401, 3010));
    assert_eq!(answers(gateway, "hashed-secre"), (401, 3009));
    let found = gateway.managed("POST", "/apikeys/lookup", Some(&json!({"api_key": "hashed-secret"})));
    assert_eq!(found["name"], json!("hashed"));
    let kept = gateway.managed("GET", "/apikeys?search=plain", None)["items"][0].clone();
    assert_eq!((&kept["created_by"], &kept["created_at"]), (&json!("ada"), &json!(1_764_583_200_000_i64)));
    let key = crate::support::Key { id: kept["id"].as_str().expect("an id").into(), secret: plain.into() };
    gateway.wait_for_logs(&key, 3);
    let stats = gateway.stats(&key);
    let figures = ["total_requests", "quota_used", "denied"].map(|name| stats[name].as_u64());
    assert_eq!(figures, [Some(9), Some(3), Some(1)], "{stats}");
}

#[test]
fn imported_keys_bring_their_past_and_refused_rows_are_kept_in_a_file() {
    let place = Installation::new();
    place.write("keys.jsonl", with_past());
    let told = place.fails(1, &["keys", "import", "keys.jsonl", "--refused", "left.jsonl"]);
    says(
        &told,
        &["keys.jsonl:3: note: has expired", "keys.jsonl:4: api_key: has the form of a secret made here"],
    );
    says(&told, &["3 imported, 1 refused"]);
    assert_eq!(
        place.read("left.jsonl"),
        with_past().lines().nth(3).map(|l| format!("{l}\n")).expect("a row")
    );
    place.write("more.csv", "name,scopes,api_key,note\none,app,csv-1,\n\"two, lines\nof it\",app,,\n");
    place.fails(1, &["keys", "import", "more.csv", "--refused", "left.csv"]);
    assert_eq!(place.read("left.csv"), "name,scopes,api_key,note\n\"two, lines\nof it\",app,,\n");
    check_past(&place.start());
}

#[test]
fn a_running_gateway_imports_keys_and_end_users_by_its_admin_api() {
    let place = Installation::new();
    let gateway = place.start();
    let rows: Vec<Value> =
        with_past().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let body = |dry_run: bool| json!({"keys": rows, "dry_run": dry_run});
    let dry = gateway.managed("POST", "/apikeys/import", Some(&body(true)));
    assert_eq!((&dry["imported"], &dry["refused"]), (&json!(3), &json!(1)), "{dry}");
    assert_eq!(gateway.managed("GET", "/apikeys?is_active=any", None)["page"]["total"], json!(0));
    let report = gateway.managed("POST", "/apikeys/import", Some(&body(false)));
    assert_eq!((&report["imported"], &report["refused"]), (&json!(3), &json!(1)), "{report}");
    let short = "api_key has fewer than 22 characters and may be guessed: regenerate the key soon";
    assert_eq!(report["rows"][0]["notes"], json!(["has expired", short]), "{report}");
    assert_eq!(
        (&report["rows"][1]["row"], &report["rows"][1]["errors"][0]["field"]),
        (&json!(3), &json!("api_key"))
    );
    check_past(&gateway);
    let again = gateway.managed("POST", "/apikeys/import", Some(&body(false)));
    assert_eq!((&again["imported"], &again["refused"]), (&json!(0), &json!(4)), "{again}");

    let id = "0198a000-0000-7000-8000-000000000001";
    let users = json!({"end_users": [{"other_id": "a", "id": id, "created_at": 1_764_583_200_000_i64},
        {"other_id": "a"}, {"other_id": ""}, {"other_id": "b", "nonsense": 1}]});
    let report = gateway.managed("POST", "/endusers/import", Some(&users));
    let figures = ["imported", "existing", "refused"].map(|name| report[name].as_u64());
    assert_eq!(figures, [Some(1), Some(1), Some(2)], "{report}");
    assert_eq!(gateway.managed("GET", "/endusers?other_id=a", None)["items"][0]["id"], json!(id));
    let refused = gateway.admin("POST", "/endusers/import", Some(&json!({"end_users": [5]})));
    assert_eq!(refused.fault(), (400, 1001, "validation_failed".into()));
}

#[test]
fn end_users_are_imported_once_and_refused_rows_are_told() {
    let place = Installation::new();
    place.write("users.csv", "other_id,created_at\nada,2025-12-01 10:00:00\n,\nada,\nbob,1764583200\n");
    let dry = place.fails(1, &["endusers", "import", "--dry-run", "users.csv"]);
    says(&dry, &["users.csv:3: other_id: is required", "3 could be imported, 1 refused"]);
    let told = place.fails(1, &["endusers", "import", "users.csv", "--refused", "left.csv"]);
    says(&told, &["2 imported, 1 there already, 1 refused"]);
    assert_eq!(place.read("left.csv"), "other_id,created_at\n,\n");
    let gateway = place.start();
    let kept = gateway.managed("GET", "/endusers?other_id=ada", None);
    assert_eq!(kept["items"][0]["created_at"], json!(1_764_583_200_000_i64), "{kept}");
}

#[test]
fn import_takes_comma_separated_values_and_a_dry_run_takes_nothing() {
    let place = Installation::new();
    place.write(
        "keys.csv",
        "name,type,resource_id,scopes,quota_limit,metadata,api_key\n\
         one,service,,app rag,2,\"{\"\"team\"\":\"\"blue\"\"}\",csv_key_1\n\
         two,app,a-1,,many,,csv_key_2\n\
         three,app,a-1,,,{,csv_key_3\n\
         too short\n\
         \"four, with a comma\",app,a-2,app,,,csv_key_4\n\
         five,app,,,,,csv_key_5\n\
         six,service,,,,\"{\"\"a\"\":1,\"\"a\"\":2}\",csv_key_6\n",
    );
    let told = [
        "keys.csv:3: quota_limit: must be a whole number",
        "keys.csv:4: metadata: must be JSON",
        "keys.csv:5: is not CSV, or has another number of fields than the header",
        "keys.csv:7: resource_id: is required for a key of type app",
        "keys.csv:8: metadata.a: is there twice",
    ];
    let dry = place.fails(1, &["keys", "import", "--dry-run", "keys.csv"]);
    says(&dry, &told);
    says(&dry, &["2 could be imported, 5 refused"]);
    assert_eq!(place.done(&["keys", "list", "--json"]), "");
    let wet = place.fails(1, &["keys", "import", "keys.csv"]);
    says(&wet, &told);
    says(&wet, &["2 imported, 5 refused"]);
    place.write("twice.csv", "name,type,name,api_key\none,service,two,csv_key_9\n");
    let twice = place.fails(1, &["keys", "import", "twice.csv"]);
    says(&twice, &["the header line has the column \"name\" twice"]);
    says(&place.done(&["keys", "list"]), &["four, with a comma"]);

    let gateway = place.start();
    assert_eq!(gateway.get("/v1/rag/x", "csv_key_1").status, 200);
    assert_eq!(answers(&gateway, "csv_key_1"), (200, 0));
    assert_eq!(answers(&gateway, "csv_key_1"), (429, 3016), "the row's quota of 2 counts");
    assert_eq!(answers(&gateway, "csv_key_4"), (200, 0));
    let kept = gateway.managed("GET", "/apikeys?search=one", None);
    assert_eq!(kept["items"][0]["metadata"], json!({"team": "blue"}), "{kept}");
}

#[test]
fn a_byte_order_mark_in_front_of_a_file_loses_none_of_it() {
    const BOM: &str = "\u{feff}";
    let place = Installation::new();
    let marked = |name: &str, text: &str| place.write(name, format!("{BOM}{text}"));
    marked("keygate.toml", &place.read("keygate.toml"));
    marked("keys.jsonl", "{\"name\":\"one\",\"scopes\":[\"app\"],\"api_key\":\"legacy_key_0001\"}\n");
    marked("keys.csv", "name,type,scopes,api_key\ntwo,service,app,legacy_key_0002\n");
    for file in ["keys.jsonl", "keys.csv"] {
        let told = place.command(&["keys", "import", file]);
        assert_eq!(told.code, Some(0), "{told:?}");
        says(&told.stderr, &["1 imported, 0 refused"]);
    }
    // The file of the first start, as an editor that adds a byte order mark saves it.
    assert!(place.start().stop().success());
    for secret in ["data/pepper", "data/admin.jwt.secret"] {
        marked(secret, &place.read(secret).replace('\n', "\r\n"));
    }
    let mut gateway = place.start();
    assert_eq!(answers(&gateway, "legacy_key_0002"), (200, 0));
    let key = gateway.create_key(json!({}));
    assert_eq!(answers(&gateway, &key.secret), (200, 0));
    gateway.wait_for_logs(&key, 1);
    assert!(gateway.stop().success());
    for (export, import, told) in [
        (&["export", "all.jsonl"][..], &["import", "all.jsonl"][..], "there already: 3 keys"),
        (
            &["usage", "export", "--output", "u.ndjson"],
            &["usage", "import", "u.ndjson"],
            "there already: 2; refused: 0",
        ),
        (
            &["usage", "export", "--format", "csv", "--output", "u.csv"],
            &["usage", "import", "u.csv"],
            "there already: 2; refused: 0",
        ),
    ] {
        assert_eq!(place.command(export).code, Some(0), "{export:?}");
        let file = import[import.len() - 1];
        marked(file, &place.read(file));
        let said = place.command(import);
        assert_eq!(said.code, Some(0), "{said:?}");
        says(&said.stderr, &[told]);
    }
}

#[test]
fn import_ends_where_a_file_cannot_be_read_on() {
    let place = Installation::new();
    place.write("keys.jsonl/inside", "");
    place.write("keys.csv/inside", "");
    place.write(
        "mixed.jsonl",
        b"{\"name\":\"one\",\"scopes\":[\"app\"],\"api_key\":\"legacy_key_0001\"}\n\xff\n",
    );
    for file in ["keys.jsonl", "keys.csv"] {
        let errors = place.fails(1, &["keys", "import", file]);
        says(&errors, &[&format!("{file}: Is a directory")]);
        assert_eq!(errors.matches("Is a directory").count(), 1, "{errors}");
    }
    let errors = place.fails(1, &["keys", "import", "mixed.jsonl"]);
    says(&errors, &["mixed.jsonl:2: is not UTF-8", "1 imported, 1 refused"]);
}

#[test]
fn an_export_holds_no_secret_and_its_keys_work_elsewhere_with_the_same_peppers() {
    let (here, there) = (Installation::new(), Installation::new());
    let (id, own) = here.make_key(&["--name", "own", "--quota-limit", "3", "--scopes", "app"]);
    here.done(&["workspaces", "create", "tenant"]);
    let (off_id, off) = here.make_key(&["--name", "off", "--workspace", "tenant"]);
    here.done(&["keys", "disable", &off_id, "--workspace", "tenant"]);
    let (old_id, old) = here.make_key(&["--name", "renewed"]);
    let renewed = here.done(&["keys", "regenerate", &old_id, "--grace-period-seconds", "3600"]);
    here.write(
        "foreign.jsonl",
        r#"{"name":"foreign","type":"service","scopes":["app"],"api_key":"a-foreign-secret"}"#,
    );
    here.done(&["keys", "import", "foreign.jsonl"]);

    let exported = here.done(&["keys", "export"]);
    assert_eq!(exported.lines().count(), 4, "{exported}");
    for secret in [&own, &off, &old, &renewed, "a-foreign-secret"] {
        assert!(!exported.contains(secret) && !exported.contains(&secret[secret.len() - 12..]), "{exported}");
    }
    assert_eq!(here.done(&["keys", "export", "--workspace", "tenant"]).lines().count(), 1);

    there.write("data/pepper", &here.read("data/pepper"));
    there.write("keys.jsonl", &exported);
    there.done(&["keys", "import", "keys.jsonl"]);
    let sorted = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&there.done(&["keys", "export"])), sorted(&exported), "nothing was lost on the way");
    let again = there.fails(1, &["keys", "import", "keys.jsonl"]);
    says(&again, &["0 imported, 4 refused"]);

    let gateway = there.start();
    assert_eq!(answers(&gateway, &own), (200, 0));
    assert_eq!(answers(&gateway, &renewed), (200, 0));
    assert_eq!(answers(&gateway, "a-foreign-secret"), (200, 0));
    assert_eq!(answers(&gateway, &off), (401, 3011));
    assert_eq!(answers(&gateway, &old), (200, 0), "a grace period goes along");
    assert_eq!(gateway.managed("GET", &format!("/apikeys/{id}"), None)["quota_limit"], json!(3));
}

#[test]
fn digests_of_a_pepper_that_is_not_here_are_refused() {
    let (here, there) = (Installation::new(), Installation::new());
    let two = format!("2:{}\n", "5a".repeat(32));
    here.write("data/pepper", &two);
    here.make_key(&["--name", "k"]);
    there.write("keys.jsonl", &here.done(&["keys", "export"]));
    let refused = there.fails(1, &["keys", "import", "keys.jsonl"]);
    says(
        &refused,
        &["keys.jsonl:1: pepper_version: the digest was made with a pepper that this installation does not"],
    );
    // A different pepper with the same number is a different pepper.
    let elsewhere = Installation::new();
    elsewhere.write("data/pepper", &format!("2:{}\n", "5b".repeat(32)));
    elsewhere.write("keys.jsonl", &here.done(&["keys", "export"]));
    let refused = elsewhere.fails(1, &["keys", "import", "keys.jsonl"]);
    says(
        &refused,
        &["keys.jsonl:1: pepper_version: the digest was made with a pepper that this installation does not"],
    );
}

// === demo ===

#[test]
fn the_demo_works_as_it_says_beside_a_taken_port_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    // Whether or not we get the port: it is in use.
    let taken = TcpListener::bind("127.0.0.1:8080").ok();
    let temporary = folder.path().to_str().expect("text");
    let mut demo = Process::start(folder.path(), &[("TMPDIR", temporary)], &["demo", "--ready-json"]);
    let ready = demo.ready();
    let fields: BTreeSet<_> = ready.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        fields,
        BTreeSet::from(["admin", "admin_token", "api_key", "console", "pid", "proxy", "workspace_id"])
    );
    let text = |field: &str| ready[field].as_str().expect("text").to_owned();
    let address = |field: &str| text(field).parse::<SocketAddr>().expect("an address");
    assert_ne!(address("proxy").port(), 8080);
    drop(taken);

    let echoed =
        Raw::connect(address("proxy")).call(&Request::get("/v1/rag/hello?q=1").bearer(&text("api_key")));
    assert_eq!((echoed.status, &echoed.json()["path"]), (200, &json!("/v1/rag/hello")), "{echoed:?}");
    assert!(!echoed.text().contains(&text("api_key")), "the backend does not see the secret");
    let keys = Raw::connect(address("admin")).call(&Request::get("/apikeys").bearer(&text("admin_token")));
    let keys = keys.data();
    assert_eq!(keys["page"]["total"], json!(1), "{keys}");
    assert_eq!(keys["items"][0]["workspace_id"], ready["workspace_id"]);

    assert_ne!(
        folder.path().read_dir().expect("a folder").count(),
        0,
        "it keeps its data here while it runs"
    );
    assert_eq!(demo.stop().code(), Some(0));
    assert_eq!(folder.path().read_dir().expect("a folder").count(), 0, "all gone after at most {PATIENCE:?}");
}
