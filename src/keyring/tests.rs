//! The replica: what a find answers after each change, and what a late or repeated change does.

use super::*;
use crate::policy::id::EndUserId;
use crate::policy::key::{Ceilings, KeyType};

const NOW: Timestamp = Timestamp::from_secs(1_764_000_000);

fn plan(rate: u32) -> Change {
    Change::Plan(Plan {
        id: "default".parse().expect("an id"),
        api_ops_rate_limit: rate,
        end_user_quota: 1,
        limits: Box::default(),
    })
}

fn workspace() -> Change {
    Change::Workspace { id: "w".parse().expect("an id"), plan_id: "default".parse().expect("an id") }
}

fn credential(byte: u8, valid_until: Option<Timestamp>) -> Credential {
    Credential { digest: Digest([byte; 32]), pepper_version: 1, valid_until }
}

fn key(id: KeyId, version: u64, credentials: &[Credential]) -> Change {
    let key = Key {
        id,
        workspace_id: "w".parse().expect("an id"),
        kind: KeyType::Service,
        scopes: KeyType::Service.default_scopes(),
        resource_id: "w".into(),
        ceilings: Ceilings {
            rate_limit: 50,
            rate_burst: None,
            daily_request_limit: 1,
            quota_limit: None,
            concurrency_limit: None,
            limits: Box::default(),
        },
        allowed_ips: Box::default(),
        is_active: true,
        expires_at: None,
    };
    Change::Key(KeyChange {
        key,
        credentials: credentials.iter().copied().collect(),
        version: Version(version),
    })
}

fn keyring(changes: Vec<Change>) -> Keyring {
    let keyring = Keyring::new();
    for change in changes {
        keyring.apply(change).expect("it can be served");
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
    ring.apply(Change::KeyRemoved { id, version: Version(2) }).expect("applied");
    assert!(!opens(&ring, 1, NOW));
    assert!(ring.is_empty());
}

#[test]
fn an_old_secret_opens_until_its_grace_ends_and_an_older_one_never() {
    let id = KeyId::new(NOW);
    let end = NOW.plus(Duration::from_mins(1));
    let ring = keyring(vec![plan(9), workspace(), key(id, 1, &[credential(1, None)])]);
    ring.apply(key(id, 2, &[credential(2, None), credential(1, Some(end))])).expect("applied");
    assert!(opens(&ring, 2, NOW) && opens(&ring, 1, NOW) && !opens(&ring, 1, end));
    ring.apply(key(id, 3, &[credential(3, None), credential(2, Some(end))])).expect("applied");
    assert!(opens(&ring, 3, NOW) && opens(&ring, 2, NOW) && !opens(&ring, 1, NOW));
    assert_eq!(ring.len(), 1);
}

#[test]
fn an_older_change_does_not_undo_a_newer_one() {
    let id = KeyId::new(NOW);
    let ring = keyring(vec![plan(9), workspace(), key(id, 5, &[credential(2, None)])]);
    ring.apply(key(id, 4, &[credential(1, None)])).expect("passed over");
    assert!(opens(&ring, 2, NOW) && !opens(&ring, 1, NOW));
}

#[test]
fn a_lowered_plan_rules_keys_that_are_held_already() {
    let id = KeyId::new(NOW);
    let ring = keyring(vec![plan(100), workspace(), key(id, 1, &[credential(1, None)])]);
    let rate = || {
        let found = ring.find(&Digest([1; 32]), NOW).expect("the key");
        found.entry.limits(&found.entry.workspace.plan())[0].max()
    };
    assert_eq!(rate(), 50);
    ring.apply(plan(10)).expect("applied");
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
    let change = Change::Broken { table: "keys", id: broken.to_string(), why: "rate_limit is -1".into() };
    assert!(ring.apply(change).is_err());
    assert!(!opens(&ring, 1, NOW) && opens(&ring, 2, NOW));
}

#[test]
fn a_key_without_its_workspace_and_a_workspace_without_its_plan_are_reported() {
    let ring = Keyring::new();
    assert!(ring.apply(workspace()).is_err());
    assert!(ring.apply(key(KeyId::new(NOW), 1, &[credential(1, None)])).is_err());
    assert!(!opens(&ring, 1, NOW));
    let removed = Change::EndUserRemoved { workspace_id: "w".parse().expect("an id"), other_id: "a".into() };
    assert!(ring.apply(removed).is_ok());
    assert_ne!(EndUserId::new(NOW), EndUserId::new(NOW), "ids made at one instant differ");
}
