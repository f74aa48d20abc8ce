//! The configuration: the documentation matches the code, and every error is reported with its position.

use keygate::config::{
    Config, ConfigError, CountersLocation, HeaderFamily, JwtAlgorithm, JwtKeys, KnownKey, LogFormat,
    LogLevel, StoreLocation, example_config, known_keys,
};
use keygate::model::outage::{OnFailure, WhenFull, WhenStoreUnavailable};
use keygate::policy::routing::route::{EndUserFrom, ResourceFrom};
use keygate::store::postgres::SslMode;
use std::path::Path;
use std::time::Duration;

#[path = "config/forwarding.rs"]
mod forwarding;
#[path = "config/metering.rs"]
mod metering;
#[path = "config/mistakes.rs"]
mod mistakes;
#[path = "config/upstreams.rs"]
mod upstreams;

type Env = Vec<(String, String)>;

fn env(pairs: &[(&str, &str)]) -> Env {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "k.toml", &[], "")
}

/// The reported lines, without the file's name.
fn told(outcome: Result<Config, ConfigError>) -> Vec<String> {
    let Err(error) = outcome else { return Vec::new() };
    error.to_string().lines().map(|line| line.strip_prefix("k.toml:").unwrap_or(line).to_owned()).collect()
}

// === the documented file ===

#[test]
fn the_documented_file_is_the_default_and_an_example() {
    let mut config = parse(example_config()).expect("the documented file loads");
    let upstream = config.upstreams.pop().expect("it shows an upstream");
    let route = config.routes.pop().expect("it shows a route");
    let price = config.prices.pop().expect("it shows a price");
    assert_eq!(config, Config::default());
    assert_eq!(parse("").expect("an empty file loads"), Config::default());

    assert_eq!((upstream.name.as_str(), upstream.servers[0].to_string().as_str()), ("app", "127.0.0.1:9001"));
    assert_eq!((route.name.as_str(), route.path.as_str(), route.upstream), ("app", "/v1/app/{rest*}", 0));
    assert_eq!((route.scopes, route.resource), ("app".parse().expect("scopes"), None));
    assert_eq!(route.end_user, [EndUserFrom::Header(config.proxy.end_user_header)]);
    assert!(route.methods.is_empty() && !route.keep_credential);
    assert_eq!((&*price.model, price.rates.cached, price.tiers.len()), ("gpt-4o*", 2_500_000_000, 1));
    assert_eq!((price.tiers[0].above, price.tiers[0].rates), (200_000, price.rates));
}

#[test]
fn the_documented_file_shows_every_key_with_its_default() {
    let file: toml::Table = example_config().parse().expect("the documented file is TOML");
    // These two show more than their default, which is "none".
    let richer = ["routes[].name", "routes[].scopes"];
    for key in known_keys() {
        if let Some(list) =
            ["limits", "credentials"].iter().find(|list| key.path.contains(&format!("{list}[]")))
        {
            let line = example_config().lines().find(|line| line.starts_with(&format!("# {list} = ")));
            let leaf = key.path.rsplit('.').next().unwrap_or_default();
            assert!(line.is_some_and(|line| line.contains(&format!("{leaf} = "))), "{}", key.path);
            continue;
        }
        let value = documented(&file, &key.path).unwrap_or_else(|| panic!("{} is not documented", key.path));
        if !key.default.is_empty() && !richer.contains(&key.path.as_str()) {
            let default: toml::Table = format!("x = {}", key.default).parse().expect("a default is TOML");
            assert_eq!(Some(value), default.get("x"), "{}", key.path);
        }
    }
    assert!(known_keys().len() >= 60);
}

fn documented<'f>(file: &'f toml::Table, path: &str) -> Option<&'f toml::Value> {
    let (parents, leaf) = path.rsplit_once('.')?;
    let mut table = file;
    for part in parents.split('.') {
        let part = if part == "NAME" { "default" } else { part };
        let value = table.get(part.trim_end_matches("[]"))?;
        table = value.as_table().or_else(|| value.as_array()?.first()?.as_table())?;
    }
    table.get(leaf)
}

