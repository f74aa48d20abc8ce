//! Start, stop and restart: files of a first start, peppers, drains, kills, refused starts.

use crate::installation::{Installation, Process, mode, says};
use crate::support::{Gateway, Hold, Raw, Request, eventually, eventually_true, write_config};
use serde_json::json;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

fn status(gateway: &Gateway, secret: &str) -> u16 {
    gateway.get("/v1/app/x", secret).status
}

/// How many of `n` requests are admitted.
fn admitted(gateway: &Gateway, secret: &str, n: usize) -> usize {
    let mut line = gateway.connect();
    let request = Request::get("/v1/app/x").bearer(secret);
    (0..n).filter(|_| line.call(&request).status == 200).count()
}

/// Runs `scenario` again if the UTC day turned meanwhile: its windows are calendar windows.
fn within_one_day(scenario: impl Fn()) {
    let today = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() / 86_400;
    loop {
        let day = today();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&scenario));
        match result {
            Ok(()) => return,
            Err(_) if today() != day => {}
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

// === first and second start ===

#[test]
fn a_first_start_makes_its_secrets_for_their_owner_only_and_says_where() {
    let place = Installation::new();
    let gateway = place.start();
    assert_eq!(mode(&place.path("data")), 0o700);
    for name in ["data/pepper", "data/admin.jwt.secret", "data/admin.token", "data/keygate.db"] {
        assert_eq!(mode(&place.path(name)), 0o600, "{name}");
    }
    says(&gateway.stderr(), &["made data/pepper", "admin token", "data/admin.token"]);
    for name in ["data/pepper", "data/admin.jwt.secret", "data/admin.token"] {
        let secret = place.read(name);
        let secret = secret.trim().rsplit(':').next().expect("text");
        assert!(secret.len() >= 64 && !gateway.stderr().contains(secret), "{name} is in the log");
    }
    assert_eq!(gateway.admin("GET", "/plans", None).status, 200, "the first token works");
}

#[test]
fn a_second_start_uses_what_the_first_one_made() {
    let place = Installation::new();
    let names = ["data/pepper", "data/admin.jwt.secret", "data/admin.token"];
    let mut gateway = place.start();
    let key = gateway.create_key(json!({}));
    let token = gateway.token();
    let before = names.map(|name| place.read(name));
    assert_eq!(gateway.stop().code(), Some(0));

    let again = gateway.restart();
    assert_eq!(names.map(|name| place.read(name)), before);
    assert!(!again.stderr().contains("made data/pepper"), "{}", again.stderr());
    assert_eq!(again.admin_as(&token, "GET", "/plans", None).status, 200);
    assert_eq!(status(&again, &key.secret), 200);
}

#[test]
fn a_plan_that_differs_from_the_file_is_logged_with_its_fields() {
    let config = |rate: u32| format!("[plans.default]\napi_ops_rate_limit = {rate}\n");
    let mut gateway = Gateway::start(&config(1_000));
    gateway.stop();
    write_config(gateway.folder(), &config(20));
    let again = gateway.restart();
    eventually_true("the log names the field", || {
        again.stderr().contains("the stored plan differs from the config file")
            && again.stderr().contains("fields=\"api_ops_rate_limit\"")
    });
    let plan = again.admin("GET", "/plans/default", None).json()["data"]["api_ops_rate_limit"].clone();
    assert_eq!(plan, 1_000, "the stored plan stays in force");
}

#[test]
fn a_managed_plan_follows_the_file_and_not_the_api() {
    let config = |more: &str| format!("[plans.default]\ndescription = \"d\"\n{more}\n");
    let mut gateway = Gateway::start(&config(""));
    let change = json!({"api_ops_rate_limit": 7, "description": "by the API"});
    let changed = gateway.admin("PUT", "/plans/default", Some(&change));
    assert_eq!(changed.status, 200, "the API manages it at first");
    let plan = |gateway: &Gateway| {
        let plan = gateway.admin("GET", "/plans/default", None).json()["data"].clone();
        (plan["api_ops_rate_limit"].clone(), plan["description"].clone())
    };
    // A reload applies it.
    write_config(gateway.folder(), &config("managed = true\napi_ops_rate_limit = 30"));
    assert_eq!(gateway.admin("POST", "/reload", None).status, 200);
    assert_eq!(plan(&gateway), (json!(30), json!("d")));
    for method in ["PUT", "DELETE"] {
        let body = (method == "PUT").then_some(&change);
        let refused = gateway.admin(method, "/plans/default", body);
        assert_eq!(refused.fault(), (409, 1000, "conflict".into()), "{method}");
        assert!(refused.text().contains("managed = true"), "{}", refused.text());
    }
    let lines = gateway.managed("GET", "/audit?platform=true&action=plan.update", None)["items"].clone();
    assert_eq!(lines[0]["subject"], "keygate", "{lines}");
    assert_eq!(lines[0]["changes"]["api_ops_rate_limit"], json!({"from": 7, "to": 30}), "{lines}");
    // So does a start.
    gateway.stop();
    write_config(gateway.folder(), &config("managed = true\napi_ops_rate_limit = 40"));
    let gateway = gateway.restart();
    assert_eq!(plan(&gateway), (json!(40), json!("d")));
    // Without managed, the API has it again.
    write_config(gateway.folder(), &config(""));
    assert_eq!(gateway.admin("POST", "/reload", None).status, 200);
    assert_eq!(gateway.admin("PUT", "/plans/default", Some(&change)).status, 200);
}

#[test]
fn a_start_without_routes_warns_that_every_request_gets_404() {
    let gateway = Gateway::start("");
    eventually_true("it warns", || gateway.stderr().contains("no routes are configured"));
}

#[test]
fn a_secret_that_others_may_read_is_refused_with_the_command_that_mends_it() {
    let place = Installation::new();
    assert_eq!(place.start().stop().code(), Some(0));
    for name in ["data/pepper", "data/admin.jwt.secret"] {
        for open in [0o620, 0o604] {
            fs::set_permissions(place.path(name), fs::Permissions::from_mode(open)).expect("set");
            says(&place.refusal(), &[&format!("(mode {open:o}); run: chmod 600 {name}")]);
        }
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o600)).expect("set");
    }
    place.start();
}

