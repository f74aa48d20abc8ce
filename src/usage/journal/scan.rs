//! Finding the frames of a segment, also behind bytes that are none. Pure.
//!
//! Frames follow each other without a gap, so bytes that are no frame are either the end, or a torn last frame, or
//! damage. Which of these only what follows can tell: the next place where a whole frame stands ends the gap.

use super::codec::{ALIGN, ChecksumSeed, Frame, ParsedFrame, parse};

/// How far a segment has been read.
#[derive(Clone, Debug)]
pub struct Scanner {
    seed: ChecksumSeed,
    at: usize,
    gap: Option<DamagedRange>,
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug)]
struct DamagedRange {
    from: usize,
    /// Whether there is anything but zeros in it.
    has_content: bool,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum ScanStep<'a> {
    /// A frame, at that place.
    Frame {
        /// What it is.
        frame: Frame<'a>,
        /// Where it begins.
        at: usize,
        /// Bytes before it that should have been frames.
        damaged_bytes: usize,
    },
    /// The bytes given end before that can be told.
    More,
    /// The end. What stood behind the last frame was torn, or nothing.
    End {
        /// Whether the last thing written was cut off.
        is_torn: bool,
    },
}

impl Scanner {
    /// Begins at the place `at`.
    pub const fn new(seed: ChecksumSeed, at: usize) -> Self {
        Self { seed, at, gap: None }
    }

    /// Where the next bytes are wanted from.
    pub const fn at(&self) -> usize {
        self.at
    }

    /// The next step. `bytes` begin at the place `from`, which is not behind [`Scanner::at`]; with `is_all` nothing
    /// follows them.
    pub fn step<'a>(&mut self, bytes: &'a [u8], from: usize, is_all: bool) -> ScanStep<'a> {
        loop {
            let rest = bytes.get(self.at - from..).unwrap_or_default();
            let place = u32::try_from(self.at).unwrap_or(u32::MAX);
            match parse(rest, self.seed, place) {
                ParsedFrame::Frame(frame) => {
                    let at = self.at;
                    let damaged_bytes = self.gap.take().map_or(0, |gap| at - gap.from);
                    // A last frame may lack the padding that would follow it.
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
