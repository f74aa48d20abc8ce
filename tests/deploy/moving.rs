//! Moving a live installation from one store to another keeps all administrative objects.

use crate::installation::{Installation, mode, says};
use crate::private_postgres::Server;
use crate::support::{Gateway, Key, Origin, Request};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Runs `work` on its own runtime; the tests around it have none.
fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(work)
}

/// The lines of an export by what they describe, without the first, which has the time.
fn things(text: &str) -> BTreeMap<String, usize> {
    let mut lines = BTreeMap::new();
    for line in text.lines().skip(1) {
        *lines.entry(line.to_owned()).or_default() += 1;
    }
    lines
}

/// The admin API's view of a key, without figures from the ledger.
fn shown(gateway: &Gateway, token: &str, key: &Key) -> Value {
    let mut data = gateway.admin_as(token, "GET", &format!("/apikeys/{}", key.id), None).data();
    let fields = data.as_object_mut().expect("a key");
    for name in ["usage_count", "quota_used", "last_used_at"] {
        fields.remove(name).expect(name);
    }
    data
}

/// Status and code of `GET /v1/app/x` for an end user.
fn answer(gateway: &Gateway, secret: &str, end_user: &str) -> (u16, String) {
    let request = Request::get("/v1/app/x").bearer(secret).header("X-End-User-Id", end_user);
    let response = gateway.call(&request);
    let error = if response.status == 200 { String::new() } else { response.fault().2 };
    (response.status, error)
}

/// A gateway with one of everything.
struct Lived {
    keys: Vec<Key>,
    renewed: String,
    end_user: Value,
}

fn live(gateway: &Gateway, token: &str) -> Lived {
    let call = |method: &str, path: &str, body: Value| {
        let answer = gateway.admin_as(token, method, path, Some(&body));
        assert!(answer.status < 300, "{method} {path}: {}", answer.text());
        answer.data()
    };
    let limits = json!([{"count": "requests", "per": "month", "max": 1_000_000}]);
    let gold = json!({"id": "gold", "description": "β", "api_ops_rate_limit": 500, "end_user_quota": 1, "limits": limits});
    gateway.managed("POST", "/plans", Some(&gold));
    gateway.managed("PUT", "/workspaces/w2", Some(&json!({"name": "the second", "plan_id": "gold"})));
    let full = json!({
        "type": "app", "resource_id": "app-1", "description": "what for", "rate_limit": 400, "rate_burst": 7,
        "daily_request_limit": 5_000, "quota_limit": 900, "concurrency_limit": 3, "end_user": "ann", "allowed_ips": ["127.0.0.0/8"],
        "limits": [{"count": "requests", "per": "hour", "max": 800}], "metadata": {"team": "β", "n": [1, null]},
        "expires_at": 4_102_444_800_000_i64, "scopes": ["app", "rag"],
    });
    let keys: Vec<Key> =
        [full, json!({}), json!({}), json!({})].map(|f| gateway.create_key_as(token, f)).into();
    call("PUT", &format!("/apikeys/{}", keys[1].id), json!({"is_active": false}));
    let renewed =
        call("POST", &format!("/apikeys/{}/regenerate", keys[2].id), json!({"grace_period_seconds": 3_600}));
    // The plan is lowered below the first key, which is bound by the plan's limit from now on.
    gateway.managed("PUT", "/plans/gold", Some(&json!({"api_ops_rate_limit": 100})));
    // What only the platform has: grants, prices, a workspace that is gone, a credential for backends.
    let far = 4_102_444_800_000_i64;
    let grants = [
        json!({"limit": "api_ops_rate_limit", "amount": 1, "reason": "β", "until": far}),
        json!({"limit": "limits", "count": "requests", "per": "month", "amount": 5, "reason": "r", "until": far}),
    ];
    for grant in grants {
        gateway.managed("POST", "/workspaces/w2/grants", Some(&grant));
    }
    let prices = json!([
        {"model": "m*", "input": "2.5", "output": 10},
        {"model": "n", "input": 1, "output": 2, "tiers": [{"above": 200_000, "input": 3, "output": 4}]},
    ]);
    gateway.managed("PUT", "/prices", Some(&json!({"prices": prices})));
    gateway.managed("PUT", "/workspaces/gone", Some(&json!({})));
    gateway.managed("DELETE", "/workspaces/gone", None);
    let credential = json!({"secret": "secret-of-backend", "workspace_id": "w2", "header": "x-backend-key", "scheme": null});
    gateway.managed("PUT", "/upstreams/origin/credentials", Some(&credential));
    assert_eq!(answer(gateway, &keys[0].secret, "ann").0, 200);
    let users = gateway.admin_as(token, "GET", "/endusers?other_id=ann", None).data();
    let end_user = users["items"][0].clone();
    let renewed = renewed["api_key"].as_str().expect("a secret").to_owned();
    Lived { keys, renewed, end_user }
}