// === peppers ===

#[test]
fn a_lost_pepper_is_refused_and_no_new_one_takes_its_place() {
    let place = Installation::new();
    let (_, secret) = place.make_key(&["--name", "k"]);
    let pepper = place.read("data/pepper");
    fs::remove_file(place.path("data/pepper")).expect("removed");
    says(&place.refusal(), &["pepper file data/pepper", "restore it from a backup"]);
    says(&place.fails(1, &["keys", "list"]), &["pepper file data/pepper"]);
    assert!(!place.path("data/pepper").exists());
    place.write("data/pepper", &pepper);
    assert_eq!(status(&place.start(), &secret), 200);
}

#[test]
fn a_wrong_pepper_is_refused_and_stays_as_it_is() {
    let place = Installation::new();
    place.make_key(&["--name", "k"]);
    let right = place.read("data/pepper");
    let wrong = format!("1:{}\n", "5a".repeat(32));
    place.write("data/pepper", &wrong);
    let refusal = place.refusal();
    says(&refusal, &["pepper 1 is not the one that this database's keys were made with"]);
    assert!(!refusal.contains("5a5a"), "{refusal}");
    assert_eq!(place.read("data/pepper"), wrong, "a file that somebody wrote is not ours to remove");
    for (text, part) in [
        ("nonsense\n", "data/pepper: line 1 is not `version:hexadecimal`"),
        ("1:00ff\n", "data/pepper: pepper 1 is shorter than 32 bytes"),
        ("", "data/pepper: no pepper given"),
    ] {
        place.write("data/pepper", text);
        says(&place.refusal(), &[part]);
    }
    place.write("data/pepper", &right);
    place.start();
}

