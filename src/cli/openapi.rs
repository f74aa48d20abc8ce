//! `keygate openapi`

use super::{Failure, say};

pub(super) fn run() -> Result<(), Failure> {
    say(format_args!("{}", serde_json::to_string_pretty(&crate::admin::openapi()).map_err(Failure::failed)?))
}
