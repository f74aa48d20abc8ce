//! The replica: what look-ups return after each change, and the effect of late or repeated changes.

use super::*;
use crate::model::calendar::Calendar;
use crate::model::key::{Ceilings, KeyDetails, KeyType};
use crate::store::{Credential, Feed, StoreError};
use tokio::sync::mpsc;

const NOW: Timestamp = Timestamp::from_secs(1_764_000_000);

fn plan(rate: u32) -> Change {
    Change::Plan(Plan {
        id: "default".parse().expect("an id"),
        api_ops_rate_limit: rate,
        end_user_quota: 1,
        default_daily_request_limit: None,
        limits: Box::default(),
        calendar: Calendar::UTC,
    })
}

fn workspace() -> Change {
    Change::Workspace {
        id: "w".parse().expect("an id"),
        plan_id: "default".parse().expect("an id"),
        grants: Box::default(),
    }
}

fn credential(byte: u8, valid_until: Option<Timestamp>) -> Credential {
    Credential { digest: Digest([byte; 32]), pepper_version: 1, secret: SecretId(byte.into()), valid_until }
}

/// The secret of [`credential`] `byte` under a newer pepper.
fn rehashed(byte: u8, valid_until: Option<Timestamp>) -> Credential {
    Credential { digest: Digest([byte + 100; 32]), pepper_version: 2, ..credential(byte, valid_until) }
}

fn presented(keyring: &Keyring, byte: u8) -> Presented {
    keyring.find(&Digest([byte; 32]), NOW).expect("it opens").presented
}

fn key(id: KeyId, version: u64, credentials: &[Credential]) -> Change {
    let key = Key {
        id,
        workspace_id: "w".parse().expect("an id"),
        kind: KeyType::Service,
        scopes: crate::model::scope::Scopes::default(),
        resource_id: "w".into(),
        ceilings: Ceilings {
            rate_limit: 50,
            rate_burst: None,
            daily_request_limit: Some(1),
            quota_limit: None,
            concurrency_limit: None,
            limits: Box::default(),
        },
        allowed_ips: Box::default(),
        is_active: true,
        expires_at: None,
        end_user: None,
    };
    Change::Key(KeyChange {
        key,
        details: KeyDetails { created_by: "ada".into(), metadata: Box::default() },
        credentials: credentials.iter().copied().collect(),
        version: Version(version),
        was_restored: false,
    })
}

/// An entry with two credentials, made from `number`.
pub(super) fn entry(number: u16) -> Entry {
    let [high, low] = number.to_be_bytes();
    let digest = |kind: u8| {
        let mut bytes = [kind; 32];
        (bytes[0], bytes[5]) = (low, high);
        Credential {
            digest: Digest(bytes),
            pepper_version: 1,
            secret: SecretId(kind.into()),
            valid_until: None,
        }
    };
    let Change::Key(KeyChange { key, details, credentials, version, .. }) =
        key(KeyId(uuid::Uuid::from_u128(u128::from(number))), 1, &[digest(1), digest(2)])
    else {
        unreachable!("it makes a key")
    };
    let plan = PlanInForce::new(Plan {
        id: "p".parse().expect("an id"),
        api_ops_rate_limit: 1,
        end_user_quota: 1,
        default_daily_request_limit: None,
        limits: Box::default(),
        calendar: Calendar::UTC,
    });
    let workspace = Workspace { id: key.workspace_id.clone(), plan: ArcSwap::from_pointee(plan) };
    Entry { key, details, workspace: Arc::new(workspace), credentials, version }
}

fn keyring(changes: Vec<Change>) -> Keyring {
    let keyring = Keyring::new();
    for change in changes {
        assert_eq!(keyring.apply(change), None, "it can be served");
    }
    keyring
}

fn opens(keyring: &Keyring, byte: u8, at: Timestamp) -> bool {
    keyring.find(&Digest([byte; 32]), at).is_some()
}

#[test]
fn a_key_is_found_until_it_is_gone() {
    let id = KeyId::new(NOW);
    let ring = keyring(vec![plan(9), workspace(), key(id, 1, &[credential(1, None)])]);
    assert!(opens(&ring, 1, NOW) && !opens(&ring, 2, NOW));
    ring.apply(Change::KeyRemoved { id, version: Version(2) });
    assert!(!opens(&ring, 1, NOW));
    assert!(ring.is_empty());
}

