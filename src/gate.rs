//! THE DECISION: whether a request is admitted, and what it is charged. It follows the order of contract 4.2.
//!
//! Must not know: Pingora, axum, any database driver. It uses the keyring, the counters and the end users, all in memory.
//! Only a new end user waits for the store, and shared counters may wait a moment for Redis.
//!
//! *Invariant:* nothing is charged before all checks have passed.
//! *Invariant:* only this module makes a [`Permit`] or an [`Admission`]. Forwarding requires an `Admission`, or a
//! [`KeylessPermit`].

mod charge;
mod rehash;
mod verify;

use charge::{charge_of, least};
pub use rehash::{Rehash, RehashJobs, RehashQueue, rehash_queue};

use crate::clock::{Now, Timestamp};
use crate::counter::{ChargeError, Charged, Counters, Hold, InFlightGuard, LimitsLeft};
use crate::enduser::EndUserCache;
use crate::keyring::{Entry, Keyring, Presented};
use crate::model::digest::Digest;
use crate::model::fault::Fault;
use crate::model::id::EndUserId;
use crate::model::key::Measure;
use crate::policy::http::fields::HeaderFields;
use crate::policy::http::path::{BadPath, decode_segment, split_target};
use crate::policy::keys::authorize::{AuthorizationRequest, ResourceRequest, authorize, check_active};
use crate::policy::keys::credential::{SecretPlace, end_user_in_header, end_user_in_query, presented};
use crate::policy::keys::denial::{BadRequest, Denial};
use crate::policy::keys::limit::Limits;
use crate::policy::keys::secret::{Peppers, SecretShape, sha256, shape};
use crate::policy::meter::PlannedHold;
use crate::policy::routing::route::{EndUserFrom, ResourceFrom, Route, RouteMatch, RouteTable};
use http::header::HeaderName;
use std::net::IpAddr;
use std::sync::Arc;

/// Authorizes and admits requests.
pub struct Gate {
    /// All keys, plans and workspaces.
    pub keyring: Arc<Keyring>,
    /// What has been spent of each limit.
    pub counters: Arc<Counters>,
    /// Known end users.
    pub end_users: Arc<EndUserCache>,
    /// The peppers that secrets are hashed with.
    pub peppers: Arc<Peppers>,
    /// The prefix of our own secrets.
    pub secret_prefix: Box<str>,
    /// The queue of keys whose digest was made with an old pepper.
    pub rehash: RehashQueue,
}

/// The parts of a request that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'r> {
    /// HTTP method.
    pub method: &'r http::Method,
    /// Canonical path.
    pub path: &'r str,
    /// The target as sent, with the query.
    pub target: &'r [u8],
    /// Whether the path contains an escaped slash.
    pub encoded_slash: bool,
    /// Header fields as the client sent them.
    pub fields: HeaderFields<'r>,
    /// The client's address.
    pub address: IpAddr,
    /// When it arrived.
    pub now: Now,
}

/// Proof that the key may do what the request asks. Nothing is charged yet.
#[derive(Debug)]
pub struct Permit {
    presented: Presented,
    route: Arc<Route>,
    end_user: NamedEndUser,
    rewritten: Option<Box<str>>,
}

/// Where the request names its end user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedEndUser {
    /// Nowhere.
    Nobody,
    /// Outside the body: this one.
    Named(Box<str>),
    /// Perhaps in the body, in the field that the route names; otherwise this one.
    Body(Option<Box<str>>),
}

/// Proof that the request may be forwarded: its key permits it and every limit is charged.
#[derive(Debug)]
pub struct Admission {
    presented: Presented,
    charged: Charged,
    end_user: Option<(EndUserId, Box<str>)>,
    max_output: Option<u64>,
}

/// Proof that a request may be forwarded without a key, and without a charge: its route is public, or it is a preflight, which
/// only asks whether a page of another origin may use a route that leaves this decision to its backend.
#[derive(Debug)]
pub struct KeylessPermit {
    route: Arc<Route>,
    rewritten: Option<Box<str>>,
    is_preflight: bool,
}

/// A request that passed steps 2 to 6.
#[derive(Debug)]
pub enum Authorized {
    /// Its key may do this.
    Key(Permit),
    /// Its route needs no key.
    Public(KeylessPermit),
}

