//! Budgets of tokens over two nodes: requests hold tokens, and are settled to what they used. A budget is passed at most by
//! what was used above the holds of the requests that were in flight when it was reached.

use crate::chaos::{ChaosProxy, Mode};
use crate::node::{Node, PATIENCE, Setup, TestKey, eventually, in_turn};
use crate::redis::RedisServer;
use keygate::clock::Timestamp;
use keygate::counter::{ChargeError, Charged};
use keygate::model::amounts::Amounts;
use keygate::model::id::EndUserId;
use keygate::model::key::{Measure, Per};
use keygate::policy::keys::limit::{Limit, LimitName, LimitRule, Limits, RetryAfter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Concurrent requests over all nodes.
const CLIENTS: usize = 64;
/// The most that one request holds.
const HOLD_MAX: u64 = 400;
/// How much more than its hold one request may use.
const EXCESS_MAX: u64 = HOLD_MAX / 4;

/// At most `max` tokens in a key's life.
fn tokens(name: LimitName, max: u64) -> Limits {
    [Limit { name, count: Measure::Tokens, rule: LimitRule::of(Per::Total, max) }].into_iter().collect()
}

fn key_of(max: u64) -> TestKey {
    let mut key = TestKey::rate(1_000_000);
    key.limits.extend(tokens(LimitName::Key(0), max).iter().copied());
    key
}

fn holding(units: u64) -> Amounts {
    Amounts::REQUEST.with(Measure::Tokens, units)
}

fn used(units: u64) -> Amounts {
    Amounts::default().with(Measure::Tokens, units)
}

fn hash_of(key: &TestKey) -> String {
    format!("kg:{{w}}:k.tokens:{}", key.id)
}

/// What all nodes hold of a life, as Redis knows it.
fn on_hold(server: &RedisServer, hash: &str) -> u64 {
    let answer = server.command(&["HGETALL", hash]);
    let lines: Vec<&str> = answer.split("\r\n").collect();
    // The value stands two lines below the name of a record. Its last number is what is held of the last window.
    let records = lines.iter().zip(lines.iter().skip(2)).filter(|(name, _)| name.starts_with("n:"));
    records
        .map(|(_, text)| text.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).expect("a number"))
        .sum()
}

/// Keeps a budget busy: random holds, random use.
struct Crowd {
    key: TestKey,
    used: AtomicU64,
    /// Whether clients stop once they are refused again and again.
    is_last: AtomicBool,
}

