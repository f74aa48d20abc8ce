//! Connections to HTTP/2 backends are shared: a cancelled request does not disturb others, and a connection that its
//! backend closes with GOAWAY loses no request.

use crate::group::Group;
use crate::support::{Gateway, Raw, Request, eventually_true, route};
use bytes::Bytes;
use h2::Reason;
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

/// After so many cancelled requests on a connection the backend closes it, as servers do against rapid resets.
const DEFENCE: usize = 100;
/// No more than this many of them may be on a connection that other requests use.
const PUT_UP_WITH: usize = 24;

/// A backend whose responses begin and never end, except for `/hold`, which it answers when released.
struct Defended {
    address: SocketAddr,
    shared: Arc<Shared>,
    release: watch::Sender<bool>,
    _runtime: Runtime,
}

#[derive(Default)]
struct Shared {
    /// Requests that came.
    seen: AtomicUsize,
    /// Cancelled requests, by connection.
    resets: Mutex<Vec<usize>>,
}

impl Defended {
    fn start() -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (shared, (release, released)) = (Arc::new(Shared::default()), watch::channel(false));
        let serving = Arc::clone(&shared);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&serving), released.clone()));
            }
        });
        Self { address, shared, release, _runtime: runtime }
    }

    fn seen(&self) -> usize {
        self.shared.seen.load(Ordering::Acquire)
    }

    fn resets(&self) -> Vec<usize> {
        self.shared.resets.lock().unwrap().clone()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, released: watch::Receiver<bool>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let number = {
        let mut resets = shared.resets.lock().unwrap();
        resets.push(0);
        resets.len() - 1
    };
    let (tell, mut told) = mpsc::channel::<()>(1_000);
    loop {
        tokio::select! {
            biased;
            Some(()) = told.recv() => {
                let mut resets = shared.resets.lock().unwrap();
                resets[number] += 1;
                if resets[number] >= DEFENCE {
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                }
            }
            accepted = connection.accept() => {
                let Some(Ok((request, mut respond))) = accepted else { return };
                shared.seen.fetch_add(1, Ordering::AcqRel);
                let (tell, mut released) = (tell.clone(), released.clone());
                tokio::spawn(async move {
                    let holds = request.uri().path().ends_with("hold");
                    if holds {
                        released.wait_for(|released| *released).await.ok();
                    }
                    // The client notices when its request was cancelled before.
                    let Ok(mut body) = respond.send_response(http::Response::new(()), false) else { return };
                    body.send_data(Bytes::from_static(b"begun"), holds).ok();
                    if !holds {
                        std::future::poll_fn(|context| body.poll_reset(context)).await.ok();
                        tell.send(()).await.ok();
                    }
                });
            }
        }
    }
}

/// Requests of five keys that wait for their responses, sent before anything else.
fn bystanders(group: &Group, seen: impl Fn() -> usize) -> Vec<Raw> {
    let keys: Vec<_> = (0..5).map(|_| group.gateway.create_key(json!({}))).collect();
    let mut waiting = Vec::new();
    for key in keys.iter().flat_map(|key| std::iter::repeat_n(key, 4)) {
        let mut client = group.gateway.connect();
        client.send(&Request::get("/v1/app/hold").bearer(&key.secret).bytes());
        waiting.push(client);
        eventually_true("it waits", || seen() == waiting.len());
    }
    waiting
}

/// Begins a request whose response never ends.
fn begin(group: &Group, secret: &str) -> Raw {
    let mut client = group.gateway.connect();
    client.send(&Request::get("/v1/app/endless").bearer(secret).bytes());
    assert_eq!(client.response_head().status, 200);
    client
}

fn all_are_answered(waiting: Vec<Raw>) {
    for mut client in waiting {
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (200, "begun"));
    }
}

fn all_are_served(backend: &Defended, waiting: Vec<Raw>) {
    backend.release.send(true).unwrap();
    all_are_answered(waiting);
    let resets = backend.resets();
    assert!(resets[0] <= PUT_UP_WITH, "on the connection that others use: {resets:?}");
    assert!(resets.iter().all(|resets| *resets < DEFENCE), "{resets:?}");
}

#[test]
fn requests_cancelled_one_after_the_other_break_nobody_elses() {
    let backend = Defended::start();
    let group = Group::start_with(&[backend.address], "protocol = \"http2\"");
    let waiting = bystanders(&group, || backend.seen());
    assert_eq!(backend.resets().len(), 1, "all over one connection");
    for n in 1..=300 {
        begin(&group, &group.secret).hang_up();
        eventually_true("it is cancelled", || backend.resets().iter().sum::<usize>() == n);
    }
    all_are_served(&backend, waiting);
}

