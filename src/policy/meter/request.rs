//! What a request says about itself that its meter wants to know.

use super::decimal::whole;
use super::json::{JsonScanner, JsonSink, Want};
use crate::policy::http::path::decode_segment;

/// Reads a JSON body as it passes, in memory that does not grow with it: until the model has come, or all of it.
#[derive(Debug, Default)]
pub struct RequestReader {
    scanner: JsonScanner<Place>,
    found: FoundFacts,
    reads_all: bool,
    is_bad: bool,
}

/// What a request says about the answer that it wants. What is said twice is taken as the backend may take it: of a number the
/// largest, of anything else the last.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RequestFacts {
    /// The model.
    pub model: Option<Box<str>>,
    /// How many tokens each choice of the answer may have at most. None: it does not say, or nothing that is a number above 0.
    pub max_output: Option<u64>,
    /// How many choices it wants; 0 if it does not say.
    pub choices: u64,
    /// Whether it wants a stream.
    pub streams: bool,
    /// Whether it wants a stream of `OpenAI` to say what was used.
    pub asks_usage: bool,
}

/// What has been found.
#[derive(Debug, Default)]
struct FoundFacts(RequestFacts);

/// A place in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Nowhere,
    Request,
    Model,
    /// `generationConfig` of Gemini.
    GenerationConfig,
    /// `inferenceConfig` of Bedrock.
    InferenceConfig,
    /// `stream_options` of `OpenAI`.
    StreamOptions,
    MaxOutput,
    Choices,
    Stream,
    IncludeUsage,
}

// === impl RequestReader ===

impl RequestReader {
    /// A reader of the whole body.
    pub fn of_all() -> Self {
        Self { reads_all: true, ..Self::default() }
    }

    /// Reads the next piece of the body.
    pub fn push(&mut self, piece: &[u8]) {
        if !self.is_bad && (self.reads_all || self.found.0.model.is_none()) {
            self.is_bad = self.scanner.push(piece, &mut self.found).is_err();
        }
    }

    /// The model that the body names.
    pub fn model(&self) -> Option<&str> {
        self.found.0.model.as_deref()
    }