/// A refusal, with what is known about the request.
#[derive(Debug)]
pub struct Denied {
    /// The reason.
    pub denial: Denial,
    /// The route, if one matched.
    pub route: Option<Arc<Route>>,
    /// The key, if the request presented a known secret.
    pub entry: Option<Arc<Entry>>,
    /// What is left of each limit, if limits were checked.
    pub left: Option<LimitsLeft>,
    /// Whether limits were decided without the shared counters.
    pub degraded: bool,
}

impl Gate {
    /// Steps 2 to 6: route, secret, scope, resource, address. Uses memory only and charges nothing.
    pub fn authorize(
        &self,
        routes: &RouteTable,
        request: &RequestView<'_>,
    ) -> Result<Authorized, Box<Denied>> {
        let matched = routes.find(request.method, request.path);
        // Two parsers may read an escaped slash differently. It is refused unless the route says that its backend reads it
        // as we do.
        if request.encoded_slash && !matched.as_ref().is_some_and(|matched| matched.route.encoded_slash) {
            let bad = BadRequest::Path(BadPath::ForbiddenEscape(b'/'));
            return Err(Denied::early(Denial::BadRequest(bad), None));
        }
        let Some(matched) = matched else {
            let denial = routes.allowed(request.path).map_or(Denial::RouteNotFound, Denial::MethodNotAllowed);
            return Err(Denied::early(denial, None));
        };
        let route = matched.route;
        if route.public {
            return Ok(Authorized::Public(KeylessPermit::of(&matched, false)));
        }
        let presented = match self.authenticate(request, &route.secret_from) {
            Ok(presented) => presented,
            Err(denial) => return Err(Denied::early(denial, Some(route))),
        };
        match check(&presented.entry, &matched, request) {
            Ok(end_user) => {
                let rewritten = route.forward.rewrite.as_ref().map(|r| r.path(&matched.params));
                Ok(Authorized::Key(Permit { presented, route: Arc::clone(route), end_user, rewritten }))
            }
            Err(denial) => Err(Denied::of(denial, Some(Arc::clone(route)), presented.entry, None)),
        }
    }

    /// Whether `request`, a preflight (`OPTIONS`) for `method`, may be forwarded without a key. A request that presents a
    /// key is decided like any other.
    pub fn preflight(
        &self,
        routes: &RouteTable,
        request: &RequestView<'_>,
        method: &http::Method,
    ) -> Option<KeylessPermit> {
        let matched = routes.find(method, request.path).filter(|matched| matched.route.cors.is_none())?;
        let is_refused = request.encoded_slash && !matched.route.encoded_slash;
        if is_refused || presented(request.fields, &matched.route.secret_from) != Ok(None) {
            return None;
        }
        Some(KeylessPermit::of(&matched, true))
    }

    /// Takes a place in flight for a request whose body must be read before it can be charged. If the key's limits are used
    /// up, it is refused, and its body is not buffered.
    pub fn hold(&self, permit: Permit, now: Now) -> Result<(Permit, InFlightGuard), Box<Denied>> {
        let entry = permit.entry();
        let plan = entry.workspace.plan(now.wall);
        let limits = entry.limits(&plan);
        let held = self.counters.hold(&charge_of(entry, &limits, &plan, None, least(&permit.route)), now);
        drop(plan);
        match held {
            Ok(place) => Ok((permit, place)),
            Err(refusal) => {
                let declined = ChargeError::Limit { refusal, degraded: false };
                Err(Denied::declined(declined, permit.route, permit.presented.entry))
            }
        }
    }

    /// Whether a limit in force counts what only a meter finds out.
    pub fn is_metered(&self, permit: &Permit, at: Timestamp) -> bool {
        let entry = permit.entry();
        let plan = entry.workspace.plan(at);
        let counts = |limits: &Limits| limits.iter().any(|limit| limit.count != Measure::Requests);
        counts(&entry.limits(&plan)) || counts(&plan.workspace_limits) || counts(&plan.end_user_limits)
    }

    /// Whether the key of a waiting request is still valid.
    pub fn revalidate(&self, presented: &Presented, at: Timestamp) -> Result<(), Denial> {
        let current = self.keyring.current(presented, at).ok_or(Denial::KeyInvalid)?;
        check_active(&current.key, at)
    }