#[test]
fn requests_cancelled_all_at_once_break_nobody_elses() {
    let backend = Defended::start();
    let group = Group::start_with(&[backend.address], "protocol = \"http2\"");
    let waiting = bystanders(&group, || backend.seen());
    assert_eq!(backend.resets().len(), 1, "all over one connection");
    for round in 1..=3 {
        let begun: Vec<_> = (0..90).map(|_| begin(&group, &group.secret)).collect();
        begun.into_iter().for_each(Raw::hang_up);
        eventually_true("they are cancelled", || backend.resets().iter().sum::<usize>() == round * 90);
    }
    all_are_served(&backend, waiting);
}

#[test]
fn requests_that_many_keys_cancel_now_and_then_break_nobody_elses() {
    let backend = Defended::start();
    let group = Group::start_with(&[backend.address], "protocol = \"http2\"");
    let waiting = bystanders(&group, || backend.seen());
    assert_eq!(backend.resets().len(), 1, "all over one connection");
    let keys: Vec<_> = (0..40).map(|_| group.gateway.create_key(json!({}))).collect();
    for (n, key) in keys.iter().cycle().take(120).enumerate() {
        begin(&group, &key.secret).hang_up();
        eventually_true("it is cancelled", || backend.resets().iter().sum::<usize>() == n + 1);
    }
    all_are_served(&backend, waiting);
}

/// A backend that keeps sending for a while after a request was cancelled. The first requests on its first connection,
/// those of the bystanders, it answers when released.
struct Careless {
    address: SocketAddr,
    seen: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
    first: Arc<Mutex<Option<std::net::TcpStream>>>,
}

const BYSTANDERS: u32 = 20;
/// Chunks that it sends of a cancelled response.
const LATE: usize = 40;

impl Careless {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, cancelled, first) = (Arc::default(), Arc::default(), Arc::default());
        let backend = Self { address, seen, cancelled, first };
        let (seen, cancelled) = (Arc::clone(&backend.seen), Arc::clone(&backend.cancelled));
        let first = Arc::clone(&backend.first);
        std::thread::spawn(move || {
            for (n, stream) in listener.incoming().map(Result::unwrap).enumerate() {
                stream.set_nodelay(true).unwrap();
                if n == 0 {
                    *first.lock().unwrap() = Some(stream.try_clone().unwrap());
                }
                let (seen, cancelled) = (Arc::clone(&seen), Arc::clone(&cancelled));
                // A client that waits on a broken connection notices.
                std::thread::spawn(move || careless(stream, n == 0, &seen, &cancelled));
            }
        });
        backend
    }

    fn answer_bystanders(&self) {
        let mut first = self.first.lock().unwrap();
        for id in (0..BYSTANDERS).map(|n| 2 * n + 1) {
            first.as_mut().unwrap().write_all(&[answer_head(id), data(id, b"begun", true)].concat()).unwrap();
        }
    }
}

fn raw_frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
}

/// `:status: 200` and no more.
fn answer_head(id: u32) -> Vec<u8> {
    raw_frame(1, 4, id, &[0x88])
}

fn data(id: u32, payload: &[u8], is_last: bool) -> Vec<u8> {
    raw_frame(0, is_last.into(), id, payload)
}

fn careless(
    mut stream: std::net::TcpStream,
    is_first: bool,
    seen: &AtomicUsize,
    cancelled: &AtomicUsize,
) -> std::io::Result<()> {
    stream.read_exact(&mut [0; 24])?;
    stream.write_all(&raw_frame(4, 0, 0, &[]))?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload)?;
        match head[3] {
            1 => {
                seen.fetch_add(1, Ordering::AcqRel);
                if !is_first || id >= 2 * BYSTANDERS {
                    stream.write_all(&[answer_head(id), data(id, b"begun", false)].concat())?;
                }
            }
            3 => {
                stream.write_all(&data(id, b"x", false).repeat(LATE))?;
                cancelled.fetch_add(1, Ordering::AcqRel);
            }
            4 | 6 if head[4] == 0 => {
                stream.write_all(&raw_frame(head[3], 1, 0, if head[3] == 6 { &payload } else { &[] }))?
            }
            _ => {}
        }
    }
}

#[test]
fn late_frames_of_cancelled_requests_disturb_no_other_stream() {
    let backend = Careless::start();
    let group = Group::start_with(&[backend.address], "protocol = \"http2\"");
    let waiting = bystanders(&group, || backend.seen.load(Ordering::Acquire));
    for n in 1..=200 {
        begin(&group, &group.secret).hang_up();
        eventually_true("it is cancelled", || backend.cancelled.load(Ordering::Acquire) == n);
    }
    backend.answer_bystanders();
    all_are_answered(waiting);
}

