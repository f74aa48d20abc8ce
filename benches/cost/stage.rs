//! Fixtures for the measurements of single parts: a thousand keys with three limits each, and their journal.

use keygate::clock::{Clock, Now, SystemClock};
use keygate::counter::{Charge, Charged, Counters};
use keygate::enduser::{self, EndUserCache};
use keygate::gate::{Admission, Authorized, Gate, RequestView};
use keygate::keyring::{FeedFollower, FeedOptions, FoundKey, Keyring};
use keygate::metrics::Metrics;
use keygate::model::amounts::Amounts;
use keygate::model::calendar::Calendar;
use keygate::model::digest::Digest;
use keygate::model::id::{KeyId, PlanId, RequestId, WorkspaceId};
use keygate::model::key::{Ceilings, Key, KeyType, Plan};
use keygate::model::outage::WhenStoreUnavailable;
use keygate::model::scope::{Scopes, check_granted};
use keygate::model::usage::Outcome;
use keygate::policy::keys::credential::SecretPlace;
use keygate::policy::keys::limit::Limits;
use keygate::policy::keys::secret::{Peppers, Secret};
use keygate::policy::routing::forward::ForwardRules;
use keygate::policy::routing::route::ResourceFrom;
use keygate::policy::routing::route::{EndUserFrom, Route, RouteTable};
use keygate::store::sqlite::{SqliteOptions, SqliteStore};
use keygate::store::{Actor, IssuedCredential, Keys as _, NewKey, PlanRecord, SecretId, Tenants as _};
use keygate::usage::journal::JournalOptions;
use keygate::usage::journal::disk::RealDisk;
use keygate::usage::{Journal, PendingRecord, RecordStart, Recorder, WhenFull};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Known keys.
pub(crate) const KEYS: usize = 1_000;

/// Fixtures of all measurements.
pub(crate) struct Stage {
    pub(crate) gate: Gate,
    routes: RouteTable,
    pub(crate) clock: Arc<dyn Clock>,
    requests: Vec<http::HeaderMap>,
    digests: Vec<Digest>,
    known: Vec<Arc<keygate::keyring::Entry>>,
    recorder: Recorder,
    upstream: Arc<str>,
    _runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

impl Stage {
    /// Takes a moment.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let metrics = Arc::new(Metrics::new().unwrap());
        let peppers = Peppers::parse(&Peppers::generate_line(1)).unwrap();
        let store =
            Arc::new(SqliteStore::open(&folder.path().join("db"), &SqliteOptions::default()).unwrap());
        let secrets: Vec<Secret> = (0..KEYS).map(|_| Secret::generate("sk", KeyType::Service)).collect();
        runtime.block_on(fill(&store, &secrets, &peppers, clock.now()));
        let keyring = Arc::new(Keyring::new());
        let options = FeedOptions { poll_interval: Duration::from_secs(1) };
        let follower = FeedFollower::new(
            Arc::clone(&keyring),
            Arc::clone(&store) as _,
            Arc::clone(&clock),
            options,
            Box::new(|_| {}),
        );
        runtime.block_on(follower.load()).unwrap();
        let end_users = EndUserCache::new(enduser::EndUserParts {
            store,
            clock: Arc::clone(&clock),
            metrics: Arc::clone(&metrics),
            io: runtime.handle().clone(),
            options: enduser::EndUserOptions {
                entries: 10,
                patience: Duration::ZERO,
                when_unavailable: WhenStoreUnavailable::Refuse,
                pending_entries: 0,
            },
        });
        let (rehash, _) = keygate::gate::rehash_queue(1);
        let digests: Vec<_> =
            secrets.iter().map(|s| Digest(peppers.current().digest(s.expose().as_bytes()))).collect();
        let at = clock.now().wall;
        let known = digests.iter().map(|digest| keyring.find(digest, at).unwrap().presented.entry).collect();
        let gate = Gate {
            keyring,
            counters: Arc::new(Counters::default()),
            end_users: Arc::new(end_users),
            peppers: Arc::new(peppers),
            secret_prefix: "sk".into(),
            rehash,
        };
        let options = JournalOptions {
            folder: folder.path().join("journal"),
            aside: folder.path().join("journal"),
            // Room for the records of all measurements together.
            max_bytes: 4 << 30,
            segment_bytes: 4 << 20,
            sync_interval: Duration::from_secs(3_600),
            threads: 1,
            node: "bench".into(),
            boot: uuid::Uuid::nil(),
        };
        let (journal, _) = Journal::open(options, Arc::new(RealDisk), Arc::clone(&metrics)).unwrap();
        Self {
            gate,
            routes: RouteTable::new(vec![route()]).unwrap(),
            clock,
            requests: secrets.iter().map(request).collect(),
            digests,
            known,
            recorder: Recorder::new(journal, WhenFull::Shed, metrics),
            upstream: "10.0.0.12:9001".into(),
            _runtime: runtime,
            _folder: folder,
        }
    }

    /// Finds the key of a request, authorizes and charges it.
    pub(crate) fn decide(&self, number: usize) -> Admission {
        let headers = &self.requests[number % KEYS];
        let view = RequestView {
            method: &http::Method::POST,
            path: "/v1/app/chat/completions",
            encoded_slash: false,
            target: b"/v1/app/chat/completions",
            fields: headers.into(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            now: self.clock.now(),
        };
        let Authorized::Key(permit) = self.gate.authorize(&self.routes, &view).unwrap() else {
            unreachable!()
        };
        let admitted = pin!(self.gate.admit(permit, None, None, view.now));
        match admitted.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(admitted) => admitted.unwrap(),
            Poll::Pending => unreachable!("what is in memory is not waited for"),
        }
    }

