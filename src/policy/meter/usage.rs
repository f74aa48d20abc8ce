//! Where the answers of language models say what they used: the spellings of all providers, and what they mean.
//!
//! Must not know: how an answer arrives. Lists are transparent: an element stands where its list stands.

use super::body::UsageSink;
use super::decimal::whole;
use super::inner::InnerDocument;
use super::json::{JsonSink, Want};
use crate::model::tokens::TokenCounts;

/// Numbers as a provider spells them. A number that is not there is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Reported {
    counts: [Option<u64>; COUNTS],
    cost_nano: Option<u64>,
    /// It replaces what was reported before, instead of adding to it.
    replaces: bool,
}

const COUNTS: usize = Count::Seconds as usize + 1;

/// A number, by its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// Input, with what was read from and written to a cache.
    Prompt,
    /// Input; with cached input unless that is spelled as [`Count::CacheRead`] and [`Count::CacheWrite`].
    Input,
    /// Input that was not cached.
    Uncached,
    /// Input that a tool added.
    ToolPrompt,
    /// Output.
    Output,
    /// Output of which only a first number is known.
    FirstOutput,
    /// Output without reasoning.
    Candidates,
    /// Reasoning that is not part of the output.
    Thoughts,
    /// All.
    Total,
    /// Cached input, part of the input.
    Cached,
    /// Input written to a cache, part of the input.
    Written,
    /// Cached input, apart from [`Count::Input`].
    CacheRead,
    /// Input written to a cache, apart from [`Count::Input`].
    CacheWrite,
    /// Of that, for five minutes.
    CacheWrite5m,
    /// Of that, for one hour.
    CacheWrite1h,
    /// Reasoning, part of the output.
    Reasoning,
    /// Audio of the input.
    AudioIn,
    /// Audio of the output.
    AudioOut,
    /// A duration instead of tokens.
    Seconds,
}

/// A place in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Place {
    /// Nothing of interest.
    #[default]
    Nowhere,
    /// The answer, or an event of it.
    Answer,
    /// An object of an event that is an answer itself: `response` of `OpenAI`, `x_groq` of Groq.
    Response,
    /// `message` of Anthropic's `message_start`.
    Started,
    /// What was used.
    Usage,
    /// What was used when the answer began.
    StartUsage,
    /// `usageMetadata` of Gemini.
    Gemini,
    /// Details of the input.
    InputDetails,
    /// Details of the output.
    OutputDetails,
    /// Anthropic's `cache_creation`.
    CacheCreation,
    /// Gemini's tokens by modality.
    Modalities,
    /// One of the numbers.
    Number(Number),
    /// The provider's cost.
    Cost,
    /// The model.
    Model,
    /// The id of the answer.
    Id,
    /// The name of a modality.
    Modality,
    /// The tokens of a modality.
    ModalityTokens,
    /// An error.
    Error,
    /// `choices` of `OpenAI`.
    Choices,
    /// A part of a message, which may be text itself.
    Content,
    /// Calls of functions.
    Calls,
    /// Text of the output.
    OutputText,
    /// `trace` of Bedrock.
    Trace,
    /// What Bedrock adds to the last event of a model.
    Invocation,
    /// An event of the model inside of one of Bedrock's.
    Inner,
}

/// Hides [`Count`] from those who only pass places on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(Count);

/// Reads what an answer says about its use.
#[derive(Debug, Default)]
pub(super) struct LlmUsage {
    /// What the event in progress says; it counts when the event is whole. Most events say nothing.
    event: Option<Reported>,
    /// What the object in progress says.
    object: Reported,
    /// Tokens of the modality in progress, and whether it is audio.
    modality: (Option<u64>, bool),
    total: Reported,
    /// The whole event is the usage.
    is_usage: bool,
    model: Option<Box<str>>,
    id: Option<Box<str>>,
    has_error: bool,
    output_bytes: u64,
    /// Whether a document may contain others.
    unwraps: bool,
    /// The one in progress.
    inner: Option<Box<InnerDocument<Place>>>,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// What was used.
    Used(TokenCounts),
    /// What the answer says before it is finished: the input, and output so far.
    Begun(TokenCounts),
    /// A duration, no tokens.
    Seconds,
    /// Nothing.
    Nothing,
}

const fn number(count: Count) -> Place {
    Place::Number(Number(count))
}

// === impl Place ===

