//! Verifies admin tokens and identifies callers.
//!
//! Must not know: what callers may do (see `caller`), or the system's clock: `exp` and `nbf` are checked against the given
//! instant. Keys come from files, which other modules read. A token chooses neither its algorithm nor the source of its
//! key.

use super::error::AdminError;
use super::input::{FieldError, json as strict};
use super::jwt::{self, BadToken, Token, VerifyingKey};
use crate::clock::Timestamp;
use crate::model::fault::Fault;
use crate::model::id::WorkspaceId;
use crate::model::key::words;
use crate::policy::text::plain_value::without_bom;
use arc_swap::ArcSwap;
use ring::hmac;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

pub use super::jwt::Algorithm;

/// How admin tokens are verified.
#[derive(Debug)]
pub struct AuthConfig {
    /// The keys.
    pub keys: AuthKeys,
    /// The accepted algorithms: `HS256` for a secret; of `RS256`, `ES256`, `EdDSA` for a JWKS.
    pub algorithms: Vec<Algorithm>,
    /// The required `iss`; none: not checked.
    pub issuer: Option<String>,
    /// What `aud` must be or contain; none: not checked.
    pub audience: Option<String>,
    /// Further claims and the values they must have.
    pub require: Vec<(String, String)>,
    /// The role for each value of the claim; empty: the values are the names of [`Role`].
    pub roles: Vec<(String, Role)>,
    /// The role of tokens without a known one; none: such tokens are refused.
    pub default_role: Option<Role>,
    /// Subjects whose tokens name their workspace in `X-Workspace-Id`; `*` is every subject.
    pub workspace_header_subjects: Vec<String>,
    /// Allowed clock difference.
    pub leeway: Duration,
    /// The names of claims.
    pub claims: AuthClaims,
}

/// The keys of admin tokens.
pub enum AuthKeys {
    /// A shared secret of 32 bytes or more.
    Hs256(Zeroizing<Vec<u8>>),
    /// The text of a JWKS file (RFC 7517).
    Jwks(String),
    /// A JWKS that has not been read yet: no token is valid.
    Unread,
}

/// The names of the claims that identify a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthClaims {
    /// The subject.
    pub subject: String,
    /// The workspace.
    pub workspace: String,
    /// The role.
    pub role: String,
}

words!(
    /// The role of a caller; each role includes those before it.
    Role {
        /// Read.
        Viewer = "viewer",
        /// Read and write in its own workspace.
        Admin = "admin",
        /// Everything: plans, workspaces, and the data of every workspace.
        Platform = "platform",
    }
);

/// Keys or options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadAuth {
    /// The secret is too short to be safe.
    #[error("the HS256 secret has {0} bytes; it must have 32 or more")]
    ShortSecret(usize),
    /// The file cannot be read as a key set.
    #[error("the JWKS is not valid: {0}")]
    Jwks(String),
    /// No key of the set matches the algorithms.
    #[error("the JWKS has no signature key for any of the algorithms")]
    NoKey,
    /// Two keys have the same name.
    #[error("the JWKS has two keys of the kid {0:?}")]
    TwoKeys(String),
    /// An algorithm does not match the keys.
    #[error("algorithm {0} cannot be used with these keys; allowed: {1}")]
    Algorithm(Algorithm, &'static str),
    /// No algorithm is accepted.
    #[error("no algorithm is accepted; allowed: {0}")]
    NoAlgorithm(&'static str),
    /// A token cannot be minted: the private key is elsewhere.
    #[error("tokens can only be minted with an HS256 secret")]
    CannotMint,
}

/// Verifies admin tokens.
pub struct Auth {
    keys: ArcSwap<VerificationKeys>,
    algorithms: Vec<Algorithm>,
    issuer: Option<String>,
    audience: Option<String>,
    require: Vec<(String, String)>,
    roles: Vec<(String, Role)>,
    default_role: Option<Role>,
    workspace_header_subjects: Vec<String>,
    leeway_secs: i64,
    claims: AuthClaims,
}

/// The keys in force.
struct VerificationKeys {
    named: Vec<NamedKey>,
    /// None: tokens are minted elsewhere.
    minting: Option<hmac::Key>,
}

/// What a valid token, or the identity service, says about a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claimed {
    /// The subject.
    pub(super) subject: String,
    /// The role.
    pub(super) role: Option<Role>,
    /// The workspace.
    pub(super) workspace: Option<WorkspaceId>,
}

/// Why a token is not valid by the keys in force.
#[derive(Debug)]
pub(super) enum NotVerified {
    /// It names a key that is not in force, or none where there are several.
    UnknownKey,
    /// It is no token of the accepted algorithms, or its signature is not by the key.
    Foreign,
    /// It is signed by a key in force, and refused.
    Refused(AdminError),
}

