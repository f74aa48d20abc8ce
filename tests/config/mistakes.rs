//! Every error is reported with its position and the allowed values, and without the given value.

use super::{env, header_and_leaf, parse, told};
use keygate::config::{Config, known_keys};

/// Most of a valid route.
const ROUTED: &str =
    "[[upstreams]]\nname = \"app\"\nservers = [\"h:1\"]\n[[routes]]\npath = \"/\"\nupstream = \"app\"\n";

/// The config text, and all errors that it gives.
const MISTAKES: &[(&str, &str)] = &[
    // Types and ranges.
    ("proxy.threads = -1", "1:17 proxy.threads: must be a whole number from 0 to 1024"),
    ("proxy.threads = 1.5", "1:17 proxy.threads: must be a whole number from 0 to 1024"),
    (
        "proxy.threads = 9_999_999_999_999_999_999_999",
        "1:17 proxy.threads: must be a whole number from 0 to 1024",
    ),
    ("proxy.max_header_fields = 0", "1:27 proxy.max_header_fields: must be a whole number from 1 to 250"),
    ("store.readers = 65", "1:17 store.readers: must be a whole number from 1 to 64"),
    ("usage.batch_records = 0", "1:23 usage.batch_records: must be a whole number from 1 to 100000"),
    ("proxy.trust_request_id = \"yes\"", "1:26 proxy.trust_request_id: must be true or false"),
    ("log.access = 1", "1:14 log.access: must be true or false"),
    (
        "proxy.header_timeout = 10",
        "1:24 proxy.header_timeout: must be a duration from 100ms to 600s, such as \"250ms\", \"10s\", \"5m\", \"1h\" or \"7d\"",
    ),
    (
        "usage.batch_delay = \"1 s\"",
        "1:21 usage.batch_delay: must be a duration from 1ms to 10s, such as \"250ms\", \"10s\", \"5m\", \"1h\" or \"7d\"",
    ),
    (
        "keyring.max_stale = \"8d\"",
        "1:21 keyring.max_stale: must be a duration from 1s to 7d, such as \"250ms\", \"10s\", \"5m\", \"1h\" or \"7d\"",
    ),
    (
        "store.busy_timeout = \"99999999999999999999d\"",
        "1:22 store.busy_timeout: must be a duration from 0ms to 60s, such as \"250ms\", \"10s\", \"5m\", \"1h\" or \"7d\"",
    ),
    (
        "admin.max_body_bytes = \"1MB\"",
        "1:24 admin.max_body_bytes: must be a number of bytes from 1KiB to 64MiB, plain or with a unit, such as \"32KiB\", \"1MiB\" or \"2GiB\"",
    ),
    (
        "proxy.max_body_bytes = \"99999999TiB\"",
        "1:24 proxy.max_body_bytes: must be a number of bytes from 0B to 1TiB, plain or with a unit, such as \"32KiB\", \"1MiB\" or \"2GiB\"",
    ),
    (
        "admin.listen = \"localhost:8081\"",
        "1:16 admin.listen: must be IP:port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"",
    ),
    (
        "proxy.listen = [\"127.0.0.1:1\", \"8080\"]",
        "1:32 proxy.listen[1]: must be IP:port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"",
    ),
    (
        "proxy.listen = \"127.0.0.1:1\"",
        "1:16 proxy.listen: must be a list, each item IP:port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"",
    ),
    (
        "proxy.listen = []",
        "1:16 proxy.listen: must not be empty unless proxy.listen_tls, proxy.listen_h2c or decide.listen has an address",
    ),
    (
        "decide.listen = [\"127.0.0.1:1\", \"0.0.0.0:2\"]",
        "1:33 decide.listen[1]: needs decide.token_file, because it is not a loopback address",
    ),
    (
        "decide.listen = [\"127.0.0.1:1\"]\n[[upstreams]]\nname = \"app\"\nservers = [\"h:1\"]\n[[routes]]\npath = \"/\"\nupstream = \"app\"\nname = \"verify\"",
        "8:8 routes[0].name: must not be \"verify\" while decide.listen has an address: calls of applications have that name",
    ),
    ("proxy.redirect_to_https = true", "1:27 proxy.redirect_to_https: needs proxy.listen_tls"),
    (
        "proxy.health_path = \"/a/../b\"",
        "1:21 proxy.health_path: must be a path in its canonical form, such as \"/healthz\", or \"\" for none",
    ),
    ("proxy = 3", "1:9 proxy: must be a table"),
    ("[[proxy]]", "1:1 proxy: must be a table"),
    ("plans.gold = 1", "1:14 plans.gold: must be a table"),
    ("[routes]", "1:1 routes: must be a list of tables, each under [[routes]]"),
    ("upstreams = [1]", "1:14 upstreams[0]: must be a table"),
    // Prices.
    (
        "[[prices]]\nmodel = \"m\"\ninput = -0.5\noutput = 1",
        "3:9 prices[0].input: must be a price of a million tokens: a number from 0 to 1000000000, such as 2.5",
    ),
    (
        "[[prices]]\nmodel = \"m\"\ninput = 1\noutput = \"2\"",
        "4:10 prices[0].output: must be a price of a million tokens: a number from 0 to 1000000000, such as 2.5",
    ),
    (
        "[[prices]]\nmodel = \"m\"\ninput = nan\noutput = 1",
        "3:9 prices[0].input: must be a price of a million tokens: a number from 0 to 1000000000, such as 2.5",
    ),
    (
        "[[prices]]\nmodel = \"m\"\ninput = 1\noutput = 1\ncached = 1e10",
        "5:10 prices[0].cached: must be a price of a million tokens: a number from 0 to 1000000000, such as 2.5, or \"\" for none",
    ),
    (
        "[[prices]]\nmodel = \"m\"\ninput = 1",
        "1:1 prices[0].output: is missing; it must be a price of a million tokens: a number from 0 to 1000000000, such as 2.5",
    ),
    (
        "[[prices]]\nmodel = \"a*b\"\ninput = 1\noutput = 1",
        "2:9 prices[0].model: must be the name of a model, or its first characters and *, such as \"gpt-4o\" or \"gpt-4o*\", of 1 to 200 characters without spaces",
    ),
    (
        "[[prices]]\nmodel = \"m\"\ninput = 1\noutput = 1\n[[prices]]\nmodel = \"m\"\ninput = 1\noutput = 1",
        "6:9 prices[1].model: has a price already",
    ),
    (
        "[[prices]]\nmodel = \"m\"\ninput = 1\noutput = 1\ntiers = [{ above = 5 }, { above = 5 }]",
        "5:35 prices[0].tiers[1].above: must be more than in the tier before",
    ),
    // Words, names and texts.
    ("log.level = \"loud\"", "1:13 log.level: must be one of: error, warn, info, debug, trace"),
    ("log.format = \"xml\"", "1:14 log.format: must be one of: text, json"),
    ("usage.when_full = \"wait\"", "1:19 usage.when_full: must be one of: shed, refuse"),
    (
        "end_users.when_store_is_gone = \"allow\"",
        "1:32 end_users.when_store_is_gone: must be one of: refuse, admit",
    ),
    ("counters.on_failure = 1", "1:23 counters.on_failure: must be one of: share, deny, allow"),
    (
        "proxy.rate_limit_headers = [\"x\"]",
        "1:29 proxy.rate_limit_headers[0]: must be one of: x-ratelimit, ratelimit",
    ),
    (
        "admin.jwt.algorithms = [\"none\"]",
        "1:25 admin.jwt.algorithms[0]: must be one of: HS256, RS256, ES256, EdDSA",
    ),
    ("secrets.prefix = \"SK\"", "1:18 secrets.prefix: must be 1 to 16 characters of a-z 0-9 _"),
    ("secrets.pepper_file = \"\"", "1:23 secrets.pepper_file: must be a path of 1 to 4096 bytes"),
    (
        "node.name = \"a b\"",
        "1:13 node.name: must be 1 to 64 characters of A-Z a-z 0-9 . _ -, or \"\" for none",
    ),
    (
        "admin.jwt.claims.role = \"\"",
        "1:25 admin.jwt.claims.role: must be text of 1 to 255 characters, none of them a control character",
    ),
    (
        "proxy.end_user_header = \"x y\"",
        "1:25 proxy.end_user_header: must be the name of a header that is neither about framing or the connection nor Keygate's own (x-keygate-…)",
    ),
    (
        "proxy.secret_headers = [\"X_Keygate-Key\"]",
        "1:25 proxy.secret_headers[0]: must be the name of a header that is neither about framing or the connection nor Keygate's own (x-keygate-…)",
    ),
    (
        "proxy.secret_headers = [\"Host\"]",
        "1:25 proxy.secret_headers[0]: must be the name of a header that is neither about framing or the connection nor Keygate's own (x-keygate-…)",
    ),
    // Backends that this version does not have.
    (
        "store.url = \"postgres://u:hunter2@db\"",
        "1:13 store.url: must name a database, as in postgres://USER@HOST/DATABASE",
    ),
    (
        "store.url = \"postgres://u:hunter2@db/k?sslmode=on\"",
        "1:13 store.url: sslmode must be one of: disable, prefer, require, verify-ca, verify-full",
    ),
    (
        "store.url = \"sqlite://data/k.db\"",
        "1:13 store.url: must be sqlite:PATH, such as \"sqlite:data/keygate.db\", or postgres://USER:PASSWORD@HOST:PORT/DATABASE",
    ),
    (
        "store.url = \"sqlite::memory:\"",
        "1:13 store.url: must be sqlite:PATH, such as \"sqlite:data/keygate.db\", or postgres://USER:PASSWORD@HOST:PORT/DATABASE",
    ),
    (
        "counters.url = \"rediss://:hunter2@c/x\"",
        "1:16 counters.url: must be \"memory:\", or redis://[user:password@]host[:port][/database] (rediss:// with TLS), redis+sentinel://…host,host/master-name, or redis+cluster://…host,host",
    ),
    (
        "counters.url = \"disk:\"",
        "1:16 counters.url: must be \"memory:\", or redis://[user:password@]host[:port][/database] (rediss:// with TLS), redis+sentinel://…host,host/master-name, or redis+cluster://…host,host",
    ),
    ("proxy.listen_tls = [\"127.0.0.1:1\"]", "1:20 proxy.listen_tls: needs proxy.certificates"),
    (
        "proxy.client_certificates = \"required\"",
        "1:29 proxy.client_certificates: needs proxy.client_ca_file",
    ),
    ("proxy.proxy_protocol = true", "1:24 proxy.proxy_protocol: needs proxy.trusted_proxies"),
    (
        "proxy.listen_h2c = [\"0.0.0.0:8080\"]",
        "1:21 proxy.listen_h2c[0]: 0.0.0.0:8080 is taken by proxy.listen[0]",
    ),
    (
        "proxy.trusted_proxies = [\"10.0.0.0/33\"]",
        "1:26 proxy.trusted_proxies[0]: must be a network such as \"10.0.0.0/8\" or \"fd00::/8\", or one address",
    ),
    (
        "counters.url = \"redis://c\"\ncounters.tls_ca_file = \"ca.pem\"",
        "2:24 counters.tls_ca_file: needs a counters.url that begins with rediss",
    ),
    (
        "counters.url = \"rediss://c\"\ncounters.tls_key_file = \"k\"",
        "2:25 counters.tls_key_file: needs counters.tls_cert_file beside it",
    ),
    (
        "counters.url = \"rediss://c\"\ncounters.sentinel_password_file = \"p\"",
        "2:35 counters.sentinel_password_file: needs a counters.url of Sentinels, as in redis+sentinel://…",
    ),
    (
        "[[plans.a.limits]]\ncount = \"tokens\"\nper = \"second\"\nmax = 1",
        "3:7 plans.a.limits[0].per: second is for requests of a key or a workspace only",
    ),
    (
        "[[plans.a.limits]]\nof = \"end_user\"\ncount = \"requests\"\nper = \"hour\"\nmax = 1",
        "4:7 plans.a.limits[0].per: must be day, week, month or total for end users",
    ),
    // Plans.
    (
        "[plans.a]\napi_ops_rate_limit = 10_000_001",
        "2:22 plans.a.api_ops_rate_limit: must be a whole number from 1 to 10000000",
    ),
    (
        "[plans.a]\nend_user_quota = 9007199254740992",
        "2:18 plans.a.end_user_quota: must be a whole number from 0 to 9007199254740991",
    ),
    (
        "[plans.a]\nlimits = [{ count = \"requests\", per = \"second\", max = 10000001 }]",
        "2:55 plans.a.limits[0].max: must be at most 10000000 per second",
    ),
    (
        "[plans.a]\nlimits = [{ count = \"requests\", per = \"year\", max = 1 }]",
        "2:39 plans.a.limits[0].per: must be one of: second, minute, hour, day, week, month, total",
    ),
    (
        "[plans.a]\ncalendar = { zone = \"Shanghai\" }",
        "2:21 plans.a.calendar.zone: must be the name of a time zone, as in \"Asia/Shanghai\" or \"UTC\"",
    ),
    (
        "[plans.a]\ncalendar = { month_day = 32 }",
        "2:26 plans.a.calendar.month_day: must be a whole number from 1 to 31",
    ),
    (
        "[plans.a]\ncalendar = { week_day = \"Monday\" }",
        "2:25 plans.a.calendar.week_day: must be one of: monday, tuesday, wednesday, thursday, friday, saturday, sunday",
    ),
    (
        "[plans.a]\nlimits = [{ count = \"requests\", per = \"day\" }]",
        "2:11 plans.a.limits[0].max: is missing; it must be a whole number from 1 to 9007199254740991",
    ),
    (
        "[[plans.a.limits]]\ncount = \"requests\"\nper = \"day\"\nmax = 1\n[[plans.a.limits]]\ncount = \"requests\"\nper = \"day\"\nmax = 2",
        "5:1 plans.a.limits[1]: there is a limit of requests per day already",
    ),
    ("[plans]\na.limits = [{},{},{},{},{},{},{},{},{}]", "2:12 plans.a.limits: must be at most 8 tables"),
    ("[plans.\"a b\"]", "1:1 plans.a b: a plan id is 1 to 128 characters of A-Z a-z 0-9 . _ : @ -"),
    ("admin.default_plan = \"gold\"", "1:22 admin.default_plan: there is no plan \"gold\"; known: default"),
    // Settings that exclude each other.
    (
        "proxy.listen = [\"127.0.0.1:1\", \"127.0.0.1:1\"]",
        "1:32 proxy.listen[1]: 127.0.0.1:1 is taken by proxy.listen[0]",
    ),
    ("admin.listen = \"0.0.0.0:8080\"", "1:16 admin.listen: 0.0.0.0:8080 is taken by proxy.listen[0]"),
    (
        "proxy.secret_headers = [\"api-key\", \"API-Key\"]",
        "1:36 proxy.secret_headers[1]: api-key is there twice",
    ),
    (
        "proxy.end_user_header = \"X-API-Key\"",
        "1:25 proxy.end_user_header: must not be x-api-key, which carries the secret (proxy.secret_headers)",
    ),
    (
        "proxy.drain_timeout = \"1s\"\nproxy.drain_delay = \"2s\"",
        "2:21 proxy.drain_delay: must not be longer than proxy.drain_timeout, of which it is a part",
    ),
    (
        "keyring.max_stale = \"1s\"\nkeyring.poll_interval = \"2s\"",
        "2:25 keyring.poll_interval: must be shorter than keyring.max_stale",
    ),
    (
        "usage.journal_segment_bytes = \"64KiB\"\nusage.journal_max_bytes = \"1GiB\"",
        "2:27 usage.journal_max_bytes: must be at most 10000 segments of 65536 bytes (usage.journal_segment_bytes)",
    ),
    (
        "usage.journal_segment_bytes = \"1MiB\"\nusage.journal_max_bytes = \"3MiB\"",
        "2:27 usage.journal_max_bytes: must have room for 4 segments of 1048576 bytes (usage.journal_segment_bytes)",
    ),
    (
        "[admin.jwt]\njwks_file = \"j\"\njwks_url = \"https://h/j\"\nalgorithms = [\"ES256\"]",
        "3:12 admin.jwt.jwks_url: must be \"\" while admin.jwt.jwks_file is set; only one of them counts",
    ),
    (
        "admin.jwt.jwks_url = \"http://id.example/jwks\"",
        "1:22 admin.jwt.jwks_url: must be an https URL without a user or a fragment, such as \"https://id.example/jwks\"; http only to localhost, 127.0.0.1 or [::1], or \"\" for none",
    ),
    (
        "[admin.jwt]\njwks_url = \"http://[::1]:1/j\"\nalgorithms = [\"ES256\"]\njwks_ca_file = \"ca\"",
        "4:16 admin.jwt.jwks_ca_file: needs an admin.jwt.jwks_url that begins with https",
    ),
    (
        "admin.jwt.jwks_max_stale = \"10s\"",
        "1:28 admin.jwt.jwks_max_stale: must not be shorter than admin.jwt.jwks_refresh",
    ),
    (
        "[admin.introspection]\nurl = \"https://h\"\nclient_id = \"c\"",
        "3:13 admin.introspection.client_id: needs admin.introspection.client_secret_file",
    ),
    (
        "[admin.introspection]\nurl = \"https://h\"\nclient_secret_file = \"c\"",
        "3:22 admin.introspection.client_secret_file: needs admin.introspection.client_id",
    ),
    (
        "[admin.introspection]\nurl = \"http://localhost\"\nca_file = \"c\"",
        "3:11 admin.introspection.ca_file: needs an admin.introspection.url that begins with https",
    ),
    (
        "admin.introspection.claims.role = \"sub\"",
        "1:35 admin.introspection.claims.role: must not be the same claim as admin.introspection.claims.subject",
    ),
    (
        "[admin.oidc]\nissuer = \"https://id\"\npublic_url = \"https://k\"\ngroups = [\"g=platform\"]",
        "2:10 admin.oidc.issuer: needs admin.oidc.client_id",
    ),
    (
        "[admin.oidc]\nissuer = \"https://id\"\nclient_id = \"c\"\ngroups = [\"g=platform\"]",
        "2:10 admin.oidc.issuer: needs admin.oidc.public_url",
    ),
    (
        "[admin.oidc]\nissuer = \"https://id\"\nclient_id = \"c\"\npublic_url = \"https://k\"",
        "2:10 admin.oidc.issuer: needs admin.oidc.groups: without one, nobody can sign in",
    ),
    ("admin.oidc.client_secret_file = \"s\"", "1:33 admin.oidc.client_secret_file: needs admin.oidc.issuer"),
    ("admin.oidc.groups = [\"g=platform\"]", "1:21 admin.oidc.groups: needs admin.oidc.issuer"),
    (
        "admin.oidc.ca_file = \"ca\"",
        "1:22 admin.oidc.ca_file: needs an admin.oidc.issuer that begins with https",
    ),
    ("admin.oidc.scopes = [\"profile\"]", "1:21 admin.oidc.scopes: must contain \"openid\""),
    (
        "admin.oidc.issuer = \"http://id.example\"",
        "1:21 admin.oidc.issuer: must be an https URL without a user, a query or a fragment, such as \"https://id.example/realms/staff\"; http only to localhost, 127.0.0.1 or [::1], or \"\" for none",
    ),
    (
        "admin.oidc.public_url = \"https://k.example/console\"",
        "1:25 admin.oidc.public_url: must be an https URL without a path, such as \"https://keygate.example\"; http only to localhost, 127.0.0.1 or [::1], or \"\" for none",
    ),
    (
        "admin.oidc.groups = [\"g=admin\"]",
        "1:22 admin.oidc.groups[0]: must be \"GROUP=ROLE@WORKSPACE\" with a role of viewer, admin, such as \"shop-team=admin@shop\", or \"GROUP=platform\"",
    ),
    (
        "admin.oidc.groups = [\"g=platform@w\"]",
        "1:22 admin.oidc.groups[0]: must be \"GROUP=ROLE@WORKSPACE\" with a role of viewer, admin, such as \"shop-team=admin@shop\", or \"GROUP=platform\"",
    ),
    (
        "[admin.jwt]\njwks_file = \"j\"\nhs256_secret_file = \"s\"",
        "2:13 admin.jwt.jwks_file: must be \"\" while admin.jwt.hs256_secret_file is set; only one of them counts",
    ),
    (
        "admin.jwt.hs256_secret_file = \"\"",
        "1:31 admin.jwt.hs256_secret_file: must be set, unless admin.jwt.jwks_file or admin.jwt.jwks_url is",
    ),
    (
        "admin.jwt.algorithms = [\"EdDSA\"]",
        "1:25 admin.jwt.algorithms[0]: EdDSA needs admin.jwt.jwks_file or admin.jwt.jwks_url; allowed: HS256",
    ),
    (
        "admin.jwt.jwks_file = \"j\"\nadmin.jwt.algorithms = [\"ES256\", \"HS256\"]",
        "2:34 admin.jwt.algorithms[1]: HS256 does not go with admin.jwt.jwks_file; allowed: RS256, ES256, EdDSA",
    ),
    (
        "[admin.jwt]\nalgorithms = [\"HS256\", \"HS256\"]",
        "2:24 admin.jwt.algorithms[1]: HS256 is there twice",
    ),
    (
        "admin.jwt.claims.role = \"sub\"",
        "1:25 admin.jwt.claims.role: must not be the same claim as admin.jwt.claims.subject",
    ),
    (
        "secrets.pepper_file = \"data/admin.jwt.secret\"",
        "1:23 secrets.pepper_file: must be another file than admin.jwt.hs256_secret_file",
    ),
    // Upstreams.
    (
        "[[upstreams]]\nservers = [\"h:1\"]",
        "1:1 upstreams[0].name: is missing; it must be 1 to 64 characters of A-Z a-z 0-9 . _ -",
    ),
    (
        "[[upstreams]]\nname = \"a\"",
        "1:1 upstreams[0].servers: is missing; it must be a list, each item host:port, such as \"backend.internal:9000\" or \"[::1]:9000\", without a scheme or a path, and perhaps a weight from 1 to 100, as in \"h:9000 weight=3\"",
    ),
    (
        "[[upstreams]]\nname = \"a\"\nservers = []",
        "3:11 upstreams[0].servers: must be a list of 1 to 256 items",
    ),
    (
        "[[upstreams]]\nname = \"a\"\nservers = [\"h:1\", \"h:1\"]",
        "3:19 upstreams[0].servers[1]: h:1 is there twice",
    ),
    (
        "[[upstreams]]\nname = \"a\"\nservers = [\"h:1\"]\n[[upstreams]]\nname = \"a\"\nservers = [\"h:1\"]",
        "5:8 upstreams[1].name: upstreams[0] has the name \"a\" already; names must differ",
    ),
    // Syntax.
    ("[proxy", "1:7: not TOML: unclosed table, expected `]`"),
    ("node.name = \"a\"\nnode.name = \"b\"", "2:6: not TOML: duplicate key"),
];

