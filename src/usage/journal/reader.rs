//! Reads the journal in order, as a queue: frames become records, stored records are marked, and segments without further
//! records are finished.
//!
//! There is one reader. It keeps one batch in memory, and the starts of requests that have not ended. Segments of earlier
//! processes come first. At their end, all requests that have started there and not ended were interrupted.

use super::Journal;
use super::codec::{ALIGN, HEADER, Malformed};
use super::pairing::{FramePositions, Pair, PairState, Pairing};
use super::scan::{ScanStep, Scanner};
use super::segment::{FIRST, Position, Segment};
use crate::model::usage::UsageRecord;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// How much of a segment is read at a time. Longer than any frame.
const CHUNK: usize = 256 << 10;
/// Starts are carried over when they are less than one in so many bytes of a segment.
const CARRY_SHARE: usize = 4;

/// Reads a journal.
#[derive(Debug)]
pub struct JournalReader {
    journal: Arc<Journal>,
    tracks: BTreeMap<u64, SegmentCursor>,
    pairing: Pairing,
    /// Complete records that did not fit into a batch.
    queue: VecDeque<Pair>,
    chunk: Vec<u8>,
    /// Whether segments of earlier processes are still to be read.
    is_behind: bool,
    /// The last segment of an earlier process whose records have not been counted as accepted yet.
    counts_up_to: u64,
}

/// Records and their positions.
#[derive(Debug, Default)]
pub struct RecordBatch {
    /// The records for the ledger.
    pub records: Vec<UsageRecord>,
    /// The frames of each record.
    frames: Vec<FramePositions>,
}

/// Progress in one segment.
#[derive(Clone, Debug)]
struct SegmentCursor {
    segment: Arc<Segment>,
    scanner: Scanner,
    /// The end of this round in the segment.
    limit: usize,
    /// Whether nothing more can come after the limit.
    is_final: bool,
    is_at_end: bool,
    /// Frames in it whose record is not in the ledger.
    unacknowledged: usize,
    is_damaged: bool,
    /// Damage that has not been reported yet.
    news: Vec<String>,
}

/// The result of reading one chunk.
enum ChunkRead {
    /// There is more, and room for it.
    On,
    /// Nothing more for now.
    Enough,
    /// The receiver has no room.
    Full,
}

