//! `keygate echo`: a backend that responds with the request, to try a gateway.

use super::{Environment, Failure, say};
use crate::app::Signals;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Json;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io;
use std::net::SocketAddr;
use tokio::runtime::{Builder, Runtime};

/// Arguments of `keygate echo`.
#[derive(Debug, Args)]
pub struct EchoArgs {
    /// The address to listen on; port 0 picks a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9001")]
    listen: SocketAddr,
}

pub(super) fn run(args: &EchoArgs, _environment: Environment<'_>) -> Result<(), Failure> {
    let signals = Signals::catch().map_err(Failure::failed)?;
    let address = start(args.listen).map_err(|e| Failure::Failed(format!("{}: {e}", args.listen)))?;
    say(format_args!("an echo backend listens on {address}"))?;
    let runtime = runtime().map_err(Failure::failed)?;
    drop(runtime.block_on(signals.asked_to_stop(None)));
    Ok(())
}

/// Starts an echo server on its own thread, for the life of the process. Returns its address.
pub(super) fn start(at: SocketAddr) -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = runtime()?;
    std::thread::Builder::new().name("keygate-echo".into()).spawn(move || {
        runtime.block_on(async {
            let served = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => axum::serve(listener, axum::Router::new().fallback(echo)).await,
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                tracing::error!(%error, "echo backend failed");
            }
        });
    })?;
    Ok(address)
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

async fn echo(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Json<Value> {
    let headers: Map<String, Value> = headers
        .iter()
        .map(|(name, value)| (name.as_str().into(), json!(String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    Json(json!({
        "method": method.as_str(),
        "path": uri.path(),
        "query": uri.query(),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    }))
}
