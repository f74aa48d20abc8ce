//! The `keygate` program: arguments in, exit code out.

use clap::Parser;
use keygate::cli::{Cli, Exit};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not mistakes. Nobody is left to tell when even this cannot be printed.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            return error.print().map_or(ExitCode::FAILURE, |()| exit.into());
        }
    };
    let environment: Vec<(String, String)> = std::env::vars().collect();
    keygate::cli::run(cli, &environment).into()
}
