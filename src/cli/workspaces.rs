//! `keygate workspaces`: tenants, by the admin API.

use super::gateway::{self, ApiPath, Gateway, GatewayArgs};
use super::keys::fields::body;
use super::keys::manage::done;
use super::output::{Column, Output, instant, shown};
use super::{Environment, Failure};
use crate::model::id::{PlanId, WorkspaceId};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

/// Arguments of `keygate workspaces`.
#[derive(Debug, Args)]
pub struct WorkspacesArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(subcommand)]
    command: WorkspacesCommand,
}

#[derive(Debug, Subcommand)]
enum WorkspacesCommand {
    /// List the workspaces
    List,
    /// Show a workspace and what it has used of its quotas
    Get(OneWorkspace),
    /// Create a workspace
    Create(WorkspaceFields),
    /// Change a workspace; what is not named stays
    Update(WorkspaceFields),
    /// Delete a workspace; its usage stays
    Delete(WorkspaceDeleteArgs),
}

#[derive(Debug, Args)]
struct OneWorkspace {
    /// The workspace's id
    id: WorkspaceId,
}

#[derive(Debug, Args)]
struct WorkspaceFields {
    #[command(flatten)]
    workspace: OneWorkspace,
    /// A name for people
    #[arg(long)]
    name: Option<String>,
    /// The plan; a new workspace has the config's `[admin] default_plan` without this argument
    #[arg(long, value_name = "ID")]
    plan: Option<PlanId>,
}

#[derive(Debug, Args)]
struct WorkspaceDeleteArgs {
    #[command(flatten)]
    workspace: OneWorkspace,
    /// Delete it although it has keys: they are deleted with it
    #[arg(long)]
    force: bool,
}

const COLUMNS: &[Column] = &[
    Column { head: "ID", cell: |workspace| shown(&workspace["id"]) },
    Column { head: "PLAN", cell: |workspace| shown(&workspace["plan_id"]) },
    Column { head: "END USERS", cell: |workspace| shown(&workspace["end_users"]) },
    Column { head: "CREATED", cell: |workspace| instant(&workspace["created_at"]) },
    Column { head: "NAME", cell: |workspace| shown(&workspace["name"]) },
];

pub(super) fn run(args: WorkspacesArgs, environment: Environment<'_>) -> Result<(), Failure> {
    gateway::with(&args.gateway, environment, |gateway, output| match args.command {
        WorkspacesCommand::List => {
            let mut table = output.table(COLUMNS);
            gateway.pages(&ApiPath::of(&["workspaces"]), |workspaces| table.rows(&workspaces))
        }
        WorkspacesCommand::Get(workspace) => {
            let found = gateway.get(&workspace.path())?;
            output.object(&found)
        }
        WorkspacesCommand::Create(fields) => put(gateway, output, fields, true),
        WorkspacesCommand::Update(fields) => put(gateway, output, fields, false),
        WorkspacesCommand::Delete(args) => {
            let path = args.workspace.path().with_some("force", args.force.then_some(true));
            let deleted = gateway.call(&Method::DELETE, &path, None)?;
            done(output, &args.workspace.id, "deleted", &deleted)
        }
    })
}

/// `PUT` creates and changes; a command does what its name says.
fn put(
    gateway: &mut Gateway,
    output: &mut Output,
    args: WorkspaceFields,
    is_new: bool,
) -> Result<(), Failure> {
    let (id, path) = (&args.workspace.id, args.workspace.path());
    let fields = [
        ("name", args.name.map(|name| json!(name))),
        ("plan_id", args.plan.map(|plan| json!(plan.as_str()))),
    ];
    let fields = body(fields, None)?;
    match (gateway.find(&path)?, is_new) {
        (Some(_), true) => return Err(Failure::Failed(format!("there already is a workspace {id}"))),
        (None, false) => {
            return Err(Failure::Failed(format!(
                "there is no workspace {id}; `keygate workspaces create {id}`"
            )));
        }
        _ => {}
    }
    let stored = gateway.call(&Method::PUT, &path, Some(&Value::Object(fields)))?;
    done(output, id, if is_new { "created" } else { "changed" }, &stored)
}

impl OneWorkspace {
    fn path(&self) -> ApiPath {
        ApiPath::of(&["workspaces", self.id.as_str()])
    }
}
