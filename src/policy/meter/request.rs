//! What a request says about itself that its meter wants to know.

use super::json::{JsonScanner, JsonSink, Want};
use crate::policy::http::path::decode_segment;

/// Finds the model that a request names: reads a JSON body as it passes, until the model has come.
#[derive(Debug, Default)]
pub struct RequestReader {
    scanner: JsonScanner<Place>,
    model: ModelField,
    is_bad: bool,
}

/// The field `model` of a document.
#[derive(Debug, Default)]
struct ModelField(Option<Box<str>>);

/// A place in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Nowhere,
    Request,
    Model,
}

// === impl RequestReader ===

impl RequestReader {
    /// Reads the next piece of the body.
    pub fn push(&mut self, piece: &[u8]) {
        if self.model.0.is_none() && !self.is_bad {
            self.is_bad = self.scanner.push(piece, &mut self.model).is_err();
        }
    }

    /// The model that the body names.
    pub fn model(&self) -> Option<&str> {
        self.model.0.as_deref()
    }
}

/// The model that a path names: after `models/` in Gemini, `deployments/` in Azure and `model/` in Bedrock.
pub fn model_in_path(path: &str) -> Option<Box<str>> {
    let mut segments = path.split('/');
    while let Some(segment) = segments.next() {
        let is_gemini = segment == "models";
        if !is_gemini && !matches!(segment, "deployments" | "model") {
            continue;
        }
        let segment = decode_segment(segments.next()?)?;
        // Gemini appends the method to the model.
        let method = segment.rfind(':').filter(|_| is_gemini);
        let name = &segment[..method.unwrap_or(segment.len())];
        return super::is_label(name).then(|| name.into());
    }
    None
}

// === impl ModelField ===

impl JsonSink for ModelField {
    type Place = Place;

    fn root(&self) -> Place {
        Place::Request
    }

    fn field(&self, object: Place, key: &str) -> Place {
        if object == Place::Request && key == "model" { Place::Model } else { Place::Nowhere }
    }

    fn element(&self, _: Place, _: u64) -> Place {
        Place::Nowhere
    }

    fn wants(&self, place: Place) -> Want {
        if place == Place::Model { Want::Text } else { Want::Nothing }
    }

    fn number(&mut self, _: Place, _: &str) {}

    fn text(&mut self, _: Place, text: &str) {
        if super::is_label(text) {
            self.0 = Some(text.into());
        }
    }

    fn length(&mut self, _: Place, _: u64) {}

    fn begin_object(&mut self, _: Place) {}

    fn end_object(&mut self, _: Place) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_a_body_is_found_however_it_comes() {
        for (body, model) in [
            (r#"{"model":"gpt-4o","messages":[]}"#, Some("gpt-4o")),
            (r#"{"messages":[{"model":"no","content":"\"model\":\"no\""}],"model":"m\u00e9"}"#, Some("mé")),
            (r#"{"model":"gpt-4o","messa"#, Some("gpt-4o")),
            (r#"{"model":""}"#, None),
            (r#"{"model":"a\u0000b"}"#, None),
            (r#"{"model":4}"#, None),
            (r#"[{"model":"gpt-4o"}]"#, None),
            ("model=gpt-4o", None),
            ("", None),
        ] {
            for size in [1, 3, 1_000] {
                let mut reader = RequestReader::default();
                body.as_bytes().chunks(size).for_each(|piece| reader.push(piece));
                assert_eq!(reader.model(), model, "{body}");
            }
        }
    }

    #[test]
    fn the_model_of_a_path_is_found() {
        for (path, model) in [
            ("/v1beta/models/gemini-2.5-pro:streamGenerateContent", Some("gemini-2.5-pro")),
            ("/openai/deployments/my-gpt/chat/completions", Some("my-gpt")),
            (
                "/model/anthropic.claude-3-5-sonnet-20241022-v2%3A0/converse",
                Some("anthropic.claude-3-5-sonnet-20241022-v2:0"),
            ),
            ("/v1/chat/completions", None),
            ("/v1/models", None),
            ("/v1/models/", None),
        ] {
            assert_eq!(model_in_path(path).as_deref(), model, "{path}");
        }
    }
}