    /// Hashes a secret.
    pub(crate) fn digest(&self, number: usize) -> Digest {
        let secret = self.requests[number % KEYS][http::header::AUTHORIZATION].as_bytes();
        Digest(self.gate.peppers.current().digest(&secret[7..]))
    }

    /// Finds a key by its digest.
    pub(crate) fn find(&self, number: usize) -> FoundKey {
        self.gate.keyring.find(&self.digests[number % KEYS], self.clock.now().wall).unwrap()
    }

    /// Charges three limits and ends the request.
    pub(crate) fn charge(&self, number: usize) -> Charged {
        let (entry, now) = (&self.known[number % KEYS], self.clock.now());
        let plan = entry.workspace.plan(now.wall);
        let none = Limits::new();
        let charge = Charge {
            key: entry.key.id,
            key_limits: &entry.limits(&plan),
            workspace: &entry.workspace.id,
            workspace_limits: &none,
            end_user: None,
            amounts: Amounts::REQUEST,
        };
        self.gate.counters.charge(&charge, now).unwrap()
    }

    /// Writes both records of a request.
    pub(crate) fn record(&self, number: usize) {
        let entry = &self.known[number % KEYS];
        let arrived = self.clock.now();
        let id = RequestId::new(arrived.wall);
        let mut buffer = [0; 36];
        let start = RecordStart {
            id,
            request_id: id.0.hyphenated().encode_lower(&mut buffer),
            api_key_id: entry.key.id,
            workspace_id: &entry.key.workspace_id,
            arrived,
            method: "POST",
            endpoint: "/v1/app/chat/completions",
            route: "app",
            ip_address: IpAddr::from([10, 1, 2, 3]),
            user_agent: b"python-requests/2.32.3",
            node: "gateway-1",
            end_user_id: None,
            charged: true,
            degraded: false,
        };
        let mut pending = PendingRecord::admitted(start, &self.recorder, &self.clock).unwrap();
        pending.upstream(&self.upstream);
        pending.first_byte(200);
        pending.bytes(512, 2_048);
        pending.complete(Outcome::Served, 200);
    }
}

fn route() -> Route {
    Route {
        name: "app".into(),
        path: "/v1/app/{rest*}".into(),
        methods: Box::default(),
        upstream: 0,
        public: false,
        scopes: Scopes::of(["app"], check_granted).unwrap(),
        secret_from: [http::header::AUTHORIZATION, http::HeaderName::from_static("x-api-key")]
            .map(SecretPlace::Header)
            .into(),
        resource: ResourceFrom::Nowhere,
        end_user: [EndUserFrom::Header(http::HeaderName::from_static("x-end-user-id"))].into(),
        keep_credential: false,
        max_body_bytes: 1 << 20,
        encoded_slash: false,
        errors: keygate::model::fault::ErrorForm::Envelope,
        meter: None,
        forward: ForwardRules::default(),
        cors: None,
    }
}

/// The header fields of a typical client.
fn request(secret: &Secret) -> http::HeaderMap {
    let authorization = format!("Bearer {}", secret.expose());
    [
        ("host", "api.example.com"),
        ("user-agent", "python-requests/2.32.3"),
        ("accept", "*/*"),
        ("accept-encoding", "gzip, deflate"),
        ("content-type", "application/json"),
        ("content-length", "512"),
        ("authorization", &authorization),
    ]
    .into_iter()
    .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
    .collect()
}

async fn fill(store: &SqliteStore, secrets: &[Secret], peppers: &Peppers, now: Now) {
    let (by, at) = (Actor::keygate(), now.wall);
    let plan: PlanId = "default".parse().unwrap();
    let workspace: WorkspaceId = "workspace-1".parse().unwrap();
    let record = PlanRecord {
        plan: Plan {
            id: plan.clone(),
            api_ops_rate_limit: 10_000_000,
            end_user_quota: 1,
            default_daily_request_limit: None,
            limits: Box::default(),
            calendar: Calendar::UTC,
        },
        description: String::new(),
        usage_retention_days: None,
        deleted_keys_days: 30,
        created_at: at,
        updated_at: at,
    };
    store.create_plan(record, &by, at).await.unwrap();
    store.ensure_workspace(&workspace, &plan, &by, at).await.unwrap();
    let keys = secrets.iter().enumerate().map(|(number, secret)| NewKey {
        key: Key {
            id: KeyId::new(at),
            workspace_id: workspace.clone(),
            kind: KeyType::Service,
            scopes: Scopes::of(["app"], check_granted).unwrap(),
            resource_id: "workspace-1".into(),
            ceilings: Ceilings {
                rate_limit: 10_000_000,
                rate_burst: None,
                daily_request_limit: Some(1 << 50),
                quota_limit: Some(1 << 50),
                concurrency_limit: None,
                limits: Box::default(),
            },
            allowed_ips: Box::default(),
            is_active: true,
            expires_at: None,
            end_user: None,
        },
        name: format!("key {number}"),
        description: String::new(),
        external_id: None,
        metadata: serde_json::Map::new(),
        credential: IssuedCredential {
            digest: Digest(peppers.current().digest(secret.expose().as_bytes())),
            pepper_version: peppers.current().version(),
            secret: SecretId(0),
            hint: secret.hint("sk"),
        },
        past: None,
        once: None,
    });
    let keys: Vec<NewKey> = keys.collect();
    for result in store.create_keys(keys, &by, at).await.unwrap() {
        result.unwrap();
    }
}
