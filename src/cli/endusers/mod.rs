//! `keygate endusers`: the customers' users, by the admin API.

mod import;

use super::gateway::{self, ApiPath, GatewayArgs};
use super::keys::manage::done;
use super::keys::{InWorkspace, on_store};
use super::output::{Column, instant, shown};
use super::{Environment, Failure};
use crate::model::id::EndUserId;
use clap::{Args, Subcommand};
use http::Method;

/// Arguments of `keygate endusers`.
#[derive(Debug, Args)]
pub struct EndUsersArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(subcommand)]
    command: EndUsersCommand,
}

/// What to do with end users.
#[derive(Debug, Subcommand)]
enum EndUsersCommand {
    /// List the end users of a workspace, newest first
    List(EndUsersListArgs),
    /// Show an end user
    Get(OneEndUser),
    /// Delete an end user, which frees a place in the plan's quota
    Delete(OneEndUser),
    /// Import end users from a file of JSON lines (.jsonl) or comma-separated values (.csv)
    Import(import::EndUsersImportArgs),
}

#[derive(Debug, Args)]
struct EndUsersListArgs {
    #[command(flatten)]
    within: InWorkspace,
    /// Only the one with this id of your own
    #[arg(long, value_name = "ID")]
    other_id: Option<String>,
}

#[derive(Debug, Args)]
struct OneEndUser {
    #[command(flatten)]
    within: InWorkspace,
    /// The end user's id
    id: EndUserId,
}

const COLUMNS: &[Column] = &[
    Column { head: "ID", cell: |user| shown(&user["id"]) },
    Column { head: "CREATED", cell: |user| instant(&user["created_at"]) },
    Column { head: "OTHER ID", cell: |user| shown(&user["other_id"]) },
];

pub(super) fn run(args: EndUsersArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let gateway = &args.gateway;
    if let EndUsersCommand::Import(args) = &args.command
        && !gateway.names_running(environment)?
    {
        return on_store(gateway, environment, |command| import::run(command, args, gateway.json));
    }
    gateway::with(gateway, environment, |gateway, output| match args.command {
        EndUsersCommand::List(args) => {
            args.within.enter(gateway);
            let path = ApiPath::of(&["endusers"]).with_some("other_id", args.other_id);
            let mut table = output.table(COLUMNS);
            gateway.pages(&path, |users| table.rows(&users))
        }
        EndUsersCommand::Get(user) => {
            user.within.enter(gateway);
            let found = gateway.get(&user.path())?;
            output.object(&found)
        }
        EndUsersCommand::Delete(user) => {
            user.within.enter(gateway);
            let deleted = gateway.call(&Method::DELETE, &user.path(), None)?;
            done(output, &user.id, "deleted", &deleted)
        }
        EndUsersCommand::Import(args) => import::run_running(gateway, output, &args),
    })
}

impl OneEndUser {
    fn path(&self) -> ApiPath {
        ApiPath::of(&["endusers", &self.id.to_string()])
    }
}
