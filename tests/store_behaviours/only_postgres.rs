//! PostgreSQL only: several stores on one database, and a server that hangs, dies, refuses or holds invalid data.

use crate::ledger::what_is_hidden_until_2223_comes_back;
use crate::place::{
    Place, T0, after, credential, everything, new_key, open_postgres, patient, plan, plan_id, record,
    someone, workspace_id,
};
use crate::private_postgres::{Server, raw};
use crate::spare::Spare;
use keygate::clock::Timestamp;
use keygate::model::calendar::Calendar;
use keygate::model::digest::Digest;
use keygate::model::id::{KeyId, WorkspaceId};
use keygate::model::usage::UsageRecord;
use keygate::model::usage::UsageTotals;
use keygate::store::Version;
use keygate::store::postgres::PostgresUrl;
use keygate::store::postgres::{PgOptions, PgStore, check, migrate};
use keygate::store::{Change, EndUserAdmission, Feed as _, KeyFilter, Keys as _};
use keygate::store::{NodeReport, Nodes as _, PlanPatch, Store, StoreError, Tenants as _};
use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_postgres::AsyncMessage;

/// The timeout of steps that no promise is about.
const PATIENCE: Duration = Duration::from_secs(60);

/// Short timeouts, for a server that does not answer.
fn hasty() -> PgOptions {
    let timeout = Duration::from_millis(500);
    PgOptions { connections: 4, connect_timeout: timeout, statement_timeout: timeout }
}

async fn open(url: &str, options: &PgOptions) -> Result<PgStore, StoreError> {
    PgStore::open(&url.parse().unwrap(), options, Handle::current()).await
}

fn database_of(url: &str) -> &str {
    url.rsplit('/').next().unwrap().split('?').next().unwrap()
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> String {
    match outcome.unwrap_err() {
        StoreError::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

fn unavailable<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> String {
    match outcome.unwrap_err() {
        StoreError::Unavailable(why) => why,
        other => panic!("{other:?}"),
    }
}

/// Repeats a call until it succeeds: a restarted server needs a moment, and a machine may be too slow for [`hasty`].
async fn at_last<T>(mut ask: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    let limit = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(error.is_transient() && Instant::now() < limit, "{error}"),
        }
    }
}

async fn recovered(store: &PgStore) -> Version {
    at_last(async || store.version().await).await
}

// === a server that closes connections ===

/// Access to the database at `url` through a proxy. Once `doomed` is set, older connections are closed at their next
/// message, like those that the server has just closed.
async fn by_way_of_doom(url: &str, doomed: watch::Receiver<u32>) -> String {
    let place: PostgresUrl = url.parse().unwrap();
    let (host, port) = place.hosts[0].clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    let there = format!("{host}:{port}");
    let through = url.replace(&there, &here.to_string());
    assert_ne!(through, url);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (there, doomed) = (there.clone(), doomed.clone());
            let born = *doomed.borrow();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(there).await.unwrap();
                let (mut said, mut answered) = ([0; 4_096], [0; 4_096]);
                loop {
                    // When one side ends, so does the other.
                    tokio::select! {
                        n = client.read(&mut said) => match n {
                            Ok(n @ 1..) if born == *doomed.borrow() => server.write_all(&said[..n]).await.unwrap(),
                            _ => return,
                        },
                        n = server.read(&mut answered) => match n {
                            Ok(n @ 1..) => client.write_all(&answered[..n]).await.unwrap(),
                            _ => return,
                        },
                    }
                }
            });
        }
    });
    through
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_on_a_closed_connection_is_repeated() {
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let (doom, doomed) = watch::channel(0);
    let url = by_way_of_doom(place.url(), doomed).await;
    let store = Arc::new(open(&url, &PgOptions { connections: 4, ..patient() }).await.unwrap());
    for round in 1..=3 {
        let mut busy = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (store, w) = (Arc::clone(&store), w.clone());
            busy.spawn(async move { store.workspace(&w).await });
        }
        assert!(busy.join_all().await.iter().all(Result::is_ok));
        doom.send_replace(round);
        // Nothing had begun, so writes may be repeated as well as reads.
        let (key, by) = (new_key(&w, &format!("after round {round}")), someone());
        let (read, written) = tokio::join!(store.workspace(&w), store.create_key(key, &by, T0));
        assert!(read.unwrap().is_some());
        written.unwrap();
    }
}