impl Crowd {
    fn new(key: &TestKey) -> Arc<Self> {
        Arc::new(Self { key: key.clone(), used: AtomicU64::new(0), is_last: AtomicBool::new(false) })
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    /// Starts the clients, half of them at each of two nodes.
    fn start(self: &Arc<Self>, nodes: &[Arc<Node>]) -> Vec<tokio::task::JoinHandle<()>> {
        let client = |n: usize| {
            let (crowd, node) = (Arc::clone(self), Arc::clone(&nodes[n % nodes.len()]));
            tokio::spawn(async move { crowd.client(&node, n as u64 + 1).await })
        };
        (0..CLIENTS).map(client).collect()
    }

    async fn client(&self, node: &Node, seed: u64) {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |most: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 16) % most
        };
        let (begun, mut refused) = (Instant::now(), 0);
        while refused < 20 || !self.is_last.load(Ordering::SeqCst) {
            assert!(begun.elapsed() < PATIENCE, "it is never used up, only {}", self.used());
            let hold = 1 + below(HOLD_MAX);
            match self.key.charge_of(node, holding(hold)).await {
                Ok(charged) => {
                    refused = 0;
                    // A request that streams.
                    tokio::time::sleep(Duration::from_millis(1 + below(15))).await;
                    self.end(charged, below(hold + hold / 4 + 1));
                }
                Err(ChargeError::Limit { .. }) => {
                    refused += 1;
                    // A client that tries again later.
                    tokio::time::sleep(Duration::from_millis(10 + below(20))).await;
                }
                // On a busy machine an answer may reach a request too late. Recovery has no notification.
                Err(ChargeError::Unavailable) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    fn end(&self, mut charged: Charged, units: u64) {
        self.used.fetch_add(units, Ordering::SeqCst);
        _ = charged.take_hold().expect("it holds tokens").settle(&used(units));
    }
}

/// Never above what requests in flight used above their holds; nearly all of it; and in the end nothing is held.
async fn assert_used_up(server: &RedisServer, crowd: &Crowd, max: u64) {
    let units = crowd.used();
    let most = max + CLIENTS as u64 * EXCESS_MAX;
    assert!(units <= most, "{units} of {max}, at most {most}");
    assert!(units * 100 >= max * 99, "only {units} of {max}");
    let hash = hash_of(&crowd.key);
    eventually("nothing is held", || on_hold(server, &hash) == 0).await;
    eventually("Redis has counted what was used", || server.spent(&hash) == units).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_share_a_budget_of_tokens() {
    let _turn = in_turn().await;
    const MAX: u64 = 200_000;
    let server = RedisServer::start();
    let nodes = Setup::strict(2).all(&server).await;
    let crowd = Crowd::new(&key_of(MAX));
    crowd.is_last.store(true, Ordering::SeqCst);
    for client in crowd.start(&nodes) {
        client.await.expect("a client");
    }
    assert_used_up(&server, &crowd, MAX).await;
}

/// Redis is cut off, hangs and answers late while requests hold tokens, and they go on from promises.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_of_tokens_holds_while_redis_is_lost() {
    let _turn = in_turn().await;
    const MAX: u64 = 3_000_000;
    let server = RedisServer::start();
    let proxy = ChaosProxy::before(server.address).await;
    let setup = Setup::of(2);
    let mut nodes = Vec::new();
    for n in 0..2 {
        nodes.push(Arc::new(setup.node(&format!("n{n}"), proxy.address).await));
    }
    let crowd = Crowd::new(&key_of(MAX));
    let clients = crowd.start(&nodes);
    for mode in [Mode::Cut, Mode::Hang, Mode::Late(Duration::from_millis(12)), Mode::CutAfter("EVALSHA")] {
        let before = crowd.used();
        eventually("requests are admitted", || crowd.used() > before + 10_000).await;
        proxy.set(mode);
        // Longer than it takes to miss Redis.
        tokio::time::sleep(Duration::from_millis(400)).await;
        proxy.set(Mode::Pass);
        eventually("Redis is found", || nodes.iter().all(|node| node.metrics.counter_up.get() == 1)).await;
    }
    crowd.is_last.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("a client");
    }
    assert_used_up(&server, &crowd, MAX).await;
}

/// Holds at a node until it is refused.
async fn hold_all(node: &Node, key: &TestKey, units: u64) -> Vec<Charged> {
    let mut all = Vec::new();
    while let Ok(charged) = key.charge_of(node, holding(units)).await {
        all.push(charged);
    }
    all
}

#[tokio::test]
async fn holds_of_a_killed_node_are_free_after_ten_seconds() {
    let server = RedisServer::start();
    let nodes = Setup::strict(2).all(&server).await;
    let [killed, other] = <[Arc<Node>; 2]>::try_from(nodes).ok().expect("two");
    let key = key_of(20_000);
    let mut held = 0;
    while held < 10 {
        let Ok(charged) = key.charge_of(&killed, holding(1_000)).await else { continue };
        // Its process has no time to return anything.
        std::mem::forget(charged);
        held += 1;
    }
    drop(killed);
    let dead = Instant::now();
    let mut all = Vec::new();
    loop {
        all.extend(hold_all(&other, &key, 1_000).await);
        if all.len() > 10 {
            break;
        }
        assert!(dead.elapsed() < PATIENCE, "they are never free");
        // The end of the ten seconds has no notification.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(dead.elapsed() > Duration::from_secs(9), "held for ten seconds after its last call");
    while all.len() < 20 {
        assert!(dead.elapsed() < PATIENCE, "all of it is free");
        all.extend(hold_all(&other, &key, 1_000).await);
    }
    drop(all);
    eventually("nothing is spent", || server.spent(&hash_of(&key)) == 0).await;
}

#[tokio::test]
async fn holds_of_a_node_that_lives_are_renewed_and_released() {
    let server = RedisServer::start();
    let nodes = Setup::strict(2).all(&server).await;
    let key = key_of(10_000);
    let mut kept = Vec::new();
    while kept.len() < 9 {
        kept.extend(key.charge_of(&nodes[0], holding(1_000)).await);
    }
    // Longer than Redis keeps what a silent node holds.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(hold_all(&nodes[1], &key, 2_000).await.len(), 0, "they are held still");
    // Given back, dropped, and settled to nothing.
    kept.pop().expect("nine").give_back();
    drop(kept.pop());
    for mut charged in kept {
        _ = charged.take_hold().expect("a hold").settle(&used(0));
    }
    eventually("nothing is held", || on_hold(&server, &hash_of(&key)) == 0).await;
    let begun = Instant::now();
    let whole = loop {
        // The promise of the other node ends ten seconds after its last call.
        match key.charge_of(&nodes[1], holding(10_000)).await {
            Ok(charged) => break charged,
            Err(_) => assert!(begun.elapsed() < PATIENCE, "all of it is free"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    drop(whole);
}

#[tokio::test]
async fn a_large_hold_is_refused_and_a_small_one_is_not() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let node = Setup::strict(1).node("n", server.address).await;
    let key = key_of(1_000);
    let first = key.decided_of(&node, holding(800)).await.expect("it fits");
    for _ in 0..3 {
        let Err(ChargeError::Limit { refusal, .. }) = key.decided_of(&node, holding(500)).await else {
            panic!("only two hundred are left");
        };
        assert_eq!(refusal.refused.limit.count, Measure::Tokens);
        assert_eq!(refusal.refused.retry, RetryAfter::Release, "only holds are in the way");
        drop(key.decided_of(&node, holding(150)).await.expect("it fits"));
    }
    let Err(ChargeError::Limit { refusal, .. }) = key.decided_of(&node, holding(1_001)).await else {
        panic!("more than the limit");
    };
    assert_eq!(refusal.refused.retry, RetryAfter::Never);
    drop(first);
    drop(key.decided_of(&node, holding(1_000)).await.expect("all of it"));
}

#[tokio::test]
async fn a_request_holds_tokens_of_all_its_subjects_or_of_none() {
    let _turn = in_turn().await;
    let server = RedisServer::start();
    let node = Setup::strict(1).node("n", server.address).await;
    let mut key = key_of(10_000);
    key.workspace_limits = tokens(LimitName::Workspace(0), 5_000);
    let users = [EndUserId::new(Timestamp::from_secs(1)), EndUserId::new(Timestamp::from_secs(2))];
    let of_each = tokens(LimitName::EndUser(0), 1_000);
    let mut kept = Vec::new();
    for user in users {
        key.end_user = Some((user, of_each.clone()));
        kept.push(key.decided_of(&node, holding(800)).await.expect("it fits"));
        let Err(ChargeError::Limit { refusal, .. }) = key.decided_of(&node, holding(800)).await else {
            panic!("only two hundred are left to this end user");
        };
        assert_eq!(refusal.refused.limit.name, LimitName::EndUser(0));
    }
    let hashes = [
        hash_of(&key),
        "kg:{w}:w.tokens".to_owned(),
        format!("kg:{{w}}:u.tokens:{}", users[0]),
        format!("kg:{{w}}:u.tokens:{}", users[1]),
    ];
    let held = |of: [u64; 4]| {
        let held = hashes.iter().map(|hash| on_hold(&server, hash)).eq(of);
        held && server.spent(&format!("kg:{{w}}:k:{}", key.id)) == 2
    };
    eventually("what was refused holds nothing", || held([1_600, 1_600, 800, 800])).await;
    for mut charged in kept {
        _ = charged.take_hold().expect("a hold").settle(&used(900));
    }
    eventually("nothing is held", || held([0; 4])).await;
    let spent: Vec<u64> = hashes.iter().map(|hash| server.spent(hash)).collect();
    assert_eq!(spent, [1_800, 1_800, 900, 900]);
}