impl Place {
    fn field(self, key: &[u8]) -> Self {
        match self {
            Self::Answer => Self::of_answer(key),
            Self::Response => match key {
                b"usage" | b"usageMetadata" | b"model" | b"modelVersion" | b"id" | b"responseId"
                | b"error" | b"candidates" => Self::of_answer(key),
                _ => Self::Nowhere,
            },
            Self::Started => match key {
                b"usage" => Self::StartUsage,
                b"model" => Self::Model,
                b"id" => Self::Id,
                _ => Self::Nowhere,
            },
            Self::StartUsage if key == b"output_tokens" => number(Count::FirstOutput),
            Self::Usage | Self::StartUsage => Self::of_usage(key),
            Self::Gemini => Self::of_gemini(key),
            Self::InputDetails => match key {
                b"cached_tokens" => number(Count::Cached),
                b"cache_write_tokens"
                | b"cache_creation_tokens"
                | b"cached_creation_tokens"
                | b"cache_creation_input_tokens" => number(Count::Written),
                b"audio_tokens" => number(Count::AudioIn),
                _ => Self::Nowhere,
            },
            Self::OutputDetails => match key {
                b"reasoning_tokens" => number(Count::Reasoning),
                b"audio_tokens" => number(Count::AudioOut),
                _ => Self::Nowhere,
            },
            Self::CacheCreation => match key {
                b"ephemeral_5m_input_tokens" => number(Count::CacheWrite5m),
                b"ephemeral_1h_input_tokens" => number(Count::CacheWrite1h),
                _ => Self::Nowhere,
            },
            Self::Modalities => match key {
                b"modality" => Self::Modality,
                b"tokenCount" => Self::ModalityTokens,
                _ => Self::Nowhere,
            },
            // Perplexity reports the parts of its cost too.
            Self::Cost if key == b"total_cost" => Self::Cost,
            Self::Choices => match key {
                b"delta" | b"message" => Self::Content,
                b"text" => Self::OutputText,
                // Kimi reports it here.
                b"usage" => Self::Usage,
                _ => Self::Nowhere,
            },
            Self::Content => match key {
                b"content" | b"parts" | b"message" | b"reasoningContent" => Self::Content,
                b"text" | b"thinking" | b"partial_json" | b"reasoning" | b"reasoning_content"
                | b"refusal" | b"arguments" => Self::OutputText,
                b"tool_calls" | b"function_call" | b"toolUse" => Self::Calls,
                _ => Self::Nowhere,
            },
            Self::Calls => match key {
                b"function" => Self::Calls,
                b"arguments" | b"input" => Self::OutputText,
                _ => Self::Nowhere,
            },
            Self::Invocation => Self::of_invocation(key),
            Self::Trace => match key {
                b"promptRouter" => Self::Trace,
                b"invokedModelId" => Self::Model,
                _ => Self::Nowhere,
            },
            _ => Self::Nowhere,
        }
    }

    fn of_answer(key: &[u8]) -> Self {
        match key {
            b"usage" => Self::Usage,
            b"usageMetadata" => Self::Gemini,
            b"response" | b"x_groq" => Self::Response,
            b"message" => Self::Started,
            b"model" | b"modelVersion" => Self::Model,
            b"id" | b"responseId" => Self::Id,
            b"error" => Self::Error,
            b"choices" => Self::Choices,
            b"delta" | b"content" | b"candidates" | b"output" => Self::Content,
            // Models of Bedrock: Llama, Titan, Claude 2.
            b"generation" | b"outputText" | b"completion" => Self::OutputText,
            b"amazon-bedrock-invocationMetrics" => Self::Invocation,
            b"trace" => Self::Trace,
            _ => Self::Nowhere,
        }
    }

    fn of_usage(key: &[u8]) -> Self {
        number(match key {
            b"prompt_tokens" | b"promptTokens" => Count::Prompt,
            b"input_tokens" | b"inputTokens" => Count::Input,
            b"completion_tokens" | b"completionTokens" | b"output_tokens" | b"outputTokens" => Count::Output,
            b"total_tokens" | b"totalTokens" => Count::Total,
            b"cached_tokens" | b"prompt_cache_hit_tokens" => Count::Cached,
            b"prompt_cache_miss_tokens" => Count::Uncached,
            b"cache_read_input_tokens" | b"cacheReadInputTokens" => Count::CacheRead,
            b"cache_creation_input_tokens" | b"cacheWriteInputTokens" => Count::CacheWrite,
            b"reasoning_tokens" => Count::Reasoning,
            b"seconds" => Count::Seconds,
            b"cache_creation" => return Self::CacheCreation,
            b"prompt_tokens_details" | b"input_tokens_details" | b"input_token_details" => {
                return Self::InputDetails;
            }
            b"completion_tokens_details" | b"output_tokens_details" | b"output_token_details" => {
                return Self::OutputDetails;
            }
            b"cost" => return Self::Cost,
            _ => return Self::Nowhere,
        })
    }