#[test]
fn an_old_secret_opens_until_its_grace_ends_and_an_older_one_never() {
    let id = KeyId::new(NOW);
    let end = NOW.plus(Duration::from_mins(1));
    let ring = keyring(vec![plan(9), workspace(), key(id, 1, &[credential(1, None)])]);
    ring.apply(key(id, 2, &[credential(2, None), credential(1, Some(end))]));
    assert!(opens(&ring, 2, NOW) && opens(&ring, 1, NOW) && !opens(&ring, 1, end));
    ring.apply(key(id, 3, &[credential(3, None), credential(2, Some(end))]));
    assert!(opens(&ring, 3, NOW) && opens(&ring, 2, NOW) && !opens(&ring, 1, NOW));
    assert_eq!(ring.len(), 1);
}

#[test]
fn requests_admitted_by_a_secret_last_as_long_as_that_secret() {
    let (id, end) = (KeyId::new(NOW), NOW.plus(Duration::from_mins(1)));
    let stands = |ring: &Keyring, known: &Presented, at| ring.current(known, at).is_some();
    let ring = keyring(vec![plan(9), workspace(), key(id, 1, &[credential(1, None)])]);
    let first = presented(&ring, 1);
    // Re-hashed, it is still the same secret.
    ring.apply(key(id, 2, &[rehashed(1, None)]));
    assert!(stands(&ring, &first, NOW) && stands(&ring, &presented(&ring, 101), NOW));
    // Another secret is different, under whatever pepper.
    for (n, next) in [(3, credential(2, None)), (4, rehashed(2, None)), (5, rehashed(3, None))] {
        ring.apply(key(id, n, &[next]));
        assert!(!stands(&ring, &first, NOW), "{n}");
    }
    // Besides its successor, an old secret is valid until its grace period ends, also when it is re-hashed meanwhile.
    ring.apply(key(id, 6, &[credential(4, None)]));
    let fourth = presented(&ring, 4);
    ring.apply(key(id, 7, &[credential(5, None), credential(4, Some(end))]));
    let (late, fifth) = (presented(&ring, 4), presented(&ring, 5));
    for n in [7, 8] {
        assert!([&fourth, &late, &fifth].iter().all(|known| stands(&ring, known, NOW)), "{n}");
        assert!(
            !stands(&ring, &fourth, end) && !stands(&ring, &late, end) && stands(&ring, &fifth, end),
            "{n}"
        );
        ring.apply(key(id, 8, &[credential(5, None), rehashed(4, Some(end))]));
    }
    // The result has the changes.
    assert_eq!(ring.current(&fifth, NOW).map(|entry| entry.version), Some(Version(8)));
    ring.apply(Change::KeyRemoved { id, version: Version(9) });
    assert!(!stands(&ring, &fifth, NOW));
}

#[test]
fn a_key_that_has_just_come_stands_as_soon_as_it_is_found() {
    const KEYS: u16 = 20_000;
    let ring = keyring(vec![plan(9), workspace()]);
    let digest = |n: u16| {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        Digest(bytes)
    };
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for n in 0..KEYS {
                let issued = Credential { digest: digest(n), ..credential(1, None) };
                ring.apply(key(KeyId(uuid::Uuid::from_u128(n.into())), 1, &[issued]));
            }
        });
        for n in 0..KEYS {
            let found = loop {
                match ring.find(&digest(n), NOW) {
                    Some(found) => break found.presented,
                    None => std::hint::spin_loop(),
                }
            };
            assert!(ring.current(&found, NOW).is_some(), "key {n}");
        }
    });
}

#[tokio::test]
async fn a_secret_is_not_taken_for_one_of_a_past_that_the_store_has_lost() {
    let following = Following::new();
    let id = KeyId::new(NOW);
    let before = vec![(1, plan(9)), (2, workspace()), (3, key(id, 3, &[credential(1, None)]))];
    following.holds(before.clone()).await;
    let kept = presented(&following.keyring, 1);
    following.holds([before.clone(), vec![(4, key(id, 4, &[credential(2, None)]))]].concat()).await;
    let lost = presented(&following.keyring, 2);
    following.holds(before.clone()).await;
    assert!(
        following.keyring.current(&kept, NOW).is_some() && following.keyring.current(&lost, NOW).is_none()
    );
    following.holds([before, vec![(4, key(id, 4, &[rehashed(3, None)]))]].concat()).await;
    assert!(
        following.keyring.current(&kept, NOW).is_none() && following.keyring.current(&lost, NOW).is_none()
    );
}

