//! Configurations that tests share.

use super::{Gateway, Origin};
use std::net::SocketAddr;

/// An upstream and the route `/v1/app/{rest*}` to it, for keys with the scope `app`.
pub(crate) fn one_route(address: SocketAddr) -> String {
    upstream("app", address) + &route("app", "/v1/app/{rest*}", "app", "")
}

/// A group of one server.
pub(crate) fn upstream(name: &str, address: SocketAddr) -> String {
    format!("[[upstreams]]\nname = \"{name}\"\nservers = [\"{address}\"]\n")
}

/// A route that asks for the scope `app`; `more` is further lines of it.
pub(crate) fn route(name: &str, path: &str, upstream: &str, more: &str) -> String {
    let scopes = if more.contains("scopes") { "" } else { "scopes = [\"app\"]\n" };
    let resource = if more.contains("resource") { "" } else { "resource = \"any\"\n" };
    format!(
        "[[routes]]\nname = \"{name}\"\npath = \"{path}\"\nupstream = \"{upstream}\"\n{scopes}{resource}{more}\n"
    )
}

/// An origin, and a gateway with [`one_route`] to it and `more` sections.
#[track_caller]
pub(crate) fn stand(more: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    let gateway = Gateway::start(&(one_route(origin.address) + more));
    (origin, gateway)
}
