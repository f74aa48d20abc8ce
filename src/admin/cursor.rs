//! The cursor: a position in a list, newest first, as text for clients: 8 bytes of the instant and 16 of the id, in base64url.

use crate::clock::Timestamp;
use uuid::Uuid;

/// Bytes of a position; a multiple of 3, so that base64 needs no padding.
const BYTES: usize = 24;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Encodes a position.
pub(super) fn encode(at: Timestamp, id: Uuid) -> String {
    let mut bytes = [0_u8; BYTES];
    bytes[..8].copy_from_slice(&at.as_micros().to_be_bytes());
    bytes[8..].copy_from_slice(id.as_bytes());
    let mut text = String::with_capacity(BYTES / 3 * 4);
    for three in bytes.chunks_exact(3) {
        let word = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for shift in [18, 12, 6, 0] {
            text.push(char::from(ALPHABET[(word >> shift & 63) as usize]));
        }
    }
    text
}

/// Decodes a cursor; none if it is not one of ours.
pub(super) fn decode(text: &str) -> Option<(Timestamp, Uuid)> {
    if text.len() != BYTES / 3 * 4 {
        return None;
    }
    let mut bytes = [0_u8; BYTES];
    for (four, three) in text.as_bytes().chunks_exact(4).zip(bytes.chunks_exact_mut(3)) {
        let mut word = 0_u32;
        for character in four {
            let six = ALPHABET.iter().position(|a| a == character)?;
            word = word << 6 | u32::try_from(six).ok()?;
        }
        three.copy_from_slice(&word.to_be_bytes()[1..]);
    }
    let (at, id) = bytes.split_at(8);
    let at = Timestamp::from_micros(i64::from_be_bytes(at.try_into().ok()?));
    if !(Timestamp::default()..=Timestamp::MAX).contains(&at) {
        return None;
    }
    Some((at, Uuid::from_slice(id).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_encoded_cursor_decodes_to_the_same_place(us in 0..=Timestamp::MAX.as_micros(), id: u128) {
            let (at, id) = (Timestamp::from_micros(us), Uuid::from_u128(id));
            let text = encode(at, id);
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(decode(&text), Some((at, id)));
        }
    }

    #[test]
    fn a_text_that_is_no_cursor_is_refused() {
        for text in [
            "",
            "x",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "________________________________",
            "äääääääääääääääääääääääääääääääää",
        ] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
