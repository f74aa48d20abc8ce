//! The embedded store only: one file, one process, one schema.

use crate::ledger::what_is_hidden_until_2223_comes_back;
use crate::place::{Place, T0, new_key, record, someone, workspace_id};
use keygate::model::usage::UsageRecord;
use keygate::store::sqlite::{SqliteOptions, SqliteStore, check, migrate};
use keygate::store::{Change, Feed as _, KeyFilter, Keys as _, Store as _, StoreError, Version};
use rusqlite::Connection;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, &SqliteOptions { busy_timeout: Duration::ZERO, readers: 1, queue: 1 })
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> String {
    match outcome.unwrap_err() {
        StoreError::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_second_process_is_refused_and_told_who_has_it() {
    let place = Place::sqlite().await;
    let why = refusal(open(&place.path()));
    assert!(why.contains(&format!("in use by another Keygate (pid {})", std::process::id())), "{why}");
    let why = refusal(migrate(&place.path()));
    assert!(why.contains("in use by another Keygate"), "{why}");
    // Reading is allowed at any time.
    assert!(check(&place.path()).unwrap().pending.is_empty());
}

#[tokio::test]
async fn closing_lets_go_of_the_file_and_refuses_calls() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("k.db");
    let store = open(&path).unwrap();
    store.close().await;
    let error = store.version().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    open(&path).unwrap().close().await;
    store.close().await;
}

#[tokio::test]
async fn folder_and_files_are_the_owners_alone() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("data").join("deep");
    let store = open(&folder.join("k.db")).unwrap();
    assert_eq!(mode(&folder), 0o700);
    for file in ["k.db", "k.db.lock", "k.db-wal"] {
        assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
    }
    store.close().await;
}

#[tokio::test]
async fn migrations_are_applied_once_and_checking_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("k.db");
    let before = check(&path).unwrap();
    assert!(before.applied.is_empty() && before.pending[0].name == "initial", "{before:?}");
    assert!(!path.exists());
    let after = migrate(&path).unwrap();
    assert_eq!((&after.applied, after.pending.len()), (&before.pending, 0));
    assert_eq!(migrate(&path).unwrap(), after);
    assert_eq!(check(&path).unwrap(), after);
    open(&path).unwrap().close().await;
    assert_eq!(check(&path).unwrap(), after);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("k.db");
    migrate(&path).unwrap();
    let raw = Connection::open(&path).unwrap();
    raw.execute_batch(
        "INSERT INTO refinery_schema_history SELECT 9999, 'future', applied_on, checksum FROM refinery_schema_history LIMIT 1",
    )
    .unwrap();
    for why in [refusal(open(&path)), refusal(migrate(&path)), refusal(check(&path))] {
        assert!(why.contains("9999") && why.contains("newer"), "{why}");
    }
}

#[tokio::test]
async fn foreign_databases_are_refused_and_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("k.db");
    let text = "this is a letter to my grandmother, and it is longer than a header. ".repeat(20);
    std::fs::write(&path, &text).unwrap();
    for why in [refusal(open(&path)), refusal(check(&path))] {
        assert!(why.contains("is not a Keygate database"), "{why}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

    let other = folder.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE recipes (name TEXT)").unwrap();
    let bytes = std::fs::read(&other).unwrap();
    for why in [refusal(open(&other)), refusal(check(&other))] {
        assert!(why.contains("is not a Keygate database"), "{why}");
    }
    assert_eq!(std::fs::read(&other).unwrap(), bytes);
}

#[tokio::test]
async fn a_locked_file_is_unavailable_and_says_no_sql() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("k.db");
    let store = open(&path).unwrap();
    let raw = Connection::open(&path).unwrap();
    raw.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.create_key(new_key(&workspace_id("w"), "k"), &someone(), T0).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(error.to_string(), "store unavailable: the database file is locked");
    // Readers are not affected, and the writer continues when the lock is released.
    assert_eq!(store.version().await.unwrap(), Version(0));
    raw.execute_batch("ROLLBACK").unwrap();
    let error = store.create_key(new_key(&workspace_id("w"), "k"), &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound("workspace")), "{error}");
    store.close().await;
}

