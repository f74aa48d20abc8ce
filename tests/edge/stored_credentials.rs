//! Credentials for backends that the store keeps encrypted, over either HTTP.

use crate::http2::{Client, H2C, h2c, request};
use crate::support::{Gateway, Key, Origin, Request, route, upstream, write_config};
use serde_json::{Value, json};
use std::sync::Arc;

const ONE: &str = "1:0101010101010101010101010101010101010101010101010101010101010101";
const TWO: &str = "2:0202020202020202020202020202020202020202020202020202020202020202";
const KEYS: &str = "KEYGATE_SECRETS_ENCRYPTION_KEYS";
const FIELDS: [&str; 2] = ["authorization", "x-backend-key"];

fn config(origin: &Origin) -> String {
    upstream("app", origin.address)
        + "[[upstreams.credentials]]\nsecret_env = \"KEYGATE_CREDENTIAL_ALL\"\n"
        + &route("app", "/v1/app", "app", "")
        + "[[routes]]\npath = \"/public\"\nupstream = \"app\"\npublic = true\n"
        + H2C
}

/// A gateway in `folder` with these encryption keys.
fn run(folder: &Arc<tempfile::TempDir>, keys: Option<&str>) -> Gateway {
    let all = [("KEYGATE_CREDENTIAL_ALL", "secret-of-file"), (KEYS, keys.unwrap_or_default())];
    Gateway::run_with(Arc::clone(folder), &all[..if keys.is_some() { 2 } else { 1 }]).unwrap()
}

