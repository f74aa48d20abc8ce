//! An identity provider that does what each test says, right or wrong.

use crate::admin::tests::{Api, NOW, workspace};
use crate::admin::{ClientCredentials, GroupGrant, Oidc, OidcClaims, OidcOptions, Role};
use crate::http_client::HttpTrust;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as B64};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

pub(super) const CLIENT: &str = "console";
pub(super) const SECRET: &str = "a client's: secret";
pub(super) const HOUR: i64 = 3_600;

/// What the provider does.
pub(super) struct Behaviour {
    /// The seed and name of its key.
    pub(super) key: u8,
    /// The keys that it publishes.
    pub(super) published: Vec<u8>,
    /// Added to the claims of ID tokens; null removes.
    pub(super) claims: Map<String, Value>,
    /// Added to its document; null removes.
    pub(super) document: Map<String, Value>,
    pub(super) userinfo: Value,
    /// The header of ID tokens, if it is another one.
    pub(super) header: Option<Value>,
    /// The status of every answer.
    pub(super) status: StatusCode,
    /// Codes that may be redeemed, with the challenge and the nonce of their sign-in.
    pub(super) codes: HashMap<String, (String, String)>,
    /// How often its document was read.
    pub(super) reads: u32,
}

#[derive(Clone)]
pub(super) struct Provider {
    pub(super) issuer: String,
    pub(super) behaviour: Arc<Mutex<Behaviour>>,
}

impl Provider {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issuer = format!("http://{}/realms/staff", listener.local_addr().expect("an address"));
        let behaviour = Behaviour {
            key: 1,
            published: vec![1],
            claims: Map::new(),
            document: Map::new(),
            userinfo: Value::Null,
            header: None,
            status: StatusCode::OK,
            codes: HashMap::new(),
            reads: 0,
        };
        let provider = Self { issuer, behaviour: Arc::new(Mutex::new(behaviour)) };
        let router = Router::new()
            .route("/realms/staff/.well-known/openid-configuration", get(document))
            .route("/keys", get(keys))
            .route("/token", post(token))
            .route("/userinfo", get(userinfo))
            .with_state(provider.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        provider
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().expect("no test panicked"));
    }

    pub(super) fn reads(&self) -> u32 {
        self.behaviour.lock().expect("no test panicked").reads
    }

    /// The claims that ID tokens have besides the usual ones.
    pub(super) fn say(&self, claims: Value) {
        self.set(|provider| provider.claims = claims.as_object().expect("an object").clone());
    }

    pub(super) fn options(&self, grants: &[(&str, Role, &str)]) -> OidcOptions {
        let grant = |(group, role, at): &(&str, Role, &str)| GroupGrant {
            group: (*group).to_owned(),
            role: *role,
            workspace: (!at.is_empty()).then(|| workspace(at)),
        };
        OidcOptions {
            issuer: self.issuer.clone(),
            trust: HttpTrust::new(None).expect("the system's roots"),
            client_id: CLIENT.into(),
            credentials: Some(Arc::new(ClientCredentials::new(CLIENT, SECRET))),
            public_url: "https://console.test".into(),
            scopes: vec!["openid".into(), "profile".into()],
            grants: grants.iter().map(grant).collect(),
            claims: OidcClaims { groups: "realm.groups".into(), name: "name".into() },
            timeout: Duration::from_secs(30),
            leeway: Duration::from_secs(5),
        }
    }

    pub(super) async fn api(&self) -> Api {
        self.api_with(|_| {}).await
    }

    /// An API that signs people in here.
    pub(super) async fn api_with(&self, adjust: impl FnOnce(&mut OidcOptions)) -> Api {
        let mut options = self.options(&[
            ("looks-a", Role::Viewer, "ws-a"),
            ("works-a", Role::Admin, "ws-a"),
            ("looks-b", Role::Viewer, "ws-b"),
            ("runs-all", Role::Platform, ""),
        ]);
        adjust(&mut options);
        Api::start_with(|deps| {
            let oidc = Oidc::new(options, Arc::clone(&deps.clock), Arc::clone(&deps.metrics));
            deps.oidc = Some(Arc::new(oidc.expect("right options")));
        })
        .await
    }

    /// What the provider does when somebody has typed their password: the code of its answer.
    pub(super) fn code(&self, asked: &HashMap<String, String>) -> String {
        assert_eq!(asked["code_challenge_method"], "S256");
        let code = format!("code for {}", asked["state"]);
        self.set(|provider| {
            let of = (asked["code_challenge"].clone(), asked["nonce"].clone());
            provider.codes.insert(code.clone(), of);
        });
        code
    }
}