    fn of_invocation(key: &[u8]) -> Self {
        number(match key {
            b"inputTokenCount" => Count::Input,
            b"outputTokenCount" => Count::Output,
            b"cacheReadInputTokenCount" => Count::CacheRead,
            b"cacheWriteInputTokenCount" => Count::CacheWrite,
            _ => return Self::Nowhere,
        })
    }

    fn of_gemini(key: &[u8]) -> Self {
        number(match key {
            b"promptTokenCount" => Count::Prompt,
            b"toolUsePromptTokenCount" => Count::ToolPrompt,
            b"candidatesTokenCount" => Count::Candidates,
            b"thoughtsTokenCount" => Count::Thoughts,
            b"cachedContentTokenCount" => Count::Cached,
            b"totalTokenCount" => Count::Total,
            b"promptTokensDetails" | b"toolUsePromptTokensDetails" | b"candidatesTokensDetails" => {
                return Self::Modalities;
            }
            _ => return Self::Nowhere,
        })
    }
}

// === impl LlmUsage ===

impl LlmUsage {
    /// Bytes of text in the output.
    pub(super) const fn output_bytes(&self) -> u64 {
        self.output_bytes
    }

    /// The model that the answer names.
    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// The id of the answer.
    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The provider's cost, in billionths.
    pub(super) const fn cost_nano(&self) -> Option<u64> {
        self.total.cost_nano
    }

    /// What was used, as far as the committed events say.
    pub(super) fn found(&self) -> Found {
        self.total.found()
    }
}

impl JsonSink for LlmUsage {
    type Place = Place;

    fn root(&self) -> Place {
        if self.is_usage { Place::Usage } else { Place::Answer }
    }

    fn field(&self, object: Place, key: &[u8]) -> Place {
        if self.unwraps && object == Place::Answer && key == b"bytes" {
            return Place::Inner;
        }
        object.field(key)
    }

    fn element(&self, array: Place, _: u64) -> Place {
        array
    }

    fn wants(&self, place: Place) -> Want {
        match place {
            Place::Model | Place::Id | Place::Modality => Want::Text,
            Place::Content | Place::OutputText | Place::Error => Want::Length,
            Place::Inner => Want::Pieces,
            _ => Want::Nothing,
        }
    }

    fn piece(&mut self, _: Place, piece: &[u8]) {
        let mut inner = self.inner.take().unwrap_or_default();
        // An inner document contains no others.
        self.unwraps = false;
        inner.push(piece, self);
        self.unwraps = true;
        self.inner = Some(inner);
    }

    fn number(&mut self, place: Place, text: &str) {
        match place {
            Place::Number(Number(count)) => self.object.set(count, whole(text, 0)),
            Place::Cost => self.object.cost_nano = self.object.cost_nano.max(whole(text, 9)),
            Place::ModalityTokens => self.modality.0 = whole(text, 0),
            _ => {}
        }
    }

    fn text(&mut self, place: Place, text: &str) {
        let kept = match place {
            Place::Modality => {
                self.modality.1 = text == "AUDIO";
                return;
            }
            Place::Model => &mut self.model,
            _ => &mut self.id,
        };
        // Every event repeats it.
        if kept.as_deref() != Some(text) && super::is_label(text) {
            *kept = Some(text.into());
        }
    }

    fn length(&mut self, place: Place, bytes: u64) {
        if place == Place::Error {
            self.has_error |= bytes > 0;
        } else {
            self.output_bytes = self.output_bytes.saturating_add(bytes);
        }
    }

    fn begin_object(&mut self, place: Place) {
        match place {
            Place::Usage | Place::StartUsage | Place::Gemini | Place::Invocation => {
                self.object = Reported::default();
            }
            Place::Modalities => self.modality = (None, false),
            Place::Error => self.has_error = true,
            _ => {}
        }
    }

