//! Finds where frames of a WebSocket begin and end (RFC 6455, 5.2), so that a close frame can be sent between two of them.
//!
//! Must not know: what frames contain, sockets. In bytes that are not WebSocket frames, a frame boundary is found only by
//! chance.

/// Longest header of a frame, in bytes.
const HEADER_MAX: usize = 14;

/// The state of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameParser {
    header: [u8; HEADER_MAX],
    /// Bytes of the header received so far.
    here: usize,
    /// Bytes of the payload still to come.
    left: u64,
    /// Whether a close frame has begun.
    closed: bool,
}

/// A server's close frame with this code.
pub const fn close_frame(code: u16) -> [u8; 4] {
    let [high, low] = code.to_be_bytes();
    [0x88, 2, high, low]
}

impl FrameParser {
    /// Processes the next bytes.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            self.header[self.here] = *first;
            self.here += 1;
            bytes = rest;
            if self.here >= 2 && self.here == self.header_length() {
                self.left = self.payload_length();
                self.closed |= self.header[0] & 0x0f == 8;
                self.here = 0;
            }
        }
    }

    /// Whether another frame may follow: no frame is incomplete, and no close frame was sent.
    pub const fn may_add(&self) -> bool {
        self.here == 0 && self.left == 0 && !self.closed
    }

    /// The length of the header, from its second byte.
    const fn header_length(&self) -> usize {
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + extended + if self.header[1] & 0x80 == 0 { 0 } else { 4 }
    }

    fn payload_length(&self) -> u64 {
        let extended = match self.header[1] & 0x7f {
            126 => &self.header[2..4],
            127 => &self.header[2..10],
            short => return u64::from(short),
        };
        extended.iter().fold(0, |length, byte| length << 8 | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(opcode: u8, mask: bool, payload: usize) -> Vec<u8> {
        let bit = if mask { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match payload {
            0..126 => bytes.push(bit | payload as u8),
            126..0x1_0000 => {
                bytes.push(bit | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(bit | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend(vec![0xa5; if mask { 4 } else { 0 } + payload]);
        bytes
    }

    #[test]
    fn a_close_frame_is_the_last() {
        let mut frames = FrameParser::default();
        frames.pass(&frame(1, false, 5));
        assert!(frames.may_add());
        frames.pass(&close_frame(1001));
        assert!(!frames.may_add());
    }

    proptest! {
        #[test]
        fn however_the_bytes_are_cut_only_the_ends_of_frames_are_ends(
            sizes in prop::collection::vec((0_usize..70_000, any::<bool>(), 0_u8..3), 1..6),
            cuts in prop::collection::vec(1_usize..5_000, 1..40),
        ) {
            let all: Vec<_> = sizes.iter().map(|(size, mask, opcode)| frame(*opcode, *mask, *size)).collect();
            let ends: Vec<usize> =
                all.iter().scan(0, |at, f| { *at += f.len(); Some(*at) }).collect();
            let bytes = all.concat();
            let (mut frames, mut at) = (FrameParser::default(), 0);
            for cut in cuts.iter().cycle() {
                let next = (at + cut).min(bytes.len());
                frames.pass(&bytes[at..next]);
                at = next;
                prop_assert_eq!(frames.may_add(), ends.contains(&at));
                if at == bytes.len() {
                    break;
                }
            }
        }
    }
}
