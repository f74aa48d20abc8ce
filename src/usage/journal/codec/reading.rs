//! What a meter found out, at the end of a [`Complete`](super::Complete). Pure.

use super::{HAS_COST, Malformed, PayloadReader, TEXT_MAX, put_text};
use crate::model::tokens::{MeterReading, ReadingSource, TokenCounts};

/// A [`MeterReading`] in the end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading<'a> {
    /// The tokens.
    pub tokens: TokenCounts,
    /// The model that the request named.
    pub model_requested: &'a str,
    /// The model that the answer named.
    pub model_served: &'a str,
    /// The provider's id of the request.
    pub provider_request_id: &'a str,
    /// The cost.
    pub cost_nano: Option<u64>,
    /// Where the tokens come from.
    pub source: ReadingSource,
}

impl<'a> Reading<'a> {
    /// Everything except the total, which is in `tokens_used`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let Self { tokens, model_requested, model_served, provider_request_id, cost_nano, source } = *self;
        let TokenCounts { total: _, input, cached, cache_write, output, reasoning, audio } = tokens;
        for n in [input, cached, cache_write, output, reasoning, audio] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        if let Some(cost) = cost_nano {
            out.extend_from_slice(&cost.to_le_bytes());
        }
        put_text(out, source.as_str(), TEXT_MAX);
        put_text(out, model_requested, TEXT_MAX);
        put_text(out, model_served, TEXT_MAX);
        put_text(out, provider_request_id, TEXT_MAX);
    }

    pub(super) fn decode(from: &mut PayloadReader<'a>, flags: u8, total: u64) -> Result<Self, Malformed> {
        let tokens = TokenCounts {
            total,
            input: from.long()?,
            cached: from.long()?,
            cache_write: from.long()?,
            output: from.long()?,
            reasoning: from.long()?,
            audio: from.long()?,
        };
        let cost_nano = if flags & HAS_COST == 0 { None } else { Some(from.long()?) };
        let source = from.text()?.parse().map_err(|_| Malformed("unknown source of tokens"))?;
        Ok(Self {
            tokens,
            model_requested: from.text()?,
            model_served: from.text()?,
            provider_request_id: from.text()?,
            cost_nano,
            source,
        })
    }

    /// The same as the meter made it.
    pub(super) fn to_owned(self) -> MeterReading {
        let Self { tokens, model_requested, model_served, provider_request_id, cost_nano, source } = self;
        MeterReading {
            tokens,
            model_requested: model_requested.into(),
            model_served: model_served.into(),
            provider_request_id: provider_request_id.into(),
            cost_nano,
            source,
        }
    }
}

impl<'a> From<&'a MeterReading> for Reading<'a> {
    fn from(reading: &'a MeterReading) -> Self {
        let MeterReading { tokens, model_requested, model_served, provider_request_id, cost_nano, source } =
            reading;
        Self {
            tokens: *tokens,
            model_requested,
            model_served,
            provider_request_id,
            cost_nano: *cost_nano,
            source: *source,
        }
    }
}
