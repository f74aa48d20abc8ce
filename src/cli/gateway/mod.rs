//! The admin API as commands use it: of a running gateway, or, where none runs, of the store in this process. Both are the same
//! API with the same rules, answers and audit log.

mod local;
mod transport;

use super::output::Output;
use super::{ConfigArgs, Environment, Failure, load};
use crate::fileio;
use crate::http_client::HttpClient;
use crate::policy::text::form::percent_encoded;
use crate::policy::text::url::http_url;
use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{HeaderName, Method, Request, StatusCode};
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;
use transport::Transport;

/// How long a command waits for one answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// Largest file with a token, in bytes.
const TOKEN_MAX: u64 = 16 * 1024;
/// Items on a page; the API allows no more.
const PAGE: &str = "100";
const WORKSPACE: HeaderName = HeaderName::from_static("x-workspace-id");

/// Which gateway a command talks to.
#[derive(Debug, Args)]
pub(super) struct GatewayArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// The admin API to call: `https://HOST:PORT`, `http://HOST:PORT` or `unix:PATH`. Without this argument the command uses
    /// the socket of the config (`[admin] socket`), or the config's store if no gateway runs
    #[arg(long, value_name = "URL", env = "KEYGATE_ADMIN_URL", global = true, help_heading = "Gateway")]
    admin: Option<String>,
    /// A file with a token for that API, such as `keygate token` prints
    #[arg(
        long,
        value_name = "FILE",
        env = "KEYGATE_ADMIN_TOKEN_FILE",
        global = true,
        help_heading = "Gateway"
    )]
    token_file: Option<PathBuf>,
    /// The CA of an https URL, in PEM; without this argument the system's roots
    #[arg(long, value_name = "FILE", env = "KEYGATE_ADMIN_CA_FILE", global = true, help_heading = "Gateway")]
    ca_file: Option<PathBuf>,
    /// Print JSON: one value, or one line for each item of a list
    #[arg(long, global = true)]
    pub(super) json: bool,
}

/// An admin API.
pub(super) struct Gateway {
    runtime: Runtime,
    transport: Transport,
    token: Option<HeaderValue>,
    /// The workspace of the calls; none: that of the token.
    pub(super) workspace: Option<String>,
}

/// A refusal of the API.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Its stable name.
    error: String,
    message: String,
    /// Wrong fields, and why.
    fields: Vec<(String, String)>,
}

/// The path of a call: segments and parameters are encoded.
#[derive(Clone, Debug)]
pub(super) struct ApiPath(String);

/// Runs `work` with the gateway that `args` name.
pub(super) fn with<T>(
    args: &GatewayArgs,
    environment: Environment<'_>,
    work: impl FnOnce(&mut Gateway, &mut Output) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut gateway = Gateway::open(args, environment)?;
    let done = work(&mut gateway, &mut Output::new(args.json, environment));
    let Gateway { runtime, transport, .. } = gateway;
    transport.close(&runtime);
    done
}

// === impl GatewayArgs ===

impl GatewayArgs {
    /// The socket of the configured gateway, if one accepts there.
    fn socket(&self, environment: Environment<'_>) -> Result<Option<PathBuf>, Failure> {
        let Some(path) = load(&self.config, environment)?.admin_socket() else { return Ok(None) };
        match std::os::unix::net::UnixStream::connect(&path) {
            Ok(_) => Ok(Some(path)),
            // The second is left by a process that was killed.
            Err(error) if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind()) => {
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(Failure::Failed(format!(
                "{}: you may not open the socket of the gateway; run this as its user, or use --admin and --token-file",
                path.display()
            ))),
            Err(error) => Err(Failure::Failed(format!("{}: {error}", path.display()))),
        }
    }

    /// Whether the command talks to a gateway that runs, and not to the store.
    pub(super) fn names_running(&self, environment: Environment<'_>) -> Result<bool, Failure> {
        Ok(self.admin.is_some() || self.socket(environment)?.is_some())
    }
}

// === impl Gateway ===