#[tokio::test]
async fn a_record_is_refused_for_its_content_and_all_else_is_the_stores_fault() {
    let place = Place::sqlite().await;
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let other = Connection::open(place.path()).unwrap();
    let odd = UsageRecord { endpoint: "/odd".into(), ..record(&key, T0) };
    let sql = "CREATE TRIGGER picky BEFORE INSERT ON usage WHEN new.endpoint = '/odd'
               BEGIN SELECT RAISE(ABORT, 'not this one'); END";
    other.execute_batch(sql).unwrap();
    let error = place.append(std::slice::from_ref(&odd)).await.unwrap_err();
    assert!(error.is_content(), "{error}");
    other.execute_batch("DROP TRIGGER picky; ALTER TABLE usage RENAME TO hidden").unwrap();
    let error = place.append(std::slice::from_ref(&odd)).await.unwrap_err();
    assert!(!error.is_content(), "{error}");
    other.execute_batch("ALTER TABLE hidden RENAME TO usage").unwrap();
    assert_eq!(place.append(std::slice::from_ref(&odd)).await.unwrap(), 1);
}

#[tokio::test]
async fn records_hidden_by_a_clock_that_was_ahead_reappear() {
    let place = Place::sqlite().await;
    let other = Connection::open(place.path()).unwrap();
    what_is_hidden_until_2223_comes_back(&place, async |sql| other.execute_batch(sql).unwrap()).await;
}

#[tokio::test]
async fn broken_rows_are_named_and_stop_nobody_else() {
    let place = Place::sqlite().await;
    let w = place.tenant("w1").await;
    let sound = place.key_in(&w, "sound").await.key.id;
    let raw = Connection::open(place.path()).unwrap();
    for (n, damage) in [
        "kind = 'spaceship'",
        "scopes = 'app,a b'",
        "rate_limit = -1",
        "rate_limit = 4294967296",
        "daily_request_limit = -9223372036854775808",
        "quota_limit = -1",
        "limits = '[{'",
        "limits = '[{\"count\":\"requests\",\"per\":\"aeon\",\"max\":1}]'",
        "allowed_ips = '[\"nonsense\"]'",
        "expires_at = 9223372036854775807",
        "resource_id = CAST(x'ff' AS TEXT)",
        "workspace_id = 'not an id'",
        "digest = x'00'",
        "pepper_version = NULL",
        "secret_id = NULL",
        "secret_id = 4294967296",
        "old_digest = zeroblob(32), old_pepper_version = 1, old_secret_id = 1, old_valid_until = NULL",
        "version = version + 0, digest = NULL",
    ]
    .into_iter()
    .enumerate()
    {
        let id = place.key_in(&w, &format!("broken {n}")).await.key.id;
        raw.pragma_update(None, "foreign_keys", false).unwrap();
        let hit = raw.execute(&format!("UPDATE keys SET {damage} WHERE id = ?1"), [id.0.as_bytes()]).unwrap();
        assert_eq!(hit, 1);
        let (_, changes) = place.all_changes(Version(0)).await;
        let broken = changes.iter().find_map(|change| match change {
            Change::Broken { table: "keys", id: named, why, .. } if *named == id.to_string() => {
                Some(why.clone())
            }
            _ => None,
        });
        let why = broken.unwrap_or_else(|| panic!("not noticed: {damage}: {changes:?}"));
        let column = damage.split(' ').next().unwrap();
        assert!(
            why.starts_with(column) || why.starts_with("digest") || why.starts_with("old_"),
            "{damage}: {why}"
        );
        assert!(changes.iter().any(|change| matches!(change, Change::Key(key) if key.key.id == sound)));
    }
    let listed = place.keys(&w, &KeyFilter::default(), crate::place::everything()).await.unwrap();
    assert!(listed.items.iter().any(|key| key.key.id == sound), "{listed:?}");
    assert_eq!(listed.items.len() as u64 + listed.passed_over, listed.total);
    assert!(listed.passed_over > 5, "{}", listed.passed_over);
}

#[tokio::test]
async fn broken_plans_and_workspaces_are_named() {
    let place = Place::sqlite().await;
    place.tenant("w1").await;
    let raw = Connection::open(place.path()).unwrap();
    raw.pragma_update(None, "foreign_keys", false).unwrap();
    raw.execute_batch("UPDATE plans SET api_ops_rate_limit = -1; UPDATE workspaces SET plan_id = '?';")
        .unwrap();
    assert_eq!(place.feed(Version(0)).await, ["broken plans basic", "broken workspaces w1"]);
}