    /// Steps 7 and 8: charges every limit, then resolves the end user. A refusal of the end user gives the charge back.
    /// A metered request also holds what `hold` says.
    pub async fn admit(
        &self,
        permit: Permit,
        end_user: Option<Box<str>>,
        hold: Option<&PlannedHold<'_>>,
        now: Now,
    ) -> Result<Admission, Box<Denied>> {
        let Permit { presented, route, .. } = permit;
        let entry = &presented.entry;
        let bound = &entry.key.end_user;
        if bound.is_some() && end_user.is_some() && *bound != end_user {
            return Err(Denied::of(Denial::EndUser, Some(route), presented.entry, None));
        }
        let end_user = end_user.or_else(|| bound.clone());
        let plan = entry.workspace.plan(now.wall);
        // An end user who is known and has limits is charged together with the key.
        let is_limited = !plan.end_user_limits.is_empty();
        let known = end_user.as_deref().filter(|_| is_limited);
        let known = known.and_then(|name| self.end_users.known(&entry.workspace.id, name));
        let mut charged = match self.charge(entry, &plan, known, hold, now).await {
            Ok(charged) => charged,
            Err(declined) => return Err(Denied::declined(declined, route, presented.entry)),
        };
        let Some(name) = end_user else {
            return Ok(Admission { presented, end_user: None, max_output: charged.1, charged: charged.0 });
        };
        let quota = plan.plan.end_user_quota;
        let id = match self.end_users.admit(&entry.workspace.id, &name, self.keyring.version(), quota).await {
            Ok(id) => id,
            Err(denial) => {
                charged.0.give_back();
                return Err(Denied::of(denial, Some(route), presented.entry, None));
            }
        };
        if is_limited && known != Some(id) {
            charged.0.give_back();
            charged = match self.charge(entry, &plan, Some(id), hold, now).await {
                Ok(charged) => charged,
                Err(declined) => return Err(Denied::declined(declined, route, presented.entry)),
            };
        }
        Ok(Admission { presented, max_output: charged.1, charged: charged.0, end_user: Some((id, name)) })
    }

    /// Step 3: finds the key of the presented secret.
    fn authenticate(&self, request: &RequestView<'_>, places: &[SecretPlace]) -> Result<Presented, Denial> {
        let secret =
            presented(request.fields, places).map_err(Denial::BadRequest)?.ok_or(Denial::KeyMissing)?;
        self.find_secret(&secret, request.now.wall)
    }

    /// The key with this secret.
    fn find_secret(&self, secret: &[u8], at: Timestamp) -> Result<Presented, Denial> {
        if shape(secret, &self.secret_prefix) == SecretShape::Impossible {
            return Err(Denial::KeyInvalid);
        }
        let mut cannot_tell = false;
        for pepper in self.peppers.iter() {
            let digest = Digest(pepper.digest(secret));
            let Some(found) = self.keyring.find(&digest, at) else {
                cannot_tell |= self.keyring.cannot_tell(&digest);
                continue;
            };
            let current = self.peppers.current();
            if found.pepper_version != current.version() {
                let new = || Digest(current.digest(secret));
                self.rehash.ask(found.presented.entry.key.id, digest, current.version(), new);
            }
            return Ok(found.presented);
        }
        if self.keyring.has_sha256_imports()
            && let Some(presented) = self.find_by_sha256(secret, at)
        {
            return Ok(presented);
        }
        Err(if cannot_tell { Denial::Plain(Fault::ServiceUnavailable) } else { Denial::KeyInvalid })
    }

    /// Looks up a key that was imported by the SHA-256 digest of its secret and is used for the first time. From then on it is
    /// looked up like any other.
    fn find_by_sha256(&self, secret: &[u8], at: Timestamp) -> Option<Presented> {
        let sha256 = sha256(secret);
        let mut digests = self.peppers.iter().map(|pepper| Digest(pepper.digest_of_sha256(&sha256)));
        let (digest, found) = digests.find_map(|digest| Some((digest, self.keyring.find(&digest, at)?)))?;
        let current = self.peppers.current();
        let new = || Digest(current.digest(secret));
        self.rehash.ask(found.presented.entry.key.id, digest, current.version(), new);
        Some(found.presented)
    }
}

