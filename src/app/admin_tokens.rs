//! Verification of admin tokens, with keys from the config, the environment or the files of a first start.

use super::{FileError, StartError, signing_secret, write_private};
use crate::admin::{Algorithm, Auth, AuthClaims, AuthConfig, AuthKeys, Role};
use crate::clock::Clock;
use crate::config::{Config, JwtAlgorithm, JwtKeys};
use crate::fileio;
use crate::model::id::WorkspaceId;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long the first admin token is valid.
const FIRST_TOKEN_TTL: Duration = Duration::from_hours(30 * 24);
/// The workspace of the first admin token.
const FIRST_WORKSPACE: &str = "default";

/// The verifier of admin tokens, with the secret from the environment if there is one. Otherwise a first start creates the
/// secret's file and a first token.
pub fn auth(config: &Config, inline: Option<&str>, clock: &Arc<dyn Clock>) -> Result<Auth, StartError> {
    verifier(config, inline, Some(clock))
}

/// The same for a command that signs tokens for a gateway: it creates nothing, because a secret of its own would sign tokens
/// that no gateway accepts.
pub fn signer(config: &Config, inline: Option<&str>) -> Result<Auth, StartError> {
    verifier(config, inline, None)
}

/// `first_start`: the clock for a first token, if the secret may be created.
fn verifier(
    config: &Config,
    inline: Option<&str>,
    first_start: Option<&Arc<dyn Clock>>,
) -> Result<Auth, StartError> {
    let jwt = &config.admin.jwt;
    let build = |keys| {
        Auth::new(AuthConfig {
            keys,
            algorithms: jwt.algorithms.iter().copied().map(algorithm).collect(),
            issuer: jwt.issuer.clone(),
            audience: jwt.audience.clone(),
            require: jwt.require.clone(),
            roles: jwt.roles.iter().filter_map(|(from, to)| Some((from.clone(), to.parse().ok()?))).collect(),
            default_role: jwt.default_role.as_deref().and_then(|role| role.parse().ok()),
            workspace_header_subjects: jwt.workspace_header_subjects.clone(),
            leeway: jwt.leeway,
            claims: AuthClaims {
                subject: jwt.claims.subject.clone(),
                workspace: jwt.claims.workspace.clone(),
                role: jwt.claims.role.clone(),
            },
        })
    };
    match &jwt.keys {
        JwtKeys::JwksFile(_) | JwtKeys::JwksUrl(_) if inline.is_some() => Err(StartError::TwoSigningKeys),
        JwtKeys::SharedSecretFile(_) if let Some(secret) = inline => {
            let secret = Zeroizing::new(secret.as_bytes().to_vec());
            build(AuthKeys::Hs256(secret)).map_err(StartError::SigningSecret)
        }
        JwtKeys::JwksFile(path) => {
            let text =
                fileio::read_text(path).map_err(|error| FileError::Io { path: path.clone(), error })?;
            Ok(build(AuthKeys::Jwks(text))?)
        }
        JwtKeys::JwksUrl(_) => Ok(build(AuthKeys::Unread)?),
        JwtKeys::SharedSecretFile(path) => {
            let Some(clock) = first_start else {
                let secret = super::read_secret_value(path)?;
                return Ok(build(AuthKeys::Hs256(Zeroizing::new(secret.as_bytes().to_vec())))?);
            };
            let secret = signing_secret(path)?;
            let auth = build(AuthKeys::Hs256(secret.value))?;
            if secret.is_new {
                first_token(&auth, path, clock)?;
            }
            Ok(auth)
        }
    }
}

fn first_token(auth: &Auth, beside: &Path, clock: &Arc<dyn Clock>) -> Result<(), StartError> {
    let path = beside.with_file_name("admin.token");
    let workspace: WorkspaceId = FIRST_WORKSPACE.parse().map_err(|e| StartError::System(format!("{e}")))?;
    let token =
        auth.mint("first-admin", Some(&workspace), Role::Platform, FIRST_TOKEN_TTL, clock.now().wall)?;
    write_private(&path, &format!("{token}\n"))?;
    tracing::info!("wrote a first admin token, valid for 30 days, to {}", path.display());
    Ok(())
}

const fn algorithm(configured: JwtAlgorithm) -> Algorithm {
    match configured {
        JwtAlgorithm::Hs256 => Algorithm::HS256,
        JwtAlgorithm::Rs256 => Algorithm::RS256,
        JwtAlgorithm::Es256 => Algorithm::ES256,
        JwtAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}