#[test]
fn a_key_moves_to_the_new_pepper_when_it_is_used_and_then_the_old_one_can_go() {
    let place = Installation::new();
    let (_, used) = place.make_key(&["--name", "used"]);
    let (_, unused) = place.make_key(&["--name", "unused"]);
    let old = place.read("data/pepper");
    let new = format!("2:{}\n", "c3".repeat(32));
    place.write("data/pepper", &format!("{old}{new}"));

    let moved = |n: i64| {
        let counted =
            place
                .database()
                .query_row("SELECT count(*) FROM keys WHERE pepper_version = 2", [], |r| r.get(0));
        counted.is_ok_and(|found: i64| found == n)
    };
    let mut gateway = place.start();
    assert!(moved(0), "nothing moves by itself");
    assert_eq!(status(&gateway, &used), 200);
    eventually_true("the used key is under pepper 2", || moved(1));
    assert_eq!(status(&gateway, &used), 200, "and is found there");
    assert_eq!(gateway.stop().code(), Some(0));

    place.write("data/pepper", &new);
    says(&place.refusal(), &["pepper 1 is missing, but the secrets of 1 keys"]);
    place.write("data/pepper", &format!("{new}{old}"));
    let mut gateway = place.start();
    assert_eq!(status(&gateway, &unused), 200, "an unused key is still found under pepper 1");
    eventually_true("both keys are under pepper 2", || moved(2));
    assert_eq!(gateway.stop().code(), Some(0));

    place.write("data/pepper", &new);
    let gateway = place.start();
    assert_eq!((status(&gateway, &used), status(&gateway, &unused)), (200, 200));
}

// === signals ===

#[test]
fn sigterm_lets_requests_finish_says_so_and_takes_no_new_ones() {
    let place = Installation::new();
    let mut gateway = place.start();
    let key = gateway.create_key(json!({}));
    let mut idle = gateway.connect();
    assert_eq!(idle.call(&Request::get("/v1/app/x").bearer(&key.secret)).status, 200);
    let hold = Hold::new();
    place.origin.answer_after(&hold);
    let mut busy = gateway.connect();
    busy.send(&Request::get("/v1/app/slow").bearer(&key.secret).bytes());
    place.origin.wait_for_heads(2);

    gateway.signal("TERM");
    let ready = eventually("readiness tells that it stops", || {
        let answer = Raw::connect(gateway.admin).call(&Request::get("/readyz?verbose"));
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(ready.fault(), (503, 10003, "service_unavailable".into()));
    assert_eq!(ready.data()["checks"][0]["detail"], json!("stopping"), "{ready:?}");
    assert!(idle.is_closed(), "a connection that waits for nothing is closed");
    eventually_true("new connections are refused", || TcpStream::connect(gateway.proxy).is_err());

    hold.release();
    let answer = busy.response();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"{\"ok\":true}"[..]));
    assert_eq!(gateway.wait().code(), Some(0));

    let again = gateway.restart();
    let rows = again.logs(&key);
    let seen: Vec<_> = rows.iter().map(|r| (r["endpoint"].as_str(), r["outcome"].as_str())).collect();
    let served = Some("served");
    assert_eq!(seen, [(Some("/v1/app/slow"), served), (Some("/v1/app/x"), served)], "{rows:#?}");
}

#[test]
fn sigterm_lets_an_admin_call_finish() {
    let place = Installation::new();
    let mut gateway = place.start();
    let body = r#"{"name":"last","type":"service","scopes":["app"]}"#;
    let create = Request::post("/apikeys", body).header("Content-Type", "application/json");
    let create = create.header("Expect", "100-continue").bearer(&gateway.token());
    let mut call = Raw::connect(gateway.admin);
    call.send(&create.head());
    assert_eq!(call.response().status, 100, "the call has begun");
    gateway.signal("TERM");
    eventually_true("no new calls are taken", || TcpStream::connect(gateway.admin).is_err());
    call.send(body.as_bytes());
    let made = call.response();
    assert_eq!(made.status, 200, "{made:?}");
    assert_eq!(gateway.wait().code(), Some(0));
    let secret = made.data()["api_key"].as_str().expect("a secret").to_owned();
    assert_eq!(status(&gateway.restart(), &secret), 200, "what was answered is there");
}

#[test]
fn a_second_sigterm_stops_at_once() {
    let place = Installation::new();
    let mut gateway = place.start();
    let key = gateway.create_key(json!({}));
    let hold = Hold::new();
    place.origin.answer_after(&hold);
    let mut busy = gateway.connect();
    busy.send(&Request::get("/v1/app/slow").bearer(&key.secret).bytes());
    place.origin.wait_for_heads(1);
    gateway.signal("TERM");
    eventually_true("new connections are refused", || TcpStream::connect(gateway.proxy).is_err());
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(130));
    hold.release();
}

