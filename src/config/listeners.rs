//! Rules for the listeners: that there is one, that they do not take each other's addresses, and what each needs.

use super::acme::AcmeConfig;
use super::file::RouteFile;
use super::reader::ConfigReader;
use super::types::{ClientCertificates, Config, DecideConfig, ProxyConfig};
use crate::policy::routing::route::VERIFY;
use std::net::SocketAddr;

pub(super) fn check(config: &Config, reading: &mut ConfigReader<'_>) {
    listeners_differ(config, reading);
    listeners_go_together(&config.proxy, &config.acme, reading);
    somebody_listens(config, reading);
    applications_have_a_token(&config.decide, reading);
}

fn listeners_differ(config: &Config, reading: &mut ConfigReader<'_>) {
    let Config { proxy, admin, decide, .. } = config;
    let mut seen: Vec<(String, SocketAddr)> = Vec::new();
    let lists = [
        ("proxy.listen", &proxy.listen),
        ("proxy.listen_tls", &proxy.listen_tls),
        ("proxy.listen_h2c", &proxy.listen_h2c),
        ("decide.listen", &decide.listen),
    ];
    let proxies = lists.into_iter().flat_map(|(list, addresses)| {
        addresses.iter().enumerate().map(move |(n, address)| (format!("{list}[{n}]"), *address))
    });
    for (path, address) in proxies.chain([("admin.listen".to_owned(), admin.listen)]) {
        if let Some((other, _)) = seen.iter().find(|(_, earlier)| collide(*earlier, address)) {
            let list = path.split('[').next().unwrap_or(&path);
            let uses = [&path, list, "proxy.listen", "admin.listen"];
            reading.complain_of_conflict(&uses, format!("{address} is taken by {other}"));
        }
        seen.push((path, address));
    }
}

/// Whether two listeners conflict: the unspecified address takes the port on every address of its family.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let same_ip = a.ip() == b.ip()
        || (a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || b.ip().is_unspecified()));
    a.port() == b.port() && a.port() != 0 && same_ip
}

fn listeners_go_together(proxy: &ProxyConfig, acme: &AcmeConfig, reading: &mut ConfigReader<'_>) {
    let required = proxy.client_certificates == ClientCertificates::Required;
    for (lacks, what, needed) in [
        (
            !proxy.listen_tls.is_empty() && proxy.certificates.is_empty() && acme.domains.is_empty(),
            "proxy.listen_tls",
            "proxy.certificates",
        ),
        (
            proxy.redirect_to_https && proxy.listen_tls.is_empty(),
            "proxy.redirect_to_https",
            "proxy.listen_tls",
        ),
        (required && proxy.client_ca_file.is_none(), "proxy.client_certificates", "proxy.client_ca_file"),
        (
            proxy.proxy_protocol && proxy.trusted_proxies.is_empty(),
            "proxy.proxy_protocol",
            "proxy.trusted_proxies",
        ),
    ] {
        if lacks {
            reading.complain_of_conflict(&[what, needed], format!("needs {needed}"));
        }
    }
}

/// Whoever reaches the listener could try keys.
fn applications_have_a_token(decide: &DecideConfig, reading: &mut ConfigReader<'_>) {
    for (n, address) in decide.listen.iter().enumerate() {
        if !address.ip().is_loopback() && decide.token_file.is_none() {
            let path = format!("decide.listen[{n}]");
            reading.complain_of_conflict(
                &[&path, "decide.listen", "decide.token_file"],
                "needs decide.token_file, because it is not a loopback address",
            );
        }
    }
}

fn somebody_listens(config: &Config, reading: &mut ConfigReader<'_>) {
    let Config { proxy, decide, .. } = config;
    let all = [&proxy.listen, &proxy.listen_tls, &proxy.listen_h2c, &decide.listen];
    if all.into_iter().all(Vec::is_empty) {
        reading.complain_of_conflict(
            &["proxy.listen", "proxy.listen_tls", "proxy.listen_h2c", "decide.listen"],
            "must not be empty unless proxy.listen_tls, proxy.listen_h2c or decide.listen has an address",
        );
    }
}

/// Records and metrics would not tell such a route from what applications ask.
pub(super) fn check_route_names(
    routes: &[Option<RouteFile>],
    decide: &DecideConfig,
    reading: &mut ConfigReader<'_>,
) {
    for (n, route) in routes.iter().enumerate() {
        let name = route.as_ref().and_then(|route| route.name.as_deref());
        if name == Some(VERIFY) && !decide.listen.is_empty() {
            let path = format!("routes[{n}].name");
            let message = format!(
                "must not be {VERIFY:?} while decide.listen has an address: calls of applications have that name"
            );
            reading.complain_of_conflict(&[&path, "decide.listen"], message);
        }
    }
}
