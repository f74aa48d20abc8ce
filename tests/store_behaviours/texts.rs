//! Texts that only one of the backends could store (NUL): both behave alike.

use crate::place::{Place, T0, everything, new_key, record, someone};
use keygate::store::{Actor, AuditFilter, KeyFilter, LogFilter, LogPageRequest, StoreError};

pub(crate) async fn a_text_with_nul_is_found_nowhere(place: Place) {
    let w = place.tenant("w1").await;
    let key = place.key_in(&w, "k").await;
    place.append(&[record(&key, T0)]).await.unwrap();
    let nul = || Some("\0".to_owned());
    for filter in [
        KeyFilter { search: nul(), ..KeyFilter::default() },
        KeyFilter { resource_id: nul(), ..KeyFilter::default() },
    ] {
        assert_eq!(place.keys(&w, &filter, everything()).await.unwrap().total, 0, "{filter:?}");
    }
    assert_eq!(place.end_users(&w, Some("\0"), everything()).await.unwrap().total, 0);
    for filter in [
        AuditFilter { action: nul(), ..AuditFilter::default() },
        AuditFilter { target: nul(), ..AuditFilter::default() },
    ] {
        assert_eq!(place.audit(Some(&w), &filter, everything()).await.unwrap().total, 0, "{filter:?}");
    }
    let filter = LogFilter { endpoint: nul(), ..LogFilter::default() };
    let asked = LogPageRequest::Number(everything());
    let found = place.logs(&w, key.key.id, &filter, asked).await.unwrap().unwrap();
    assert_eq!((found.items.len(), found.total.map(|t| t.records)), (0, Some(0)));
}

pub(crate) async fn nul_in_what_tokens_say_is_replaced(place: Place) {
    let w = place.tenant("w1").await;
    let odd = Actor { subject: "a\0b".into(), request_id: Some("r\0".into()), ..someone() };
    let made = place.create_key(new_key(&w, "k"), &odd, T0).await.unwrap().value;
    assert_eq!(place.key(&w, made.key.id).await.unwrap().unwrap().created_by, "a\u{fffd}b");
    assert_eq!(made.created_by, "a\u{fffd}b");
    let line = place.audit(Some(&w), &AuditFilter::default(), everything()).await.unwrap().items.remove(0);
    assert_eq!((line.subject.as_str(), line.request_id.as_deref()), ("a\u{fffd}b", Some("r\u{fffd}")));
}

pub(crate) async fn nul_in_a_hint_is_refused(place: Place) {
    let w = place.tenant("w1").await;
    let mut new = new_key(&w, "k");
    new.credential.hint = "sk-\0".into();
    let error = place.create_key(new, &someone(), T0).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "hint", .. }), "{error}");
}