fn check(gateway: &Gateway, token: &str, lived: &Lived, origin: &Origin) {
    let Lived { keys, renewed, end_user } = lived;
    let platform = gateway.mint("platform", "w2");
    let shown = |path: &str| gateway.admin_as(&platform, "GET", path, None).data();
    let workspace = shown("/workspaces/w2");
    assert_eq!(workspace["api_ops_rate_limit_granted"], 1, "{workspace}");
    let closed = gateway.admin_as(&gateway.mint("admin", "gone"), "GET", "/apikeys", None);
    assert_eq!(closed.fault().2, "workspace_no_access", "a deleted workspace stays closed");
    assert_eq!(shown("/prices")["prices"][1]["tiers"][0]["above"], 200_000);
    assert_eq!(answer(gateway, &keys[0].secret, "ann").0, 200);
    assert_eq!(origin.last().header("x-backend-key"), Some("secret-of-backend"));
    assert_eq!(
        answer(gateway, &keys[0].secret, "bob"),
        (403, "end_user_not_allowed".into()),
        "it is bound to ann"
    );
    assert_eq!(answer(gateway, &keys[2].secret, "bob"), (402, "end_user_quota_exceeded".into()));
    assert_eq!(answer(gateway, &keys[1].secret, "ann").1, "api_key_inactive");
    assert_eq!(answer(gateway, &keys[2].secret, "ann").0, 200, "its grace period lasts");
    assert_eq!(answer(gateway, renewed, "ann").0, 200);
    assert_eq!(answer(gateway, &keys[3].secret, "ann").1, "api_key_expired");
    let users = gateway.admin_as(token, "GET", "/endusers", None).data();
    assert_eq!(users["items"], json!([end_user]), "backends know it by its id");
}

