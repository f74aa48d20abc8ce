//! Parses `postgres://user:password@host:port/database?sslmode=…`, and keeps the password out of logs.
//!
//! Must not know: the driver. An error never repeats the URL.

use crate::model::key::words;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use zeroize::Zeroizing;

/// The address of a PostgreSQL database, with credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// Servers to try in order until one accepts writes: names, addresses or folders of Unix sockets.
    pub hosts: Vec<(String, u16)>,
    /// The user.
    pub user: String,
    /// The database.
    pub database: String,
    /// The TLS mode.
    pub ssl_mode: SslMode,
    /// A PEM file with root certificates; none: the system's roots.
    pub root_certificate: Option<PathBuf>,
    password: Option<Zeroizing<String>>,
}

words!(
    /// The TLS mode, as libpq names it.
    SslMode {
        /// No TLS.
        Disable = "disable",
        /// TLS if the server supports it; any certificate.
        Prefer = "prefer",
        /// TLS required; any certificate, unless a root is given.
        Require = "require",
        /// TLS required, with a certificate signed by a known root.
        VerifyCa = "verify-ca",
        /// TLS required, with such a certificate for the server's name.
        VerifyFull = "verify-full",
    }
);

/// Why a URL cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPostgresUrl(pub(crate) &'static str);

/// PostgreSQL's default port.
const PORT: u16 = 5432;

// === impl PostgresUrl ===

impl PostgresUrl {
    /// The password, if the URL contains one. For the driver only.
    pub fn password(&self) -> Option<&str> {
        self.password.as_ref().map(|text| text.as_str())
    }
}

impl FromStr for PostgresUrl {
    type Err = BadPostgresUrl;

    fn from_str(url: &str) -> Result<Self, BadPostgresUrl> {
        let after = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let after = after.ok_or(BadPostgresUrl("must begin with postgres://"))?;
        let (place, query) = after.split_once('?').unwrap_or((after, ""));
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        let (credentials, servers) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match credentials.split_once(':') {
            Some((user, password)) => (user, Some(Zeroizing::new(decoded(password)?))),
            None => (credentials, None),
        };
        let mut parsed = Self {
            hosts: hosts(servers)?,
            user: decoded(user)?,
            database: decoded(database)?,
            ssl_mode: SslMode::Prefer,
            root_certificate: None,
            password,
        };
        if parsed.user.is_empty() {
            return Err(BadPostgresUrl("must name a user, as in postgres://USER@HOST/DATABASE"));
        }
        if parsed.database.is_empty() {
            return Err(BadPostgresUrl("must name a database, as in postgres://USER@HOST/DATABASE"));
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            parsed.set(pair)?;
        }
        Ok(parsed)
    }
}

impl PostgresUrl {
    fn set(&mut self, pair: &str) -> Result<(), BadPostgresUrl> {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value)?;
        match name {
            "sslmode" => {
                let one_of = "sslmode must be one of: disable, prefer, require, verify-ca, verify-full";
                self.ssl_mode = value.parse().map_err(|_| BadPostgresUrl(one_of))?;
            }
            "sslrootcert" if !value.is_empty() => self.root_certificate = Some(value.into()),
            "sslrootcert" => return Err(BadPostgresUrl("sslrootcert must be the path of a PEM file")),
            _ => return Err(BadPostgresUrl("after the ? only sslmode and sslrootcert are known")),
        }
        Ok(())
    }
}

/// Without the password.
impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresUrl")
            .field("hosts", &self.hosts)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("ssl_mode", &self.ssl_mode)
            .field("root_certificate", &self.root_certificate)
            .finish_non_exhaustive()
    }
}

fn hosts(servers: &str) -> Result<Vec<(String, u16)>, BadPostgresUrl> {
    let mut hosts = Vec::new();
    for server in servers.split(',') {
        let (host, port) = match server.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, "")) => (address, None),
            Some((address, rest)) => (address, Some(rest.strip_prefix(':').unwrap_or(rest))),
            None => server.split_once(':').map_or((server, None), |(host, port)| (host, Some(port))),
        };
        let host = decoded(host)?;
        if host.is_empty() {
            return Err(BadPostgresUrl("must name a host, as in postgres://USER@HOST/DATABASE"));
        }
        let bad_port = BadPostgresUrl("a port must be a number from 1 to 65535");
        let port = port.map_or(Ok(PORT), |text| text.parse().map_err(|_| bad_port))?;
        if port == 0 {
            return Err(bad_port);
        }
        hosts.push((host, port));
    }
    Ok(hosts)
}

/// Decodes `%41` to `A`.
fn decoded(text: &str) -> Result<String, BadPostgresUrl> {
    const BAD: BadPostgresUrl =
        BadPostgresUrl("after a % two hexadecimal digits must follow; a % itself is %25");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next().ok_or(BAD)?, rest.next().ok_or(BAD)?];
        let mut one = [0];
        hex::decode_to_slice(digits, &mut one).map_err(|_| BAD)?;
        bytes.push(one[0]);
    }
    let decoded = String::from_utf8(bytes).map_err(|_| BadPostgresUrl("must be UTF-8"))?;
    if decoded.contains('\0') {
        return Err(BadPostgresUrl("must not contain the character NUL"));
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_read() {
        let url = "postgres://k%40g:p%2Fw%3A1@db1:5433,[::1]:5434,%2Frun%2Fpg/keys?sslmode=verify-full&sslrootcert=/ca.pem";
        let url: PostgresUrl = url.parse().unwrap();
        let hosts =
            [("db1", 5433), ("::1", 5434), ("/run/pg", 5432)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(url.hosts, hosts);
        assert_eq!(
            (url.user.as_str(), url.password(), url.database.as_str()),
            ("k@g", Some("p/w:1"), "keys")
        );
        assert_eq!((url.ssl_mode, url.root_certificate), (SslMode::VerifyFull, Some("/ca.pem".into())));
    }

    #[test]
    fn tls_is_preferred_where_nothing_is_configured() {
        let url: PostgresUrl = "postgresql://k@h/d".parse().unwrap();
        assert_eq!(
            (url.ssl_mode, url.password(), url.hosts.as_slice()),
            (SslMode::Prefer, None, [("h".to_owned(), 5432)].as_slice())
        );
    }

    #[test]
    fn errors_do_not_repeat_the_value() {
        for (url, why) in [
            ("mysql://k:hunter2@h/d", "must begin with postgres://"),
            ("postgres://h/d", "must name a user"),
            ("postgres://k:hunter2@h", "must name a database"),
            ("postgres://k:hunter2@h/", "must name a database"),
            ("postgres://k:hunter2@/d", "must name a host"),
            ("postgres://k:hunter2@h:0/d", "a port must be"),
            ("postgres://k:hunter2@h:x/d", "a port must be"),
            ("postgres://k:hunter2%@h/d", "after a % two"),
            ("postgres://k:hunter2%00@h/d", "must not contain the character NUL"),
            ("postgres://k:hunter2@h/d?sslmode=maybe", "sslmode must be one of"),
            ("postgres://k:hunter2@h/d?sslrootcert=", "sslrootcert must be"),
            ("postgres://k:hunter2@h/d?password=hunter2", "after the ? only"),
        ] {
            let error = url.parse::<PostgresUrl>().unwrap_err().to_string();
            assert!(error.starts_with(why) && !error.contains("hunter2"), "{url}: {error}");
        }
    }

    #[test]
    fn the_password_is_not_shown() {
        let url: PostgresUrl = "postgres://k:hunter2@h/d".parse().unwrap();
        assert!(!format!("{url:?}").contains("hunter2"));
    }
}
