//! Limits as a column has them. Pure.

use super::rules::AuditFields;
use crate::model::key::{Ceiling, Owner};
use serde_json::{Value, json};

/// Limits as stored.
pub(in crate::store) fn limits_to_json(limits: &[Ceiling]) -> Value {
    let one = |c: &Ceiling| {
        let mut limit = json!({"count": c.count.as_str(), "per": c.per.as_str(), "max": c.max});
        if c.of != Owner::Workspace {
            limit["of"] = json!(c.of.as_str());
        }
        limit
    };
    limits.iter().map(one).collect()
}

/// Parses the output of [`limits_to_json`], or says what is wrong.
pub(in crate::store) fn limits_from_json(text: &str) -> Result<Box<[Ceiling]>, String> {
    let items: Vec<AuditFields> = serde_json::from_str(text).map_err(|_| "not a JSON array of objects")?;
    let mut limits = Vec::with_capacity(items.len());
    for item in &items {
        let word = |name: &str| item.get(name).and_then(Value::as_str).ok_or_else(|| format!("no {name}"));
        let of = item.get("of").map(|of| of.as_str().ok_or("of is no word")).transpose()?;
        limits.push(Ceiling {
            of: of.map_or(Ok(Owner::Workspace), |of| of.parse().map_err(|e| format!("of {e}")))?,
            count: word("count")?.parse().map_err(|e| format!("count {e}"))?,
            per: word("per")?.parse().map_err(|e| format!("per {e}"))?,
            max: item.get("max").and_then(Value::as_u64).ok_or("no max")?,
        });
    }
    Ok(limits.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::key::{CEILING_MAX, Measure, Per};

    #[test]
    fn written_values_are_read() {
        let all = Owner::ALL.iter().flat_map(|of| Measure::ALL.iter().map(move |count| (*of, *count)));
        let limits: Vec<_> =
            all.map(|(of, count)| Ceiling { of, count, per: Per::Month, max: CEILING_MAX }).collect();
        assert_eq!(limits_from_json(&limits_to_json(&limits).to_string()).as_deref(), Ok(limits.as_slice()));
    }

    #[test]
    fn invalid_ceilings_are_named() {
        for (text, why) in [
            ("", "not a JSON array of objects"),
            ("[1]", "not a JSON array of objects"),
            ("[{}]", "no count"),
            (r#"[{"count":"wishes"}]"#, "count must be one of"),
            (r#"[{"count":"requests","per":"day"}]"#, "no max"),
            (r#"[{"count":"requests","per":"day","max":-1}]"#, "no max"),
            (r#"[{"count":"requests","per":"aeon","max":1}]"#, "per must be one of"),
        ] {
            let error = limits_from_json(text).unwrap_err();
            assert!(error.starts_with(why), "{text}: {error}");
        }
    }
}
