//! End users on several nodes: never above the plan's quota, however many first requests arrive at once and whatever
//! happens to the database meanwhile; and new end users during a database outage.

use crate::chaos::Mode;
use crate::cluster::{Line, Pair, metric, node, number, pair_with, shared_with, wait};
use crate::private_postgres::Server;
use crate::support::{Gateway, Key, Raw, Request, Spare, eventually_true};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

const QUOTA: usize = 40;

fn plan(quota: usize) -> String {
    format!("[plans.default]\nend_user_quota = {quota}\napi_ops_rate_limit = 1000000\n")
}

fn ask(connection: &mut Raw, key: &Key, name: &str) -> u16 {
    connection.call(&Request::get("/v1/app/x").bearer(&key.secret).header("X-End-User-Id", name)).status
}

/// The existing end users by the customer's names, each with its id.
fn existing(node: &Gateway) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for page in 1.. {
        let data = node.managed("GET", &format!("/endusers?pagesize=100&page={page}"), None);
        let text = |item: &Value, field: &str| item[field].as_str().unwrap().to_owned();
        found.extend(
            data["items"].as_array().unwrap().iter().map(|item| (text(item, "other_id"), text(item, "id"))),
        );
        if data["page"]["hasnext"] == false {
            break;
        }
    }
    found.sort_unstable();
    found
}

/// The names of many new end users by the response they got.
#[derive(Default)]
struct Crowd {
    admitted: BTreeSet<String>,
    /// Without a decision, because the database was late. They may exist or not.
    untold: BTreeSet<String>,
}

impl Crowd {
    fn extend(&mut self, more: Self) {
        self.admitted.extend(more.admitted);
        self.untold.extend(more.untold);
    }

    /// Every admitted end user exists, and every existing one was admitted or has no decision.
    #[track_caller]
    fn is_who_exists(&self, exist: &BTreeSet<String>) {
        let nobody_knows: Vec<_> = self.admitted.difference(exist).collect();
        assert!(nobody_knows.is_empty(), "admitted, and they do not exist: {nobody_knows:?}");
        let nobody_let_in: Vec<_> =
            exist.difference(&self.admitted).filter(|n| !self.untold.contains(*n)).collect();
        assert!(nobody_let_in.is_empty(), "they exist, and were refused: {nobody_let_in:?}");
    }
}

/// The responses to many new end users that come to all of `nodes` at once.
fn told_by(nodes: &[&Gateway], key: &Key, round: &str) -> Crowd {
    let crowd = Mutex::new(Crowd::default());
    std::thread::scope(|scope| {
        for (at, node) in nodes.iter().enumerate() {
            for client in 0..4 {
                let crowd = &crowd;
                scope.spawn(move || {
                    let mut connection = node.connect();
                    for n in 0..15 {
                        // Every other name comes to all nodes, the rest to one each.
                        let owner = if n % 2 == 0 { 9 } else { at };
                        let name = format!("{round} {owner} {client} {n}");
                        match ask(&mut connection, key, &name) {
                            200 => drop(crowd.lock().unwrap().admitted.insert(name)),
                            503 => drop(crowd.lock().unwrap().untold.insert(name)),
                            402 => {}
                            other => panic!("{other}"),
                        }
                    }
                });
            }
        }
    });
    crowd.into_inner().unwrap()
}

#[test]
fn three_nodes_admit_exactly_the_quota_between_them() {
    let url = wait(Server::shared().database());
    let pair = pair_with([&url, &url], &plan(QUOTA));
    let third = node(&pair._origin, &url, "third", &(shared_with(&pair.first) + &plan(QUOTA)));
    let key = pair.key(json!({"rate_limit": 1_000_000}));
    let nodes = [&pair.first, &pair.second, &third];
    eventually_true("the third knows the key", || third.get("/v1/app/x", &key.secret).status == 200);
    let mut crowd = told_by(&nodes, &key, "crowd");
    if !crowd.untold.is_empty() {
        // On a stalled machine.
        eventually_true("the last places are taken", || {
            crowd.extend(told_by(&nodes, &key, "more"));
            existing(&pair.first).len() >= QUOTA
        });
    }
    let exist: BTreeSet<String> = existing(&pair.first).into_iter().map(|(name, _)| name).collect();
    assert_eq!(exist.len(), QUOTA);
    crowd.is_who_exists(&exist);
}

#[test]
fn the_quota_holds_while_connections_are_cut_under_it() {
    let url = wait(Server::shared().database());
    let lines = [Line::to(&url), Line::to(&url)];
    let pair = pair_with([&lines[0].url, &lines[1].url], &plan(QUOTA));
    let key = pair.key(json!({"rate_limit": 1_000_000}));
    let nodes = pair.nodes();
    let mut crowd = Crowd::default();
    for (round, mode) in [Mode::CutAfter("COMMIT"), Mode::Cut, Mode::CutAfter("INSERT"), Mode::HangIfOld]
        .into_iter()
        .enumerate()
    {
        crowd.extend(std::thread::scope(|scope| {
            let all = scope.spawn(|| told_by(&nodes, &key, &format!("cut {round}")));
            lines[0].set(mode);
            let more = told_by(&nodes[..1], &key, &format!("cut {round} too"));
            lines[0].set(Mode::Pass);
            let mut all = all.join().unwrap();
            all.extend(more);
            all
        }));
    }
    eventually_true("the last places are taken", || {
        crowd.extend(told_by(&nodes, &key, "calm"));
        existing(&pair.first).len() >= QUOTA
    });
    let exist: BTreeSet<String> = existing(&pair.first).into_iter().map(|(name, _)| name).collect();
    assert_eq!(exist.len(), QUOTA);
    // An end user refused because the database did not answer may exist all the same: the answer was lost, not the write.
    crowd.is_who_exists(&exist);
    let counted = number(&url, "SELECT end_users FROM workspaces WHERE id = 'default'");
    assert_eq!(usize::try_from(counted).unwrap(), QUOTA, "the count is kept in step");
}

