//! The fields of a key that was exported from another store: its digests and its history. Rows written by people have none
//! of these.

use super::KeyCommand;
use super::import::{ImportRow, text};
use crate::clock::Timestamp;
use crate::model::digest::Digest;
use crate::store::{Credential, ImportedKeyHistory, IssuedCredential, SecretId};
use serde_json::Value;

/// Columns that only `export` writes, besides `hint`.
pub(super) const COLUMNS: &[&str] = &["digest", "pepper_version", "pepper_check", "secret_id", "old"];

/// Takes them from `row`, which has a digest. The pepper of every digest must belong to this installation.
pub(super) fn take(
    command: &KeyCommand,
    row: &mut ImportRow,
) -> Result<(IssuedCredential, ImportedKeyHistory), String> {
    if row.get("api_key").is_some_and(|secret| !secret.is_null()) {
        return Err("api_key and digest: only one of them".into());
    }
    row.remove("api_key");
    let (digest, pepper_version) = digest(command, row)?;
    let secret = secret(row)?;
    let hint = text(row, "hint")?.ok_or("hint: is required beside digest")?.into();
    let old = match row.remove("old") {
        None | Some(Value::Null) => None,
        Some(Value::Object(mut fields)) => Some(old(command, &mut fields)?),
        Some(_) => return Err("old: must be an object or null".into()),
    };
    let past = ImportedKeyHistory {
        created_by: text(row, "created_by")?.unwrap_or_else(|| "cli".into()),
        created_at: instant(row, "created_at")?.unwrap_or(command.now),
        updated_at: instant(row, "updated_at")?.unwrap_or(command.now),
        quota_used: 0,
        usage_count: 0,
        last_used_at: None,
        old,
    };
    Ok((IssuedCredential { digest, pepper_version, secret, hint }, past))
}

fn old(command: &KeyCommand, fields: &mut ImportRow) -> Result<Credential, String> {
    let (digest, pepper_version) = digest(command, fields).map_err(|why| format!("old.{why}"))?;
    let secret = secret(fields).map_err(|why| format!("old.{why}"))?;
    let valid_until = instant(fields, "valid_until").map_err(|why| format!("old.{why}"))?;
    let valid_until = Some(valid_until.ok_or("old.valid_until: is required")?);
    Ok(Credential { digest, pepper_version, secret, valid_until })
}

fn digest(command: &KeyCommand, fields: &mut ImportRow) -> Result<(Digest, u32), String> {
    let mut bytes = [0; 32];
    let digest = text(fields, "digest")?.unwrap_or_default();
    hex::decode_to_slice(&digest, &mut bytes).map_err(|_| "digest: must be 64 hexadecimal characters")?;
    let version = fields.remove("pepper_version").as_ref().and_then(Value::as_u64);
    let version = version.and_then(|v| u32::try_from(v).ok());
    let version = version.ok_or("pepper_version: must be the number of the digest's pepper")?;
    let check = text(fields, "pepper_check")?;
    let pepper = command.peppers.iter().find(|p| p.version() == version);
    if pepper.is_none_or(|p| check.as_deref() != Some(&*hex::encode(p.check()))) {
        let why = "pepper_version: the digest was made with a pepper that this installation does not have";
        return Err(format!("{why} (number {version} of the other one)"));
    }
    Ok((Digest(bytes), version))
}

/// The id of the secret; older files do not have it.
fn secret(fields: &mut ImportRow) -> Result<SecretId, String> {
    match fields.remove("secret_id") {
        None | Some(Value::Null) => Ok(SecretId::random()),
        Some(value) => {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.map(SecretId).ok_or_else(|| "secret_id: must be a whole number below 2^32".into())
        }
    }
}

/// Epoch milliseconds that every store can hold.
fn instant(fields: &mut ImportRow, name: &str) -> Result<Option<Timestamp>, String> {
    let millis = match fields.remove(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_i64(),
    };
    let allowed = 0..=Timestamp::MAX.as_millis();
    let millis = millis.filter(|ms| allowed.contains(ms));
    let millis = millis.ok_or_else(|| format!("{name}: must be epoch milliseconds up to the year 9999"))?;
    Ok(Some(Timestamp::from_millis(millis)))
}
