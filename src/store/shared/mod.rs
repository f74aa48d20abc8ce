//! What every backend does alike: the rules of a write, what a row means, roll-ups, retention.

pub(super) mod decode;
pub(super) mod fields;
pub(super) mod logs;
pub mod migrate;
pub(super) mod retention;
pub mod rollup;
pub(super) mod rules;