#[test]
fn after_sigterm_every_answered_request_is_in_the_ledger() {
    const CONNECTIONS: usize = 8;
    const EACH: usize = 250;
    let place = Installation::new();
    let mut gateway = place.start();
    let key = gateway.create_key(json!({"rate_limit": 1000, "rate_burst": 1_000_000}));
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| assert_eq!(admitted(&gateway, &key.secret, EACH), EACH));
        }
    });
    assert_eq!(gateway.stop().code(), Some(0));

    let again = gateway.restart();
    let stats = again.stats(&key);
    assert_eq!((&stats["total_requests"], &stats["quota_used"]), (&json!(2000), &json!(2000)), "{stats}");
    let logs = again.managed("GET", &format!("/apikeys/{}/logs", key.id), None);
    assert_eq!(logs["page"]["total"], json!(2000));
}

#[test]
fn sighup_reloads_the_config_and_keeps_serving() {
    let place = Installation::new();
    let mut gateway = place.start();
    let key = gateway.create_key(json!({}));
    gateway.signal("HUP");
    eventually_true("it reads its config again", || gateway.stderr().contains("config reloaded"));
    assert_eq!(status(&gateway, &key.secret), 200);
    assert_eq!(gateway.stop().code(), Some(0));
}

// === counters ===

#[test]
fn limits_go_on_after_a_restart_where_they_stood() {
    within_one_day(|| {
        let place = Installation::new();
        let mut gateway = place.start();
        let month = json!([{"count": "requests", "per": "month", "max": 5}]);
        let keys = [json!({"quota_limit": 5}), json!({"daily_request_limit": 5}), json!({"limits": month})]
            .map(|fields| gateway.create_key(fields));
        for key in &keys {
            assert_eq!(admitted(&gateway, &key.secret, 3), 3);
        }
        assert_eq!(gateway.stop().code(), Some(0));

        let again = gateway.restart();
        for (key, code) in keys.iter().zip([3016, 3015, 3017]) {
            assert_eq!(admitted(&again, &key.secret, 4), 2, "three of five were spent before");
            assert_eq!(again.get("/v1/app/x", &key.secret).fault().1, code);
        }
    });
}

#[test]
fn after_a_kill_limits_go_on_where_the_ledger_stood() {
    let place = Installation::new();
    let mut gateway = place.start();
    let key = gateway.create_key(json!({"quota_limit": 60}));
    assert_eq!(admitted(&gateway, &key.secret, 20), 20);
    eventually_true("the ledger has the first part", || gateway.stats(&key)["quota_used"] == json!(20));
    // The ledger has as many of these as its writer had stored at the time of the kill.
    assert_eq!(admitted(&gateway, &key.secret, 10), 10);
    gateway.kill9();

    let again = gateway.restart();
    let kept = again.stats(&key)["quota_used"].as_u64().expect("a number");
    assert!((20..=30).contains(&kept), "{kept}");
    let more = admitted(&again, &key.secret, 61);
    assert_eq!(more as u64, 60 - kept, "exactly what the ledger leaves of the quota");
}

// === refusals ===

#[test]
fn a_store_that_is_not_ours_is_refused_and_left_as_it_is() {
    let place = Installation::new();
    place.write("data/keygate.db", &"this is no database. ".repeat(500));
    says(&place.refusal(), &["data/keygate.db is not a Keygate database"]);
    assert!(place.read("data/keygate.db").starts_with("this is no database. "));

    fs::remove_file(place.path("data/keygate.db")).expect("removed");
    let foreign = rusqlite::Connection::open(place.path("data/keygate.db")).expect("made");
    foreign.execute_batch("CREATE TABLE theirs (x)").expect("made");
    drop(foreign);
    says(&place.refusal(), &["data/keygate.db is not a Keygate database"]);
    says(&place.fails(1, &["migrate"]), &["data/keygate.db is not a Keygate database"]);
    assert!(!place.path("data/pepper").exists(), "what is refused gets no secrets");

    fs::remove_file(place.path("data/keygate.db")).expect("removed");
    fs::create_dir(place.path("data/keygate.db")).expect("made");
    says(&place.refusal(), &["data/keygate.db cannot be opened"]);
}

