//! The schema when nodes start at once, die in the middle of a migration, or are older or newer than it.

use crate::chaos::Mode;
use crate::cluster::{Line, number, sql, wait};
use crate::private_postgres::Server;
use crate::support::{CommandOutput, Gateway, Origin, eventually_true, keygate, one_route, write_config};
use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};

/// An installation in a folder, on the database at `url`.
fn configured(url: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path(), &format!("[store]\nurl = \"{url}\"\n"));
    folder
}

fn migrate(folder: &Path, args: &[&str]) -> CommandOutput {
    keygate(folder, &[&["migrate"], args, &["--config", "keygate.toml"]].concat())
}

#[test]
fn nodes_that_start_at_once_on_an_empty_database_all_serve() {
    let url = wait(Server::shared().create(""));
    let origin = Origin::start();
    let first_folder = tempfile::tempdir().unwrap();
    // One set of peppers for all, as in a real installation.
    let peppers = first_folder.path().join("pepper");
    std::fs::write(&peppers, format!("1:{}\n", "5a".repeat(32))).unwrap();
    set_private(&peppers);
    let config = format!(
        "{}[store]\nurl = \"{url}\"\n[secrets]\npepper_file = \"{}\"\n",
        one_route(origin.address),
        peppers.display()
    );
    let nodes: Vec<Gateway> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..3).map(|_| scope.spawn(|| Gateway::start(&config))).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let key = nodes[0].create_key(json!({}));
    for node in &nodes {
        eventually_true("it serves", || node.get("/v1/app/x", &key.secret).status == 200);
    }
    let twice = "SELECT count(*) - count(DISTINCT version) FROM refinery_schema_history";
    assert_eq!(number(&url, twice), 0);
    assert_eq!(number(&url, "SELECT count(*) FROM plans"), 1);
}

fn set_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

#[test]
fn a_migration_that_is_killed_or_cut_off_is_done_by_the_next() {
    let url = wait(Server::shared().create(""));
    // Killed while it waits for a lock of ours in the middle of its transaction.
    let folder = configured(&url);
    sql(&url, "CREATE TABLE held (n INT)");
    wait(async {
        let client = crate::private_postgres::raw(&url).await;
        // Creating a table needs this catalogue, which we have locked.
        client
            .batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_class IN SHARE ROW EXCLUSIVE MODE")
            .await
            .unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_keygate"))
            .args(["migrate", "--config", "keygate.toml"])
            .env_clear()
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let waits = "SELECT count(*) FROM pg_stat_activity
                         WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let beside = crate::private_postgres::raw(&url).await;
        let looked = std::time::Instant::now();
        while beside.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            assert!(looked.elapsed() < crate::support::PATIENCE, "it comes to the lock");
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        client.batch_execute("ROLLBACK").await.unwrap();
    });
    // Cut off: no statement that creates a table is answered.
    let line = Line::to(&url);
    line.set(Mode::CutAfter("CREATE TABLE"));
    let cut = configured(&line.url);
    let told = migrate(cut.path(), &[]);
    assert!(told.code != Some(0) && !told.stderr.contains("panicked"), "{told:?}");
    assert_eq!(migrate(folder.path(), &["--check"]).code, Some(1), "nothing of it stays");
    assert_eq!(migrate(folder.path(), &[]).code, Some(0));
    assert_eq!(migrate(folder.path(), &["--check"]).code, Some(0));
}

#[test]
fn a_node_does_not_start_on_a_newer_schema_and_one_that_runs_goes_on() {
    let url = wait(Server::shared().database());
    let pair = crate::cluster::pair(&url);
    // The schema of a newer Keygate, which only adds to it.
    sql(
        &url,
        "ALTER TABLE keys ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue';
         ALTER TABLE nodes ADD COLUMN build TEXT;
         CREATE TABLE tags (id BIGINT PRIMARY KEY);
         INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
             SELECT max(version) + 1, 'add_tags', '2026-11-24T00:00:00Z', '17' FROM refinery_schema_history",
    );
    let key = pair.key(json!({}));
    pair.first.update_key(&key, &json!({"rate_limit": 7}));
    for node in pair.nodes() {
        assert_eq!(node.get("/v1/app/x", &key.secret).status, 200);
    }
    let folder = configured(&url);
    for args in [["migrate", "--check"].as_slice(), &["migrate"], &["run"]] {
        let told = keygate(folder.path(), &[args, &["--config", "keygate.toml"]].concat());
        assert!(told.code.is_some_and(|code| code != 0), "{told:?}");
        assert!(told.stderr.contains("run the newer Keygate"), "{told:?}");
    }
}

#[test]
fn obstacles_of_a_command_are_reported_with_an_exit_code() {
    let mut server = Server::start();
    let folder = configured(&server.url("postgres"));
    server.stop();
    let told = migrate(folder.path(), &[]);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.stderr.contains("connection to the database refused"), "{told:?}");
    let wrong = tempfile::tempdir().unwrap();
    write_config(wrong.path(), "[store]\nurl = \"postgres://\"\n");
    assert_eq!(migrate(wrong.path(), &[]).code, Some(64));
}
