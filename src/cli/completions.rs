//! `keygate completions` and `keygate man`: what shells and `man` know about the commands.

use super::{Cli, Failure, say};
use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};
use std::path::PathBuf;

/// Arguments of `keygate completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Arguments of `keygate man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// An existing folder, such as /usr/local/share/man/man1
    folder: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "keygate", &mut script);
    let script = String::from_utf8(script).map_err(Failure::failed)?;
    say(format_args!("{}", script.trim_end()))
}

/// A page for each command.
pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let folder = &args.folder;
    clap_mangen::generate_to(Cli::command(), folder)
        .map_err(|error| Failure::Failed(format!("{}: {error}", folder.display())))
}
