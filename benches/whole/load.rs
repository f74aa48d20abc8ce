//! The load generator: wrk with the secrets of its requests in a file and its results as JSON.

use super::targets::Target;
use serde::Deserialize;
use std::process::Command;
use std::time::Duration;

/// The results seen by the clients.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Load {
    /// Responses.
    pub(crate) requests: u64,
    /// Responses with a status of 400 or more.
    pub(crate) refused: u64,
    /// Failed connections and missing responses.
    pub(crate) broken: u64,
    /// Duration in seconds.
    pub(crate) seconds: f64,
    /// Latency in milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// Requests are built once; the secrets are used in turn, so the file decides how often each is used.
pub(crate) const SCRIPT: &str = r#"
local requests, next = {}, 0
function init(args)
    local method, body = "GET", args[3] or ""
    if body ~= "" then
        method = "POST"
        body = "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
    else
        body = "\r\n"
    end
    for line in io.lines(args[1]) do
        local header = line == "" and "" or "Authorization: Bearer " .. line .. "\r\n"
        requests[#requests + 1] = method .. " " .. args[2] .. " HTTP/1.1\r\nHost: gateway\r\n" .. header .. body
    end
end
function request()
    next = next % #requests + 1
    return requests[next]
end
function done(summary, latency)
    local e = summary.errors
    io.write(string.format(
        'RESULT {"requests":%d,"refused":%d,"broken":%d,"seconds":%f,"p50":%f,"p99":%f,"p999":%f}\n',
        summary.requests, e.status, e.connect + e.read + e.write + e.timeout, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3))
end
"#;

/// Loads `target`, and checks that it did what the scenario is about.
pub(crate) fn run(target: &Target, connections: usize, seconds: Duration) -> Load {
    let output = Command::new("wrk")
        .args(["-t1", "-c", &connections.to_string(), "-d", &format!("{}s", seconds.as_secs())])
        .arg("-s")
        .arg(&target.script)
        .arg(format!("http://{}/", target.address))
        .arg("--")
        .arg(&target.secrets)
        .arg(target.path)
        .arg(target.body)
        .output()
        .expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("RESULT ")).unwrap_or_else(|| {
        panic!("wrk said {text} {}", String::from_utf8_lossy(&output.stderr));
    });
    let load: Load = serde_json::from_str(line).unwrap();
    assert!(load.requests > 0 && load.broken == 0, "{}: {load:?}", target.name);
    if target.refuses {
        assert!(load.refused * 100 >= load.requests * 99, "{} let requests pass: {load:?}", target.name);
    } else {
        assert!(load.refused == 0, "{} refused requests: {load:?}", target.name);
    }
    load
}
