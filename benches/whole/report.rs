//! The table: medians of the samples, and ratios taken within each round.

use super::load::Load;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// One target in one round.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) load: Load,
    pub(crate) cpu: Duration,
    /// Resident bytes afterwards.
    pub(crate) memory: u64,
}

struct Row {
    scenario: &'static str,
    target: &'static str,
    samples: Vec<Sample>,
}

#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Sample {
    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.load.requests as f64
    }
}

impl Row {
    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect())
    }
}

impl Report {
    pub(crate) fn add(&mut self, scenario: &'static str, target: &'static str, sample: Sample) {
        let found = self.rows.iter_mut().find(|row| row.scenario == scenario && row.target == target);
        match found {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row { scenario, target, samples: vec![sample] }),
        }
    }

    /// CPU per request as a ratio to another target of the same scenario, round by round.
    fn ratio(&self, row: &Row, to: &str, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        let base = self.rows.iter().find(|other| other.scenario == row.scenario && other.target == to)?;
        let ratios = row.samples.iter().filter_map(|sample| {
            let other = base.samples.iter().find(|other| other.round == sample.round)?;
            Some(of(sample) / of(other))
        });
        Some(median(ratios.collect()))
    }

    /// Markdown.
    pub(crate) fn table(&self) -> String {
        let mut out = String::from(
            "| scenario | target | CPU us/request | x bare Pingora | x nginx | requests/s | p50 ms | p99 ms | p99.9 ms | resident MiB |\n\
             |---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for row in &self.rows {
            let ratio =
                |to| self.ratio(row, to, Sample::cpu_us).map_or_else(String::new, |r| format!("{r:.2}"));
            writeln!(
                out,
                "| {} | {} | {:.1} | {} | {} | {:.0} | {:.2} | {:.2} | {:.2} | {:.0} |",
                row.scenario,
                row.target,
                row.median(Sample::cpu_us),
                ratio("bare Pingora"),
                ratio("nginx"),
                row.median(|s| s.load.requests as f64 / s.load.seconds),
                row.median(|s| s.load.p50),
                row.median(|s| s.load.p99),
                row.median(|s| s.load.p999),
                row.median(|s| s.memory as f64 / 1_048_576.0),
            )
            .unwrap();
        }
        out
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let samples = row.samples.iter().map(|s| {
                json!({
                    "round": s.round, "requests": s.load.requests, "seconds": s.load.seconds, "cpu_us": s.cpu_us(),
                    "p50_ms": s.load.p50, "p99_ms": s.load.p99, "p999_ms": s.load.p999, "resident_bytes": s.memory,
                })
            });
            json!({
                "scenario": row.scenario, "target": row.target, "cpu_us": row.median(Sample::cpu_us),
                "x_bare_pingora": self.ratio(row, "bare Pingora", Sample::cpu_us),
                "x_nginx": self.ratio(row, "nginx", Sample::cpu_us),
                "x_keygate": self.ratio(row, "Keygate", Sample::cpu_us),
                "p99_x_bare_pingora": self.ratio(row, "bare Pingora", |s| s.load.p99),
                "rounds": samples.collect::<Vec<_>>(),
            })
        });
        json!({ "rows": rows.collect::<Vec<_>>() })
    }
}

/// The middle one; of an even number the lower of the two.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}
