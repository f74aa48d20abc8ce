//! `[[upstreams.credentials]]`: credentials for a backend, with every key, its rule and its default.
//!
//! Must not know: what is in the files.

use super::reader::ConfigReader;
use super::rule::{OrEmpty, ParsedText, quote};
use super::section::Section;
use super::texts::{FILE, HEADER, is_name};
use crate::model::credential::MetadataEntry;
use crate::model::id::WorkspaceId;
use http::HeaderName;
use std::fmt;
use std::path::PathBuf;

/// The beginning of the names of variables with credentials.
pub(super) const VARIABLES: &str = "KEYGATE_CREDENTIAL_";

/// One table of `[[upstreams.credentials]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialConfig {
    /// The workspace whose requests get it; none: any.
    pub workspace: Option<WorkspaceId>,
    /// An entry of the key's metadata and the value that it must have; none: any key.
    pub metadata: Option<MetadataEntry>,
    /// The header that carries it.
    pub header: HeaderName,
    /// The scheme before it, such as `Bearer`; none: it stands alone.
    pub scheme: Option<String>,
    /// Where it comes from.
    pub secret: CredentialSecret,
}

/// Where a credential comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum CredentialSecret {
    /// From a file that contains nothing else.
    File(PathBuf),
    /// From a variable.
    Variable {
        /// Its name.
        name: String,
        /// Its text; none if it is not set. Commands that call no backend need none.
        text: Option<String>,
    },
}

impl fmt::Debug for CredentialSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Variable { name, .. } => f.debug_tuple("Variable").field(name).finish(),
        }
    }
}

/// A parsed table.
pub(super) struct CredentialFile {
    workspace: Option<WorkspaceId>,
    metadata: Option<MetadataEntry>,
    header: HeaderName,
    scheme: Option<String>,
    file: Option<PathBuf>,
    variable: Option<String>,
}

/// Reads one table.
pub(super) fn credential(s: &mut Section<'_, '_>) -> CredentialFile {
    CredentialFile {
        workspace: s.value("workspace", &OrEmpty(WORKSPACE), None),
        metadata: s.value("metadata", &OrEmpty(ENTRY), None),
        header: s.value("header", &HEADER, http::header::AUTHORIZATION),
        scheme: s.value("scheme", &OrEmpty(SCHEME), Some("Bearer".to_owned())),
        file: s.value("secret_file", &OrEmpty(FILE), None),
        variable: s.value("secret_env", &OrEmpty(VARIABLE), None),
    }
}

/// The credentials of the `n`-th upstream, each from one source.
pub(super) fn checked(
    n: usize,
    files: Vec<Option<CredentialFile>>,
    reading: &mut ConfigReader<'_>,
) -> Vec<CredentialConfig> {
    let mut all = Vec::with_capacity(files.len());
    for (place, file) in files.into_iter().enumerate() {
        let Some(file) = file else { continue };
        let path = |key: &str| format!("upstreams[{n}].credentials[{place}].{key}");
        let secret = match (file.file, file.variable) {
            (Some(file), None) => CredentialSecret::File(file),
            (None, Some(name)) => {
                let text = reading.credential(&name).map(str::to_owned);
                CredentialSecret::Variable { name, text }
            }
            (Some(_), Some(_)) => {
                let message = "must be \"\" while secret_file is set; only one of them counts";
                reading.complain_of_conflict(&[&path("secret_env")], message);
                continue;
            }
            (None, None) => {
                let table = format!("upstreams[{n}].credentials[{place}]");
                reading.complain_of_conflict(
                    &[&path("secret_file"), &table],
                    "must be set, unless secret_env is",
                );
                continue;
            }
        };
        let CredentialFile { workspace, metadata, header, scheme, .. } = file;
        all.push(CredentialConfig { workspace, metadata, header, scheme, secret });
    }
    all
}

// === rules ===

const WORKSPACE: ParsedText<WorkspaceId> = ParsedText {
    must: "the id of a workspace: 1 to 128 characters of A-Z a-z 0-9 . _ : @ -",
    read: |text| text.parse().ok(),
    show: quote,
};

const ENTRY: ParsedText<MetadataEntry> = ParsedText {
    must: "\"NAME=VALUE\" with an entry of a key's metadata, such as \"tier=gold\"",
    read: MetadataEntry::parse,
    show: quote,
};

const SCHEME: ParsedText<String> = ParsedText {
    must: "the name of an authentication scheme, such as \"Bearer\"",
    read: |text| is_name(text).then(|| text.to_owned()),
    show: quote,
};

const VARIABLE: ParsedText<String> = ParsedText {
    must: "the name of a variable that begins with KEYGATE_CREDENTIAL_, in A-Z 0-9 _",
    read: |text| {
        let plain = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        let fits = text.len() > VARIABLES.len() && text.len() <= 128 && text.bytes().all(plain);
        (fits && text.starts_with(VARIABLES)).then(|| text.to_owned())
    },
    show: quote,
};
