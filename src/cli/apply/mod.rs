//! `keygate apply`: makes plans, workspaces and keys what files say, by the admin API. First it shows what would change.
//!
//! A key is found by its `external_id`. The owner in its metadata says which set of files made it; only such keys are pruned.
//! A new key is marked until its secret is on disk: if that never happens, the next run gives it a new secret, so that no
//! secret is lost in silence.

mod changes;
mod files;
mod prune;
mod secrets;

use super::gateway::{self, ApiPath, Gateway, GatewayArgs};
use super::output::Output;
use super::{Environment, Failure};
use changes::{Change, Planned, Prune, Verb};
use clap::Args;
use http::{Method, StatusCode};
use secrets::{SecretsFile, SecretsFormat};
use serde_json::{Map, Value, json};
use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::PathBuf;

/// The entry of a key's metadata with the owner.
pub(super) const OWNER: &str = "apply.owner";
/// The entry that a key has until its secret has been written.
pub(super) const SECRET: &str = "apply.secret";
const PENDING: &str = "pending";

/// Arguments of `keygate apply`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct ApplyArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// A YAML file, or a folder whose .yaml and .yml files are read; several are one set
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Show what would change, and change nothing (exit code 2 if something would)
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do not ask before changing something
    #[arg(long)]
    yes: bool,
    /// Delete keys that this owner's files made and no longer name, in every workspace (needs the role platform)
    #[arg(long)]
    prune: bool,
    /// With --prune: also delete workspaces that the files do not name and that have no keys and no end users, and plans that
    /// they do not name and no workspace uses
    #[arg(long, requires = "prune")]
    prune_empty: bool,
    /// Who owns the keys that these files make: a name for each set of files
    #[arg(long, value_name = "NAME", default_value = "apply")]
    owner: String,
    /// Write the secrets of new keys to this new file, which only you may read
    #[arg(long, value_name = "FILE")]
    secrets_out: Option<PathBuf>,
    /// How to write them: lines of JSON, or manifests of Kubernetes Secrets
    #[arg(long, value_enum, default_value = "json", value_name = "FORMAT")]
    secrets_format: SecretsFormat,
    /// The namespace of these manifests
    #[arg(long, value_name = "NAME")]
    secrets_namespace: Option<String>,
}

pub(super) fn run(args: &ApplyArgs, environment: Environment<'_>) -> Result<(), Failure> {
    if args.owner.is_empty() || args.owner.chars().count() > 64 || args.owner.chars().any(char::is_control) {
        return Err(Failure::Usage("--owner: must be 1 to 64 characters".into()));
    }
    let desired = files::read(&args.files)?;
    gateway::with(&args.gateway, environment, |gateway, output| {
        let planned = changes::plan(gateway, &desired, &args.owner, args.to_prune())?;
        planned.show(output)?;
        if args.dry_run {
            return if planned.changes.is_empty() { Ok(()) } else { Err(Failure::Differs) };
        }
        if planned.changes.is_empty() {
            return Ok(());
        }
        let secrets = planned.changes.iter().filter(|change| change.makes_secret());
        let secrets: Vec<(&str, &str)> = secrets.map(|change| (&*change.workspace, &*change.id)).collect();
        let kind = (args.secrets_format, args.secrets_namespace.as_deref());
        let file = SecretsFile::check(args.secrets_out.as_deref(), kind, &secrets)?;
        confirm(args)?;
        carry_out(gateway, output, &planned, file, &args.owner)
    })
}

impl ApplyArgs {
    const fn to_prune(&self) -> Prune {
        match (self.prune, self.prune_empty) {
            (false, _) => Prune::Nothing,
            (true, false) => Prune::Keys,
            (true, true) => Prune::KeysAndEmpty,
        }
    }
}

/// Asks on a terminal; elsewhere `--yes` is the answer.
fn confirm(args: &ApplyArgs) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage("say --yes to make these changes, or --dry-run to see them only".into()));
    }
    eprint!("Make these changes? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(Failure::failed)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Failed("nothing was changed".into())),
    }
}

/// Makes the changes, one after the other. What was done stays done; a further run goes on from there.
fn carry_out(
    gateway: &mut Gateway,
    output: &Output,
    planned: &Planned,
    secrets: Option<SecretsFile>,
    owner: &str,
) -> Result<(), Failure> {
    // Before the first key is made: a secret without a place would be lost.
    let mut secrets = secrets.map(SecretsFile::create).transpose()?;
    let all = planned.changes.len();
    let mut made = 0;
    for change in &planned.changes {
        match one(gateway, change, secrets.as_mut(), owner) {
            Ok(is_made) => made += u64::from(is_made),
            Err(failure) => {
                eprintln!(
                    "keygate: {}: {made} of {all} changes were made; a further run goes on from there",
                    change.told()
                );
                return Err(failure);
            }
        }
    }
    if let Some(secrets) = secrets {
        eprintln!("the secrets are in {}, this once", secrets.path().display());
    }
    if !output.json {
        eprintln!("{made} changes made");
    }
    Ok(())
}

/// Makes a change. Returns whether it was made: the gateway may keep what was to be deleted, and says why.
fn one(
    gateway: &mut Gateway,
    change: &Change,
    secrets: Option<&mut SecretsFile>,
    owner: &str,
) -> Result<bool, Failure> {
    gateway.workspace = Some(change.workspace.clone()).filter(|id| !id.is_empty());
    let (method, body) = match change.verb {
        Verb::Delete => {
            return match gateway.attempt(&Method::DELETE, &change.path, None, &[])? {
                Err(refusal) if refusal.status == StatusCode::CONFLICT && prune::may_be_refused(change) => {
                    eprintln!("{} stays: {refusal}", change.told());
                    Ok(false)
                }
                deleted => deleted.map(|_| true).map_err(Into::into),
            };
        }
        Verb::Create => (change.create_by.clone(), change.body.clone()),
        Verb::Change => (Method::PUT, change.body.clone()),
        Verb::Secret => (Method::POST, Map::new()),
    };
    if !change.makes_secret() {
        gateway.call(&method, &change.path, Some(&Value::Object(body)))?;
        return Ok(true);
    }
    let secrets = secrets.ok_or_else(|| Failure::Usage("--secrets-out is missing".into()))?;
    let mut body = body;
    if change.verb == Verb::Create {
        body.insert("metadata".into(), Value::Object(marked(&change.metadata, owner, true)));
    }
    let made = gateway.call(&method, &change.path, Some(&Value::Object(body)))?;
    let (Some(id), Some(secret)) = (made["id"].as_str(), made["api_key"].as_str()) else {
        return Err(Failure::Failed("the answer has no secret".into()));
    };
    secrets.add(&change.workspace, &change.id, id, secret)?;
    // Only now it is known to be on disk.
    let mut delivered = json!({"metadata": marked(&change.metadata, owner, false)});
    if !change.is_active {
        delivered["is_active"] = json!(false);
    }
    gateway.call(&Method::PUT, &ApiPath::of(&["apikeys", id]), Some(&delivered))?;
    Ok(true)
}

/// The metadata of a key with the entries of its owner.
pub(super) fn marked(metadata: &Map<String, Value>, owner: &str, is_pending: bool) -> Map<String, Value> {
    let mut all = metadata.clone();
    all.insert(OWNER.into(), json!(owner));
    if is_pending {
        all.insert(SECRET.into(), json!(PENDING));
    }
    all
}