#[test]
fn an_older_change_does_not_undo_a_newer_one() {
    let id = KeyId::new(NOW);
    let ring = keyring(vec![plan(9), workspace(), key(id, 5, &[credential(2, None)])]);
    ring.apply(key(id, 4, &[credential(1, None)]));
    assert!(opens(&ring, 2, NOW) && !opens(&ring, 1, NOW));
}

#[test]
fn a_lowered_plan_rules_keys_that_are_held_already() {
    let id = KeyId::new(NOW);
    let ring = keyring(vec![plan(100), workspace(), key(id, 1, &[credential(1, None)])]);
    let rate = || {
        let found = ring.find(&Digest([1; 32]), NOW).expect("the key");
        found.presented.entry.limits(&found.presented.entry.workspace.plan(Timestamp::from_secs(1)))[0].max()
    };
    assert_eq!(rate(), 50);
    ring.apply(plan(10));
    assert_eq!(rate(), 10);
}

#[test]
fn a_row_that_breaks_is_no_longer_served_and_the_others_are() {
    let (broken, sound) = (KeyId::new(NOW), KeyId::new(NOW));
    let ring = keyring(vec![
        plan(9),
        workspace(),
        key(broken, 1, &[credential(1, None)]),
        key(sound, 2, &[credential(2, None)]),
    ]);
    let change = Change::Broken {
        table: "keys",
        id: broken.to_string(),
        why: "rate_limit is -1".into(),
        digests: SmallVec::new(),
    };
    assert!(ring.apply(change.clone()).is_some());
    assert!(ring.apply(change).is_none(), "it is said once");
    assert_eq!(ring.broken(), 1);
    assert!(!opens(&ring, 1, NOW) && opens(&ring, 2, NOW));
}

#[test]
fn a_key_without_its_workspace_and_a_workspace_without_its_plan_are_reported() {
    let ring = Keyring::new();
    let id = KeyId::new(NOW);
    assert!(ring.apply(workspace()).is_some());
    assert!(ring.apply(key(id, 1, &[credential(1, None)])).is_some());
    assert!(!opens(&ring, 1, NOW));
    let removed = Change::EndUserRemoved { workspace_id: "w".parse().expect("an id"), other_id: "a".into() };
    assert!(ring.apply(removed).is_none());
    assert_eq!(ring.broken(), 2);
    ring.apply(Change::KeyRemoved { id, version: Version(2) });
    assert_eq!(ring.broken(), 1, "what is gone is not broken");
}

/// A store that is a list of rows with versions.
#[derive(Default)]
struct WrittenChanges(Mutex<Vec<(u64, Change)>>);

#[async_trait::async_trait]
impl Feed for WrittenChanges {
    async fn changes(&self, after: Version, to: mpsc::Sender<Vec<Change>>) -> Result<Version, StoreError> {
        let all = self.0.lock().expect("no panic").clone();
        let newest = all.iter().map(|(version, _)| *version).max().unwrap_or_default();
        let batch = all.into_iter().filter(|(v, _)| *v > after.0).map(|(_, change)| change).collect();
        to.send(batch).await.map_err(|_| StoreError::Cancelled)?;
        Ok(Version(newest))
    }

    async fn version(&self) -> Result<Version, StoreError> {
        not_asked()
    }

    async fn agree_on_peppers(&self, _peppers: &[(u32, [u8; 32])]) -> Result<(), StoreError> {
        not_asked()
    }
}

fn not_asked<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("nobody asks this here".into()))
}

/// A follower of its own store, and the rows it reported as removed.
struct Following {
    store: Arc<WrittenChanges>,
    follower: FeedFollower,
    keyring: Arc<Keyring>,
    removed: Arc<Mutex<Vec<String>>>,
}

impl Following {
    fn new() -> Self {
        let (store, keyring) = (Arc::<WrittenChanges>::default(), Arc::new(Keyring::new()));
        let removed = Arc::<Mutex<Vec<String>>>::default();
        let told = Arc::clone(&removed);
        let follower = FeedFollower::new(
            Arc::clone(&keyring),
            Arc::clone(&store) as Arc<dyn Feed>,
            Arc::new(crate::clock::ManualClock::at(NOW)),
            FeedOptions { poll_interval: Duration::from_secs(1) },
            Box::new(move |change| told.lock().expect("no panic").push(format!("{change:?}"))),
        );
        Self { store, follower, keyring, removed }
    }

