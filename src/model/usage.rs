//! Usage: the record of one request, how it ended, and totals. Plain data.

pub mod fields;

use crate::clock::Timestamp;
use crate::model::amounts::Amounts;
use crate::model::fault::Fault;
use crate::model::id::{EndUserId, KeyId, RequestId, WorkspaceId};
use crate::model::key::{Measure, Per, words};
use crate::model::tokens::{MeterReading, ReadingSource, TokenCounts};
use fields::{Field, FieldReader, FieldWriter};
use std::net::IpAddr;
use std::sync::Arc;

words!(
    /// How a request ended.
    Outcome {
        /// The backend's response was forwarded, whatever its status.
        Served = "served",
        /// Keygate refused it; the record's `denial` says why.
        Denied = "denied",
        /// The backend sent no complete response.
        UpstreamFailed = "upstream_failed",
        /// The client disconnected first.
        Aborted = "aborted",
        /// The gateway was stopped while it was in flight.
        Interrupted = "interrupted",
        /// It was admitted for a proxy or an application that asked, and not forwarded: what became of it is unknown.
        Decided = "decided",
    }
);

/// Declares the record: each field once, with its name and type. All formats are written and read through
/// [`UsageRecord::write`] and [`UsageRecord::read`]; [`fields`] says how each type is represented.
macro_rules! usage_record {
    (
        $(#[$about:meta])*
        pub struct $record:ident {
            $(#[$first_doc:meta])*
            pub $first:ident: $first_type:ty,
            $($(#[$doc:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$about])*
        pub struct $record {
            $(#[$first_doc])*
            pub $first: $first_type,
            $($(#[$doc])* pub $field: $type,)*
        }

        impl $record {
            /// The names of the fields, in their order.
            pub const FIELDS: &'static [&'static str] = &[stringify!($first), $(stringify!($field),)*];

            /// Writes every field, in their order.
            pub fn write<W: FieldWriter>(&self, to: &mut W) -> Result<(), W::Error> {
                Field::write(&self.$first, stringify!($first), to)?;
                $(Field::write(&self.$field, stringify!($field), to)?;)*
                Ok(())
            }

            /// Reads every field, in their order.
            pub fn read<R: FieldReader>(from: &mut R) -> Result<Self, R::Error> {
                Ok(Self {
                    $first: Field::read(stringify!($first), from)?,
                    $($field: Field::read(stringify!($field), from)?,)*
                })
            }

            /// The fields that may hold any text, with their names.
            pub fn texts_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Arc<str>)> {
                let texts = [
                    (stringify!($first), self.$first.text_mut()),
                    $((stringify!($field), self.$field.text_mut()),)*
                ];
                texts.into_iter().filter_map(|(name, text)| Some((name, text?)))
            }
        }

        /// [`UsageRecord::FIELDS`] as the columns of a query.
        macro_rules! usage_columns {
            () => { concat!(stringify!($first) $(, ", ", stringify!($field))*) };
        }
    };
}

usage_record! {
    /// One request in the ledger. Clones share the texts.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct UsageRecord {
        /// Primary key: a record is in the ledger once.
        pub id: RequestId,
        /// The request id that the client and the logs have.
        pub request_id: Arc<str>,
        /// The key that was presented; [`KeyId::NONE`] on a public route.
        pub api_key_id: KeyId,
        /// The workspace of the key; [`WorkspaceId::none`] without a key.
        pub workspace_id: WorkspaceId,
        /// When the request arrived.
        pub at: Timestamp,
        /// HTTP method.
        pub method: Arc<str>,
        /// Canonical path, without the query.
        pub endpoint: Arc<str>,
        /// The route's name; empty if none matched.
        pub route: Arc<str>,
        /// Status sent to the client, or that would have been sent.
        pub status_code: u16,
        /// How it ended.
        pub outcome: Outcome,
        /// Why it was denied.
        pub denial: Option<Fault>,
        /// Whether it was charged to the key's limits.
        pub charged: bool,
        /// Whether its limits were decided without the shared counters.
        pub degraded: bool,
        /// From arrival to the last byte of the response, in µs.
        pub response_time_us: u64,
        /// From arrival to the first byte of the response, in µs.
        pub ttfb_us: Option<u64>,
        /// Body bytes from the client.
        pub bytes_in: u64,
        /// Body bytes to the client.
        pub bytes_out: u64,
        /// All tokens, as [`TokenCounts::total`].
        pub tokens_used: u64,
        /// The client's address.
        pub ip_address: Option<IpAddr>,
        /// The client's `User-Agent`, cut to 256 bytes.
        pub user_agent: Arc<str>,
        /// The end user.
        pub end_user_id: Option<EndUserId>,
        /// The backend server that was tried last.
        pub upstream: Arc<str>,
        /// The node that served it.
        pub node: Arc<str>,
        /// The model that answered, if the route has a meter and the answer named one.
        pub model: Option<Arc<str>>,
        /// The model that the request named.
        pub model_requested: Option<Arc<str>>,
        /// Input tokens; this and the following counts are as in [`TokenCounts`], none without a meter.
        pub input_tokens: Option<u64>,
        /// Input tokens read from a cache.
        pub cached_tokens: Option<u64>,
        /// Input tokens written to a cache.
        pub cache_write_tokens: Option<u64>,
        /// Output tokens.
        pub output_tokens: Option<u64>,
        /// Output tokens that were reasoning.
        pub reasoning_tokens: Option<u64>,
        /// Tokens of audio.
        pub audio_tokens: Option<u64>,
        /// The cost in billionths of the currency unit; none if it is unknown.
        pub cost_nano: Option<u64>,
        /// Where the tokens come from; none: the route has no meter.
        pub usage_source: Option<ReadingSource>,
        /// The provider's id of the request.
        pub provider_request_id: Option<Arc<str>>,
    }
}

pub(crate) use usage_columns;

/// What one subject has spent in the windows that contain an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageTotals {
    /// The subject.
    pub subject: UsageSubject,
    /// Charged requests in each of [`Per::WINDOWS`].
    pub used: [u64; Per::WINDOWS.len()],
    /// What meters found out in each of [`Per::WINDOWS`], in the order of [`Measure::METERED`].
    pub metered: [[u64; Measure::METERED.len()]; Per::WINDOWS.len()],
}

/// The subject.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UsageSubject {
    /// One key's.
    Key(KeyId),
    /// All keys of a workspace together.
    Workspace(WorkspaceId),
    /// One end user's of this workspace.
    EndUser(WorkspaceId, EndUserId),
}

impl UsageTotals {
    /// No usage.
    pub const fn nothing(subject: UsageSubject) -> Self {
        let metered = [[0; Measure::METERED.len()]; Per::WINDOWS.len()];
        Self { subject, used: [0; Per::WINDOWS.len()], metered }
    }
}

impl UsageRecord {
    /// Sets everything that a meter found out. A text that is empty is none.
    pub fn set_reading(&mut self, reading: MeterReading) {
        let MeterReading { tokens, model_requested, model_served, provider_request_id, cost_nano, source } =
            reading;
        let TokenCounts { total, input, cached, cache_write, output, reasoning, audio } = tokens;
        let text = |text: Arc<str>| Some(text).filter(|text| !text.is_empty());
        self.tokens_used = total;
        self.model = text(model_served);
        self.model_requested = text(model_requested);
        self.input_tokens = Some(input);
        self.cached_tokens = Some(cached);
        self.cache_write_tokens = Some(cache_write);
        self.output_tokens = Some(output);
        self.reasoning_tokens = Some(reasoning);
        self.audio_tokens = Some(audio);
        self.cost_nano = cost_nano;
        self.usage_source = Some(source);
        self.provider_request_id = text(provider_request_id);
    }

    /// What it counts of each measure that a meter finds out.
    pub fn amounts(&self) -> Amounts {
        Amounts::used(&self.tokens(), self.cost_nano)
    }

    /// Its tokens by kind; a kind that is not known is 0.
    pub fn tokens(&self) -> TokenCounts {
        TokenCounts {
            total: self.tokens_used,
            input: self.input_tokens.unwrap_or(0),
            cached: self.cached_tokens.unwrap_or(0),
            cache_write: self.cache_write_tokens.unwrap_or(0),
            output: self.output_tokens.unwrap_or(0),
            reasoning: self.reasoning_tokens.unwrap_or(0),
            audio: self.audio_tokens.unwrap_or(0),
        }
    }
}

#[cfg(test)]
impl UsageRecord {
    /// A request that was served at that moment; its other fields do not matter.
    pub(crate) fn sample(key: KeyId, workspace: WorkspaceId, at: Timestamp) -> Self {
        Self {
            id: RequestId::new(at),
            request_id: "r".into(),
            api_key_id: key,
            workspace_id: workspace,
            at,
            method: "GET".into(),
            endpoint: "/".into(),
            route: "/".into(),
            status_code: 200,
            outcome: Outcome::Served,
            denial: None,
            charged: true,
            degraded: false,
            response_time_us: 1,
            ttfb_us: None,
            bytes_in: 0,
            bytes_out: 0,
            tokens_used: 0,
            ip_address: None,
            user_agent: "".into(),
            end_user_id: None,
            upstream: "".into(),
            node: "n".into(),
            model: None,
            model_requested: None,
            input_tokens: None,
            cached_tokens: None,
            cache_write_tokens: None,
            output_tokens: None,
            reasoning_tokens: None,
            audio_tokens: None,
            cost_nano: None,
            usage_source: None,
            provider_request_id: None,
        }
    }

    /// The same without everything that a record may lack.
    pub(crate) fn bare_sample() -> Self {
        let full = Self::full_sample();
        Self {
            denial: None,
            ttfb_us: None,
            ip_address: None,
            end_user_id: None,
            model: None,
            model_requested: None,
            input_tokens: None,
            cached_tokens: None,
            cache_write_tokens: None,
            output_tokens: None,
            reasoning_tokens: None,
            audio_tokens: None,
            cost_nano: None,
            usage_source: None,
            provider_request_id: None,
            ..full
        }
    }

    /// A fixed record in which every field has a value of its own.
    pub(crate) fn full_sample() -> Self {
        use uuid::Uuid;
        Self {
            id: RequestId(Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001)),
            request_id: "r\u{1}\"β".into(),
            api_key_id: KeyId(Uuid::from_u128(2)),
            workspace_id: "w1".parse().expect("a workspace"),
            at: Timestamp::from_micros(1_751_327_999_999_999),
            method: "POST".into(),
            endpoint: "/v1/a,b".into(),
            route: "=route".into(),
            status_code: 429,
            outcome: Outcome::Denied,
            denial: Some(Fault::KeyNotFound),
            charged: true,
            degraded: false,
            response_time_us: u64::MAX,
            ttfb_us: Some(3),
            bytes_in: 4,
            bytes_out: 5,
            tokens_used: 6,
            ip_address: Some("2001:db8::1".parse().expect("an address")),
            user_agent: "a\nb".into(),
            end_user_id: Some(EndUserId(Uuid::from_u128(7))),
            upstream: "10.0.0.2:80".into(),
            node: "n-1".into(),
            model: Some("=model-served".into()),
            model_requested: Some("model".into()),
            input_tokens: Some(8),
            cached_tokens: Some(9),
            cache_write_tokens: Some(10),
            output_tokens: Some(11),
            reasoning_tokens: Some(12),
            audio_tokens: Some(13),
            cost_nano: Some(14),
            usage_source: Some(ReadingSource::Estimated),
            provider_request_id: Some("chatcmpl-1".into()),
        }
    }
}

/// Mean and quantiles of response times, in µs. All zero when there were no requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Quantiles {
    /// Number of response times.
    pub count: u64,
    /// Their mean, rounded down.
    pub mean_us: u64,
    /// Half are at or below.
    pub p50_us: u64,
    /// 95 % are at or below.
    pub p95_us: u64,
    /// 99 % are at or below.
    pub p99_us: u64,
}
