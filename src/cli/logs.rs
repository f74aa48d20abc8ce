//! `keygate logs`: the usage records of a key, oldest first as a log is read, by the admin API.

use super::gateway::{self, ApiPath, Gateway, GatewayArgs};
use super::keys::InWorkspace;
use super::output::{Column, Table, instant, shown};
use super::{Environment, Failure};
use crate::clock::{Clock as _, SystemClock};
use crate::model::id::KeyId;
use clap::Args;
use serde_json::Value;
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// Arguments of `keygate logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    within: InWorkspace,
    /// The key's id
    key: KeyId,
    /// Print new records as they come, until the command is interrupted. A record comes when its request has ended
    #[arg(short, long)]
    follow: bool,
    /// At most so many of the newest records
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    lines: u32,
    /// Not before this instant: epoch seconds or milliseconds, or RFC 3339
    #[arg(long, value_name = "INSTANT")]
    since: Option<String>,
    /// Only this status
    #[arg(long, value_name = "STATUS")]
    status: Option<u16>,
    /// Only paths that contain this, ignoring case
    #[arg(long, value_name = "TEXT")]
    endpoint: Option<String>,
}

/// How often a followed log is read.
const EVERY: Duration = Duration::from_secs(1);
/// The longest request that is still printed when it ends, if it began before the log was followed.
const LATEST: Duration = Duration::from_mins(10);
/// Most records that are remembered as printed. A record that comes after so many newer ones is missed.
const REMEMBERED: usize = 10_000;

const COLUMNS: &[Column] = &[
    Column { head: "TIME", cell: |record| instant(&record["created_at"]) },
    Column { head: "STATUS", cell: |record| shown(&record["status_code"]) },
    Column { head: "OUTCOME", cell: |record| shown(&record["outcome"]) },
    Column { head: "MS", cell: |record| shown(&record["response_time"]) },
    Column { head: "TOKENS", cell: |record| shown(&record["tokens_used"]) },
    Column { head: "METHOD", cell: |record| shown(&record["method"]) },
    Column { head: "ENDPOINT", cell: |record| shown(&record["endpoint"]) },
    Column { head: "REQUEST ID", cell: |record| shown(&record["request_id"]) },
    Column { head: "ERROR", cell: |record| shown(&record["error"]) },
];

pub(super) fn run(args: &LogsArgs, environment: Environment<'_>) -> Result<(), Failure> {
    gateway::with(&args.gateway, environment, |gateway, output| {
        if args.follow && !gateway.is_running() {
            return Err(Failure::Failed("no gateway runs whose records could be followed".into()));
        }
        args.within.enter(gateway);
        let path = ApiPath::of(&["apikeys", &args.key.to_string(), "logs"])
            .with_some("status_code", args.status)
            .with_some("endpoint", args.endpoint.as_ref());
        let shown_path = path.clone().with_some("start_date", args.since.as_ref());
        let mut printed = Printed::default();
        let mut table = output.table(COLUMNS);
        // Before the first are printed: one that comes in between is among those.
        let floor = SystemClock::new().now().wall.minus(LATEST).as_millis();
        let followed = path.with("start_date", &floor.to_string());
        let recent = if args.follow { newest(gateway, &followed, REMEMBERED, &printed)? } else { Vec::new() };
        let first = newest(gateway, &shown_path, args.lines as usize, &printed)?;
        let mut goes_on = printed.print(first, &mut table)? && args.follow;
        printed.remember(&recent);
        while goes_on {
            gateway.pause(EVERY);
            let new = newest(gateway, &followed, REMEMBERED, &printed)?;
            goes_on = printed.print(new, &mut table)?;
        }
        Ok(())
    })
}

/// The newest records that were not printed yet, at most so many, newest first. What was printed ends the search: all before
/// a page of it was printed, too.
fn newest(
    gateway: &mut Gateway,
    path: &ApiPath,
    most: usize,
    printed: &Printed,
) -> Result<Vec<Value>, Failure> {
    let mut found = Vec::new();
    if most == 0 {
        return Ok(found);
    }
    gateway.pages(path, |records| {
        let read = records.len();
        let before = found.len();
        found.extend(records.into_iter().filter(|record| !printed.has(record)));
        let is_new = found.len() - before;
        found.truncate(most);
        // Without anything printed there is no end but the limit.
        Ok(found.len() < most && (printed.ids.is_empty() || is_new > 0 && read > 0))
    })?;
    Ok(found)
}

/// Which records have been printed.
#[derive(Default)]
struct Printed {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Printed {
    fn has(&self, record: &Value) -> bool {
        record["id"].as_str().is_some_and(|id| self.ids.contains(id))
    }

    /// Prints records that arrive newest first, the oldest first. Returns whether somebody still reads.
    fn print(&mut self, mut records: Vec<Value>, table: &mut Table<'_>) -> Result<bool, Failure> {
        records.reverse();
        let is_read = table.rows(&records)?;
        self.remember(&records);
        Ok(is_read)
    }

    /// These are not printed from now on.
    fn remember(&mut self, records: &[Value]) {
        for id in records.iter().filter_map(|record| record["id"].as_str()) {
            if self.ids.insert(id.to_owned()) {
                self.order.push_back(id.to_owned());
            }
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.ids.remove(&oldest);
            }
        }
    }
}