    /// Sets the content of the store, and returns after the follower's next read.
    async fn holds(&self, rows: Vec<(u64, Change)>) {
        *self.store.0.lock().expect("no panic") = rows;
        self.follower.load().await.expect("it answers");
    }
}

#[tokio::test]
async fn keys_of_a_broken_plan_are_served_once_the_plan_is_mended() {
    let following = Following::new();
    let id = KeyId::new(NOW);
    let broken = Change::Broken {
        table: "plans",
        id: "default".into(),
        why: "api_ops_rate_limit".into(),
        digests: SmallVec::new(),
    };
    let rest = vec![(2, workspace()), (3, key(id, 3, &[credential(1, None)]))];
    following.holds([vec![(1, broken)], rest.clone()].concat()).await;
    assert!(!opens(&following.keyring, 1, NOW));
    assert_eq!(following.keyring.broken(), 3, "the plan, its workspace, and the key in it");
    let mended = [rest, vec![(4, plan(9))]].concat();
    following.holds(mended.clone()).await;
    // The read that brought the plan triggers another one, which reads the rest again.
    following.holds(mended).await;
    assert!(opens(&following.keyring, 1, NOW));
    assert_eq!(following.keyring.broken(), 0);
}

#[tokio::test]
async fn a_store_that_has_gone_back_is_believed_and_its_new_changes_are_seen() {
    let following = Following::new();
    let (kept, lost) = (KeyId::new(NOW), KeyId::new(NOW));
    let before = vec![
        (1, plan(9)),
        (2, workspace()),
        (3, key(kept, 3, &[credential(1, None)])),
        (4, key(lost, 4, &[credential(2, None)])),
        (5, key(kept, 5, &[credential(3, None), credential(1, Some(NOW))])),
    ];
    following.holds(before.clone()).await;
    assert!(opens(&following.keyring, 2, NOW) && opens(&following.keyring, 3, NOW));
    following.holds(before[..3].to_vec()).await;
    assert_eq!(following.keyring.version(), Version(3));
    assert!(opens(&following.keyring, 1, NOW), "the secret that the store knows opens");
    assert!(!opens(&following.keyring, 2, NOW) && !opens(&following.keyring, 3, NOW));
    assert_eq!(following.removed.lock().expect("no panic").len(), 1, "counters forget the key that is lost");
    let next = [before[..3].to_vec(), vec![(4, key(kept, 4, &[credential(4, None)]))]].concat();
    following.holds(next).await;
    assert!(opens(&following.keyring, 4, NOW) && !opens(&following.keyring, 1, NOW));
}

#[test]
fn grants_raise_a_plan_until_each_ends_and_survive_a_change_of_the_plan() {
    let grant = |amount, until| Grant {
        id: crate::model::id::GrantId::new(Timestamp::from_secs(1)),
        limit: crate::model::grant::GrantedLimit::EndUserQuota,
        amount,
        reason: "r".into(),
        created_by: "ada".into(),
        created_at: Timestamp::from_secs(1),
        until: Timestamp::from_secs(until),
    };
    let id: WorkspaceId = "w".parse().expect("an id");
    let ring = keyring(vec![plan(10)]);
    let put = |grants: Box<[Grant]>| {
        let change = Change::Workspace { id: id.clone(), plan_id: "default".parse().expect("an id"), grants };
        assert!(ring.apply(change).is_none());
    };
    put([grant(5, 20), grant(7, 10)].into());
    let held = Arc::clone(ring.workspaces.get(&id).expect("it is there").value());
    let quota = |secs| held.plan(Timestamp::from_secs(secs)).plan.end_user_quota;
    let base = held.plan.load().plan.end_user_quota;
    assert_eq!([9, 10, 19, 20].map(quota), [base + 12, base + 5, base + 5, base]);
    // A new plan, and a start in the middle.
    ring.apply(plan(11));
    assert_eq!([9, 10].map(quota), [base + 12, base + 5]);
    let mut rows = Vec::new();
    ring.snapshot::<()>(&mut |put| {
        put(&mut rows);
        Ok(())
    })
    .expect("written");
    let other = Keyring::new();
    snapshot::read(&rows, |change| assert!(other.apply(change).is_none())).expect("whole");
    let again =
        other.workspaces.get(&id).expect("it is there").plan(Timestamp::from_secs(9)).plan.end_user_quota;
    assert_eq!(again, base + 12);
    // Without grants, the plan is shared again.
    put(Box::default());
    assert_eq!(quota(9), base);
    assert!(held.plan.load().raise.is_none());
}
