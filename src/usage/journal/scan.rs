//! Finds the frames of a segment, also after damaged bytes. Pure.
//!
//! Frames follow each other without gaps. Bytes that are not a frame are the end, or a torn last frame, or damage. Only
//! what follows can tell: the next position with a valid frame ends the gap.

use super::codec::{ALIGN, ChecksumSeed, Frame, ParsedFrame, parse};

/// Progress in a segment.
#[derive(Clone, Debug)]
pub struct Scanner {
    seed: ChecksumSeed,
    at: usize,
    gap: Option<DamagedRange>,
}

/// Bytes that are not a frame.
#[derive(Clone, Copy, Debug)]
struct DamagedRange {
    from: usize,
    /// Whether it contains anything but zeros.
    has_content: bool,
}

/// The next step.
#[derive(Debug, PartialEq, Eq)]
pub enum ScanStep<'a> {
    /// A frame.
    Frame {
        /// The frame.
        frame: Frame<'a>,
        /// Its position.
        at: usize,
        /// Damaged bytes before it.
        damaged_bytes: usize,
    },
    /// More bytes are needed.
    More,
    /// The end. After the last frame there was nothing, or a torn frame.
    End {
        /// Whether the last write was torn.
        is_torn: bool,
    },
}

impl Scanner {
    /// Starts at position `at`.
    pub const fn new(seed: ChecksumSeed, at: usize) -> Self {
        Self { seed, at, gap: None }
    }

    /// The position of the next bytes that are needed.
    pub const fn at(&self) -> usize {
        self.at
    }

    /// The next step. `bytes` begin at position `from`, which is not after [`Scanner::at`]; with `is_all` nothing follows
    /// them.
    pub fn step<'a>(&mut self, bytes: &'a [u8], from: usize, is_all: bool) -> ScanStep<'a> {
        loop {
            let rest = bytes.get(self.at - from..).unwrap_or_default();
            let place = u32::try_from(self.at).unwrap_or(u32::MAX);
            match parse(rest, self.seed, place) {
                ParsedFrame::Frame(frame) => {
                    let at = self.at;
                    let damaged_bytes = self.gap.take().map_or(0, |gap| at - gap.from);
                    // The padding after a last frame may be missing.
                    self.at += frame.len;
                    return ScanStep::Frame { frame, at, damaged_bytes };
                }
                ParsedFrame::Short if !is_all => return ScanStep::More,
                ParsedFrame::Short if rest.len() < ALIGN => {
                    let torn_here = rest.iter().any(|b| *b != 0);
                    let is_torn = torn_here || self.gap.is_some_and(|gap| gap.has_content);
                    return ScanStep::End { is_torn };
                }
                ParsedFrame::Short | ParsedFrame::Not => {
                    let gap = self.gap.get_or_insert(DamagedRange { from: self.at, has_content: false });
                    gap.has_content |= rest.iter().take(ALIGN).any(|b| *b != 0);
                    self.at += ALIGN;
                }
            }
        }
    }
}
