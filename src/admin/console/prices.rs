//! The prices of models.

use super::form::{Field, FieldKind, Form};
use super::key_form::is_about_form;
use super::show;
use super::texts::Texts;
use super::visit::{Change, Frame, Shown, Visit, lead_to, page};
use askama::Template;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Prices {
    prices: Vec<Price>,
    updated_at: Option<i64>,
}

#[derive(Deserialize)]
struct Price {
    model: String,
    #[serde(flatten)]
    rates: Rates,
    tiers: Vec<Tier>,
}

#[derive(Deserialize)]
struct Rates {
    input: String,
    cached: String,
    cache_write: String,
    output: String,
    reasoning: String,
}

#[derive(Deserialize)]
struct Tier {
    above: u64,
    #[serde(flatten)]
    rates: Rates,
}

#[derive(Template)]
#[template(path = "prices.html")]
struct PricesPage {
    t: &'static Texts,
    frame: Frame,
    rows: Vec<[String; 6]>,
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
    fn rows(&self) -> Vec<[String; 6]> {
        let own = (self.model.clone(), &self.rates);
        let tiers = self
            .tiers
            .iter()
            .map(|tier| (format!("{} > {}", self.model, show::count(tier.above)), &tier.rates));
        let rows = [own].into_iter().chain(tiers).map(|(model, rates)| {
            let Rates { input, cached, cache_write, output, reasoning } = rates;
            [model, input.clone(), cached.clone(), cache_write.clone(), output.clone(), reasoning.clone()]
        });
        rows.collect()
    }

    /// As the API takes it back.
    fn json(&self) -> Value {
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
    fn json(&self) -> Value {
        let Self { input, cached, cache_write, output, reasoning } = self;
        json!({"input": input, "cached": cached, "cache_write": cache_write, "output": output, "reasoning": reasoning})
    }
}
