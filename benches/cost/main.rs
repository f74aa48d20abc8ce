//! Instructions and allocations of one request. The figures are reproducible on any machine.
//!
//! Valgrind counts the instructions of a whole gateway and of Keygate's own parts; a counting allocator counts the
//! allocations. `make cost` prints the figures, `make cost ARGS=record` stores them as the baseline, and `make cost
//! ARGS=check`, which `make test` runs, fails where one has grown by more than [`GROWTH`] or [`GROWTH_OF_ALLOCATIONS`].
//! Figures of a whole gateway are taken in rounds until the machine is quiet enough; if it never is, they are left out.
//!
//! Valgrind does not support the SHA instructions. Hashing a secret takes some 200 instructions with them and thousands
//! here, so it has its own line. Work of the kernel is not counted.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement that cannot go on says where"
)]

mod counting;
mod gateway;
mod parts;
mod stage;

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting::new();

/// By how much a figure of instructions may grow.
const GROWTH: f64 = 0.05;
/// The baseline file.
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/cost/baseline.json");

/// A figure of one thing that is measured: instructions, unless its name says otherwise.
pub(crate) type Figures = BTreeMap<String, u64>;

/// The result of a run.
#[derive(Default)]
pub(crate) struct Measured {
    figures: Figures,
    /// Figures that the machine's other work may have changed.
    disturbed: BTreeSet<String>,
}

/// The baseline: figures of x86_64 and one compiler.
#[derive(Serialize, Deserialize)]
struct Baseline {
    /// The compiler of the baseline: another one generates other code.
    compiler: String,
    figures: Figures,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["gateway", ..] => gateway::run(&args),
        ["parts"] => {
            parts::run();
            ExitCode::SUCCESS
        }
        [] => report(&measure(), None),
        ["record"] => {
            let measured = measure();
            assert!(measured.disturbed.is_empty(), "this machine is too busy: {:?}", measured.disturbed);
            let baseline = Baseline { compiler: compiler(), figures: measured.figures.clone() };
            std::fs::write(BASELINE, serde_json::to_string_pretty(&baseline).unwrap() + "\n").unwrap();
            report(&measured, None)
        }
        // Other processors need other numbers of instructions.
        ["check"] if std::env::consts::ARCH != "x86_64" => {
            eprintln!("instructions are compared on x86_64 only");
            ExitCode::SUCCESS
        }
        ["check"] => {
            let text = std::fs::read_to_string(BASELINE).expect("the baseline is there");
            report(&measure(), Some(&serde_json::from_str(&text).unwrap()))
        }
        _ => panic!("arguments: none, `record` or `check`"),
    }
}

fn measure() -> Measured {
    let folder = tempfile::tempdir().unwrap();
    let mut all = Measured { figures: parts::measure(folder.path()), ..Measured::default() };
    gateway::measure(folder.path(), &mut all);
    all
}

/// Prints the figures, and fails where one has grown too much.
fn report(measured: &Measured, baseline: Option<&Baseline>) -> ExitCode {
    let mut text = String::new();
    let mut grown = Vec::new();
    for (name, figure) in &measured.figures {
        let before = baseline.and_then(|b| b.figures.get(name));
        let change = before.map(|before| *figure as f64 / *before as f64 - 1.0);
        let shown = change.map_or(String::new(), |change| format!("{:+.1} %", change * 100.0));
        let is_disturbed = measured.disturbed.contains(name);
        let remark = if is_disturbed { "  (this machine was too busy to say)" } else { "" };
        writeln!(text, "{name:<48}{figure:>10}  {shown}{remark}").unwrap();
        if !is_disturbed && change.is_some_and(|change| change > GROWTH) {
            grown.push(name.as_str());
        }
    }
    print!("{text}");
    if grown.is_empty() {
        return ExitCode::SUCCESS;
    }
    let baseline = baseline.map_or("", |b| b.compiler.as_str());
    eprintln!(
        "grown too much (by more than {} %): {}. If that is the price of something worth it, `make cost ARGS=record` and say so in \
         the commit. (Recorded with {baseline}, this is {}.)",
        GROWTH * 100.0,
        grown.join(", "),
        compiler()
    );
    ExitCode::FAILURE
}

fn compiler() -> String {
    let output =
        Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into())).arg("--version").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Runs this program again with its instructions counted into `counts`.
pub(crate) fn counted(counts: &Path, options: &[&str]) -> Command {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet", "--compress-strings=no", "--compress-pos=no"]);
    command.arg(format!("--callgrind-out-file={}", counts.display()));
    command.args(options).arg(std::env::current_exe().unwrap());
    command
}
