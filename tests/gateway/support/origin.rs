//! A backend that records every request as received and answers as the test says.

use super::{PATIENCE, eventually};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// A backend on a port of its own. Dropping it closes its connections.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

/// One request, as it was on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// Everything up to and including the empty line.
    pub(crate) head: String,
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in their original spelling.
    pub(crate) headers: Vec<(String, String)>,
    /// The body's bytes, without the framing of chunks.
    pub(crate) body: Vec<u8>,
}

/// Blocks responses until a test releases them. Clones share the same state.
#[derive(Clone, Default)]
pub(crate) struct Hold(Arc<(Mutex<u64>, Condvar)>);

/// A reserved port that refuses connections.
pub(crate) struct ReservedPort {
    pub(crate) address: SocketAddr,
    _bound: tokio::net::TcpSocket,
}

type SocketScript = dyn Fn(&Received, &mut TcpStream) -> io::Result<()> + Send + Sync;
type Script = dyn Fn(&Received, &mut dyn Write) -> io::Result<()> + Send + Sync;

struct Shared {
    script: Mutex<Arc<Script>>,
    /// Replaces the script: takes over the socket itself.
    socket_script: Mutex<Option<Arc<SocketScript>>>,
    requests: Mutex<Vec<Received>>,
    /// The body being received, as far as it has arrived.
    arriving: Mutex<Vec<u8>>,
    /// Heads read, whether or not their bodies have ended.
    heads: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
    connections: AtomicUsize,
    stopped: AtomicBool,
}

// === impl Origin ===

