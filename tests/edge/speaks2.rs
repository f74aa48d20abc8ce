//! An HTTP/2 backend that answers in ways that HTTP/1.1 does not have.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

/// The events of the form `drip`.
pub(crate) const DRIP: [&str; 2] = [
    "data: {\"id\":\"c-1\",\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n",
    "data: {\"id\":\"c-1\",\"model\":\"gpt-4o\",\"choices\":[],\"usage\":{\"prompt_tokens\":90,\"completion_tokens\":40}}\n\n",
];

/// The backend. Dropping it ends it.
pub(crate) struct Speaks2 {
    pub(crate) address: SocketAddr,
    heard: Arc<Mutex<Vec<(HeaderMap, Vec<u8>)>>>,
    /// Each permit lets one answer of the form `drip` go on.
    released: Arc<Semaphore>,
    _stop: oneshot::Sender<()>,
}

impl Speaks2 {
    pub(crate) fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let heard: Arc<Mutex<Vec<_>>> = Arc::default();
        let released = Arc::new(Semaphore::new(0));
        let (hears, waits) = (Arc::clone(&heard), Arc::clone(&released));
        let (stop, stopped) = oneshot::channel::<()>();
        // A test may run inside a runtime, which must not start another.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                let accept = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(serve(stream, Arc::clone(&hears), Arc::clone(&waits)));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, heard, released, _stop: stop }
    }

    /// Lets one answer of the form `drip` go on to its end.
    pub(crate) fn release(&self) {
        self.released.add_permits(1);
    }

    /// The fields and body of each complete request.
    pub(crate) fn heard(&self) -> Vec<(HeaderMap, Vec<u8>)> {
        self.heard.lock().unwrap().clone()
    }
}

async fn serve(stream: TcpStream, heard: Arc<Mutex<Vec<(HeaderMap, Vec<u8>)>>>, released: Arc<Semaphore>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(answer(request, respond, Arc::clone(&heard), Arc::clone(&released)));
    }
}

/// By the last segment of the path.
async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    heard: Arc<Mutex<Vec<(HeaderMap, Vec<u8>)>>>,
    released: Arc<Semaphore>,
) {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let form = path.rsplit('/').next().unwrap_or_default();
    if form == "deaf" {
        // Reads nothing and sends nothing until its peer resets the stream.
        std::future::poll_fn(|context| respond.poll_reset(context)).await.ok();
        return;
    }
    let mut came = Vec::new();
    while let Some(part) = body.data().await {
        let Ok(part) = part else { return };
        body.flow_control().release_capacity(part.len()).unwrap();
        came.extend_from_slice(&part);
    }
    heard.lock().unwrap().push((head.headers, came));
    let with = |length: Option<&'static str>| {
        let mut response = Response::new(());
        if let Some(length) = length {
            response.headers_mut().insert("content-length", HeaderValue::from_static(length));
        }
        response
    };
    if form == "hints" {
        let hints = Response::builder().status(103).header("link", "</a.css>").body(()).unwrap();
        respond.send_informational(hints).unwrap();
    }
    // The client may have left.
    let mut begin = |response, end| respond.send_response(response, end).ok();
    let send = |to: &mut Option<SendStream<Bytes>>, part: &'static [u8], end| {
        to.as_mut().map(|to| to.send_data(Bytes::from_static(part), end).ok());
    };
    match form {
        // The head is the whole response and has no length.
        "bare" => drop(begin(with(None), true)),
        // The end comes in a frame of its own, after all bytes of the announced length.
        "length" => {
            let mut to = begin(with(Some("2")), false);
            send(&mut to, b"ok", false);
            tokio::task::yield_now().await;
            send(&mut to, b"", true);
        }
        "unknown" => {
            let mut to = begin(with(None), false);
            send(&mut to, b"ok", true);
        }
        "trailers" => {
            let mut to = begin(with(None), false);
            send(&mut to, b"ok", false);
            let trailers = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]);
            to.as_mut().map(|to| to.send_trailers(trailers).ok());
        }
        // Two events: one at once, and one with the usage when it is released.
        "drip" => {
            let mut response = with(None);
            response.headers_mut().insert("content-type", HeaderValue::from_static("text/event-stream"));
            let mut to = begin(response, false);
            send(&mut to, DRIP[0].as_bytes(), false);
            released.acquire().await.unwrap().forget();
            send(&mut to, DRIP[1].as_bytes(), true);
        }
        _ => {
            let mut to = begin(with(Some("2")), false);
            send(&mut to, b"ok", true);
        }
    }
}