/// The caller identified by a valid token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The subject.
    pub(super) subject: String,
    /// The role.
    pub(super) role: Role,
    /// The workspace; only a platform token may have none.
    pub(super) workspace: Option<WorkspaceId>,
    /// The workspace is the one that `X-Workspace-Id` names: this subject is trusted to name its own.
    pub(super) names_workspace: bool,
}

/// A key and its name in tokens.
struct NamedKey {
    kid: Option<String>,
    key: VerifyingKey,
}

/// Longest token that is accepted, in bytes.
const TOKEN_MAX: usize = 8 * 1024;
/// Longest subject, in characters.
const SUBJECT_MAX: usize = 255;
/// Shortest HS256 secret, in bytes (RFC 7518, 3.2).
const SECRET_MIN: usize = 32;
const JWKS_ALGORITHMS: &str = "RS256, ES256, EdDSA";

// === impl Auth ===

impl Auth {
    /// From the configuration; refuses unsafe values.
    pub fn new(config: AuthConfig) -> Result<Self, BadAuth> {
        let AuthConfig {
            keys,
            algorithms,
            issuer,
            audience,
            require,
            roles,
            default_role,
            workspace_header_subjects,
            leeway,
            claims,
        } = config;
        let keys = ArcSwap::from_pointee(VerificationKeys::new(keys, &algorithms)?);
        let leeway_secs = i64::try_from(leeway.as_secs()).unwrap_or(i64::MAX);
        Ok(Self {
            keys,
            algorithms,
            issuer,
            audience,
            require,
            roles,
            default_role,
            workspace_header_subjects,
            leeway_secs,
            claims,
        })
    }

    /// Verifies tokens only with these keys from now on. Unusable keys change nothing.
    pub fn replace_keys(&self, keys: AuthKeys) -> Result<(), BadAuth> {
        self.keys.store(Arc::new(VerificationKeys::new(keys, &self.algorithms)?));
        Ok(())
    }