fn put(gateway: &Gateway, body: &Value) -> Value {
    let token = gateway.mint("platform", "test");
    let answer = gateway.admin_as(&token, "PUT", "/upstreams/app/credentials", Some(body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.data()
}

/// What the backend is told over both protocols; none where the request is refused with 503.
async fn told(
    gateway: &Gateway,
    origin: &Origin,
    target: &str,
    secret: &str,
) -> [Option<[Option<String>; 2]>; 2] {
    let before = origin.count();
    let mut first = Request::get(target).header("X-API-Key", secret).header("Authorization", "Basic forged");
    first = first.header("X-Backend-Key", "forged");
    let one = gateway.call(&first).status;
    let mut second = request("GET", target, "");
    for (name, value) in
        [("x-api-key", secret), ("authorization", "Basic forged"), ("x-backend-key", "forged")]
    {
        second.headers_mut().insert(name, value.parse().unwrap());
    }
    let mut client = Client::connect(h2c(gateway)).await;
    let two = client.call(second).await.unwrap().status.as_u16();
    assert_eq!(one, two, "{target}");
    assert!([200, 503].contains(&one), "{target}: {one}");
    let mut seen = origin.requests().split_off(before).into_iter();
    assert_eq!(seen.len(), if one == 200 { 2 } else { 0 }, "{target}");
    [(); 2].map(|()| seen.next().map(|seen| FIELDS.map(|name| seen.header(name).map(str::to_owned))))
}

fn both(authorization: Option<&str>, other: Option<&str>) -> [Option<[Option<String>; 2]>; 2] {
    let told = Some([authorization, other].map(|value| value.map(str::to_owned)));
    [told.clone(), told]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_credentials_come_first_change_at_once_and_are_in_no_file_in_the_clear() {
    let origin = Origin::start();
    let folder = Arc::new(tempfile::tempdir().unwrap());
    write_config(folder.path(), &config(&origin));
    let mut gateway = run(&folder, Some(ONE));
    let acme = gateway.create_key_as(&gateway.mint("admin", "acme"), json!({"rate_limit": 1000}));
    let gold = gateway.create_key(json!({"rate_limit": 1000, "metadata": {"tier": "gold"}}));
    let plain = gateway.create_key(json!({"rate_limit": 1000}));
    let ask = async |key: &Key| told(&gateway, &origin, "/v1/app", &key.secret).await;
    let file = both(Some("Bearer secret-of-file"), None);
    // A header that no credential uses is the client's.
    assert_eq!(ask(&acme).await, both(Some("Bearer secret-of-file"), Some("forged")));

    put(&gateway, &json!({"secret": "secret-of-acme", "workspace_id": "acme"}));
    let of_gold = put(
        &gateway,
        &json!({"secret": "secret-of-gold", "metadata": "tier=gold", "header": "X-Backend-Key", "scheme": null}),
    );
    assert_eq!(ask(&acme).await, both(Some("Bearer secret-of-acme"), None));
    assert_eq!(ask(&gold).await, both(None, Some("secret-of-gold")));
    assert_eq!(ask(&plain).await, file);
    assert_eq!(told(&gateway, &origin, "/public", "").await, file);
    put(&gateway, &json!({"secret": "secret-of-all"}));
    put(&gateway, &json!({"secret": "secret-of-acme-2", "workspace_id": "acme"}));
    assert_eq!(ask(&acme).await, both(Some("Bearer secret-of-acme-2"), None), "replaced");
    assert_eq!(ask(&plain).await, both(Some("Bearer secret-of-all"), None));
    assert_eq!(told(&gateway, &origin, "/public", "").await, both(Some("Bearer secret-of-all"), None));

    // Another process, with a newer key beside the old one, and after a reload.
    assert!(gateway.stop().success());
    let texts = [gateway.stderr()];
    gateway = run(&folder, Some(&format!("{ONE}\n{TWO}")));
    let ask = async |key: &Key| told(&gateway, &origin, "/v1/app", &key.secret).await;
    assert_eq!(ask(&gold).await, both(None, Some("secret-of-gold")));
    let renewed = put(&gateway, &json!({"secret": "secret-of-gold-2", "metadata": "tier=gold"}));
    assert_eq!((&renewed["id"], &renewed["key_version"]), (&of_gold["id"], &json!(2)));
    let platform = gateway.mint("platform", "test");
    assert_eq!(gateway.admin_as(&platform, "POST", "/reload", None).status, 200);
    assert_eq!(ask(&gold).await, both(Some("Bearer secret-of-gold-2"), Some("forged")));
    let uri = format!("/upstreams/app/credentials/{}", of_gold["id"].as_str().unwrap());
    assert_eq!(gateway.admin_as(&platform, "DELETE", &uri, None).status, 200);
    assert_eq!(ask(&gold).await, both(Some("Bearer secret-of-all"), Some("forged")));

    let listed = gateway.admin_as(&platform, "GET", "/upstreams/app/credentials", None).text();
    let metrics = gateway.metrics();
    assert!(gateway.stop().success());
    for text in texts.iter().chain([&listed, &metrics, &gateway.stderr()]) {
        assert!(!text.contains("secret-of"), "{text}");
    }
    // Neither the database nor the journal nor the snapshot of the keyring.
    for file in files_in(folder.path()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(9).any(|part| part == b"secret-of"), "{}", file.display());
    }
}

fn files_in(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_in(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_whose_credential_cannot_be_decrypted_are_refused_and_cost_nothing() {
    let origin = Origin::start();
    let folder = Arc::new(tempfile::tempdir().unwrap());
    write_config(folder.path(), &config(&origin));
    let mut gateway = run(&folder, Some(ONE));
    let acme =
        gateway.create_key_as(&gateway.mint("admin", "acme"), json!({"rate_limit": 1000, "quota_limit": 5}));
    let plain = gateway.create_key(json!({"rate_limit": 1000}));
    let stored = put(&gateway, &json!({"secret": "secret-of-acme", "workspace_id": "acme"}));
    let own = both(Some("Bearer secret-of-acme"), Some("forged"));
    assert_eq!(told(&gateway, &origin, "/v1/app", &acme.secret).await, own);
    assert!(gateway.stop().success());
    let lost = ["1:0303030303030303030303030303030303030303030303030303030303030303", TWO];
    for keys in [None, Some(lost[0]), Some(lost[1])] {
        let mut gateway = run(&folder, keys);
        // Neither the one of the file nor none at all.
        assert_eq!(told(&gateway, &origin, "/v1/app", &acme.secret).await, [None, None], "{keys:?}");
        let file = both(Some("Bearer secret-of-file"), Some("forged"));
        assert_eq!(told(&gateway, &origin, "/v1/app", &plain.secret).await, file, "{keys:?}");
        let platform = gateway.mint("platform", "test");
        let listed = gateway.admin_as(&platform, "GET", "/upstreams/app/credentials", None).data();
        assert_eq!(
            (&listed["items"][0]["id"], &listed["items"][0]["is_usable"]),
            (&stored["id"], &json!(false))
        );
        if keys.is_none() {
            let body = json!({"secret": "x"});
            let refused = gateway.admin_as(&platform, "PUT", "/upstreams/app/credentials", Some(&body));
            assert_eq!(refused.status, 409, "{}", refused.text());
        }
        assert!(gateway.stop().success());
        let told = gateway.stderr();
        assert!(
            told.contains("stored upstream credential cannot be decrypted") && told.contains("acme"),
            "{told}"
        );
    }
    let gateway = run(&folder, Some(ONE));
    assert_eq!(told(&gateway, &origin, "/v1/app", &acme.secret).await, own);
    assert_eq!(
        gateway.call(&Request::get("/v1/app").bearer(&acme.secret)).remaining("quota"),
        0,
        "4 and this one"
    );
}
