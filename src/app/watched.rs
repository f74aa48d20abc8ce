//! Files whose changes take effect while the gateway runs, and files that are read only at startup.
//!
//! Must not know: their content. Everything here reads files, which may be on a mount that hangs: call it only on threads
//! for blocking work.

use super::{InlineSecrets, read_secret_value};
use crate::admin::{Auth, AuthKeys, ClientCredentials};
use crate::config::{Config, CountersLocation, JwtKeys, StoreLocation};
use crate::counter::Counters;
use crate::fileio;
use crate::policy::keys::bearer::BearerToken;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

/// Applies changes, or says why that is not possible; then nothing changes.
type Look = Box<dyn Fn() -> Result<(), String> + Send>;

/// Files that are checked every few seconds and at each reload.
#[derive(Default)]
pub(super) struct WatchedFiles(Mutex<Vec<(&'static str, Look)>>);

/// A file that is read only at startup, and its content then.
pub(super) struct StartFile {
    key: &'static str,
    path: PathBuf,
    held: [u8; 32],
}

// === impl WatchedFiles ===

impl WatchedFiles {
    /// The files of keys that do not belong to listeners or upstreams.
    pub(super) fn new(
        config: &Config,
        inline: InlineSecrets<'_>,
        auth: &Arc<Auth>,
        counters: &Arc<Counters>,
    ) -> Self {
        let files = Self::default();
        let auth = Arc::clone(auth);
        match config.admin.jwt.keys.clone() {
            JwtKeys::JwksFile(path) => {
                let text =
                    move || fileio::read_text(&path).map_err(|error| format!("{}: {error}", path.display()));
                let put = move |text: &String| auth.replace_keys(AuthKeys::Jwks(text.clone()));
                files.add_changing("admin.jwt.jwks_file", text, move |text| {
                    put(text).map_err(|e| e.to_string())
                });
            }
            JwtKeys::SharedSecretFile(path) if inline.signing.is_none() => {
                let text = move || read_secret_value(&path).map_err(|error| error.to_string());
                let put = move |text: &Zeroizing<String>| {
                    auth.replace_keys(AuthKeys::Hs256(Zeroizing::new(text.as_bytes().to_vec())))
                };
                let key = "admin.jwt.hs256_secret_file";
                files.add_changing(key, text, move |text| put(text).map_err(|error| error.to_string()));
            }
            JwtKeys::SharedSecretFile(_) | JwtKeys::JwksUrl(_) => {}
        }
        if let CountersLocation::Redis(url) = &config.counters.location {
            let (url, config, counters) = (url.clone(), config.counters.clone(), Arc::clone(counters));
            let place = move || super::counters::place(&config, &url).map_err(|error| error.to_string());
            files.add_changing("counters", place, move |place| {
                counters.set_place(place.clone());
                Ok(())
            });
        }
        files
    }

    /// The secret of a client of an identity provider in the file at `path`, which `key` names.
    pub(super) fn add_client_secret(
        &self,
        key: &'static str,
        path: &Path,
        credentials: &Arc<ClientCredentials>,
    ) {
        let (path, credentials) = (path.to_owned(), Arc::clone(credentials));
        let text = move || read_secret_value(&path).map_err(|error| error.to_string());
        self.add_changing(key, text, move |text| {
            credentials.replace(text);
            Ok(())
        });
    }

    /// The token in the file at `path`, which `key` names.
    pub(super) fn add_bearer_token(&self, key: &'static str, path: &Path, token: &Arc<BearerToken>) {
        let (path, token) = (path.to_owned(), Arc::clone(token));
        let text = move || read_secret_value(&path).map_err(|error| error.to_string());
        self.add_changing(key, text, move |text| {
            token.replace(text);
            Ok(())
        });
    }

    /// Adds a check for the file or files of `key`.
    pub(super) fn add(&self, key: &'static str, look: impl Fn() -> Result<(), String> + Send + 'static) {
        self.all().push((key, Box::new(look)));
    }

    /// Adds files whose new content is applied by `put` when `read` finds a change. The current content is in force
    /// already.
    fn add_changing<T: PartialEq + Send + 'static>(
        &self,
        key: &'static str,
        read: impl Fn() -> Result<T, String> + Send + 'static,
        put: impl Fn(&T) -> Result<(), String> + Send + 'static,
    ) {
        let in_force = Mutex::new(read().ok());
        self.add(key, move || {
            let found = Some(read()?);
            // The value is valid whatever happened to the thread that held the lock.
            let mut in_force = in_force.lock().unwrap_or_else(PoisonError::into_inner);
            if *in_force == found {
                return Ok(());
            }
            if let Some(found) = &found {
                put(found)?;
                tracing::info!(key, "changed file reloaded");
            }
            *in_force = found;
            Ok(())
        });
    }

    /// Applies changes. Returns what is not possible, each as `key: why`.
    pub(super) fn look(&self) -> Vec<String> {
        let all = self.all();
        all.iter().filter_map(|(key, look)| look().err().map(|why| format!("{key}: {why}"))).collect()
    }

    fn all(&self) -> std::sync::MutexGuard<'_, Vec<(&'static str, Look)>> {
        // The list is valid whatever happened to the thread that held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl StartFile ===

impl StartFile {
    /// All files that the config names and that are read only at startup. Those that cannot be read are left out.
    pub(super) fn all(config: &Config, inline: InlineSecrets<'_>) -> Vec<Self> {
        let mut named: Vec<(&'static str, Option<&Path>)> = Vec::new();
        if inline.peppers.is_none() {
            named.push(("secrets.pepper_file", Some(&config.secrets.pepper_file)));
        }
        if inline.encryption_keys.is_none() {
            named.push(("secrets.encryption_key_file", config.secrets.encryption_key_file.as_deref()));
        }
        if inline.telemetry_headers.is_none() {
            named.push(("telemetry.headers_file", config.telemetry.headers_file.as_deref()));
        }
        named.push(("telemetry.ca_file", config.telemetry.ca_file.as_deref()));
        named.push(("admin.jwt.jwks_ca_file", config.admin.jwt.jwks_ca_file.as_deref()));
        named.push(("admin.introspection.ca_file", config.admin.introspection.ca_file.as_deref()));
        named.push(("admin.oidc.ca_file", config.admin.oidc.ca_file.as_deref()));
        if let StoreLocation::Postgres(url) = &config.store.location {
            named.push(("store.url", url.root_certificate.as_deref()));
        }
        let files = named.into_iter().filter_map(|(key, path)| Some((key, path?)));
        files.filter_map(|(key, path)| Some(Self { key, path: path.to_owned(), held: held(path)? })).collect()
    }

    /// A message if its content has changed.
    pub(super) fn change(&self) -> Option<String> {
        let Self { key, path, held: before } = self;
        let has_changed = held(path)? != *before;
        has_changed.then(|| format!("{key}: {} has changed, and that takes a restart", path.display()))
    }
}

fn held(path: &Path) -> Option<[u8; 32]> {
    fileio::read(path).ok().map(|bytes| Sha256::digest(Zeroizing::new(bytes)).into())
}
