//! The `keygate` program: arguments in, exit code out.

use clap::Parser;
use keygate::cli::{Cli, Environment, Exit};
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
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => variables.push((name, value)),
            (Ok(name), Err(_)) if name.starts_with("KEYGATE_") => {
                eprintln!("keygate: {name}: must be UTF-8");
                return Exit::Usage.into();
            }
            // A variable that is not Unicode cannot be one of ours, whose names and values are.
            _ => {}
        }
    }
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let called: Vec<_> = std::env::args_os().collect();
    let environment = Environment { called: &called, variables: &variables, host_name: host_name.trim() };
    keygate::cli::run(cli, environment).into()
}
