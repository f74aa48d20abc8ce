//! Lines that only this file has: grants, deleted workspaces, credentials for backends.

use crate::cli::keys::import::ImportRow;
use crate::clock::Timestamp;
use crate::model::credential::{CredentialSelector, MetadataEntry, SealedCredential};
use crate::model::grant::{Grant, GrantedLimit};
use crate::model::id::{CredentialId, WorkspaceId};
use crate::policy::http::fields::settable_header;
use crate::policy::upstream::credential::is_scheme;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// The line of a grant.
pub(super) fn grant_line(workspace: &WorkspaceId, grant: &Grant) -> Value {
    let Grant { id, limit, amount, reason, created_by, created_at, until } = grant;
    let (of, count, per) = match limit {
        GrantedLimit::Further { of, count, per } => {
            (Some(of.as_str()), Some(count.as_str()), Some(per.as_str()))
        }
        GrantedLimit::ApiOpsRateLimit | GrantedLimit::EndUserQuota => (None, None, None),
    };
    json!({
        "workspace_id": workspace.as_str(),
        "id": id.to_string(),
        "limit": limit.as_str(),
        "of": of,
        "count": count,
        "per": per,
        "amount": amount,
        "reason": reason,
        "created_by": created_by,
        "created_at": created_at.as_millis(),
        "until": until.as_millis(),
    })
}

/// Reads the output of [`grant_line`].
pub(super) fn grant(fields: &ImportRow) -> Result<(WorkspaceId, Grant), String> {
    let limit = match word(fields, "limit")? {
        "api_ops_rate_limit" => GrantedLimit::ApiOpsRateLimit,
        "end_user_quota" => GrantedLimit::EndUserQuota,
        "limits" => GrantedLimit::Further {
            of: word(fields, "of")?.parse().map_err(|e| format!("of: {e}"))?,
            count: word(fields, "count")?.parse().map_err(|e| format!("count: {e}"))?,
            per: word(fields, "per")?.parse().map_err(|e| format!("per: {e}"))?,
        },
        _ => return Err(format!("limit: must be one of: {}", GrantedLimit::WORDS.join(", "))),
    };
    let amount = fields.get("amount").and_then(Value::as_u64).filter(|amount| *amount > 0);
    let grant = Grant {
        id: word(fields, "id")?.parse().map_err(|_| "id: must be a UUID")?,
        limit,
        amount: amount.ok_or("amount: must be a whole number from 1 on")?,
        reason: word(fields, "reason")?.to_owned(),
        created_by: word(fields, "created_by")?.to_owned(),
        created_at: instant(fields, "created_at")?,
        until: instant(fields, "until")?,
    };
    Ok((workspace(fields)?, grant))
}

/// The line of a credential, which stays encrypted.
pub(super) fn credential_line(credential: &SealedCredential) -> Value {
    let SealedCredential { id: _, selector, header, scheme, key_version, sealed } = credential;
    json!({
        "upstream": selector.upstream,
        "workspace_id": selector.workspace.as_ref().map(WorkspaceId::as_str),
        "metadata": selector.metadata.as_ref().map(ToString::to_string),
        "header": header,
        "scheme": scheme,
        "key_version": key_version,
        "sealed": STANDARD.encode(sealed),
    })
}

/// Reads the output of [`credential_line`].
pub(super) fn credential(fields: &ImportRow, at: Timestamp) -> Result<SealedCredential, String> {
    let is_given = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
    let workspace = is_given("workspace_id").then(|| workspace(fields)).transpose()?;
    let metadata = is_given("metadata").then(|| {
        MetadataEntry::parse(word(fields, "metadata")?).ok_or("metadata: must be NAME=VALUE".to_owned())
    });
    let scheme = is_given("scheme").then(|| {
        let scheme = word(fields, "scheme")?;
        if is_scheme(scheme) {
            Ok(scheme.into())
        } else {
            Err("scheme: must be the name of a scheme".to_owned())
        }
    });
    let header = settable_header(word(fields, "header")?).ok_or("header: must be the name of a header")?;
    let version =
        fields.get("key_version").and_then(Value::as_u64).and_then(|version| u32::try_from(version).ok());
    let sealed = STANDARD.decode(word(fields, "sealed")?).map_err(|_| "sealed: must be Base64")?;
    Ok(SealedCredential {
        id: CredentialId::new(at),
        selector: CredentialSelector {
            upstream: word(fields, "upstream")?.into(),
            workspace,
            metadata: metadata.transpose()?,
        },
        header: header.as_str().into(),
        scheme: scheme.transpose()?,
        key_version: version.ok_or("key_version: must be a whole number")?,
        sealed: sealed.into(),
    })
}

/// A text.
pub(super) fn word<'f>(fields: &'f ImportRow, name: &str) -> Result<&'f str, String> {
    fields.get(name).and_then(Value::as_str).ok_or_else(|| format!("{name}: must be text"))
}

/// The id of a workspace.
pub(super) fn workspace(fields: &ImportRow) -> Result<WorkspaceId, String> {
    word(fields, "workspace_id")?.parse().map_err(|e| format!("workspace_id: {e}"))
}

/// An instant in epoch milliseconds.
pub(super) fn instant(fields: &ImportRow, name: &str) -> Result<Timestamp, String> {
    let millis = fields.get(name).and_then(Value::as_i64);
    let millis = millis.filter(|ms| (0..=Timestamp::MAX.as_millis()).contains(ms));
    millis.map(Timestamp::from_millis).ok_or_else(|| format!("{name}: must be epoch milliseconds"))
}
