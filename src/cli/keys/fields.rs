//! The fields of a key as arguments. The API checks them, by the same rules as those of every other client.

use crate::cli::Failure;
use clap::Args;
use serde_json::{Map, Value, json};

/// Fields that `create` and `update` share.
#[derive(Debug, Args)]
pub(super) struct KeyFields {
    /// A description
    #[arg(long)]
    description: Option<String>,
    /// The scopes it grants, separated by commas: `orders:read,orders:*`; '' grants nothing
    #[arg(long, value_delimiter = ',')]
    scopes: Option<Vec<String>>,
    /// Requests per second
    #[arg(long, value_name = "N")]
    rate_limit: Option<u64>,
    /// Requests that may come at once; none: as --rate-limit
    #[arg(long, value_name = "N|none", value_parser = number)]
    rate_burst: Option<Value>,
    /// Requests per day
    #[arg(long, value_name = "N|none", value_parser = number)]
    daily_request_limit: Option<Value>,
    /// Requests in its life
    #[arg(long, value_name = "N|none", value_parser = number)]
    quota_limit: Option<Value>,
    /// Requests in flight
    #[arg(long, value_name = "N|none", value_parser = number)]
    concurrency_limit: Option<Value>,
    /// Expiry: epoch seconds or milliseconds, RFC 3339, or none
    #[arg(long, value_name = "INSTANT|none", value_parser = instant)]
    expires_at: Option<Value>,
    /// Addresses or networks from which it may be used; several with commas; '' is any
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    allowed_ips: Option<Vec<String>>,
    /// Its id in another system; unique among the live keys of the workspace
    #[arg(long, value_name = "ID|none", value_parser = text_or_none)]
    external_id: Option<Value>,
    /// Further fields as in the API, such as '{"limits": [{"count": "tokens", "per": "day", "max": 100000}]}'
    #[arg(long, value_name = "JSON", value_parser = object)]
    fields: Option<Map<String, Value>>,
}

/// A number, or `none`, which clears the field.
pub(in crate::cli) fn number(text: &str) -> Result<Value, String> {
    if text == "none" {
        return Ok(Value::Null);
    }
    text.parse::<u64>().map(|n| json!(n)).map_err(|_| "must be a whole number or none".into())
}

/// A JSON object.
pub(in crate::cli) fn object(text: &str) -> Result<Map<String, Value>, String> {
    match crate::admin::input::json::object(text.as_bytes()) {
        Ok(fields) => Ok(fields),
        Err(bad) => Err(format!("must be a JSON object: {bad}")),
    }
}

/// Text, or `none`, which clears the field.
#[expect(clippy::unnecessary_wraps, reason = "what clap asks for")]
fn text_or_none(text: &str) -> Result<Value, String> {
    Ok(if text == "none" { Value::Null } else { json!(text) })
}

/// An instant as the API takes it, or `none`. The API says what is wrong with others.
#[expect(clippy::unnecessary_wraps, reason = "what clap asks for")]
fn instant(text: &str) -> Result<Value, String> {
    Ok(match (text, text.parse::<i64>()) {
        ("none", _) => Value::Null,
        (_, Ok(number)) => json!(number),
        (text, Err(_)) => json!(text),
    })
}

/// Adds the fields that are there. One that `more` names as well is a mistake, because one of the two would be lost.
pub(in crate::cli) fn body<const N: usize>(
    fields: [(&str, Option<Value>); N],
    more: Option<Map<String, Value>>,
) -> Result<Map<String, Value>, Failure> {
    let mut all = more.unwrap_or_default();
    for (name, value) in fields {
        if let Some(value) = value
            && all.insert(name.to_owned(), value).is_some()
        {
            return Err(Failure::Usage(format!(
                "--fields: {name} has an argument of its own, which is given, too"
            )));
        }
    }
    Ok(all)
}

impl KeyFields {
    pub(super) fn into_body(self) -> Result<Map<String, Value>, Failure> {
        let words =
            |list: Vec<String>| json!(list.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>());
        let fields = [
            ("description", self.description.map(|text| json!(text))),
            ("scopes", self.scopes.map(words)),
            ("rate_limit", self.rate_limit.map(|n| json!(n))),
            ("rate_burst", self.rate_burst),
            ("daily_request_limit", self.daily_request_limit),
            ("quota_limit", self.quota_limit),
            ("concurrency_limit", self.concurrency_limit),
            ("expires_at", self.expires_at),
            ("allowed_ips", self.allowed_ips.map(words)),
            ("external_id", self.external_id),
        ];
        body(fields, self.fields)
    }
}
