//! A usage record as a line of a file. Unlike the admin API's view it has everything that is in the ledger, and instants and
//! durations in µs, as they are.

use crate::admin::input::json;
use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::id::{EndUserId, KeyId, RequestId};
use crate::model::usage::UsageRecord;
use crate::policy::text::csv_cell::{neutral, plain};
use serde::Serialize;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use uuid::Uuid;

/// The fields of a [`RecordLine`], in their order.
pub(super) const FIELDS: [&str; 23] = [
    "id",
    "request_id",
    "api_key_id",
    "workspace_id",
    "at_us",
    "method",
    "endpoint",
    "route",
    "status_code",
    "outcome",
    "denial",
    "charged",
    "degraded",
    "response_time_us",
    "ttfb_us",
    "bytes_in",
    "bytes_out",
    "tokens_used",
    "ip_address",
    "user_agent",
    "end_user_id",
    "upstream",
    "node",
];

/// A record as it is written.
#[derive(Debug, Serialize)]
pub(super) struct RecordLine<'r> {
    id: Uuid,
    request_id: Cow<'r, str>,
    api_key_id: Uuid,
    workspace_id: Cow<'r, str>,
    at_us: i64,
    method: Cow<'r, str>,
    endpoint: Cow<'r, str>,
    route: Cow<'r, str>,
    status_code: u16,
    outcome: &'static str,
    denial: Option<&'static str>,
    charged: bool,
    degraded: bool,
    response_time_us: u64,
    ttfb_us: Option<u64>,
    bytes_in: u64,
    bytes_out: u64,
    tokens_used: u64,
    ip_address: Option<IpAddr>,
    user_agent: Cow<'r, str>,
    end_user_id: Option<Uuid>,
    upstream: Cow<'r, str>,
    node: Cow<'r, str>,
}

/// What of a line has not been read yet.
struct UnreadFields(Map<String, Value>);

/// The record of a line.
pub(super) fn read(line: &str) -> Result<UsageRecord, String> {
    record(UnreadFields(json::line(line)?))
}

/// The record of a row of comma-separated values whose head has these `names`.
pub(super) fn read_cells<'c>(
    names: impl Iterator<Item = &'c str>,
    cells: impl Iterator<Item = &'c str>,
) -> Result<UsageRecord, String> {
    let value = |name: &str, cell: &str| match name {
        "denial" | "ttfb_us" | "ip_address" | "end_user_id" if cell.is_empty() => Value::Null,
        "charged" | "degraded" => cell.parse().map_or_else(|_| cell.into(), Value::Bool),
        "at_us" | "status_code" | "response_time_us" | "ttfb_us" | "bytes_in" | "bytes_out"
        | "tokens_used" => {
            // What is no number stays text, and the field's own rule says what it must be.
            let number =
                cell.parse::<u64>().map(Value::from).or_else(|_| cell.parse::<i64>().map(Value::from));
            number.unwrap_or_else(|_| cell.into())
        }
        _ => plain(cell).into(),
    };
    record(UnreadFields(names.zip(cells).map(|(name, cell)| (name.to_owned(), value(name, cell))).collect()))
}

fn record(mut line: UnreadFields) -> Result<UsageRecord, String> {
    let record = UsageRecord {
        id: RequestId(line.uuid("id")?),
        request_id: line.text("request_id")?.into(),
        api_key_id: KeyId(line.uuid("api_key_id")?),
        workspace_id: line.parsed("workspace_id")?,
        at: line.instant("at_us")?,
        method: line.text("method")?.into(),
        endpoint: line.text("endpoint")?.into(),
        route: line.text("route")?.into(),
        status_code: line.status("status_code")?,
        outcome: line.parsed("outcome")?,
        denial: line.maybe_fault("denial")?,
        charged: line.flag("charged")?,
        degraded: line.flag("degraded")?,
        response_time_us: line.number("response_time_us")?,
        ttfb_us: line.maybe("ttfb_us", UnreadFields::number)?,
        bytes_in: line.number("bytes_in")?,
        bytes_out: line.number("bytes_out")?,
        tokens_used: line.number("tokens_used")?,
        ip_address: line.maybe("ip_address", UnreadFields::parsed)?,
        user_agent: line.text("user_agent")?.into(),
        end_user_id: line.maybe("end_user_id", UnreadFields::uuid)?.map(EndUserId),
        upstream: line.text("upstream")?.into(),
        node: line.text("node")?.into(),
    };
    // What a gateway set aside because the ledger refused it has the same fields, and why.
    line.0.remove("refused_because");
    match line.0.keys().next() {
        Some(unknown) => Err(format!("{unknown}: is no field of a usage record")),
        None => Ok(record),
    }
}