// === several stores on one database ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_see_each_others_changes() {
    let place = Place::postgres().await;
    let other = open_postgres(place.url()).await;
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    assert_eq!(other.key(&w, key.key.id).await.unwrap(), Some(key.clone()));
    let deleted = other.delete_key(&w, key.key.id, &someone(), T0).await.unwrap().version;
    assert_eq!(place.version().await.unwrap(), deleted);
    assert_eq!(place.feed(Version(deleted.0 - 1)).await, [format!("key {} removed", key.key.id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_follows_many_writers_misses_nothing() {
    const WRITERS: usize = 8;
    const WRITES: usize = 200;
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let stores = [Arc::clone(&place.store), Arc::new(open_postgres(place.url()).await) as Arc<dyn Store>];
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, w) = (Arc::clone(&stores[writer % 2]), w.clone());
            tokio::spawn(async move {
                let mut made = Vec::with_capacity(WRITES);
                for n in 0..WRITES {
                    let key = new_key(&w, &format!("{writer}-{n}"));
                    made.push(store.create_key(key, &someone(), T0).await.unwrap().value.key.id);
                }
                made
            })
        })
        .collect();
    // Never reads a number twice: one that became visible late would be lost.
    let follow = async {
        let (mut reached, mut seen) = (Version(0), HashSet::new());
        while seen.len() < WRITERS * WRITES {
            let (next, changes) = place.all_changes(reached).await;
            for change in changes {
                if let Change::Key(key) = change {
                    assert!(key.version > reached && key.version <= next, "{} {reached} {next}", key.version);
                    assert!(seen.insert(key.key.id), "a key came twice");
                }
            }
            reached = next;
        }
        seen
    };
    let seen = tokio::time::timeout(Duration::from_mins(2), follow).await.expect("a change was missed");
    for writer in writers {
        assert!(writer.await.unwrap().iter().all(|id| seen.contains(id)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_wakes_the_other_store_at_once() {
    let place = Place::postgres().await;
    let other = open_postgres(place.url()).await;
    place.tenant("w1").await;
    // Once when it begins to listen, for everything written before.
    other.changed().await;
    while tokio::time::timeout(Duration::from_millis(200), other.changed()).await.is_ok() {}
    let mut waits = Vec::new();
    for n in 0..21 {
        let named = PlanPatch { description: Some(n.to_string()), ..PlanPatch::default() };
        place.update_plan(&plan_id("basic"), named, &someone(), T0).await.unwrap();
        let start = Spare::begin();
        let woken = tokio::time::timeout(PATIENCE, other.changed()).await;
        assert!(woken.is_ok(), "write {n} was not heard");
        waits.push(start.elapsed());
    }
    // The median: a busy machine may delay one of them.
    waits.sort_unstable();
    assert!(waits[10] < Duration::from_millis(100), "{waits:?}");
    let refused = announced(place.url(), async {
        place.create_plan(plan("basic"), &someone(), T0).await.unwrap_err();
    });
    assert_eq!(refused.await, 0, "a refused write wakes nobody");
}

/// The number of notifications while `work` runs.
async fn announced(url: &str, work: impl Future<Output = ()>) -> usize {
    let (client, mut connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    let (tell, mut told) = mpsc::channel(100);
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(word) = message {
                tell.send(word.payload().to_owned()).await.ok();
            }
        }
    });
    client.batch_execute("LISTEN keygate_changes").await.unwrap();
    work.await;
    // Notifications arrive in the order in which they were sent.
    client.batch_execute("NOTIFY keygate_changes, 'that is all'").await.unwrap();
    let mut before = 0;
    while told.recv().await.unwrap() != "that is all" {
        before += 1;
    }
    before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_500_new_end_users_on_two_stores_exactly_the_quota_exists() {
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let stores = [Arc::clone(&place.store), Arc::new(open_postgres(place.url()).await) as Arc<dyn Store>];
    let calls: Vec<_> = (0..500)
        .map(|n: usize| {
            let (store, w) = (Arc::clone(&stores[n % 2]), w.clone());
            tokio::spawn(async move { store.admit_end_user(&w, &format!("u{n}"), T0).await.unwrap() })
        })
        .collect();
    let mut admitted = HashSet::new();
    for call in calls {
        match call.await.unwrap() {
            EndUserAdmission::Admitted(id) => assert!(admitted.insert(id)),
            EndUserAdmission::Full { quota } => assert_eq!(quota, crate::place::PLAN_END_USERS),
        }
    }
    assert_eq!(admitted.len(), 100);
    assert_eq!(place.workspace(&w).await.unwrap().unwrap().end_users, 100);
    assert_eq!(place.end_users(&w, None, everything()).await.unwrap().total, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_append_at_once_count_every_record_once() {
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let keys = [place.key_in(&w, "a").await, place.key_in(&w, "b").await];
    let stores = [Arc::clone(&place.store), Arc::new(open_postgres(place.url()).await) as Arc<dyn Store>];
    // Both write the same records in opposite order, so that they conflict in the rows and in the roll-ups.
    let batches: Vec<Vec<_>> = (0..10)
        .map(|n| (0..50).map(|m| record(&keys[usize::from(m % 2 == 0)], after(60 * n + m))).collect())
        .collect();
    let both: Vec<_> = stores
        .into_iter()
        .enumerate()
        .map(|(node, store)| {
            let mut batches = batches.clone();
            if node == 1 {
                batches.reverse();
                batches.iter_mut().for_each(|batch| batch.reverse());
            }
            tokio::spawn(async move {
                let mut new = 0;
                for batch in &batches {
                    new += store.append(batch).await.unwrap();
                }
                new
            })
        })
        .collect();
    let mut new = 0;
    for node in both {
        new += node.await.unwrap();
    }
    assert_eq!(new, 500);
    for key in &keys {
        let stats = place.stats(&w, key.key.id, T0).await.unwrap().unwrap();
        assert_eq!((stats.total_requests, stats.response_time.count), (250, 250));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_has_a_partition_that_goes_as_a_whole() {
    const DAY: Duration = Duration::from_hours(24);
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let server = raw(place.url()).await;
    let row = server.query_one("SELECT (extract(epoch FROM now()) * 1000000)::bigint", &[]).await.unwrap();
    let now = Timestamp::from_micros(row.get(0));
    let partitions = async || {
        let sql = "SELECT count(*), (SELECT count(*) FROM usage_odd) FROM pg_inherits WHERE inhparent = 'usage'::regclass";
        let row = server.query_one(sql, &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    // A clock that is a month fast: its rows wait until their day is near enough.
    let early = record(&key, now.plus(DAY * 30));
    place.append(std::slice::from_ref(&early)).await.unwrap();
    assert_eq!(partitions().await, (1, 1), "the default one only");
    place.append(&[record(&key, now.minus(DAY * 9)), record(&key, now)]).await.unwrap();
    assert_eq!(partitions().await, (3, 1));
    let made = place.maintain(now).await.unwrap().partitions_made;
    assert_eq!((made, partitions().await), (4, (7, 1)), "yesterday and three days ahead");

    let patch = PlanPatch { usage_retention_days: Some(Some(7)), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), patch, &someone(), T0).await.unwrap();
    // A node whose clock is a year fast deletes nothing.
    let done = place.maintain(now.plus(DAY * 365)).await.unwrap();
    assert_eq!((done.partitions_dropped, done.records_deleted), (1, 0));
    assert_eq!(partitions().await, (6, 1));
    assert_eq!(place.append(std::slice::from_ref(&early)).await.unwrap(), 0, "it is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_move_out_of_the_default_partition_when_their_day_gets_its_own() {
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let server = raw(place.url()).await;
    let row = server.query_one("SELECT (extract(epoch FROM now()) * 1000000)::bigint", &[]).await.unwrap();
    let records: Vec<_> = (0..3).map(|_| record(&key, Timestamp::from_micros(row.get(0)))).collect();
    place.append(&records).await.unwrap();
    // As if they had arrived before the partition for the day existed.
    let undo = "CREATE TABLE kept AS SELECT * FROM usage; DO $$ DECLARE part text; BEGIN
                    SELECT inhrelid::regclass::text INTO part FROM pg_inherits
                        WHERE inhparent = 'usage'::regclass AND inhrelid <> 'usage_odd'::regclass;
                    EXECUTE 'DROP TABLE ' || part; END $$;
                INSERT INTO usage SELECT * FROM kept";
    server.batch_execute(undo).await.unwrap();
    place.maintain(Timestamp::from_micros(row.get(0))).await.unwrap();
    let odd: i64 = server.query_one("SELECT count(*) FROM usage_odd", &[]).await.unwrap().get(0);
    let all: i64 = server.query_one("SELECT count(*) FROM usage", &[]).await.unwrap().get(0);
    assert_eq!((odd, all), (0, 3));
    assert_eq!(place.append(&records).await.unwrap(), 0, "the same records again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_refused_for_its_content_and_all_else_is_the_stores_fault() {
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let server = raw(place.url()).await;
    let odd = UsageRecord { endpoint: "/odd".into(), ..record(&key, T0) };
    let refused = async |sql: &str| {
        server.batch_execute(sql).await.unwrap();
        place.append(std::slice::from_ref(&odd)).await.unwrap_err()
    };
    let error = refused("ALTER TABLE usage ADD CONSTRAINT picky CHECK (endpoint <> '/odd')").await;
    assert!(error.is_content(), "{error}");
    for (broken, mended) in [
        (
            "ALTER TABLE usage DROP CONSTRAINT picky; ALTER TABLE usage_rollups RENAME TO hidden",
            "ALTER TABLE hidden RENAME TO usage_rollups",
        ),
        ("ALTER TABLE usage RENAME COLUMN node TO hidden", "ALTER TABLE usage RENAME COLUMN hidden TO node"),
        (
            "CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 RAISE EXCEPTION 'no' USING ERRCODE = 'insufficient_privilege'; END $$;
             CREATE TRIGGER forbidden BEFORE INSERT ON usage FOR EACH ROW EXECUTE FUNCTION forbid()",
            "DROP TRIGGER forbidden ON usage",
        ),
    ] {
        let error = refused(broken).await;
        assert!(!error.is_content(), "{broken}: {error}");
        server.batch_execute(mended).await.unwrap();
    }
    assert_eq!(place.append(std::slice::from_ref(&odd)).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_refused_at_its_beginning_spoils_no_connection() {
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let server = raw(place.url()).await;
    for n in 0..10 {
        server.batch_execute("ALTER TABLE usage RENAME COLUMN node TO hidden").await.unwrap();
        let error = place.append(&[record(&key, T0)]).await.unwrap_err();
        assert!(error.to_string().contains("42703"), "{n}: {error}");
        server.batch_execute("ALTER TABLE usage RENAME COLUMN hidden TO node").await.unwrap();
        assert_eq!(place.append(&[record(&key, T0)]).await.unwrap(), 1, "{n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_hidden_by_a_clock_that_was_ahead_reappear() {
    let place = Place::postgres().await;
    let server = raw(place.url()).await;
    what_is_hidden_until_2223_comes_back(&place, async |sql| server.batch_execute(sql).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_partition_does_not_end_maintenance() {
    const DAY: Duration = Duration::from_hours(24);
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    let server = raw(place.url()).await;
    let row = server.query_one("SELECT (extract(epoch FROM now()) * 1000000)::bigint", &[]).await.unwrap();
    let now = Timestamp::from_micros(row.get(0));
    let days = [20, 15, 10, 5, 0].map(|ago| record(&key, now.minus(DAY * ago)));
    place.append(&days).await.unwrap();
    let patch = PlanPatch { usage_retention_days: Some(Some(7)), ..PlanPatch::default() };
    place.update_plan(&plan_id("basic"), patch, &someone(), T0).await.unwrap();
    let oldest = "SELECT min(inhrelid::regclass::text) FROM pg_inherits
                  WHERE inhparent = 'usage'::regclass AND inhrelid <> 'usage_odd'::regclass";
    let oldest: String = server.query_one(oldest, &[]).await.unwrap().get(0);
    server.batch_execute(&format!("BEGIN; LOCK TABLE {oldest} IN ACCESS SHARE MODE")).await.unwrap();
    let done = place.maintain(now).await.unwrap();
    assert_eq!(
        (done.partitions_dropped, done.records_deleted),
        (0, 3),
        "one by one, because they are hidden"
    );
    assert!(done.rollups_deleted > 0);
    server.batch_execute("COMMIT").await.unwrap();
    assert_eq!(place.maintain(now).await.unwrap().partitions_dropped, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_seen_by_the_clock_they_share() {
    let place = Place::postgres().await;
    let other = open_postgres(place.url()).await;
    let node = |name: &str, boot, reached| NodeReport {
        boot: uuid::Uuid::from_u128(boot),
        name: name.into(),
        admin: Some("10.0.0.1:8081".into()),
        reached: Version(reached),
    };
    place.report(&node("b", 1, 5)).await.unwrap();
    other.report(&node("a", 2, 4)).await.unwrap();
    other.report(&node("a", 2, 6)).await.unwrap();
    raw(place.url())
        .await
        .batch_execute("UPDATE nodes SET seen_at = seen_at - 11000000 WHERE name = 'b'")
        .await
        .unwrap();
    let nodes = place.nodes().await.unwrap();
    let facts: Vec<_> = nodes.iter().map(|n| (&*n.name, n.reached, n.is_live())).collect();
    assert_eq!(facts, [("a", Version(6), true), ("b", Version(5), false)]);
    assert_eq!(nodes[0].admin.as_deref(), Some("10.0.0.1:8081"));
    place.leave(uuid::Uuid::from_u128(2)).await.unwrap();
    assert_eq!(place.nodes().await.unwrap().len(), 1);
}

// === the schema ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_nodes_that_start_at_once_one_migrates() {
    let url = Server::shared().create("").await;
    let before = check(&url.parse().unwrap(), &patient()).await.unwrap();
    assert!(before.applied.is_empty() && !before.pending.is_empty(), "{before:?}");
    let starts: Vec<_> = (0..6)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { open(&url, &patient()).await.map(drop) })
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
    let after = check(&url.parse().unwrap(), &patient()).await.unwrap();
    assert_eq!((&after.applied, after.pending.len()), (&before.pending, 0));
    let history = "SELECT count(*) FROM refinery_schema_history";
    let lines: i64 = raw(&url).await.query_one(history, &[]).await.unwrap().get(0);
    assert_eq!(usize::try_from(lines).unwrap(), after.applied.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_was_cut_off_is_done_again() {
    // The table that refinery creates before the transaction of the migrations: all that a crash can leave.
    let url = Server::shared().create("").await;
    let client = raw(&url).await;
    client
        .batch_execute(
            "CREATE TABLE refinery_schema_history
                 (version INT4 PRIMARY KEY, name VARCHAR(255), applied_on VARCHAR(255), checksum VARCHAR(255))",
        )
        .await
        .unwrap();
    assert!(!check(&url.parse().unwrap(), &patient()).await.unwrap().pending.is_empty());
    let store = open(&url, &patient()).await.unwrap();
    assert_eq!(store.version().await.unwrap(), Version(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_migrated_stores_are_refused_and_unchanged() {
    let url = Server::shared().create("").await;
    let client = raw(&url).await;
    client.batch_execute("CREATE TABLE keys (mine INT)").await.unwrap();
    let why = refusal(open(&url, &patient()).await);
    assert!(why.contains("the schema cannot be brought up to date"), "{why}");
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'refinery_schema_history'";
    let left: i64 = client.query_one(tables, &[]).await.unwrap().get(0);
    assert_eq!(left, 1, "nothing of a migration that failed stays");
    client.batch_execute("DROP TABLE keys").await.unwrap();
    open(&url, &patient()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_is_not_ours_is_refused() {
    for (damage, expected) in [
        ("UPDATE refinery_schema_history SET checksum = '17' WHERE version = 1", "migration 1 "),
        ("UPDATE refinery_schema_history SET checksum = 'x' WHERE version = 1", "not written by Keygate"),
        ("UPDATE refinery_schema_history SET applied_on = NULL WHERE version = 1", "not written by Keygate"),
        ("UPDATE refinery_schema_history SET version = 9999 WHERE version = 1", "schema 9999"),
    ] {
        let url = Server::shared().database().await;
        raw(&url).await.batch_execute(damage).await.unwrap();
        let address: PostgresUrl = url.parse().unwrap();
        for why in [
            refusal(open(&url, &patient()).await),
            refusal(migrate(&address, &patient()).await),
            refusal(check(&address, &patient()).await),
        ] {
            assert!(why.contains(expected), "{damage}: {why}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_not_utf8_is_refused() {
    // ICU, which this server sorts with, supports no other encoding.
    let options = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    let provider = if Server::shared().has_locale_providers() { "LOCALE_PROVIDER libc" } else { "" };
    let url = Server::shared().create(&format!("{options} {provider}")).await;
    let why = refusal(open(&url, &patient()).await);
    assert!(why.contains("SQL_ASCII") && why.contains("UTF8"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_login_is_reported_without_the_password() {
    let server = Server::shared();
    let why = refusal(open(&server.url("nowhere"), &patient()).await);
    assert_eq!(why, "no such database on the server");
    let stranger = server.url("postgres").replace("keygate@", "stranger:hunter2@");
    let error = open(&stranger, &patient()).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)) && !format!("{error:?}").contains("hunter2"), "{error}");
}

// === rows that cannot be ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_rows_are_named_and_stop_nobody_else() {
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let sound = place.key_in(&w, "sound").await.key.id;
    let client = raw(place.url()).await;
    client.batch_execute("SET session_replication_role = replica").await.unwrap();
    for (n, damage) in [
        "kind = 'spaceship'",
        "kind = ''",
        "scopes = 'app,a b'",
        "rate_limit = -1",
        "rate_limit = 4294967296",
        "rate_burst = -1",
        "daily_request_limit = -9223372036854775808",
        "quota_limit = -1",
        "concurrency_limit = 9223372036854775807",
        "limits = '[{'",
        "limits = ''",
        "limits = '[{\"count\":\"requests\",\"per\":\"aeon\",\"max\":1}]'",
        "allowed_ips = '[\"nonsense\"]'",
        "expires_at = 9223372036854775807",
        "workspace_id = 'not an id'",
        "workspace_id = ''",
        "digest = '\\x00'",
        "digest = ''",
        "digest = NULL",
        "pepper_version = NULL",
        "pepper_version = -1",
        "secret_id = NULL",
        "secret_id = 4294967296",
        "old_digest = decode(repeat('00', 32), 'hex'), old_pepper_version = 1, old_secret_id = 1, old_valid_until = NULL",
        "version = -version",
    ]
    .into_iter()
    .enumerate()
    {
        let id = place.key_in(&w, &format!("broken {n}")).await.key.id;
        let hit = client.execute(&format!("UPDATE keys SET {damage} WHERE id = $1"), &[&id.0]).await.unwrap();
        assert_eq!(hit, 1);
        let (_, changes) = place.all_changes(Version(0)).await;
        assert!(changes.iter().any(|change| matches!(change, Change::Key(key) if key.key.id == sound)));
        let served = changes.iter().any(|change| matches!(change, Change::Key(key) if key.key.id == id));
        assert!(!served, "{damage}");
        if damage.starts_with("version") {
            continue;
        }
        let why = changes.iter().find_map(|change| match change {
            Change::Broken { table: "keys", id: named, why, .. } if *named == id.to_string() => {
                Some(why.clone())
            }
            _ => None,
        });
        let why = why.unwrap_or_else(|| panic!("not noticed: {damage}"));
        let column = damage.split(' ').next().unwrap();
        assert!(why.starts_with(column) || why.starts_with("old_"), "{damage}: {why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_plans_and_workspaces_are_named() {
    let place = Place::postgres().await;
    place.tenant("w1").await;
    let damage = "SET session_replication_role = replica;
                  UPDATE plans SET api_ops_rate_limit = -1; UPDATE workspaces SET plan_id = '?';";
    raw(place.url()).await.batch_execute(damage).await.unwrap();
    assert_eq!(place.feed(Version(0)).await, ["broken plans basic", "broken workspaces w1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_roll_up_holds_up_neither_the_ledger_nor_the_start() {
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let (a, b) = (place.key_in(&w, "a").await, place.key_in(&w, "b").await);
    place.append(&[record(&a, T0), record(&b, T0)]).await.unwrap();
    let damage = "UPDATE usage_rollups SET charged = -1 WHERE subject_id = uuid_send($1)";
    raw(place.url()).await.execute(damage, &[&a.key.id.0]).await.unwrap();
    assert_eq!(place.append(&[record(&a, T0), record(&b, T0)]).await.unwrap(), 2);
    assert_eq!(place.stats(&w, b.key.id, T0).await.unwrap().unwrap().total_requests, 2);
    let error = place.stats(&w, a.key.id, T0).await.unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt(why) if why.starts_with("charged")), "{error}");
    let (to, mut from) = mpsc::channel::<Vec<UsageTotals>>(4);
    let collect = async {
        let mut subjects = 0;
        while let Some(batch) = from.recv().await {
            subjects += batch.len();
        }
        subjects
    };
    let (outcome, subjects) = tokio::join!(place.totals(T0, Calendar::UTC, to), collect);
    outcome.unwrap();
    assert_eq!(subjects, 2, "b and the workspace");
}

// === a server that is not well ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_unavailable_in_time_and_welcome_back() {
    let server = Server::start();
    let url = server.database().await;
    let store = Arc::new(at_last(async || open(&url, &hasty()).await).await);
    let before = recovered(&store).await;
    server.freeze();
    let start = Spare::begin();
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.version().await })
        })
        .collect();
    for call in calls {
        unavailable(call.await.unwrap());
    }
    let waited = start.elapsed();
    // Waiting for a connection, opening one, and the statement: half a second each, and half a second of grace.
    assert!(waited < Duration::from_secs(3), "{waited:?}");
    server.thaw();
    assert_eq!(recovered(&store).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_killed_and_restarted_is_welcome_back() {
    let mut server = Server::start();
    let url = server.database().await;
    let store = open(&url, &patient()).await.unwrap();
    let plan = plan("p");
    let made = store.create_plan(plan.clone(), &someone(), T0).await.unwrap().version;
    server.stop();
    unavailable(store.version().await);
    unavailable(store.create_plan(plan, &someone(), T0).await);
    server.start_again();
    assert_eq!(recovered(&store).await, made);
    // The LISTEN connection is back too: it reports once that it may have missed something, and then receives what follows.
    store.changed().await;
    let woken = tokio::time::timeout(PATIENCE, async {
        store.update_plan(&plan_id("p"), PlanPatch::default(), &someone(), T0).await.unwrap();
        store.changed().await;
    });
    woken.await.expect("it listens again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_unavailable_at_once() {
    let mut server = Server::start();
    server.stop();
    let why = unavailable(open(&server.url("postgres"), &hasty()).await);
    assert_eq!(why, "connection to the database refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_no_writes_is_unavailable_for_writes_only() {
    let place = Place::postgres().await;
    place.tenant("w1").await;
    let name = database_of(place.url());
    let read_only = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    Server::shared().superuser("postgres").await.batch_execute(&read_only).await.unwrap();
    let store = open_postgres(place.url()).await;
    let error = store.create_plan(plan("p"), &someone(), T0).await;
    assert_eq!(unavailable(error), "the database is read-only (standby?)");
    assert!(store.plan(&plan_id("basic")).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_takes_too_long_is_broken_off() {
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let store = at_last(async || open(place.url(), &hasty()).await).await;
    let mut client = raw(place.url()).await;
    let lock = client.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE keys IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let start = Spare::begin();
    let why = unavailable(store.keys(&w, &KeyFilter::default(), everything()).await);
    assert!(why.contains("timed out") || why.contains("busy"), "{why}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    lock.rollback().await.unwrap();
    // Its connection still works.
    let keys = at_last(async || store.keys(&w, &KeyFilter::default(), everything()).await).await;
    assert_eq!(keys.total, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_caller_went_away_changes_nothing() {
    let place = Place::postgres().await;
    place.tenant("w1").await;
    let before = place.version().await.unwrap();
    let mut client = raw(place.url()).await;
    let hold = client.transaction().await.unwrap();
    hold.batch_execute("SELECT value FROM change_seq FOR UPDATE").await.unwrap();
    let waiting =
        place.update_plan(&plan_id("basic"), PlanPatch::default(), &someone(), T0).await_briefly().await;
    assert!(waiting.is_none(), "it waits for the row");
    hold.rollback().await.unwrap();
    // The next write waits for the row's lock after the cancelled one, so that one is over by then.
    let next = place.update_plan(&plan_id("basic"), PlanPatch::default(), &someone(), T0).await.unwrap();
    assert_eq!(next.version, Version(before.0 + 1));
}

/// Waits a moment for a result, then gives up.
trait AwaitBriefly: Future + Sized {
    async fn await_briefly(self) -> Option<Self::Output> {
        tokio::time::timeout(Duration::from_millis(300), self).await.ok()
    }
}

impl<F: Future> AwaitBriefly for F {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_finishes_what_runs_and_refuses_what_comes() {
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let calls: Vec<_> = (0..40)
        .map(|n| {
            let (store, w): (Arc<dyn Store>, WorkspaceId) = (Arc::clone(&place.store), w.clone());
            tokio::spawn(async move { store.create_key(new_key(&w, &n.to_string()), &someone(), T0).await })
        })
        .collect();
    place.close().await;
    let mut made = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => made += 1,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
    assert_eq!(unavailable(place.version().await), "the store has been closed");
    let again = open_postgres(place.url()).await;
    assert_eq!(again.keys(&w, &KeyFilter::default(), everything()).await.unwrap().total, made);
    place.close().await;
}

// === limits of connections ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_has_a_name_and_its_limits() {
    let url = Server::shared().database().await;
    let store = Arc::new(open(&url, &PgOptions { connections: 4, ..patient() }).await.unwrap());
    let calls: Vec<_> = (0..64)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.key(&workspace_id("nobody"), KeyId::new(after(n))).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), None);
    }
    let client = raw(&url).await;
    let named = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'keygate' AND datname = $1";
    let count: i64 = client.query_one(named, &[&database_of(&url)]).await.unwrap().get(0);
    assert!((2..=5).contains(&count), "four of the pool and one that listens, not {count}");
}

// === TLS ===

/// A certificate for 127.0.0.1, valid until 2126, and its CA.
const CERTIFICATE: &str = include_str!("certificates/server.crt");
const KEY: &str = include_str!("certificates/server.key");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/store_behaviours/certificates/root.crt");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_as_strict_as_sslmode_says() {
    let mut server = Server::start();
    let plain = server.database().await;
    // The server has no certificate yet.
    let with = |host: &str, asked: &str| plain.replace("127.0.0.1", host).replace("sslmode=disable", asked);
    open(&with("127.0.0.1", "sslmode=prefer"), &patient()).await.unwrap();
    let why = unavailable(open(&with("127.0.0.1", "sslmode=require"), &patient()).await);
    assert_eq!(why, "TLS handshake with the database failed");
    server.stop();
    server.use_certificate(CERTIFICATE, KEY);
    server.start_again();
    let (ca, full) =
        (format!("sslmode=verify-ca&sslrootcert={ROOT}"), format!("sslmode=verify-full&sslrootcert={ROOT}"));
    let require_ca = format!("sslmode=require&sslrootcert={ROOT}");
    for (host, asked, is_encrypted) in [
        ("127.0.0.1", "sslmode=disable", Some(false)),
        ("127.0.0.1", "sslmode=prefer", Some(true)),
        ("127.0.0.1", "sslmode=require", Some(true)),
        ("127.0.0.1", require_ca.as_str(), Some(true)),
        ("127.0.0.1", ca.as_str(), Some(true)),
        ("127.0.0.1", full.as_str(), Some(true)),
        // The name is not in the certificate.
        ("localhost", ca.as_str(), Some(true)),
        ("localhost", full.as_str(), None),
        // The system does not trust its CA.
        ("127.0.0.1", "sslmode=verify-ca", None),
        ("127.0.0.1", "sslmode=verify-full", None),
    ] {
        let opened = open(&with(host, asked), &patient()).await;
        let Some(is_encrypted) = is_encrypted else {
            let why = refusal(opened);
            assert_eq!(why, "the TLS certificate of the database was rejected", "{host} {asked}");
            continue;
        };
        let store = opened.unwrap_or_else(|error| panic!("{host} {asked}: {error}"));
        let looked = store.version().await.unwrap();
        assert_eq!(looked, Version(0));
        let count = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                     WHERE application_name = 'keygate' AND state = 'idle' AND ssl <> $1";
        let wrong: i64 = raw(&plain).await.query_one(count, &[&is_encrypted]).await.unwrap().get(0);
        store.close().await;
        assert_eq!(wrong, 0, "{host} {asked}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_certificate_that_cannot_be_read_is_refused() {
    let url = Server::shared()
        .url("postgres")
        .replace("sslmode=disable", "sslmode=verify-ca&sslrootcert=/nowhere.pem");
    let why = refusal(open(&url, &hasty()).await);
    assert!(why.starts_with("sslrootcert /nowhere.pem cannot be used"), "{why}");
}

// === what is relied upon, and what is not ===

#[tokio::test]
async fn commits_wait_for_the_disk_where_the_database_would_not() {
    let place = Place::postgres().await;
    let client = raw(place.url()).await;
    let database = database_of(place.url());
    let not_by_default = format!("ALTER DATABASE \"{database}\" SET synchronous_commit = off");
    client.batch_execute(&not_by_default).await.unwrap();
    let said = "CREATE TABLE said (how text);
                CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS
                    'BEGIN INSERT INTO said VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END';
                CREATE TRIGGER says AFTER UPDATE ON change_seq FOR EACH ROW EXECUTE FUNCTION say()";
    client.batch_execute(said).await.unwrap();
    let store = open_postgres(place.url()).await;
    store.create_plan(plan("waits"), &someone(), T0).await.unwrap();
    let how: String = client.query_one("SELECT how FROM said", &[]).await.unwrap().get(0);
    assert_eq!(how, "on");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_waits_for_the_write_lock_holds_no_row_of_a_key() {
    let place = Place::postgres().await;
    let w = place.tenant("w1").await;
    let id = place.key_in(&w, "k").await.key.id;
    place.regenerate_key(&w, id, credential(1), Some(after(5)), &someone(), T0).await.unwrap();
    let (mut client, observer) = (raw(place.url()).await, raw(place.url()).await);
    let other_write = client.transaction().await.unwrap();
    other_write.batch_execute("SELECT value FROM change_seq FOR UPDATE").await.unwrap();
    let by = someone();
    // By then the previous secret is to be deleted.
    let delete = place.delete_key(&w, id, &by, after(10));
    let check = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let limit = Instant::now() + PATIENCE;
        while observer.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            assert!(Instant::now() < limit, "the write waits for the lock");
        }
        other_write.batch_execute("SELECT 1 FROM keys FOR UPDATE NOWAIT").await.unwrap();
        other_write.rollback().await.unwrap();
    };
    let (deleted, ()) = tokio::join!(delete, check);
    deleted.unwrap();
}

#[tokio::test]
async fn re_hashing_what_is_re_hashed_waits_for_nobody() {
    let place = Place::postgres().await;
    let key = KeyId::new(T0);
    let mut client = raw(place.url()).await;
    let writing = client.transaction().await.unwrap();
    writing.execute("UPDATE change_seq SET value = value", &[]).await.unwrap();
    let rehash = place.rehash_key(key, Digest([1; 32]), Digest([2; 32]), 2);
    // It would wait for as long as a statement may take.
    assert_eq!(tokio::time::timeout(PATIENCE / 2, rehash).await.expect("at once").unwrap(), None);
    writing.rollback().await.unwrap();
}

#[tokio::test]
async fn a_server_that_sends_too_much_loses_the_connection() {
    const LONG: u32 = 400 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://u:p@{}/d?sslmode=disable", listener.local_addr().unwrap());
    let (tell, mut told) = mpsc::channel(16);
    // However often the connection is tried.
    let lying = tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            client.read(&mut [0; 1_024]).await.unwrap();
            client.write_all(&[&b"S"[..], &LONG.to_be_bytes()].concat()).await.unwrap();
            let (zeros, mut taken) = (vec![0; 65_536], 0_usize);
            while taken < usize::try_from(LONG).unwrap() {
                match client.write(&zeros).await {
                    Ok(n) => taken += n,
                    Err(_) => break,
                }
            }
            tell.send(taken).await.unwrap();
        }
    });
    let why = unavailable(open(&url, &patient()).await);
    assert!(why.contains("more than it may"), "{why}");
    let taken = told.recv().await.unwrap();
    lying.abort();
    // Bytes that were in flight when the connection was closed.
    assert!(taken < 32 << 20, "{taken}");
}
