//! The command line: one file per subcommand.
//!
//! Must not know: how anything is done; it parses arguments, calls, and prints. Results go to standard output, everything
//! else to standard error.

mod apply;
mod archive;
mod check;
mod completions;
mod demo;
mod echo;
mod endusers;
mod gateway;
mod health;
mod keys;
mod log;
mod logs;
mod migrate;
mod openapi;
mod output;
mod plans;
mod prices;
mod ready;
mod refused_rows;
mod run;
mod token;
mod usage;
mod warnings;
mod workspaces;

use crate::app::InlineSecrets;
use crate::config::{Config, ConfigError, ConfigPlaces};
use crate::policy::text::plain_value::{lines, value};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// An API-key gateway: authenticates, limits, forwards and records every request.
#[derive(Debug, Parser)]
#[command(name = "keygate", version, about, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it in the life of the process")]
pub enum Command {
    /// Try Keygate: starts a gateway with echo backends and a first key, and prints a curl line that works
    Demo(demo::DemoArgs),
    /// Run the gateway
    Run(run::RunArgs),
    /// Check a config file and report every mistake at once, with its place (exit code 64 if there is any)
    Check(check::CheckArgs),
    /// Migrate the store's schema, or list what that would do
    Migrate(migrate::MigrateArgs),
    /// Print a token for the admin API, signed with the config's HS256 secret
    Token(token::TokenArgs),
    /// Manage keys
    Keys(keys::KeysArgs),
    /// Manage plans
    Plans(plans::PlansArgs),
    /// Manage workspaces
    Workspaces(workspaces::WorkspacesArgs),
    /// Manage end users
    #[command(name = "endusers")]
    EndUsers(endusers::EndUsersArgs),
    /// Make plans, workspaces and keys what files say; show what would change first
    Apply(apply::ApplyArgs),
    /// Show the requests of a key, and follow them
    Logs(logs::LogsArgs),
    /// Write plans, workspaces, keys and end users to a file that `import` reads, to move to another store
    Export(archive::ArchiveExportArgs),
    /// Read plans, workspaces, keys and end users from a file that `export` wrote
    Import(archive::ArchiveImportArgs),
    /// Show totals of usage; write usage records to a file or read them from one
    Usage(usage::UsageArgs),
    /// Import prices of models from a table of LiteLLM or models.dev
    Prices(prices::PricesArgs),
    /// Print the OpenAPI document of the admin API
    Openapi,
    /// Ask a running gateway on this machine whether it is ready (exit code 1 if it is not)
    Health(health::HealthArgs),
    /// Run a backend that responds with the request, to try a gateway
    Echo(echo::EchoArgs),
    /// Print a script that completes commands and arguments in a shell
    Completions(completions::CompletionsArgs),
    /// Write the manual pages of all commands to a folder
    Man(completions::ManArgs),
}

/// The config file that is read if none is named.
const USUAL_FILE: &str = "keygate.toml";

/// Which config file to read.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// The config file (TOML); without this argument ./keygate.toml if it exists, else the defaults apply. Every key can
    /// also be set in the environment, as `KEYGATE_` and the key's path in upper case: `KEYGATE_PROXY_LISTEN` is
    /// `[proxy] listen`
    #[arg(short, long, value_name = "FILE", env = "KEYGATE_CONFIG", global = true)]
    pub config: Option<PathBuf>,
}

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Success.
    Ok,
    /// The command failed.
    Failed,
    /// The arguments or the config are wrong; nothing was done (`EX_USAGE`).
    Usage,
    /// Something is not as it should be, as the command was asked to find out.
    Differs,
}

/// Why a subcommand ended early.
#[derive(Debug)]
pub enum Failure {
    /// The config has mistakes.
    Config(ConfigError),
    /// The arguments contradict each other.
    Usage(String),
    /// The command failed.
    Failed(String),
    /// Something is not as it should be, which the command has shown.
    Differs,
}

/// The environment of the process. An argument, so that nothing below reads it directly.
#[derive(Clone, Copy, Debug)]
pub struct Environment<'e> {
    /// The program and its arguments.
    pub called: &'e [OsString],
    /// The environment variables.
    pub variables: &'e [(String, String)],
    /// The host name, which is the default name of the node.
    pub host_name: &'e str,
}

/// Runs the subcommand.
pub fn run(cli: Cli, environment: Environment<'_>) -> Exit {
    let done = match cli.command {
        Command::Demo(args) => demo::run(&args, environment),
        Command::Run(args) => run::run(&args, environment),
        Command::Check(args) => check::run(&args, environment),
        Command::Migrate(args) => migrate::run(&args, environment),
        Command::Token(args) => token::run(&args, environment),
        Command::Keys(args) => keys::run(args, environment),
        Command::Plans(args) => plans::run(args, environment),
        Command::Workspaces(args) => workspaces::run(args, environment),
        Command::Apply(args) => apply::run(&args, environment),
        Command::Logs(args) => logs::run(&args, environment),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
        Command::EndUsers(args) => endusers::run(args, environment),
        Command::Export(args) => archive::export(&args, environment),
        Command::Import(args) => archive::import(&args, environment),
        Command::Usage(args) => usage::run(&args, environment),
        Command::Prices(args) => prices::run(args, environment),
        Command::Openapi => openapi::run(),
        Command::Health(args) => health::run(&args, environment),
        Command::Echo(args) => echo::run(&args, environment),
    };
    match done {
        Ok(()) => Exit::Ok,
        Err(failure) => failure.report(),
    }
}