/// The header of the table that holds `key`, and the key's own name.
fn header_and_leaf(key: &KnownKey) -> (String, &str) {
    let (table, leaf) = key.path.rsplit_once('.').unwrap_or_default();
    let header = match table.split_once("[]") {
        Some((list, "")) => format!("[[{list}]]"),
        // A table or list inside one of a list: the list's own header goes on a line of its own.
        Some((list, inner)) if inner.ends_with("[]") => {
            format!("[[{list}]]\n[[{list}{}]]", inner.trim_end_matches("[]"))
        }
        Some((list, inner)) => format!("[[{list}]]\n[{list}{inner}]"),
        None => format!("[{table}]"),
    };
    (header, leaf)
}

#[test]
fn a_misspelt_key_is_told_in_every_section() {
    for key in known_keys() {
        let (header, leaf) = header_and_leaf(&key);
        let path = key.path.replace("[]", "[0]");
        let line = header.lines().count() + 1;
        let expected = format!("{line}:1 {path}x: unknown key; did you mean {leaf:?}?");
        let lines = told(parse(&format!("{header}\n{leaf}x = 1\n")));
        assert!(lines.contains(&expected), "{expected}\n{lines:#?}");
    }
    let lines = told(parse("[prox]\n[colour]\n"));
    assert_eq!(lines[0], "1:2 prox: unknown key; did you mean \"proxy\"?");
    assert!(lines[1].starts_with("2:2 colour: unknown key; known here: proxy, admin, "), "{lines:?}");
}

#[test]
fn a_value_of_the_wrong_type_is_told_for_every_key() {
    for key in known_keys() {
        let (header, leaf) = header_and_leaf(&key);
        let path = key.path.replace("[]", "[0]");
        let line = header.lines().count() + 1;
        let expected = format!("{line}:{} {path}: must be ", leaf.len() + 4);
        let lines = told(parse(&format!("{header}\n{leaf} = 1979-05-27\n")));
        assert!(lines.iter().any(|line| line.starts_with(&expected)), "{expected}\n{lines:#?}");
    }
}

// === variables ===

#[test]
fn every_variable_has_a_name_of_its_own_and_takes_the_default() {
    let variables: Vec<(String, String)> = known_keys()
        .into_iter()
        .filter_map(|key| {
            let variable = key.variable?;
            let value: toml::Table = format!("x = {}", key.default).parse().expect("a default is TOML");
            let text = match &value["x"] {
                toml::Value::Array(items) => {
                    items.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(", ")
                }
                toml::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            Some((variable, text))
        })
        .collect();
    let mut names: Vec<&str> = variables.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), variables.len());
    assert_eq!(Config::parse("", "", &variables, ""), Ok(Config::default()));
}

