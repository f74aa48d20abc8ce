//! A private redis-server on its own port, without persistence. It ends with the test.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How often a starting server is polled, every 5 ms.
const ASKED_MAX: usize = 2_000;

pub(crate) struct RedisServer {
    process: Child,
    pub(crate) address: SocketAddr,
    options: Vec<String>,
}

/// A port that is free at the moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
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
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
            if let Some(process) = spawn(address, &options) {
                return Self { process, address, options };
            }
        }
        panic!("redis-server does not come up");
    }

    /// With a config file, which the server may write.
    pub(crate) fn of_file(file: &Path, address: SocketAddr, options: &[&str]) -> Self {
        let mut command = Command::new("redis-server");
        command.arg(file).args(options);
        let process = watch(command, address).expect("the server comes up");
        Self { process, address, options: Vec::new() }
    }

    /// `-STOP` or `-CONT`.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill {signal} {}", self.process.id())]).status();
        assert!(sent.expect("a shell").success());
    }

    /// Kills the server and starts an empty one in its place.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let again = (0..100).find_map(|_| spawn(self.address, &self.options));
        self.process = again.expect("the server comes up again at its port");
    }

    pub(crate) fn stop(&mut self) {
        // It may have ended already.
        drop(self.process.kill());
        self.process.wait().expect("the server's exit");
    }

    /// Sends one command and returns the raw answer.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        self.commands(&[words])
    }

    /// What is counted of a subject's life: start and end of the window, what was used, and what is known from before.
    pub(crate) fn spent(&self, hash: &str) -> u64 {
        let answer = self.command(&["HGET", hash, "w6"]);
        let of_life = answer.rsplit("\r\n").next().and_then(|text| text.split(' ').nth(2));
        of_life.and_then(|used| used.parse().ok()).unwrap_or(0)
    }

    /// Sends several commands on one connection and returns the last answer.
    pub(crate) fn commands(&self, commands: &[&[&str]]) -> String {
        let mut stream = TcpStream::connect(self.address).expect("the server");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let mut last = String::new();
        for words in commands {
            let mut text = format!("*{}\r\n", words.len());
            for word in *words {
                text.extend(["$", &word.len().to_string(), "\r\n", word, "\r\n"]);
            }
            stream.write_all(text.as_bytes()).expect("the command");
            let mut answer = [0_u8; 16_384];
            let n = loop {
                match stream.read(&mut answer) {
                    // Happens after the process was stopped for a while.
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    read => break read.expect("an answer"),
                }
            };
            last = String::from_utf8_lossy(&answer[..n]).trim().to_owned();
        }
        last
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(address: SocketAddr, options: &[String]) -> Option<Child> {
    let port = address.port().to_string();
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", "/tmp"])
        .args(["--maxclients", "2000"])
        .args(options);
    watch(command, address)
}

/// Starts it and waits until it answers; `None` if it ends instead.
fn watch(mut command: Command, address: SocketAddr) -> Option<Child> {
    let mut process = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is needed for this test: apt-get install redis-server");
    // The state of another process can only be polled.
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
