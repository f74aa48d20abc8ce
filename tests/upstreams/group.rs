//! A gateway in front of several origins.

use crate::support::{Gateway, Origin, PATIENCE, Raw, Request, route};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A gateway whose only upstream `app` has several servers.
pub(crate) struct Group {
    pub(crate) gateway: Gateway,
    pub(crate) origins: Vec<Origin>,
    /// The secret of a key with a high rate.
    pub(crate) secret: String,
}

impl Group {
    /// Servers with these weights, one origin each; `more` is further lines of the upstream, tables last.
    #[track_caller]
    pub(crate) fn start(weights: &[u16], more: &str) -> Self {
        let origins: Vec<_> = weights.iter().map(|_| Origin::start()).collect();
        let weighted = |(o, weight): (&Origin, &u16)| format!("\"{} weight={weight}\"", o.address);
        let servers = origins.iter().zip(weights).map(weighted).collect();
        Self { origins, ..Self::of(servers, more) }
    }

    /// Servers at these addresses.
    #[track_caller]
    pub(crate) fn start_with(addresses: &[SocketAddr], more: &str) -> Self {
        Self::of(addresses.iter().map(|a| format!("\"{a}\"")).collect(), more)
    }

    #[track_caller]
    fn of(servers: Vec<String>, more: &str) -> Self {
        let upstream = format!("[[upstreams]]\nname = \"app\"\nservers = [{}]\n{more}\n", servers.join(", "));
        let gateway = Gateway::start(&(upstream + &route("app", "/v1/app/{rest*}", "app", "")));
        let secret = gateway.create_key(json!({"rate_limit": 1000})).secret;
        Self { gateway, origins: Vec::new(), secret }
    }

    /// The status of one request.
    #[track_caller]
    pub(crate) fn get(&self) -> u16 {
        self.gateway.get("/v1/app/x", &self.secret).status
    }

    /// `n` requests, one after the other on one connection, each with that header; all must be served.
    #[track_caller]
    pub(crate) fn get_many(&self, n: usize, header: (&str, &str)) {
        let mut connection = self.gateway.connect();
        let request = Request::get("/v1/app/x").bearer(&self.secret).header(header.0, header.1);
        for _ in 0..n {
            assert_eq!(connection.call(&request).status, 200);
        }
    }

    /// Everything received until the gateway closes the connection.
    pub(crate) fn until_cut(&self, request: &Request) -> String {
        let mut stream = TcpStream::connect(self.gateway.proxy).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&request.bytes()).unwrap();
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How many requests each origin got so far.
    pub(crate) fn counts(&self) -> Vec<usize> {
        self.origins.iter().map(Origin::count).collect()
    }

    /// The value of a series with this name and these labels; `None` without such a series.
    pub(crate) fn metric(&self, series: &str) -> Option<u64> {
        let text = Raw::connect(self.gateway.admin).call(&Request::get("/metrics")).text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    /// A metric of the server at the `n`-th origin.
    pub(crate) fn metric_of(&self, name: &str, n: usize, more: &str) -> Option<u64> {
        // Labels are sorted by name.
        self.metric(&format!("{name}{{{more}server=\"{}\",upstream=\"app\"}}", self.origins[n].address))
    }
}