#[test]
fn every_variable_overrides_its_key() {
    type Check = fn(&Config) -> bool;
    let overrides: &[(&str, &str, Check)] = &[
        ("PROXY_LISTEN", "127.0.0.1:0,[::1]:0", |c| c.proxy.listen.len() == 2 && c.proxy.listen[1].is_ipv6()),
        ("PROXY_THREADS", "3", |c| c.proxy.threads == 3),
        ("PROXY_MAX_BODY_BYTES", "2GiB", |c| c.proxy.max_body_bytes == 2 << 30),
        ("PROXY_MAX_HEADER_BYTES", "65536", |c| c.proxy.max_header_bytes == 65_536),
        ("PROXY_HEADER_TIMEOUT", "5m", |c| c.proxy.header_timeout == Duration::from_mins(5)),
        ("PROXY_SECRET_HEADERS", "Api-Key", |c| c.proxy.secret_headers == ["api-key"]),
        ("PROXY_TRUST_REQUEST_ID", "true", |c| c.proxy.trust_request_id),
        ("PROXY_RATE_LIMIT_HEADERS", "", |c| c.proxy.rate_limit_headers.is_empty()),
        ("PROXY_RATE_LIMIT_HEADERS", "ratelimit", |c| {
            c.proxy.rate_limit_headers == [HeaderFamily::RateLimit]
        }),
        ("PROXY_DRAIN_TIMEOUT", "0s", |c| c.proxy.drain_timeout.is_zero()),
        ("ADMIN_LISTEN", "0.0.0.0:9999", |c| c.admin.listen.port() == 9_999),
        ("ADMIN_CREATE_WORKSPACES", "false", |c| !c.admin.create_workspaces),
        ("ADMIN_METRICS_TOKEN_FILE", "t", |c| c.admin.metrics_token_file.as_deref() == Some(Path::new("t"))),
        ("ADMIN_JWT_HS256_SECRET_FILE", "s", |c| c.admin.jwt.keys == JwtKeys::SharedSecretFile("s".into())),
        ("ADMIN_JWT_CLAIMS_WORKSPACE", "tenant", |c| c.admin.jwt.claims.workspace == "tenant"),
        ("SECRETS_PREFIX", "kg", |c| c.secrets.prefix == "kg"),
        ("STORE_URL", "sqlite:/x/y.db", |c| c.store.location == StoreLocation::Sqlite("/x/y.db".into())),
        ("STORE_URL", "postgres://u:p@h:5433/d?sslmode=require", |c| {
            matches!(&c.store.location, StoreLocation::Postgres(url)
                if url.password() == Some("p") && url.ssl_mode == SslMode::Require)
        }),
        ("STORE_POOL", "20", |c| c.store.pool == 20),
        ("STORE_CONNECT_TIMEOUT", "1s", |c| c.store.connect_timeout == Duration::from_secs(1)),
        ("STORE_STATEMENT_TIMEOUT", "3s", |c| c.store.statement_timeout == Duration::from_secs(3)),
        ("COUNTERS_ON_FAILURE", "deny", |c| c.counters.on_failure == OnFailure::Deny),
        ("COUNTERS_URL", "rediss+cluster://c", |c| c.counters.location != CountersLocation::Memory),
        ("KEYRING_POLL_INTERVAL", "250ms", |c| c.keyring.poll_interval.as_millis() == 250),
        ("USAGE_WHEN_FULL", "refuse", |c| c.usage.when_full == WhenFull::Refuse),
        ("END_USERS_CACHE_ENTRIES", "5000", |c| c.end_users.cache_entries == 5_000),
        ("END_USERS_WHEN_STORE_IS_GONE", "admit", |c| {
            c.end_users.when_store_is_gone == WhenStoreUnavailable::Admit
        }),
        ("END_USERS_UNSETTLED_ENTRIES", "7", |c| c.end_users.unsettled_entries == 7),
        ("LOG_LEVEL", "debug", |c| c.log.level == LogLevel::Debug),
        ("LOG_FORMAT", "json", |c| c.log.format == LogFormat::Json),
        ("NODE_NAME", "n-1", |c| c.node.name == "n-1"),
    ];
    for (name, value, check) in overrides {
        let config = Config::parse("", "", &env(&[(&format!("KEYGATE_{name}"), value)]), "host");
        assert!(config.as_ref().is_ok_and(check), "{name} {config:?}");
        assert!(!check(&Config::default()), "{name} would prove nothing");
    }
}

#[test]
fn a_variable_goes_before_the_file_and_the_file_before_the_default() {
    let file = "[proxy]\nthreads = 5\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n";
    let config =
        Config::parse(file, "", &env(&[("KEYGATE_PROXY_LISTEN", "127.0.0.1:3")]), "").expect("it loads");
    assert_eq!(config.proxy.listen, ["127.0.0.1:3".parse().expect("an address")]);
    assert_eq!(config.proxy.threads, 5);
    assert_eq!(config.proxy.max_header_fields, Config::default().proxy.max_header_fields);

    // With a JWKS on top of the documented file, the secret must be unset.
    let jwks = [("KEYGATE_ADMIN_JWT_JWKS_FILE", "j"), ("KEYGATE_ADMIN_JWT_ALGORITHMS", "ES256, EdDSA")];
    let config = Config::parse("", "", &env(&jwks), "").expect("a default secret stands against nothing");
    assert_eq!(config.admin.jwt.keys, JwtKeys::JwksFile("j".into()));
    assert_eq!(config.admin.jwt.algorithms, [JwtAlgorithm::Es256, JwtAlgorithm::EdDsa]);
    assert!(Config::parse(example_config(), "", &env(&jwks), "").is_err());
    let aside = [jwks[0], jwks[1], ("KEYGATE_ADMIN_JWT_HS256_SECRET_FILE", "")];
    assert!(Config::parse(example_config(), "", &env(&aside), "").is_ok());
}

