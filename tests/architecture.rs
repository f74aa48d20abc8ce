//! Checks the sources against `src/lib.rs`: the dependency arrows and the *Invariant* lines.
//!
//! The sources are parsed, and the gateway is not linked: the checks look at `use` items, paths, calls and types, not at
//! text. Code under `#[cfg(test)]` is left out where the gateway itself is checked.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

/// Longest source file, in lines.
const LINES_MAX: usize = 600;
/// Modules that every module may use, as the map says.
const COMMON: [&str; 7] = ["clock", "durable", "metrics", "envelope", "http_client", "server_tls", "fileio"];
/// The layers of a folder, from the bottom up: each part may use those before it. A part is a folder or a file.
const LAYERS: [(&str, &[&str]); 4] = [
    (
        "admin",
        &[
            "input",
            "jwt",
            "error",
            "auth",
            "jwks",
            "client_credentials",
            "introspection",
            "oidc",
            "codes",
            "idempotency",
            "context",
            "envelope",
            "extract",
            "caller",
            "page",
            "cursor",
            "schema",
            "document",
            "limit_usage",
            "propagation",
            "apikeys",
            "key_list",
            "lookup",
            "imports",
            "audit",
            "endusers",
            "health",
            "logs",
            "plans",
            "prices",
            "upstreams",
            "reload",
            "usage",
            "usage_totals",
            "grants",
            "workspaces",
            "outside",
            "console",
            "router",
            "in_process",
            "server",
            "tests",
        ],
    ),
    ("policy", &["text", "prices", "http", "keys", "tls", "upstream", "meter", "routing"]),
    (
        "proxy",
        &[
            "message",
            "connection",
            "upstream",
            "series",
            "snapshot",
            "holds",
            "verified",
            "meter",
            "ctx",
            "observe",
            "state",
            "response",
            "request",
            "service",
            "exchange",
            "server",
        ],
    ),
    ("store", &["error", "imported", "record", "node", "usage", "shared", "postgres", "sqlite"]),
];
/// Where in the tests a pause is justified, and why.
const PAUSES: [(&str, usize, &str); 20] = [
    ("tests/edge/slow.rs", 3, "a client that sends or takes a little at a time is the subject"),
    ("tests/edge/source.rs", 1, "a client that takes a little at a time is the subject"),
    ("src/proxy/upstream/maintain.rs", 3, "time is paused"),
    ("tests/upstreams/tunnels.rs", 1, "a side that speaks now and then"),
    ("tests/propagation/main.rs", 1, "requests come at a rate"),
    ("tests/slow/main.rs", 2, "requests and guesses come at a rate"),
    ("tests/gateway/support/mod.rs", 1, "the one poll of facts that nothing announces"),
    ("tests/gateway/support/spare.rs", 2, "the beat of a clock"),
    ("tests/nodes/budgets.rs", 3, "a model that works on an answer, and clients that try again later"),
    ("tests/counters/chaos.rs", 1, "being late is what it is there for"),
    ("tests/counters/exact.rs", 4, "how soon is the subject"),
    ("tests/counters/cluster.rs", 2, "a steady load, for so long, is the subject"),
    ("tests/counters/failing.rs", 5, "how soon, and for how long, is the subject"),
    ("tests/counters/forgotten.rs", 7, "how soon, and for how long, is the subject"),
    ("tests/counters/node.rs", 4, "servers, and whether one answers in time, can only be asked"),
    ("tests/counters/patience.rs", 3, "how soon is the subject"),
    ("tests/counters/redis.rs", 1, "a server that starts can only be asked"),
    ("tests/counters/sentinel.rs", 2, "servers that agree can only be asked; a steady load is the subject"),
    ("tests/counters/share.rs", 4, "a steady load, for so long, is the subject"),
    (
        "tests/counters/tokens.rs",
        7,
        "requests that last, and for how long Redis keeps what is held, are the subject",
    ),
];

/// A source file.
struct Source {
    /// From the root of the repository.
    path: String,
    /// Its module: `["proxy", "request", "decide"]`.
    module: Vec<String>,
    /// All of it.
    text: String,
    /// Facts about the gateway's code.
    code: Facts,
    /// Facts about its test code.
    tests: Facts,
}