    fn end_object(&mut self, place: Place) {
        match place {
            Place::Usage | Place::StartUsage | Place::Invocation => {
                self.event.get_or_insert_default().add(&std::mem::take(&mut self.object));
            }
            Place::Gemini => {
                let mut object = std::mem::take(&mut self.object);
                object.replaces = object != Reported::default();
                self.event.get_or_insert_default().add(&object);
            }
            Place::Modalities => {
                if let (Some(tokens), true) = self.modality {
                    let audio = &mut self.object.counts[Count::AudioIn as usize];
                    *audio = Some(audio.unwrap_or(0).saturating_add(tokens));
                }
            }
            _ => {}
        }
    }
}

// === impl Reported ===

impl Reported {
    /// The same number under several spellings: the largest counts, so that a zero hides nothing.
    fn set(&mut self, count: Count, value: Option<u64>) {
        let slot = &mut self.counts[count as usize];
        *slot = (*slot).max(value);
    }

    fn get(&self, count: Count) -> Option<u64> {
        self.counts[count as usize]
    }

    /// Adds what is reported later. Numbers in a stream are cumulative, so the largest counts.
    fn add(&mut self, later: &Self) {
        if later.replaces {
            *self = *later;
            return;
        }
        for (slot, value) in self.counts.iter_mut().zip(later.counts) {
            *slot = (*slot).max(value);
        }
        self.cost_nano = self.cost_nano.max(later.cost_nano);
    }

    fn found(&self) -> Found {
        let used =
            [Count::Prompt, Count::Input, Count::Uncached, Count::Output, Count::Candidates, Count::Total];
        if used.iter().any(|count| self.get(*count).is_some()) {
            let counts = self.token_counts();
            let has_begun = self.get(Count::FirstOutput).is_some() && self.get(Count::Output).is_none();
            return if has_begun { Found::Begun(counts) } else { Found::Used(counts) };
        }
        if self.get(Count::Seconds).is_some() { Found::Seconds } else { Found::Nothing }
    }

    fn token_counts(&self) -> TokenCounts {
        let is_there = |count| self.get(count).is_some();
        let get = |count| self.get(count).unwrap_or(0);
        let cached = get(Count::Cached).max(get(Count::CacheRead));
        let cache_write = get(Count::Written)
            .max(get(Count::CacheWrite))
            .max(get(Count::CacheWrite5m).saturating_add(get(Count::CacheWrite1h)));
        // Anthropic and Bedrock do not count cached input as input.
        let excludes_cached =
            !is_there(Count::Prompt) && !is_there(Count::Cached) && !is_there(Count::Written);
        let mut input = get(Count::Prompt).max(get(Count::Input));
        if excludes_cached {
            input = input.saturating_add(cached).saturating_add(cache_write);
        }
        if input == 0 && is_there(Count::Uncached) {
            input = get(Count::Uncached).saturating_add(cached);
        }
        input = input.saturating_add(get(Count::ToolPrompt));
        let thoughts = get(Count::Thoughts);
        let first_or_all = get(Count::Output).max(get(Count::FirstOutput));
        let mut output = first_or_all.max(get(Count::Candidates).saturating_add(thoughts));
        // A total that is more than its parts: some do not count reasoning as output, a few do not count cached input as input,
        // and embeddings have a total only.
        let sum = input.saturating_add(output);
        let excess = get(Count::Total).saturating_sub(sum);
        let has_input = is_there(Count::Prompt) || is_there(Count::Input) || is_there(Count::Uncached);
        if !has_input || excess == cached.saturating_add(cache_write) {
            input = input.saturating_add(excess);
        } else {
            output = output.saturating_add(excess);
        }
        TokenCounts {
            total: input.saturating_add(output),
            input,
            cached,
            cache_write,
            output,
            reasoning: get(Count::Reasoning).max(thoughts),
            audio: get(Count::AudioIn).saturating_add(get(Count::AudioOut)),
        }
    }
}

impl UsageSink for LlmUsage {
    fn begin_event(&mut self, name: &[u8]) {
        // Some servers say what was used in an event of this name, and nothing else.
        self.is_usage = name == b"token_usage";
    }

    fn begin_frames(&mut self) {
        self.unwraps = true;
    }

    fn commit(&mut self) -> bool {
        if let Some(inner) = self.inner.take()
            && !inner.finish(self)
        {
            return false;
        }
        if let Some(event) = self.event.take() {
            self.total.add(&event);
        }
        true
    }

    fn discard(&mut self) {
        (self.event, self.inner) = (None, None);
    }

    fn note_error(&mut self) {
        self.has_error = true;
    }

    fn has_error(&self) -> bool {
        self.has_error
    }
}