#[test]
fn a_variable_that_overrides_nothing_is_a_mistake_unless_it_is_somebody_elses() {
    for (name, value, expected) in [
        ("KEYGATE_PROXY_LISTN", "", "unknown variable; did you mean KEYGATE_PROXY_LISTEN?"),
        ("KEYGATE_ROUTES_0_PATH", "/", "plans, upstreams, routes and prices can be set in the file only"),
        ("KEYGATE_COLOUR", "", "unknown variable; it overrides no key"),
        ("KEYGATE_PROXY_HOSTNAME", "8080", "unknown variable; it overrides no key"),
        ("KEYGATE_LOG", "debug", "unknown variable; it overrides no key"),
    ] {
        let lines = told(Config::parse("", "", &env(&[(name, value)]), ""));
        assert_eq!(lines, [format!("{name}: {expected}")]);
    }
    // The last five are what Kubernetes sets next to services called keygate and keygate-proxy.
    let others = env(&[
        ("PATH", "/bin"),
        ("KEYGATE_CONFIG", "x"),
        ("KEYGATE_SECRETS_PEPPERS", "1:00"),
        ("KEYGATE_ADMIN_JWT_HS256_SECRET", "x"),
        ("KEYGATE_SERVICE_HOST", "10.0.0.1"),
        ("KEYGATE_SERVICE_PORT_HTTP", "80"),
        ("KEYGATE_PORT", "tcp://10.0.0.1:80"),
        ("KEYGATE_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("KEYGATE_PROXY_PORT", "tcp://10.0.0.1:80"),
    ]);
    assert_eq!(Config::parse("", "", &others, ""), Ok(Config::default()));
}

#[test]
fn quotes_and_control_characters_around_a_variable_are_told_and_line_ends_are_not_part_of_it() {
    let config = Config::parse(
        "",
        "",
        &env(&[("KEYGATE_NODE_NAME", " one\r\n"), ("KEYGATE_LOG_ACCESS", "true\n")]),
        "",
    );
    let config = config.expect("it loads");
    assert_eq!((config.node.name.as_str(), config.log.access), ("one", true));
    let quoted = "is in quotes, which would be a part of it: write it without them";
    let control = "has a line end or another control character in it";
    for (name, value, told_of, why) in [
        ("KEYGATE_NODE_NAME", "\"hush\"", "KEYGATE_NODE_NAME", quoted),
        ("KEYGATE_NODE_NAME", "'hush'\n", "KEYGATE_NODE_NAME", quoted),
        ("KEYGATE_NODE_NAME", "hu\nsh", "KEYGATE_NODE_NAME", control),
        ("KEYGATE_STORE_URL", "\"postgres://u:hush@h/db\"", "KEYGATE_STORE_URL", quoted),
        ("KEYGATE_COUNTERS_URL", "“redis://:hush@h”", "KEYGATE_COUNTERS_URL", quoted),
        ("KEYGATE_PROXY_SECRET_HEADERS", "\"x-hush\",\"x-b\"", "KEYGATE_PROXY_SECRET_HEADERS", quoted),
        ("KEYGATE_PROXY_SECRET_HEADERS", "x-a,'x-hush'", "KEYGATE_PROXY_SECRET_HEADERS[1]", quoted),
        ("KEYGATE_USAGE_JOURNAL_DIR", "hush\u{1b}", "KEYGATE_USAGE_JOURNAL_DIR", control),
        ("KEYGATE_SECRETS_PEPPERS", "'1:hush'", "KEYGATE_SECRETS_PEPPERS", quoted),
        ("KEYGATE_SECRETS_PEPPERS", "1:hush\0", "KEYGATE_SECRETS_PEPPERS", control),
        ("KEYGATE_ADMIN_JWT_HS256_SECRET", "\"hush\"", "KEYGATE_ADMIN_JWT_HS256_SECRET", quoted),
        ("KEYGATE_ADMIN_JWT_HS256_SECRET", "hu\nsh", "KEYGATE_ADMIN_JWT_HS256_SECRET", control),
        ("KEYGATE_TELEMETRY_HEADERS", "`a: hush`", "KEYGATE_TELEMETRY_HEADERS", quoted),
        ("KEYGATE_CONFIG", "'hush.toml'", "KEYGATE_CONFIG", quoted),
    ] {
        let lines = told(Config::parse("", "", &env(&[(name, value)]), "host"));
        assert_eq!(lines, [format!("{told_of}: {why}")], "{value:?}");
    }
    let several =
        env(&[("KEYGATE_SECRETS_PEPPERS", "1:00\n2:00\n"), ("KEYGATE_TELEMETRY_HEADERS", "a: b\r\nc: d")]);
    assert_eq!(Config::parse("", "", &several, ""), Ok(Config::default()));
}

#[test]
fn a_byte_order_mark_in_front_of_the_file_is_not_part_of_it() {
    let config = Config::parse("\u{feff}[node]\nname = \"one\"\n", "", &[], "").expect("it loads");
    assert_eq!(config.node.name, "one");
    let lines = told(Config::parse("\u{feff}nonsense = 1\n", "", &[], ""));
    assert!(lines[0].starts_with(":1:1 nonsense: unknown key"), "{lines:?}");
}

#[test]
fn a_wrong_item_of_a_variable_is_told_by_its_number() {
    let lines = told(Config::parse("", "", &env(&[("KEYGATE_PROXY_LISTEN", "127.0.0.1:1,x")]), ""));
    assert_eq!(
        lines,
        ["KEYGATE_PROXY_LISTEN[1]: must be IP:port, such as \"127.0.0.1:8080\" or \"[::1]:8080\""]
    );
}

// === meanings ===

#[test]
fn a_route_says_where_it_leads_and_what_it_reads() {
    let text = "
[proxy]
end_user_header = \"X-User\"
[plans.gold]
limits = [{ count = \"requests\", per = \"month\", max = 5 }]
[[upstreams]]
name = \"a\"
servers = [\"10.0.0.1:1\", \"b.internal:2\", \"[::1]:3\"]
[[upstreams]]
name = \"b\"
servers = [\"h:1\"]
[[routes]]
path = \"/a/{app_id}\"
upstream = \"b\"
methods = [\"GET\", \"POST\"]
resource = \"path:app_id\"
[[routes]]
path = \"/b\"
upstream = \"a\"
resource = \"header:X-App-Id\"
end_user = \"body:user_id\"
[[routes]]
path = \"/c\"
upstream = \"a\"
end_user = \"none\"
keep_credential = true
";
    let config = parse(text).expect("it loads");
    let servers: Vec<String> = config.upstreams[0].servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["10.0.0.1:1", "b.internal:2", "[::1]:3"]);
    assert_eq!(config.upstreams[0].servers[2].address.host, "::1");
    let plans: Vec<&str> = config.plans.iter().map(|plan| plan.plan.id.as_str()).collect();
    assert_eq!(plans, ["default", "gold"]);
    assert_eq!(config.plans[1].plan.limits[0].max, 5);

    let [first, second, third] = &config.routes[..] else { panic!("there are three routes") };
    assert_eq!((first.name.as_str(), first.upstream, first.methods.len()), ("/a/{app_id}", 1, 2));
    assert_eq!(first.resource, Some(ResourceFrom::PathParam("app_id".into())));
    assert!(matches!(&first.end_user[..], [EndUserFrom::Header(name)] if name == "x-user"));
    assert!(matches!(&second.resource, Some(ResourceFrom::Header(name)) if name == "x-app-id"));
    assert_eq!((second.upstream, &second.end_user), (0, &vec![EndUserFrom::JsonField("user_id".into())]));
    assert_eq!((third.end_user.len(), third.keep_credential, third.scopes.is_empty()), (0, true, true));
}

#[test]
fn servers_are_hosts_with_a_port() {
    let cases = [
        ("h:1", true),
        ("h_1.internal.:65535", true),
        ("127.0.0.1:80", true),
        ("[fe80::1]:80", true),
        ("h", false),
        ("h:0", false),
        ("h:65536", false),
        ("h:+1", false),
        (":1", false),
        ("::1:80", false),
        ("[127.0.0.1]:80", false),
        ("[::1:80", false),
        ("300.0.0.1:80", false),
        ("1.2.3:80", false),
        ("http://h:1", false),
        ("h/p:1", false),
        ("u@h:1", false),
        ("a..b:1", false),
        ("-a:1", false),
        ("ü:1", false),
    ];
    for (server, fits) in cases {
        let text = format!("[[upstreams]]\nname = \"a\"\nservers = [\"{server}\"]\n");
        assert_eq!(parse(&text).is_ok(), fits, "{server}");
    }
}

#[test]
fn the_node_is_called_after_the_machine_unless_it_has_a_name() {
    let name = |text: &str, host: &str| Config::parse(text, "", &[], host).map(|config| config.node.name);
    assert_eq!(name("", "gw-1.example"), Ok("gw-1.example".into()));
    assert_eq!(name("node.name = \"\"", "gw-1"), Ok("gw-1".into()));
    assert_eq!(name("node.name = \"blue\"", "gw-1"), Ok("blue".into()));
    assert_eq!(name("node.name = \"blue\"", "gw 1"), Ok("blue".into()));
    assert_eq!(name("", ""), Ok("keygate".into()));
    assert!(name("", "gw 1").is_err_and(|error| error.mistakes[0].place == "node.name"));
}

// === the file itself ===

#[test]
fn a_file_that_cannot_be_read_is_told_by_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let told_of = |path: &Path| match Config::load(Some(path), &[], "") {
        Ok(_) => "it loads".to_owned(),
        Err(error) => error.to_string().replace(&path.display().to_string(), "FILE"),
    };
    let path = folder.path().join("k.toml");
    assert!(told_of(&path).starts_with("FILE: cannot be read: "), "{}", told_of(&path));
    assert!(told_of(folder.path()).starts_with("FILE: cannot be read: "), "{}", told_of(folder.path()));
    std::fs::write(&path, b"# \xff\n").expect("written");
    assert_eq!(told_of(&path), "FILE: must be UTF-8; byte 3 is not");
    std::fs::write(&path, "#".repeat((1 << 20) + 1)).expect("written");
    assert_eq!(told_of(&path), "FILE: must be at most 1048576 bytes");
    std::fs::write(&path, "proxy.threads = -1").expect("written");
    assert_eq!(told_of(&path), "FILE:1:17 proxy.threads: must be a whole number from 0 to 1024");
    std::fs::write(&path, example_config()).expect("written");
    assert_eq!(told_of(&path), "it loads");
    assert_eq!(Config::load(None, &[], ""), Ok(Config::default()));
}

#[test]
fn ten_thousand_damaged_files_are_read_or_told() {
    let whole = format!(
        "{}\n[plans.gold]\nlimits = [{{ count = \"requests\", per = \"day\", max = 1 }}]\n",
        example_config()
    );
    // Without the comments, so that the damage hits parsed text.
    let dense: String =
        whole.lines().filter_map(|line| line.split('#').next()).collect::<Vec<_>>().join("\n");
    let pieces =
        ["[", "]]", "\"", "=", "\n", "{", ",", "\\u0000", "ü", "[[routes]]\n", "'''", "\r", "9e9", "-"];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap_or(0) % below.max(1)
    };
    let (mut read, mut refused) = (0_u32, 0_u32);
    for _ in 0..10_000 {
        let mut bytes = dense.clone().into_bytes();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] ^= 1 << random(8),
                2 => drop(bytes.drain(at..(at + random(40)).min(bytes.len()))),
                _ => drop(bytes.splice(at..at, pieces[random(pieces.len())].bytes())),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        match parse(&text) {
            Ok(_) => read += 1,
            Err(error) => {
                refused += 1;
                assert!(!error.mistakes.is_empty() && !error.to_string().is_empty());
                for (line, column) in error.mistakes.iter().filter_map(|mistake| mistake.line) {
                    let length = text.split('\n').nth(line - 1).map(|line| line.chars().count());
                    assert!(length.is_some_and(|length| column <= length + 1), "{line}:{column}\n{text}");
                }
            }
        }
    }
    assert!(read > 100 && refused > 1_000, "{read} {refused}");
}
