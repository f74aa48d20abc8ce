//! `[admin.oidc]`: the identity provider that signs people in to the console, with every key, its rule and its default.
//!
//! Must not know: how it is asked. Dependencies between keys of this section are checked here, too.

use super::file::{NAMED_BY_OTHERS, ROLES};
use super::reader::ConfigReader;
use super::rule::{OrEmpty, ParsedText, quote};
use super::section::Section;
use super::texts::FILE;
use super::upstream::span_ms;
use crate::model::id::WorkspaceId;
use crate::policy::text::url::private_url;
use std::path::PathBuf;
use std::time::Duration;

/// `[admin.oidc]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcConfig {
    /// The provider; none: people sign in with admin tokens only.
    pub issuer: Option<String>,
    /// CA of the provider; none: the system's roots.
    pub ca_file: Option<PathBuf>,
    /// The console's name at the provider.
    pub client_id: Option<String>,
    /// The file with the client's secret; none: a public client, or the secret is in the environment.
    pub client_secret_file: Option<PathBuf>,
    /// The origin under which browsers reach the console, without a slash at its end.
    pub public_url: Option<String>,
    /// What is asked for.
    pub scopes: Vec<String>,
    /// What the members of groups may do.
    pub groups: Vec<OidcGroup>,
    /// Longest time for an answer.
    pub timeout: Duration,
    /// The names of claims.
    pub claims: OidcClaimNames,
}

/// What the members of a group may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcGroup {
    /// The group, as the provider names it.
    pub group: String,
    /// A role of the admin API.
    pub role: String,
    /// The workspace; none if and only if the role is `platform`.
    pub workspace: Option<WorkspaceId>,
}

/// `[admin.oidc.claims]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcClaimNames {
    /// The groups.
    pub groups: String,
    /// What people are called.
    pub name: String,
}

impl Default for OidcConfig {
    fn default() -> Self {
        Self {
            issuer: None,
            ca_file: None,
            client_id: None,
            client_secret_file: None,
            public_url: None,
            scopes: vec![OPENID.into(), "profile".into()],
            groups: Vec::new(),
            timeout: Duration::from_secs(5),
            claims: OidcClaimNames { groups: "groups".into(), name: "name".into() },
        }
    }
}

/// The scope without which a provider does not say who somebody is.
const OPENID: &str = "openid";

/// Reads the section.
pub(super) fn oidc(s: &mut Section<'_, '_>) -> OidcConfig {
    let d = OidcConfig::default();
    OidcConfig {
        issuer: s.value("issuer", &OrEmpty(ISSUER), d.issuer),
        ca_file: s.value("ca_file", &OrEmpty(FILE), d.ca_file),
        client_id: s.value("client_id", &OrEmpty(NAMED_BY_OTHERS), d.client_id),
        client_secret_file: s.value("client_secret_file", &OrEmpty(FILE), d.client_secret_file),
        public_url: s.value("public_url", &OrEmpty(ORIGIN), d.public_url),
        scopes: s.list("scopes", &SCOPE, 1..=32, d.scopes),
        groups: s.list("groups", &GROUP, 0..=1_000, d.groups),
        timeout: s.value("timeout", &span_ms(10, 30_000), d.timeout),
        claims: s.table("claims", claims),
    }
}

fn claims(s: &mut Section<'_, '_>) -> OidcClaimNames {
    let d = OidcConfig::default().claims;
    OidcClaimNames {
        groups: s.value("groups", &NAMED_BY_OTHERS, d.groups),
        name: s.value("name", &NAMED_BY_OTHERS, d.name),
    }
}