    /// A token for `subject`, valid for `ttl` from `now`. Only with an HS256 secret.
    pub fn mint(
        &self,
        subject: &str,
        workspace: Option<&WorkspaceId>,
        role: Role,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<String, BadAuth> {
        let keys = self.keys.load();
        let key = keys.minting.as_ref().ok_or(BadAuth::CannotMint)?;
        let mut claims = Map::new();
        for (name, value) in [("iss", &self.issuer), ("aud", &self.audience)] {
            if let Some(value) = value {
                claims.insert(name.into(), json!(value));
            }
        }
        for (name, value) in &self.require {
            claims.insert(name.clone(), json!(value));
        }
        claims.insert("iat".into(), json!(now.as_secs()));
        claims.insert("nbf".into(), json!(now.as_secs()));
        claims.insert("exp".into(), json!(now.plus(ttl).as_secs()));
        claims.insert(self.claims.subject.clone(), json!(subject));
        let word =
            self.roles.iter().find(|(_, meant)| *meant == role).map_or(role.as_str(), |(word, _)| word);
        claims.insert(self.claims.role.clone(), json!(word));
        if let Some(workspace) = workspace {
            claims.insert(self.claims.workspace.clone(), json!(workspace.as_str()));
        }
        Ok(jwt::sign(key, &claims))
    }

    /// What `token` says at the instant `now`, if it is valid.
    pub(super) fn verify(&self, token: &str, now: Timestamp) -> Result<Claimed, NotVerified> {
        let claims = self.verified_claims(token, now)?;
        self.claimed(&claims, &self.claims).map_err(NotVerified::Refused)
    }

    /// The claims of `token`, if it is signed, ours and valid at the instant `now`.
    pub(super) fn verified_claims(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Map<String, Value>, NotVerified> {
        let claims = self.signed_claims(token)?;
        if !self.is_ours(&claims) || !claims.contains_key("exp") {
            return Err(NotVerified::Refused(AdminError::of(Fault::TokenInvalid)));
        }
        self.check_times(&claims, now).map_err(NotVerified::Refused)?;
        Ok(claims)
    }

    /// Checks `exp` and `nbf`, if they are there.
    pub(super) fn check_times(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<(), AdminError> {
        let invalid = || AdminError::of(Fault::TokenInvalid);
        let instant = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => seconds(value).map(Some).ok_or_else(invalid),
        };
        let (until, from, now) = (instant("exp")?, instant("nbf")?, now.as_secs());
        if from.is_some_and(|from| from > now.saturating_add(self.leeway_secs)) {
            return Err(invalid());
        }
        if until.is_some_and(|until| until.saturating_add(self.leeway_secs) <= now) {
            return Err(AdminError::of(Fault::TokenExpired));
        }
        Ok(())
    }

    /// The claims of a token with a valid signature.
    fn signed_claims(&self, token: &str) -> Result<Map<String, Value>, NotVerified> {
        if token.len() > TOKEN_MAX {
            return Err(NotVerified::Refused(AdminError::of(Fault::TokenInvalid)));
        }
        let not_verified = |bad| match bad {
            BadToken::Invalid => NotVerified::Foreign,
            BadToken::Twice(field) => {
                let message = "is there twice".to_owned();
                let errors = vec![FieldError { field, message }];
                NotVerified::Refused(AdminError::listing(Fault::TokenInvalid, errors))
            }
        };
        let token = Token::read(token).map_err(not_verified)?;
        let algorithm = token.algorithm.filter(|a| self.algorithms.contains(a));
        let algorithm = algorithm.ok_or(NotVerified::Foreign)?;
        let keys = self.keys.load();
        let key = keys.key_for(token.kid.as_deref(), algorithm).ok_or(NotVerified::UnknownKey)?;
        token.claims(key).map_err(not_verified)
    }

    fn is_ours(&self, claims: &Map<String, Value>) -> bool {
        let issuer = self.issuer.as_deref().is_none_or(|wanted| text(claims.get("iss")) == Some(wanted));
        let audience = self.audience.as_deref().is_none_or(|wanted| match claims.get("aud") {
            Some(Value::Array(many)) => many.iter().any(|one| text(Some(one)) == Some(wanted)),
            one => text(one) == Some(wanted),
        });
        issuer && audience && has_all(claims, &self.require)
    }

    /// Whom `claims` identify, in the claims called `names`.
    pub(super) fn claimed(
        &self,
        claims: &Map<String, Value>,
        names: &AuthClaims,
    ) -> Result<Claimed, AdminError> {
        let invalid = || AdminError::of(Fault::TokenInvalid);
        let subject = claim(claims, &names.subject).and_then(id_text).ok_or_else(invalid)?;
        let length = subject.chars().count();
        if length == 0 || length > SUBJECT_MAX || subject.chars().any(char::is_control) {
            return Err(invalid());
        }
        let workspace = match claim(claims, &names.workspace) {
            None | Some(Value::Null) => None,
            Some(value) => Some(id_text(value).and_then(|id| id.parse().ok()).ok_or_else(invalid)?),
        };
        let role = self.role_of(claim(claims, &names.role));
        Ok(Claimed { subject: subject.into_owned(), role, workspace })
    }

    /// Whether the workspace of that caller must be asked from the identity service, if there is one.
    pub(super) fn lacks_workspace(&self, claimed: &Claimed) -> bool {
        let is_platform = claimed.role.or(self.default_role) == Some(Role::Platform);
        claimed.workspace.is_none() && !is_platform && !self.may_name_workspace(&claimed.subject)
    }

    /// The caller of whom that is claimed.
    pub(super) fn identity(&self, claimed: Claimed) -> Result<Identity, AdminError> {
        let Claimed { subject, role, workspace } = claimed;
        // The token is valid, but an unknown role allows nothing.
        let role = role.or(self.default_role).ok_or_else(|| AdminError::of(Fault::Forbidden))?;
        let names_workspace = workspace.is_none() && self.may_name_workspace(&subject);
        if workspace.is_none() && role != Role::Platform && !names_workspace {
            return Err(AdminError::of(Fault::TokenInvalid));
        }
        Ok(Identity { subject, role, workspace, names_workspace })
    }

    fn may_name_workspace(&self, subject: &str) -> bool {
        self.workspace_header_subjects.iter().any(|listed| listed == "*" || listed == subject)
    }

    /// The highest role in the value of a claim: a text, or a list of texts.
    fn role_of(&self, value: Option<&Value>) -> Option<Role> {
        let meant = |word: &Value| -> Option<Role> {
            let word = word.as_str()?;
            match &self.roles[..] {
                [] => word.parse().ok(),
                roles => roles.iter().filter(|(from, _)| from == word).map(|(_, role)| *role).max(),
            }
        };
        match value? {
            Value::Array(words) => words.iter().filter_map(meant).max(),
            word => meant(word),
        }
    }
}

/// The claim with that name, which may be a path into nested objects: `realm_access.roles`.
pub(super) fn claim<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    if let Some(found) = claims.get(name) {
        return Some(found);
    }
    let (first, rest) = name.split_once('.')?;
    claim(claims.get(first)?.as_object()?, rest)
}

/// Whether all of these claims have these values.
fn has_all(claims: &Map<String, Value>, required: &[(String, String)]) -> bool {
    required.iter().all(|(name, wanted)| claim(claims, name).is_some_and(|value| is_value(value, wanted)))
}

/// The same, where a claim may also be a list that contains the value.
pub(super) fn has_or_lists_all(claims: &Map<String, Value>, required: &[(String, String)]) -> bool {
    required.iter().all(|(name, wanted)| match claim(claims, name) {
        Some(Value::Array(many)) => many.iter().any(|one| is_value(one, wanted)),
        Some(one) => is_value(one, wanted),
        None => false,
    })
}

fn is_value(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(value) => value == wanted,
        Value::Bool(value) => wanted.parse() == Ok(*value),
        Value::Number(value) => value.to_string() == wanted,
        _ => false,
    }
}

