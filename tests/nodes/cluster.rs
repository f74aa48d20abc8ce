//! Two nodes on one database, each behind its own fault-injecting proxy where a test disturbs only one of them.

use crate::chaos::{ChaosProxy, Mode};
use crate::support::{Gateway, Key, Origin, Raw, Request, eventually_true, one_route};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// Two nodes on one database; `second` has the peppers and the signing secret of `first`.
pub(crate) struct Pair {
    pub(crate) first: Gateway,
    pub(crate) second: Gateway,
    pub(crate) _origin: Origin,
}

/// Runs `work` on its own runtime; the tests around it have none.
pub(crate) fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

/// Statements without a result.
pub(crate) fn sql(url: &str, statements: &str) {
    wait(async { crate::private_postgres::raw(url).await.batch_execute(statements).await.unwrap() });
}

/// The number that a query returns.
pub(crate) fn number(url: &str, query: &str) -> i64 {
    wait(async { crate::private_postgres::raw(url).await.query_one(query, &[]).await.unwrap().get(0) })
}

/// A node on the database at `url`; `more` is further configuration.
pub(crate) fn node(origin: &Origin, url: &str, name: &str, more: &str) -> Gateway {
    let mut all: toml::Table = (one_route(origin.address) + more).parse().expect("the test's config is TOML");
    for (section, key, value) in [("store", "url", url), ("node", "name", name)] {
        let section = all.entry(section).or_insert_with(|| toml::Table::new().into());
        section.as_table_mut().expect("a section").insert(key.to_owned(), value.into());
    }
    Gateway::start(&all.to_string())
}

/// Settings that make another node part of the installation of `first`.
pub(crate) fn shared_with(first: &Gateway) -> String {
    let data = first.folder().join("data");
    format!(
        "[secrets]\npepper_file = \"{0}/pepper\"\n[admin.jwt]\nhs256_secret_file = \"{0}/admin.jwt.secret\"\n",
        data.display()
    )
}

pub(crate) fn pair(url: &str) -> Pair {
    pair_with([url, url], "")
}

/// One URL for each.
pub(crate) fn pair_with(urls: [&str; 2], more: &str) -> Pair {
    let origin = Origin::start();
    let first = node(&origin, urls[0], "first", more);
    let second = node(&origin, urls[1], "second", &(shared_with(&first) + more));
    Pair { first, second, _origin: origin }
}

impl Pair {
    pub(crate) fn nodes(&self) -> [&Gateway; 2] {
        [&self.first, &self.second]
    }

    /// A key that both nodes know.
    pub(crate) fn key(&self, fields: Value) -> Key {
        let key = self.first.create_key(fields);
        self.wait_for(&key);
        key
    }

    /// Waits until both nodes have applied the newest change of `key`.
    pub(crate) fn wait_for(&self, key: &Key) {
        eventually_true("both nodes have the key's newest change", || {
            let seen = self.first.managed("GET", &format!("/apikeys/{}/propagation", key.id), None);
            let nodes = seen["nodes"].as_array().expect("nodes");
            nodes.len() >= 2 && nodes.iter().all(|node| node["applied"] == true)
        });
    }

    /// The status of creating a key through `node`.
    pub(crate) fn try_create(&self, node: &Gateway, name: &str) -> u16 {
        let body = json!({"name": name, "type": "service", "scopes": ["app"]});
        node.admin_as(&self.first.token(), "POST", "/apikeys", Some(&body)).status
    }
}

/// A fault-injecting proxy in front of a database.
pub(crate) struct Line {
    /// The database's URL through the proxy.
    pub(crate) url: String,
    proxy: ChaosProxy,
    _runtime: tokio::runtime::Runtime,
}

impl Line {
    pub(crate) fn to(url: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (front, rest) = url.split_once('@').expect("a user");
        let (server, rest) = rest.split_once('/').expect("a database");
        let server: SocketAddr = server.parse().expect("an address");
        let proxy = runtime.block_on(ChaosProxy::before(server));
        let url = format!("{front}@{}/{rest}", proxy.address);
        Self { url, proxy, _runtime: runtime }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.proxy.set(mode);
    }
}

/// The value of the first series of that name.
pub(crate) fn metric(node: &Gateway, name: &str) -> String {
    let metrics = Raw::connect(node.admin).call(&Request::get("/metrics")).text();
    let line = metrics.lines().find(|line| line.starts_with(name)).expect("the metric").to_owned();
    line.rsplit(' ').next().unwrap().to_owned()
}
