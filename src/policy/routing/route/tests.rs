//! The decision table of one configuration, the possible mistakes, and a naive matcher as a model.

use super::*;
use crate::model::fault::ErrorForm;
use crate::model::scope::check_required;
use crate::policy::routing::forward::ForwardRules;
use proptest::prelude::*;

fn route(name: &str, path: &str, methods: &[Method]) -> Route {
    Route {
        name: name.into(),
        path: path.into(),
        methods: methods.into(),
        upstream: 0,
        public: false,
        scopes: Scopes::of(["app"], check_required).expect("scopes"),
        secret_from: Box::default(),
        resource: ResourceFrom::Nowhere,
        end_user: Box::default(),
        keep_credential: false,
        max_body_bytes: 1 << 20,
        encoded_slash: false,
        errors: ErrorForm::Envelope,
        meter: None,
        forward: ForwardRules::default(),
        cors: None,
    }
}

fn table() -> RouteTable {
    let routes = vec![
        route("all", "/{rest*}", &[]),
        route("app", "/v1/app/{rest*}", &[]),
        route("app-get", "/v1/app/{app_id}", &[Method::GET]),
        route("app-put", "/v1/app/{id}", &[Method::PUT]),
        route("app-chat", "/v1/app/{app_id}/chat", &[Method::POST]),
        route("app-files", "/v1/app/{app_id}/files/{rest*}", &[]),
        route("list", "/v1/app/list", &[]),
        route("list-post", "/v1/app/list", &[Method::POST]),
        route("list-one", "/v1/app/list/{what}", &[]),
        route("rag", "/v1/rag", &[]),
        route("rag-slash", "/v1/rag/", &[]),
        route("rag-rest", "/v1/rag/{rest*}", &[Method::GET]),
        route("chat", "/{version}/{kind}/{id}/chat", &[]),
        route("status", "/{version}/status", &[]),
        route("deep", "/d/{a}/{b}/{c}/{d}/{e}", &[]),
    ];
    RouteTable::new(routes).unwrap()
}

/// Method, path, and the route's name with its parameters as `name=value`; empty if there is no route.
const DECISIONS: &[(&str, &str, &str)] = &[
    ("GET", "/", "all rest="),
    ("GET", "/x", "all rest=x"),
    ("GET", "/x/y/", "all rest=x/y/"),
    ("GET", "/v1", "all rest=v1"),
    ("GET", "/V1/app/a1", "all rest=V1/app/a1"),
    // A rest may be empty, but its slash must be there.
    ("GET", "/v1/app", "all rest=v1/app"),
    ("GET", "/v1/app/", "app rest="),
    ("DELETE", "/v1/app/", "app rest="),
    ("GET", "/v1/app/a1/files", "app rest=a1/files"),
    ("GET", "/v1/app/a1/files/", "app-files app_id=a1 rest="),
    ("GET", "/v1/app/a1/files/x/y", "app-files app_id=a1 rest=x/y"),
    // A parameter is one whole segment, takes precedence over the rest, and has the name in its own route.
    ("GET", "/v1/app/a1", "app-get app_id=a1"),
    ("GET", "/v1/app/%E6%96%87", "app-get app_id=%E6%96%87"),
    ("PUT", "/v1/app/a1", "app-put id=a1"),
    ("GET", "/v1/app/a1/", "app rest=a1/"),
    ("GET", "/v1/app/a1/other", "app rest=a1/other"),
    ("POST", "/v1/app/a1/chat", "app-chat app_id=a1"),
    ("POST", "/v1/app/a1/chat/", "app rest=a1/chat/"),
    // Only the most specific pattern counts: no falling through to a wider one.
    ("DELETE", "/v1/app/a1", ""),
    ("HEAD", "/v1/app/a1", "app-get app_id=a1"),
    ("GET", "/v1/app/a1/chat", ""),
    ("POST", "/v1/rag/x", ""),
    // A literal takes precedence over a parameter, a named method over any method.
    ("GET", "/v1/app/list", "list"),
    ("POST", "/v1/app/list", "list-post"),
    ("PURGE", "/v1/app/list", "list"),
    ("GET", "/v1/app/lis", "app-get app_id=lis"),
    ("GET", "/v1/app/listing", "app-get app_id=listing"),
    // From the left: the first segment in which two patterns differ decides.
    ("GET", "/v1/app/list/x", "list-one what=x"),
    ("POST", "/v1/app/list/chat", "list-one what=chat"),
    ("GET", "/v1/rag/r1/chat", "rag-rest rest=r1/chat"),
    ("GET", "/v2/rag/r1/chat", "chat version=v2 kind=rag id=r1"),
    ("GET", "/v1/status", "status version=v1"),
    // A literal without a match does not hide the parameter or the rest beside it.
    ("GET", "/v1/app/list/files/x", "app-files app_id=list rest=x"),
    ("GET", "/v1/app/list/x/y", "app rest=list/x/y"),
    // Without, with and after the trailing slash are three paths.
    ("GET", "/v1/rag", "rag"),
    ("GET", "/v1/rag/", "rag-slash"),
    ("POST", "/v1/rag/", "rag-slash"),
    ("GET", "/v1/rag/x", "rag-rest rest=x"),
    ("GET", "/v1/ragx", "all rest=v1/ragx"),
    // More parameters than the matcher has inline space for.
    ("GET", "/d/1/2/3/4/5", "deep a=1 b=2 c=3 d=4 e=5"),
    ("GET", "/d/1/2/3/4", "all rest=d/1/2/3/4"),
];