#[test]
fn each_mistake_is_told_with_its_place_and_what_is_allowed() {
    for (text, expected) in MISTAKES {
        assert_eq!(told(parse(text)), [*expected], "{text}");
    }
}

#[test]
fn each_mistake_of_a_route_is_told() {
    let end_user = "must be \"header\" (that of [proxy]), \"header:NAME\", \"query:NAME\", \"body:FIELD\" with a field of a JSON body, a list of these with at most one body, or \"none\"";
    let resource = "must be \"path:NAME\" with the name of a path parameter, \"header:NAME\", \"any\" (bound keys may use the route) or \"none\", or \"\" for none";
    let path = "must be a path of 1 to 1024 visible ASCII characters that begins with \"/\", without ? or #";
    for (line, expected) in [
        ("resource = \"query:a\"", format!("7:12 routes[0].resource: {resource}")),
        ("resource = \"path:\"", format!("7:12 routes[0].resource: {resource}")),
        (
            "resource = \"header:Authorization\"",
            "7:12 routes[0].resource: must not be authorization, which carries the secret (proxy.secret_headers)".into(),
        ),
        (
            "secret_from = [\"basic\"]",
            "7:16 routes[0].secret_from[0]: must be \"header:NAME\" (header:authorization means Bearer), \"basic:user\", \"basic:password\", or \"subprotocol:PREFIX\" for an entry PREFIX.SECRET of Sec-WebSocket-Protocol".into(),
        ),
        (
            "secret_from = [\"basic:user\", \"basic:user\"]",
            "7:30 routes[0].secret_from[1]: is in the list twice".into(),
        ),
        (
            "secret_from = [\"header:x-own\"]\nresource = \"header:x-own\"",
            "8:12 routes[0].resource: must not be x-own, which carries the secret (secret_from)".into(),
        ),
        (
            "public = true\nresource = \"any\"",
            "8:12 routes[0].resource: must not be set on a route with public = true, which has no key".into(),
        ),
        (
            "public = true\nend_user = \"none\"",
            "8:12 routes[0].end_user: must not be set on a route with public = true, which has no key".into(),
        ),
        (
            "public = true\nscopes = []",
            "8:10 routes[0].scopes: must not be set on a route with public = true, which has no key".into(),
        ),
        ("end_user = \"\"", format!("7:12 routes[0].end_user: {end_user}")),
        (
            "forward_metadata = [\"a b\"]",
            "7:21 routes[0].forward_metadata[0]: must be the name of an entry of a key's metadata: 1 to 64 characters of A-Z a-z 0-9 . _ -".into(),
        ),
        (
            "forward_metadata = [\"a_b\", \"a-b\"]",
            "7:28 routes[0].forward_metadata[1]: has the same header as a_b: x-keygate-metadata-a-b".into(),
        ),
        (
            "public = true\nforward_metadata = [\"a\"]",
            "8:20 routes[0].forward_metadata: must not be set on a route with public = true, which has no key".into(),
        ),
        ("end_user = []", format!("7:12 routes[0].end_user: {end_user}")),
        ("end_user = [\"body:a\", \"body:b\"]", format!("7:12 routes[0].end_user: {end_user}")),
        ("end_user = [\"query:a\", \"query:a\"]", format!("7:12 routes[0].end_user: {end_user}")),
        ("end_user = [\"none\"]", format!("7:12 routes[0].end_user: {end_user}")),
        ("end_user = \"body:\"", format!("7:12 routes[0].end_user: {end_user}")),
        (
            "end_user = \"header:x-api-key\"",
            "7:12 routes[0].end_user: must not be x-api-key, which carries the secret (proxy.secret_headers)".into(),
        ),
        (
            "methods = [\"get\"]",
            "7:12 routes[0].methods[0]: must be an HTTP method in capitals, such as \"GET\"".into(),
        ),
        ("scopes = [\"orders:*\"]", "7:11 routes[0].scopes[0]: must be a scope: 1 to 64 characters of A-Z a-z 0-9 . _ : / -".into()),
        ("scopes = [\"a\", \"a\"]", "7:16 routes[0].scopes[1]: is in the list twice".into()),
        (
            "[[routes]]\nupstream = \"app\"",
            format!("7:1 routes[1].path: is missing; it {path}"),
        ),
        ("[[routes]]\nupstream = \"app\"\npath = \"v1\"", format!("9:8 routes[1].path: {path}")),
        (
            "[[routes]]\npath = \"/b\"\nupstream = \"ap\"",
            "9:12 routes[1].upstream: there is no upstream \"ap\"; known: app".into(),
        ),
        (
            "[[routes]]\npath = \"/\"\nupstream = \"app\"",
            "7:1 routes[1].name: routes[0] has the name \"/\" already; names must differ".into(),
        ),
    ] {
        assert_eq!(told(parse(&format!("{ROUTED}{line}\n"))), [expected], "{line}");
    }
    assert_eq!(
        told(parse("[[routes]]\npath = \"/\"\nupstream = \"a\"")),
        ["3:12 routes[0].upstream: there is no upstream \"a\"; none is defined under [[upstreams]]"]
    );
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let text = "
[proxy]
listen = [\"here\"]
threads = \"many\"
colour = 1

[admin]
listen = \"127.0.0.1:8080\"

[keyring]
poll_interval = \"1m\"
max_stale = \"10s\"

[[upstreams]]
name = \"app\"
servers = [\"http://h:1\"]
read_timeout = 5

[[routes]]
path = \"/a\"
upstream = \"ap\"
scopes = [\"app\", \"a pe\"]

[[routes]]
path = \"b\"
upstream = \"rag\"
";
    let lines =
        told(Config::parse(text, "k.toml", &env(&[("KEYGATE_LOG_LEVEL", "x"), ("KEYGATE_LOGS", "")]), "a b"));
    let places: Vec<&str> = lines.iter().filter_map(|line| line.split(": ").next()).collect();
    // The listeners are not compared: one of them is unreadable.
    assert_eq!(
        places,
        [
            "3:11 proxy.listen[0]",
            "4:11 proxy.threads",
            "5:1 proxy.colour",
            "11:17 keyring.poll_interval",
            "16:12 upstreams[0].servers[0]",
            "17:16 upstreams[0].read_timeout",
            "21:12 routes[0].upstream",
            "22:18 routes[0].scopes[1]",
            "25:8 routes[1].path",
            "26:12 routes[1].upstream",
            "KEYGATE_LOG_LEVEL",
            "KEYGATE_LOGS",
            "node.name",
        ],
        "{lines:#?}"
    );
}

#[test]
fn broken_syntax_hides_no_other_line_and_invents_no_mistake() {
    let text = "[proxy]\nthreads = \nmax_uri_bytes = []\n[[upstreams\nname = \"a\"\n[[routes]]\npath = \"/\"\nupstream = \"a\"\n";
    let lines = told(parse(text));
    let places: Vec<&str> = lines.iter().filter_map(|line| line.split(": ").next()).collect();
    // The table whose header is broken is lost, so nothing is said about the route that leads to it.
    assert_eq!(places, ["2:11", "3:17 proxy.max_uri_bytes", "4:12"], "{lines:#?}");
}

#[test]
fn a_name_cannot_forge_a_line() {
    for text in ["[plans.\"a\\nb\"]\n", "[proxy]\n\"a\\nb\" = 1\n", "\"a\\u001bb\" = 1\n"] {
        let lines = told(parse(text));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(!lines[0].contains(char::is_control), "{lines:?}");
    }
    let lines = told(Config::parse("", "", &env(&[("KEYGATE_A\nB", "")]), ""));
    assert_eq!(lines, ["KEYGATE_A\\nB: unknown variable; it overrides no key"]);
}

#[test]
fn a_file_of_mistakes_is_told_in_part() {
    let text = (0..5_000).map(|n| format!("k{n} = 1")).collect::<Vec<_>>().join("\n");
    let lines = told(parse(&text));
    assert_eq!(lines.len(), 1_001);
    assert_eq!(lines[1_000], " 4000 further mistakes are not shown");
}

#[test]
fn given_values_are_not_repeated() {
    for key in known_keys() {
        let (header, leaf) = header_and_leaf(&key);
        for value in ["\"hunter 2\\u0001\"", "[\"hunter 2\\u0001\"]"] {
            let lines = told(parse(&format!("{header}\n{leaf} = {value}\n")));
            assert!(lines.iter().all(|line| !line.contains("hunter")), "{} {lines:?}", key.path);
        }
        if let Some(variable) = &key.variable {
            let lines = told(Config::parse("", "k.toml", &env(&[(variable, "hunter 2\0")]), ""));
            assert_eq!(lines.len(), 1, "{variable} {lines:?}");
            assert!(lines[0].starts_with(variable.as_str()) && !lines[0].contains("hunter"), "{lines:?}");
        }
    }
}
