//! Redis faults that prevent a start, and faults that do not.

use crate::node::{PATIENCE, Setup, TestKey, place};
use crate::redis::RedisServer;
use crate::spare::Spare;
use keygate::counter::RedisEndpoint;
use keygate::model::key::Per;
use keygate::policy::keys::limit::{LimitName, LimitRule};
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn a_redis_that_may_evict_is_refused_with_what_to_set() {
    let server = RedisServer::with(&["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"]);
    let refused = Setup::of(1).try_node("n", server.address).await.err().expect("refused").to_string();
    assert!(
        refused.contains("allkeys-lru") && refused.contains("CONFIG SET maxmemory-policy noeviction"),
        "{refused}"
    );
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    assert!(Setup::of(1).try_node("n", server.address).await.is_ok());
}

#[tokio::test]
async fn a_redis_without_a_ceiling_evicts_nothing_whatever_its_policy() {
    let server = RedisServer::with(&["--maxmemory-policy", "volatile-lru"]);
    assert!(Setup::of(1).try_node("n", server.address).await.is_ok());
}

#[tokio::test]
async fn a_node_starts_without_redis_and_shares() {
    let mut server = RedisServer::start();
    server.stop();
    let node = Setup::of(1).node("n", server.address).await;
    let key = TestKey::window(Per::Day, 10);
    assert!(key.charge(&node).await.expect("its share is all of it").degraded());
}

#[tokio::test]
async fn unspent_units_are_returned_at_shutdown() {
    let server = RedisServer::start();
    let tried = Instant::now();
    loop {
        let node = Setup::of(1).node("n", server.address).await;
        let key = TestKey::window(Per::Total, 100_000);
        let mut admitted = 0;
        for _ in 0..3_000 {
            admitted += u64::from(key.charge(&node).await.is_ok());
        }
        admitted += key.until_shared(&node).await;
        if node.closes().await {
            assert_eq!(server.spent(&format!("kg:{{w}}:k:{}", key.id)), admitted);
            return;
        }
        assert!(tried.elapsed() < PATIENCE, "it never closes in time");
    }
}

#[tokio::test]
async fn a_password_is_asked_for_and_given() {
    let server = RedisServer::with(&["--requirepass", "hunter2"]);
    let key = TestKey::window(Per::Day, 1_000_000);
    for password in [None, Some("wrong".to_owned())] {
        let stranger = RedisEndpoint { password, ..place(server.address) };
        let why = Setup::of(1).node_at("n", stranger).await.err().expect("refused").to_string();
        assert!(why.contains("rejects the user or password"), "{why}");
        assert!(!why.contains("wrong"), "{why}");
    }
    let known = RedisEndpoint { password: Some("hunter2".into()), ..place(server.address) };
    assert!(!format!("{known:?}").contains("hunter2"));
    let node = Setup::of(1).node_at("n", known).await.expect("a node");
    key.until_shared(&node).await;
}

#[tokio::test]
async fn a_user_of_redis_needs_no_more_rights_than_the_refusal_names() {
    let server = RedisServer::start();
    server.command(&["ACL", "SETUSER", "keygate", "on", ">hunter2"]);
    let user = RedisEndpoint {
        user: Some("keygate".into()),
        password: Some("hunter2".into()),
        ..place(server.address)
    };
    let why = Setup::of(1).node_at("n", user.clone()).await.err().expect("refused").to_string();
    let (_, rights) = why.split_once("it must have: ").expect("what it needs");
    let mut words = vec!["ACL", "SETUSER", "keygate"];
    words.extend(rights.split(' '));
    assert_eq!(server.command(&words), "+OK");
    let node = Setup::of(1).node_at("n", user).await.expect("a node");
    let mut key = TestKey::window(Per::Day, 1_000_000);
    key.limits.push(crate::node::limits(&[(LimitName::Concurrency, LimitRule::InFlight { max: 4 })])[0]);
    for _ in 0..20 {
        key.until_shared(&node).await;
    }
}

#[tokio::test]
async fn an_unresponsive_address_neither_stops_nor_delays_a_start() {
    // The kernel drops connection attempts once the listen queue is full.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let listener = socket.listen(1).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let mut queued = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await
    {
        queued.push(connected);
        assert!(queued.len() < 100, "no black hole");
    }
    let begun = Spare::begin();
    let node = Setup::of(1).node("n", address).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(TestKey::window(Per::Day, 10).charge(&node).await.expect("its share is all").degraded());
}
