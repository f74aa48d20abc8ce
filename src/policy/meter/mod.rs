//! The meter: finds out from the answer of a backend what a request used.
//!
//! Must not know: the proxy, stores, what a token costs. It is shown a copy of the answer and changes nothing.
//!
//! *Invariant:* whatever arrives, memory is bounded: a place in a document of at most [`json::DEPTH_MAX`] levels, a capture of at
//! most [`json::CAPTURE_MAX`] bytes, and the window of a compression.
//!
//! *Invariant:* the result does not depend on how the answer is cut into pieces, unless its compression is damaged.

mod body;
mod clamp;
mod decimal;
mod decode;
mod events;
mod frames;
mod hidden;
mod hold;
mod inner;
mod json;
mod number;
mod request;
mod rewrite;
mod usage;
mod usual;

pub use hidden::UsageEventFilter;
pub use hold::{HoldBounds, HoldRequest, PlannedHold, capped, held_tokens};
pub use number::JsonPointer;
pub use request::{RequestFacts, RequestReader, is_completions, model_in_path};
pub use rewrite::BodyEdits;
pub use usual::OutputSketch;

use crate::model::key::{Measure, words};
use crate::model::tokens::{MeterReading, ReadingSource, TokenCounts};
use crate::policy::http::field_lines::EditFields;
use body::{Body, BodyState, Framing, UsageSink as _};
use decode::BodyDecoder;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{Method, StatusCode};
use number::NumberAt;
use std::sync::Arc;
use usage::{Found, LlmUsage};

/// Where backends say which request this was.
static ID_HEADERS: [HeaderName; 4] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("request-id"),
    HeaderName::from_static("apim-request-id"),
    HeaderName::from_static("x-amzn-requestid"),
];
/// The longest name of a model, and the longest id, that is kept.
const LABEL_MAX: usize = 256;
/// Bytes of text that are about one token.
const BYTES_PER_TOKEN: u64 = 4;

/// How the answers of a route are metered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterRule {
    /// Where an answer says what it used.
    pub source: MeterSource,
    /// What counts when the answer of a language model does not say it.
    pub missing: Missing,
    /// What counts when the client leaves before the end of the answer.
    pub on_disconnect: OnDisconnect,
    /// How many decoded bytes of an answer are looked at.
    pub max_bytes: u64,
    /// Output tokens that a request holds at most.
    pub hold: u64,
    /// Whether the maximum of a request is lowered to what is left of its limits.
    pub clamp: bool,
    /// What becomes of a request for a model without a price.
    pub unpriced: Unpriced,
    /// Whether a stream of `OpenAI`'s chat completions or completions is made to say what it used.
    pub include_usage: bool,
}

/// The usual [`MeterRule::hold`].
pub const HOLD_DEFAULT: u64 = 4_096;

/// Where an answer says what it used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeterSource {
    /// Where language models say it.
    Llm,
    /// At this place of a JSON answer.
    Json(JsonPointer),
    /// In this header.
    Header(HeaderName),
}

words!(
    /// What counts when an answer does not say what it used.
    Missing {
        /// An estimate from the bytes of the request and of the answer.
        Estimate = "estimate",
        /// What the request held of its limits; an estimate if it held nothing.
        Hold = "hold",
        /// Nothing.
        Zero = "zero",
    }
);

words!(
    /// What counts when a client leaves before the end of the answer.
    OnDisconnect {
        /// What the whole answer used: it is read to its end.
        Drain = "drain",
        /// What had come until then, by [`Missing`].
        Delivered = "delivered",
        /// What the request held of its limits.
        Hold = "hold",
    }
);

words!(
    /// What becomes of a request for a model without a price.
    Unpriced {
        /// It is admitted, and its cost is not known.
        Admit = "admit",
        /// It is refused.
        Refuse = "refuse",
    }
);

words!(
    /// Why an answer could not be metered.
    Unreadable {
        /// It is neither JSON nor an event stream.
        ContentType = "content_type",
        /// Its content coding is unknown, or it does not decode.
        Coding = "coding",
        /// It is larger than what is looked at.
        TooLarge = "too_large",
        /// It is not what its content type says.
        Malformed = "malformed",
        /// It ended early, or the client left.
        Truncated = "truncated",
        /// It broke off with an error.
        Error = "error",
        /// It reports a duration.
        Unit = "unit",
        /// It says nothing about its use.
        NoUsage = "no_usage",
        /// An event of it is damaged; the rest is read.
        Event = "event",
        /// Not the answer, but the request whose admission depends on its body: that is too large, or cannot be read.
        Request = "request",
    }
);

/// What is known about the request.
#[derive(Clone, Debug)]
pub struct MeteredRequest<'r> {
    /// The method.
    pub method: &'r Method,
    /// The id that Keygate gave it.
    pub request_id: &'r [u8],
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug)]
pub struct MeterEnd<'r> {
    /// What counts if the answer does not say it.
    pub missing: Missing,
    /// Whether the whole answer was shown to the meter.
    pub is_whole: bool,
    /// The size of the request's body.
    pub request_bytes: u64,
    /// The model that the request named; empty if none.
    pub model_requested: &'r Arc<str>,
    /// What the request held; none if no limit counts what it uses.
    pub held: Option<TokenCounts>,
}