/// The parameters of a pattern, in order.
fn names_of(pattern: &str) -> impl Iterator<Item = &str> {
    pattern.split('/').filter_map(|s| s.strip_prefix('{')).map(|s| s.trim_end_matches(['*', '}']))
}

fn described(found: Option<RouteMatch<'_, '_>>) -> String {
    let Some(found) = found else { return String::new() };
    let mut text = found.route.name.to_string();
    for name in names_of(&found.route.path) {
        text += &format!(" {name}={}", found.params.get(name).unwrap());
    }
    text
}

#[test]
fn the_most_specific_route_is_found() {
    let table = table();
    for (method, path, expected) in DECISIONS {
        let method: Method = method.parse().unwrap();
        assert_eq!(described(table.find(&method, path)), *expected, "{method} {path}");
    }
}

#[test]
fn the_order_of_the_file_does_not_matter() {
    let mut routes: Vec<Route> = table().routes().iter().map(|r| Route::clone(r)).collect();
    routes.reverse();
    let table = RouteTable::new(routes).unwrap();
    for (method, path, expected) in DECISIONS {
        let method: Method = method.parse().unwrap();
        assert_eq!(described(table.find(&method, path)), *expected, "{method} {path}");
    }
}

#[test]
fn a_parameter_of_another_route_on_the_same_pattern_is_unknown() {
    let table = table();
    let found = table.find(&Method::PUT, "/v1/app/a1").unwrap();
    assert_eq!((found.params.get("id"), found.params.get("app_id")), (Some("a1"), None));
}

#[test]
fn an_empty_table_has_no_route() {
    let table = RouteTable::new(Vec::new()).unwrap();
    assert!(table.find(&Method::GET, "/").is_none() && table.routes().is_empty());
}

#[test]
fn mistakes_in_a_pattern_are_named() {
    let many: String = (0..=PARAMS_MAX).map(|n| format!("/{{p{n}}}")).collect();
    for (path, part) in [
        ("", "must begin with /"),
        ("v1", "must begin with /"),
        ("/a//b", "two slashes in a row"),
        ("//", "two slashes in a row"),
        ("/a/../b", "`..`: the path has a . or .. segment"),
        ("/a b", "`a b`: the path has the character 0x20"),
        ("/%7Eme", "`%7Eme` must be written `~me`"),
        ("/a%2fb", "`a%2fb` must be written `a%2Fb`"),
        ("/a%2Fb", "`%2F` matches nothing unless encoded_slash is \"keep\""),
        ("/a|b", "`a|b`: the path has the character `|`, which must be percent-encoded"),
        ("/a?b", "`a?b`: the path has the character `?`"),
        ("/{}", "`{}`: the name of a parameter"),
        ("/{*}", "`{*}`: the name of a parameter"),
        ("/{*rest}", "`{*rest}`: the name of a parameter"),
        ("/{a-b}", "`{a-b}`: the name of a parameter"),
        ("/{a", "`{a`: a parameter is a whole segment"),
        ("/a}", "`a}`: a parameter is a whole segment"),
        ("/x{a}", "`x{a}`: a parameter is a whole segment"),
        ("/{a}:run", "`{a}:run`: a parameter is a whole segment"),
        ("/{{a}}", "`{{a}}`: the name of a parameter"),
        ("/{a}/{a}", "`{a}`: the parameter is there twice"),
        ("/{a*}/b", "`{a*}`: only the last segment"),
        (many.as_str(), "at most 16 parameters"),
    ] {
        let bad = RouteTable::new(vec![route("r", path, &[])]).err().unwrap_or_default();
        let named =
            bad.iter().filter(|b| b.index == 0 && b.field == "path" && b.message.contains(part)).count();
        assert_eq!((named, bad.len()), (1, 1), "{path}: {bad:?}");
    }
}

