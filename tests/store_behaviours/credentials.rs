//! Encrypted credentials for backends.

use crate::place::{Place, T0, after, everything, someone};
use keygate::model::credential::{CredentialSelector, MetadataEntry, SealedCredential};
use keygate::model::id::CredentialId;
use keygate::store::{AuditFilter, Change, StoreError, Version};
use serde_json::json;

fn sealed(upstream: &str, workspace: Option<&str>, metadata: Option<&str>, byte: u8) -> SealedCredential {
    SealedCredential {
        id: CredentialId::new(T0),
        selector: CredentialSelector {
            upstream: upstream.into(),
            workspace: workspace.map(|id| id.parse().unwrap()),
            metadata: metadata.map(|text| MetadataEntry::parse(text).unwrap()),
        },
        header: "authorization".into(),
        scheme: (byte > 1).then(|| "Bearer".into()),
        key_version: 7,
        sealed: [0, byte, 255].into(),
    }
}

async fn in_feed(place: &Place, after: Version) -> Vec<Change> {
    let (_, changes) = place.all_changes(after).await;
    let is_one = |change: &Change| matches!(change, Change::Credential(_) | Change::CredentialRemoved(_));
    changes.into_iter().filter(is_one).collect()
}

fn text(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| format!("{change:?}")).collect()
}

pub(crate) async fn credentials_are_replaced_by_what_they_are_for_and_reach_the_feed_encrypted(place: Place) {
    assert_eq!(place.credentials(None).await.unwrap(), []);
    let first = place.put_credential(sealed("b", None, None, 1), &someone(), T0).await.unwrap();
    let tiered = sealed("b", None, Some("tier=gold=1"), 2);
    let tiered = place.put_credential(tiered, &someone(), T0).await.unwrap();
    let other = place.put_credential(sealed("a", None, None, 3), &someone(), T0).await.unwrap();
    let all = |records: &[&keygate::store::CredentialRecord]| {
        records.iter().map(|r| (*r).clone()).collect::<Vec<_>>()
    };
    assert_eq!(place.credentials(None).await.unwrap(), all(&[&other.value, &first.value, &tiered.value]));
    assert_eq!(place.credentials(Some("b")).await.unwrap(), all(&[&first.value, &tiered.value]));
    assert_eq!(place.credentials(Some("c")).await.unwrap(), []);
    let changes = in_feed(&place, Version(0)).await;
    let expected: Vec<_> =
        [&first, &tiered, &other].map(|w| Change::Credential(w.value.credential.clone())).into();
    assert_eq!(text(&changes), text(&expected));
    let Change::Credential(read) = &changes[1] else { panic!("a credential") };
    assert_eq!(*read, tiered.value.credential);

    // The same requests: the same id, another secret.
    let again = place.put_credential(sealed("b", None, None, 9), &someone(), after(1)).await.unwrap();
    let credential = &again.value.credential;
    assert_eq!((credential.id, &*credential.sealed), (first.value.credential.id, &[0, 9, 255][..]));
    assert_eq!((again.value.created_at, again.value.updated_at), (T0, after(1)));
    assert!(again.version > other.version);
    let place = place.reopen().await;
    assert_eq!(place.credentials(Some("b")).await.unwrap(), all(&[&again.value, &tiered.value]));

    let wrong = place.delete_credential("a", credential.id, &someone(), after(2)).await;
    assert!(matches!(wrong, Err(StoreError::NotFound("credential"))), "{wrong:?}");
    let gone = place.delete_credential("b", credential.id, &someone(), after(2)).await.unwrap();
    assert_eq!(
        text(&in_feed(&place, again.version).await),
        text(&[Change::CredentialRemoved(credential.id)])
    );
    let twice = place.delete_credential("b", credential.id, &someone(), after(3)).await;
    assert!(matches!(twice, Err(StoreError::NotFound("credential"))), "{twice:?}");
    assert_eq!(place.credentials(Some("b")).await.unwrap(), all(&[&tiered.value]));
    // It comes back with its id: a node that missed the deletion replaces what it has.
    let back = place.put_credential(sealed("b", None, None, 4), &someone(), after(4)).await.unwrap();
    assert_eq!((back.value.credential.id, back.value.created_at), (credential.id, after(4)));
    assert_eq!(in_feed(&place, gone.version).await.len(), 1);

    let lines = place.audit(None, &AuditFilter::default(), everything()).await.unwrap().items;
    let actions: Vec<_> =
        lines.iter().filter_map(|line| line.action.strip_prefix("upstream_credential.")).collect();
    assert_eq!(actions, ["create", "delete", "update", "create", "create", "create"]);
    assert_eq!(lines[0].target, format!("b/{}", credential.id));
    let changes = json!({
        "workspace_id": null, "metadata": null, "header": "authorization", "scheme": "Bearer", "key_version": 7,
    });
    assert_eq!(json!(lines[0].changes), changes);
}

pub(crate) async fn a_credential_of_a_workspace_needs_it_and_goes_with_it(place: Place) {
    let put = async |byte| place.put_credential(sealed("a", Some("w"), None, byte), &someone(), T0).await;
    let early = put(1).await;
    assert!(matches!(early, Err(StoreError::NotFound("workspace"))), "{early:?}");
    let workspace = place.tenant("w").await;
    let made = put(2).await.unwrap();
    let of_all = place.put_credential(sealed("a", None, None, 3), &someone(), T0).await.unwrap();
    place.delete_workspace(&workspace, false, &someone(), after(1)).await.unwrap();
    let left = place.credentials(None).await.unwrap();
    assert_eq!(left, [of_all.value]);
    let removed = Change::CredentialRemoved(made.value.credential.id);
    assert_eq!(text(&in_feed(&place, of_all.version).await), text(&[removed]));
}
