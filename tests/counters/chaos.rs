//! A proxy that injects faults in front of a server: it hangs, delays, forges answers or cuts connections. Other test
//! crates include it with `#[path]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

/// What the proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes everything on.
    Pass,
    /// Cuts every connection, and every new one.
    Cut,
    /// Passes nothing on, and keeps connections open.
    Hang,
    /// Delays answers by this much.
    Late(Duration),
    /// Answers everything with this line.
    Say(&'static str),
    /// Answers the next command with one message of 400 MB.
    Flood,
    /// Forwards a command that contains this text, then cuts that connection instead of passing its answer on.
    CutAfter(&'static str),
    /// Forwards nothing on connections whose first bytes from the client contain this text.
    HangIfSaid(&'static str),
    /// Forwards nothing on connections opened before, and everything on new ones.
    HangIfOld,
}

/// How many of a client's first bytes are kept.
const FIRST_WORDS: usize = 4_096;

/// State of one connection.
#[derive(Default)]
struct Talk {
    /// Opened while old connections hang, so it counts as new.
    is_new: bool,
    first_words: Mutex<Vec<u8>>,
    /// The next answer is the last that the server gives.
    is_doomed: AtomicBool,
    over: Notify,
}

pub(crate) struct ChaosProxy {
    pub(crate) address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    flooded: Arc<AtomicU64>,
}

impl ChaosProxy {
    pub(crate) async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let told = Arc::clone(&mode);
        let flooded = Arc::new(AtomicU64::new(0));
        let taken = Arc::clone(&flooded);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *told.borrow() != Mode::Cut {
                    tokio::spawn(carry(client, server, told.subscribe(), Arc::clone(&taken)));
                }
            }
        });
        Self { address, mode, flooded }
    }

    /// The most bytes of a [`Mode::Flood`] that a client accepted before it closed the connection.
    pub(crate) fn flooded(&self) -> u64 {
        self.flooded.load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn carry(client: TcpStream, server: SocketAddr, mode: watch::Receiver<Mode>, flooded: Arc<AtomicU64>) {
    let Ok(upstream) = TcpStream::connect(server).await else { return };
    // Without delay, as if there were no proxy.
    client.set_nodelay(true).expect("an option");
    upstream.set_nodelay(true).expect("an option");
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = upstream.into_split();
    let talk = Talk { is_new: *mode.borrow() == Mode::HangIfOld, ..Talk::default() };
    let cut = mode.clone();
    let asked = questions(from_client, to_server, mode.clone(), &talk);
    let answered = answers(from_server, to_client, mode, &talk, &flooded);
    tokio::select! {
        () = async { tokio::join!(asked, answered); } => {}
        () = until(cut, |m| *m == Mode::Cut) => {}
        () = talk.over.notified() => {}
    }
}

async fn until(mut mode: watch::Receiver<Mode>, is: impl FnMut(&Mode) -> bool) {
    if mode.wait_for(is).await.is_err() {
        // The proxy has been dropped with its test.
        std::future::pending::<()>().await;
    }
}

async fn questions(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mode: watch::Receiver<Mode>,
    talk: &Talk,
) {
    let mut bytes = vec![0_u8; 65_536];
    while let Ok(n) = from.read(&mut bytes).await {
        if n == 0 {
            return;
        }
        let words = &bytes[..n];
        talk.hear(words);
        until(mode.clone(), |m| !talk.hangs(m)).await;
        let now = *mode.borrow();
        if let Mode::CutAfter(text) = now
            && contains(words, text)
        {
            talk.is_doomed.store(true, Ordering::SeqCst);
        }
        if to.write_all(words).await.is_err() {
            return;
        }
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mode: watch::Receiver<Mode>,
    talk: &Talk,
    flooded: &AtomicU64,
) {
    let mut bytes = vec![0_u8; 65_536];
    while let Ok(n) = from.read(&mut bytes).await {
        if n == 0 {
            return;
        }
        if talk.is_doomed.load(Ordering::SeqCst) {
            talk.over.notify_one();
            return;
        }
        until(mode.clone(), |m| !talk.hangs(m)).await;
        let now = *mode.borrow();
        let line = match now {
            Mode::Flood => {
                flooded.fetch_max(flood(&mut to).await, Ordering::SeqCst);
                return;
            }
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

/// Sends one long message. Returns how much of it was accepted.
async fn flood(to: &mut OwnedWriteHalf) -> u64 {
    const LONG: u64 = 400_000_000;
    let (zeros, mut taken) = (vec![0; 65_536], 0);
    if to.write_all(format!("${LONG}\r\n").as_bytes()).await.is_err() {
        return 0;
    }
    while taken < LONG {
        match to.write(&zeros).await {
            Ok(n) => taken += n as u64,
            Err(_) => break,
        }
    }
    taken
}

// === impl Talk ===

impl Talk {
    fn hear(&self, words: &[u8]) {
        let mut first = self.first_words.lock().expect("no panic");
        let room = FIRST_WORDS.saturating_sub(first.len()).min(words.len());
        first.extend_from_slice(&words[..room]);
    }

    fn hangs(&self, mode: &Mode) -> bool {
        match mode {
            Mode::Hang => true,
            Mode::HangIfOld => !self.is_new,
            Mode::HangIfSaid(text) => contains(&self.first_words.lock().expect("no panic"), text),
            _ => false,
        }
    }
}

fn contains(words: &[u8], text: &str) -> bool {
    words.windows(text.len()).any(|window| window == text.as_bytes())
}