/// Steps 4 to 6, and where the request names its end user.
fn check(
    entry: &Entry,
    matched: &RouteMatch<'_, '_>,
    request: &RequestView<'_>,
) -> Result<NamedEndUser, Denial> {
    let route = matched.route;
    let named;
    let resource = match &route.resource {
        ResourceFrom::Nowhere => ResourceRequest::None,
        ResourceFrom::Any => ResourceRequest::Any,
        ResourceFrom::PathParam(param) => {
            named = matched.params.get(param).and_then(decode_segment);
            ResourceRequest::For(named.as_deref())
        }
        ResourceFrom::Header(name) => ResourceRequest::For(single(request.fields, passed_on(request, name)?)),
    };
    let asked = AuthorizationRequest {
        scopes: &route.scopes,
        resource,
        address: request.address,
        at: request.now.wall,
    };
    authorize(&entry.key, &asked)?;
    end_user_of(&route.end_user, request)
}

/// Where the request names its end user, of the sources of its route.
fn end_user_of(sources: &[EndUserFrom], request: &RequestView<'_>) -> Result<NamedEndUser, Denial> {
    let mut in_body = false;
    for source in sources {
        let named: Option<Box<str>> = match source {
            EndUserFrom::JsonField(_) => {
                in_body = true;
                continue;
            }
            EndUserFrom::Header(name) => {
                let found = end_user_in_header(request.fields, passed_on(request, name)?);
                found.map_err(Denial::BadRequest)?.map(Into::into)
            }
            EndUserFrom::Query(name) => {
                let query = split_target(request.target).map_or(&b""[..], |(_, query)| query);
                end_user_in_query(query, name).map_err(Denial::BadRequest)?.map(Into::into)
            }
        };
        if named.is_some() {
            return Ok(NamedEndUser::found(named, in_body));
        }
    }
    Ok(NamedEndUser::found(None, in_body))
}

/// The name of a header field that the route reads, unless the client's `Connection` names it: then the backend would not
/// see it.
fn passed_on<'n>(request: &RequestView<'_>, name: &'n HeaderName) -> Result<&'n HeaderName, Denial> {
    if request.fields.is_nominated(name) {
        return Err(Denial::BadRequest(BadRequest::Connection));
    }
    Ok(name)
}

/// The value of a header field that occurs exactly once. With two, the backend might read the other one.
fn single<'h>(fields: HeaderFields<'h>, name: &HeaderName) -> Option<&'h str> {
    let mut values = fields.all(name);
    let value = values.next().and_then(visible)?;
    values.next().is_none().then_some(value)
}

/// Text that RFC 9110 allows in a field. A backend may read anything else differently.
fn visible(value: &[u8]) -> Option<&str> {
    let is_plain = value.iter().all(|b| *b == b'\t' || (b' '..=b'~').contains(b));
    std::str::from_utf8(value).ok().filter(|_| is_plain)
}

// === impl NamedEndUser, Authorized, Permit, KeylessPermit, Admission, Denied ===

impl NamedEndUser {
    /// `named` was found outside the body, or nothing; `in_body`: the body comes first.
    fn found(named: Option<Box<str>>, in_body: bool) -> Self {
        match named {
            otherwise if in_body => Self::Body(otherwise),
            Some(named) => Self::Named(named),
            None => Self::Nobody,
        }
    }

    /// The end user of a request without a body.
    pub fn outside_body(&self) -> Option<Box<str>> {
        match self {
            Self::Nobody => None,
            Self::Named(named) => Some(named.clone()),
            Self::Body(otherwise) => otherwise.clone(),
        }
    }
}

impl Authorized {
    /// The key; none on a public route.
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Key(permit) => Some(permit.entry()),
            Self::Public(_) => None,
        }
    }

    /// The route.
    pub const fn route(&self) -> &Arc<Route> {
        match self {
            Self::Key(permit) => &permit.route,
            Self::Public(permit) => &permit.route,
        }
    }

    /// The path for the backend, if it differs from the client's. Can be taken once.
    pub const fn take_rewritten(&mut self) -> Option<Box<str>> {
        match self {
            Self::Key(permit) => permit.rewritten.take(),
            Self::Public(permit) => permit.rewritten.take(),
        }
    }

    /// Turns it into a refusal that was decided outside the gate.
    pub fn deny(self, denial: Denial) -> Box<Denied> {
        match self {
            Self::Key(permit) => permit.deny(denial),
            Self::Public(permit) => Denied::early(denial, Some(&permit.route)),
        }
    }
}