impl RecordBatch {
    /// Empties it.
    pub fn clear(&mut self) {
        self.records.clear();
        self.frames.clear();
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

impl JournalReader {
    pub(super) fn new(journal: Arc<Journal>) -> Self {
        let mut reader = Self {
            journal,
            tracks: BTreeMap::new(),
            pairing: Pairing::default(),
            queue: VecDeque::new(),
            chunk: Vec::new(),
            is_behind: true,
            counts_up_to: 0,
        };
        reader.begin_round();
        reader.counts_up_to = reader.tracks.keys().next_back().copied().unwrap_or(0);
        reader
    }

    /// The journal it reads.
    pub const fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Starts a round: [`JournalReader::read`] will read up to what is written now.
    pub fn begin_round(&mut self) {
        for segment in self.journal.live() {
            let track = self.tracks.entry(segment.sequence()).or_insert_with(|| SegmentCursor::new(segment));
            track.begin_round();
        }
    }

    /// Fills `batch` with up to `most` records. False: it has everything that was there when the round began.
    pub fn read(&mut self, most: usize, batch: &mut RecordBatch) -> bool {
        loop {
            if !self.is_behind {
                self.take_late();
            }
            while batch.len() < most {
                let Some(pair) = self.queue.pop_front() else { break };
                self.add(batch, &pair);
            }
            if batch.len() >= most {
                return true;
            }
            if !self.read_on(most) {
                return !self.queue.is_empty();
            }
        }
    }

    /// Reads until there are `most` pairs in the queue. False: nothing more for now.
    fn read_on(&mut self, most: usize) -> bool {
        let mut chunk = std::mem::take(&mut self.chunk);
        let (pairing, queue, metrics) = (&mut self.pairing, &mut self.queue, &self.journal.metrics);
        let is_behind = self.is_behind;
        let mut is_full = false;
        for track in self.tracks.values_mut().take_while(|t| !is_behind || t.segment.is_left()) {
            let mut read = ChunkRead::On;
            while matches!(read, ChunkRead::On) {
                read = track.read(&mut chunk, pairing, |pair| {
                    queue.push_back(pair);
                    queue.len() < most
                });
            }
            for news in track.news.drain(..) {
                metrics.usage_journal_damage.inc();
                tracing::error!(
                    segment = %track.segment.path().display(),
                    "usage journal segment damaged: {news}; intact records are used, segment set aside"
                );
            }
            is_full = matches!(read, ChunkRead::Full);
            if is_full {
                break;
            }
        }
        self.chunk = chunk;
        if !is_full && self.is_behind {
            self.on_caught_up();
            return true;
        }
        is_full
    }

    /// Everything of earlier processes has been read.
    fn on_caught_up(&mut self) {
        self.is_behind = false;
        let (interrupted, ends_alone) = self.pairing.interrupt();
        self.queue.extend(interrupted);
        // Their starts were stored and removed, or are lost to damage: there is nothing to wait for.
        self.acknowledge_frames(&ends_alone);
    }

    fn take_late(&mut self) {
        for payload in self.journal.take_late() {
            match self.pairing.ended(&payload, None) {
                Ok(PairState::Pair(pair)) => self.queue.push_back(pair),
                Ok(PairState::Half) => {}
                Err(error) => tracing::error!(%error, "usage record lost"),
            }
        }
    }

    fn add(&mut self, batch: &mut RecordBatch, pair: &Pair) {
        if pair.frames.first().is_some_and(|at| at.segment <= self.counts_up_to) {
            self.journal.on_accepted(1);
        }
        match pair.record() {
            Ok(record) => {
                batch.records.push(record);
                batch.frames.push(pair.frames.clone());
            }
            Err(error) => self.on_lost_record(pair, error),
        }
    }

    /// A record with a correct checksum and invalid content: the segment is kept for a person to look at.
    fn on_lost_record(&mut self, pair: &Pair, error: Malformed) {
        tracing::error!(%error, "invalid usage record, its journal segment is set aside");
        self.journal.metrics.usage_journal_damage.inc();
        self.journal.metrics.usage_shed.inc();
        self.journal.on_records_settled(1);
        for at in &pair.frames {
            if let Some(track) = self.tracks.get_mut(&at.segment) {
                track.is_damaged = true;
            }
        }
        self.acknowledge_frames(&pair.frames);
    }

    /// The records `from` to `to` of `batch` are in the ledger.
    pub fn acknowledge(&mut self, batch: &RecordBatch, numbers: std::ops::Range<usize>) {
        for frames in batch.frames.get(numbers).unwrap_or_default() {
            self.acknowledge_frames(frames);
        }
    }

    fn acknowledge_frames(&mut self, frames: &[Position]) {
        for at in frames {
            let Some(track) = self.tracks.get_mut(&at.segment) else { continue };
            track.unacknowledged = track.unacknowledged.saturating_sub(1);
            acknowledge_in(&track.segment, *at);
        }
    }

    /// Releases finished segments.
    pub fn retire(&mut self) {
        let journal = &self.journal;
        self.tracks.retain(|_, track| {
            let is_done = track.is_at_end && track.unacknowledged == 0;
            if is_done {
                journal.finish_segment(Arc::clone(&track.segment), track.is_damaged);
            }
            !is_done
        });
    }

    /// Copies starts that alone keep a segment into a newer one, so that a request that lasts for hours does not keep
    /// everything that was written beside it.
    pub fn carry(&mut self) {
        let kept: Vec<u64> =
            self.tracks.values().filter(|t| t.may_be_carried()).map(SegmentCursor::sequence).collect();
        for sequence in kept {
            let Some(track) = self.tracks.get(&sequence) else { continue };
            let (mut open, mut bytes) = (0, 0);
            for begun in self.pairing.open_in(sequence) {
                open += 1;
                bytes += HEADER + begun.payload.len();
            }
            let alone = open == track.unacknowledged;
            if alone && bytes * CARRY_SHARE <= track.limit {
                self.carry_from(sequence);
            }
        }
    }

    fn carry_from(&mut self, sequence: u64) {
        let mut carried = Vec::new();
        for begun in self.pairing.open_in(sequence) {
            // Without room it stays where it is.
            let Ok(copy) = self.journal.carry(&begun.payload) else { break };
            carried.push(copy);
        }
        // A mark on the old frame may reach the disk at any time, so the copy must be there first.
        if let Err(error) = self.journal.sync_copies(&carried) {
            tracing::debug!(%error, "cannot carry open requests to a newer journal segment");
            for (at, segment) in &carried {
                acknowledge_in(segment, *at);
            }
            return;
        }
        let mut left_behind = FramePositions::new();
        for (begun, (at, segment)) in self.pairing.open_in(sequence).zip(carried) {
            let track = self.tracks.entry(at.segment).or_insert_with(|| SegmentCursor::new(segment));
            track.unacknowledged += 1;
            left_behind.extend(std::mem::replace(&mut begun.frames, FramePositions::from_slice(&[at])));
        }
        self.acknowledge_frames(&left_behind);
    }

    /// Number of requests that have started and not ended.
    pub fn open(&self) -> usize {
        self.pairing.open()
    }

    /// Calls `each` with the start and end of every record of earlier processes that has not been read yet, without
    /// consuming it. Records that arrive from now on are counted elsewhere.
    pub fn rest(&mut self, mut each: impl FnMut(&[u8], Option<&[u8]>)) {
        let mut records = 0;
        let mut show = |admit: &[u8], complete: Option<&[u8]>| {
            records += 1;
            each(admit, complete);
        };
        self.queue.iter().for_each(|pair| show(&pair.admit, pair.complete.as_deref()));
        if self.is_behind {
            let mut pairing = self.pairing.clone();
            let mut chunk = Vec::new();
            for track in self.tracks.values().filter(|track| track.segment.is_left()) {
                let mut track = track.clone();
                let mut read = ChunkRead::On;
                while matches!(read, ChunkRead::On) {
                    read = track.read(&mut chunk, &mut pairing, |pair| {
                        show(&pair.admit, pair.complete.as_deref());
                        true
                    });
                }
            }
            pairing.interrupt().0.iter().for_each(|pair| show(&pair.admit, None));
        }
        self.counts_up_to = 0;
        self.journal.on_accepted(records);
    }

    /// Whether records of earlier processes are still to be read.
    pub fn is_behind(&self) -> bool {
        self.is_behind || !self.queue.is_empty()
    }
}

/// If a mark cannot be set, the record is stored again, which changes nothing.
fn acknowledge_in(segment: &Segment, at: Position) {
    if let Err(error) = segment.acknowledge(at.offset) {
        tracing::debug!(%error, "cannot mark usage record as stored");
    }
}

// === impl SegmentCursor ===

impl SegmentCursor {
    fn new(segment: Arc<Segment>) -> Self {
        Self {
            scanner: Scanner::new(segment.seed(), FIRST),
            limit: FIRST,
            is_final: false,
            is_at_end: false,
            unacknowledged: 0,
            is_damaged: false,
            news: Vec::new(),
            segment,
        }
    }

    fn sequence(&self) -> u64 {
        self.segment.sequence()
    }

    fn begin_round(&mut self) {
        // In this order: what is committed when it is sealed is all there will be.
        self.is_final = self.segment.is_sealed();
        self.limit = self.segment.committed();
        // Carried-over records are known already.
        self.is_at_end |= self.is_final && !self.segment.is_read();
    }

    fn may_be_carried(&self) -> bool {
        self.is_at_end && self.unacknowledged > 0 && !self.segment.is_left()
    }

    /// Reads one chunk and passes each complete record to `take`, until it returns that it has enough.
    fn read(
        &mut self,
        chunk: &mut Vec<u8>,
        pairing: &mut Pairing,
        mut take: impl FnMut(Pair) -> bool,
    ) -> ChunkRead {
        let from = self.scanner.at();
        if self.is_at_end || !self.segment.is_read() || (from >= self.limit && !self.is_final) {
            return ChunkRead::Enough;
        }
        let len = self.limit.saturating_sub(from).min(CHUNK);
        chunk.resize(len, 0);
        if let Err(error) = self.segment.read(from, chunk) {
            self.mark_damaged(format!("{len} bytes cannot be read: {error}"));
            self.scanner = Scanner::new(self.segment.seed(), from + len.max(1).next_multiple_of(ALIGN));
            return ChunkRead::On;
        }
        let is_all = self.is_final && from + len >= self.limit;
        loop {
            match self.scanner.step(chunk, from, is_all) {
                ScanStep::Frame { frame, at, damaged_bytes } => {
                    if damaged_bytes > 0 {
                        self.mark_damaged(format!("{damaged_bytes} bytes are no records"));
                    }
                    if frame.acknowledged {
                        continue;
                    }
                    self.unacknowledged += 1;
                    let at = Position { segment: self.segment.sequence(), offset: at };
                    match pairing.take(&frame, at) {
                        Ok(PairState::Half) => {}
                        Ok(PairState::Pair(pair)) => {
                            if !take(pair) {
                                return ChunkRead::Full;
                            }
                        }
                        Err(error) => {
                            self.unacknowledged -= 1;
                            self.mark_damaged(error.to_string());
                        }
                    }
                }
                ScanStep::More => {
                    return if from + len < self.limit { ChunkRead::On } else { ChunkRead::Enough };
                }
                ScanStep::End { is_torn } => {
                    if is_torn {
                        tracing::debug!(
                            segment = self.sequence(),
                            "incomplete write at the end of a journal segment ignored"
                        );
                    }
                    self.is_at_end = true;
                    return ChunkRead::Enough;
                }
            }
        }
    }

    /// The rest can still be read.
    fn mark_damaged(&mut self, how: String) {
        self.is_damaged = true;
        self.news.push(how);
    }
}