impl Gateway {
    fn open(args: &GatewayArgs, environment: Environment<'_>) -> Result<Self, Failure> {
        let runtime = runtime()?;
        let Some(admin) = &args.admin else {
            if args.token_file.is_some() || args.ca_file.is_some() {
                return Err(Failure::Usage("--token-file and --ca-file need --admin".into()));
            }
            let (runtime, transport) = match args.socket(environment)? {
                Some(path) => (runtime, Transport::socket(path)),
                None => local::open(load(&args.config, environment)?, environment)?,
            };
            return Ok(Self { runtime, transport, token: None, workspace: None });
        };
        let token = args.token_file.as_deref().map(read_token).transpose()?;
        if let Some(path) = admin.strip_prefix("unix:") {
            return Ok(Self { runtime, transport: Transport::socket(path.into()), token, workspace: None });
        }
        let url = http_url(admin).ok_or_else(|| {
            Failure::Usage("--admin: must be https://HOST:PORT, http://HOST:PORT or unix:PATH".into())
        })?;
        if token.is_none() {
            return Err(Failure::Usage(format!("--admin {url} needs a token: --token-file FILE")));
        }
        let host = &url.server.host;
        if !url.tls && host != "localhost" && !host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) {
            eprintln!("keygate: {url}: the token goes over the network unencrypted; use https");
        }
        let ca = args.ca_file.as_deref().map(|path| {
            fileio::read(path).map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
        });
        let client = HttpClient::new(url, ca.transpose()?.as_deref());
        let client = client.map_err(|error| Failure::Failed(format!("--admin: {error}")))?;
        Ok(Self { runtime, transport: Transport::remote(client), token, workspace: None })
    }

    /// Whether calls go to a gateway that runs.
    pub(super) const fn is_running(&self) -> bool {
        !matches!(self.transport, Transport::Local { .. })
    }

    /// The data of an answer.
    pub(super) fn call(
        &mut self,
        method: &Method,
        path: &ApiPath,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        self.attempt(method, path, body, &[])?.map_err(Into::into)
    }

    /// The data of an answer to `GET`.
    pub(super) fn get(&mut self, path: &ApiPath) -> Result<Value, Failure> {
        self.call(&Method::GET, path, None)
    }

    /// The same; none: there is nothing at `path`.
    pub(super) fn find(&mut self, path: &ApiPath) -> Result<Option<Value>, Failure> {
        match self.attempt(&Method::GET, path, None, &[])? {
            Ok(found) => Ok(Some(found)),
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Sends a request; the outer error is that there is no answer.
    pub(super) fn attempt(
        &mut self,
        method: &Method,
        path: &ApiPath,
        body: Option<&Value>,
        more: &[(HeaderName, HeaderValue)],
    ) -> Result<Result<Value, Refusal>, Failure> {
        let mut request = Request::builder().method(method);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        if let Some(workspace) = &self.workspace {
            request = request.header(WORKSPACE, workspace.as_str());
        }
        for (name, value) in more {
            request = request.header(name, value);
        }
        let body = body.map(ToString::to_string).unwrap_or_default();
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.uri(self.transport.target(&path.0)).body(Bytes::from(body));
        let request = request.map_err(Failure::failed)?;
        let transport = &mut self.transport;
        let answer =
            self.runtime.block_on(async { tokio::time::timeout(PATIENCE, transport.send(request)).await });
        let place = self.transport.place();
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Failure::Failed(format!("{place}: {error}{}", tls_hint(&error)))),
            Err(_) => return Err(Failure::Failed(format!("{place}: no answer within {PATIENCE:?}"))),
        };
        let (status, text) = (answer.status(), answer.into_body());
        let Ok(Value::Object(mut envelope)) = serde_json::from_slice(&text) else {
            return Err(Failure::Failed(format!(
                "{place}: is not the admin API of a gateway (status {status})"
            )));
        };
        let data = envelope.remove("data").unwrap_or_default();
        Ok(if status.is_success() { Ok(data) } else { Err(Refusal::read(status, &envelope, &data)) })
    }

    /// Waits.
    pub(super) fn pause(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// Calls `each` with the items of every page of a list, until it says that this is enough.
    pub(super) fn pages(
        &mut self,
        path: &ApiPath,
        mut each: impl FnMut(Vec<Value>) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let mut next = Some(path.clone().with("pagesize", PAGE));
        for number in 2_u32.. {
            let Some(place) = next.take() else { break };
            let mut data = self.get(&place)?;
            let page = data["page"].take();
            let items = match data["items"].take() {
                Value::Array(items) => items,
                _ => Vec::new(),
            };
            if !each(items)? {
                break;
            }
            let path = path.clone().with("pagesize", PAGE);
            next = match &page["next_cursor"] {
                Value::String(cursor) => Some(path.with("cursor", cursor)),
                _ if page["hasnext"] == true => Some(path.with("page", &number.to_string())),
                _ => None,
            };
        }
        Ok(())
    }
}

