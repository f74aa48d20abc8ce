//! A client on one TCP connection: sends exact bytes and reads one response after the other.

use super::{PATIENCE, Request};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

/// One connection.
pub(crate) struct Raw {
    stream: BufReader<TcpStream>,
}

/// A response as received.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

// === impl Raw ===

impl Raw {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the gateway accepts connections");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// Sends and reads the answer.
    #[track_caller]
    pub(crate) fn call(&mut self, request: &Request) -> Response {
        self.send(&request.bytes());
        self.response_to(request.method())
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("the connection takes what is sent");
    }

    /// Sends bytes to a gateway that may close the connection before it has read them all.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// The next response, which may be an interim one.
    #[track_caller]
    pub(crate) fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    /// The next response, to a request of `method`: that to a `HEAD` has no body.
    #[track_caller]
    pub(crate) fn response_to(&mut self, method: &str) -> Response {
        let mut response = self.response_head();
        let bodiless =
            method == "HEAD" || response.status < 200 || response.status == 204 || response.status == 304;
        if bodiless {
            return response;
        }
        if response.header("transfer-encoding").is_some_and(|c| c.eq_ignore_ascii_case("chunked")) {
            while let Some(chunk) = self.chunk() {
                response.body.extend(chunk);
            }
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().expect("a length");
            response.body.resize(length, 0);
            self.stream.read_exact(&mut response.body).expect("the whole body");
        } else {
            self.stream.read_to_end(&mut response.body).expect("a body up to the end of the connection");
        }
        response
    }

    /// Status line and fields only.
    #[track_caller]
    pub(crate) fn response_head(&mut self) -> Response {
        let line = self.line().expect("a status line, but the connection is closed");
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line().expect("the rest of the head");
            if line.is_empty() {
                return Response { status, headers, body: Vec::new() };
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a field: {line:?}"));
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// The next chunk of a chunked body; `None` at its end.
    #[track_caller]
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.line().expect("the size of a chunk");
        let size =
            usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("not a chunk's size: {line:?}"));
        let mut chunk = vec![0; size];
        self.stream.read_exact(&mut chunk).expect("a whole chunk");
        assert_eq!(self.line().as_deref(), Some(""), "a chunk ends with a line end");
        (size > 0).then_some(chunk)
    }

    /// Whether the gateway closed the connection and sent nothing more. Waits for one or the other.
    pub(crate) fn is_closed(&mut self) -> bool {
        loop {
            match self.stream.fill_buf() {
                Ok(rest) => return rest.is_empty(),
                // Happens after the process was stopped for a while.
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                // A reset is an end as well; a timeout is not.
                Err(e) => return e.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Whether the gateway closes the connection, whatever it sends before.
    pub(crate) fn ends(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// The next `n` bytes, whatever they are.
    #[track_caller]
    pub(crate) fn exactly(&mut self, n: usize) -> Vec<u8> {
        self.try_exactly(n).expect("so many bytes")
    }

    /// The next `n` bytes; `None` where the connection ends before. A timeout is not an end.
    #[track_caller]
    pub(crate) fn try_exactly(&mut self, n: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; n];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("neither bytes nor an end"),
            Err(_) => None,
        }
    }

    /// Closes the write side, and still reads.
    pub(crate) fn say_no_more(&self) {
        self.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// Closes the connection abruptly.
    pub(crate) fn hang_up(self) {
        self.stream.get_ref().shutdown(Shutdown::Both).unwrap();
    }

    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).expect("a line within the time limit");
        if line.is_empty() {
            return None;
        }
        let text = String::from_utf8(line).expect("text");
        Some(text.strip_suffix("\r\n").expect("a line that ends in CRLF").to_owned())
    }
}

// === impl Response ===

impl Response {
    /// The field's value; of several the first.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The field as a number.
    #[track_caller]
    pub(crate) fn number(&self, name: &str) -> u64 {
        let text = self.header(name).unwrap_or_else(|| panic!("no {name} in {self:?}"));
        text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}"))
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Status, code and name of one of Keygate's own responses, after checking the envelope.
    #[track_caller]
    pub(crate) fn fault(&self) -> (u16, u64, String) {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let envelope = self.json();
        let mut fields: Vec<_> =
            envelope.as_object().expect("an object").keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["code", "data", "error", "msg", "time"], "{self:?}");
        assert!(
            envelope["data"].is_object() && envelope["time"].as_i64() > Some(1_600_000_000_000),
            "{envelope}"
        );
        assert!(envelope["msg"].as_str().is_some_and(|m| !m.is_empty()), "{envelope}");
        let name = envelope["error"].as_str().expect("a name").to_owned();
        (self.status, envelope["code"].as_u64().expect("a code"), name)
    }

    /// What `RateLimit` says is left of a limit.
    #[track_caller]
    pub(crate) fn remaining(&self, limit: &str) -> u64 {
        let line = self.header("ratelimit").unwrap_or_else(|| panic!("no RateLimit in {self:?}"));
        let item = line.split(", ").find_map(|item| item.strip_prefix(&format!("\"{limit}\";r=")));
        let item = item.unwrap_or_else(|| panic!("no {limit} in {line}"));
        item.split(';').next().and_then(|n| n.parse().ok()).expect("a number")
    }

    /// `data` of an envelope.
    #[track_caller]
    pub(crate) fn data(&self) -> Value {
        self.json()["data"].clone()
    }
}
