//! `[acme]`: certificates by ACME, with every key, its rule and its default.
//!
//! Must not know: how certificates are ordered. Dependencies between keys of this section are checked here, too.

use super::reader::ConfigReader;
use super::rule::{Flag, OrEmpty, ParsedText, quote};
use super::section::Section;
use super::texts::{FILE, server};
use super::types::{ClientCertificates, ProxyConfig};
use std::path::PathBuf;

/// The default authority.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// `[acme]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeConfig {
    /// The names that get a certificate each; none: ACME is off.
    pub domains: Vec<String>,
    /// The directory URL of the authority.
    pub directory: String,
    /// CA of the authority's server; none: the system's roots.
    pub ca_file: Option<PathBuf>,
    /// E-mail address for the authority.
    pub contact: Option<String>,
    /// Whether its terms of service are accepted.
    pub agree_to_terms: bool,
    /// The folder for the account and the certificates.
    pub folder: PathBuf,
}

impl Default for AcmeConfig {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            directory: LETS_ENCRYPT.into(),
            ca_file: None,
            contact: None,
            agree_to_terms: false,
            folder: "data/acme".into(),
        }
    }
}

/// Reads the section.
pub(super) fn acme(s: &mut Section<'_, '_>) -> AcmeConfig {
    let d = AcmeConfig::default();
    AcmeConfig {
        domains: s.list("domains", &DOMAIN, 0..=100, d.domains),
        directory: s.value("directory", &DIRECTORY, d.directory),
        ca_file: s.value("ca_file", &OrEmpty(FILE), d.ca_file),
        contact: s.value("contact", &OrEmpty(ADDRESS), d.contact),
        agree_to_terms: s.value("agree_to_terms", &Flag, d.agree_to_terms),
        folder: s.value("folder", &FILE, d.folder),
    }
}

/// Checks required keys and repeated names.
pub(super) fn check(config: &AcmeConfig, proxy: &ProxyConfig, reading: &mut ConfigReader<'_>) {
    const DOMAINS: &str = "acme.domains";
    for (n, domain) in config.domains.iter().enumerate() {
        if config.domains[..n].contains(domain) {
            let path = format!("{DOMAINS}[{n}]");
            reading.complain_of_conflict(&[&path, DOMAINS], format!("{domain} is there twice"));
        }
    }
    if config.domains.is_empty() {
        return;
    }
    for (is_missing, key, message) in [
        (
            proxy.listen_tls.is_empty(),
            "proxy.listen_tls",
            "needs proxy.listen_tls, where the authority looks whether the names are ours",
        ),
        (
            !config.agree_to_terms,
            "acme.agree_to_terms",
            "needs acme.agree_to_terms = true, once you have read the terms of the authority",
        ),
        (
            proxy.client_certificates == ClientCertificates::Required,
            "proxy.client_certificates",
            "does not go with proxy.client_certificates = \"required\": the authority has none when it looks",
        ),
    ] {
        if is_missing {
            reading.complain_of_conflict(&[DOMAINS, key], message);
        }
    }
}

const DOMAIN: ParsedText<String> = ParsedText {
    must: r#"a name in lower case, such as "api.example.org"; no address and no wildcard"#,
    read: |text| {
        let name = server(&format!("{text}:443"))?;
        let is_name = name.host.bytes().any(|b| b.is_ascii_lowercase()) && !text.ends_with('.');
        let is_lower = !text.bytes().any(|b| b.is_ascii_uppercase() || b == b'[');
        (is_name && is_lower && name.host == text).then(|| text.to_owned())
    },
    show: quote,
};

const DIRECTORY: ParsedText<String> = ParsedText {
    must: r#"the URL of an ACME directory, such as "https://acme-staging-v02.api.letsencrypt.org/directory""#,
    read: |text| {
        let (place, path) = text.strip_prefix("https://")?.split_once('/')?;
        let place = if place.contains(':') { place.to_owned() } else { format!("{place}:443") };
        let fits = text.len() <= 1024 && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        (server(&place).is_some() && fits).then(|| text.to_owned())
    },
    show: quote,
};

const ADDRESS: ParsedText<String> = ParsedText {
    must: "an address of e-mail",
    read: |text| {
        let (name, host) = text.rsplit_once('@')?;
        let fits = text.len() <= 254 && !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic());
        (fits && server(&format!("{host}:25")).is_some()).then(|| text.to_owned())
    },
    show: quote,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn names_addresses_and_directories_are_read_strictly() {
        for (name, fits) in [
            ("api.example.org", true),
            ("localhost", true),
            ("a-1.example", true),
            ("Api.example.org", false),
            ("*.example.org", false),
            ("127.0.0.1", false),
            ("[::1]", false),
            ("api.example.org.", false),
            ("api.example.org:443", false),
            ("api/x", false),
            ("../x", false),
            ("", false),
        ] {
            assert_eq!((DOMAIN.read)(name).is_some(), fits, "{name}");
        }
        for (url, fits) in [
            (LETS_ENCRYPT, true),
            ("https://localhost:14000/dir", true),
            ("http://localhost:14000/dir", false),
            ("https://localhost", false),
            ("https://user@localhost/dir", false),
        ] {
            assert_eq!((DIRECTORY.read)(url).is_some(), fits, "{url}");
        }
        assert!((ADDRESS.read)("ops@example.org").is_some());
        assert!(
            ["ops", "@example.org", "o ps@example.org", "ops@"]
                .iter()
                .all(|bad| (ADDRESS.read)(bad).is_none())
        );
    }

    #[test]
    fn requirements_of_an_order_are_reported() {
        let told = |text: &str| Config::parse(text, "", &[], "").err().map(|error| error.to_string());
        let whole = "[proxy]\nlisten_tls = [\"127.0.0.1:8443\"]\n[acme]\ndomains = [\"a.test\"]\nagree_to_terms = true\n";
        assert_eq!(told(whole), None, "no other certificates are needed");
        for (text, expected) in [
            (whole.replace("agree_to_terms = true", ""), "needs acme.agree_to_terms = true"),
            (whole.replace("listen_tls", "#"), "needs proxy.listen_tls"),
            (whole.replace("[\"a.test\"]", "[\"a.test\", \"a.test\"]"), "a.test is there twice"),
            (
                whole.replace("[acme]", "client_certificates = \"required\"\nclient_ca_file = \"x\"\n[acme]"),
                "does not go with proxy.client_certificates",
            ),
        ] {
            assert!(told(&text).is_some_and(|told| told.contains(expected)), "{text}: {:?}", told(&text));
        }
    }
}