#[test]
fn every_mistake_of_every_route_is_reported_at_once() {
    let mut lost = route("lost", "/r/{id}/{rest*}", &[]);
    lost.resource = ResourceFrom::PathParam("app_id".into());
    let mut whole_rest = route("whole-rest", "/s/{id}/{rest*}", &[]);
    whole_rest.resource = ResourceFrom::PathParam("rest".into());
    let mut good = route("good", "/t/{id}", &[]);
    good.resource = ResourceFrom::PathParam("id".into());
    let bad = RouteTable::new(vec![
        route("one", "/a/{x}", &[Method::GET, Method::POST]),
        route("two", "/a/{y}", &[Method::POST, Method::GET]),
        route("three", "/b", &[]),
        route("four", "/b", &[]),
        route("five", "/c", &[Method::PUT, Method::PUT]),
        route("six", "/{", &[]),
        route("seven", "/./{a*}/b", &[]),
        lost,
        whole_rest,
        good,
    ]);
    let bad: Vec<String> = bad.err().unwrap_or_default().iter().map(BadRoute::to_string).collect();
    assert_eq!(
        bad,
        [
            "routes[1].methods: POST of `/a/{y}` belongs to route `one` already, route `two` cannot have it too",
            "routes[1].methods: GET of `/a/{y}` belongs to route `one` already, route `two` cannot have it too",
            "routes[3].path: any method of `/b` belongs to route `three` already, route `four` cannot have it too",
            "routes[4].methods: PUT is there twice",
            "routes[5].path: `{`: a parameter is a whole segment, as in `{id}`",
            "routes[6].path: `.`: the path has a . or .. segment",
            "routes[6].path: `{a*}`: only the last segment can take the rest of the path",
            "routes[7].resource: `app_id` is not a parameter of `/r/{id}/{rest*}`: write it as `{app_id}` there",
            "routes[8].resource: `rest` is not a parameter of `/s/{id}/{rest*}`: write it as `{rest}` there",
        ]
    );
}

/// The meaning of a pattern without a tree: the kinds of its segments if it matches.
fn matches(pattern: &str, path: &str) -> Option<Vec<SegmentKind>> {
    let mut kinds = Vec::new();
    let mut segments = path.split('/').skip(1);
    for wanted in pattern.split('/').skip(1) {
        // A rest takes everything left, but requires the slash before it.
        let segment = segments.next()?;
        if wanted.ends_with("*}") {
            kinds.push(SegmentKind::Rest);
            return Some(kinds);
        }
        let is_param = wanted.starts_with('{');
        if (is_param && segment.is_empty()) || (!is_param && wanted != segment) {
            return None;
        }
        kinds.push(if is_param { SegmentKind::Param } else { SegmentKind::Literal });
    }
    segments.next().is_none().then_some(kinds)
}

fn pattern() -> impl Strategy<Value = String> {
    let segment = proptest::sample::select(&["a", "b", "ab", "abc", "%20", "{}", "{}"][..]);
    let end = proptest::sample::select(&["", "", "/", "/{r*}"][..]);
    (proptest::collection::vec(segment, 0..4), end).prop_map(|(segments, end)| {
        let mut text = String::new();
        for (n, segment) in segments.iter().enumerate() {
            text += &format!("/{}", segment.replace("{}", &format!("{{p{n}}}")));
        }
        text += end;
        if text.is_empty() { "/".to_owned() } else { text }
    })
}

