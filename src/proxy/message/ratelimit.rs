//! Response header fields for what is left of each limit.
//!
//! Two families: `X-RateLimit-*` for the second, the day and tokens, which many clients read, and the IETF's `RateLimit` and
//! `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10) with one item per limit in force.

use super::fields::ValueBuffer;
use crate::clock::Now;
use crate::counter::LimitsLeft;
use crate::model::key::{Measure, Per};
use crate::policy::http::field_lines::EditFields;
use crate::policy::keys::denial::whole_secs;
use crate::policy::keys::limit::{Limit, LimitName};
use http::HeaderName;
use std::time::Duration;

/// The families that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitFamilies {
    /// `X-RateLimit-Limit-QPS` and the others of its family.
    pub x_ratelimit: bool,
    /// `RateLimit` and `RateLimit-Policy`.
    pub ratelimit: bool,
}

const LIMIT_QPS: HeaderName = HeaderName::from_static("x-ratelimit-limit-qps");
const REMAINING_QPS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-qps");
const LIMIT_DAY: HeaderName = HeaderName::from_static("x-ratelimit-limit-day");
const REMAINING_DAY: HeaderName = HeaderName::from_static("x-ratelimit-remaining-day");
const LIMIT_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");
/// Most of these in a response.
pub(in crate::proxy) const FIELDS: usize = 10;
/// The usual size of their values, in bytes.
const BYTES: usize = 256;

/// Writes what is left. `retry_after` is set on refusals, in seconds.
pub(in crate::proxy) fn write(
    fields: &mut impl EditFields,
    families: RateLimitFamilies,
    left: &LimitsLeft,
    now: Now,
    retry_after: Option<u64>,
) -> pingora::Result<()> {
    let mut values = ValueBuffer::new(BYTES);
    if families.x_ratelimit {
        write_x(fields, &mut values, left, now, retry_after)?;
    }
    if families.ratelimit {
        write_ietf(fields, &mut values, left)?;
    }
    Ok(())
}

fn write_x(
    fields: &mut impl EditFields,
    values: &mut ValueBuffer,
    left: &LimitsLeft,
    now: Now,
    retry_after: Option<u64>,
) -> pingora::Result<()> {
    let mut refill = Duration::ZERO;
    for (limit, remaining) in left {
        match limit.name {
            LimitName::Rate { .. } => {
                fields.insert(LIMIT_QPS, values.number(limit.max()).take()?);
                fields.insert(REMAINING_QPS, values.number(remaining.units).take()?);
                refill = remaining.reset.unwrap_or_default();
            }
            LimitName::Daily => {
                fields.insert(LIMIT_DAY, values.number(limit.max()).take()?);
                fields.insert(REMAINING_DAY, values.number(remaining.units).take()?);
            }
            _ => {}
        }
    }
    // Of several limits on tokens, the one that leaves least.
    let tokens = left.iter().filter(|(limit, _)| limit.count == Measure::Tokens);
    if let Some((limit, remaining)) = tokens.min_by_key(|(_, remaining)| remaining.units) {
        fields.insert(LIMIT_TOKENS, values.number(limit.max()).take()?);
        fields.insert(REMAINING_TOKENS, values.number(remaining.units).take()?);
        if let Some(reset) = remaining.reset {
            duration(values, whole_secs(reset));
            fields.insert(RESET_TOKENS, values.take()?);
        }
    }
    // When to retry; for an admitted request, when the rate is whole again.
    let wait = retry_after.map_or(refill, Duration::from_secs);
    let reset =
        whole_secs(Duration::from_micros(u64::try_from(now.wall.plus(wait).as_micros()).unwrap_or_default()));
    fields.insert(RESET, values.number(reset).take()?);
    Ok(())
}

/// Structured fields (RFC 9651): a list of limits, each with its parameters.
fn write_ietf(
    fields: &mut impl EditFields,
    values: &mut ValueBuffer,
    left: &LimitsLeft,
) -> pingora::Result<()> {
    for (limit, _) in left {
        item(values, limit);
        param(values, ";q=", limit.max());
        match (limit.per(), window_secs(limit)) {
            (None, _) => _ = values.text(";qu=\"concurrent-requests\""),
            (_, Some(secs)) => param(values, ";w=", secs),
            (_, None) => {}
        }
    }
    fields.insert(POLICY, values.take()?);
    for (limit, remaining) in left {
        item(values, limit);
        param(values, ";r=", remaining.units);
        if let Some(reset) = remaining.reset {
            param(values, ";t=", whole_secs(reset));
        }
    }
    fields.insert(STATE, values.take()?);
    Ok(())
}

/// A time in the form that clients of language models know: `6m0s`, `1h0m5s`, `7s`.
fn duration(values: &mut ValueBuffer, secs: u64) {
    let (hours, minutes) = (secs / 3_600, secs / 60 % 60);
    if hours > 0 {
        values.number(hours).text("h");
    }
    if secs >= 60 {
        values.number(minutes).text("m");
    }
    values.number(secs % 60).text("s");
}

