//! `keygate openapi`

use super::Failure;

pub(super) fn run() -> Result<(), Failure> {
    println!("{}", crate::admin::openapi().to_pretty_json().map_err(Failure::failed)?);
    Ok(())
}