/// The names and calls of some code.
#[derive(Default)]
struct Facts {
    /// Every path, from `use` items and from code, inside macros too.
    paths: Vec<Vec<String>>,
    /// Paths in code, without `use` items.
    spoken: Vec<Vec<String>>,
    /// Every method call: its receiver, as far as that is a field or a name, and the method.
    calls: Vec<(String, String)>,
    has_async: bool,
    has_dyn: bool,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every `*.rs` under `folder`, in order.
fn sources(folder: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    collect(&root().join(folder), &mut paths);
    paths.sort_unstable();
    assert!(!paths.is_empty(), "no sources under {folder}");
    paths.iter().map(|path| Source::read(path)).collect()
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

impl Source {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let relative = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        let module: Vec<String> = relative.split('/').map(str::to_owned).collect();
        // `tests.rs` and the files of `tests/` belong to a module under `#[cfg(test)]`; so does the model of the leases.
        let all_tests = path.starts_with("tests/")
            || module.iter().any(|part| part == "tests")
            || (module[0] == "counter" && module.iter().any(|part| part == "model"));
        let file = syn::parse_file(&text).expect("a source that compiles");
        let (mut code, mut tests) = (Reading::new(&module), Reading::new(&module));
        for item in &file.items {
            if all_tests || is_test(attributes_of(item)) {
                tests.visit_item(item);
            } else {
                code.visit_item(item);
            }
        }
        let (code, tests) = (code.facts, tests.facts);
        Self { path, module, text, code, tests }
    }

    fn top(&self) -> &str {
        &self.module[0]
    }

    /// The crate's top-level modules that the code names.
    fn uses(&self) -> BTreeSet<String> {
        let front = if self.top() == "main" { "keygate" } else { "crate" };
        let named = self.code.paths.iter().filter(|path| path[0] == front).filter_map(|path| path.get(1));
        named.filter(|name| *name != self.top()).cloned().collect()
    }

    /// Whether the code names it, anywhere in a path.
    fn names(&self, wanted: &str) -> bool {
        self.code.paths.iter().any(|path| path.iter().any(|part| part == wanted))
    }

    /// Whether the code names a path that ends so.
    fn names_path(&self, wanted: &[&str]) -> bool {
        self.code.paths.iter().any(|path| {
            path.len() >= wanted.len() && path[path.len() - wanted.len()..].iter().eq(wanted.iter())
        })
    }
}

/// Reads what an item is made of. Paths that begin with `self` or `super` are made absolute.
struct Reading<'m> {
    module: &'m [String],
    /// Modules inside the file.
    inside: Vec<String>,
    facts: Facts,
}

impl<'m> Reading<'m> {
    fn new(module: &'m [String]) -> Self {
        Self { module, inside: Vec::new(), facts: Facts::default() }
    }

    fn say(&mut self, path: Vec<String>) {
        self.facts.spoken.push(path.clone());
        self.add(path);
    }

    fn add(&mut self, path: Vec<String>) {
        let mut here: Vec<String> = self.module.iter().chain(&self.inside).cloned().collect();
        let mut rest = path.as_slice();
        let mut is_relative = false;
        while let Some((first, behind)) = rest.split_first() {
            match first.as_str() {
                "self" => {}
                "super" => drop(here.pop()),
                _ => break,
            }
            (is_relative, rest) = (true, behind);
        }
        let absolute = if is_relative {
            std::iter::once("crate".to_owned()).chain(here).chain(rest.iter().cloned()).collect()
        } else {
            path
        };
        self.facts.paths.push(absolute);
    }