/// Checks that the provider can be used, and that nothing is given that would be ignored.
pub(super) fn check(config: &OidcConfig, reading: &mut ConfigReader<'_>) {
    const ISSUER: &str = "admin.oidc.issuer";
    const CA: &str = "admin.oidc.ca_file";
    const ID: &str = "admin.oidc.client_id";
    const SECRET: &str = "admin.oidc.client_secret_file";
    const PUBLIC: &str = "admin.oidc.public_url";
    const SCOPES: &str = "admin.oidc.scopes";
    const GROUPS: &str = "admin.oidc.groups";
    let is_on = config.issuer.is_some();
    let has_tls = config.issuer.as_ref().is_some_and(|issuer| issuer.starts_with("https:"));
    for (is_wrong, paths, message) in [
        (is_on && config.client_id.is_none(), [ISSUER, ID], "needs admin.oidc.client_id"),
        (is_on && config.public_url.is_none(), [ISSUER, PUBLIC], "needs admin.oidc.public_url"),
        (
            is_on && config.groups.is_empty(),
            [ISSUER, GROUPS],
            "needs admin.oidc.groups: without one, nobody can sign in",
        ),
        (!is_on && config.client_id.is_some(), [ID, ISSUER], "needs admin.oidc.issuer"),
        (!is_on && config.client_secret_file.is_some(), [SECRET, ISSUER], "needs admin.oidc.issuer"),
        (!is_on && config.public_url.is_some(), [PUBLIC, ISSUER], "needs admin.oidc.issuer"),
        (!is_on && !config.groups.is_empty(), [GROUPS, ISSUER], "needs admin.oidc.issuer"),
        (
            config.ca_file.is_some() && !has_tls,
            [CA, ISSUER],
            "needs an admin.oidc.issuer that begins with https",
        ),
        (!config.scopes.iter().any(|scope| scope == OPENID), [SCOPES, ISSUER], "must contain \"openid\""),
    ] {
        if is_wrong {
            reading.complain_of_conflict(&paths, message);
        }
    }
}

// === rules ===

/// Providers put their issuer into tokens as it is written here, so it stays text.
const ISSUER: ParsedText<String> = ParsedText {
    must: r#"an https URL without a user, a query or a fragment, such as "https://id.example/realms/staff"; http only to localhost, 127.0.0.1 or [::1]"#,
    read: |text| private_url(text).filter(|url| !url.target.contains('?')).map(|_| text.to_owned()),
    show: quote,
};

const ORIGIN: ParsedText<String> = ParsedText {
    must: r#"an https URL without a path, such as "https://keygate.example"; http only to localhost, 127.0.0.1 or [::1]"#,
    read: |text| {
        let url = private_url(text).filter(|url| url.target == "/")?;
        Some(url.location().trim_end_matches('/').to_owned())
    },
    show: quote,
};

const SCOPE: ParsedText<String> = ParsedText {
    must: r#"a scope of the provider: 1 to 255 visible ASCII characters, none of them " or \"#,
    read: |text| {
        let fits = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
        ((1..=255).contains(&text.len()) && text.bytes().all(fits)).then(|| text.to_owned())
    },
    show: quote,
};

const GROUP: ParsedText<OidcGroup> = ParsedText {
    must: r#""GROUP=ROLE@WORKSPACE" with a role of viewer, admin, such as "shop-team=admin@shop", or "GROUP=platform""#,
    read: group,
    show: |OidcGroup { group, role, workspace }| match workspace {
        Some(workspace) => quote(&format_args!("{group}={role}@{workspace}")),
        None => quote(&format_args!("{group}={role}")),
    },
};

/// Names of groups may contain `=`, as in `cn=shop,ou=teams`; roles and workspaces cannot.
fn group(text: &str) -> Option<OidcGroup> {
    let (group, granted) = text.rsplit_once('=')?;
    let fits = (1..=255).contains(&group.chars().count()) && !group.chars().any(char::is_control);
    let (role, workspace) = match granted.split_once('@') {
        Some((role, workspace)) => (role, Some(workspace.parse().ok()?)),
        None => (granted, None),
    };
    let is_role = ROLES.contains(&role) && (role == "platform") == workspace.is_none();
    (fits && is_role).then(|| OidcGroup { group: group.to_owned(), role: role.to_owned(), workspace })
}
