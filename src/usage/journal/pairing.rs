//! Pairs the starts and ends of requests into records. Pure.
//!
//! A request may start in one segment and end in another, and a reader may see the end first. The memory is bounded by the
//! requests in flight, and by how unevenly segments are read.

use super::codec::{self, Frame, FrameKind, Malformed};
use super::segment::Position;
use crate::model::id::RequestId;
use crate::model::usage::UsageRecord;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The frames of a record.
pub type FramePositions = SmallVec<[Position; 2]>;

/// Starts without an end, and ends without a start.
#[derive(Clone, Debug, Default)]
pub struct Pairing {
    open: HashMap<RequestId, OpenRequest>,
    early: HashMap<RequestId, EarlyEnd>,
}

/// A request that has started.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// The payload of its frame.
    pub payload: Box<[u8]>,
    /// Its frame; several if it was carried over.
    pub frames: FramePositions,
}

#[derive(Clone, Debug)]
struct EarlyEnd {
    payload: Box<[u8]>,
    frame: Option<Position>,
}

/// The two parts of a request; without an end it was interrupted.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The payload of its start.
    pub admit: Box<[u8]>,
    /// The payload of its end.
    pub complete: Option<Box<[u8]>>,
    /// Positions of both.
    pub frames: FramePositions,
}

/// The result of taking a frame.
#[derive(Debug)]
pub enum PairState {
    /// A request is complete.
    Pair(Pair),
    /// The other part is still missing.
    Half,
}

impl Pair {
    /// The record.
    pub fn record(&self) -> Result<UsageRecord, Malformed> {
        codec::record(&self.admit, self.complete.as_deref())
    }
}

impl Pairing {
    /// Takes a frame at position `at`.
    pub fn take(&mut self, frame: &Frame<'_>, at: Position) -> Result<PairState, Malformed> {
        match frame.kind.ok_or(Malformed("written by another version of Keygate"))? {
            FrameKind::Admit => self.begun(frame.payload, at),
            FrameKind::Complete => self.ended(frame.payload, Some(at)),
            FrameKind::Whole => {
                let (admit, complete) = codec::split_whole(frame.payload)?;
                let pair = Pair {
                    admit: admit.into(),
                    complete: Some(complete.into()),
                    frames: SmallVec::from_slice(&[at]),
                };
                Ok(PairState::Pair(pair))
            }
        }
    }

    fn begun(&mut self, payload: &[u8], at: Position) -> Result<PairState, Malformed> {
        let id = codec::id_of(payload)?;
        if let Some(ended) = self.early.remove(&id) {
            let frames = std::iter::once(at).chain(ended.frame).collect();
            return Ok(PairState::Pair(Pair {
                admit: payload.into(),
                complete: Some(ended.payload),
                frames,
            }));
        }
        match self.open.entry(id) {
            // Carried over, and the first copy is not marked yet.
            Entry::Occupied(mut known) => known.get_mut().frames.push(at),
            Entry::Vacant(new) => {
                new.insert(OpenRequest { payload: payload.into(), frames: SmallVec::from_slice(&[at]) });
            }
        }
        Ok(PairState::Half)
    }

    /// Takes an end; `frame` is its position, if it is in the journal.
    pub fn ended(&mut self, payload: &[u8], frame: Option<Position>) -> Result<PairState, Malformed> {
        let id = codec::id_of(payload)?;
        let Some(mut begun) = self.open.remove(&id) else {
            self.early.insert(id, EarlyEnd { payload: payload.into(), frame });
            return Ok(PairState::Half);
        };
        begun.frames.extend(frame);
        Ok(PairState::Pair(Pair {
            admit: begun.payload,
            complete: Some(payload.into()),
            frames: begun.frames,
        }))
    }

    /// Number of requests that have started and not ended.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Those that started in this segment.
    pub fn open_in(&mut self, segment: u64) -> impl Iterator<Item = &mut OpenRequest> {
        self.open.values_mut().filter(move |begun| begun.frames.iter().any(|at| at.segment == segment))
    }

    /// Ends all open requests as interrupted. Also returns the frames of ends without a start.
    pub fn interrupt(&mut self) -> (Vec<Pair>, FramePositions) {
        let cut_off = |(_, begun): (RequestId, OpenRequest)| Pair {
            admit: begun.payload,
            complete: None,
            frames: begun.frames,
        };
        let pairs = self.open.drain().map(cut_off).collect();
        let ends = self.early.drain().filter_map(|(_, ended)| ended.frame).collect();
        (pairs, ends)
    }
}