/// What a meter found out.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Metered {
    /// What was used. None if the answer is of a kind that uses nothing.
    pub reading: Option<MeterReading>,
    /// Why the answer does not say it.
    pub unreadable: Option<Unreadable>,
    /// Events that were damaged. They end nothing.
    pub malformed_events: u64,
}

/// Meters one answer.
pub struct Meter {
    id: Option<Box<str>>,
    decoder: BodyDecoder,
    reader: Reader,
    /// Why no more of the answer is looked at.
    stopped: Option<Unreadable>,
    /// Decoded bytes that may still be looked at.
    left: u64,
    /// Bytes of the answer, as they came.
    bytes: u64,
}

enum Reader {
    /// It uses nothing.
    Unused,
    /// Its header says so, or does not.
    Header(Option<u64>),
    /// Its type has no usage.
    Opaque,
    Llm(Box<Body<LlmUsage>>),
    Number(Box<Body<NumberAt>>),
}

// === impl MeterRule, Meter ===

impl MeterRule {
    /// Whether it finds out how much of this measure an answer used.
    pub fn counts(&self, measure: Measure) -> bool {
        // Of one number nobody knows what it is made of, or what it costs.
        matches!(measure, Measure::Requests | Measure::Tokens) || self.is_llm()
    }

    /// What counts when an answer does not say what it used. `is_abandoned`: the client has left before its end.
    pub fn missing(&self, is_abandoned: bool) -> Missing {
        if is_abandoned && self.on_disconnect == OnDisconnect::Hold { Missing::Hold } else { self.missing }
    }

    /// Whether the answers are those of language models.
    pub fn is_llm(&self) -> bool {
        self.source == MeterSource::Llm
    }
}

impl Meter {
    /// A meter for an answer with this status and these header fields.
    pub fn new(
        rule: &MeterRule,
        request: &MeteredRequest<'_>,
        status: StatusCode,
        fields: &impl EditFields,
    ) -> Self {
        let ids = ID_HEADERS.iter().filter_map(|name| fields.first(name));
        let id = ids.filter(|id| *id != request.request_id).find_map(|id| std::str::from_utf8(id).ok());
        let id = id.filter(|id| is_label(id)).map(Into::into);
        let mut meter = Self {
            id,
            decoder: BodyDecoder::identity(),
            reader: Reader::Unused,
            stopped: None,
            left: rule.max_bytes,
            bytes: 0,
        };
        if let MeterSource::Header(name) = &rule.source {
            let value = fields.first(name).and_then(|value| std::str::from_utf8(value).ok());
            let value = value.and_then(|text| decimal::whole(text.trim(), 0));
            if status.is_success() || value.is_some() {
                meter.reader = Reader::Header(value);
            }
            return meter;
        }
        // Errors use nothing; neither do requests that only ask for what is there: models, files, stored answers.
        if !status.is_success() || rule.is_llm() && uses_nothing(request.method) {
            return meter;
        }
        meter.reader = match (Framing::of(fields.first(&CONTENT_TYPE)), &rule.source) {
            (None, _) => Reader::Opaque,
            (Some(framing), MeterSource::Json(pointer)) => {
                Reader::Number(Box::new(Body::new(framing, NumberAt::new(pointer.clone()))))
            }
            (Some(framing), _) => Reader::Llm(Box::new(Body::new(framing, LlmUsage::default()))),
        };
        match (&meter.reader, BodyDecoder::of(fields)) {
            (Reader::Opaque, _) => meter.stopped = Some(Unreadable::ContentType),
            (_, None) => meter.stopped = Some(Unreadable::Coding),
            (_, Some(decoder)) => meter.decoder = decoder,
        }
        meter
    }

    /// A meter for a request that the client has given up before the answer began.
    pub fn unanswered() -> Self {
        Self {
            id: None,
            decoder: BodyDecoder::identity(),
            reader: Reader::Opaque,
            stopped: Some(Unreadable::Truncated),
            left: 0,
            bytes: 0,
        }
    }

