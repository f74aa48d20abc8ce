//! Lowers the most output that a request for a language model asks for, in each dialect.
//!
//! Must not know: how much is left.
//!
//! *Invariant:* a number that is not above the new maximum stays as it is.

use super::decimal::whole;
use super::rewrite::{BodyEdits, Members, offset};

/// Where an object says how many output tokens an answer may have at most.
struct Places {
    /// The fields, and the objects that may have some.
    names: &'static [&'static str],
    /// The fields that the backend takes.
    own: &'static [&'static str],
    /// The one that is added where there is none of them.
    added: Option<&'static str>,
}

/// All that a request may have.
const NAMES: &[&str] = &[
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "generationConfig",
    "generation_config",
    "inferenceConfig",
];
/// `generationConfig` of Gemini.
const GENERATION_CONFIG: Places = Places {
    names: &["maxOutputTokens", "max_output_tokens"],
    own: &["maxOutputTokens", "max_output_tokens"],
    added: Some("maxOutputTokens"),
};
/// `inferenceConfig` of Bedrock.
const INFERENCE_CONFIG: Places =
    Places { names: &["maxTokens"], own: &["maxTokens"], added: Some("maxTokens") };

// === impl Places ===

impl Places {
    /// Those of a request to this path. Of other dialects than `OpenAI`'s, nothing is added to the request itself.
    fn of_path(path: &str) -> Self {
        let (own, added): (&[&str], _) = match path.rsplit_once('/') {
            Some((before, "completions")) if before.ends_with("/chat") => {
                (&["max_completion_tokens", "max_tokens"], Some("max_completion_tokens"))
            }
            Some((_, "completions")) => (&["max_tokens"], Some("max_tokens")),
            Some((_, "responses")) => (&["max_output_tokens"], Some("max_output_tokens")),
            _ => (&[], None),
        };
        Self { names: NAMES, own, added }
    }

    /// Those of an object in a request; none if it is a field.
    fn of_object(name: &str) -> Option<&'static Self> {
        match name {
            "generationConfig" | "generation_config" => Some(&GENERATION_CONFIG),
            "inferenceConfig" => Some(&INFERENCE_CONFIG),
            _ => None,
        }
    }
}

// === impl BodyEdits ===

impl BodyEdits {
    /// Makes a request to this path ask for at most `max` output tokens in each answer. None: it does so already, or cannot.
    pub fn limiting_output(body: &[u8], path: &str, max: u64) -> Option<Self> {
        let mut edits = Self::default();
        edits.limit(body, 0, &Places::of_path(path), max)?;
        edits.sorted()
    }

    /// The same in one object, which begins at `start` of the body.
    fn limit(&mut self, object: &[u8], start: usize, places: &Places, max: u64) -> Option<()> {
        let Members { first, is_empty, values } = Members::of(object, places.names)?;
        let (mut said, mut nulls) = (Vec::new(), Vec::new());
        for (name, value) in values {
            let (at, text) = (start + offset(object, value), value.get());
            match Places::of_object(name) {
                Some(inner) if text.starts_with('{') => self.limit(text.as_bytes(), at, inner, max)?,
                Some(_) => {}
                None if text == "null" => nulls.push((name, at, value)),
                None => {
                    said.push(name);
                    if exceeds(text, max) {
                        self.replace(at, value, max.to_string());
                    }
                }
            }
        }
        let added = places.added.filter(|_| !said.iter().any(|name| places.own.contains(name)));
        if let Some(added) = added.filter(|added| nulls.iter().all(|(name, ..)| name != added)) {
            self.insert(start + first, is_empty, added, &max.to_string());
        }
        // Of a field that is there twice, the backend may take the one that says nothing.
        for (name, at, value) in nulls {
            if added == Some(name) || said.contains(&name) {
                self.replace(at, value, max.to_string());
            }
        }
        Some(())
    }
}

