//! A JSON document inside of another: base64 text in one of its fields, as in the streams of Bedrock's `InvokeModel`.
//!
//! Must not know: what either document means. The text is decoded as it arrives.

use super::json::{JsonScanner, JsonSink};

/// Base64 characters that are decoded at once.
const AT_ONCE: usize = 1024;

/// Reads the inner document.
#[derive(Debug)]
pub(super) struct InnerDocument<P> {
    scanner: JsonScanner<P>,
    /// Bits of characters that are no whole byte yet, and how many.
    bits: (u32, u32),
    is_bad: bool,
}

// === impl InnerDocument ===

impl<P: Copy + PartialEq + Default> InnerDocument<P> {
    /// Reads the next piece of base64 text.
    pub(super) fn push<S: JsonSink<Place = P>>(&mut self, text: &[u8], sink: &mut S) {
        for text in text.chunks(AT_ONCE) {
            let mut decoded = [0; AT_ONCE];
            let mut length = 0;
            for character in text {
                let Some(value) = value_of(*character) else {
                    // Padding ends the text.
                    self.is_bad |= *character != b'=';
                    continue;
                };
                let (bits, count) = (self.bits.0 << 6 | u32::from(value), self.bits.1 + 6);
                self.bits = (bits, count);
                if count >= 8 {
                    let left = count - 8;
                    decoded[length] = u8::try_from(bits >> left & 0xff).unwrap_or_default();
                    length += 1;
                    self.bits = (bits & ((1 << left) - 1), left);
                }
            }
            self.is_bad = self.is_bad || self.scanner.push(&decoded[..length], sink).is_err();
        }
    }

    /// The text has ended. Returns whether it contained whole documents.
    pub(super) fn finish<S: JsonSink<Place = P>>(mut self, sink: &mut S) -> bool {
        !self.is_bad && self.scanner.finish(sink)
    }
}

impl<P: Copy + PartialEq + Default> Default for InnerDocument<P> {
    fn default() -> Self {
        Self { scanner: JsonScanner::new(), bits: (0, 0), is_bad: false }
    }
}

/// What a character of base64 stands for (RFC 4648, 4).
const fn value_of(character: u8) -> Option<u8> {
    Some(match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}