    fn tree(&mut self, front: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| front.iter().cloned().chain([name.to_string()]).collect::<Vec<_>>();
        match tree {
            syn::UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.add(with(&name.ident)),
            syn::UseTree::Rename(rename) => self.add(with(&rename.ident)),
            syn::UseTree::Glob(_) => self.add(front.to_vec()),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(front, tree)),
        }
    }

    /// Macros take any tokens; the paths and calls among them are found by their shape.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut colons, mut dot) = (0, false);
        let (mut receiver, mut method) = (String::new(), None);
        for token in tokens {
            match &token {
                TokenTree::Ident(ident) => {
                    if colons != 2 && !path.is_empty() {
                        let whole = std::mem::take(&mut path);
                        receiver.clone_from(whole.last().unwrap());
                        self.say(whole);
                    }
                    if dot {
                        method = Some((receiver.clone(), ident.to_string()));
                        receiver = ident.to_string();
                    }
                    path.push(ident.to_string());
                    (colons, dot) = (0, false);
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == '.' => dot = true,
                TokenTree::Group(group) => {
                    if let Some(call) = method.take() {
                        self.facts.calls.push(call);
                    }
                    self.tokens(group.stream());
                }
                _ => {}
            }
            if !path.is_empty() {
                let whole = std::mem::take(&mut path);
                receiver.clone_from(whole.last().unwrap());
                self.say(whole);
            }
            colons = 0;
        }
        if !path.is_empty() {
            self.say(path);
        }
    }
}

impl<'ast> Visit<'ast> for Reading<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.inside.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.inside.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.say(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    // A visibility is not a use.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let receiver = match &*call.receiver {
            syn::Expr::Field(field) => match &field.member {
                syn::Member::Named(name) => name.to_string(),
                syn::Member::Unnamed(_) => String::new(),
            },
            syn::Expr::Path(path) => {
                path.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default()
            }
            _ => String::new(),
        };
        self.facts.calls.push((receiver, call.method.to_string()));
        visit::visit_expr_method_call(self, call);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.facts.has_async |= signature.asyncness.is_some();
        visit::visit_signature(self, signature);
    }

    fn visit_expr_async(&mut self, expression: &'ast syn::ExprAsync) {
        self.facts.has_async = true;
        visit::visit_expr_async(self, expression);
    }

    fn visit_expr_await(&mut self, expression: &'ast syn::ExprAwait) {
        self.facts.has_async = true;
        visit::visit_expr_await(self, expression);
    }

    fn visit_type_trait_object(&mut self, object: &'ast syn::TypeTraitObject) {
        self.facts.has_dyn = true;
        visit::visit_type_trait_object(self, object);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }
}

fn attributes_of(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list();
        attribute.path().is_ident("cfg") && list.is_ok_and(|list| list.tokens.to_string().contains("test"))
    })
}

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The arrows drawn in `src/lib.rs`: `a → b → { c, d }` says that a uses b, and b uses c and d.
fn drawn() -> Arrows {
    let map = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let drawing = map.split_once("```text").expect("a drawing").1.split_once("```").expect("its end").0;
    let mut arrows = Arrows::new();
    for line in drawing.lines() {
        for chain in line.trim_start_matches("//!").trim().split("  ").filter(|c| c.contains('→')) {
            let stations: Vec<BTreeSet<String>> = chain.split('→').map(station).collect();
            for pair in stations.windows(2) {
                for from in &pair[0] {
                    arrows.entry(from.clone()).or_default().extend(pair[1].iter().cloned());
                }
            }
        }
    }
    assert!(arrows.len() > 10, "the drawing is read: {arrows:?}");
    arrows
}

fn station(text: &str) -> BTreeSet<String> {
    let word = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    text.trim_matches(|c: char| c == '{' || c == '}' || c.is_whitespace())
        .split(',')
        .map(word)
        .filter(|w: &String| !w.is_empty())
        .collect()
}

/// The arrows found in the code.
fn taken() -> Arrows {
    let mut arrows = Arrows::new();
    for source in sources("src").iter().filter(|s| s.top() != "lib") {
        let uses = source.uses().into_iter().filter(|n| !COMMON.contains(&n.as_str()));
        arrows.entry(source.top().to_owned()).or_default().extend(uses);
    }
    arrows
}

