//! Forms: their fields as pages show them, and as the API takes them.
//!
//! Must not know: which values are valid. The API says so, and its mistakes are shown at their fields.

use super::api::Refused;
use super::show;
use super::texts::Texts;
use crate::admin::input::FieldError;
use crate::model::key::{Measure, Owner, Per};
use serde_json::{Map, Value, json};

/// What a visitor has sent.
pub(super) struct FormData(Vec<(String, String)>);

/// A field of a form.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    /// What it means, and what an empty one does.
    pub(super) hint: &'static str,
    pub(super) kind: FieldKind,
    /// As it stands in the form.
    pub(super) value: String,
    pub(super) error: Option<String>,
    pub(super) is_required: bool,
}

/// How a field is typed, and as which JSON it is sent.
pub(super) enum FieldKind {
    /// A line of text.
    Text,
    /// Several lines of text.
    Area,
    /// A whole number.
    Number,
    /// Words, sent as a list.
    Words,
    /// Lines, sent as a list.
    Lines,
    /// An object as JSON.
    Json,
    /// An instant in UTC.
    Instant,
    /// One of these: value and label.
    Choice(Vec<(String, String)>),
    /// Further limits.
    Limits(Vec<LimitRow>, Option<Vec<(String, String)>>),
}

/// A further limit, as typed.
#[derive(Clone, Default)]
pub(super) struct LimitRow {
    pub(super) of: String,
    pub(super) count: String,
    pub(super) per: String,
    pub(super) max: String,
}

/// A form.
pub(super) struct Form {
    pub(super) fields: Vec<Field>,
    /// What is wrong with the whole of it.
    pub(super) error: Option<String>,
}

/// Rows for further limits that a form offers: the most that there may be.
const LIMIT_ROWS: usize = 8;
/// Empty rows for further limits that a form shows.
const ROWS_TO_ADD: usize = 3;

// === impl FormData ===

impl FormData {
    /// The fields of a body in the form of `application/x-www-form-urlencoded`.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let uri = format!("/?{}", std::str::from_utf8(body).ok()?);
        // The parser of queries reads exactly this form.
        let uri = uri.parse::<axum::http::Uri>().ok()?;
        axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri).ok().map(|query| Self(query.0))
    }

    /// A field; empty if it is not there.
    pub(super) fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(field, _)| field == name);
        found.map_or("", |(_, value)| value)
    }
}

// === impl Field ===

impl Field {
    /// An empty field.
    pub(super) fn new(name: &'static str, label: &'static str, hint: &'static str, kind: FieldKind) -> Self {
        Self { name, label, hint, kind, value: String::new(), error: None, is_required: false }
    }

    /// The same, which must be filled in.
    pub(super) fn required(self) -> Self {
        Self { is_required: true, ..self }
    }

    /// The same with this value.
    pub(super) fn with(self, value: impl Into<String>) -> Self {
        Self { value: value.into(), ..self }
    }

    pub(super) fn is_area(&self) -> bool {
        matches!(self.kind, FieldKind::Area | FieldKind::Lines | FieldKind::Json)
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self.kind, FieldKind::Number)
    }

    pub(super) fn is_instant(&self) -> bool {
        matches!(self.kind, FieldKind::Instant)
    }

    pub(super) fn choices(&self) -> &[(String, String)] {
        if let FieldKind::Choice(choices) = &self.kind { choices } else { &[] }
    }

    pub(super) fn limit_rows(&self) -> &[LimitRow] {
        let FieldKind::Limits(rows, _) = &self.kind else { return &[] };
        // Those in use and some to add; without script a form cannot grow.
        let used = rows.iter().rposition(|row| !row.max.is_empty()).map_or(0, |last| last + 1);
        &rows[..rows.len().min(used + ROWS_TO_ADD)]
    }

    pub(super) fn owners(&self) -> &[(String, String)] {
        if let FieldKind::Limits(_, Some(owners)) = &self.kind { owners } else { &[] }
    }

    fn fill(&mut self, form: &FormData) {
        form.get(self.name).clone_into(&mut self.value);
        let FieldKind::Limits(rows, _) = &mut self.kind else { return };
        for (n, row) in rows.iter_mut().enumerate() {
            let part = |what: &str| form.get(&format!("limit_{what}_{n}")).trim().to_owned();
            *row = LimitRow { of: part("of"), count: part("count"), per: part("per"), max: part("max") };
        }
    }

    /// The value as JSON; null if it is empty. Text that is no number is sent as it is: the API says what is allowed.
    fn json(&self) -> Result<Value, &'static str> {
        let text = self.value.trim();
        if let FieldKind::Limits(rows, owners) = &self.kind {
            let typed = rows.iter().filter(|row| !row.max.is_empty());
            return Ok(typed.map(|row| row.json(owners.is_some())).collect());
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        Ok(match self.kind {
            FieldKind::Text | FieldKind::Choice(_) => json!(text),
            FieldKind::Area => json!(self.value.replace("\r\n", "\n")),
            FieldKind::Number => number(text),
            FieldKind::Words => {
                text.split([' ', ',', '\t', '\n', '\r']).filter(|word| !word.is_empty()).collect()
            }
            FieldKind::Lines => text.lines().map(str::trim).filter(|line| !line.is_empty()).collect(),
            FieldKind::Json => crate::admin::input::json::value(text.as_bytes()).map_err(|_| "json")?,
            // Browsers send minutes, and seconds only where they are not 0.
            FieldKind::Instant if text.len() == "2026-12-01T11:36".len() => json!(format!("{text}:00Z")),
            FieldKind::Instant => json!(format!("{text}Z")),
            FieldKind::Limits(..) => Value::Null,
        })
    }
}

