//! What all backends do alike: the rules and the steps of writes, decoding of rows, roll-ups, retention.

pub(super) mod audit;
pub(super) mod credentials;
pub(super) mod decode;
pub(super) mod fields;
pub(super) mod grants;
pub mod groups;
pub(super) mod limits;
pub(super) mod logs;
pub mod migrate;
pub(super) mod prices;
pub(super) mod retention;
pub mod rollup;
pub(super) mod rules;
pub(super) mod spent;
pub mod sums;
pub(super) mod totals;
pub(super) mod writes;
