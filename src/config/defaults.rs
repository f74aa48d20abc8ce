//! Default values. `conf/keygate.toml` documents the same values and is tested against these.

use super::acme::AcmeConfig;
use super::introspection::IntrospectionConfig;
use super::oidc::OidcConfig;
use super::telemetry::TelemetryConfig;
use super::types::{
    AdminConfig, AdminSocket, AdminSocketMode, ClaimNames, ClientCertificates, Config, CountersConfig,
    CountersLocation, DecideConfig, EndUsersConfig, HeaderFamily, JwtAlgorithm, JwtConfig, JwtKeys,
    KeyringConfig, LogConfig, LogFormat, LogLevel, NodeConfig, PlanConfig, ProxyConfig, SecretsConfig,
    StoreConfig, StoreLocation, UsageConfig,
};
use crate::model::calendar::Calendar;
use crate::model::fault::{ErrorForm, ErrorText};
use crate::model::id::PlanId;
use crate::model::key::{DAILY_DEFAULT, DELETED_KEYS_DAYS_DEFAULT, Plan};
use crate::model::outage::{OnFailure, WhenFull, WhenStoreUnavailable};
use http::HeaderName;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

impl Default for Config {
    fn default() -> Self {
        Self {
            proxy: ProxyConfig::default(),
            acme: AcmeConfig::default(),
            admin: AdminConfig::default(),
            decide: DecideConfig::default(),
            secrets: SecretsConfig::default(),
            store: StoreConfig::default(),
            counters: CountersConfig::default(),
            keyring: KeyringConfig::default(),
            usage: UsageConfig::default(),
            end_users: EndUsersConfig {
                cache_entries: 200_000,
                when_store_is_gone: WhenStoreUnavailable::Refuse,
                unsettled_entries: 10_000,
            },
            log: LogConfig {
                level: LogLevel::Info,
                format: LogFormat::Text,
                access: false,
                access_sample: 1,
            },
            telemetry: TelemetryConfig::default(),
            node: NodeConfig { name: "keygate".into() },
            plans: vec![PlanConfig::new(default_plan_id())],
            upstreams: Vec::new(),
            routes: Vec::new(),
            prices: Vec::new(),
        }
    }
}

impl Default for CountersConfig {
    fn default() -> Self {
        Self {
            location: CountersLocation::Memory,
            on_failure: OnFailure::Share,
            share_unknown: false,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            sentinel_password_file: None,
        }
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))],
            listen_tls: Vec::new(),
            listen_h2c: Vec::new(),
            certificates: Vec::new(),
            client_ca_file: None,
            client_certificates: ClientCertificates::Optional,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            max_http2_streams: 100,
            max_invalid_keys: 100,
            max_preflights: 100,
            max_public_requests: 100,
            revocation_check: Duration::from_millis(500),
            threads: 0,
            max_header_bytes: 32 << 10,
            max_header_fields: 100,
            max_uri_bytes: 8 << 10,
            max_body_bytes: 100 << 20,
            first_byte_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(1),
            body_timeout: Duration::from_mins(1),
            write_timeout: Duration::from_secs(30),
            min_body_rate: 240,
            max_connections: 20_000,
            max_connections_per_address: 4_096,
            max_requests_per_connection: 100_000,
            max_bytes_in_flight: 512 << 20,
            max_answers_drained: 256,
            answer_drain_timeout: Duration::from_mins(2),
            secret_headers: vec![http::header::AUTHORIZATION, HeaderName::from_static("x-api-key")],
            end_user_header: HeaderName::from_static("x-end-user-id"),
            end_user_body_bytes: 1 << 20,
            trust_request_id: false,
            rate_limit_headers: HeaderFamily::ALL.to_vec(),
            health_path: None,
            redirect_to_https: false,
            errors: ErrorForm::Envelope,
            drain_delay: Duration::ZERO,
            drain_idle: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
            upgrade_timeout: Duration::from_mins(1),
        }
    }
}

impl Default for DecideConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            token_file: None,
            hold_timeout: Duration::from_mins(10),
            max_holds: 10_000,
        }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
            certificates: Vec::new(),
            socket: Some(AdminSocket::BesideStore),
            socket_mode: AdminSocketMode::Owner,
            threads: 1,
            max_body_bytes: 1 << 20,
            max_connections: 256,
            max_connections_per_address: 128,
            create_workspaces: true,
            default_plan: default_plan_id(),
            base_path: String::new(),
            error_text: ErrorText::Name,
            cors_origins: Vec::new(),
            cors_credentials: false,
            metrics_token_file: None,
            jwt: JwtConfig::default(),
            introspection: IntrospectionConfig::default(),
            oidc: OidcConfig::default(),
        }
    }
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            keys: JwtKeys::SharedSecretFile("data/admin.jwt.secret".into()),
            jwks_ca_file: None,
            jwks_refresh: Duration::from_mins(10),
            jwks_retry: Duration::from_secs(10),
            jwks_max_stale: Duration::from_hours(24),
            algorithms: vec![JwtAlgorithm::Hs256],
            issuer: Some("keygate".into()),
            audience: Some("keygate-admin".into()),
            require: Vec::new(),
            roles: Vec::new(),
            default_role: None,
            workspace_header_subjects: Vec::new(),
            leeway: Duration::from_secs(30),
            claims: ClaimNames::default(),
        }
    }
}

impl Default for ClaimNames {
    fn default() -> Self {
        Self { subject: "sub".into(), workspace: "workspace_id".into(), role: "role".into() }
    }
}

impl Default for SecretsConfig {
    fn default() -> Self {
        Self { prefix: "sk".into(), pepper_file: "data/pepper".into(), encryption_key_file: None }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            location: StoreLocation::Sqlite("data/keygate.db".into()),
            busy_timeout: Duration::from_secs(5),
            readers: 2,
            pool: 8,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for KeyringConfig {
    fn default() -> Self {
        Self { max_stale: Duration::from_hours(1), poll_interval: Duration::from_secs(1) }
    }
}

impl Default for UsageConfig {
    fn default() -> Self {
        Self {
            journal_dir: "data/journal".into(),
            journal_max_bytes: 1 << 30,
            journal_segment_bytes: 4 << 20,
            journal_sync_interval: Duration::from_millis(10),
            batch_records: 10_000,
            batch_delay: Duration::from_millis(50),
            when_full: WhenFull::Shed,
        }
    }
}

#[expect(clippy::expect_used, reason = "the literal is an id")]
fn default_plan_id() -> PlanId {
    "default".parse().expect("the literal is an id")
}

// === impl PlanConfig ===

impl PlanConfig {
    /// The defaults of a plan.
    pub fn new(id: PlanId) -> Self {
        let plan = Plan {
            id,
            api_ops_rate_limit: 1_000,
            end_user_quota: 10_000,
            default_daily_request_limit: Some(DAILY_DEFAULT),
            limits: Box::default(),
            calendar: Calendar::UTC,
        };
        Self {
            plan,
            description: String::new(),
            usage_retention_days: None,
            deleted_keys_days: DELETED_KEYS_DAYS_DEFAULT,
            managed: false,
        }
    }
}
