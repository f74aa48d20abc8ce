//! Keygate's own parts, each called so often that the setup does not matter.

use super::stage::{KEYS, Stage};
use super::{Figures, counted};
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};

/// Calls of each part.
const CALLS: u64 = 2_000;

/// A counted part: every instruction while it runs.
type Part = fn(&Stage);
const PARTS: &[(&str, Part)] = &[
    ("digest of a secret (without SHA instructions)", measured_digest),
    ("keyring: find", measured_find),
    ("counters: charge three limits and end", measured_charge),
    ("decision: find, authorize, charge, with a digest", measured_decide),
    ("journal: both records", measured_record),
];

macro_rules! measured {
    ($($name:ident: |$stage:ident, $number:ident| $work:expr;)+) => {
        $(#[inline(never)]
        fn $name($stage: &Stage) {
            for $number in 0..CALLS as usize {
                _ = black_box($work);
            }
        })+

        fn symbol(part: Part) -> &'static str {
            [$((stringify!($name), $name as Part)),+]
                .into_iter()
                .find_map(|(name, found)| std::ptr::fn_addr_eq(found, part).then_some(name))
                .unwrap()
        }
    };
}

measured! {
    measured_digest: |stage, number| stage.digest(number);
    measured_find: |stage, number| stage.find(number);
    measured_charge: |stage, number| stage.charge(number);
    measured_decide: |stage, number| stage.decide(number);
    measured_record: |stage, number| stage.record(number);
}

/// Runs each of them under the counter.
pub(crate) fn run() {
    let stage = Stage::new();
    // Once before counting, for lazy initialisation.
    (0..KEYS).for_each(|number| drop(stage.decide(number)));
    PARTS.iter().for_each(|(_, part)| part(&stage));
}

pub(crate) fn measure(folder: &Path) -> Figures {
    let counts = folder.join("parts");
    let status = counted(&counts, &["--toggle-collect=*measured_*"])
        .arg("parts")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let output = Command::new("callgrind_annotate")
        .args(["--inclusive=yes", "--threshold=100"])
        .arg(&counts)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let inclusive = |symbol: &str| {
        let line = text.lines().find(|line| line.contains(symbol) && !line.contains("toggle")).unwrap();
        let figure: String = line
            .trim_start()
            .chars()
            .take_while(|c| c.is_ascii_digit() || *c == ',')
            .filter(char::is_ascii_digit)
            .collect();
        figure.parse::<u64>().unwrap() / CALLS
    };
    PARTS.iter().map(|(name, part)| ((*name).to_owned(), inclusive(symbol(*part)))).collect()
}