/// Whether a backend may take this value for more than `max`. Some take a number in a string, and a negative one for no maximum.
fn exceeds(value: &str, max: u64) -> bool {
    let text = if value.starts_with('"') {
        serde_json::from_str(value).unwrap_or_default()
    } else {
        value.to_owned()
    };
    let text = text.trim();
    text.starts_with(['-', '+', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
        && whole(text, 0).is_none_or(|value| value > max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "/v1/chat/completions";

    fn limited(path: &str, body: &str) -> Option<String> {
        let edits = BodyEdits::limiting_output(body.as_bytes(), path, 50)?;
        let parts: Vec<u8> = edits.parts(body.as_bytes()).flatten().copied().collect();
        Some(String::from_utf8(parts).expect("text"))
    }

    #[test]
    fn a_maximum_is_lowered_where_it_stands_and_never_raised() {
        for (path, body, expected) in [
            (CHAT, r#" {"max_tokens" : 900 , "n":2}"#, Some(r#" {"max_tokens" : 50 , "n":2}"#)),
            (CHAT, r#"{"max_completion_tokens":51}"#, Some(r#"{"max_completion_tokens":50}"#)),
            (
                CHAT,
                r#"{"max_tokens":60,"é":"}","max_completion_tokens":1e9}"#,
                Some(r#"{"max_tokens":50,"é":"}","max_completion_tokens":50}"#),
            ),
            (
                CHAT,
                r#"{"max_tokens":70,"max\u005ftokens":40}"#,
                Some(r#"{"max_tokens":50,"max\u005ftokens":40}"#),
            ),
            (CHAT, r#"{"max_tokens":70,"max_tokens":null}"#, Some(r#"{"max_tokens":50,"max_tokens":50}"#)),
            (CHAT, r#"{"max_tokens":-1}"#, Some(r#"{"max_tokens":50}"#)),
            (CHAT, r#"{"max_tokens":"900"}"#, Some(r#"{"max_tokens":50}"#)),
            (CHAT, r#"{"max_tokens":99999999999999999999}"#, Some(r#"{"max_tokens":50}"#)),
            ("/v1/messages", r#"{"max_tokens":51,"a":1}"#, Some(r#"{"max_tokens":50,"a":1}"#)),
            ("/v1/responses", r#"{"max_output_tokens":64}"#, Some(r#"{"max_output_tokens":50}"#)),
            (
                "/v1beta/models/g:generateContent",
                r#"{"contents":[],"generationConfig":{"temperature":1,"maxOutputTokens": 51}}"#,
                Some(r#"{"contents":[],"generationConfig":{"temperature":1,"maxOutputTokens": 50}}"#),
            ),
            (
                "/model/m/converse",
                r#"{"inferenceConfig":{"maxTokens":300}}"#,
                Some(r#"{"inferenceConfig":{"maxTokens":50}}"#),
            ),
            (CHAT, r#"{"max_tokens":50}"#, None),
            (CHAT, r#"{"max_tokens":0}"#, None),
            (CHAT, r#"{"max_tokens":"many"}"#, None),
            (CHAT, r#"{"max_tokens":[900]}"#, None),
            (CHAT, r#"{"max_completion_tokens":5,"max_tokens":null}"#, None),
            (CHAT, r#"[{"max_tokens":900}]"#, None),
            (CHAT, r#"{"max_tokens":900"#, None),
            ("/v1/messages", r#"{"metadata":{"max_tokens":900},"max_tokens":5}"#, None),
        ] {
            assert_eq!(limited(path, body).as_deref(), expected, "{path} {body}");
        }
    }

    #[test]
    fn a_missing_maximum_is_added_in_the_field_of_the_dialect() {
        for (path, body, expected) in [
            (CHAT, "{}", Some(r#"{"max_completion_tokens":50}"#)),
            (CHAT, r#"{"n":1}"#, Some(r#"{"max_completion_tokens":50,"n":1}"#)),
            (CHAT, r#"{"max_tokens":null}"#, Some(r#"{"max_completion_tokens":50,"max_tokens":null}"#)),
            (CHAT, r#"{"max_completion_tokens":null}"#, Some(r#"{"max_completion_tokens":50}"#)),
            // A field of another dialect bounds nothing.
            (
                CHAT,
                r#"{"max_output_tokens":5}"#,
                Some(r#"{"max_completion_tokens":50,"max_output_tokens":5}"#),
            ),
            ("/v1/completions", r#"{"n":1}"#, Some(r#"{"max_tokens":50,"n":1}"#)),
            ("/v1/responses", r#"{"n":1}"#, Some(r#"{"max_output_tokens":50,"n":1}"#)),
            (
                "/v1beta/models/g:generateContent",
                r#"{"generationConfig":{}}"#,
                Some(r#"{"generationConfig":{"maxOutputTokens":50}}"#),
            ),
            (
                "/model/m/converse",
                r#"{"inferenceConfig":{"a":1}}"#,
                Some(r#"{"inferenceConfig":{"maxTokens":50,"a":1}}"#),
            ),
            ("/v1beta/models/g:generateContent", r#"{"contents":[]}"#, None),
            ("/model/m/converse", r#"{"messages":[],"inferenceConfig":null}"#, None),
            ("/v1/messages", r#"{"messages":[]}"#, None),
            ("/v1/embeddings", r#"{"input":""}"#, None),
        ] {
            assert_eq!(limited(path, body).as_deref(), expected, "{path} {body}");
        }
    }

    #[test]
    fn a_body_can_be_made_to_ask_for_its_usage_as_well() {
        let body = br#"{"stream":true,"max_tokens":900}"#;
        let lower = BodyEdits::limiting_output(body, CHAT, 50).expect("edits");
        let edits = lower.and(BodyEdits::asking_for_usage(body).expect("edits"));
        let parts: Vec<u8> = edits.parts(body).flatten().copied().collect();
        assert_eq!(parts, br#"{"stream_options":{"include_usage":true},"stream":true,"max_tokens":50}"#);
        let often = format!("{{{}\"x\":1}}", r#""max_tokens":900,"#.repeat(9));
        assert_eq!(BodyEdits::limiting_output(often.as_bytes(), CHAT, 50), None);
    }
}
