//! Upstream groups: accepted and rejected settings.

use super::{parse, told};
use keygate::config::{HealthCheck, UpstreamConfig};
use keygate::policy::upstream::balance::{Balancing, HashBy};

/// One upstream with these further lines.
fn upstream(more: &str) -> String {
    format!("[[upstreams]]\nname = \"a\"\nservers = [\"h:1\"]\n{more}\n")
}

fn read(more: &str) -> UpstreamConfig {
    parse(&upstream(more)).expect("it loads").upstreams.remove(0)
}

#[test]
fn an_upstream_says_who_gets_requests_and_who_may() {
    let read = read(
        "balance = \"hash:header:X-Session\"\nhash_load_percent = 125\nresolve_interval = \"5s\"\n\
         [upstreams.health]\ncheck = \"http\"\npath = \"/up?deep=1\"\nhost = \"a.example\"\nstatus = \"204\"\n\
         [upstreams.eject]\nafter = 0\nshare_percent = 100\n",
    );
    assert!(matches!(&read.balance, Balancing::Hash(HashBy::Header(name)) if name == "x-session"));
    assert_eq!((read.hash_load_percent, read.resolve_interval.as_secs()), (125, 5));
    assert_eq!((read.health.check, read.health.path.as_str()), (HealthCheck::Http, "/up?deep=1"));
    assert_eq!((read.health.host.as_deref(), read.health.status), (Some("a.example"), 204..=204));
    assert_eq!((read.eject.after, read.eject.share_percent), (0, 100));
}

#[test]
fn a_server_may_have_a_weight() {
    for (server, weight) in [
        ("h:1", Some(1)),
        ("h:1 weight=1", Some(1)),
        ("[::1]:9 weight=100", Some(100)),
        ("h:1 weight=0", None),
        ("h:1 weight=101", None),
        ("h:1 weight=+3", None),
        ("h:1 weight=", None),
        ("h:1 wait=3", None),
        ("h weight=3", None),
    ] {
        let read = parse(&format!("[[upstreams]]\nname = \"a\"\nservers = [\"{server}\"]\n"));
        assert_eq!(read.map(|c| c.upstreams[0].servers[0].weight).ok(), weight, "{server}");
    }
}

#[test]
fn each_mistake_of_an_upstream_is_told() {
    for (more, expected) in [
        (
            "balance = \"random\"",
            "4:11 upstreams[0].balance: must be one of: round-robin, least-connections, hash:key, hash:end-user, hash:header:NAME",
        ),
        (
            "balance = \"hash:header:Authorization\"",
            "4:11 upstreams[0].balance: must not be authorization, which carries the secret (proxy.secret_headers)",
        ),
        (
            "hash_load_percent = 99",
            "4:21 upstreams[0].hash_load_percent: must be 0, or a whole number from 100 to 10000",
        ),
        (
            "hash_load_percent = 125",
            "4:21 upstreams[0].hash_load_percent: must be 0 unless balance is one of hash:…",
        ),
        (
            "protocol = \"auto\"",
            "4:12 upstreams[0].protocol: must be http1 or http2: without TLS nobody tells which HTTP a server speaks",
        ),
        (
            "credentials = [{}]",
            "4:16 upstreams[0].credentials[0].secret_file: must be set, unless secret_env is",
        ),
        (
            "credentials = [{ secret_file = \"a\", secret_env = \"KEYGATE_CREDENTIAL_A\" }]",
            "4:50 upstreams[0].credentials[0].secret_env: must be \"\" while secret_file is set; only one of them counts",
        ),
        (
            "credentials = [{ secret_env = \"HOME\" }]",
            "4:31 upstreams[0].credentials[0].secret_env: must be the name of a variable that begins with KEYGATE_CREDENTIAL_, in A-Z 0-9 _, or \"\" for none",
        ),
        (
            "[upstreams.tls]\nca_file = \"ca.pem\"",
            "4:1 upstreams[0].tls.enabled: must be true, as other keys of this table are set",
        ),
        (
            "[upstreams.tls]\nenabled = true\nclient_key_file = \"k.pem\"",
            "4:1 upstreams[0].tls.client_cert_file: must be set, as its other half is",
        ),
        (
            "[upstreams.tls]\nenabled = true\nca_file = \"c\"\ndanger_accept_any_certificate = true",
            "7:33 upstreams[0].tls.danger_accept_any_certificate: must be false while ca_file is set: nothing would be checked",
        ),
        (
            "[upstreams.retry]\nattempts = 0",
            "5:12 upstreams[0].retry.attempts: must be a whole number from 1 to 10",
        ),
        (
            "first_byte_timeout = \"61s\"",
            "4:22 upstreams[0].first_byte_timeout: must not be longer than read_timeout",
        ),
        (
            "[upstreams.health]\ncheck = \"ping\"",
            "5:9 upstreams[0].health.check: must be one of: off, tcp, http",
        ),
        (
            "[upstreams.health]\npath = \"/a/../b\"",
            "5:8 upstreams[0].health.path: must be a path that begins with \"/\", without ambiguous spellings, perhaps with a query",
        ),
        (
            "[upstreams.health]\nstatus = \"399-200\"",
            "5:10 upstreams[0].health.status: must be a status or a range of statuses from 100 to 599, such as \"200\" or \"200-399\"",
        ),
        (
            "[upstreams.health]\nhost = \"http://h\"",
            "5:8 upstreams[0].health.host: must be a host name or address, perhaps with a port, or \"\" for none",
        ),
        (
            "[upstreams.eject]\nlongest = \"9s\"",
            "5:11 upstreams[0].eject.longest: must not be shorter than first",
        ),
    ] {
        assert_eq!(told(parse(&upstream(more))), [expected], "{more}");
    }
}
