//! What is left of each limit, as response header fields.
//!
//! Two families: `X-RateLimit-*` for the second and the day, as many clients read them, and the IETF's `RateLimit` and
//! `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10) with one item for each limit in force.

use crate::clock::Now;
use crate::counter::Left;
use crate::policy::denial::whole_secs;
use crate::policy::key::Per;
use crate::policy::limit::{Limit, LimitName};
use http::HeaderValue;
use pingora::http::ResponseHeader;
use std::time::Duration;

/// Which families are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// `X-RateLimit-Limit-QPS` and its kin.
    pub x_ratelimit: bool,
    /// `RateLimit` and `RateLimit-Policy`.
    pub ratelimit: bool,
}

/// Writes what is left. `retry_after` is set on refusals, in seconds.
pub(super) fn write(
    header: &mut ResponseHeader,
    families: Families,
    left: &Left,
    now: Now,
    retry_after: Option<u64>,
) -> pingora::Result<()> {
    if families.x_ratelimit {
        write_x(header, left, now, retry_after)?;
    }
    if families.ratelimit {
        write_ietf(header, left)?;
    }
    Ok(())
}

fn write_x(
    header: &mut ResponseHeader,
    left: &Left,
    now: Now,
    retry_after: Option<u64>,
) -> pingora::Result<()> {
    let mut refill = Duration::ZERO;
    for (limit, remaining) in left {
        match limit.name {
            LimitName::Rate { .. } => {
                header.insert_header("X-RateLimit-Limit-QPS", limit.max())?;
                header.insert_header("X-RateLimit-Remaining-QPS", remaining.units)?;
                refill = remaining.reset.unwrap_or_default();
            }
            LimitName::Daily => {
                header.insert_header("X-RateLimit-Limit-Day", limit.max())?;
                header.insert_header("X-RateLimit-Remaining-Day", remaining.units)?;
            }
            _ => {}
        }
    }
    // When to come back; for whoever was admitted, when the rate is whole again.
    let wait = retry_after.map_or(refill, Duration::from_secs);
    let reset =
        whole_secs(Duration::from_micros(u64::try_from(now.wall.plus(wait).as_micros()).unwrap_or_default()));
    header.insert_header("X-RateLimit-Reset", reset)?;
    Ok(())
}

fn write_ietf(header: &mut ResponseHeader, left: &Left) -> pingora::Result<()> {
    let mut policy = Line::default();
    let mut state = Line::default();
    for (limit, remaining) in left {
        policy.item(limit).param("q", limit.max());
        match (limit.per(), window_secs(limit)) {
            (None, _) => policy.word(";qu=\"concurrent-requests\""),
            (_, Some(secs)) => policy.param("w", secs),
            (_, None) => {}
        }
        state.item(limit).param("r", remaining.units);
        if let Some(reset) = remaining.reset {
            state.param("t", whole_secs(reset));
        }
    }
    for (name, line) in [("RateLimit-Policy", policy), ("RateLimit", state)] {
        if let Ok(value) = HeaderValue::try_from(line.0) {
            header.insert_header(name, value)?;
        }
    }
    Ok(())
}

/// The window in seconds. A month is told as its longest, 31 days; a total has none.
const fn window_secs(limit: &Limit) -> Option<u64> {
    match limit.per() {
        Some(Per::Second) => Some(1),
        Some(Per::Minute) => Some(60),
        Some(Per::Hour) => Some(3_600),
        Some(Per::Day) => Some(86_400),
        Some(Per::Month) => Some(2_678_400),
        Some(Per::Total) | None => None,
    }
}

/// A structured field (RFC 9651) written without format machinery.
#[derive(Default)]
struct Line(String);

impl Line {
    fn item(&mut self, limit: &Limit) -> &mut Self {
        if !self.0.is_empty() {
            self.0.push_str(", ");
        }
        self.0.push('"');
        match limit.name {
            LimitName::Rate { .. } => self.0.push_str("rate"),
            LimitName::Daily => self.0.push_str("daily"),
            LimitName::Quota => self.0.push_str("quota"),
            LimitName::Concurrency => self.0.push_str("concurrency"),
            LimitName::Key(_) => self.further("key", limit),
            LimitName::Workspace(_) => self.further("workspace", limit),
        }
        self.0.push('"');
        self
    }

    fn further(&mut self, whose: &str, limit: &Limit) {
        self.0.push_str(whose);
        self.0.push('-');
        self.0.push_str(limit.count.as_str());
        self.0.push('-');
        self.0.push_str(limit.per().map_or("in-flight", Per::as_str));
    }

    fn param(&mut self, name: &str, value: u64) {
        self.0.push(';');
        self.0.push_str(name);
        self.0.push('=');
        self.0.push_str(itoa::Buffer::new().format(value));
    }

    fn word(&mut self, word: &str) {
        self.0.push_str(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::policy::key::Count;
    use crate::policy::limit::{Remaining, Rule};

    #[test]
    fn both_families() {
        let limit = |name, rule| Limit { name, count: Count::Requests, rule };
        let secs = |s: u64| Some(Duration::from_millis(s * 1_000 - 500));
        let left: Left = [
            (limit(LimitName::Rate { plan: false }, Rule::Bucket { rate: 50, burst: 50 }), 49, secs(1)),
            (limit(LimitName::Daily, Rule::of(Per::Day, 1_000)), 998, secs(43_200)),
            (limit(LimitName::Quota, Rule::of(Per::Total, 9)), 0, None),
            (limit(LimitName::Concurrency, Rule::InFlight { max: 3 }), 2, None),
            (limit(LimitName::Key(0), Rule::of(Per::Minute, 60)), 59, secs(30)),
            (limit(LimitName::Workspace(0), Rule::of(Per::Month, 70)), 69, secs(99)),
        ]
        .into_iter()
        .map(|(l, units, reset)| (l, Remaining { units, reset }))
        .collect();
        let now = Now { wall: Timestamp::from_millis(1_000_200), steady_ns: 0 };
        let mut header = ResponseHeader::build(200, None).expect("a header");
        let families = Families { x_ratelimit: true, ratelimit: true };
        write(&mut header, families, &left, now, None).expect("fields");
        let field = |name: &str| header.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
        assert_eq!(field("x-ratelimit-limit-qps"), "50");
        assert_eq!(field("x-ratelimit-remaining-qps"), "49");
        assert_eq!(field("x-ratelimit-limit-day"), "1000");
        assert_eq!(field("x-ratelimit-remaining-day"), "998");
        assert_eq!(field("x-ratelimit-reset"), "1001");
        assert_eq!(
            field("ratelimit-policy"),
            "\"rate\";q=50;w=1, \"daily\";q=1000;w=86400, \"quota\";q=9, \
             \"concurrency\";q=3;qu=\"concurrent-requests\", \"key-requests-minute\";q=60;w=60, \
             \"workspace-requests-month\";q=70;w=2678400"
        );
        assert_eq!(
            field("ratelimit"),
            "\"rate\";r=49;t=1, \"daily\";r=998;t=43200, \"quota\";r=0, \"concurrency\";r=2, \
             \"key-requests-minute\";r=59;t=30, \"workspace-requests-month\";r=69;t=99"
        );
        write(&mut header, families, &left, now, Some(7)).expect("fields");
        let reset = header.headers.get("x-ratelimit-reset").and_then(|v| v.to_str().ok());
        assert_eq!(reset, Some("1008"), "no earlier than seven seconds from now");
    }
}