    /// The body has ended: what it says. None if it is not JSON.
    pub fn finish(mut self) -> Option<RequestFacts> {
        let is_whole = !self.is_bad && self.scanner.finish(&mut self.found);
        is_whole.then_some(self.found.0)
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

// === impl FoundFacts ===

impl JsonSink for FoundFacts {
    type Place = Place;

    fn root(&self) -> Place {
        Place::Request
    }

    fn field(&self, object: Place, key: &[u8]) -> Place {
        match (object, key) {
            (Place::Request, b"model") => Place::Model,
            (Place::Request, b"stream") => Place::Stream,
            (Place::Request, b"stream_options") => Place::StreamOptions,
            (Place::Request, b"generationConfig" | b"generation_config") => Place::GenerationConfig,
            (Place::Request, b"inferenceConfig") => Place::InferenceConfig,
            (Place::Request, b"max_tokens" | b"max_completion_tokens" | b"max_output_tokens")
            | (Place::GenerationConfig, b"maxOutputTokens" | b"max_output_tokens")
            | (Place::InferenceConfig, b"maxTokens") => Place::MaxOutput,
            // Of the best of several, all are counted.
            (Place::Request, b"n" | b"best_of")
            | (Place::GenerationConfig, b"candidateCount" | b"candidate_count") => Place::Choices,
            (Place::StreamOptions, b"include_usage") => Place::IncludeUsage,
            _ => Place::Nowhere,
        }
    }

    fn element(&self, _: Place, _: u64) -> Place {
        Place::Nowhere
    }

    fn wants(&self, place: Place) -> Want {
        if place == Place::Model { Want::Text } else { Want::Nothing }
    }

    fn number(&mut self, place: Place, text: &str) {
        let value = whole(text, 0).filter(|value| *value > 0);
        match place {
            Place::MaxOutput => self.0.max_output = self.0.max_output.max(value),
            Place::Choices => self.0.choices = self.0.choices.max(value.unwrap_or(0)),
            _ => {}
        }
    }

    fn text(&mut self, _: Place, text: &str) {
        if super::is_label(text) {
            self.0.model = Some(text.into());
        }
    }

    fn literal(&mut self, place: Place, value: Option<bool>) {
        match place {
            Place::Stream => self.0.streams = value == Some(true),
            Place::IncludeUsage => self.0.asks_usage = value == Some(true),
            _ => {}
        }
    }

    fn length(&mut self, _: Place, _: u64) {}

    fn begin_object(&mut self, place: Place) {
        if place == Place::StreamOptions {
            self.0.asks_usage = false;
        }
    }

    fn end_object(&mut self, _: Place) {}
}

/// Whether a path is that of `OpenAI`'s chat completions or completions, whose streams say what was used only if they are asked.
pub fn is_completions(path: &str) -> bool {
    path.rsplit('/').next() == Some("completions")
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

    fn facts(body: &str) -> Option<RequestFacts> {
        let cut = |size: usize| {
            let mut reader = RequestReader::of_all();
            body.as_bytes().chunks(size).for_each(|piece| reader.push(piece));
            reader.finish()
        };
        assert_eq!(cut(1), cut(1_000), "{body}");
        cut(1)
    }

    #[test]
    fn maximum_and_model_of_a_request_are_found_in_every_dialect_and_order() {
        for (body, max_output, choices) in [
            (r#"{"max_tokens":100,"messages":[]}"#, Some(100), 0),
            (r#"{"messages":[{"max_tokens":7}],"n":3,"max_completion_tokens":50}"#, Some(50), 3),
            (r#"{"input":"","max_output_tokens":64}"#, Some(64), 0),
            (r#"{"prompt":"x","best_of":4,"n":2,"max_tokens":5}"#, Some(5), 4),
            (r#"{"generationConfig":{"candidateCount":2,"maxOutputTokens":9},"contents":[]}"#, Some(9), 2),
            (r#"{"generation_config":{"candidate_count":2,"max_output_tokens":9}}"#, Some(9), 2),
            (r#"{"messages":[],"inferenceConfig":{"maxTokens":300,"temperature":1}}"#, Some(300), 0),
            // Only where the dialect has it.
            (r#"{"maxTokens":5,"inferenceConfig":{"max_tokens":6},"generationConfig":{"n":7}}"#, None, 0),
            (r#"{"metadata":{"max_tokens":5},"tools":[{"n":9,"inferenceConfig":{"maxTokens":1}}]}"#, None, 0),
        ] {
            let facts = facts(body).expect("JSON");
            assert_eq!((facts.max_output, facts.choices), (max_output, choices), "{body}");
        }
    }

    #[test]
    fn hostile_numbers_are_harmless() {
        let long = format!(r#"{{"max_tokens":1{}}}"#, "0".repeat(300));
        for (body, max_output, choices) in [
            (r#"{"max_tokens":-5,"n":-1}"#, None, 0),
            (r#"{"max_tokens":0}"#, None, 0),
            (r#"{"max_tokens":1e9,"n":1e15}"#, Some(1_000_000_000), 1_000_000_000_000_000),
            (r#"{"max_tokens":1e400,"n":1e999999999999}"#, None, 0),
            (r#"{"max_tokens":1e-400}"#, None, 0),
            (r#"{"max_tokens":"100","n":null}"#, None, 0),
            (r#"{"max_tokens":[100],"n":{"n":5}}"#, None, 0),
            // Whichever of them the backend takes.
            (r#"{"max_tokens":1,"max_tokens":90,"max_tokens":2}"#, Some(90), 0),
            (r#"{"max_tokens":10,"max_completion_tokens":20}"#, Some(20), 0),
            (r#"{"max\u005ftokens":30}"#, Some(30), 0),
            (&long, None, 0),
        ] {
            let facts = facts(body).expect("JSON");
            assert_eq!((facts.max_output, facts.choices), (max_output, choices), "{body}");
        }
        for body in ["", "max_tokens=5", r#"{"max_tokens":5"#, r#"{"max_tokens":5}}"#, "\u{0}"] {
            assert_eq!(facts(body), None, "{body}");
        }
    }

    #[test]
    fn whether_a_stream_is_wanted_and_says_what_it_used() {
        for (body, streams, asks_usage) in [
            (r#"{"stream":true}"#, true, false),
            (r#"{"stream_options":{"x":[],"include_usage":true},"stream":true}"#, true, true),
            (r#"{"stream":true,"stream_options":{"include_usage":false}}"#, true, false),
            (r#"{"stream":true,"stream_options":null}"#, true, false),
            (
                r#"{"stream":false,"stream":true,"stream_options":{"include_usage":true},"stream_options":{}}"#,
                true,
                false,
            ),
            (r#"{"stream":"true","include_usage":true,"a":{"stream":true}}"#, false, false),
        ] {
            let facts = facts(body).expect("JSON");
            assert_eq!((facts.streams, facts.asks_usage), (streams, asks_usage), "{body}");
        }
    }

    #[test]
    fn of_a_whole_body_the_last_model_counts() {
        let model = facts(r#"{"model":"a","n":1,"model":"b"}"#).and_then(|facts| facts.model);
        assert_eq!(model.as_deref(), Some("b"));
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
