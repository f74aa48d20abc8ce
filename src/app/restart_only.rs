//! Config keys that need a restart: all but those of routes, upstreams, plans and prices.
//!
//! Each section is destructured, so that a new key does not compile before it is handled here.

use crate::config::{
    AcmeConfig, AdminConfig, Config, CountersConfig, DecideConfig, EndUsersConfig, IntrospectionConfig,
    JwtConfig, KeyringConfig, LogConfig, NodeConfig, OidcConfig, ProxyConfig, SecretsConfig, StoreConfig,
    TelemetryConfig, UsageConfig,
};

/// A message for each changed key that needs a restart.
pub(super) fn changed(old: &Config, new: &Config) -> Vec<String> {
    let mut all = Vec::new();
    macro_rules! sections {
        ($($path:literal $of:expr, $kind:ident: $($field:ident $(= $key:literal)?)* $(; $($inner:ident)+)?;;)*) => {$(
            let of: fn(&Config) -> &$kind = $of;
            let $kind { $($field: _,)* $($($inner: _,)+)? } = of(old);
            $(
                let key = [$($key,)? stringify!($field)][0];
                if of(old).$field != of(new).$field {
                    all.push(format!("{}.{key}: it has changed, and that takes a restart", $path));
                }
            )*
        )*};
    }
    sections! {
        "proxy" |c| &c.proxy, ProxyConfig:
            listen listen_tls listen_h2c certificates client_ca_file client_certificates trusted_proxies
            proxy_protocol max_http2_streams max_invalid_keys max_preflights max_public_requests revocation_check threads max_header_bytes
            max_header_fields max_uri_bytes max_body_bytes first_byte_timeout header_timeout idle_timeout
            body_timeout write_timeout min_body_rate max_connections max_connections_per_address
            max_requests_per_connection max_bytes_in_flight max_answers_drained answer_drain_timeout secret_headers end_user_header end_user_body_bytes
            trust_request_id rate_limit_headers health_path redirect_to_https errors drain_delay drain_idle drain_timeout upgrade_timeout;;
        "admin" |c| &c.admin, AdminConfig:
            listen certificates socket socket_mode threads max_body_bytes max_connections max_connections_per_address create_workspaces default_plan base_path error_text
            cors_origins cors_credentials metrics_token_file; jwt introspection oidc;;
        "decide" |c| &c.decide, DecideConfig: listen token_file hold_timeout max_holds;;
        "admin.jwt" |c| &c.admin.jwt, JwtConfig:
            keys = "hs256_secret_file or jwks_file or jwks_url" jwks_ca_file jwks_refresh jwks_retry jwks_max_stale algorithms issuer audience require roles default_role
            workspace_header_subjects leeway claims;;
        "admin.introspection" |c| &c.admin.introspection, IntrospectionConfig:
            url ca_file client_id client_secret_file require cache cache_entries timeout max_concurrent claims;;
        "admin.oidc" |c| &c.admin.oidc, OidcConfig:
            issuer ca_file client_id client_secret_file public_url scopes groups timeout claims;;
        "acme" |c| &c.acme, AcmeConfig: domains directory ca_file contact agree_to_terms folder;;
        "secrets" |c| &c.secrets, SecretsConfig: prefix pepper_file encryption_key_file;;
        "store" |c| &c.store, StoreConfig:
            location = "url" busy_timeout readers pool connect_timeout statement_timeout;;
        "counters" |c| &c.counters, CountersConfig:
            location = "url" on_failure share_unknown tls_ca_file tls_cert_file tls_key_file sentinel_password_file;;
        "keyring" |c| &c.keyring, KeyringConfig: max_stale poll_interval;;
        "usage" |c| &c.usage, UsageConfig:
            journal_dir journal_max_bytes journal_segment_bytes journal_sync_interval batch_records batch_delay
            when_full;;
        "end_users" |c| &c.end_users, EndUsersConfig: cache_entries when_store_is_gone unsettled_entries;;
        "log" |c| &c.log, LogConfig: level format access access_sample;;
        "telemetry" |c| &c.telemetry, TelemetryConfig:
            endpoint headers_file ca_file service_name attributes sample follow_parent queue_requests
            batch_requests batch_delay timeout;;
        "node" |c| &c.node, NodeConfig: name;;
    }
    let Config {
        proxy: _,
        admin: _,
        decide: _,
        acme: _,
        secrets: _,
        store: _,
        counters: _,
        keyring: _,
        usage: _,
        end_users: _,
        log: _,
        telemetry: _,
        node: _,
        // These can be reloaded.
        plans: _,
        upstreams: _,
        routes: _,
        prices: _,
    } = old;
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KnownKey, known_keys};

    /// Keys that others depend on.
    const BASES: [&str; 9] = [
        "[telemetry]\nendpoint = \"https://h:1\"\n",
        "[admin.jwt]\njwks_url = \"https://h/jwks\"\nalgorithms = [\"EdDSA\"]\n",
        "[admin.introspection]\nurl = \"https://h/i\"\nclient_id = \"i\"\nclient_secret_file = \"s\"\n",
        "[admin.oidc]\nissuer = \"https://h\"\nclient_id = \"i\"\npublic_url = \"https://p\"\ngroups = [\"g=platform\"]\n",
        "[admin.jwt]\njwks_file = \"j\"\nalgorithms = [\"EdDSA\"]\n",
        "[proxy]\ncertificates = [\"c\"]\nclient_ca_file = \"ca\"\ntrusted_proxies = [\"10.0.0.0/8\"]\n[plans.default]\n[plans.b]\n",
        "[proxy]\nlisten_tls = [\"127.0.0.1:1\"]\ncertificates = [\"c\"]\n[acme]\nagree_to_terms = true\n",
        "[counters]\nurl = \"redis+sentinel://h/m\"\n",
        "[counters]\nurl = \"rediss://h\"\ntls_cert_file = \"c\"\ntls_key_file = \"k\"\n",
    ];
    /// Values, of which at least one differs from the default of each key.
    const VALUES: [&str; 24] = [
        "7",
        "7s",
        "7h",
        "7ms",
        "77",
        "7777",
        "16KiB",
        "64MiB",
        "x-seven",
        "1MiB",
        "true",
        "false",
        "127.0.0.1:7",
        "10.7.0.0/16",
        "x",
        "b",
        "required",
        "refuse",
        "deny",
        "admit",
        "debug",
        "json",
        "sqlite:x",
        "redis://x",
    ];
    /// Keys that need other values than those.
    const MORE: [(&str, &str); 23] = [
        ("acme.directory", "https://h/directory"),
        ("acme.contact", "a@b"),
        ("proxy.rate_limit_headers", "ratelimit"),
        ("proxy.errors", "openai"),
        ("proxy.health_path", "/x"),
        ("admin.jwt.algorithms", "RS256,ES256"),
        ("telemetry.endpoint", "http://127.0.0.1:4318"),
        ("telemetry.attributes", "a=b"),
        ("admin.socket", "s"),
        ("admin.socket_mode", "0660"),
        ("admin.base_path", "/api"),
        ("admin.error_text", "message"),
        ("admin.cors_origins", "https://h"),
        ("admin.jwt.require", "a=b"),
        ("admin.jwt.jwks_url", "https://h/other"),
        ("admin.introspection.url", "http://localhost/i"),
        ("admin.introspection.require", "a=b"),
        ("admin.oidc.issuer", "https://other"),
        ("admin.oidc.public_url", "https://other"),
        ("admin.oidc.scopes", "openid,x"),
        ("admin.oidc.groups", "a=admin@b"),
        ("admin.jwt.roles", "a=admin"),
        ("admin.jwt.default_role", "viewer"),
    ];

    fn read(text: &str, key: Option<(&KnownKey, &str)>) -> Option<Config> {
        let set = key.map(|(key, value)| (key.variable.clone().unwrap_or_default(), value.to_owned()));
        Config::parse(text, "", set.as_slice(), "").ok()
    }

    /// The messages when this key has another value; none if no value is valid for it.
    fn told_of(key: &KnownKey) -> Vec<String> {
        let own = MORE.iter().filter(|(path, _)| *path == key.path).map(|(_, value)| *value);
        for value in own.chain(VALUES) {
            for text in BASES {
                let old = read(text, None).expect("a base is a config");
                let Some(new) = read(text, Some((key, value))) else { continue };
                if new != old {
                    return changed(&old, &new);
                }
            }
        }
        Vec::new()
    }

    #[test]
    fn every_key_comes_into_force_or_is_said_to_take_a_restart() {
        let (mut fixed, mut reloaded) = (0, 0);
        for key in known_keys() {
            if ["plans.", "upstreams[]", "routes[]", "prices[]"]
                .iter()
                .any(|front| key.path.starts_with(front))
            {
                reloaded += 1;
                continue;
            }
            let told = told_of(&key);
            let [line] = told.as_slice() else { panic!("{}: {told:?}", key.path) };
            let (named, _) = line.split_once(':').expect("a key and what is to be said of it");
            let covers = |one: &str| key.path == one || key.path.starts_with(&format!("{one}."));
            let (section, last) = named.rsplit_once('.').expect("a section");
            let is_named = last.split(" or ").any(|key| covers(&format!("{section}.{key}")));
            assert!(is_named, "{}: {line}", key.path);
            fixed += 1;
        }
        assert!(fixed > 60 && reloaded > 40, "{fixed} {reloaded}");
    }

    #[test]
    fn unchanged_settings_are_not_reported() {
        let more = "[plans.gold]\n[[upstreams]]\nname = \"a\"\nservers = [\"h:1\"]\n[[routes]]\npath = \"/\"\nupstream = \"a\"\n";
        let old = read("", None).expect("a config");
        assert_eq!(changed(&old, &old), Vec::<String>::new());
        assert_eq!(changed(&old, &read(more, None).expect("a config")), Vec::<String>::new());
        let two = read("proxy.threads = 3\nproxy.max_header_fields = 7\n", None).expect("a config");
        let told = changed(&old, &two);
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0], "proxy.threads: it has changed, and that takes a restart");
    }
}
