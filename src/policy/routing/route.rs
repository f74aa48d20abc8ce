//! Which route a request takes: from path and method to one route and its path parameters.
//!
//! Must not know: keys, upstream servers, the config file. The table is validated as a whole when it is built, and never
//! changes.
//!
//! *Invariant:* for each path exactly one pattern decides, whatever the order in the file. Compared segment by segment from
//! the left, a literal takes precedence over a parameter, and a parameter over the rest of the path.

use super::forward::ForwardRules;
use super::rewrite::Rewrite;
use crate::model::fault::ErrorForm;
use crate::model::scope::Scopes;
use crate::policy::http::cors::Cors;
use crate::policy::http::path::{BadPath, canonical, has_encoded_slash};
use crate::policy::keys::credential::SecretPlace;
use crate::policy::meter::MeterRule;
use http::{HeaderName, Method};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// The name in records and metrics of what applications ask by themselves, which is no route.
pub const VERIFY: &str = "verify";
/// Most parameters of one pattern.
pub const PARAMS_MAX: usize = 16;
/// A segment parameter in a shape.
const PARAM: &str = "{param}";
/// A rest parameter in a shape.
const REST: &str = "{*rest}";

/// One path rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The name in logs and metrics.
    pub name: Box<str>,
    /// The pattern: literal segments, `{name}` for one whole segment, `{name*}` at the end for any rest, also an empty one.
    pub path: Box<str>,
    /// The methods it serves; empty means any.
    pub methods: Box<[Method]>,
    /// The upstream, as an index into the caller's list.
    pub upstream: usize,
    /// Whether it needs no key.
    pub public: bool,
    /// The scopes that a key must grant.
    pub scopes: Scopes,
    /// Where a request may present its secret, in order.
    pub secret_from: Box<[SecretPlace]>,
    /// Where a request names its resource.
    pub resource: ResourceFrom,
    /// Where a request names its end user; the first that names one counts. Empty: nowhere. At most one is in the body.
    pub end_user: Box<[EndUserFrom]>,
    /// Whether the credential is forwarded to the backend.
    pub keep_credential: bool,
    /// Largest request body, in bytes.
    pub max_body_bytes: u64,
    /// Whether its backends keep an escaped slash within its segment.
    pub encoded_slash: bool,
    /// The form of errors that Keygate answers.
    pub errors: ErrorForm,
    /// What it changes about messages.
    pub forward: ForwardRules,
    /// How its answers are metered; none: not at all.
    pub meter: Option<MeterRule>,
    /// CORS rules; none: the backend decides.
    pub cors: Option<Cors>,
}

/// Where a request names its resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceFrom {
    /// Nowhere: the route has no resource, and keys that are bound to one are refused.
    Nowhere,
    /// Nowhere, and all keys may use it.
    Any,
    /// In this parameter of the route's pattern.
    PathParam(Box<str>),
    /// In this header.
    Header(HeaderName),
}

/// Where a request names its end user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndUserFrom {
    /// In this header.
    Header(HeaderName),
    /// In this parameter of the query.
    Query(Box<str>),
    /// In this field of the JSON body.
    JsonField(Box<str>),
}

/// All routes of a configuration.
#[derive(Debug)]
pub struct RouteTable {
    routes: Box<[Arc<Route>]>,
    /// The parameter names of each route, in the order of its pattern.
    names: Box<[ParamNames]>,
    patterns: Vec<Pattern>,
    /// Values are indices into `patterns`. `matchit` does not allow a parameter and a rest as siblings. So patterns without
    /// a rest share one tree, and those whose rest begins at the same depth share one each. Most tables need one or two.
    trees: Box<[matchit::Router<usize>]>,
}

/// The route that matches a request.
#[derive(Debug)]
pub struct RouteMatch<'t, 'p> {
    /// Which route.
    pub route: &'t Arc<Route>,
    /// The values of its parameters in this path.
    pub params: PathParams<'t, 'p>,
}

/// The path parameters of one match, as spelled in the path (see `path::decode_segment`).
#[derive(Debug)]
pub struct PathParams<'t, 'p> {
    names: &'t [Box<str>],
    values: matchit::Params<'t, 'p>,
}

