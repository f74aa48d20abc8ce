//! A proxy in front of Redis that a test can make hang, lag, lie and cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes everything on.
    Pass,
    /// Cuts every connection, and every new one.
    Cut,
    /// Passes nothing on, and keeps connections open.
    Hang,
    /// Passes answers on after so long.
    Late(Duration),
    /// Answers everything with this line.
    Say(&'static str),
}

pub(crate) struct ChaosProxy {
    pub(crate) address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
}

impl ChaosProxy {
    pub(crate) async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let told = Arc::clone(&mode);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *told.borrow() != Mode::Cut {
                    tokio::spawn(carry(client, server, told.subscribe()));
                }
            }
        });
        Self { address, mode }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn carry(client: TcpStream, server: SocketAddr, mode: watch::Receiver<Mode>) {
    let Ok(upstream) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = upstream.into_split();
    let cut = mode.clone();
    let asked = questions(from_client, to_server, mode.clone());
    let answered = answers(from_server, to_client, mode);
    tokio::select! {
        () = async { tokio::join!(asked, answered); } => {}
        () = until(cut, |m| *m == Mode::Cut) => {}
    }
}

async fn until(mut mode: watch::Receiver<Mode>, is: impl FnMut(&Mode) -> bool) {
    if mode.wait_for(is).await.is_err() {
        // The proxy is gone, and with it the test.
        std::future::pending::<()>().await;
    }
}

async fn questions(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mode: watch::Receiver<Mode>) {
    let mut bytes = vec![0_u8; 65_536];
    while let Ok(n) = from.read(&mut bytes).await {
        if n == 0 {
            return;
        }
        until(mode.clone(), |m| *m != Mode::Hang).await;
        if to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mode: watch::Receiver<Mode>) {
    let mut bytes = vec![0_u8; 65_536];
    while let Ok(n) = from.read(&mut bytes).await {
        if n == 0 {
            return;
        }
        let now = *mode.borrow();
        let line = match now {
            Mode::Say(line) => line.as_bytes(),
            Mode::Late(by) => {
                tokio::time::sleep(by).await;
                &bytes[..n]
            }
            _ => &bytes[..n],
        };
        if to.write_all(line).await.is_err() {
            return;
        }
    }
}
