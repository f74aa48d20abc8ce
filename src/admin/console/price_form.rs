//! One price in a form: what a million tokens of a model cost.
//!
//! The API replaces all prices at once, so a change reads them, exchanges one and sends them back.

use super::api::{Refused, query};
use super::form::FormData;
use super::key_form::is_about_form;
use super::prices::{Price, Prices, Rates, Tier};
use super::texts::Texts;
use super::visit::{Change, Frame, Shown, Visit, lead_to, page};
use askama::Template;
use axum::extract::Query;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The model of a price; empty: a new one.
#[derive(Deserialize)]
pub(super) struct PriceQuery {
    #[serde(default)]
    model: String,
}

/// A number in the form, and what is wrong with it.
#[derive(Clone, Default)]
struct Cell {
    name: String,
    label: &'static str,
    value: String,
    error: String,
    is_required: bool,
}

/// A row: the prices of a model, or of its answers with more input.
struct PriceRow {
    cells: Vec<Cell>,
}

#[derive(Template)]
#[template(path = "price.html")]
struct PricePage {
    t: &'static Texts,
    frame: Frame,
    error: Option<String>,
    /// The model before the change; empty: a new one.
    was: String,
    model: Cell,
    rates: PriceRow,
    tiers: Vec<PriceRow>,
}

/// The prices of a row, in the order of its cells.
const KINDS: [&str; 5] = ["input", "output", "cached", "cache_write", "reasoning"];
/// Empty tiers that a form shows: without script it cannot grow.
const TIERS_TO_ADD: usize = 2;
/// Most tiers of a model.
const TIERS_MAX: usize = 16;

pub(super) async fn edit_form(visit: Visit, Query(asked): Query<PriceQuery>) -> Shown {
    let found = read(&visit).await.map_err(|refused| visit.refused(None, refused))?;
    let known = found.prices.iter().find(|price| price.model == asked.model);
    if known.is_none() && !asked.model.is_empty() {
        return Err(visit.message(StatusCode::NOT_FOUND));
    }
    Ok(PricePage::of(&visit, known).shown(StatusCode::OK))
}

pub(super) async fn save(change: Change) -> Shown {
    let Change { visit, form: sent } = change;
    let found = read(&visit).await.map_err(|refused| visit.refused(None, refused))?;
    let was = sent.get("was");
    let mut shown = PricePage::of(&visit, found.prices.iter().find(|price| price.model == was));
    shown.fill(&sent);
    let mut all: Vec<Value> = found.prices.iter().map(Price::json).collect();
    let place = if let Some(place) = found.prices.iter().position(|price| price.model == was) {
        place
    } else {
        all.push(Value::Null);
        all.len() - 1
    };
    all[place] = shown.json();
    match replace(&visit, all).await {
        Ok(()) => Ok(lead_to("/console/prices")),
        Err(refused) if is_about_form(refused.status) => {
            let status = refused.status;
            shown.refuse(refused, place);
            Ok(shown.shown(status))
        }
        Err(refused) => Err(visit.refused(None, refused)),
    }
}

pub(super) async fn delete(change: Change) -> Shown {
    let Change { visit, form: sent } = change;
    let found = read(&visit).await.map_err(|refused| visit.refused(None, refused))?;
    let was = sent.get("was");
    let others: Vec<Value> =
        found.prices.iter().filter(|price| price.model != was).map(Price::json).collect();
    if others.len() == found.prices.len() {
        return Err(visit.message(StatusCode::NOT_FOUND));
    }
    replace(&visit, others).await.map_err(|refused| visit.refused(None, refused))?;
    Ok(lead_to("/console/prices"))
}

/// Where the price of a model is edited.
pub(super) fn place_of(model: &str) -> String {
    format!("/console/prices/edit{}", query(&[("model", model)]))
}

async fn read(visit: &Visit) -> Result<Prices, Refused> {
    visit.api(None).get("/prices").await
}

async fn replace(visit: &Visit, prices: Vec<Value>) -> Result<(), Refused> {
    let body = Map::from_iter([("prices".to_owned(), Value::Array(prices))]);
    visit.api(None).send::<Value>(Method::PUT, "/prices", body).await.map(drop)
}

impl Cell {
    fn new(name: impl Into<String>, label: &'static str, value: &str) -> Self {
        Self { name: name.into(), label, value: value.to_owned(), ..Self::default() }
    }
}

