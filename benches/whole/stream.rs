//! An origin that streams like a language model: one event after the other, with a pause before each.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Events of one response, and the pause before each.
const EVENTS: usize = 50;
const PAUSE: Duration = Duration::from_millis(2);
/// All but the last one, as models send them for each token.
const EVENT: &str = "data: {\"id\":\"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWx\",\"object\":\"chat.completion.chunk\",\"created\":1764547200,\
     \"model\":\"gpt-4o-2024-08-06\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_0123456789\",\"choices\":[{\"index\":0,\
     \"delta\":{\"content\":\" token\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n";
/// What the response used.
const USAGE: &str = "data: {\"id\":\"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWx\",\"object\":\"chat.completion.chunk\",\"created\":1764547200,\
     \"model\":\"gpt-4o-2024-08-06\",\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":49,\"total_tokens\":61}}\n\n";

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
    let (mut line, mut body) = (String::new(), 0);
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
        if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            body = length.trim().parse().unwrap();
        }
        if line == "\r\n" {
            let read = lines.read_exact(&mut vec![0; std::mem::take(&mut body)]);
            // The client has left.
            if read.and_then(|()| answer(lines.get_mut())).is_err() {
                return;
            }
        }
        line.clear();
    }
}

fn answer(out: &mut TcpStream) -> std::io::Result<()> {
    out.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let chunk = |event: &str| format!("{:x}\r\n{event}\r\n", event.len());
    let (event, usage) = (chunk(EVENT), chunk(USAGE));
    for number in 1..=EVENTS {
        std::thread::sleep(PAUSE);
        out.write_all(if number < EVENTS { &event } else { &usage }.as_bytes())?;
    }
    out.write_all(b"0\r\n\r\n")
}
