//! A whole gateway: instructions and allocations of a proxied request, of a refused one, and of streams with and without a meter.

use super::{ALLOCATOR, Measured, counted};
use clap::Parser as _;
use keygate::cli::{Cli, Environment};
use keygate::model::key::KeyType;
use keygate::policy::keys::secret::Secret;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

/// Requests before counting starts: connections are opened, caches filled, code translated.
const WARM_UP: u64 = 200;
/// Counted requests.
const REQUESTS: u64 = 1_000;
/// The same for streams.
const STREAMS_WARM_UP: u64 = 5;
const STREAMS: u64 = 25;
/// Events of a stream.
const EVENTS: usize = 64;
/// One of them, as a model sends it for each token.
const EVENT: &str = "data: {\"id\":\"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWx\",\"object\":\"chat.completion.chunk\",\"created\":1764547200,\
     \"model\":\"gpt-4o-2024-08-06\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_0123456789\",\"choices\":[{\"index\":0,\
     \"delta\":{\"content\":\" token\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n";
/// The last one, which says what the answer used.
const USAGE: &str = "data: {\"id\":\"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWx\",\"object\":\"chat.completion.chunk\",\"created\":1764547200,\
     \"model\":\"gpt-4o-2024-08-06\",\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":63,\"total_tokens\":75}}\n\n";
/// The maximum of rounds until one is calm.
const ROUNDS: usize = 5;
/// In a calm round the gateway's threads have waited for a CPU for less than this part of the CPU time that they used. A
/// thread that has to wait wakes up more often for the same requests.
const CALM: u64 = 5;

/// The gateway's own command line, run in this program so that its allocations are counted: after each line on standard
/// input it prints the allocations of the serving thread.
pub(crate) fn run(args: &[String]) -> ExitCode {
    std::thread::spawn(|| {
        for _ in std::io::stdin().lines() {
            println!("{}", serde_json::to_string(&ALLOCATOR.so_far("keygate-proxy")).unwrap());
        }
    });
    // The first argument, which selected this mode, takes the place of the program's name.
    let nothing = Environment { called: &[], variables: &[], host_name: "bench" };
    keygate::cli::run(Cli::parse_from(args), nothing).into()
}

struct Gateway {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<std::process::ChildStdout>,
    proxy: SocketAddr,
    counts: std::path::PathBuf,
    dumps: u32,
}

