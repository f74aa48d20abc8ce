//! `keygate openapi`

use super::{Failure, say};

pub(super) fn run() -> Result<(), Failure> {
    say(format_args!("{}", crate::admin::openapi().to_pretty_json().map_err(Failure::failed)?))
}
