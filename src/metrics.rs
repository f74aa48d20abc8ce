//! Every number Keygate exports: one struct, one field per metric; the doc comment is the help text.

/// The metrics.
#[derive(Debug)]
pub struct Metrics {}

impl Metrics {
    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        String::new()
    }
}