#[test]
fn no_request_waits_for_a_database_known_to_be_unreachable() {
    let url = wait(Server::shared().database());
    let line = Line::to(&url);
    let pair = pair_with([&url, &line.url], &plan(QUOTA));
    let key = pair.key(json!({}));
    line.set(Mode::Hang);
    let mut connection = pair.second.connect();
    assert_eq!(ask(&mut connection, &key, "first to find out"), 503);
    let begun = Spare::begin();
    let mut waited = 0;
    for n in 0..20 {
        let asked = Spare::begin();
        assert_eq!(ask(&mut connection, &key, &format!("next {n}")), 503);
        waited += usize::from(asked.elapsed() > Duration::from_millis(500));
    }
    // One request a second tries whether the database is back, and waits for that.
    assert!(waited <= 2 && begun.elapsed() < Duration::from_secs(8), "{waited} in {:?}", begun.elapsed());
    line.set(Mode::Pass);
    eventually_true("new ones are welcome again", || ask(&mut connection, &key, "next 3") == 200);
}

/// Two nodes that admit new end users also without the database, at most `at_most` each.
fn generous(quota: usize, at_most: usize) -> (Pair, [Line; 2], Key) {
    let url = wait(Server::shared().database());
    let lines = [Line::to(&url), Line::to(&url)];
    let more = format!(
        "{}[end_users]\nwhen_store_is_gone = \"admit\"\nunsettled_entries = {at_most}\n",
        plan(quota)
    );
    let pair = pair_with([&lines[0].url, &lines[1].url], &more);
    let key = pair.key(json!({}));
    (pair, lines, key)
}

#[test]
fn end_users_admitted_without_the_database_are_settled_when_it_is_back() {
    let (pair, lines, key) = generous(6, 100);
    let mut connections = pair.nodes().map(Gateway::connect);
    assert_eq!(ask(&mut connections[0], &key, "before"), 200);
    lines.iter().for_each(|line| line.set(Mode::Hang));
    for name in ["a", "b", "a", "b"] {
        assert_eq!(ask(&mut connections[0], &key, name), 200);
    }
    // Both nodes admit this one without knowing of the other.
    for connection in &mut connections {
        assert_eq!(ask(connection, &key, "both"), 200);
    }
    assert_eq!(metric(&pair.first, "keygate_end_users_unsettled"), "3");
    lines.iter().for_each(|line| line.set(Mode::Pass));
    for node in pair.nodes() {
        eventually_true("all are settled", || metric(node, "keygate_end_users_unsettled") == "0");
        assert_eq!(metric(node, "keygate_end_users_over_quota_total"), "0");
    }
    let exist = existing(&pair.first);
    let names: Vec<&str> = exist.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "b", "before", "both"]);
    let id = |name: &str| exist.iter().find(|(n, _)| n == name).unwrap().1.clone();
    eventually_true("all usage is stored", || pair.first.logs(&key).len() == 7);
    let rows = pair.first.logs(&key);
    let of = |name: &str| rows.iter().filter(|row| row["end_user_id"] == json!(id(name))).count();
    assert_eq!([of("a"), of("b")], [2, 2], "usage names them by the id that they have now");
    assert_eq!(ask(&mut connections[1], &key, "both"), 200);
}

#[test]
fn end_users_over_the_quota_are_refused_once_confirmed() {
    let (pair, lines, key) = generous(3, 100);
    let mut connection = pair.first.connect();
    assert_eq!(ask(&mut connection, &key, "x"), 200);
    assert_eq!(ask(&mut connection, &key, "y"), 200);
    lines[0].set(Mode::Hang);
    let told: Vec<u16> = ["a", "b", "c", "d", "x"].map(|name| ask(&mut connection, &key, name)).into();
    assert_eq!(
        told,
        [200, 200, 200, 503, 200],
        "no more than the quota in one workspace; who is known passes"
    );
    lines[0].set(Mode::Pass);
    eventually_true("all are settled", || metric(&pair.first, "keygate_end_users_unsettled") == "0");
    assert_eq!(metric(&pair.first, "keygate_end_users_over_quota_total"), "2");
    assert_eq!(metric(&pair.first, "keygate_end_users_unseen_total"), "3");
    assert_eq!(existing(&pair.first).len(), 3, "there never are more than the plan allows");
    let told: Vec<u16> = ["a", "b", "c"].map(|name| ask(&mut connection, &key, name)).into();
    assert_eq!(told.iter().filter(|status| **status == 200).count(), 1, "{told:?}");
    assert_eq!(told.iter().filter(|status| **status == 402).count(), 2, "{told:?}");
}

#[test]
fn no_more_are_admitted_unseen_than_configured() {
    let (pair, lines, key) = generous(1_000, 2);
    lines[0].set(Mode::Cut);
    let mut connection = pair.first.connect();
    let told: Vec<u16> = ["a", "b", "c", "a"].map(|name| ask(&mut connection, &key, name)).into();
    assert_eq!(told, [200, 200, 503, 200]);
    lines[0].set(Mode::Pass);
    eventually_true("there is room again", || ask(&mut connection, &key, "c") == 200);
    eventually_true("all three are settled", || existing(&pair.first).len() == 3);
}