/// A backend whose first connection sends GOAWAY as soon as it has all the bytes that its window allows, or a whole body,
/// and reports that it has processed nothing. Later connections serve, and record the bodies.
struct Leaving {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
    _runtime: Runtime,
}

impl Leaving {
    fn start() -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let bodies = Arc::new(Mutex::default());
        let noted = Arc::clone(&bodies);
        runtime.spawn(async move {
            let (first, _) = listener.accept().await.unwrap();
            tokio::spawn(leave(first));
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(note(stream, Arc::clone(&noted)));
            }
        });
        Self { address, bodies, _runtime: runtime }
    }
}

async fn leave(mut stream: TcpStream) -> std::io::Result<()> {
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY_OF_ALL: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    stream.read_exact(&mut [0; 24]).await?;
    stream.write_all(SETTINGS).await?;
    let mut came = 0;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        let is_last = head[3] <= 1 && head[4] & 1 == 1;
        came += if head[3] == 0 { length } else { 0 };
        if is_last || came == 65_535 {
            stream.write_all(GOAWAY_OF_ALL).await?;
            // Until the client has closed.
            return tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop);
        }
    }
}

async fn note(stream: TcpStream, bodies: Arc<Mutex<Vec<Vec<u8>>>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let bodies = Arc::clone(&bodies);
        tokio::spawn(async move {
            let (mut body, mut bytes) = (request.into_body(), Vec::new());
            while let Some(Ok(part)) = body.data().await {
                body.flow_control().release_capacity(part.len()).unwrap();
                bytes.extend_from_slice(&part);
            }
            bodies.lock().unwrap().push(bytes);
            respond.send_response(http::Response::new(()), true).unwrap();
        });
    }
}

fn body_of(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

/// A gateway in front of it that speaks HTTP/2 to clients as well.
fn before(backend: &Leaving) -> (Gateway, String) {
    let config = format!(
        "[proxy]\nlisten_h2c = [\"127.0.0.1:0\"]\n[[upstreams]]\nname = \"app\"\nservers = [\"{}\"]\nprotocol = \"http2\"\n",
        backend.address
    );
    let gateway = Gateway::start(&(config + &route("app", "/v1/app/{rest*}", "app", "")));
    let secret = gateway.create_key(json!({})).secret;
    (gateway, secret)
}

#[test]
fn requests_after_goaway_are_retried_whatever_their_method() {
    for bytes in [0, 1_000, 60_000, 66_000, 100_000, 400_000] {
        for chunked in [false, true] {
            let backend = Leaving::start();
            let (gateway, secret) = before(&backend);
            let body = body_of(bytes);
            let mut client = gateway.connect();
            let status = if chunked {
                let request = Request::new("POST", "/v1/app/x").bearer(&secret);
                client.send(&request.header("Transfer-Encoding", "chunked").bytes());
                for part in body.chunks(10_000) {
                    client.send(&[format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
                }
                client.send(b"0\r\n\r\n");
                client.response().status
            } else {
                client.call(&Request::post("/v1/app/x", body.clone()).bearer(&secret)).status
            };
            assert_eq!(status, 200, "{bytes} bytes, chunked: {chunked}");
            let bodies = std::mem::take(&mut *backend.bodies.lock().unwrap());
            assert!(bodies == [body], "{bytes} bytes, chunked: {chunked}");
            // The connection stays open.
            let next = client.call(&Request::post("/v1/app/x", b"next".to_vec()).bearer(&secret));
            assert_eq!(next.status, 200);
        }
    }
}

#[test]
fn requests_after_goaway_are_retried_for_http2_clients() {
    for bytes in [0, 60_000, 100_000, 400_000] {
        let backend = Leaving::start();
        let (gateway, secret) = before(&backend);
        let address = gateway.ready["proxy_h2c"].as_str().unwrap().to_owned();
        let body = body_of(bytes);
        let status = runtime().block_on(post_over_http2(address, &secret, body.clone()));
        assert_eq!(status, 200, "{bytes} bytes");
        assert!(*backend.bodies.lock().unwrap() == [body], "{bytes} bytes");
    }
}

async fn post_over_http2(address: String, secret: &str, body: Vec<u8>) -> u16 {
    let stream = TcpStream::connect(address).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let request = http::Request::post("http://gateway.test/v1/app/x")
        .header("authorization", format!("Bearer {secret}"))
        .body(())
        .unwrap();
    let (response, mut sending) = send.ready().await.unwrap().send_request(request, false).unwrap();
    sending.send_data(Bytes::from(body), true).unwrap();
    response.await.unwrap().status().as_u16()
}
