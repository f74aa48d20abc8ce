//! The prices of models.

use super::form::{Field, FieldKind, Form};
use super::key_form::is_about_form;
use super::price_form;
use super::show;
use super::texts::Texts;
use super::visit::{Change, Frame, Shown, Visit, lead_to, page};
use askama::Template;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
pub(super) struct Prices {
    pub(super) prices: Vec<Price>,
    updated_at: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct Price {
    pub(super) model: String,
    #[serde(flatten)]
    pub(super) rates: Rates,
    pub(super) tiers: Vec<Tier>,
}

#[derive(Deserialize)]
pub(super) struct Rates {
    input: String,
    cached: String,
    cache_write: String,
    output: String,
    reasoning: String,
}

#[derive(Deserialize)]
pub(super) struct Tier {
    pub(super) above: u64,
    #[serde(flatten)]
    pub(super) rates: Rates,
}

/// A row of the list.
struct PriceRow {
    model: String,
    /// Where it is edited; empty: it is a tier of the row above.
    edit: String,
    rates: [String; 5],
}

#[derive(Template)]
#[template(path = "prices.html")]
struct PricesPage {
    t: &'static Texts,
    frame: Frame,
    rows: Vec<PriceRow>,
    updated: String,
    form: Form,
    counts: Vec<(String, String)>,
    windows: Vec<(String, String)>,
}

pub(super) async fn list(visit: Visit) -> Shown {
    shown(&visit, None, StatusCode::OK).await.map_err(|refused| visit.refused(None, refused))
}

pub(super) async fn replace(change: Change) -> Shown {
    let Change { visit, form: sent } = change;
    let mut form = Form::new(fields(visit.t(), ""));
    form.fill(&sent);
    let text = form.value("prices").to_owned();
    let Ok(Value::Array(prices)) = crate::admin::input::json::value(text.as_bytes()) else {
        form.fields[0].error = Some(visit.t().not_json_list.to_owned());
        return shown(&visit, Some(form), StatusCode::BAD_REQUEST)
            .await
            .map_err(|refused| visit.refused(None, refused));
    };
    let body = Map::from_iter([("prices".to_owned(), json!(prices))]);
    match visit.api(None).send::<Value>(Method::PUT, "/prices", body).await {
        Ok(_) => Ok(lead_to("/console/prices")),
        Err(refused) if is_about_form(refused.status) => {
            let status = refused.status;
            form.refuse(refused);
            shown(&visit, Some(form), status).await.map_err(|refused| visit.refused(None, refused))
        }
        Err(refused) => Err(visit.refused(None, refused)),
    }
}

async fn shown(
    visit: &Visit,
    form: Option<Form>,
    status: StatusCode,
) -> Result<Response, super::api::Refused> {
    let found: Prices = visit.api(None).get("/prices").await?;
    let t = visit.t();
    let text = serde_json::to_string_pretty(&found.prices.iter().map(Price::json).collect::<Vec<_>>());
    let form = form.unwrap_or_else(|| Form::new(fields(t, &text.unwrap_or_default())));
    let rows = found.prices.iter().flat_map(Price::rows).collect();
    let updated = found.updated_at.map(show::instant).unwrap_or_default();
    let frame = visit.frame("prices", t.prices, None);
    let view = PricesPage { t, frame, rows, updated, form, counts: Vec::new(), windows: Vec::new() };
    Ok(page(status, &view))
}

fn fields(t: &'static Texts, text: &str) -> Vec<Field> {
    vec![Field::new("prices", t.prices, t.h_prices, FieldKind::Json).with(text)]
}

impl Price {
    /// One row, and one for each tier.
    fn rows(&self) -> Vec<PriceRow> {
        let own = (self.model.clone(), price_form::place_of(&self.model), &self.rates);
        let tiers = self.tiers.iter().map(|tier| {
            (format!("{} > {}", self.model, show::count(tier.above)), String::new(), &tier.rates)
        });
        let rows = [own].into_iter().chain(tiers).map(|(model, edit, rates)| {
            let Rates { input, cached, cache_write, output, reasoning } = rates;
            let rates = [input, cached, cache_write, output, reasoning].map(Clone::clone);
            PriceRow { model, edit, rates }
        });
        rows.collect()
    }

    /// As the API takes it back.
    pub(super) fn json(&self) -> Value {
        let mut price = self.rates.json();
        price["model"] = json!(self.model);
        let tiers: Vec<Value> = self
            .tiers
            .iter()
            .map(|tier| {
                let mut shown = tier.rates.json();
                shown["above"] = json!(tier.above);
                shown
            })
            .collect();
        if !tiers.is_empty() {
            price["tiers"] = json!(tiers);
        }
        price
    }
}

impl Rates {
    /// The prices in the order in which a form has them.
    pub(super) fn in_form_order(&self) -> [&str; 5] {
        let Self { input, cached, cache_write, output, reasoning } = self;
        [input, output, cached, cache_write, reasoning]
    }

    fn json(&self) -> Value {
        let Self { input, cached, cache_write, output, reasoning } = self;
        json!({"input": input, "cached": cached, "cache_write": cache_write, "output": output, "reasoning": reasoning})
    }
}