#[test]
fn a_deleted_store_is_a_new_one_without_the_old_keys() {
    let place = Installation::new();
    let (_, secret) = place.make_key(&["--name", "k"]);
    for name in ["keygate.db", "keygate.db-wal", "keygate.db-shm"] {
        fs::remove_file(place.path("data").join(name)).ok();
    }
    let gateway = place.start();
    assert_eq!(gateway.get("/v1/app/x", &secret).fault(), (401, 3009, "api_key_invalid".into()));
    assert_eq!(status(&gateway, &gateway.create_key(json!({"name": "k"})).secret), 200);
}

#[test]
fn a_port_in_use_is_refused_with_its_listener_and_address() {
    for (section, quote, what) in [("proxy", ["['", "']"], "proxy"), ("admin", ["'", "'"], "admin")] {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address: SocketAddr = taken.local_addr().expect("an address");
        let [open, close] = quote;
        let place = Installation::with(&format!("[{section}]\nlisten = {open}{address}{close}"));
        says(&place.refusal(), &[&format!("{what} cannot listen on {address}"), "in use"]);
    }
}

#[test]
fn nodes_share_what_signs_tokens_by_the_environment_and_say_whether_they_are_ready() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = "5e".repeat(32);
    let variables = [
        ("KEYGATE_PROXY_LISTEN", "127.0.0.1:0"),
        ("KEYGATE_ADMIN_LISTEN", "127.0.0.1:0"),
        ("KEYGATE_ADMIN_JWT_HS256_SECRET", secret.as_str()),
    ];
    let mut process = Process::start(folder.path(), &variables, &["run", "--ready-json"]);
    let admin = process.ready()["admin"].as_str().expect("an address").to_owned();
    // Another machine has the secret in its environment, not in a file.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let token = Process::start(elsewhere.path(), &variables, &["token", "--role", "platform"]).line.clone();
    let plans = Request::get("/plans").bearer(token.trim());
    assert_eq!(Raw::connect(admin.parse().expect("an address")).call(&plans).status, 200);
    for place in [&folder, &elsewhere] {
        let made = ["admin.jwt.secret", "admin.token"].map(|f| place.path().join("data").join(f).exists());
        assert_eq!(made, [false, false], "what the environment has is written nowhere");
    }

    let health = || Process::start(folder.path(), &variables, &["health", "--admin", &admin]);
    let mut ready = health();
    assert_eq!(ready.ready()["data"]["ready"], true);
    assert_eq!(ready.wait().code(), Some(0));
    assert_eq!(process.stop().code(), Some(0));
    assert_eq!(health().wait().code(), Some(1), "nobody is there");

    for (more, why) in [
        (
            ("KEYGATE_ADMIN_JWT_HS256_SECRET", "too short"),
            "KEYGATE_ADMIN_JWT_HS256_SECRET: the HS256 secret has 9 bytes",
        ),
        (("KEYGATE_ADMIN_JWT_JWKS_FILE", "keys.json"), "set only one"),
    ] {
        let mut all = variables.to_vec();
        all.push(more);
        all.push(("KEYGATE_ADMIN_JWT_ALGORITHMS", if more.1 == "keys.json" { "EdDSA" } else { "HS256" }));
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keygate"));
        let output = command.env_clear().envs(all).current_dir(folder.path()).arg("run").output();
        let output = output.expect("the binary runs");
        assert_eq!(output.status.code(), Some(1));
        says(&String::from_utf8_lossy(&output.stderr), &[why]);
    }
}

