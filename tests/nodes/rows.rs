//! Invalid rows: the object is refused and reported, everything else is served, and lists skip it.

use crate::cluster::{pair, sql, wait};
use crate::private_postgres::Server;
use crate::support::{Gateway, Raw, Request, eventually_true};
use serde_json::json;

fn broken_rows(node: &Gateway) -> u64 {
    let metrics = Raw::connect(node.admin).call(&Request::get("/metrics")).text();
    let line = metrics.lines().find_map(|line| line.strip_prefix("keygate_keyring_broken_rows "));
    line.expect("the metric").parse().unwrap()
}

/// What a node would write: `change` of the row in `table` with this id, with the next number and its notification.
pub(crate) fn write(url: &str, table: &str, id: &str, change: &str) {
    let quiet = "SET session_replication_role = replica;";
    sql(
        url,
        &format!(
            "{quiet} WITH next AS (UPDATE change_seq SET value = value + 1 RETURNING value)
             UPDATE {table} SET {change}, version = (SELECT value FROM next) WHERE id::text = '{id}';
             NOTIFY keygate_changes"
        ),
    );
}

#[test]
fn a_key_that_breaks_while_nodes_run_is_refused_until_it_is_mended() {
    let url = wait(Server::shared().database());
    let pair = pair(&url);
    let (sound, hurt) = (pair.key(json!({})), pair.key(json!({})));
    let damages = [
        ("kind = ''", "kind = 'service'"),
        ("scopes = 'app,a b'", "scopes = 'app,rag,memory'"),
        ("rate_limit = -1", "rate_limit = 50"),
        ("daily_request_limit = -9223372036854775808", "daily_request_limit = 1000"),
        ("limits = '[{'", "limits = '[]'"),
        ("allowed_ips = '[\"nonsense\"]'", "allowed_ips = '[]'"),
        ("expires_at = 9223372036854775807", "expires_at = NULL"),
        ("pepper_version = NULL", "pepper_version = 1"),
    ];
    for (damage, repair) in damages {
        write(&url, "keys", &hurt.id, damage);
        for node in pair.nodes() {
            eventually_true(damage, || node.get("/v1/app/x", &hurt.secret).status == 503);
            assert_eq!(node.get("/v1/app/x", "sk-unknown").status, 401, "{damage}");
            assert_eq!(node.get("/v1/app/x", &sound.secret).status, 200, "{damage}");
            eventually_true("it is counted", || broken_rows(node) == 1);
            eventually_true("and named", || node.stderr().contains(&hurt.id));
        }
        write(&url, "keys", &hurt.id, repair);
        for node in pair.nodes() {
            eventually_true(repair, || node.get("/v1/app/x", &hurt.secret).status == 200);
            eventually_true("it is not counted any more", || broken_rows(node) == 0);
        }
    }
}

#[test]
fn keys_of_a_broken_plan_or_workspace_are_served_once_it_is_mended() {
    let url = wait(Server::shared().database());
    let first = pair(&url);
    let (here, token) = (first.key(json!({})), first.first.mint("admin", "elsewhere"));
    let there = first.first.create_key_as(&token, json!({}));
    first.wait_for(&here);
    for (table, id, damage, repair, only_there) in [
        ("plans", "default", "api_ops_rate_limit = -1", "api_ops_rate_limit = 1000", false),
        ("plans", "default", "end_user_quota = -5", "end_user_quota = 10000", false),
        ("plans", "default", "limits = 'nonsense'", "limits = '[]'", false),
        ("workspaces", "elsewhere", "plan_id = ''", "plan_id = 'default'", true),
        ("workspaces", "elsewhere", "plan_id = 'nowhere'", "plan_id = 'default'", true),
    ] {
        write(&url, table, id, damage);
        // A node that starts reads the damaged row.
        let late =
            crate::cluster::node(&first._origin, &url, "late", &crate::cluster::shared_with(&first.first));
        assert_eq!(late.get("/v1/app/x", &there.secret).status, 503, "{damage}");
        let readiness = Raw::connect(late.admin).call(&Request::get("/readyz?verbose"));
        assert!(
            readiness.status == 503 && readiness.text().contains("cannot be served"),
            "{}",
            readiness.text()
        );
        let others = if only_there { 200 } else { 503 };
        assert_eq!(late.get("/v1/app/x", &here.secret).status, others, "{damage}");
        eventually_true("it is counted", || broken_rows(&late) >= 2);
        // Nodes that knew it keep the previous version and report that the row is broken.
        assert_eq!(first.first.get("/v1/app/x", &there.secret).status, 200, "{damage}");
        eventually_true("it is counted", || broken_rows(&first.first) == 1);
        write(&url, table, id, repair);
        for secret in [&here.secret, &there.secret] {
            eventually_true("everything is served again", || late.get("/v1/app/x", secret).status == 200);
        }
        for node in [&late, &first.first] {
            eventually_true("nothing is counted any more", || broken_rows(node) == 0);
            assert_eq!(Raw::connect(node.admin).call(&Request::get("/readyz")).status, 200);
        }
    }
}

#[test]
fn lists_pass_over_rows_that_cannot_be() {
    let url = wait(Server::shared().database());
    let pair = pair(&url);
    let node = &pair.first;
    let key = pair.key(json!({}));
    for name in ["sound", "broken"] {
        let request = Request::get("/v1/app/x").bearer(&key.secret).header("X-End-User-Id", name);
        assert_eq!(node.call(&request).status, 200);
        node.managed("PUT", &format!("/workspaces/{name}"), Some(&json!({"name": name})));
        let plan = json!({"id": name, "api_ops_rate_limit": 5, "end_user_quota": 5});
        node.managed("POST", "/plans", Some(&plan));
    }
    for (table, column, damages) in [
        ("plans", "id", ["api_ops_rate_limit = -1", "created_at = 9223372036854775807", "limits = ''"]),
        ("workspaces", "id", ["end_users = -1", "plan_id = '?'", "updated_at = -9223372036854775808"]),
        (
            "end_users",
            "other_id",
            [
                "created_at = 9223372036854775807",
                "created_at = -9223372036854775808",
                "created_at = 9000000000000000000",
            ],
        ),
    ] {
        let path = table.replace("end_users", "endusers");
        for damage in damages {
            let quiet = "SET session_replication_role = replica;";
            sql(
                &url,
                &format!(
                    "{quiet} CREATE TEMP TABLE was AS SELECT * FROM {table} WHERE {column} = 'broken';
                 UPDATE {table} SET {damage} WHERE {column} = 'broken'"
                ),
            );
            let listed = node.managed("GET", &format!("/{path}?pagesize=100"), None);
            let items = listed["items"].as_array().unwrap();
            let has = |name: &str| items.iter().any(|item| item[column] == name);
            assert!(has("sound") && !has("broken"), "{damage}: {listed}");
            // The previous value is restored, so that the next damage is the only one.
            let repair = match table {
                "plans" => "api_ops_rate_limit = 5, created_at = 0, limits = '[]'",
                "workspaces" => "end_users = 0, plan_id = 'default', updated_at = 0",
                _ => "created_at = 0",
            };
            sql(&url, &format!("{quiet} UPDATE {table} SET {repair} WHERE {column} = 'broken'"));
        }
    }
    eventually_true("it is said", || node.stderr().contains("invalid row skipped"));
    let metrics = Raw::connect(node.admin).call(&Request::get("/metrics")).text();
    assert!(metrics.contains("keygate_store_rows_passed_over_total 9\n"), "{metrics}");
}
