//! A database file that is unusable at startup and becomes usable later.

use crate::support::{Raw, Request, eventually_true, stand};
use rusqlite::Connection;
use serde_json::json;

#[test]
fn a_locked_database_file_is_waited_for() {
    let (_origin, mut gateway) = stand("[store]\nbusy_timeout = \"10ms\"\n");
    let key = gateway.create_key(json!({}));
    assert!(gateway.stop().success());
    let file = Connection::open(gateway.folder().join("data/keygate.db")).unwrap();
    file.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; SELECT count(*) FROM keys")
        .unwrap();
    let gateway = gateway.restart();
    let readiness = || Raw::connect(gateway.admin).call(&Request::get("/readyz?verbose"));
    assert_eq!(readiness().status, 503);
    assert!(readiness().text().contains("locked"), "{}", readiness().text());
    assert_eq!(gateway.get("/v1/app/x", &key.secret).status, 503);
    assert_eq!(gateway.admin("GET", "/apikeys", None).status, 503);
    drop(file);
    eventually_true("it serves", || gateway.get("/v1/app/x", &key.secret).status == 200);
    assert_eq!(readiness().status, 200);
    eventually_true("usage is stored", || !gateway.logs(&key).is_empty());
}
