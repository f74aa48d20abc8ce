//! Texts as CSV cells that spreadsheets do not interpret as formulas.
//!
//! *Invariant:* `plain(neutral(text)) == text` for every text.

use std::borrow::Cow;

/// Characters at the start of a cell that make a spreadsheet evaluate it.
const FORMULA: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];
/// The prefix that makes a cell plain text.
const MARK: char = '\'';

/// The cell for `text`: with a `'` in front if it would be a formula.
pub fn neutral(text: &str) -> Cow<'_, str> {
    // A text that already begins like a neutralised one gets another `'`, so that reading is unambiguous.
    if is_formula(text.trim_start_matches(MARK)) {
        Cow::Owned(format!("{MARK}{text}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// The text of a cell written by [`neutral`].
pub fn plain(cell: &str) -> &str {
    cell.strip_prefix(MARK).filter(|text| is_formula(text.trim_start_matches(MARK))).unwrap_or(cell)
}

fn is_formula(text: &str) -> bool {
    text.starts_with(FORMULA)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn formulas_become_text_and_come_back() {
        for (text, cell) in [
            ("", ""),
            ("curl/8.0", "curl/8.0"),
            ("a=b", "a=b"),
            ("'quoted'", "'quoted'"),
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "'\r=1"),
            ("＝1", "'＝1"),
            ("'=1", "''=1"),
            ("''=1", "'''=1"),
        ] {
            assert_eq!((&*neutral(text), plain(cell)), (cell, text), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text in "['=+\\-@\t\ra＝]{0,6}|.*") {
            let cell = neutral(&text);
            prop_assert!(!is_formula(&cell));
            prop_assert_eq!(plain(&cell), text.as_str());
        }
    }
}