fn path() -> impl Strategy<Value = String> {
    let segment = proptest::sample::select(&["a", "b", "ab", "abc", "abcd", "c", "%20", "%C3%A9"][..]);
    (proptest::collection::vec(segment, 0..6), any::<bool>()).prop_map(|(segments, slash)| {
        let text: String = segments.iter().map(|s| format!("/{s}")).collect();
        if slash || text.is_empty() { text + "/" } else { text }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn the_tree_finds_what_the_definition_says(
        patterns in proptest::collection::btree_set(pattern(), 0..12),
        path in path(),
    ) {
        let routes = patterns.iter().map(|p| route(p, p, &[])).collect();
        let table = RouteTable::new(routes).unwrap();
        let expected = patterns
            .iter()
            .filter_map(|p| matches(p, &path).map(|kinds| (kinds, p)))
            .min()
            .map(|(_, p)| p.as_str());
        let found = table.find(&Method::GET, &path);
        prop_assert_eq!(found.as_ref().map(|f| &*f.route.name), expected);

        if let Some(found) = found {
            // Inserting the parameters into the pattern gives the path.
            let mut text = found.route.path.to_string();
            for name in names_of(&found.route.path) {
                let value = found.params.get(name).unwrap();
                text = text.replace(&format!("{{{name}}}"), value).replace(&format!("{{{name}*}}"), value);
            }
            prop_assert_eq!(text, path);
        }
    }

    #[test]
    fn every_canonical_path_is_decided(raw in "(/([a-z0-9.~:;-]|%[2-9A-F][0-9A-F]|v1|app|list|rag|chat){0,6}){1,7}") {
        let table = table();
        if let Ok(path) = canonical(raw.as_bytes()) {
            // The table has a rest at its root, so only a method can be missing.
            prop_assert!(table.find(&Method::GET, &path).is_some() || path.ends_with("/chat"), "{}", path);
        }
    }

    #[test]
    fn no_pattern_panics(path in "[/{}*a.%2]{0,12}|(/\\{[a-z]\\}){0,40}") {
        let accepted = RouteTable::new(vec![route("r", &path, &[])]).ok().map(|t| t.routes()[0].path.clone());
        prop_assert!(accepted.is_none_or(|p| *p == path));
    }
}

#[test]
fn a_rewritten_path_is_made_of_the_parameters_of_its_own_pattern() {
    let with = |path: &str, template: &str| {
        let mut route = route("r", path, &[]);
        route.forward.rewrite = Some(Rewrite::parse(template).expect("a template"));
        RouteTable::new(vec![route])
    };
    for (path, template, sent, got) in [
        ("/v1/app/{rest*}", "/{rest}", "/v1/app/a/b%20c/", "/a/b%20c/"),
        ("/v1/app/{rest*}", "/{rest}", "/v1/app/", "/"),
        ("/v1/{id}/{rest*}", "/in/{id}/x/{rest}", "/v1/7/a", "/in/7/x/a"),
        ("/v1/{a}/{b}", "/{b}/{a}", "/v1/1/2", "/2/1"),
        ("/v1/{a}", "/fixed", "/v1/1", "/fixed"),
    ] {
        let table = with(path, template).expect("it is sound");
        let matched = table.find(&Method::GET, sent).expect("it matches");
        let rewritten = matched.route.forward.rewrite.as_ref().map(|r| r.path(&matched.params));
        assert_eq!(rewritten.as_deref(), Some(got), "{path} {template} {sent}");
    }
    for (path, template, wrong) in [
        ("/v1/{a}", "/{b}", "`b` is not a parameter of `/v1/{a}`"),
        ("/v1/{rest*}", "/{rest}/x", "`rest` stands for any rest, so it must come last"),
    ] {
        let bad = with(path, template).expect_err("it is not sound");
        assert_eq!((bad[0].field, bad[0].message.as_str()), ("rewrite", wrong));
    }
}

proptest! {
    #[test]
    fn canonical_paths_stay_canonical(segments in prop::collection::vec("[a-z0-9._~%-]{1,6}", 1..6), slash: bool) {
        let sent = format!("/v1/{}{}", segments.join("/"), if slash { "/" } else { "" });
        let Ok(spelled) = canonical(sent.as_bytes()) else { return Ok(()) };
        let mut route = route("r", "/v1/{id}/{rest*}", &[]);
        route.forward.rewrite = Some(Rewrite::parse("/x/{id}/{rest}").expect("a template"));
        let table = RouteTable::new(vec![route]).expect("it is sound");
        let Some(matched) = table.find(&Method::GET, &spelled) else { return Ok(()) };
        let path = matched.route.forward.rewrite.as_ref().map(|r| r.path(&matched.params)).expect("a path");
        let again = canonical(path.as_bytes());
        prop_assert!(again.is_ok_and(|p| !p.was_respelled()), "{} became {}", sent, path);
    }
}