// === impl RecordLine ===

impl<'r> RecordLine<'r> {
    pub(super) fn of(record: &'r UsageRecord) -> Self {
        let UsageRecord {
            id,
            request_id,
            api_key_id,
            workspace_id,
            at,
            method,
            endpoint,
            route,
            status_code,
            outcome,
            denial,
            charged,
            degraded,
            response_time_us,
            ttfb_us,
            bytes_in,
            bytes_out,
            tokens_used,
            ip_address,
            user_agent,
            end_user_id,
            upstream,
            node,
        } = record;
        Self {
            id: id.0,
            request_id: request_id.as_ref().into(),
            api_key_id: api_key_id.0,
            workspace_id: workspace_id.as_str().into(),
            at_us: at.as_micros(),
            method: method.as_ref().into(),
            endpoint: endpoint.as_ref().into(),
            route: route.as_ref().into(),
            status_code: *status_code,
            outcome: outcome.as_str(),
            denial: denial.map(Fault::name),
            charged: *charged,
            degraded: *degraded,
            response_time_us: *response_time_us,
            ttfb_us: *ttfb_us,
            bytes_in: *bytes_in,
            bytes_out: *bytes_out,
            tokens_used: *tokens_used,
            ip_address: *ip_address,
            user_agent: user_agent.as_ref().into(),
            end_user_id: end_user_id.map(|end_user| end_user.0),
            upstream: upstream.as_ref().into(),
            node: node.as_ref().into(),
        }
    }

    /// The same for a file of comma-separated values: no text of a client's is a formula there.
    pub(super) fn into_cells(mut self) -> Self {
        for text in [
            &mut self.request_id,
            &mut self.workspace_id,
            &mut self.method,
            &mut self.endpoint,
            &mut self.route,
            &mut self.user_agent,
            &mut self.upstream,
            &mut self.node,
        ] {
            if let Cow::Owned(cell) = neutral(text) {
                *text = Cow::Owned(cell);
            }
        }
        self
    }
}

// === impl UnreadFields ===

impl UnreadFields {
    fn take(&mut self, name: &str) -> Result<Value, String> {
        self.0.remove(name).ok_or_else(|| format!("{name}: is missing"))
    }

    fn text(&mut self, name: &str) -> Result<String, String> {
        match self.take(name)? {
            Value::String(text) => Ok(text),
            _ => Err(format!("{name}: must be text")),
        }
    }

    fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<T, String> {
        self.text(name)?.parse().map_err(|why| format!("{name}: {why}"))
    }

    fn uuid(&mut self, name: &str) -> Result<Uuid, String> {
        Uuid::try_parse(&self.text(name)?).map_err(|_| format!("{name}: must be a UUID"))
    }

    fn flag(&mut self, name: &str) -> Result<bool, String> {
        self.take(name)?.as_bool().ok_or_else(|| format!("{name}: must be true or false"))
    }

    fn number(&mut self, name: &str) -> Result<u64, String> {
        self.take(name)?.as_u64().ok_or_else(|| format!("{name}: must be a whole number, 0 or more"))
    }

    fn status(&mut self, name: &str) -> Result<u16, String> {
        let status = self.number(name)?;
        u16::try_from(status).map_err(|_| format!("{name}: must be at most {}", u16::MAX))
    }

    fn instant(&mut self, name: &str) -> Result<Timestamp, String> {
        let at = self.take(name)?.as_i64().map(Timestamp::from_micros);
        at.filter(|at| (Timestamp::default()..=Timestamp::MAX).contains(at))
            .ok_or_else(|| format!("{name}: must be epoch microseconds of the years 1970 to 9999"))
    }

    fn maybe_fault(&mut self, name: &str) -> Result<Option<Fault>, String> {
        let Some(word) = self.maybe(name, Self::text)? else { return Ok(None) };
        Fault::from_name(&word).map(Some).ok_or_else(|| format!("{name}: is no known reason"))
    }

