//! Suggests the known name that was probably meant.

/// Longest name that is compared, in characters; a longer one is not a typo.
const NAME_MAX: usize = 64;

/// The name in `known` that is nearest to `written`, if it is near enough to be a typo: at most one edit in three
/// characters. The first one wins a tie.
pub(super) fn did_you_mean<'n>(written: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let wanted: Vec<char> = written.chars().take(NAME_MAX + 1).collect();
    if wanted.len() > NAME_MAX {
        return None;
    }
    let mut best: Option<(usize, &str)> = None;
    for name in known {
        let edits = edits_between(&wanted, name);
        let allowed = wanted.len().max(name.len()).div_ceil(3);
        if edits <= allowed && best.is_none_or(|(fewest, _)| edits < fewest) {
            best = Some((edits, name));
        }
    }
    best.map(|(_, name)| name)
}

/// The number of edits (insert, delete or replace one character) that turn `a` into `b`: Levenshtein distance, row by row.
fn edits_between(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (done, wanted) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = done + 1;
        for (n, given) in a.iter().enumerate() {
            let replaced = diagonal + usize::from(*given != wanted);
            diagonal = row[n + 1];
            row[n + 1] = replaced.min(row[n] + 1).min(diagonal + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_gets_a_suggestion_and_another_word_does_not() {
        let known = ["listen", "threads", "max_body_bytes", "trust_request_id"];
        for (written, meant) in [
            ("listen", Some("listen")),
            ("lisen", Some("listen")),
            ("Listen", Some("listen")),
            ("thread", Some("threads")),
            ("max-body-bytes", Some("max_body_bytes")),
            ("trust_requestid", Some("trust_request_id")),
            ("colour", None),
            ("", None),
            ("ü", None),
        ] {
            assert_eq!(did_you_mean(written, known), meant, "{written}");
        }
        assert_eq!(did_you_mean(&"listen".repeat(1000), known), None);
    }

    #[test]
    fn the_distance_of_two_words_is_their_number_of_edits() {
        for (a, b, edits) in
            [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(edits_between(&a.chars().collect::<Vec<_>>(), b), edits, "{a} {b}");
        }
    }
}
