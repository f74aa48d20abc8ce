//! The file with the secrets of new keys: a new file, for its owner only, synced after every secret.

use crate::cli::Failure;
use crate::durable::sync_folder_of;
use clap::ValueEnum;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum SecretsFormat {
    /// A line of JSON for each key: `workspace_id`, `external_id`, `id`, `api_key`.
    Json,
    /// A manifest of a Secret for each key, with the entry `api_key`.
    Kubernetes,
}

/// The file.
pub(super) struct SecretsFile {
    path: PathBuf,
    format: SecretsFormat,
    namespace: Option<String>,
    file: Option<File>,
}

/// Longest name in Kubernetes.
const NAME_MAX: usize = 253;

impl SecretsFile {
    /// The file for the secrets of these keys, each by workspace and `external_id`; none: there are none.
    pub(super) fn check(
        path: Option<&Path>,
        (format, namespace): (SecretsFormat, Option<&str>),
        keys: &[(&str, &str)],
    ) -> Result<Option<Self>, Failure> {
        if keys.is_empty() {
            return Ok(None);
        }
        let Some(path) = path else {
            return Err(Failure::Usage(format!(
                "{} keys get a secret: name a new file for them with --secrets-out",
                keys.len()
            )));
        };
        if path.symlink_metadata().is_ok() {
            return Err(Failure::Usage(format!("--secrets-out: {} is there already", path.display())));
        }
        let mut names = BTreeSet::new();
        for (workspace, external) in keys {
            let name = name_of(workspace, external);
            if format == SecretsFormat::Kubernetes && (name.len() > NAME_MAX || !names.insert(name.clone())) {
                return Err(Failure::Usage(format!(
                    "key {workspace}/{external}: the name {name} of its manifest is too long, or that of another key"
                )));
            }
        }
        let namespace = namespace.map(ToOwned::to_owned);
        Ok(Some(Self { path: path.to_owned(), format, namespace, file: None }))
    }

    /// Creates the file.
    pub(super) fn create(mut self) -> Result<Self, Failure> {
        let create = || {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path)?;
            sync_folder_of(&self.path).map(|()| file)
        };
        self.file = Some(create().map_err(|error| self.failed(&error))?);
        Ok(self)
    }

    /// Adds a secret. When this returns, it is on disk.
    pub(super) fn add(
        &mut self,
        workspace: &str,
        external: &str,
        id: &str,
        secret: &str,
    ) -> Result<(), Failure> {
        let text = match self.format {
            SecretsFormat::Json => {
                let line =
                    json!({"workspace_id": workspace, "external_id": external, "id": id, "api_key": secret});
                format!("{line}\n")
            }
            SecretsFormat::Kubernetes => self.manifest(workspace, external, id, secret),
        };
        let write = |mut file: &File| file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        let written = self.file.as_ref().map_or_else(|| Err(io::ErrorKind::NotFound.into()), write);
        written.map_err(|error| self.failed(&error))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// JSON is YAML, and needs no rules for quotes.
    fn manifest(&self, workspace: &str, external: &str, id: &str, secret: &str) -> String {
        let mut metadata = json!({
            "name": name_of(workspace, external),
            "labels": {"app.kubernetes.io/managed-by": "keygate"},
            "annotations": {
                "keygate/workspace-id": workspace,
                "keygate/external-id": external,
                "keygate/key-id": id,
            },
        });
        if let Some(namespace) = &self.namespace {
            metadata["namespace"] = json!(namespace);
        }
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": metadata,
            "stringData": {"api_key": secret},
        });
        format!("---\n{manifest}\n")
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::Failed(format!("{}: {error}", self.path.display()))
    }
}

/// The name of a key's manifest (RFC 1123): `keygate-WORKSPACE-EXTERNAL_ID`.
fn name_of(workspace: &str, external: &str) -> String {
    let text = format!("keygate-{workspace}-{external}").to_lowercase();
    let allowed = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    text.chars().map(allowed).collect::<String>().trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_have_names_that_kubernetes_takes() {
        assert_eq!(name_of("acme", "Team/Reports_1"), "keygate-acme-team-reports-1");
        assert_eq!(name_of("a", "é."), "keygate-a");
    }

    #[test]
    fn two_keys_never_share_a_manifest() {
        let kind = (SecretsFormat::Kubernetes, None);
        let out = Path::new("missing/out");
        assert!(SecretsFile::check(Some(out), kind, &[("a", "x"), ("a", "y")]).is_ok());
        assert!(SecretsFile::check(Some(out), kind, &[("a", "x.1"), ("a", "x-1")]).is_err());
        assert!(SecretsFile::check(None, kind, &[("a", "x")]).is_err());
        assert!(matches!(SecretsFile::check(None, kind, &[]), Ok(None)));
    }
}
