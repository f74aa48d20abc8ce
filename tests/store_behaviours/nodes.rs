//! The nodes on a store, and which of them have applied a change of a key.

use crate::place::{Place, T0, credential, someone, workspace_id};
use keygate::model::id::KeyId;
use keygate::store::{KeyPatch, NodeReport, Version};
use std::time::Duration;
use uuid::Uuid;

fn report(boot: u128, name: &str, reached: u64) -> NodeReport {
    NodeReport { boot: Uuid::from_u128(boot), name: name.into(), admin: None, reached: Version(reached) }
}

pub(crate) async fn a_node_is_known_by_its_last_report(place: Place) {
    assert_eq!(place.nodes().await.unwrap(), []);
    place.report(&report(2, "b", 1)).await.unwrap();
    // Two processes with one name are two nodes.
    place.report(&report(1, "a", 5)).await.unwrap();
    place.report(&report(3, "a", 7)).await.unwrap();
    let moved = NodeReport { admin: Some("127.0.0.1:8081".into()), ..report(2, "b", 9) };
    place.report(&moved).await.unwrap();
    let nodes = place.nodes().await.unwrap();
    let facts: Vec<_> =
        nodes.iter().map(|n| (&*n.name, n.boot.as_u128(), n.reached.0, n.admin.as_deref())).collect();
    assert_eq!(facts, [("a", 1, 5, None), ("a", 3, 7, None), ("b", 2, 9, Some("127.0.0.1:8081"))]);
    assert!(nodes.iter().all(|node| node.is_live() && node.seen_ago < Duration::from_secs(10)), "{nodes:?}");
}

pub(crate) async fn a_node_that_leaves_is_forgotten(place: Place) {
    place.report(&report(1, "a", 5)).await.unwrap();
    place.report(&report(2, "b", 5)).await.unwrap();
    place.leave(Uuid::from_u128(1)).await.unwrap();
    place.leave(Uuid::from_u128(1)).await.unwrap();
    assert_eq!(place.nodes().await.unwrap().len(), 1);
}

pub(crate) async fn reports_draw_no_number(place: Place) {
    place.tenant("w1").await;
    let before = place.version().await.unwrap();
    place.report(&report(1, "a", 5)).await.unwrap();
    place.leave(Uuid::from_u128(1)).await.unwrap();
    assert_eq!(place.version().await.unwrap(), before);
}

pub(crate) async fn a_keys_number_is_that_of_its_newest_write(place: Place) {
    let w = place.tenant("w1").await;
    let id = place.key_in(&w, "k").await.key.id;
    let mut newest = place.version().await.unwrap();
    assert_eq!(place.key_version(&w, id).await.unwrap(), Some(newest));
    place.key_in(&w, "other").await;
    assert_eq!(place.key_version(&w, id).await.unwrap(), Some(newest));
    newest = place.update_key(&w, id, KeyPatch::default(), &someone(), T0).await.unwrap().version;
    assert_eq!(place.key_version(&w, id).await.unwrap(), Some(newest));
    newest = place.regenerate_key(&w, id, credential(1), None, &someone(), T0).await.unwrap().version;
    assert_eq!(place.key_version(&w, id).await.unwrap(), Some(newest));
    newest = place.delete_key(&w, id, &someone(), T0).await.unwrap().version;
    assert_eq!(place.key_version(&w, id).await.unwrap(), Some(newest));
    assert_eq!(place.key_version(&workspace_id("w2"), id).await.unwrap(), None);
    assert_eq!(place.key_version(&w, KeyId::new(T0)).await.unwrap(), None);
}