#[test]
fn whitespace_around_a_variable_is_trimmed_and_quotes_are_reported_before_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = "5e".repeat(32);
    let pepper = format!("7:{}", "a1".repeat(32));
    let listen = [("KEYGATE_PROXY_LISTEN", "127.0.0.1:0\r\n"), ("KEYGATE_ADMIN_LISTEN", " 127.0.0.1:0")];
    let with = |secret: &str, pepper: &str| -> Vec<(&'static str, String)> {
        let secrets = [("KEYGATE_ADMIN_JWT_HS256_SECRET", secret), ("KEYGATE_SECRETS_PEPPERS", pepper)];
        listen.into_iter().chain(secrets).map(|(name, value)| (name, value.to_owned())).collect()
    };
    let quoted = |text: &str| format!("\"{text}\"");
    let run = |variables: &[(&str, String)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keygate"));
        let command =
            command.env_clear().envs(variables.iter().map(|(n, v)| (n, v))).current_dir(folder.path());
        let output = command.arg("run").output().expect("the binary runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (variables, name) in [
        (with(&quoted(&secret), &pepper), "KEYGATE_ADMIN_JWT_HS256_SECRET"),
        (with(&secret, &quoted(&pepper)), "KEYGATE_SECRETS_PEPPERS"),
        (with(&format!("{secret}\n{secret}"), &pepper), "KEYGATE_ADMIN_JWT_HS256_SECRET"),
    ] {
        let (code, told) = run(&variables);
        assert_eq!(code, Some(64), "{told}");
        assert!(told.contains(name) && !told.contains(&secret) && !told.contains(&pepper), "{told}");
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keygate"));
    let odd = std::os::unix::ffi::OsStringExt::from_vec(vec![b'5', 0xff]);
    let odd: std::ffi::OsString = odd;
    let output = command
        .env_clear()
        .env("KEYGATE_SECRETS_PEPPERS", odd)
        .current_dir(folder.path())
        .arg("check")
        .output();
    let output = output.expect("the binary runs");
    assert_eq!(output.status.code(), Some(64));
    says(&String::from_utf8_lossy(&output.stderr), &["KEYGATE_SECRETS_PEPPERS: must be UTF-8"]);
    assert!(!folder.path().join("data").exists(), "nothing was made");
    // A line end is not part of a secret: two nodes, one with it and one without, are one gateway.
    let variables = with(&format!("{secret}\n"), &format!("{pepper}\r\n"));
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut process = Process::start(folder.path(), &variables, &["run", "--ready-json"]);
    let admin = process.ready()["admin"].as_str().expect("an address").parse().expect("an address");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let other = [("KEYGATE_ADMIN_JWT_HS256_SECRET", secret.as_str())];
    let token = Process::start(elsewhere.path(), &other, &["token", "--role", "platform"]).line.clone();
    assert_eq!(Raw::connect(admin).call(&Request::get("/plans").bearer(token.trim())).status, 200);
    assert_eq!(process.stop().code(), Some(0));
}

#[test]
fn the_environment_alone_is_a_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let pepper = format!("7:{}", "a1".repeat(32));
    let variables = [
        ("KEYGATE_PROXY_LISTEN", "127.0.0.1:0,127.0.0.1:0"),
        ("KEYGATE_ADMIN_LISTEN", "127.0.0.1:0"),
        ("KEYGATE_STORE_URL", "sqlite:elsewhere/keys.db"),
        ("KEYGATE_ADMIN_JWT_HS256_SECRET_FILE", "elsewhere/jwt"),
        ("KEYGATE_SECRETS_PEPPERS", pepper.as_str()),
        ("KEYGATE_SECRETS_PREFIX", "acme"),
    ];
    let mut process = Process::start(folder.path(), &variables, &["run", "--ready-json"]);
    let ready = process.ready();
    assert_eq!(ready["proxies"].as_array().map(Vec::len), Some(2), "{ready}");
    let address = |field: &str| ready[field].as_str().and_then(|a| a.parse().ok()).expect("an address");
    let answer = Raw::connect(address("proxy")).call(&Request::get("/anything"));
    assert_eq!(answer.fault(), (404, 4000, "route_not_found".into()), "routes are in files only");
    let token = fs::read_to_string(folder.path().join("elsewhere/admin.token")).expect("a token");
    let create = Request::post("/apikeys", r#"{"name":"k","type":"service","scopes":["app"]}"#);
    let create = create.header("Content-Type", "application/json").bearer(token.trim());
    let made = Raw::connect(address("admin")).call(&create);
    assert_eq!(made.status, 200, "{made:?}");
    assert!(made.data()["api_key"].as_str().is_some_and(|s| s.starts_with("acme-service-")));
    assert_eq!(process.stop().code(), Some(0));
    assert!(!folder.path().join("data/pepper").exists(), "the environment's peppers need no file");

    let mut misspelt = variables.to_vec();
    misspelt.push(("KEYGATE_PROXY_LISTENN", "127.0.0.1:0"));
    let mut refused = Process::start(folder.path(), &misspelt, &["run", "--ready-json"]);
    let code = refused.wait().code();
    assert_eq!((refused.line.as_str(), code), ("", Some(64)));
}