/// A mistake in a list of routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRoute {
    /// The index of the route in the list.
    pub index: usize,
    /// The field with the mistake.
    pub field: &'static str,
    /// What is wrong and what is allowed.
    pub message: String,
}

type ParamNames = Box<[Box<str>]>;

/// One shape of a path, with the routes that share it.
#[derive(Debug)]
struct Pattern {
    kinds: Box<[SegmentKind]>,
    slots: Vec<MethodSlot>,
}

/// A method (none: any) and its route.
#[derive(Debug)]
struct MethodSlot {
    method: Option<Method>,
    route: usize,
}

/// Kinds of segments, in the order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SegmentKind {
    Literal,
    Param,
    Rest,
}

/// A parsed pattern.
struct ParsedPattern {
    /// In the syntax of `matchit`, without names: patterns that differ only in names are the same.
    shape: String,
    kinds: Vec<SegmentKind>,
    names: Vec<Box<str>>,
}

/// A table under construction, with the mistakes found so far.
#[derive(Default)]
struct RouteTableBuilder {
    names: Vec<ParamNames>,
    patterns: Vec<Pattern>,
    by_shape: HashMap<String, usize>,
    trees: BTreeMap<Option<usize>, matchit::Router<usize>>,
    mistakes: Vec<BadRoute>,
}

// === impl Route, EndUserFrom ===

impl Route {
    /// The field of the JSON body that may name the end user.
    pub fn end_user_field(&self) -> Option<&str> {
        self.end_user.iter().find_map(|source| match source {
            EndUserFrom::JsonField(field) => Some(&**field),
            _ => None,
        })
    }
}

impl EndUserFrom {
    /// The header, if it is one.
    pub const fn header(&self) -> Option<&HeaderName> {
        match self {
            Self::Header(name) => Some(name),
            _ => None,
        }
    }
}

// === impl RouteTable ===

impl RouteTable {
    /// A table of these routes, or all mistakes in them.
    pub fn new(routes: Vec<Route>) -> Result<Self, Vec<BadRoute>> {
        let mut builder = RouteTableBuilder::default();
        for index in 0..routes.len() {
            builder.add(&routes, index);
        }
        if !builder.mistakes.is_empty() {
            return Err(builder.mistakes);
        }
        Ok(Self {
            routes: routes.into_iter().map(Arc::new).collect(),
            names: builder.names.into(),
            patterns: builder.patterns,
            trees: builder.trees.into_values().collect(),
        })
    }

    /// The route for a method and a canonical path.
    ///
    /// Only the most specific pattern counts. If none of its routes serves the method, there is no route (405), even if a
    /// wider pattern has one; otherwise a request could fall through from a strict rule to a lax one. `HEAD` takes the
    /// route of `GET`, unless a route names it (RFC 9110, 9.3.2). `OPTIONS` is a method like any other.
    pub fn find<'t, 'p>(&'t self, method: &Method, path: &'p str) -> Option<RouteMatch<'t, 'p>> {
        let (pattern, values) = self.most_specific(path)?;
        let route = pattern.route_for(method)?;
        Some(RouteMatch {
            route: &self.routes[route],
            params: PathParams { names: &self.names[route], values },
        })
    }

    /// The methods that the most specific pattern of a path serves, as the header field `Allow` lists them; none if no pattern
    /// matches.
    pub fn allowed(&self, path: &str) -> Option<Box<str>> {
        let (pattern, _) = self.most_specific(path)?;
        let mut methods: Vec<&str> =
            pattern.slots.iter().filter_map(|slot| slot.method.as_ref().map(Method::as_str)).collect();
        if methods.contains(&Method::GET.as_str()) && !methods.contains(&Method::HEAD.as_str()) {
            methods.push(Method::HEAD.as_str());
        }
        methods.sort_unstable();
        Some(methods.join(", ").into())
    }