/// What helps against a certificate that is not believed.
fn tls_hint(error: &std::io::Error) -> &'static str {
    if error.to_string().contains("invalid peer certificate") {
        "\n  hint: name the CA that signed it with --ca-file; a self-signed certificate is its own, and must have CA:FALSE \
         (openssl req: -addext basicConstraints=critical,CA:FALSE)"
    } else {
        ""
    }
}

pub(super) fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)
}

fn read_token(path: &Path) -> Result<HeaderValue, Failure> {
    let why = |what: String| Failure::Failed(format!("{}: {what}", path.display()));
    let text =
        fileio::read_up_to(path, TOKEN_MAX).and_then(fileio::text_of).map_err(|e| why(e.to_string()))?;
    let token = text.trim();
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .ok()
        .filter(|_| !token.is_empty() && !token.contains(char::is_whitespace))
        .ok_or_else(|| why("must contain one token".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

// === impl ApiPath ===

impl ApiPath {
    pub(super) fn of(segments: &[&str]) -> Self {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            path.push_str(&percent_encoded(segment));
        }
        Self(path)
    }

    /// With a parameter.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        let separator = if self.0.contains('?') { '&' } else { '?' };
        // Writing to a string does not fail.
        write!(self.0, "{separator}{name}={}", percent_encoded(value)).ok();
        self
    }

    /// With a parameter, if it has a value.
    pub(super) fn with_some(self, name: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.with(name, &value.to_string()),
            None => self,
        }
    }
}

// === impl Refusal ===

impl Refusal {
    fn read(status: StatusCode, envelope: &Map<String, Value>, data: &Value) -> Self {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let errors = data["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
        let fields = errors.iter().map(|error| (text(error.get("field")), text(error.get("message"))));
        Self {
            status,
            error: text(envelope.get("error")),
            message: text(envelope.get("msg")),
            fields: fields.collect(),
        }
    }

    /// What helps.
    fn hint(&self) -> Option<&'static str> {
        match self.error.as_str() {
            "unauthorized" => Some("name a file with a token: --token-file FILE"),
            "token_invalid" | "token_expired" => Some(
                "`keygate token` makes a token in the folder of the gateway; write it to the file of --token-file",
            ),
            "forbidden" => {
                Some("the role of the token is too low for this; plans and workspaces need the role platform")
            }
            "workspace_no_access" => Some("the token belongs to another workspace; see --workspace"),
            "service_unavailable" => Some("the gateway cannot reach its database; the call can be repeated"),
            "invalid_parameter" if self.fields.iter().any(|(field, _)| WORKSPACE == field.as_str()) => {
                Some("name one with --workspace ID")
            }
            "not_found" if self.message.starts_with("There is no workspace") => {
                Some("`keygate workspaces create ID` creates it")
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.error)?;
        for (field, message) in &self.fields {
            write!(f, "\n  {field}: {message}")?;
        }
        match self.hint() {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<Refusal> for Failure {
    /// Wrong fields are wrong arguments.
    fn from(refusal: Refusal) -> Self {
        match refusal.error.as_str() {
            "validation_failed" | "invalid_parameter" => Self::Usage(refusal.to_string()),
            _ => Self::Failed(refusal.to_string()),
        }
    }
}
