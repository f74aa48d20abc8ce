//! The configuration from a file and the environment, checked as a whole; all mistakes are reported at once.
//!
//! A variable overrides the file, and the file the default.
//!
//! Must not know: what the settings do, or whether the files they name can be read. A configuration with any mistake is not
//! used at all.

mod acme;
mod credential;
mod defaults;
mod did_you_mean;
mod end_user;
mod error;
mod file;
mod forward;
mod introspection;
mod listeners;
mod meter;
mod oidc;
mod places;
mod prices;
mod raw_value;
mod reader;
mod redis_url;
mod rule;
mod section;
mod telemetry;
mod texts;
mod types;
mod upstream;
mod validate;

pub use acme::AcmeConfig;
pub use credential::{CredentialConfig, CredentialSecret};
pub use error::{ConfigError, Mistake};
pub use introspection::IntrospectionConfig;
pub use oidc::{OidcClaimNames, OidcConfig, OidcGroup};
pub use places::ConfigPlaces;
pub use telemetry::TelemetryConfig;
pub use types::*;
pub use upstream::{
    ClientCertificate, HealthCheck, HealthConfig, RetryConfig, ServerConfig, TlsConfig, UpstreamConfig,
};

use crate::fileio;
use crate::policy::routing::counted::KeyRoute;
use crate::policy::text::plain_value::without_bom;
use reader::ConfigReader;
use section::Section;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use toml::de::DeTable;

/// Variables of the program itself that override no key: secrets and the path of the file.
pub const PROGRAM_VARIABLES: &[&str] = &[
    "KEYGATE_SECRETS_PEPPERS",
    "KEYGATE_SECRETS_ENCRYPTION_KEYS",
    "KEYGATE_ADMIN_JWT_HS256_SECRET",
    "KEYGATE_ADMIN_OIDC_CLIENT_SECRET",
    "KEYGATE_TELEMETRY_HEADERS",
    "KEYGATE_CONFIG",
    "KEYGATE_ADMIN_URL",
    "KEYGATE_ADMIN_TOKEN_FILE",
    "KEYGATE_ADMIN_CA_FILE",
];
/// Largest file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// The file that documents every key with its default, `conf/keygate.toml`.
pub fn example_config() -> &'static str {
    include_str!("../../conf/keygate.toml")
}

impl Config {
    /// The routes that take a key.
    pub fn key_routes(&self) -> impl Iterator<Item = KeyRoute<'_>> {
        let routes = self.routes.iter().filter(|route| !route.public);
        routes.map(|route| KeyRoute { scopes: &route.scopes, meter: route.meter.as_ref() })
    }

    /// Reads the file at `path`, if one is given, with the variables `env`, on the machine `host_name`. The file may be a
    /// pipe.
    pub fn load(path: Option<&Path>, env: &[(String, String)], host_name: &str) -> Result<Self, ConfigError> {
        Self::load_with_places(path, env, host_name).map(|(config, _)| config)
    }

    /// The same, and where its keys are written.
    pub fn load_with_places(
        path: Option<&Path>,
        env: &[(String, String)],
        host_name: &str,
    ) -> Result<(Self, ConfigPlaces), ConfigError> {
        let read = |path: &Path| File::open(path).and_then(|file| fileio::rest_of(&file, FILE_BYTES_MAX));
        Self::load_by(read, path, env, host_name)
    }

    /// The same while the gateway runs. It must be a regular file, because reading others could block for ever.
    pub fn load_again(
        path: Option<&Path>,
        env: &[(String, String)],
        host_name: &str,
    ) -> Result<Self, ConfigError> {
        let read = |path: &Path| fileio::read_up_to(path, FILE_BYTES_MAX);
        Self::load_by(read, path, env, host_name).map(|(config, _)| config)
    }

    fn load_by(
        read: impl FnOnce(&Path) -> std::io::Result<Vec<u8>>,
        path: Option<&Path>,
        env: &[(String, String)],
        host_name: &str,
    ) -> Result<(Self, ConfigPlaces), ConfigError> {
        let Some(path) = path else { return Self::parse_with_places("", "", env, host_name) };
        let name = path.display().to_string();
        let read = read(path).and_then(fileio::text_of);
        let why = |error: std::io::Error| match error.kind() {
            ErrorKind::InvalidData | ErrorKind::FileTooLarge => error.to_string(),
            _ => format!("cannot be read: {error}"),
        };
        match read.map_err(why) {
            Ok(text) => Self::parse_with_places(&text, &name, env, host_name),
            Err(message) => {
                let mistake = Mistake { place: String::new(), line: None, message };
                Err(ConfigError { file: name, mistakes: vec![mistake] })
            }
        }
    }

    /// Parses `text`, which messages call `file`, with those variables of `env` that begin with `KEYGATE_`. `host_name` is
    /// the default name of the node.
    pub fn parse(
        text: &str,
        file: &str,
        env: &[(String, String)],
        host_name: &str,
    ) -> Result<Self, ConfigError> {
        Self::parse_with_places(text, file, env, host_name).map(|(config, _)| config)
    }

    fn parse_with_places(
        text: &str,
        file: &str,
        env: &[(String, String)],
        host_name: &str,
    ) -> Result<(Self, ConfigPlaces), ConfigError> {
        let text = without_bom(text);
        let (table, syntax_errors) = DeTable::parse_recoverable(text);
        let mut reading = ConfigReader::new(text, env);
        for error in &syntax_errors {
            reading.complain_of_syntax(error);
        }
        let read = Section::root(&mut reading, table.get_ref(), file::read);
        reading.close_variables(PROGRAM_VARIABLES);
        let config = validate::validate(read, host_name, &mut reading);
        reading.finish(file, config)
    }
}

/// Every key with its variable and default, in the order of the sections.
pub fn known_keys() -> Vec<KnownKey> {
    // Keys become known when they are read, and those of tables only if there is a table.
    let (table, _) = DeTable::parse_recoverable(
        "plans.NAME.limits = [{}]\nupstreams = [{ credentials = [{}] }]\nroutes = [{}]\nprices = [{ tiers = [{}] }]\n",
    );
    let mut reading = ConfigReader::new("", &[]);
    Section::root(&mut reading, table.get_ref(), file::read);
    reading.into_known()
}
