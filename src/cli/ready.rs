//! The line of JSON that tells a supervisor that every listener accepts. Contract 8.

use super::{Failure, say};
use crate::app::Running;
use serde_json::{Map, Value, json};

/// Prints the line, with the additional fields `more`.
pub(super) fn print(running: &Running, more: Map<String, Value>) -> Result<(), Failure> {
    let first = running.proxy.first().map(ToString::to_string);
    let mut line = Map::new();
    line.insert("proxy".into(), json!(first));
    if running.proxy.len() > 1 {
        let all: Vec<_> = running.proxy.iter().map(ToString::to_string).collect();
        line.insert("proxies".into(), json!(all));
    }
    let others =
        [("proxy_tls", &running.proxy_tls), ("proxy_h2c", &running.proxy_h2c), ("decide", &running.decide)];
    for (name, addresses) in others {
        if let Some(address) = addresses.first() {
            line.insert(name.into(), json!(address.to_string()));
        }
    }
    line.insert("admin".into(), json!(running.admin.to_string()));
    line.insert("pid".into(), json!(std::process::id()));
    line.extend(more);
    say(format_args!("{}", Value::Object(line)))
}
