//! The admin API as tests use it.

use super::{Gateway, Raw, Request, Response, eventually};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A key that a test made.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
}

/// Makes names that no other key of the test has.
static NAMES: AtomicUsize = AtomicUsize::new(0);

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
        let response = self.admin(method, path, body);
        assert!(response.status < 300, "{method} {path}: {} {}", response.status, response.text());
        response.data()
    }

    /// Makes a key. A `name` and the type `service` are filled in where `fields` has none.
    #[track_caller]
    pub(crate) fn create_key(&self, fields: Value) -> Key {
        self.create_key_as(&self.token(), fields)
    }

    /// Makes a key in the workspace of that token.
    #[track_caller]
    pub(crate) fn create_key_as(&self, token: &str, fields: Value) -> Key {
        let mut body = json!({
            "name": format!("key {}", NAMES.fetch_add(1, Ordering::Relaxed)),
            "type": "service",
        });
        let Value::Object(fields) = fields else { panic!("the fields of a key are an object") };
        body.as_object_mut().unwrap().extend(fields);
        let response = self.admin_as(token, "POST", "/apikeys", Some(&body));
        assert_eq!(response.status, 201, "{body}: {}", response.text());
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

    /// The key's statistics.
    #[track_caller]
    pub(crate) fn stats(&self, key: &Key) -> Value {
        self.managed("GET", &format!("/apikeys/{}/stats", key.id), None)
    }
}