#[test]
fn everything_administrative_moves_from_sqlite_to_postgres_and_back() {
    let keys = "[secrets]\nencryption_key_file = \"encryption.keys\"\n";
    let here = Installation::with(keys);
    here.write("encryption.keys", format!("1:{}\n", "01".repeat(32)));
    let mut gateway = here.start();
    let token = gateway.mint("admin", "w2");
    gateway.managed("PUT", "/workspaces/w2", Some(&json!({})));
    let lived = live(&gateway, &token);
    assert!(gateway.stop().success());
    // Makes a key expired; its holder is told so.
    let expire = "UPDATE keys SET expires_at = 1700000000000000 WHERE lower(hex(id)) = ?1";
    let id = lived.keys[3].id.replace('-', "");
    assert_eq!(here.database().execute(expire, [id]).expect("written"), 1);
    here.done(&["export", "all.jsonl"]);
    assert_eq!(mode(&here.path("all.jsonl")), 0o600);
    let exported = here.read("all.jsonl");
    assert!(!exported.contains("secret-of-backend"));
    for secret in lived.keys.iter().map(|key| &key.secret).chain([&lived.renewed]) {
        assert!(!exported.contains(&secret[secret.len() - 30..]), "no secret is in it");
    }
    says(&here.fails(1, &["export", "all.jsonl"]), &["all.jsonl", "exists"]);
    let mut gateway = here.start();
    let before: Vec<_> = lived.keys.iter().map(|key| shown(&gateway, &token, key)).collect();
    check(&gateway, &token, &lived, &here.origin);
    assert!(gateway.stop().success());

    let server = Server::shared();
    let url = wait(server.create(""));
    let there = Installation::with(&format!("[store]\nurl = \"{url}\"\n{keys}"));
    let back = Installation::with(keys);
    let mut from = exported.clone();
    for place in [&there, &back] {
        place.write("data/pepper", &here.read("data/pepper"));
        place.write("encryption.keys", &here.read("encryption.keys"));
        place.write("data/admin.jwt.secret", &here.read("data/admin.jwt.secret"));
        place.write("all.jsonl", &from);
        let told = place.command(&["import", "all.jsonl"]);
        assert_eq!(told.code, Some(0), "{told:?}");
        says(
            &told.stderr,
            &[
                "imported 2 plans, 1 workspaces, 2 grants, 1 deleted workspaces, 2 prices, 1 credentials, 4 keys, 1 end users",
                "refused: 0",
            ],
        );
        place.done(&["export", "again.jsonl"]);
        from = place.read("again.jsonl");
        assert_eq!(things(&from), things(&exported), "nothing was lost on the way");
        let again = place.command(&["import", "all.jsonl"]);
        assert_eq!(again.code, Some(0), "what was broken off can be repeated: {again:?}");
        says(&again.stderr, &["0 keys, 0 end users", "there already: 4 keys, 1 end users"]);
        let mut gateway = place.start();
        check(&gateway, &token, &lived, &place.origin);
        let after: Vec<_> = lived.keys.iter().map(|key| shown(&gateway, &token, key)).collect();
        assert_eq!(after, before);
        assert!(gateway.stop().success());
    }
}

#[test]
fn half_a_file_or_one_of_another_pepper_is_refused() {
    let here = Installation::new();
    let names = ["one", "two", "three"].map(|name| here.make_key(&["--name", name]).0);
    here.done(&["export", "all.jsonl"]);
    let whole = here.read("all.jsonl");
    let there = Installation::new();
    there.write("data/pepper", &here.read("data/pepper"));
    let without = |n: usize| -> String {
        whole.split_inclusive('\n').enumerate().filter(|(at, _)| *at != n).map(|(_, line)| line).collect()
    };
    let lines = whole.lines().count();
    for n in 1..lines {
        there.write("cut.jsonl", &without(n));
        says(&there.fails(1, &["import", "cut.jsonl"]), &["cut.jsonl: is not whole"]);
    }
    for (text, why) in [
        (without(0), "was not written by keygate export"),
        (whole.replacen("\"format\":2", "\"format\":3", 1), "is of format 3; this binary reads up to 2"),
        (whole.clone() + "{}\n", "goes on after its end"),
        (whole[..whole.len() - 9].to_owned(), "is not a JSON object"),
        (whole.replacen("{\"key\":{", "{\"key\":{\"name\":\"\",", 1), "key.name: is there twice"),
        (String::new(), "is not whole"),
    ] {
        there.write("cut.jsonl", &text);
        says(&there.fails(1, &["import", "cut.jsonl"]), &["cut.jsonl", why]);
    }
    assert_eq!(there.done(&["keys", "list", "--all", "--json"]), "", "nothing of them was used");

    // A malformed line is refused with its number, and the rest is imported.
    let odd = whole.replacen("{\"key\":{", "{\"key\":5,\"was\":{", 1);
    there.write("odd.jsonl", &odd);
    says(&there.fails(1, &["import", "odd.jsonl"]), &["key: must be an object", "2 keys", "refused: 1"]);

    let stranger = Installation::new();
    stranger.write("all.jsonl", &whole);
    let refused = stranger.fails(1, &["import", "all.jsonl"]);
    says(
        &refused,
        &["pepper_version: the digest was made with a pepper that this installation does not have"],
    );
    says(&refused, &["3 lines were refused"]);
    there.write("all.jsonl", &whole);
    there.done(&["import", "all.jsonl"]);
    let listed = there.done(&["keys", "list"]);
    says(&listed, &names.each_ref().map(String::as_str));
}
