//! An origin that streams like a language model: one event after the other, with a pause before each.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Events of one response, and the pause before each.
const EVENTS: usize = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// Serves until the process is ended, a thread for each connection.
pub(crate) fn run(listen: SocketAddr) {
    for stream in TcpListener::bind(listen).unwrap().incoming() {
        let stream = stream.unwrap();
        std::thread::spawn(move || serve(stream));
    }
}

fn serve(stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
        // The client has left.
        if line == "\r\n" && answer(lines.get_mut()).is_err() {
            return;
        }
        line.clear();
    }
}

fn answer(out: &mut TcpStream) -> std::io::Result<()> {
    out.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let event = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"forty-two\"}}]}\n\n";
    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
    for _ in 0..EVENTS {
        std::thread::sleep(PAUSE);
        out.write_all(chunk.as_bytes())?;
    }
    out.write_all(b"0\r\n\r\n")
}
