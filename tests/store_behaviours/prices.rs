//! The prices of models.

use crate::place::{Place, T0, after, everything, someone};
use keygate::policy::prices::{ModelPrice, Rates, Tier};
use keygate::store::{AuditFilter, Change, PriceList, Version};
use serde_json::json;

fn price(model: &str, input: u64) -> ModelPrice {
    let rates = Rates { input, cached: 1, cache_write: 2, output: 3, reasoning: 4 };
    let tier = Tier { above: 200_000, rates: Rates { input: input * 2, ..rates } };
    ModelPrice { model: model.into(), rates, tiers: vec![tier] }
}

async fn in_feed(place: &Place, after: Version) -> Vec<ModelPrice> {
    let (_, changes) = place.all_changes(after).await;
    let prices = changes.into_iter().filter_map(|change| match change {
        Change::Prices(prices) => Some(prices),
        _ => None,
    });
    prices.last().map(|prices| prices.to_vec()).unwrap_or_default()
}

pub(crate) async fn prices_are_replaced_as_a_whole_and_reach_the_feed(place: Place) {
    assert_eq!(place.price_list().await.unwrap(), PriceList::default());
    let first = vec![price("a", 1), price("b*", 2_500_000_000), price("模型", 0)];
    let written = place.put_price_list(first.clone(), &someone(), T0).await.unwrap();
    let kept = place.price_list().await.unwrap();
    assert_eq!((kept.prices.to_vec(), kept.updated_at), (first.clone(), Some(T0)));
    assert_eq!(written.value, kept);
    assert_eq!(in_feed(&place, Version(0)).await, first);
    assert_eq!(in_feed(&place, written.version).await, []);

    let second = vec![price("a", 7), price("c", 3)];
    let again = place.put_price_list(second.clone(), &someone(), after(1)).await.unwrap();
    assert!(again.version > written.version);
    assert_eq!(in_feed(&place, written.version).await, second);
    let place = place.reopen().await;
    assert_eq!(place.price_list().await.unwrap(), again.value);

    let lines = place.audit(None, &AuditFilter::default(), everything()).await.unwrap().items;
    assert_eq!(lines.len(), 2);
    assert_eq!((lines[0].action.as_str(), lines[0].target.as_str()), ("prices.update", "prices"));
    let changes = json!({"prices": {"from": 3, "to": 2}, "changed": ["a", "c"], "removed": ["b*", "模型"]});
    assert_eq!(json!(lines[0].changes), changes);
    place.put_price_list(Vec::new(), &someone(), T0).await.unwrap();
    assert_eq!(place.price_list().await.unwrap().prices.len(), 0);
}