    /// The routes, in the given order.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    fn most_specific<'t, 'p>(&'t self, path: &'p str) -> Option<(&'t Pattern, matchit::Params<'t, 'p>)> {
        let mut best: Option<(&Pattern, matchit::Params<'_, '_>)> = None;
        for tree in &self.trees {
            let Ok(found) = tree.at(path) else { continue };
            let pattern = &self.patterns[*found.value];
            // Two patterns that match the same path and are both literal are equal, so comparing kinds is enough.
            if best.as_ref().is_none_or(|(other, _)| pattern.kinds < other.kinds) {
                best = Some((pattern, found.params));
            }
        }
        best
    }
}

// === impl Pattern ===

impl Pattern {
    /// A route that names the method takes precedence over one for any method.
    fn route_for(&self, method: &Method) -> Option<usize> {
        let named = |method: &Method| self.slots.iter().find(|s| s.method.as_ref() == Some(method));
        let as_get = || if *method == Method::HEAD { named(&Method::GET) } else { None };
        let slot =
            named(method).or_else(as_get).or_else(|| self.slots.iter().find(|s| s.method.is_none()))?;
        Some(slot.route)
    }
}

// === impl PathParams ===

impl<'p> PathParams<'_, 'p> {
    /// The value of a parameter, as spelled in the path. Only a rest can be empty.
    pub fn get(&self, name: &str) -> Option<&'p str> {
        let place = self.names.iter().position(|n| **n == *name)?;
        // An empty rest matches as the literal before it, so it has no value.
        Some(self.values.iter().nth(place).map_or("", |(_, value)| value))
    }
}

// === impl RouteTableBuilder ===

impl RouteTableBuilder {
    fn add(&mut self, routes: &[Route], index: usize) {
        let route = &routes[index];
        let parsed = match ParsedPattern::parse(&route.path) {
            Ok(parsed) => parsed,
            Err(messages) => {
                for message in messages {
                    self.mistake(index, "path", message);
                }
                return;
            }
        };
        if has_encoded_slash(&route.path) && !route.encoded_slash {
            self.mistake(index, "path", "`%2F` matches nothing unless encoded_slash is \"keep\"".to_owned());
        }
        if let ResourceFrom::PathParam(name) = &route.resource
            && !parsed.has_param(name)
        {
            let message =
                format!("`{name}` is not a parameter of `{}`: write it as `{{{name}}}` there", route.path);
            self.mistake(index, "resource", message);
        }
        for (name, is_last) in route.forward.rewrite.iter().flat_map(Rewrite::params) {
            let message = match parsed.kind_of(name) {
                None => format!("`{name}` is not a parameter of `{}`", route.path),
                Some(SegmentKind::Rest) if !is_last => {
                    format!("`{name}` stands for any rest, so it must come last")
                }
                Some(_) => continue,
            };
            self.mistake(index, "rewrite", message);
        }
        let Some(place) = self.place_of(&parsed) else {
            self.mistake(index, "path", format!("`{}` is too much like another route's path", route.path));
            return;
        };
        if route.methods.is_empty() {
            self.take_slot(routes, place, None, index);
        }
        for method in &route.methods {
            self.take_slot(routes, place, Some(method.clone()), index);
        }
        self.names.push(parsed.names.into());
    }

    /// The index of the pattern with this shape, which is added if it is new.
    fn place_of(&mut self, parsed: &ParsedPattern) -> Option<usize> {
        if let Some(place) = self.by_shape.get(&parsed.shape) {
            return Some(*place);
        }
        let place = self.patterns.len();
        let rest_depth = parsed.kinds.iter().position(|k| *k == SegmentKind::Rest);
        let tree = self.trees.entry(rest_depth).or_default();
        tree.insert(parsed.shape.as_str(), place).ok()?;
        if let Some(empty_rest) = parsed.shape.strip_suffix(REST) {
            // `matchit` requires at least one byte of rest.
            tree.insert(empty_rest, place).ok()?;
        }
        self.patterns.push(Pattern { kinds: parsed.kinds.as_slice().into(), slots: Vec::new() });
        self.by_shape.insert(parsed.shape.clone(), place);
        Some(place)
    }