impl KeylessPermit {
    fn of(matched: &RouteMatch<'_, '_>, is_preflight: bool) -> Self {
        let rewritten = matched.route.forward.rewrite.as_ref().map(|r| r.path(&matched.params));
        Self { route: Arc::clone(matched.route), rewritten, is_preflight }
    }

    /// Whether it is a preflight.
    pub const fn is_preflight(&self) -> bool {
        self.is_preflight
    }

    /// The route.
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// The path for the backend, if it differs from the client's. Can be taken once.
    pub fn take_rewritten(&mut self) -> Option<Box<str>> {
        self.rewritten.take()
    }
}

impl Permit {
    /// The key.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.presented.entry
    }

    /// The key, and the secret by which it was found.
    pub fn presented(&self) -> &Presented {
        &self.presented
    }

    /// The route.
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// Where the request names its end user.
    pub fn end_user(&self) -> &NamedEndUser {
        &self.end_user
    }

    /// Turns the permit into a refusal that was decided outside the gate.
    pub fn deny(self, denial: Denial) -> Box<Denied> {
        Denied::of(denial, Some(self.route), self.presented.entry, None)
    }
}

impl Admission {
    /// The key.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.presented.entry
    }

    /// The key, and the secret by which it was found.
    pub fn presented(&self) -> &Presented {
        &self.presented
    }

    /// The end user, if the request named one.
    pub fn end_user(&self) -> Option<EndUserId> {
        self.end_user.as_ref().map(|(id, _)| *id)
    }

    /// The customer's id of the end user.
    pub fn end_user_name(&self) -> Option<&str> {
        self.end_user.as_ref().map(|(_, name)| &**name)
    }

    /// The most output tokens that the request may ask for in each answer, if its own maximum must be lowered.
    pub fn max_output(&self) -> Option<u64> {
        self.max_output
    }

    /// Takes out what the request holds, to be settled when it is known what it used.
    pub fn take_hold(&mut self) -> Option<Hold> {
        self.charged.take_hold()
    }

    /// What is left of each limit.
    pub fn left(&self) -> &LimitsLeft {
        self.charged.left()
    }

    /// Whether limits were decided without the shared counters.
    pub fn degraded(&self) -> bool {
        self.charged.degraded()
    }

    /// Gives the charge back: the request never reached a backend.
    pub fn give_back(self) {
        self.charged.give_back();
    }

    /// Gives the charge back: the request cannot be forwarded.
    pub fn deny(self, denial: Denial, route: Option<Arc<Route>>) -> Box<Denied> {
        self.charged.give_back();
        Denied::of(denial, route, self.presented.entry, None)
    }
}

impl Denied {
    /// A refusal before a key was found.
    pub fn early(denial: Denial, route: Option<&Arc<Route>>) -> Box<Self> {
        Box::new(Self { denial, route: route.cloned(), entry: None, left: None, degraded: false })
    }

    fn of(
        denial: Denial,
        route: Option<Arc<Route>>,
        entry: Arc<Entry>,
        left: Option<LimitsLeft>,
    ) -> Box<Self> {
        Box::new(Self { denial, route, entry: Some(entry), left, degraded: false })
    }

    fn declined(declined: ChargeError, route: Arc<Route>, entry: Arc<Entry>) -> Box<Self> {
        let (denial, left, degraded) = match declined {
            ChargeError::Limit { refusal, degraded } => {
                let limit = refusal.refused.limit;
                let remaining =
                    refusal.left.iter().find(|(l, _)| l.name == limit.name).map(|(_, left)| *left);
                (Denial::Limit(refusal.refused, remaining), Some(refusal.left), degraded)
            }
            ChargeError::Unavailable => (Denial::Plain(Fault::ServiceUnavailable), None, true),
        };
        Box::new(Self { denial, route: Some(route), entry: Some(entry), left, degraded })
    }
}
