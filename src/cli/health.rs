//! `keygate health`: asks a running gateway whether it is ready. For health checks of containers, whose images have no
//! other program for this.

use super::{ConfigArgs, Environment, Failure, load, say};
use clap::Args;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Longest time for each step.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest response that is read, in bytes.
const ANSWER_MAX: u64 = 64 * 1024;

/// Arguments of `keygate health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The address of the admin API; the default is the configured one
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<SocketAddr>,
}

pub(super) fn run(args: &HealthArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let admin = match args.admin {
        Some(address) => address,
        None => load(&args.config, environment)?.admin.listen,
    };
    let admin = reachable(admin);
    let answer = ask(admin).map_err(|e| Failure::Failed(format!("{admin} did not answer: {e}")))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    say(format_args!("{}", body.trim_end()))?;
    match status {
        "200" => Ok(()),
        _ => Err(Failure::Failed(format!("{admin} is not ready (status {status})"))),
    }
}

/// An address to connect to: a listener on all addresses is reached on loopback.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

fn ask(admin: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /readyz?verbose HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}