impl PriceRow {
    /// A row; `tier`: the number of the tier and where it begins.
    fn new(t: &'static Texts, rates: Option<&Rates>, tier: Option<&(usize, String)>) -> Self {
        let name = |kind: &str| match tier {
            Some((n, _)) => format!("{kind}_{n}"),
            None => kind.to_owned(),
        };
        let labels = [t.input, t.output, t.cached, t.cache_write, t.reasoning];
        let values = rates.map(Rates::in_form_order).unwrap_or_default();
        let above = tier.map(|(_, above)| Cell::new(name("above"), t.above, above));
        let prices = KINDS.iter().zip(labels).zip(values).map(|((kind, label), value)| Cell {
            is_required: tier.is_none() && ["input", "output"].contains(kind),
            ..Cell::new(name(kind), label, value)
        });
        Self { cells: above.into_iter().chain(prices).collect() }
    }

    fn is_empty(&self) -> bool {
        self.cells.iter().all(|cell| cell.value.is_empty())
    }

    /// As the API takes it; what is empty is left out, and then like `input` or `output`.
    fn json(&self) -> Map<String, Value> {
        let typed = self.cells.iter().filter(|cell| !cell.value.is_empty());
        typed
            .map(|cell| {
                let kind = cell.name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('_');
                let above = || cell.value.replace([' ', ','], "").parse::<u64>().ok();
                let value = match above().filter(|_| kind == "above") {
                    Some(number) => json!(number),
                    None => json!(cell.value),
                };
                (kind.to_owned(), value)
            })
            .collect()
    }
}

impl PricePage {
    fn of(visit: &Visit, price: Option<&Price>) -> Self {
        let t = visit.t();
        let was = price.map(|price| price.model.clone()).unwrap_or_default();
        let title = if was.is_empty() { t.new_price.to_owned() } else { was.clone() };
        let known = price.map(|price| &*price.tiers).unwrap_or_default();
        let tiers = known.iter().map(Some).chain([None; TIERS_TO_ADD]).take(TIERS_MAX).enumerate();
        let tiers = tiers.map(|(n, tier): (usize, Option<&Tier>)| {
            let above = tier.map(|tier| tier.above.to_string()).unwrap_or_default();
            PriceRow::new(t, tier.map(|tier| &tier.rates), Some(&(n, above)))
        });
        Self {
            t,
            frame: visit.frame("prices", &title, None),
            error: None,
            model: Cell { is_required: true, ..Cell::new("model", t.model, &was) },
            was,
            rates: PriceRow::new(t, price.map(|price| &price.rates), None),
            tiers: tiers.collect(),
        }
    }

    fn cells(&mut self) -> impl Iterator<Item = &mut Cell> {
        let rows = [&mut self.rates].into_iter().chain(&mut self.tiers);
        [&mut self.model].into_iter().chain(rows.flat_map(|row| &mut row.cells))
    }

    /// Takes over what was typed.
    fn fill(&mut self, sent: &FormData) {
        for cell in self.cells() {
            sent.get(&cell.name).trim().clone_into(&mut cell.value);
        }
    }

    fn json(&self) -> Value {
        let mut price = self.rates.json();
        price.insert("model".into(), json!(self.model.value));
        let tiers: Vec<_> = self.tiers.iter().filter(|row| !row.is_empty()).map(PriceRow::json).collect();
        price.insert("tiers".into(), json!(tiers));
        Value::Object(price)
    }

    /// Shows a refusal at the fields that it names, and the rest above the form. `place`: of this price in the list.
    fn refuse(&mut self, refused: Refused, place: usize) {
        let Refused { message, errors, .. } = refused;
        let typed: Vec<usize> = (0..self.tiers.len()).filter(|n| !self.tiers[*n].is_empty()).collect();
        let mut elsewhere = Vec::new();
        let own = format!("prices[{place}]");
        for error in errors {
            let within = error.field.strip_prefix(&own).map(|rest| rest.trim_start_matches('.').to_owned());
            let name = match within.as_deref().and_then(|rest| rest.strip_prefix("tiers[")?.split_once("]."))
            {
                // The API counts only those tiers that were typed.
                Some((n, kind)) => {
                    n.parse::<usize>().ok().and_then(|n| typed.get(n)).map(|n| format!("{kind}_{n}"))
                }
                None => within.map(|rest| if rest.is_empty() { "model".to_owned() } else { rest }),
            };
            match self.cells().find(|cell| Some(&cell.name) == name.as_ref()) {
                Some(cell) => cell.error = error.message,
                None => elsewhere.push(format!("{} {}", error.field, error.message)),
            }
        }
        let is_shown = self.cells().any(|cell| !cell.error.is_empty());
        self.error = Some(match elsewhere.is_empty() {
            false => elsewhere.join("; "),
            true if is_shown => self.t.see_fields.to_owned(),
            true => message,
        });
    }

    fn shown(&self, status: StatusCode) -> Response {
        page(status, self)
    }
}