impl LimitRow {
    fn json(&self, has_owner: bool) -> Value {
        let mut limit = json!({"count": self.count, "per": self.per, "max": number(&self.max)});
        if has_owner {
            limit["of"] = json!(self.of);
        }
        limit
    }
}

fn number(text: &str) -> Value {
    let digits = text.replace([' ', ','], "");
    digits.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number))
}

/// The words that a limit may count, and their labels.
pub(super) fn counts(t: &'static Texts) -> Vec<(String, String)> {
    let label = |count: &Measure| match count {
        Measure::Requests => t.count_requests,
        Measure::Tokens => t.count_tokens,
        Measure::InputTokens => t.count_input_tokens,
        Measure::OutputTokens => t.count_output_tokens,
        Measure::Cost => t.count_cost,
    };
    Measure::ALL.iter().map(|count| (count.as_str().to_owned(), label(count).to_owned())).collect()
}

/// The windows of a limit, and their labels.
pub(super) fn windows(t: &'static Texts) -> Vec<(String, String)> {
    let label = |per: &Per| match per {
        Per::Second => t.per_second,
        Per::Minute => t.per_minute,
        Per::Hour => t.per_hour,
        Per::Day => t.per_day,
        Per::Week => t.per_week,
        Per::Month => t.per_month,
        Per::Total => t.per_total,
    };
    Per::ALL.iter().map(|per| (per.as_str().to_owned(), label(per).to_owned())).collect()
}

/// Whose usage a limit of a plan counts.
pub(super) fn owners(t: &'static Texts) -> Vec<(String, String)> {
    let label = |owner: &Owner| match owner {
        Owner::Workspace => t.of_workspace,
        Owner::Key => t.of_key,
        Owner::EndUser => t.of_end_user,
    };
    Owner::ALL.iter().map(|owner| (owner.as_str().to_owned(), label(owner).to_owned())).collect()
}

/// The label of a word.
pub(super) fn label_of(words: &[(String, String)], word: &str) -> String {
    words.iter().find(|(value, _)| value == word).map_or_else(|| word.to_owned(), |(_, label)| label.clone())
}

/// Further limits in a form, from those in force.
pub(super) fn limit_rows(limits: &[Value]) -> Vec<LimitRow> {
    let text = |limit: &Value, name: &str| limit[name].as_str().unwrap_or_default().to_owned();
    let mut rows: Vec<_> = limits
        .iter()
        .map(|limit| LimitRow {
            of: text(limit, "of"),
            count: text(limit, "count"),
            per: text(limit, "per"),
            max: limit["max"].to_string(),
        })
        .collect();
    rows.resize(LIMIT_ROWS, LimitRow::default());
    rows
}

// === impl Form ===

impl Form {
    pub(super) fn new(fields: Vec<Field>) -> Self {
        Self { fields, error: None }
    }

    /// Takes over what was typed.
    pub(super) fn fill(&mut self, form: &FormData) {
        for field in &mut self.fields {
            field.fill(form);
        }
    }

    /// The fields as a body for the API. Empty ones are left out of something new; in a change they clear.
    pub(super) fn body(&mut self, is_new: bool, t: &'static Texts) -> Option<Map<String, Value>> {
        let mut body = Map::new();
        for field in &mut self.fields {
            match field.json() {
                Err(_) => field.error = Some(t.not_json.to_owned()),
                Ok(Value::Null) if is_new => {}
                Ok(value) => {
                    body.insert(field.name.to_owned(), value);
                }
            }
        }
        self.fields.iter().all(|field| field.error.is_none()).then_some(body)
    }

