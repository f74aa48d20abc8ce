//! The cost of a governed request: Keygate compared with bare Pingora built with the same flags, nginx, HAProxy and Envoy, all
//! in front of the same small origin. Each round runs every target once, in a new order.
//!
//! Compare CPU time per request of the proxy's own processes (user + system, from `/proc`): other load on the machine
//! changes throughput and latency, but hardly CPU time. Each ratio is taken within a round, and the median of the rounds is
//! shown.
//!
//! Needs nginx, haproxy, envoy, wrk and redis-server; `make bench` installs them. Everything listens on loopback, on free ports.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measurement that cannot go on says where, and measures real time"
)]

mod bare;
mod keygate_target;
mod load;
mod report;
mod stream;
mod targets;

#[path = "../../tests/store_behaviours/private_postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use more of it")]
mod private_postgres;

use clap::{Parser, Subcommand};
use report::{Report, Sample};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use targets::{Scenario, Target};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What governing a request costs.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Rounds; every target runs once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load on each target in a round.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Connections that are busy all the time.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Only these scenarios, by name; all when none is named.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Keys in the scenario with many; 1 000 000 takes a few minutes to prepare.
    #[arg(long, default_value_t = 1_000_000)]
    many: usize,
    /// Where the figures go as JSON.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Cargo passes it; it means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// The bare proxy itself, in a process of its own.
    #[command(hide = true)]
    Bare { listen: SocketAddr, origin: SocketAddr },
    /// The origin whose answers are streams.
    #[command(hide = true)]
    Stream { listen: SocketAddr },
}

fn main() {
    let args = Args::parse();
    match args.command {
        Some(Command::Bare { listen, origin }) => return bare::run(listen, origin),
        Some(Command::Stream { listen }) => return stream::run(listen),
        None => {}
    }
    targets::require(&["nginx", "haproxy", "wrk", "redis-server"]);
    let folder = tempfile::tempdir().unwrap();
    let mut report = Report::default();
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    for scenario in Scenario::ALL.iter().filter(|scenario| wanted(scenario.name())) {
        let place = folder.path().join(scenario.name());
        std::fs::create_dir(&place).unwrap();
        eprintln!("{}: preparing", scenario.name());
        let mut stage = targets::prepare(*scenario, &place, args.many);
        measure(&args, *scenario, &mut stage.targets, &mut report);
    }
    println!("{}", report.table());
    std::fs::write(&args.json, report.json().to_string()).unwrap();
    eprintln!("figures: {}", args.json.display());
}

/// Every target once in each round, in an order that turns by one, after one warm-up that does not count.
fn measure(args: &Args, scenario: Scenario, targets: &mut [Target], report: &mut Report) {
    let seconds = Duration::from_secs(args.seconds);
    for target in &mut *targets {
        load::run(target, args.connections, Duration::from_secs(1));
    }
    for round in 0..args.rounds {
        for place in 0..targets.len() {
            let target = &targets[(place + round) % targets.len()];
            let before = target.cpu();
            let load = load::run(target, args.connections, seconds);
            let cpu = target.cpu() - before;
            eprintln!("{} {}/{} {}: {load:?}", scenario.name(), round + 1, args.rounds, target.name);
            let memory = target.memory();
            report.add(scenario.name(), target.name, Sample { round, load, cpu, memory });
        }
    }
}