/// An id, which may be a whole number.
fn id_text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(text.into()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string().into()),
        _ => None,
    }
}

fn text(value: Option<&Value>) -> Option<&str> {
    value?.as_str()
}

// === impl VerificationKeys ===

impl VerificationKeys {
    fn new(keys: AuthKeys, algorithms: &[Algorithm]) -> Result<Self, BadAuth> {
        let (named, minting) = match keys {
            AuthKeys::Hs256(secret) => shared_key(&secret, algorithms)?,
            AuthKeys::Jwks(text) => (public_keys(&text, algorithms)?, None),
            AuthKeys::Unread => (Vec::new(), None),
        };
        Ok(Self { named, minting })
    }

    /// The key that a token names, or the only one that matches. For an algorithm that is not accepted, there is none.
    fn key_for(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<&VerifyingKey> {
        let mut fitting = self.named.iter().filter(|k| k.key.algorithm() == algorithm);
        match kid {
            // A shared secret has no name, so any name is accepted.
            Some(_) if self.minting.is_some() => fitting.next().map(|k| &k.key),
            Some(kid) => fitting.find(|k| k.kid.as_deref() == Some(kid)).map(|k| &k.key),
            None => match (fitting.next(), fitting.next()) {
                (Some(only), None) => Some(&only.key),
                _ => None,
            },
        }
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hs256(_) => "Hs256(…)",
            Self::Jwks(_) => "Jwks(…)",
            Self::Unread => "Unread",
        })
    }
}

impl Default for AuthClaims {
    fn default() -> Self {
        Self { subject: "sub".into(), workspace: "workspace_id".into(), role: "role".into() }
    }
}

// === keys ===

fn shared_key(
    secret: &[u8],
    algorithms: &[Algorithm],
) -> Result<(Vec<NamedKey>, Option<hmac::Key>), BadAuth> {
    const ALLOWED: &str = "HS256";
    if secret.len() < SECRET_MIN {
        return Err(BadAuth::ShortSecret(secret.len()));
    }
    if let Some(other) = algorithms.iter().find(|a| **a != Algorithm::HS256) {
        return Err(BadAuth::Algorithm(*other, ALLOWED));
    }
    if algorithms.is_empty() {
        return Err(BadAuth::NoAlgorithm(ALLOWED));
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    Ok((vec![NamedKey { kid: None, key: VerifyingKey::Hmac(key.clone()) }], Some(key)))
}

fn public_keys(text: &str, algorithms: &[Algorithm]) -> Result<Vec<NamedKey>, BadAuth> {
    if algorithms.is_empty() {
        return Err(BadAuth::NoAlgorithm(JWKS_ALGORITHMS));
    }
    let allowed = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
    if let Some(other) = algorithms.iter().find(|a| !allowed.contains(a)) {
        return Err(BadAuth::Algorithm(*other, JWKS_ALGORITHMS));
    }
    let set = strict::object(without_bom(text).as_bytes()).map_err(|e| BadAuth::Jwks(e.to_string()))?;
    let mut keys: Vec<NamedKey> = Vec::new();
    for jwk in jwt::key_set(&set).map_err(BadAuth::Jwks)? {
        if !jwk.algorithm.is_some_and(|a| algorithms.contains(&a)) {
            continue;
        }
        let kid = jwk.kid.map(str::to_owned);
        if let Some(twice) = kid.as_ref().filter(|kid| keys.iter().any(|k| k.kid.as_ref() == Some(*kid))) {
            return Err(BadAuth::TwoKeys(twice.clone()));
        }
        let key = jwk.key().map_err(|why| match &kid {
            Some(kid) => BadAuth::Jwks(format!("the key {kid:?}: {why}")),
            None => BadAuth::Jwks(format!("a key without a kid: {why}")),
        })?;
        keys.push(NamedKey { kid, key });
    }
    if keys.is_empty() { Err(BadAuth::NoKey) } else { Ok(keys) }
}

/// A `NumericDate` (RFC 7519, 2) in whole seconds.
#[expect(clippy::cast_possible_truncation, reason = "floats saturate, and far futures need no precision")]
pub(super) fn seconds(value: &Value) -> Option<i64> {
    let number = value.as_number()?;
    number.as_i64().or_else(|| number.as_f64().filter(|f| f.is_finite()).map(|f| f.floor() as i64))
}
