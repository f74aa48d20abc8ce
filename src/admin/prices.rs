//! Prices of models: read them, and replace them all.

use super::caller::PlatformAdmin;
use super::context::AdminState;
use super::envelope::{ApiResponse, Detail, Envelope};
use super::error::AdminError;
use super::extract::{Object, Query};
use super::input::read_prices;
use super::page::millis;
use super::schema::PricesReplace;
use crate::model::fault::Fault;
use crate::policy::prices::decimal::shown;
use crate::policy::prices::{ModelPrice, Rates, Tier};
use crate::store::PriceList;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

/// The prices in the store. Those of the config file are not among them, and replace those of the same pattern.
#[derive(Serialize, ToSchema)]
pub(super) struct PricesView {
    prices: Vec<PriceView>,
    /// When they were set, in epoch milliseconds; null: not yet.
    updated_at: Option<i64>,
}

/// What a million tokens of some models cost.
#[derive(Serialize, ToSchema)]
pub(super) struct PriceView {
    /// The name of a model, or its first characters and `*`.
    model: String,
    #[serde(flatten)]
    rates: RatesView,
    /// Prices for more input.
    tiers: Vec<TierView>,
}

/// Prices for answers with more input tokens than `above`.
#[derive(Serialize, ToSchema)]
pub(super) struct TierView {
    above: u64,
    #[serde(flatten)]
    rates: RatesView,
}

/// Prices of a million tokens, as decimal numbers.
#[derive(Serialize, ToSchema)]
pub(super) struct RatesView {
    /// Input that was neither read from nor written to a cache.
    #[schema(example = "2.5")]
    input: String,
    /// Input that was read from a cache.
    cached: String,
    /// Input that was written to a cache.
    cache_write: String,
    /// Output that was not reasoning.
    output: String,
    /// Output that was reasoning.
    reasoning: String,
}

/// Read the prices of models
///
/// Role `platform`.
#[utoipa::path(get, path = "/prices", tag = "Prices", responses(
    (status = 200, description = "The prices", body = Envelope<PricesView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn get_prices(
    State(admin): State<AdminState>,
    _: PlatformAdmin,
    Query(()): Query<()>,
) -> Result<ApiResponse<PricesView>, AdminError> {
    let found = admin.ask(Fault::NotFound, admin.deps.store.price_list()).await?;
    Ok(ApiResponse::ok(PricesView::new(&found)))
}

/// Replace the prices of models
///
/// Role `platform`. All of them: a model that is not in the list has no price from then on. They apply to requests that end
/// afterwards; the cost of a usage record is never computed again.
#[utoipa::path(put, path = "/prices", tag = "Prices", request_body = PricesReplace, responses(
    (status = 200, description = "The prices as they are now", body = Envelope<PricesView>),
    (status = "default", description = "Refused", body = Envelope<Detail>),
))]
pub(super) async fn put_prices(
    State(admin): State<AdminState>,
    PlatformAdmin { actor }: PlatformAdmin,
    Query(()): Query<()>,
    Object(body): Object,
) -> Result<ApiResponse<PricesView>, AdminError> {
    let prices = read_prices(&body).map_err(AdminError::fields)?;
    let call = admin.deps.store.put_price_list(prices, &actor, admin.now());
    let written = admin.write(Fault::NotFound, call).await?;
    Ok(ApiResponse::ok(PricesView::new(&written)))
}

impl PricesView {
    fn new(list: &PriceList) -> Self {
        let PriceList { prices, updated_at } = list;
        Self { prices: prices.iter().map(PriceView::new).collect(), updated_at: updated_at.map(millis) }
    }
}

impl PriceView {
    fn new(price: &ModelPrice) -> Self {
        let ModelPrice { model, rates, tiers } = price;
        let tier = |tier: &Tier| TierView { above: tier.above, rates: RatesView::new(&tier.rates) };
        Self {
            model: model.to_string(),
            rates: RatesView::new(rates),
            tiers: tiers.iter().map(tier).collect(),
        }
    }
}

impl RatesView {
    fn new(rates: &Rates) -> Self {
        let Rates { input, cached, cache_write, output, reasoning } = *rates;
        Self {
            input: shown(input),
            cached: shown(cached),
            cache_write: shown(cache_write),
            output: shown(output),
            reasoning: shown(reasoning),
        }
    }
}