fn item(values: &mut ValueBuffer, limit: &Limit) {
    if !values.is_empty() {
        values.text(", ");
    }
    values.text("\"");
    match limit.name {
        LimitName::Rate { .. } => _ = values.text("rate"),
        LimitName::Daily => _ = values.text("daily"),
        LimitName::Quota => _ = values.text("quota"),
        LimitName::Concurrency => _ = values.text("concurrency"),
        LimitName::Key(_) | LimitName::PlanKey(_) => further(values, "key-", limit),
        LimitName::EndUser(_) => further(values, "end-user-", limit),
        LimitName::Workspace(_) => further(values, "workspace-", limit),
    }
    values.text("\"");
}

fn further(values: &mut ValueBuffer, whose: &str, limit: &Limit) {
    let window = limit.per().map_or("in-flight", Per::as_str);
    values.text(whose).text(limit.count.as_str()).text("-").text(window);
}

fn param(values: &mut ValueBuffer, name: &str, value: u64) {
    values.text(name).number(value);
}

/// The window in seconds. A month counts as its longest, 31 days; a total has none.
const fn window_secs(limit: &Limit) -> Option<u64> {
    match limit.per() {
        Some(Per::Second) => Some(1),
        Some(Per::Minute) => Some(60),
        Some(Per::Hour) => Some(3_600),
        Some(Per::Day) => Some(86_400),
        Some(Per::Week) => Some(604_800),
        Some(Per::Month) => Some(2_678_400),
        Some(Per::Total) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::policy::keys::limit::{LimitRule, Remaining};
    use http::HeaderMap;

    #[test]
    fn limits_are_written_in_both_header_families() {
        let limit = |name, rule| Limit { name, count: Measure::Requests, rule };
        let tokens = |name, rule| Limit { name, count: Measure::Tokens, rule };
        let secs = |s: u64| Some(Duration::from_millis(s * 1_000 - 500));
        let left: LimitsLeft = [
            (limit(LimitName::Rate { plan: false }, LimitRule::Bucket { rate: 50, burst: 50 }), 49, secs(1)),
            (limit(LimitName::Daily, LimitRule::of(Per::Day, 1_000)), 998, secs(43_200)),
            (limit(LimitName::Quota, LimitRule::of(Per::Total, 9)), 0, None),
            (limit(LimitName::Concurrency, LimitRule::InFlight { max: 3 }), 2, None),
            (limit(LimitName::Key(0), LimitRule::of(Per::Minute, 60)), 59, secs(30)),
            (limit(LimitName::Workspace(0), LimitRule::of(Per::Month, 70)), 69, secs(99)),
            (tokens(LimitName::EndUser(1), LimitRule::of(Per::Day, 5_000)), 4_000, secs(360)),
            (tokens(LimitName::PlanKey(2), LimitRule::of(Per::Total, 9_000)), 7_000, None),
        ]
        .into_iter()
        .map(|(l, units, reset)| (l, Remaining { units, reset }))
        .collect();
        let now = Now { wall: Timestamp::from_millis(1_000_200), steady_ns: 0 };
        let mut header = HeaderMap::new();
        let families = RateLimitFamilies { x_ratelimit: true, ratelimit: true };
        write(&mut header, families, &left, now, None).expect("fields");
        let field = |name: &str| header.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
        assert_eq!(field("x-ratelimit-limit-qps"), "50");
        assert_eq!(field("x-ratelimit-remaining-qps"), "49");
        assert_eq!(field("x-ratelimit-limit-day"), "1000");
        assert_eq!(field("x-ratelimit-remaining-day"), "998");
        assert_eq!(field("x-ratelimit-limit-tokens"), "5000");
        assert_eq!(field("x-ratelimit-remaining-tokens"), "4000");
        assert_eq!(field("x-ratelimit-reset-tokens"), "6m0s");
        assert_eq!(field("x-ratelimit-reset"), "1001");
        assert_eq!(
            field("ratelimit-policy"),
            "\"rate\";q=50;w=1, \"daily\";q=1000;w=86400, \"quota\";q=9, \
             \"concurrency\";q=3;qu=\"concurrent-requests\", \"key-requests-minute\";q=60;w=60, \
             \"workspace-requests-month\";q=70;w=2678400, \"end-user-tokens-day\";q=5000;w=86400, \
             \"key-tokens-total\";q=9000"
        );
        assert_eq!(
            field("ratelimit"),
            "\"rate\";r=49;t=1, \"daily\";r=998;t=43200, \"quota\";r=0, \"concurrency\";r=2, \
             \"key-requests-minute\";r=59;t=30, \"workspace-requests-month\";r=69;t=99, \
             \"end-user-tokens-day\";r=4000;t=360, \"key-tokens-total\";r=7000"
        );
        write(&mut header, families, &left, now, Some(7)).expect("fields");
        let reset = header.get("x-ratelimit-reset").and_then(|v| v.to_str().ok());
        assert_eq!(reset, Some("1008"), "no earlier than seven seconds from now");
    }
}