async fn document(State(provider): State<Provider>) -> (StatusCode, String) {
    let mut known = provider.behaviour.lock().expect("no test panicked");
    known.reads += 1;
    let (at, _) = provider.issuer.split_once("/realms").expect("an issuer");
    let mut document = json!({
        "issuer": provider.issuer,
        "authorization_endpoint": format!("{at}/authorize?tenant=1"),
        "token_endpoint": format!("{at}/token"),
        "userinfo_endpoint": format!("{at}/userinfo"),
        "end_session_endpoint": format!("{at}/end"),
        "jwks_uri": format!("{at}/keys"),
    });
    apply(document.as_object_mut().expect("an object"), &known.document);
    (known.status, document.to_string())
}

async fn keys(State(provider): State<Provider>) -> (StatusCode, String) {
    let known = provider.behaviour.lock().expect("no test panicked");
    let key = |seed: &u8| {
        let x = B64.encode(pair(*seed).public_key());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": seed.to_string(), "x": x, "use": "sig"})
    };
    (known.status, json!({"keys": known.published.iter().map(key).collect::<Vec<_>>()}).to_string())
}

async fn token(State(provider): State<Provider>, headers: HeaderMap, body: String) -> (StatusCode, String) {
    let form = fields(&format!("/?{body}"));
    let mut known = provider.behaviour.lock().expect("no test panicked");
    let refused = |error: &str| (StatusCode::BAD_REQUEST, json!({"error": error}).to_string());
    let basic = format!("Basic {}", STANDARD.encode(format!("{CLIENT}:a%20client%27s%3A%20secret")));
    let in_body = form.get("client_secret").is_some_and(|secret| secret == SECRET);
    if headers.get("authorization").is_none_or(|value| *value != *basic) && !in_body {
        return refused("invalid_client");
    }
    assert_eq!(form["redirect_uri"], "https://console.test/console/oidc/callback");
    // A code is redeemed once.
    let Some((challenge, nonce)) = known.codes.remove(&form["code"]) else { return refused("invalid_grant") };
    if B64.encode(Sha256::digest(&form["code_verifier"])) != challenge {
        return refused("invalid_grant");
    }
    let now = NOW.as_secs();
    let mut claims = json!({
        "iss": provider.issuer, "aud": CLIENT, "sub": "u-1", "iat": now, "exp": now + HOUR, "nonce": nonce,
        "name": "Ada Lovelace",
    });
    apply(claims.as_object_mut().expect("an object"), &known.claims);
    let header =
        known.header.clone().unwrap_or_else(|| json!({"alg": "EdDSA", "kid": known.key.to_string()}));
    let signed = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
    let id_token = format!("{signed}.{}", B64.encode(pair(known.key).sign(signed.as_bytes())));
    let answer = json!({"id_token": id_token, "access_token": "an-access-token", "token_type": "Bearer"});
    (known.status, answer.to_string())
}

async fn userinfo(State(provider): State<Provider>, headers: HeaderMap) -> (StatusCode, String) {
    assert_eq!(headers["authorization"], "Bearer an-access-token");
    let known = provider.behaviour.lock().expect("no test panicked");
    (known.status, known.userinfo.to_string())
}

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("a key")
}

fn apply(to: &mut Map<String, Value>, changes: &Map<String, Value>) {
    for (name, value) in changes {
        match value {
            Value::Null => to.remove(name),
            value => to.insert(name.clone(), value.clone()),
        };
    }
}

/// The fields of the query of a URL.
pub(super) fn fields(url: &str) -> HashMap<String, String> {
    let uri = url.parse().expect("a URL");
    axum::extract::Query::try_from_uri(&uri).expect("a query").0
}
