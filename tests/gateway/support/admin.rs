//! A client of the admin API.

use super::{Gateway, PATIENCE, Raw, Request, Response, eventually};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A key created by a test.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
}

/// Counts up, for key names that are unique in the test.
static NAMES: AtomicUsize = AtomicUsize::new(0);
/// A call that took so long was waiting for the store: admin calls wait for it at most two seconds.
const STORE_IS_LATE: Duration = Duration::from_millis(1_500);

/// The response to a call that must succeed. On a stalled machine the store is late and the gateway answers that it is
/// unavailable; that is correct, and the call is repeated.
fn in_time(mut call: impl FnMut() -> Response) -> Response {
    let begun = Instant::now();
    loop {
        let asked = Instant::now();
        let response = call();
        let is_late = response.status == 503 && asked.elapsed() >= STORE_IS_LATE;
        if !is_late || begun.elapsed() > PATIENCE {
            return response;
        }
    }
}

impl Gateway {
    /// The first admin token: role `platform`, workspace `default`.
    pub(crate) fn token(&self) -> String {
        let path = self.folder().join("data/admin.token");
        std::fs::read_to_string(path).expect("a first admin token").trim().to_owned()
    }

    /// A token made by `keygate token`.
    pub(crate) fn mint(&self, role: &str, workspace: &str) -> String {
        let made = self.command(&["token", "--role", role, "--workspace", workspace]);
        assert_eq!(made.code, Some(0), "{made:?}");
        made.stdout.trim().to_owned()
    }

    /// An admin call with the first token.
    #[track_caller]
    pub(crate) fn admin(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        self.admin_as(&self.token(), method, path, body)
    }

    /// An admin call with that token.
    #[track_caller]
    pub(crate) fn admin_as(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> Response {
        let mut request = Request::new(method, path).bearer(token);
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        Raw::connect(self.admin).call(&request)
    }

    /// An admin call that must succeed; its `data`.
    #[track_caller]
    pub(crate) fn managed(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let response = in_time(|| self.admin(method, path, body));
        assert!(response.status < 300, "{method} {path}: {} {}", response.status, response.text());
        response.data()
    }

    /// Makes a key. A `name` is filled in where `fields` has none, and without a `type` three scopes.
    #[track_caller]
    pub(crate) fn create_key(&self, fields: Value) -> Key {
        self.create_key_as(&self.token(), fields)
    }

    /// Makes a key in the workspace of that token.
    #[track_caller]
    pub(crate) fn create_key_as(&self, token: &str, fields: Value) -> Key {
        let Value::Object(fields) = fields else { panic!("the fields of a key are an object") };
        let response = in_time(|| {
            // A new name for each try: the key may exist although its response was late.
            let name = format!("key {}", NAMES.fetch_add(1, Ordering::Relaxed));
            let mut body = json!({"name": name});
            if !fields.contains_key("type") {
                body["scopes"] = json!(["app", "memory", "rag"]);
            }
            body.as_object_mut().unwrap().extend(fields.clone());
            self.admin_as(token, "POST", "/apikeys", Some(&body))
        });
        assert_eq!(response.status, 200, "{fields:?}: {}", response.text());
        let data = response.data();
        let field = |name: &str| data[name].as_str().expect("text").to_owned();
        Key { id: field("id"), secret: field("api_key") }
    }

    /// Changes a key.
    #[track_caller]
    pub(crate) fn update_key(&self, key: &Key, fields: &Value) -> Value {
        self.managed("PUT", &format!("/apikeys/{}", key.id), Some(fields))
    }

    /// The newest usage records of a key, at most 100.
    #[track_caller]
    pub(crate) fn logs(&self, key: &Key) -> Vec<Value> {
        let data = self.managed("GET", &format!("/apikeys/{}/logs?pagesize=100", key.id), None);
        data["items"].as_array().expect("rows").clone()
    }

    /// The key's usage records, newest first, once there are `n` of them; more is a failure.
    #[track_caller]
    pub(crate) fn wait_for_logs(&self, key: &Key, n: usize) -> Vec<Value> {
        let rows =
            eventually(&format!("{n} usage records"), || Some(self.logs(key)).filter(|r| r.len() >= n));
        assert_eq!(rows.len(), n, "{rows:#?}");
        rows
    }

    /// All requests in the key's statistics, whatever their outcome.
    #[track_caller]
    pub(crate) fn recorded(&self, key: &Key) -> u64 {
        let stats = self.stats(key);
        ["total_requests", "denied", "unreached"].iter().filter_map(|name| stats[name].as_u64()).sum()
    }

    /// The key's statistics.
    #[track_caller]
    pub(crate) fn stats(&self, key: &Key) -> Value {
        self.managed("GET", &format!("/apikeys/{}/stats", key.id), None)
    }
}