    fn take_slot(&mut self, routes: &[Route], place: usize, method: Option<Method>, index: usize) {
        let slots = &mut self.patterns[place].slots;
        let Some(taken) = slots.iter().find(|s| s.method == method) else {
            slots.push(MethodSlot { method, route: index });
            return;
        };
        let field = if method.is_some() { "methods" } else { "path" };
        let what = method.map_or_else(|| "any method".to_owned(), |m| m.to_string());
        let (path, name) = (&routes[index].path, &routes[index].name);
        let message = if taken.route == index {
            format!("{what} is there twice")
        } else {
            let other = &routes[taken.route].name;
            format!(
                "{what} of `{path}` belongs to route `{other}` already, route `{name}` cannot have it too"
            )
        };
        self.mistake(index, field, message);
    }

    fn mistake(&mut self, index: usize, field: &'static str, message: String) {
        self.mistakes.push(BadRoute { index, field, message });
    }
}

// === impl ParsedPattern ===

impl ParsedPattern {
    /// Parses a pattern, or returns everything that is wrong with it.
    fn parse(path: &str) -> Result<Self, Vec<String>> {
        let Some(relative) = path.strip_prefix('/') else {
            return Err(vec![BadPath::NotAbsolute.to_string()]);
        };
        let mut parsed = Self { shape: String::new(), kinds: Vec::new(), names: Vec::new() };
        let mut mistakes = Vec::new();
        let mut segments = relative.split('/').peekable();
        while let Some(segment) = segments.next() {
            let is_last = segments.peek().is_none();
            if let Err(message) = parsed.push(segment, is_last) {
                mistakes.push(message);
            }
        }
        if parsed.names.len() > PARAMS_MAX {
            mistakes.push(format!("at most {PARAMS_MAX} parameters are allowed"));
        }
        if mistakes.is_empty() { Ok(parsed) } else { Err(mistakes) }
    }

    fn push(&mut self, segment: &str, is_last: bool) -> Result<(), String> {
        self.shape.push('/');
        if !segment.contains(['{', '}']) {
            check_literal(segment, is_last)?;
            self.shape.push_str(segment);
            self.kinds.push(SegmentKind::Literal);
            return Ok(());
        }
        let inner = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
        let inner =
            inner.ok_or_else(|| format!("`{segment}`: a parameter is a whole segment, as in `{{id}}`"))?;
        let name = inner.strip_suffix('*').unwrap_or(inner);
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!("`{segment}`: the name of a parameter is made of letters, digits and _"));
        }
        if self.names.iter().any(|n| **n == *name) {
            return Err(format!("`{segment}`: the parameter is there twice"));
        }
        if name == inner {
            self.shape.push_str(PARAM);
            self.kinds.push(SegmentKind::Param);
        } else if is_last {
            self.shape.push_str(REST);
            self.kinds.push(SegmentKind::Rest);
        } else {
            return Err(format!("`{segment}`: only the last segment can take the rest of the path"));
        }
        self.names.push(name.into());
        Ok(())
    }

    /// The kind of the parameter `name`.
    fn kind_of(&self, name: &str) -> Option<SegmentKind> {
        let params = self.kinds.iter().filter(|k| **k != SegmentKind::Literal);
        self.names.iter().zip(params).find(|(n, _)| ***n == *name).map(|(_, kind)| *kind)
    }

    /// Whether `name` is a parameter of exactly one segment.
    fn has_param(&self, name: &str) -> bool {
        let rests = self.kinds.iter().filter(|k| **k == SegmentKind::Rest).count();
        self.names[..self.names.len() - rests].iter().any(|n| **n == *name)
    }
}

/// A literal that is not canonical could never match, or would match something unintended.
fn check_literal(segment: &str, is_last: bool) -> Result<(), String> {
    if segment.is_empty() && !is_last {
        return Err(BadPath::EmptySegment.to_string());
    }
    let path = format!("/{segment}");
    match canonical(path.as_bytes()) {
        Ok(spelled) if spelled.was_respelled() => {
            Err(format!("`{segment}` must be written `{}`", &spelled[1..]))
        }
        Ok(_) => Ok(()),
        Err(bad) => Err(format!("`{segment}`: {bad}")),
    }
}

// === impl BadRoute ===

impl fmt::Display for BadRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "routes[{}].{}: {}", self.index, self.field, self.message)
    }
}

impl std::error::Error for BadRoute {}

#[cfg(test)]
mod tests;