impl Origin {
    /// Answers 200 and a small JSON body until told otherwise.
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap())
    }

    /// The same at this address.
    #[track_caller]
    pub(crate) fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(|_, out| respond(out, 200, &[], b"{\"ok\":true}"))),
            socket_script: Mutex::default(),
            requests: Mutex::default(),
            arriving: Mutex::default(),
            heads: AtomicUsize::new(0),
            open: Mutex::default(),
            connections: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &accepting));
        Self { address, shared }
    }

    /// Answers as `script` writes from now on. An error it returns ends the connection.
    pub(crate) fn script(
        &self,
        script: impl Fn(&Received, &mut dyn Write) -> io::Result<()> + Send + Sync + 'static,
    ) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    /// Hands the socket to `script` after a request, for protocols other than HTTP.
    pub(crate) fn script_socket(
        &self,
        script: impl Fn(&Received, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) {
        *self.shared.socket_script.lock().unwrap() = Some(Arc::new(script));
    }

    /// Answers with this from now on.
    pub(crate) fn answer(&self, status: u16, headers: &'static [(&str, &str)], body: &'static [u8]) {
        self.script(move |_, out| respond(out, status, headers, body));
    }

    /// Answers 200, each request when `hold` is released.
    pub(crate) fn answer_after(&self, hold: &Hold) {
        let hold = hold.clone();
        self.script(move |_, out| {
            hold.wait(1);
            respond(out, 200, &[], b"{\"ok\":true}")
        });
    }

    /// Every completely received request.
    pub(crate) fn requests(&self) -> Vec<Received> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The last completely received request.
    #[track_caller]
    pub(crate) fn last(&self) -> Received {
        self.requests().pop().expect("a request that reached the origin")
    }

    /// How many requests were received completely.
    pub(crate) fn count(&self) -> usize {
        self.shared.requests.lock().unwrap().len()
    }

    /// Forgets the requests so far.
    pub(crate) fn forget(&self) {
        self.shared.requests.lock().unwrap().clear();
    }

    /// Waits until `n` heads have arrived, answered or not.
    #[track_caller]
    pub(crate) fn wait_for_heads(&self, n: usize) {
        let enough = || (self.shared.heads.load(Ordering::Acquire) >= n).then_some(());
        eventually(&format!("the origin has {n} requests"), enough);
    }

    /// The body being received, as far as it has arrived.
    pub(crate) fn arriving(&self) -> Vec<u8> {
        self.shared.arriving.lock().unwrap().clone()
    }

    /// How many connections were opened to it.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }

    /// Closes everything; connections are refused from now on, and the port stays taken.
    pub(crate) fn stop(self) -> ReservedPort {
        let address = self.address;
        drop(self);
        eventually("the origin's port is free to be reserved", || ReservedPort::at(address).ok())
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        for stream in self.shared.open.lock().unwrap().drain(..) {
            // It may be closed already.
            stream.shutdown(Shutdown::Both).ok();
        }
        // Wakes the accepting thread, which then closes the listener.
        TcpStream::connect(self.address).ok();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let stream = stream.expect("a connection");
        if shared.stopped.load(Ordering::Acquire) {
            return;
        }
        shared.connections.fetch_add(1, Ordering::AcqRel);
        shared.open.lock().unwrap().push(stream.try_clone().unwrap());
        let serving = Arc::clone(shared);
        // A broken connection is caused by the gateway or the test, and is noticed there.
        std::thread::spawn(move || serve(stream, &serving).ok());
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(mut received) = read_head(&mut reader)? {
        shared.arriving.lock().unwrap().clear();
        shared.heads.fetch_add(1, Ordering::AcqRel);
        if received.header("expect").is_some() {
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        received.body = read_body(&mut reader, &received, &shared.arriving)?;
        shared.requests.lock().unwrap().push(received.clone());
        let over_socket = shared.socket_script.lock().unwrap().clone();
        if let Some(script) = over_socket {
            return script(&received, &mut out);
        }
        let script = Arc::clone(&shared.script.lock().unwrap());
        if let Err(error) = script(&received, &mut out) {
            out.shutdown(Shutdown::Both)?;
            return Err(error);
        }
    }
    Ok(())
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Received>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let (method, target) = (method.to_owned(), target.to_owned());
    Ok(Some(Received { head, method, target, headers, body: Vec::new() }))
}

fn read_body(
    reader: &mut impl BufRead,
    received: &Received,
    arriving: &Mutex<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    if received.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            read_into(reader, size, arriving)?;
            reader.read_line(&mut line)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = received.header("content-length") {
        read_into(reader, length.parse().map_err(io::Error::other)?, arriving)?;
    }
    Ok(arriving.lock().unwrap().clone())
}

fn read_into(reader: &mut impl Read, mut left: usize, arriving: &Mutex<Vec<u8>>) -> io::Result<()> {
    let mut part = [0; 8192];
    while left > 0 {
        let wanted = left.min(part.len());
        let n = reader.read(&mut part[..wanted])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        arriving.lock().unwrap().extend_from_slice(&part[..n]);
        left -= n;
    }
    Ok(())
}

/// Writes a response with a `Content-Length`.
fn respond(out: &mut dyn Write, status: u16, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.extend([*name, ": ", *value, "\r\n"]);
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    out.write_all(&bytes)
}

// === impl Received ===

impl Received {
    /// The field's value, the name in any case; of several the first.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// How often there is a field of that name, in any case.
    pub(crate) fn times(&self, name: &str) -> usize {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).count()
    }
}

// === impl Hold ===

impl Hold {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Releases those that wait for the `n`-th release or an earlier one.
    pub(crate) fn release(&self) {
        let (released, changed) = &*self.0;
        *released.lock().unwrap() += 1;
        changed.notify_all();
    }

    /// Waits until there were `n` releases. Gives up silently after [`PATIENCE`]: the test then fails elsewhere.
    pub(crate) fn wait(&self, n: u64) {
        let (released, changed) = &*self.0;
        let waited = changed.wait_timeout_while(released.lock().unwrap(), PATIENCE, |so_far| *so_far < n);
        drop(waited.unwrap());
    }
}

// === impl ReservedPort ===

impl ReservedPort {
    /// Any port.
    pub(crate) fn any() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).expect("a free port")
    }

    /// Bound and not listened on: connecting is refused.
    fn at(address: SocketAddr) -> io::Result<Self> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { address: socket.local_addr()?, _bound: socket })
    }
}