impl ConfigArgs {
    /// The config file: from the argument, from the variable, or the one in the working directory.
    fn path(&self, environment: Environment<'_>) -> Result<Option<PathBuf>, Failure> {
        const NAME: &str = "KEYGATE_CONFIG";
        let given = environment.variable(NAME);
        match (&self.config, given) {
            (Some(path), Some(text)) if *path == Path::new(text) => {
                let path = value(text).map_err(|bad| Failure::Usage(format!("{NAME}: {bad}")))?;
                Ok(Some(path.into()))
            }
            (Some(path), _) => Ok(Some(path.clone())),
            (None, _) => Ok(Some(PathBuf::from(USUAL_FILE)).filter(|path| path.exists())),
        }
    }
}

/// Loads the config. The environment overrides the file, and the file the defaults.
fn load(args: &ConfigArgs, environment: Environment<'_>) -> Result<Config, Failure> {
    load_with_places(args, environment).map(|(config, _)| config)
}

/// The same, and where its keys are written.
fn load_with_places(
    args: &ConfigArgs,
    environment: Environment<'_>,
) -> Result<(Config, ConfigPlaces), Failure> {
    let path = args.path(environment)?;
    let (config, places) =
        Config::load_with_places(path.as_deref(), environment.variables, environment.host_name)
            .map_err(Failure::Config)?;
    crate::app::routes(&config).map_err(|bad| {
        let mistakes =
            bad.into_iter().map(|bad| (format!("routes[{}].{}", bad.index, bad.field), bad.message));
        Failure::Config(places.error(mistakes))
    })?;
    Ok((config, places))
}

/// The config, and every file that it names can be used.
fn load_with_files(args: &ConfigArgs, environment: Environment<'_>) -> Result<Config, Failure> {
    let (config, places) = load_with_places(args, environment)?;
    crate::app::check_files(&config, inline_secrets(environment))
        .map_err(|mistakes| Failure::Config(places.error(mistakes)))?;
    Ok(config)
}

/// Prints a result on standard output. A closed pipe, as in `keygate openapi | head`, is not an error.
fn say(line: fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        _ => Ok(()),
    }
}

/// The secrets from the environment; loading the config has reported what is wrong with them.
fn inline_secrets(environment: Environment<'_>) -> InlineSecrets<'_> {
    let of = |name| environment.variable(name).map(|text| lines(text).unwrap_or(text));
    InlineSecrets {
        peppers: of("KEYGATE_SECRETS_PEPPERS"),
        encryption_keys: of("KEYGATE_SECRETS_ENCRYPTION_KEYS"),
        signing: of("KEYGATE_ADMIN_JWT_HS256_SECRET"),
        oidc_client: of("KEYGATE_ADMIN_OIDC_CLIENT_SECRET"),
        telemetry_headers: of("KEYGATE_TELEMETRY_HEADERS"),
    }
}

/// A text file for reading line by line, without its byte order mark.
fn text_file(path: &Path) -> io::Result<impl BufRead + use<>> {
    const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];
    let mut file = BufReader::new(File::open(path)?);
    let mut front = Vec::with_capacity(BOM.len());
    (&mut file).take(3).read_to_end(&mut front)?;
    if front == BOM {
        front.clear();
    }
    Ok(io::Cursor::new(front).chain(file))
}

impl<'e> Environment<'e> {
    fn variable(&self, wanted: &str) -> Option<&'e str> {
        self.variables.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }
}

impl Failure {
    #[expect(clippy::needless_pass_by_value, reason = "it is handed to `map_err`, which passes values")]
    fn failed(error: impl ToString) -> Self {
        Self::Failed(error.to_string())
    }

    fn report(self) -> Exit {
        match self {
            Self::Config(error) => {
                eprintln!("{error}");
                Exit::Usage
            }
            Self::Usage(message) => {
                eprintln!("keygate: {message}");
                Exit::Usage
            }
            Self::Failed(message) => {
                eprintln!("keygate: {message}");
                Exit::Failed
            }
            Self::Differs => Exit::Differs,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Ok => Self::SUCCESS,
            Exit::Failed => Self::FAILURE,
            Exit::Usage => Self::from(64),
            // As `diff` and `terraform plan -detailed-exitcode` have it, apart from failures.
            Exit::Differs => Self::from(2),
        }
    }
}