    /// Shows a refusal at the fields that it names, and the rest above the form.
    pub(super) fn refuse(&mut self, refused: Refused) {
        let Refused { message, errors, .. } = refused;
        let mut elsewhere = Vec::new();
        for FieldError { field, message } in errors {
            let (name, place) = field.split_at(field.find(['[', '.']).unwrap_or(field.len()));
            let said = if place.is_empty() { message } else { format!("{}: {message}", place_of(place)) };
            match self.fields.iter_mut().find(|known| known.name == name) {
                Some(found) => {
                    let before = found.error.take().map(|before| format!("{before}; ")).unwrap_or_default();
                    found.error = Some(before + &said);
                }
                None => elsewhere.push(format!("{field} {said}")),
            }
        }
        let is_shown = self.fields.iter().any(|field| field.error.is_some());
        self.error = match elsewhere.is_empty() {
            false => Some(elsewhere.join("; ")),
            true if is_shown => None,
            true => Some(message),
        };
    }

    /// Whether something is wrong with it.
    pub(super) fn is_refused(&self) -> bool {
        self.error.is_some() || self.fields.iter().any(|field| field.error.is_some())
    }

    /// The value of a field.
    pub(super) fn value(&self, name: &str) -> &str {
        self.fields.iter().find(|field| field.name == name).map_or("", |field| &field.value)
    }
}

/// `[1].max` as people count: `2, max`.
fn place_of(place: &str) -> String {
    let (number, rest) = place.trim_start_matches('[').split_once(']').unwrap_or(("", place));
    let number = number.parse::<usize>().map(|n| (n + 1).to_string()).unwrap_or_default();
    let rest = rest.trim_start_matches('.');
    if rest.is_empty() || number.is_empty() { number + rest } else { format!("{number}, {rest}") }
}

/// The value of an instant that may be missing.
pub(super) fn instant_value(ms: Option<i64>) -> String {
    ms.map(show::form_instant).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    #[test]
    fn fields_are_sent_as_the_json_they_stand_for() {
        let t = &Texts::EN;
        let field = |name, kind| Field::new(name, "", "", kind);
        let mut form = Form::new(vec![
            field("name", FieldKind::Text),
            field("rate", FieldKind::Number),
            field("odd", FieldKind::Number),
            field("scopes", FieldKind::Words),
            field("ips", FieldKind::Lines),
            field("end", FieldKind::Instant),
            field("data", FieldKind::Json),
            field("none", FieldKind::Text),
            field("limits", FieldKind::Limits(limit_rows(&[]), None)),
        ]);
        let sent = "name=+a+b+&rate=1%2C000&odd=many&scopes=a%2C+b&ips=10.0.0.0%2F8%0D%0A%0D%0A&end=2026-12-01T11%3A36\
            &data=%7B%22a%22%3A1%7D&limit_count_1=tokens&limit_per_1=day&limit_max_1=5";
        form.fill(&FormData::parse(sent.as_bytes()).expect("a form"));
        let expected = json!({"name": "a b", "rate": 1000, "odd": "many", "scopes": ["a", "b"], "ips": ["10.0.0.0/8"],
            "end": "2026-12-01T11:36:00Z", "data": {"a": 1}, "limits": [{"count": "tokens", "per": "day", "max": 5}]});
        assert_eq!(form.body(true, t).map(Value::Object), Some(expected.clone()));
        let mut changed = expected;
        changed["none"] = Value::Null;
        assert_eq!(form.body(false, t).map(Value::Object), Some(changed));
    }

    #[test]
    fn mistakes_are_shown_at_their_fields_and_the_rest_above() {
        let error = |field: &str, message: &str| FieldError { field: field.into(), message: message.into() };
        let refused = |errors| Refused { status: StatusCode::BAD_REQUEST, message: "all".into(), errors };
        let form = || Form::new(vec![Field::new("limits", "", "", FieldKind::Text)]);
        let mut shown = form();
        shown.refuse(refused(vec![error("limits[1].max", "must be 1"), error("other", "is odd")]));
        assert_eq!(shown.fields[0].error.as_deref(), Some("2, max: must be 1"));
        assert_eq!(shown.error.as_deref(), Some("other is odd"));
        let mut shown = form();
        shown.refuse(refused(Vec::new()));
        assert_eq!((shown.error.as_deref(), shown.is_refused()), (Some("all"), true));
    }
}
