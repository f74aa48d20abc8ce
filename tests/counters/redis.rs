//! A private redis-server: its own port, nothing on disk, gone with the test.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How often a server is asked whether it is up, 5 ms apart.
const ASKED_MAX: usize = 2_000;

pub(crate) struct RedisServer {
    process: Child,
    pub(crate) address: SocketAddr,
    options: Vec<String>,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// With further options, e.g. `["--maxmemory", "10mb"]`.
    pub(crate) fn with(options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        // Another process may take the port before the server does; then the next one is tried.
        for _ in 0..20 {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            let address = listener.local_addr().expect("an address");
            drop(listener);
            if let Some(process) = spawn(address, &options) {
                return Self { process, address, options };
            }
        }
        panic!("redis-server does not come up");
    }

    /// Ends the server as a crash does and starts an empty one in its place.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let again = (0..100).find_map(|_| spawn(self.address, &self.options));
        self.process = again.expect("the server comes up again at its port");
    }

    pub(crate) fn stop(&mut self) {
        // Already ended is as good.
        drop(self.process.kill());
        self.process.wait().expect("the server's exit");
    }

    /// One command, answered as the server wrote it.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        let mut stream = TcpStream::connect(self.address).expect("the server");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text.extend(["$", &word.len().to_string(), "\r\n", word, "\r\n"]);
        }
        stream.write_all(text.as_bytes()).expect("the command");
        let mut answer = [0_u8; 4096];
        let n = stream.read(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer[..n]).trim().to_owned()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(address: SocketAddr, options: &[String]) -> Option<Child> {
    let port = address.port().to_string();
    let mut process = Command::new("redis-server")
        .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", "/tmp"])
        .args(["--maxclients", "2000"])
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is needed for this test: apt-get install redis-server");
    // A server cannot be waited for in any other way than by asking it.
    for _ in 0..ASKED_MAX {
        if process.try_wait().expect("the server's state").is_some() {
            return None;
        }
        if answers(address) {
            return Some(process);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    process.kill().expect("a server that hangs can be ended");
    process.wait().expect("the server's exit");
    None
}

fn answers(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut answer = [0_u8; 7];
    stream.write_all(b"PING\r\n").is_ok() && stream.read(&mut answer).is_ok_and(|n| n > 0)
}