    /// Shows the next piece of the body.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        if self.stopped.is_some() {
            return;
        }
        let Self { decoder, reader, left, .. } = self;
        let mut stopped = None;
        let decoded = decoder.push(piece, |decoded| {
            let size = decoded.len() as u64;
            let looked_at =
                &decoded[..usize::try_from(*left).map_or(decoded.len(), |left| left.min(decoded.len()))];
            let goes_on = match reader {
                Reader::Llm(body) => body.push(looked_at),
                Reader::Number(body) => body.push(looked_at),
                Reader::Unused | Reader::Header(_) | Reader::Opaque => true,
            };
            if !goes_on {
                stopped = Some(Unreadable::Malformed);
            } else if size > *left {
                stopped = Some(Unreadable::TooLarge);
            }
            *left = left.saturating_sub(size);
            stopped.is_none()
        });
        self.stopped = stopped.or_else(|| decoded.err().map(|_| Unreadable::Coding));
    }

    /// The answer has ended.
    pub fn finish(mut self, end: &MeterEnd<'_>) -> Metered {
        let state = match &mut self.reader {
            Reader::Llm(body) => body.finish(),
            Reader::Number(body) => body.finish(),
            Reader::Unused | Reader::Header(_) | Reader::Opaque => BodyState::Whole,
        };
        let uses_nothing = end.is_whole && self.bytes == 0;
        match &self.reader {
            Reader::Unused => Metered::default(),
            Reader::Header(value) => self.number(*value, Unreadable::NoUsage, end),
            _ if uses_nothing => Metered::default(),
            Reader::Opaque => {
                let why = self.stopped.unwrap_or(Unreadable::ContentType);
                self.estimated(TokenCounts::default(), 0, why, end)
            }
            Reader::Number(body) => {
                let why = self.why(state, body.sink().has_error(), end);
                let metered = self.number(body.sink().value(), why, end);
                Metered { malformed_events: body.malformed_events(), ..metered }
            }
            Reader::Llm(body) => {
                let usage = body.sink();
                let why = self.why(state, usage.has_error(), end);
                let metered = match usage.found() {
                    Found::Used(tokens) => self.found(tokens, ReadingSource::Reported, None, end),
                    Found::Begun(tokens) => self.estimated(tokens, usage.output_bytes(), why, end),
                    Found::Seconds => self.found(
                        TokenCounts::default(),
                        ReadingSource::Missing,
                        Some(Unreadable::Unit),
                        end,
                    ),
                    // An error instead of an answer.
                    Found::Nothing if usage.has_error() && usage.output_bytes() == 0 => Metered::default(),
                    Found::Nothing => self.estimated(TokenCounts::default(), usage.output_bytes(), why, end),
                };
                Metered { malformed_events: body.malformed_events(), ..metered }
            }
        }
    }

    /// Why an answer that ended so does not say what it used.
    fn why(&self, state: BodyState, has_error: bool, end: &MeterEnd<'_>) -> Unreadable {
        match (self.stopped, state) {
            (Some(stopped), _) => stopped,
            _ if !end.is_whole || !self.decoder.is_complete() => Unreadable::Truncated,
            (None, BodyState::Short) => Unreadable::Truncated,
            (None, BodyState::Malformed) => Unreadable::Malformed,
            (None, BodyState::Whole) if has_error => Unreadable::Error,
            (None, BodyState::Whole) => Unreadable::NoUsage,
        }
    }

    /// What a meter of one number found. Nothing is known that an estimate could be made from.
    fn number(&self, value: Option<u64>, why: Unreadable, end: &MeterEnd<'_>) -> Metered {
        let tokens = TokenCounts { total: value.unwrap_or(0), ..TokenCounts::default() };
        match value {
            Some(_) => self.found(tokens, ReadingSource::Reported, None, end),
            None => self.found(tokens, ReadingSource::Missing, Some(why), end),
        }
    }

    /// An answer that does not say what it used, or only what it had used when it began.
    fn estimated(&self, begun: TokenCounts, text_bytes: u64, why: Unreadable, end: &MeterEnd<'_>) -> Metered {
        if end.missing == Missing::Zero {
            return self.found(begun, ReadingSource::Missing, Some(why), end);
        }
        // Where nothing of the body was understood, all of it is taken for text.
        let text_bytes = match why {
            Unreadable::Coding | Unreadable::Malformed => text_bytes.max(self.bytes),
            _ => text_bytes,
        };
        let (input, output, source) = match end.held.filter(|_| end.missing == Missing::Hold) {
            Some(held) => (held.input, held.output, ReadingSource::Held),
            None => (tokens_of(end.request_bytes), tokens_of(text_bytes), ReadingSource::Estimated),
        };
        let input = if begun.input == 0 { input } else { begun.input };
        let output = begun.output.max(output);
        let tokens = TokenCounts { total: input.saturating_add(output), input, output, ..begun };
        self.found(tokens, source, Some(why), end)
    }

    fn found(
        &self,
        tokens: TokenCounts,
        source: ReadingSource,
        unreadable: Option<Unreadable>,
        end: &MeterEnd<'_>,
    ) -> Metered {
        let usage = match &self.reader {
            Reader::Llm(body) => Some(body.sink()),
            _ => None,
        };
        let id = self.id.as_deref().or_else(|| usage?.id()).unwrap_or_default();
        let reading = MeterReading {
            tokens,
            model_requested: Arc::clone(end.model_requested),
            model_served: usage.and_then(LlmUsage::model).unwrap_or_default().into(),
            provider_request_id: id.into(),
            cost_nano: usage.and_then(LlmUsage::cost_nano),
            source,
        };
        Metered { reading: Some(reading), unreadable, malformed_events: 0 }
    }
}

/// Whether a request of a language model with this method only reads or deletes what is there.
pub fn uses_nothing(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE)
}

/// Whether a text can be the name of a model or an id: every store keeps it.
fn is_label(text: &str) -> bool {
    (1..=LABEL_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// About how many tokens a text of this size is.
const fn tokens_of(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN)
}