impl Gateway {
    fn start(folder: &Path) -> Self {
        let counts = folder.join("gateway");
        let mut child = counted(&counts, &["--separate-threads=yes"])
            .args(["gateway", "run", "--ready-json", "--config", "keygate.toml"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .expect("valgrind is installed");
        let (stdin, mut stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
            panic!("it does not start: {}", fs::read_to_string(folder.join("log")).unwrap())
        });
        let proxy = ready["proxy"].as_str().unwrap().parse().unwrap();
        Self { child, stdin, stdout, proxy, counts, dumps: 0 }
    }

    fn allocations(&mut self) -> [u64; 2] {
        self.stdin.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn control(&self, order: &str) {
        let output =
            Command::new("callgrind_control").args([order, &self.child.id().to_string()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Instructions, allocations and allocated bytes per request: the minimum of some rounds, because other work on the
    /// machine can only add to it; and whether one of the rounds was calm.
    fn cost(
        &mut self,
        (warm_up, requests): (u64, u64),
        mut ask: impl FnMut(&mut Client),
    ) -> ([u64; 3], bool) {
        let mut client = Client::connect(self.proxy);
        (0..warm_up).for_each(|_| ask(&mut client));
        let mut least = [u64::MAX; 3];
        for _ in 0..ROUNDS {
            let before = self.time_on_cpus();
            let round = self.round(requests, || ask(&mut client));
            least = std::array::from_fn(|n| least[n].min(round[n]));
            let after = self.time_on_cpus();
            if (after[1] - before[1]) * CALM <= after[0] - before[0] {
                return (least, true);
            }
        }
        (least, false)
    }

    fn round(&mut self, requests: u64, mut ask: impl FnMut()) -> [u64; 3] {
        self.control("--zero");
        let before = self.allocations();
        (0..requests).for_each(|_| ask());
        let after = self.allocations();
        self.control("--dump");
        self.dumps += 1;
        [self.busiest_thread(self.dumps), after[0] - before[0], after[1] - before[1]]
            .map(|figure| figure / requests)
    }

    /// How long its threads have run on a CPU, and have waited for one, in ns. Zero waiting on a kernel that does not
    /// report it.
    fn time_on_cpus(&self) -> [u64; 2] {
        let mut all = [0; 2];
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap() {
            // The thread has just ended.
            let Ok(text) = fs::read_to_string(task.unwrap().path().join("schedstat")) else { continue };
            let mut numbers = text.split_ascii_whitespace().map(|n| n.parse::<u64>().unwrap());
            all.iter_mut().for_each(|sum| *sum += numbers.next().unwrap());
        }
        all
    }

    /// Instructions of the busiest thread, which is the serving one. The figure of the ledger's writer depends on how much
    /// it finds to write at a time.
    fn busiest_thread(&self, dump: u32) -> u64 {
        let name = self.counts.file_name().unwrap().to_str().unwrap();
        let of_thread = |entry: std::io::Result<fs::DirEntry>| {
            let path = entry.unwrap().path();
            path.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix(&format!(".{dump}-"))?;
            let text = fs::read_to_string(path).unwrap();
            text.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
        };
        fs::read_dir(self.counts.parent().unwrap()).unwrap().filter_map(of_thread).max().unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// One connection with one request after the other.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Reads a stream, each event before the origin is told to send the next one, so that the gateway handles each by itself.
    fn ask_for_stream(&mut self, request: &[u8], go: &Sender<()>) {
        self.0.get_mut().write_all(request).unwrap();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            self.0.read_line(&mut line).unwrap();
        }
        loop {
            go.send(()).unwrap();
            line.clear();
            self.0.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            self.0.read_exact(&mut chunk).unwrap();
            if chunk.starts_with(b"data: [DONE]") {
                // The end of the chunks follows at once.
                self.0.read_exact(&mut [0; 5]).unwrap();
                return;
            }
        }
    }

    fn ask(&mut self, request: &[u8], status: &str) {
        self.0.get_mut().write_all(request).unwrap();
        let mut length = 0;
        let mut line = String::new();
        loop {
            let first = line.is_empty();
            line.clear();
            self.0.read_line(&mut line).unwrap();
            assert!(!first || line.starts_with(status), "{line}");
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
    }
}

/// Answers every request with 42 bytes, or with a stream, whose events it sends when it is told to.
fn origin(go: Receiver<()>) -> SocketAddr {
    let go = Arc::new(Mutex::new(go));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            stream.get_ref().set_nodelay(true).unwrap();
            let go = Arc::clone(&go);
            std::thread::spawn(move || {
                let mut line = String::new();
                let mut streams = false;
                while {
                    line.clear();
                    stream.read_line(&mut line).is_ok_and(|n| n > 0)
                } {
                    // The body of the request before it stands in the same line.
                    streams |= line.contains("POST /stream/");
                    if streams && line == "\r\n" {
                        streams = false;
                        if send_events(stream.get_mut(), &go.lock().unwrap()).is_err() {
                            return;
                        }
                    } else if line == "\r\n" {
                        let answer = b"HTTP/1.1 200 OK\r\nServer: origin\r\nContent-Type: application/json\r\nContent-Length: 42\r\n\r\n\
                            {\"answer\":\"forty-two bytes of an origin!\"}";
                        if stream.get_mut().write_all(answer).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

fn send_events(to: &mut TcpStream, go: &Receiver<()>) -> std::io::Result<()> {
    to.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    for n in 0..EVENTS {
        let event = if n + 1 == EVENTS { USAGE } else { EVENT };
        go.recv().map_err(std::io::Error::other)?;
        to.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())?;
    }
    go.recv().map_err(std::io::Error::other)?;
    to.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
}

/// A gateway with a key far from its three limits, and one that is always over its rate.
fn prepare(folder: &Path, go: Receiver<()>) -> [String; 2] {
    let config = format!(
        "[proxy]\nlisten = [\"127.0.0.1:0\"]\nthreads = 1\nmax_invalid_keys = 0\n[admin]\nlisten = \"127.0.0.1:0\"\nthreads = 1\n\
         [plans.default]\napi_ops_rate_limit = 1000000\nend_user_quota = 10000\n\
         [[upstreams]]\nname = \"app\"\nservers = [\"{}\"]\n\
         [[routes]]\npath = \"/v1/app/{{rest*}}\"\nupstream = \"app\"\nscopes = [\"app\"]\n\
         [[routes]]\npath = \"/stream/plain\"\nupstream = \"app\"\nscopes = [\"app\"]\n\
         [[routes]]\npath = \"/stream/metered\"\nupstream = \"app\"\nscopes = [\"app\"]\nmeter = \"llm\"\n",
        origin(go)
    );
    fs::write(folder.join("keygate.toml"), config).unwrap();
    let secrets = [(); 2].map(|()| Secret::generate("sk", KeyType::Service).expose().to_owned());
    let keys = secrets.each_ref().map(|secret| {
        let daily = if *secret == secrets[0] { 1_000_000_000 } else { 1 };
        json!({
            "name": secret[..16], "type": "service", "scopes": ["app"], "api_key": secret, "rate_limit": 1_000_000,
            "daily_request_limit": daily, "quota_limit": 1_000_000_000,
        })
        .to_string()
    });
    fs::write(folder.join("keys.jsonl"), keys.join("\n")).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .current_dir(folder)
        .args(["gateway", "keys", "--config", "keygate.toml", "import", "keys.jsonl"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "the keys are imported");
    secrets
}

pub(crate) fn measure(folder: &Path, all: &mut Measured) {
    let (go, told) = channel();
    let [known, spent] = prepare(folder, told);
    let unknown = Secret::generate("sk", KeyType::Service).expose().to_owned();
    let mut gateway = Gateway::start(folder);
    for (name, secret, status) in [
        ("admitted", known.clone(), "HTTP/1.1 200"),
        ("over its limit", spent, "HTTP/1.1 "),
        ("unknown", unknown, "HTTP/1.1 401"),
    ] {
        let request = format!(
            "POST /v1/app/chat/completions HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: python-requests/2.32.3\r\n\
             Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\
             Authorization: Bearer {secret}\r\n\r\n{{\"model\":42}}"
        );
        let ask = |client: &mut Client| client.ask(request.as_bytes(), status);
        all.add(&format!("a request, {name}"), gateway.cost((WARM_UP, REQUESTS), ask));
    }
    for name in ["plain", "metered"] {
        let body = r#"{"model":"gpt-4o","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Hello?"}]}"#;
        let request = format!(
            "POST /stream/{name} HTTP/1.1\r\nHost: api.example.com\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Authorization: Bearer {known}\r\n\r\n{body}",
            body.len()
        );
        let ask = |client: &mut Client| client.ask_for_stream(request.as_bytes(), &go);
        all.add(&stream_name(name), gateway.cost((STREAMS_WARM_UP, STREAMS), ask));
    }
}

fn stream_name(name: &str) -> String {
    format!("a stream of {EVENTS} events, {name}")
}

impl Measured {
    /// Adds instructions, allocations and allocated bytes.
    fn add(&mut self, name: &str, (figures, is_calm): ([u64; 3], bool)) {
        for (what, figure) in ["instructions", "allocations", "bytes allocated"].into_iter().zip(figures) {
            let name = format!("{name}: {what}");
            if !is_calm {
                self.disturbed.insert(name.clone());
            }
            self.figures.insert(name, figure);
        }
    }
}