    /// None where it is null; it must be there.
    fn maybe<T>(
        &mut self,
        name: &str,
        read: fn(&mut Self, &str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        if self.0.get(name).is_some_and(Value::is_null) {
            self.0.remove(name);
            return Ok(None);
        }
        read(self, name).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn written(of: &UsageRecord) -> String {
        serde_json::to_string(&RecordLine::of(of)).expect("JSON")
    }

    #[test]
    fn a_record_is_always_written_the_same() {
        let full = UsageRecord::full_sample();
        let bare =
            UsageRecord { denial: None, ttfb_us: None, ip_address: None, end_user_id: None, ..full.clone() };
        let mut rows = csv::Writer::from_writer(Vec::new());
        for record in [&full, &bare] {
            rows.serialize(RecordLine::of(record).into_cells()).expect("a row");
        }
        let text = String::from_utf8(rows.into_inner().expect("written")).expect("text");
        insta::assert_snapshot!(format!("{}\n{}\n{text:?}", written(&full), written(&bare)));
    }

    #[test]
    fn what_is_written_is_read_back_exactly() {
        let full = UsageRecord::full_sample();
        let bare = UsageRecord {
            denial: None,
            ttfb_us: None,
            ip_address: None,
            end_user_id: None,
            ..UsageRecord::full_sample()
        };
        for whole in [full, bare] {
            let line = written(&whole);
            assert!(!line.contains('\n'), "one line: {line}");
            assert_eq!(read(&line), Ok(whole));
        }
    }

    #[test]
    fn what_is_written_into_cells_is_read_back_exactly_and_is_no_formula() {
        let texts = ["", "=1+1", "'=1+1", "+a,\"b\"\r\n", "\t@x", "-", "plain", " =blank", "'", "a\u{0}b"];
        for (n, text) in texts.iter().enumerate() {
            let other = texts[(n + 1) % texts.len()];
            let whole = UsageRecord {
                request_id: (*text).into(),
                method: other.into(),
                endpoint: (*text).into(),
                route: other.into(),
                user_agent: (*text).into(),
                upstream: other.into(),
                node: (*text).into(),
                denial: (n % 2 == 0).then_some(Fault::KeyNotFound),
                ttfb_us: (n % 2 == 1).then_some(0),
                ip_address: None,
                end_user_id: None,
                ..UsageRecord::full_sample()
            };
            let mut rows = csv::Writer::from_writer(Vec::new());
            rows.serialize(RecordLine::of(&whole).into_cells()).expect("a row");
            let written = rows.into_inner().expect("written");
            let mut reader = csv::Reader::from_reader(written.as_slice());
            let names = reader.headers().expect("a head").clone();
            let row = reader.records().next().expect("a row").expect("sound");
            assert!(row.iter().all(|cell| !cell.starts_with(['=', '+', '-', '@', '\t', '\r'])), "{row:?}");
            assert_eq!(read_cells(names.iter(), row.iter()), Ok(whole), "{text:?}");
        }
    }

    #[test]
    fn the_head_names_the_fields_in_their_order() {
        let mut rows = csv::Writer::from_writer(Vec::new());
        rows.serialize(RecordLine::of(&UsageRecord::full_sample())).expect("a row");
        let text = String::from_utf8(rows.into_inner().expect("written")).expect("text");
        assert_eq!(text.lines().next(), Some(FIELDS.join(",").as_str()));
    }

    #[test]
    fn a_line_that_is_none_is_refused_by_its_field() {
        let whole: Map<String, Value> =
            serde_json::from_str(&written(&UsageRecord::full_sample())).expect("an object");
        for name in FIELDS {
            let mut lacking = whole.clone();
            lacking.remove(name);
            assert_eq!(read(&Value::Object(lacking).to_string()), Err(format!("{name}: is missing")));
            let mut odd = whole.clone();
            odd.insert(name.into(), json!([1]));
            let why = read(&Value::Object(odd).to_string()).expect_err(name);
            assert!(why.starts_with(&format!("{name}: must be")), "{why}");
        }
        for (name, value) in [
            ("at_us", json!(-1)),
            ("at_us", json!(253_402_300_800_000_000_i64)),
            ("status_code", json!(65_536)),
            ("outcome", json!("liked")),
            ("denial", json!("mood")),
            ("ip_address", json!("localhost")),
            ("workspace_id", json!("")),
            ("more", json!(1)),
        ] {
            let mut odd = whole.clone();
            odd.insert(name.into(), value);
            let why = read(&Value::Object(odd).to_string()).expect_err(name);
            assert!(why.starts_with(&format!("{name}: ")), "{why}");
        }
        for text in ["", "[]", "{", "null"] {
            assert_eq!(read(text), Err("is not a JSON object".into()), "{text}");
        }
        let twice = format!("{{\"charged\":false,{}", &written(&UsageRecord::full_sample())[1..]);
        assert_eq!(read(&twice), Err("charged: is there twice".into()));
    }
}
