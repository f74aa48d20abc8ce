//! `[admin.introspection]`: the identity service that is asked about admin tokens, with every key, its rule and its default.
//!
//! Must not know: how it is asked. Dependencies between keys of this section are checked here, too.

use super::file::{CLAIM_VALUE, NAMED_BY_OTHERS, claims};
use super::reader::ConfigReader;
use super::rule::{Integer, OrEmpty};
use super::section::Section;
use super::texts::{FILE, IDENTITY_URL};
use super::types::ClaimNames;
use super::upstream::span_ms;
use super::validate::claims_differ;
use crate::model::server::HttpUrl;
use std::path::PathBuf;
use std::time::Duration;

/// `[admin.introspection]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntrospectionConfig {
    /// The endpoint; none: no service is asked.
    pub url: Option<HttpUrl>,
    /// CA of the service; none: the system's roots.
    pub ca_file: Option<PathBuf>,
    /// The client for RFC 7662; none: the endpoint is called with the caller's token.
    pub client_id: Option<String>,
    /// The file with the client's secret. Given if and only if [`IntrospectionConfig::client_id`] is.
    pub client_secret_file: Option<PathBuf>,
    /// Claims of an answer and the values they must have.
    pub require: Vec<(String, String)>,
    /// How long an answer is used.
    pub cache: Duration,
    /// Most answers in the cache.
    pub cache_entries: usize,
    /// Longest time for an answer.
    pub timeout: Duration,
    /// Most calls at once.
    pub max_concurrent: usize,
    /// The names of claims in answers.
    pub claims: ClaimNames,
}

impl Default for IntrospectionConfig {
    fn default() -> Self {
        Self {
            url: None,
            ca_file: None,
            client_id: None,
            client_secret_file: None,
            require: Vec::new(),
            cache: Duration::from_secs(10),
            cache_entries: 10_000,
            timeout: Duration::from_secs(2),
            max_concurrent: 16,
            claims: ClaimNames::default(),
        }
    }
}

/// Reads the section.
pub(super) fn introspection(s: &mut Section<'_, '_>) -> IntrospectionConfig {
    let d = IntrospectionConfig::default();
    IntrospectionConfig {
        url: s.value("url", &OrEmpty(IDENTITY_URL), d.url),
        ca_file: s.value("ca_file", &OrEmpty(FILE), d.ca_file),
        client_id: s.value("client_id", &OrEmpty(NAMED_BY_OTHERS), d.client_id),
        client_secret_file: s.value("client_secret_file", &OrEmpty(FILE), d.client_secret_file),
        require: s.list("require", &CLAIM_VALUE, 0..=16, d.require),
        cache: s.value("cache", &span_ms(0, 300_000), d.cache),
        cache_entries: s.value("cache_entries", &Integer { min: 1, max: 1_000_000 }, d.cache_entries),
        timeout: s.value("timeout", &span_ms(10, 30_000), d.timeout),
        max_concurrent: s.value("max_concurrent", &Integer { min: 1, max: 1_000 }, d.max_concurrent),
        claims: s.table("claims", claims),
    }
}

/// Checks that the client has both parts of its credentials, and that nothing is given that would be ignored.
pub(super) fn check(config: &IntrospectionConfig, reading: &mut ConfigReader<'_>) {
    const URL: &str = "admin.introspection.url";
    const ID: &str = "admin.introspection.client_id";
    const SECRET: &str = "admin.introspection.client_secret_file";
    const CA: &str = "admin.introspection.ca_file";
    let has_tls = config.url.as_ref().is_some_and(|url| url.tls);
    for (is_wrong, paths, message) in [
        (
            config.client_id.is_some() && config.client_secret_file.is_none(),
            [ID, SECRET],
            "needs admin.introspection.client_secret_file",
        ),
        (
            config.client_secret_file.is_some() && config.client_id.is_none(),
            [SECRET, ID],
            "needs admin.introspection.client_id",
        ),
        (config.client_id.is_some() && config.url.is_none(), [ID, URL], "needs admin.introspection.url"),
        (
            config.ca_file.is_some() && !has_tls,
            [CA, URL],
            "needs an admin.introspection.url that begins with https",
        ),
    ] {
        if is_wrong {
            reading.complain_of_conflict(&paths, message);
        }
    }
    claims_differ("admin.introspection.claims", &config.claims, reading);
}
