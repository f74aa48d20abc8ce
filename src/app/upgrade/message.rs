//! Messages between the two processes: lines of JSON, so that binaries of different versions understand each other.

use crate::clock::Timestamp;
use crate::counter::{CounterDelta, MeteredDelta};
use crate::model::calendar::{self, Calendar};
use crate::model::id::{EndUserId, KeyId, WorkspaceId};
use crate::model::key::{Measure, Per};
use crate::model::usage::UsageSubject;
use crate::policy::keys::limit::BucketDebt;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

/// Both must use the same version; a change that only adds fields keeps it.
pub(super) const VERSION: u32 = 2;
/// Longest line, in bytes.
const LINE_MAX: u64 = 64 << 10;
/// Most descriptors: all listeners that a config can have, and the store's lock.
pub(super) const DESCRIPTORS_MAX: usize = 64;

/// One message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum UpgradeMessage {
    /// First message of the old process: what is handed over.
    Hello(Hello),
    /// New process: no further step can fail.
    Loaded {
        /// Its id among nodes.
        boot: Uuid,
    },
    /// Old process: what one subject has spent, or has spent since.
    Counted(CounterRow),
    /// Old process: that was all so far; accept connections.
    Go,
    /// New process: it accepts connections.
    Serving,
}

/// What is handed over: one byte before this line carries the descriptors, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u32,
    /// Listening sockets.
    pub(super) sockets: Vec<(String, SocketAddr)>,
    /// Whether the last descriptor is the lock of an embedded store.
    pub(super) store_lock: bool,
    /// Whether it counts in memory and will send its counts.
    pub(super) counts: bool,
}

/// [`CounterDelta`] as sent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CounterRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace: Option<String>,
    at_us: i64,
    zone: String,
    month_day: u8,
    week_day: String,
    spent: [i64; Per::WINDOWS.len()],
    /// The end user of `workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end_user: Option<Uuid>,
    /// For each window, what was used of each measure, and what is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metered: Option<Box<[[MeteredRow; 2]; Per::WINDOWS.len()]>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ahead_ns: Option<[u64; 2]>,
    #[serde(default)]
    in_flight: i64,
}

/// Units of each of [`Measure::METERED`].
type MeteredRow = [i64; Measure::METERED.len()];

impl From<CounterDelta> for CounterRow {
    fn from(CounterDelta { subject, at, calendar, spent, metered, debt, in_flight }: CounterDelta) -> Self {
        let (key, workspace, end_user) = match subject {
            UsageSubject::Key(KeyId(id)) => (Some(id), None, None),
            UsageSubject::Workspace(id) => (None, Some(id.as_str().to_owned()), None),
            UsageSubject::EndUser(workspace, EndUserId(id)) => {
                (None, Some(workspace.as_str().to_owned()), Some(id))
            }
        };
        let metered = metered.map(|all| Box::new(all.map(|MeteredDelta { used, held }| [used, held])));
        let ahead_ns = debt.map(|BucketDebt { rate_ns, second_ns }| [rate_ns, second_ns]);
        let Calendar { zone, month_day, week_day } = calendar;
        let (zone, week_day) = (zone.name().to_owned(), week_day.to_string());
        let at_us = at.as_micros();
        Self {
            key,
            workspace,
            at_us,
            zone,
            month_day,
            week_day,
            spent,
            end_user,
            metered,
            ahead_ns,
            in_flight,
        }
    }
}

impl CounterRow {
    /// None: the subject or its calendar is unknown.
    pub(super) fn read(self) -> Option<CounterDelta> {
        let subject = match (self.key, self.workspace, self.end_user) {
            (Some(id), ..) => UsageSubject::Key(KeyId(id)),
            (None, Some(workspace), Some(id)) => {
                UsageSubject::EndUser(workspace.parse::<WorkspaceId>().ok()?, EndUserId(id))
            }
            (None, Some(id), None) => UsageSubject::Workspace(id.parse::<WorkspaceId>().ok()?),
            (None, None, _) => return None,
        };
        let metered = self.metered.map(|all| Box::new(all.map(|[used, held]| MeteredDelta { used, held })));
        let debt = self.ahead_ns.map(|[rate_ns, second_ns]| BucketDebt { rate_ns, second_ns });
        let (at, spent, in_flight) = (Timestamp::from_micros(self.at_us), self.spent, self.in_flight);
        let (zone, week_day) = (calendar::zone(&self.zone).ok()?, self.week_day.parse().ok()?);
        let calendar = Calendar { zone, month_day: self.month_day, week_day };
        Some(CounterDelta { subject, at, calendar, spent, metered, debt, in_flight })
    }
}

/// Writes one line. It is sent at the next flush.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), message: &UpgradeMessage) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line).await
}

/// Reads one line. None: the other process has exited.
pub(super) async fn read(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<UpgradeMessage>> {
    let mut line = Vec::new();
    from.take(LINE_MAX).read_until(b'\n', &mut line).await?;
    if line.pop() != Some(b'\n') {
        // A process that dies may leave a partial line.
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn written_files_read_back_and_half_of_one_is_refused() {
        let told = |subject, debt, metered| CounterDelta {
            subject,
            at: Timestamp::from_micros(7),
            calendar: Calendar { zone: calendar::zone("Asia/Shanghai").expect("a zone"), ..Calendar::UTC },
            spent: [1, -2, 3, 4, i64::MAX, i64::MIN],
            metered,
            debt,
            in_flight: -4,
        };
        for told in [
            told(
                UsageSubject::Key(KeyId(Uuid::from_u128(5))),
                Some(BucketDebt { rate_ns: 1, second_ns: u64::MAX }),
                None,
            ),
            told(UsageSubject::Workspace("w".parse().expect("an id")), None, None),
            told(
                UsageSubject::EndUser("w".parse().expect("an id"), EndUserId(Uuid::from_u128(6))),
                None,
                Some(Box::new([MeteredDelta { used: [1, 2, 3, i64::MAX], held: [-4, 5, 6, 7] }; 6])),
            ),
        ] {
            let mut bytes = Vec::new();
            write(&mut bytes, &UpgradeMessage::Counted(told.clone().into())).await.expect("written");
            write(&mut bytes, &UpgradeMessage::Go).await.expect("written");
            let mut from = bytes.as_slice();
            let Ok(Some(UpgradeMessage::Counted(row))) = read(&mut from).await else { panic!("a row") };
            assert_eq!(row.read(), Some(told));
            assert!(matches!(read(&mut from).await, Ok(Some(UpgradeMessage::Go))));
            assert!(matches!(read(&mut from).await, Ok(None)));
            let mut half = &bytes[..10];
            assert!(matches!(read(&mut half).await, Ok(None)));
        }
    }
}
