//! A credential for backends from clients, validated.

use super::fields::{FieldError, InputFields, ValidationErrors};
use super::rules;
use crate::clock::Timestamp;
use crate::model::credential::{CredentialSelector, MetadataEntry, SealedCredential};
use crate::model::id::{CredentialId, WorkspaceId};
use crate::policy::http::fields::settable_header;
use crate::policy::upstream::credential::{CREDENTIAL_MAX, field_value, is_scheme};
use crate::policy::upstream::encryption::EncryptionKeys;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

/// A credential to be stored.
pub struct PutCredentialInput {
    workspace: Option<WorkspaceId>,
    metadata: Option<MetadataEntry>,
    header: Option<Box<str>>,
    /// None: no scheme.
    scheme: Option<Box<str>>,
    secret: Zeroizing<String>,
}

impl PutCredentialInput {
    /// Reads `body`; on failure returns every mistake.
    pub fn read(body: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut fields = InputFields::of(body);
        let workspace = fields.optional("workspace_id", rules::word::<WorkspaceId>);
        let metadata = fields.optional("metadata", metadata);
        let header = fields.optional("header", header);
        let scheme = fields.cleared("scheme", scheme).unwrap_or_else(|| Some("Bearer".into()));
        let secret = fields.required("secret", secret);
        match (secret, fields.finish()) {
            (Some(secret), errors) if errors.is_empty() => {
                Ok(Self { workspace, metadata, header, scheme, secret })
            }
            (_, errors) => Err(errors),
        }
    }

    /// The credential of `upstream`, encrypted.
    pub fn seal(self, upstream: &str, keys: &EncryptionKeys, at: Timestamp) -> SealedCredential {
        let Self { workspace, metadata, header, scheme, secret } = self;
        let mut sealed = SealedCredential {
            id: CredentialId::new(at),
            selector: CredentialSelector { upstream: upstream.into(), workspace, metadata },
            header: header.unwrap_or_else(|| "authorization".into()),
            scheme,
            key_version: 0,
            sealed: [].into(),
        };
        keys.seal(&mut sealed, &secret);
        sealed
    }
}

fn metadata(value: &Value) -> Result<MetadataEntry, ValidationErrors> {
    let allowed = "must be \"NAME=VALUE\" with an entry of a key's metadata, such as \"tier=gold\", at most 512 characters";
    value.as_str().and_then(MetadataEntry::parse).ok_or_else(|| allowed.into())
}

fn header(value: &Value) -> Result<Box<str>, ValidationErrors> {
    let allowed = "must be the name of a header that is neither about framing or the connection nor Keygate's own (x-keygate-…)";
    let name = value.as_str().and_then(settable_header).ok_or(allowed)?;
    Ok(name.as_str().into())
}

fn scheme(value: &Value) -> Result<Box<str>, ValidationErrors> {
    let allowed = "must be the name of an authentication scheme, such as \"Bearer\", or null for none";
    let text = value.as_str().filter(|text| is_scheme(text)).ok_or(allowed)?;
    Ok(text.into())
}

fn secret(value: &Value) -> Result<Zeroizing<String>, ValidationErrors> {
    let allowed =
        || format!("must be 1 to {CREDENTIAL_MAX} visible ASCII characters, with spaces only between them");
    let text = value.as_str().filter(|text| text.trim() == *text).ok_or_else(allowed)?;
    field_value(None, text).ok_or_else(allowed)?;
    Ok(Zeroizing::new(text.to_owned()))
}
