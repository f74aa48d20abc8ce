//! Bodies that arrive together with their head, and with what follows them.

use super::*;
use crate::metrics::Metrics;
use crate::proxy::connection::table::{ConnectionLimits, ConnectionTable};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn of_a_body_that_was_sent_ahead_no_more_comes_along_than_is_kept_to_be_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a client");
    let (stream, peer) = listener.accept().await.expect("a connection");
    let table = table();
    let place = table.register(peer, false, false).expect("a place");
    let mut client_stream = H1ClientStream::new(Socket::Plain(stream), Arc::clone(place.connection()));
    for (framing, sent) in [
        (Framing::Length(200_000), [b"head".as_slice(), &vec![b'x'; 200_000], b"next"].concat()),
        (
            Framing::Chunked,
            [b"head30d40\r\n".as_slice(), &vec![b'x'; 200_000], b"\r\n0\r\n\r\nnext"].concat(),
        ),
    ] {
        client_stream.read_buf = BytesMut::from(sent.as_slice());
        let along = client_stream.begin(4, framing).expect("a body");
        assert_eq!((along.len(), client_stream.is_between_requests()), (4 + ALONG, false), "{framing:?}");
        let mut body = along[4..].to_vec();
        while !client_stream.is_between_requests() {
            let mut part = [0; 64 * 1024];
            let came = client_stream.read(&mut part).await.expect("a part");
            body.extend_from_slice(&part[..came]);
        }
        assert!(body == sent[4..sent.len() - 4], "{framing:?}: {} bytes", body.len());
        assert_eq!(client_stream.buffered(), b"next");
    }
    drop(client);
}

#[tokio::test]
async fn little_is_read_of_what_follows_a_body() {
    /// The body, the same in one chunk, and as much of other requests as a client likes.
    const BODY: usize = 40_000;
    for (framing, before, after) in
        [(Framing::Length(BODY as u64), "", ""), (Framing::Chunked, "9c40\r\n", "\r\n0\r\n\r\n")]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut client = TcpStream::connect(address).await.expect("a client");
        let (stream, peer) = listener.accept().await.expect("a connection");
        let table = table();
        let place = table.register(peer, false, false).expect("a place");
        let mut client_stream = H1ClientStream::new(Socket::Plain(stream), Arc::clone(place.connection()));
        client_stream.read_buf = BytesMut::from("head");
        client_stream.begin(4, framing).expect("a body");
        let body = [before.as_bytes(), &[b'x'; BODY], after.as_bytes()].concat();
        client.write_all(&[&body[..], &[b'n'; 60_000]].concat()).await.expect("it is sent");
        let mut came = Vec::new();
        while !client_stream.is_between_requests() {
            let mut part = [0; 64 * 1024];
            let read = client_stream.read(&mut part).await.expect("a part");
            came.extend_from_slice(&part[..read]);
        }
        assert!(came == body, "{framing:?}: {} bytes", came.len());
        let ahead = client_stream.buffered().len();
        assert!(ahead <= EXCHANGE_BUFFER, "{framing:?}: {ahead} bytes of other requests");
    }
}

fn table() -> Arc<ConnectionTable> {
    let day = Duration::from_hours(24);
    let deadlines = crate::proxy::connection::Deadlines {
        first_byte: day,
        head: day,
        idle: day,
        body: day,
        write: day,
        linger: day,
        last_request: day,
    };
    let bounds = ConnectionLimits { connections: 1, per_address: 0, body_rate: 0, bytes: 0 };
    ConnectionTable::new(
        deadlines,
        bounds,
        (day, Box::new(|_| None)),
        Arc::new(Metrics::new().expect("metrics")),
    )
}