#[test]
fn modules_use_each_other_as_the_map_says_and_in_no_other_way() {
    let (drawn, taken) = (drawn(), taken());
    let none = BTreeSet::new();
    let mut wrong = Vec::new();
    for (from, used) in &taken {
        let allowed = drawn.get(from).unwrap_or(&none);
        wrong.extend(
            used.difference(allowed).map(|to| format!("{from} uses {to}, and src/lib.rs has no such arrow")),
        );
    }
    for (from, allowed) in &drawn {
        let used = taken.get(from).unwrap_or(&none);
        let unused = allowed.difference(used).filter(|to| !COMMON.contains(&to.as_str()));
        wrong.extend(unused.map(|to| format!("src/lib.rs draws {from} → {to}, and nobody takes it")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn parts_of_a_module_use_only_parts_below_them() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let Some((top, layers)) = LAYERS.iter().find(|(top, _)| *top == source.top()) else { continue };
        let height = |part: &String| layers.iter().position(|layer| layer == part);
        let Some(own) = source.module.get(1).and_then(height) else { continue };
        for path in source
            .code
            .paths
            .iter()
            .filter(|path| path[0] == "crate" && path.get(1).is_some_and(|p| p == top))
        {
            if let Some(other) = path.get(2).and_then(height).filter(|other| *other > own) {
                wrong.push(format!("{} uses {top}/{}, which lies above it", source.path, layers[other]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_part_of_the_layered_modules_has_its_place() {
    for (top, layers) in LAYERS.iter().filter(|(top, _)| ["admin", "policy", "proxy"].contains(top)) {
        for source in sources("src").iter().filter(|s| s.top() == *top && s.module.len() > 1) {
            assert!(layers.contains(&source.module[1].as_str()), "{} is in no layer of {top}", source.path);
        }
    }
}

#[test]
fn policy_and_model_are_pure() {
    for source in sources("src").iter().filter(|s| ["policy", "model"].contains(&s.top())) {
        assert!(!source.code.has_async, "{} has async code", source.path);
        assert!(!source.code.has_dyn, "{} has a trait object", source.path);
        for word in ["tokio", "SystemTime", "Instant"] {
            assert!(!source.names(word), "{} names {word}", source.path);
        }
        let asks = source.code.calls.iter().any(|(_, method)| method == "now")
            || source
                .code
                .paths
                .iter()
                .any(|path| path.len() > 1 && path.last().is_some_and(|name| name == "now"));
        assert!(!asks, "{} asks what time it is", source.path);
    }
}

#[test]
fn each_library_of_the_edges_is_known_where_its_edge_is() {
    let homes: [(&str, &[&str]); 7] = [
        ("pingora", &["src/proxy/", "src/app/"]),
        // The demo and `keygate echo` have a backend of their own.
        ("axum", &["src/admin/", "src/app/", "src/cli/echo.rs"]),
        ("rusqlite", &["src/store/"]),
        ("tokio_postgres", &["src/store/postgres/"]),
        ("deadpool_postgres", &["src/store/postgres/"]),
        ("PgStore", &["src/store/postgres/", "src/app/"]),
        ("SqliteStore", &["src/store/sqlite/", "src/app/", "src/cli/"]),
    ];
    for source in sources("src") {
        for (library, allowed) in homes {
            let at_home = allowed.iter().any(|home| source.path.starts_with(home));
            // A single word is a name of ours, unless it is a type.
            let is_type = library.starts_with(char::is_uppercase);
            let names = source
                .code
                .paths
                .iter()
                .any(|path| (is_type || path.len() > 1) && path.iter().any(|part| part == library));
            assert!(at_home || !names, "{} names {library}", source.path);
        }
    }
}

#[test]
fn the_gate_knows_neither_edge_nor_driver() {
    for source in sources("src").iter().filter(|s| s.top() == "gate") {
        for word in ["pingora", "axum", "hyper", "rusqlite", "store", "proxy", "admin"] {
            assert!(!source.names(word), "{} names {word}", source.path);
        }
    }
}

#[test]
fn only_the_composition_root_and_commands_on_a_store_name_a_backend() {
    for source in sources("src").iter().filter(|s| !["app", "cli", "store"].contains(&s.top())) {
        assert!(!source.names_path(&["store", "sqlite"]), "{} names a backend", source.path);
        // The config parses the address of a PostgreSQL server, and uses nothing else of it.
        let others = source.code.paths.iter().filter(|p| p.iter().any(|part| part == "postgres"));
        let may = |path: &Vec<String>| {
            source.top() == "config" && path.last().is_some_and(|name| name.ends_with("PostgresUrl"))
        };
        let crate_paths = others.filter(|path| path[0] == "crate" && !may(path)).count();
        assert_eq!(crate_paths, 0, "{} names a backend", source.path);
    }
}

#[test]
fn only_the_request_filter_admits_and_charges() {
    let all = sources("src");
    let callers = |receiver: &str, method: &str| -> Vec<(String, usize)> {
        let is_it =
            |(on, called): &&(String, String)| (receiver.is_empty() || on == receiver) && called == method;
        let count = |s: &Source| s.code.calls.iter().filter(is_it).count();
        all.iter().filter(|s| count(s) > 0).map(|s| (s.path.clone(), count(s))).collect()
    };
    assert_eq!(callers("gate", "admit"), [("src/proxy/request/decide.rs".to_owned(), 1)]);
    // A route that clamps charges again with less; so does a request whose end user has to be asked for.
    assert_eq!(callers("counters", "admit"), [("src/gate/charge.rs".to_owned(), 3)]);
    assert_eq!(callers("self", "decide"), [("src/proxy/service.rs".to_owned(), 1)]);
    let service = all.iter().find(|s| s.path == "src/proxy/service.rs").unwrap();
    let file = syn::parse_file(&service.text).unwrap();
    let mut filter = Filter(false);
    filter.visit_file(&file);
    assert!(filter.0, "the decision is made in the request filter");
}

/// Whether `request_filter` decides.
struct Filter(bool);

impl<'ast> Visit<'ast> for Filter {
    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if function.sig.ident == "request_filter" {
            let mut body = Reading::new(&[]);
            body.visit_block(&function.block);
            self.0 = body.facts.calls.iter().any(|(_, method)| method == "decide");
        }
    }
}

#[test]
fn nothing_in_the_request_path_reads_the_ledger() {
    for source in sources("src") {
        if ["proxy", "gate", "counter", "enduser", "keyring", "policy"].contains(&source.top()) {
            for word in ["Ledger", "LogFilter", "KeyStats"] {
                assert!(!source.names(word), "{} names {word}", source.path);
            }
        }
    }
}

#[test]
fn time_and_environment_are_arguments_and_queues_have_bounds() {
    for source in sources("src") {
        let only_in = |what: &[&str], home: &str| {
            assert!(source.path == home || !source.names_path(what), "{} has {what:?}", source.path);
        };
        only_in(&["SystemTime", "now"], "src/clock.rs");
        only_in(&["std", "time", "Instant"], "src/clock.rs");
        only_in(&["Utc", "now"], "src/clock.rs");
        only_in(&["env", "var"], "src/main.rs");
        only_in(&["unbounded_channel"], "");
        only_in(&["mpsc", "unbounded"], "");
    }
}

#[test]
fn no_source_is_longer_than_it_can_be_read() {
    for source in sources("src") {
        let lines = source.text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", source.path);
    }
}

#[test]
fn every_module_says_what_it_is() {
    for source in sources("src").into_iter().chain(sources("tests")) {
        assert!(source.text.starts_with("//!"), "{} does not begin with its own documentation", source.path);
    }
}

#[test]
fn nothing_is_left_for_later() {
    // Written in two parts, so that this file does not find itself.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["unimpl", "emented!"], ["to", "do!"]].map(|m| m.concat());
    for source in sources("src").into_iter().chain(sources("tests")) {
        for mark in &marks {
            assert!(!source.text.contains(mark), "{} has a {mark}", source.path);
        }
    }
}

#[test]
fn tests_do_not_wait_by_sleeping() {
    for source in sources("src").into_iter().chain(sources("tests")) {
        let is_pause = |path: &&Vec<String>| path.last().is_some_and(|name| name == "sleep");
        let pauses = source.tests.spoken.iter().filter(is_pause).count();
        let justified =
            PAUSES.iter().find(|(path, ..)| *path == source.path).map_or(0, |(_, count, _)| *count);
        assert_eq!(pauses, justified, "{} pauses; wait for something instead", source.path);
    }
}
