//! Signing in with an identity provider, which is here one that does as it is told; `tests/console` has a real one.

use super::provider::{CLIENT, HOUR, Provider, SECRET, fields};
use super::{Browser, CHANGES, PAGES, Things, sees_nothing_of};
use crate::admin::tests::{Api, ApiReply, NOW};
use crate::admin::{ClientCredentials, Role};
use crate::clock::Clock as _;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

fn groups(all: &[&str]) -> Value {
    json!({"realm": {"groups": all}})
}

fn stranger(api: &Api) -> Browser<'_> {
    Browser { api, session: String::new(), lang: "en" }
}

/// The pair of a cookie that an answer sets; none if it removes it or says nothing of it.
fn cookie(reply: &ApiReply, name: &str) -> Option<String> {
    let lines = reply.headers.get_all("set-cookie").iter().filter_map(|line| line.to_str().ok());
    let line = lines.into_iter().find(|line| line.starts_with(&format!("{name}=")))?;
    let expected = match name {
        "keygate_session" => "; Path=/console; HttpOnly; SameSite=Strict",
        _ => "; Path=/console/oidc; HttpOnly; SameSite=Lax",
    };
    assert!(line.contains(expected), "{line}");
    let set = !line.contains("Max-Age=0");
    assert!(!set || line.ends_with("; Secure"), "{line}");
    set.then(|| line.split(';').next().expect("a pair").to_owned())
}

/// A sign-in that has been begun: the fields of its URL, and its cookie.
async fn begin(api: &Api, next: &str) -> (HashMap<String, String>, String) {
    let reply = stranger(api).get(&format!("/console/oidc/start?next={next}")).await;
    assert_eq!(reply.status, 303, "{}", reply.text);
    let flow = cookie(&reply, "keygate_sign_in").expect("a cookie");
    (fields(reply.header("location")), flow)
}

/// The way back, in the browser with that cookie.
async fn come_back(api: &Api, flow: &str, query: &[(&str, &str)]) -> ApiReply {
    let browser = Browser { api, session: flow.to_owned(), lang: "en" };
    let reply = browser.get(&format!("/console/oidc/callback{}", super::super::api::query(query))).await;
    let line = reply.headers.get_all("set-cookie").iter().any(|line| {
        line.to_str().is_ok_and(|line| line.starts_with("keygate_sign_in=;") && line.contains("Max-Age=0"))
    });
    assert!(line, "the sign-in ends with its answer: {:?}", reply.headers);
    reply
}

/// A whole sign-in.
async fn attempt(api: &Api, provider: &Provider) -> ApiReply {
    let (asked, flow) = begin(api, "").await;
    let code = provider.code(&asked);
    come_back(api, &flow, &[("code", &code), ("state", &asked["state"]), ("iss", &provider.issuer)]).await
}

/// Somebody who has signed in as a member of these groups.
async fn enter<'a>(api: &'a Api, provider: &Provider, all: &[&str]) -> Browser<'a> {
    provider.say(groups(all));
    let reply = attempt(api, provider).await;
    assert_eq!(reply.status, 303, "{}", reply.text);
    Browser { session: cookie(&reply, "keygate_session").expect("a session"), ..stranger(api) }
}

async fn audit(api: &Api, owner: &str, action: &str) -> Value {
    let role = if owner == "-" { Role::Platform } else { Role::Admin };
    let token = api.token(owner, role);
    api.call(&token, "GET", &format!("/audit?action={action}&pagesize=100"), Value::Null).await.data()["items"]
        .clone()
}

#[tokio::test]
async fn a_person_signs_in_and_the_session_ends_with_their_token() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    let form = stranger(&api).get("/console/sign-in?next=%2Fconsole%2Fw%2Fws-a%2Fkeys").await.text;
    let link = "https://console.test/console/oidc/start?next=%2Fconsole%2Fw%2Fws-a%2Fkeys";
    assert!(form.contains(link) && form.contains("name=\"token\""), "{form}");

    let (asked, flow) = begin(&api, "%2Fconsole%2Fw%2Fws-a%2Fkeys").await;
    for (name, value) in [
        ("tenant", "1"),
        ("response_type", "code"),
        ("client_id", CLIENT),
        ("redirect_uri", "https://console.test/console/oidc/callback"),
        ("scope", "openid profile"),
    ] {
        assert_eq!(asked[name], value);
    }
    for secret in [&asked["state"], &asked["nonce"]] {
        assert!(secret.len() == 43 && !flow.contains(&**secret));
    }
    assert!(!asked.contains_key("prompt"));
    let again = stranger(&api).get("/console/oidc/start?again=1").await;
    assert_eq!(fields(again.header("location"))["prompt"], "login");

    provider.say(groups(&["works-a", "other"]));
    let code = provider.code(&asked);
    let reply = come_back(&api, &flow, &[("code", &code), ("state", &asked["state"])]).await;
    assert_eq!((reply.status.as_u16(), reply.header("location")), (303, "/console/w/ws-a/keys"));
    let session = cookie(&reply, "keygate_session").expect("a session");
    let browser = Browser { session, ..stranger(&api) };
    let page = browser.get("/console/w/ws-a/keys").await;
    assert!(page.status == 200 && page.text.contains("Ada Lovelace"), "{}", page.text);
    let made = browser.change("/console/w/ws-a/keys/new", "name=made&type=service&scopes=app").await;
    assert!(made.status == 200 && made.text.contains("id=\"secret\""), "{}", made.text);
    let line = audit(&api, "ws-a", "console.sign_in").await[0].clone();
    assert_eq!(
        (&line["subject"], &line["role"], &line["changes"]),
        (&json!("u-1"), &json!("admin"), &json!({"name": "Ada Lovelace"}))
    );
    assert_eq!(audit(&api, "ws-a", "key.create").await[0]["subject"], "u-1");

    api.clock.advance(Duration::from_mins(59));
    assert_eq!(browser.get("/console/w/ws-a/keys").await.status, 200);
    api.clock.advance(Duration::from_mins(1));
    let over = browser.get("/console/w/ws-a/keys").await;
    assert!(over.status == 303 && over.header("location").ends_with("&over=1"), "{:?}", over.headers);
}

#[tokio::test]
async fn a_session_is_never_longer_than_half_a_day() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    provider.say(json!({"exp": NOW.as_secs() + 30 * 24 * HOUR, "realm": {"groups": "looks-a"}}));
    let reply = attempt(&api, &provider).await;
    let browser =
        Browser { session: cookie(&reply, "keygate_session").expect("a session"), ..stranger(&api) };
    api.clock.advance(Duration::from_hours(11));
    assert_eq!(browser.get("/console/w/ws-a").await.status, 200);
    api.clock.advance(Duration::from_hours(1));
    assert_eq!(browser.get("/console/w/ws-a").await.status, 303);
}

#[tokio::test]
async fn an_id_token_that_is_not_for_this_sign_in_is_refused() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    let now = NOW.as_secs();
    let cases = [
        // Within the allowed clock difference, but a session would be over at once.
        (json!({"exp": now}), "id_token_expired"),
        (json!({"nonce": "another"}), "id_token_nonce"),
        (json!({"nonce": null}), "id_token_nonce"),
        (json!({"iss": "https://other.test"}), "id_token_invalid"),
        (json!({"aud": "another"}), "id_token_invalid"),
        (json!({"aud": [CLIENT, "another"]}), "id_token_party"),
        (json!({"azp": "another"}), "id_token_party"),
        (json!({"exp": now - HOUR}), "id_token_expired"),
        (json!({"exp": null}), "id_token_invalid"),
        (json!({"nbf": now + HOUR}), "id_token_invalid"),
        (json!({"sub": null}), "id_token_subject"),
        (json!({"sub": 7}), "id_token_subject"),
    ];
    for (claims, why) in cases {
        let mut all = groups(&["runs-all"]);
        all.as_object_mut().expect("an object").extend(claims.as_object().expect("an object").clone());
        provider.say(all);
        is_refused(&api, &attempt(&api, &provider).await, 401, why).await;
    }
    provider.say(groups(&["runs-all"]));
    for (header, why) in [
        (json!({"alg": "none", "kid": "1"}), "id_token_signature"),
        (json!({"alg": "HS256", "kid": "1"}), "id_token_signature"),
        (json!({"alg": "RS256", "kid": "1"}), "id_token_key"),
        (json!({"alg": "EdDSA", "kid": "7"}), "id_token_key"),
        (json!({"alg": "EdDSA", "kid": "1", "crit": ["b64"]}), "id_token_signature"),
    ] {
        provider.set(|provider| provider.header = Some(header));
        is_refused(&api, &attempt(&api, &provider).await, 401, why).await;
    }
    // Signed by somebody else.
    provider.set(|provider| {
        provider.header = Some(json!({"alg": "EdDSA", "kid": "1"}));
        provider.key = 2;
    });
    is_refused(&api, &attempt(&api, &provider).await, 401, "id_token_signature").await;
    provider.set(|provider| provider.key = 1);
    assert_eq!(attempt(&api, &provider).await.status, 303, "nothing else was wrong");
}

/// Nobody was signed in, and the audit log of the platform says why. An address has further tries.
async fn is_refused(api: &Api, reply: &ApiReply, status: u16, why: &str) {
    assert_eq!(reply.status, status, "{why}: {}", reply.text);
    assert_eq!(cookie(reply, "keygate_session"), None, "{why}");
    let line = audit(api, "-", "console.sign_in_refused").await[0].clone();
    assert_eq!(line["changes"], json!({"reason": why}));
    // Some reasons are plain words.
    assert!(!why.contains('_') || !reply.text.contains(why), "pages name no internals");
    // The next minute.
    api.clock.advance(Duration::from_mins(1));
}

#[tokio::test]
async fn an_answer_counts_once_and_only_where_it_was_asked_for() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    provider.say(groups(&["works-a"]));
    let (asked, flow) = begin(&api, "").await;
    let code = provider.code(&asked);
    let state = &*asked["state"];
    let right = [("code", &*code), ("state", state)];
    for (flow, query) in [
        ("", &right[..]),
        ("keygate_sign_in=AAAA", &right),
        (&flow, &[("code", &*code), ("state", "another")]),
        (&flow, &[("code", &*code)]),
        (&flow, &[("code", &*code), ("state", state), ("state", state)]),
    ] {
        is_refused(&api, &come_back(&api, flow, query).await, 400, "state").await;
    }
    // The cookie of another sign-in.
    let (_, other) = begin(&api, "").await;
    is_refused(&api, &come_back(&api, &other, &right).await, 400, "state").await;
    // A sign-in lasts ten minutes, and each refusal above took one.
    let (asked, flow) = begin(&api, "").await;
    let code = provider.code(&asked);
    let state = &*asked["state"];
    let right = [("code", &*code), ("state", state)];
    let mixed = [right[0], right[1], ("iss", "https://other.test")];
    is_refused(&api, &come_back(&api, &flow, &mixed).await, 401, "issuer").await;
    let denied = [("error", "access_denied"), ("state", state)];
    is_refused(&api, &come_back(&api, &flow, &denied).await, 403, "provider_access_denied").await;
    let odd = [("error", "<script>"), ("state", state)];
    is_refused(&api, &come_back(&api, &flow, &odd).await, 403, "provider_other").await;
    is_refused(&api, &come_back(&api, &flow, &[("state", state)]).await, 401, "code").await;
    // A code that the provider gave to another sign-in does not fit the verifier of this one.
    let (another, _) = begin(&api, "").await;
    let foreign = provider.code(&another);
    let injected = [("code", &*foreign), ("state", state)];
    is_refused(&api, &come_back(&api, &flow, &injected).await, 401, "code").await;

    let reply = come_back(&api, &flow, &right).await;
    assert!(reply.status == 303 && cookie(&reply, "keygate_session").is_some(), "{}", reply.text);
    // Once more: the browser no longer has the cookie, and for whoever has it the code is used.
    is_refused(&api, &come_back(&api, "", &right).await, 400, "state").await;
    is_refused(&api, &come_back(&api, &flow, &right).await, 401, "code").await;

    let (late, flow) = begin(&api, "").await;
    let code = provider.code(&late);
    api.clock.advance(Duration::from_mins(10));
    let late = [("code", &*code), ("state", &*late["state"])];
    is_refused(&api, &come_back(&api, &flow, &late).await, 400, "state").await;
}

#[tokio::test]
async fn an_address_cannot_try_answers_for_ever() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    // Pages of other sites can have a browser ask for these.
    for _ in 0..20 {
        assert_eq!(come_back(&api, "", &[("code", "x"), ("state", "x")]).await.status, 400);
    }
    for _ in 0..10 {
        let (asked, flow) = begin(&api, "").await;
        let guessed = [("code", "x"), ("state", &*asked["state"])];
        assert_eq!(come_back(&api, &flow, &guessed).await.status, 401);
    }
    provider.say(groups(&["works-a"]));
    assert_eq!(attempt(&api, &provider).await.status, 429);
    api.clock.advance(Duration::from_mins(1));
    assert_eq!(attempt(&api, &provider).await.status, 303);
}

#[tokio::test]
async fn the_page_afterwards_is_always_one_of_the_console() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    provider.say(groups(&["works-a"]));
    let long = format!("%2Fconsole%2F{}", "x".repeat(2_000));
    for (next, expected) in [
        ("https%3A%2F%2Fother.test", "/console"),
        ("%2F%2Fother.test", "/console"),
        ("%2Fdocs%2F", "/console"),
        ("%2Fconsole.other.test", "/console"),
        ("%2Fconsole%2Fw%2Fws-a%0d%0aSet-Cookie%3A%20x%3Dy", "/console"),
        (&*long, "/console"),
        ("%2Fconsole%2Fw%2Fws-a%3Fdays%3D30", "/console/w/ws-a?days=30"),
    ] {
        let (asked, flow) = begin(&api, next).await;
        let code = provider.code(&asked);
        let reply = come_back(&api, &flow, &[("code", &code), ("state", &asked["state"])]).await;
        assert_eq!((reply.status.as_u16(), reply.header("location")), (303, expected), "{next}");
    }
}

#[tokio::test]
async fn groups_decide_and_a_person_of_none_learns_nothing() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    for claims in [
        groups(&[]),
        groups(&["other", "WORKS-A", "works-a "]),
        json!({"realm": {"groups": 7}}),
        json!({"realm": {"groups": [7, null, ["works-a"]]}}),
        json!({"groups": ["works-a"], "realm": "works-a"}),
    ] {
        provider.set(|provider| provider.userinfo = json!({"sub": "u-1"}));
        provider.say(claims);
        let reply = attempt(&api, &provider).await;
        is_refused(&api, &reply, 403, "no_group").await;
        for internal in ["works-a", "ws-a", "realm", "u-1", "Ada"] {
            assert!(!reply.text.contains(internal), "{internal}: {}", reply.text);
        }
        let line = audit(&api, "-", "console.sign_in_refused").await[0].clone();
        assert_eq!(line["subject"], "u-1", "whoever runs the gateway learns who it was");
    }
    let mut chinese = stranger(&api);
    chinese.lang = "zh";
    let (asked, flow) = begin(&api, "").await;
    chinese.session = flow;
    let code = provider.code(&asked);
    let uri = super::super::api::query(&[("code", &code), ("state", &asked["state"])]);
    let page = chinese.get(&format!("/console/oidc/callback{uri}")).await;
    assert!(page.status == 403 && page.text.contains("无权访问"), "{}", page.text);
}

#[tokio::test]
async fn groups_may_be_told_at_userinfo() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    provider.say(json!({"name": null}));
    let told = json!({"sub": "u-1", "name": "From Userinfo", "realm": {"groups": ["looks-a"]}});
    provider.set(|provider| provider.userinfo = told.clone());
    let reply = attempt(&api, &provider).await;
    let browser =
        Browser { session: cookie(&reply, "keygate_session").expect("a session"), ..stranger(&api) };
    let page = browser.get("/console/w/ws-a").await;
    assert!(page.status == 200 && page.text.contains("From Userinfo"), "{}", page.text);
    // Of somebody else.
    let mut other = told;
    other["sub"] = json!("u-2");
    provider.set(|provider| provider.userinfo = other);
    is_refused(&api, &attempt(&api, &provider).await, 401, "userinfo_subject").await;
}

#[tokio::test]
async fn somebody_of_one_workspace_reaches_into_no_other() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    let (theirs, own) = (Things::of(&api, "ws-a").await, Things::of(&api, "ws-b").await);
    let browser = enter(&api, &provider, &["looks-b"]).await;
    sees_nothing_of(&theirs, "ws-b", &browser).await;
    let page = browser.get(&own.placed("/console/w/{workspace}/keys/{id}")).await;
    assert!(page.text.contains("key of ws-b") && !page.text.contains("/regenerate"), "{}", page.text);
    let admin = enter(&api, &provider, &["works-a"]).await;
    sees_nothing_of(&own, "ws-a", &admin).await;
    // Who is in both has in each the role of their group.
    let both = enter(&api, &provider, &["works-a", "looks-a", "looks-b"]).await;
    let first = both.get("/console").await;
    assert_eq!(first.header("location"), "/console/w/ws-a");
    for (things, can_write) in [(&theirs, true), (&own, false)] {
        let page = both.get(&things.placed("/console/w/{workspace}/keys/{id}")).await;
        assert!(page.status == 200 && page.text.contains(" selected>"), "{}", page.text);
        assert_eq!(page.text.contains("/regenerate"), can_write, "{}", page.text);
        let edit = things.placed("/console/w/{workspace}/keys/{id}/edit");
        let changed = both.change(&edit, "name=changed&scopes=app&rate_limit=1").await;
        assert_eq!(changed.status, if can_write { 303 } else { 403 });
    }
    for uri in PAGES.iter().filter(|uri| !uri.starts_with("/console/w/")) {
        assert_eq!(both.get(&theirs.placed(uri)).await.status, 403, "{uri}");
    }
    for owner in ["ws-a", "ws-b"] {
        assert_eq!(audit(&api, owner, "console.sign_in").await[0]["subject"], "u-1");
    }
    // The platform sees all of them.
    let platform = enter(&api, &provider, &["looks-b", "runs-all"]).await;
    for things in [&theirs, &own] {
        for uri in PAGES {
            assert_eq!(platform.get(&things.placed(uri)).await.status, 200, "{uri}");
        }
    }
    assert_eq!(audit(&api, "-", "console.sign_in").await[0]["role"], "platform");
}

#[tokio::test]
async fn nothing_changes_without_the_form_of_a_persons_session() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    let things = Things::of(&api, "ws-a").await;
    let browser = enter(&api, &provider, &["runs-all"]).await;
    let before = things.read(&api).await;
    for (uri, form) in CHANGES {
        let reply = browser.post(&things.placed(uri), &things.placed(form)).await;
        assert_eq!(reply.status, 403, "{uri}");
    }
    assert_eq!(things.read(&api).await, before);
}

#[tokio::test]
async fn a_provider_that_is_away_is_said_and_tokens_still_sign_in() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    provider.say(groups(&["works-a"]));
    let away = async || {
        let reply = stranger(&api).get("/console/oidc/start").await;
        assert!(reply.status == 503 && reply.text.contains("cannot be used at the moment"), "{}", reply.text);
        assert!(reply.text.contains("name=\"token\"") && !reply.text.contains("127.0.0.1:0"));
        Browser::enter(&api, &api.token("ws-a", Role::Admin)).await;
        api.clock.advance(Duration::from_secs(5));
    };
    provider.set(|provider| provider.status = StatusCode::BAD_GATEWAY);
    away().await;
    for (name, value) in [
        ("issuer", json!("https://other.test")),
        ("token_endpoint", json!("http://other.test/token")),
        ("jwks_uri", json!("ftp://other.test")),
        ("authorization_endpoint", Value::Null),
        ("end_session_endpoint", json!("javascript:alert(1)")),
        ("padding", json!("x".repeat(300_000))),
    ] {
        provider.set(|provider| {
            provider.status = StatusCode::OK;
            provider.document = Map::from_iter([(name.to_owned(), value)]);
        });
        away().await;
    }
    provider.set(|provider| {
        provider.document.clear();
        provider.published.clear();
    });
    away().await;
    provider.set(|provider| provider.published.push(1));
    let browser = enter(&api, &provider, &["works-a"]).await;
    // Sessions do not need the provider.
    provider.set(|provider| provider.status = StatusCode::BAD_GATEWAY);
    assert_eq!(browser.get("/console/w/ws-a").await.status, 200);
    let reply = attempt(&api, &provider).await;
    assert!(reply.status == 503 && cookie(&reply, "keygate_session").is_none(), "{}", reply.text);
    let line = audit(&api, "-", "console.sign_in_refused").await[0].clone();
    assert_eq!(line["changes"], json!({"reason": "provider_away"}));
}

#[tokio::test]
async fn a_provider_that_says_nothing_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut provider = Provider::start().await;
    provider.issuer = format!("http://{}", listener.local_addr().expect("an address"));
    let api = provider.api_with(|options| options.timeout = Duration::from_millis(50)).await;
    let reply = stranger(&api).get("/console/oidc/start").await;
    assert_eq!(reply.status, 503, "{}", reply.text);
}

#[tokio::test]
async fn a_client_that_the_provider_does_not_know_is_no_fault_of_the_visitor() {
    let provider = Provider::start().await;
    let wrong = Arc::new(ClientCredentials::new(CLIENT, "wrong"));
    let api = provider.api_with(|options| options.credentials = Some(Arc::clone(&wrong))).await;
    provider.say(groups(&["works-a"]));
    assert_eq!(attempt(&api, &provider).await.status, 503);
    // A file that changes has this called.
    wrong.replace(SECRET);
    assert_eq!(attempt(&api, &provider).await.status, 303);
    // In the body, where the provider wants it there.
    api.clock.advance(Duration::from_hours(1));
    provider.say(json!({"exp": NOW.as_secs() + 2 * HOUR, "realm": {"groups": ["works-a"]}}));
    let methods = json!({"token_endpoint_auth_methods_supported": ["private_key_jwt", "client_secret_post"]});
    provider.set(|provider| provider.document = methods.as_object().expect("an object").clone());
    assert_eq!(attempt(&api, &provider).await.status, 303);
    wrong.replace("wrong");
    assert_eq!(attempt(&api, &provider).await.status, 503);
}

#[tokio::test]
async fn keys_that_change_are_read_again_and_not_too_often() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    enter(&api, &provider, &["works-a"]).await;
    enter(&api, &provider, &["works-a"]).await;
    assert_eq!(provider.reads(), 1, "once for both");
    provider.set(|provider| {
        provider.key = 2;
        provider.published = vec![2];
    });
    is_refused(&api, &attempt(&api, &provider).await, 401, "id_token_key").await;
    assert_eq!(provider.reads(), 1, "it was read a moment ago");
    enter(&api, &provider, &["works-a"]).await;
    assert_eq!(provider.reads(), 2);
    api.clock.advance(Duration::from_mins(58));
    assert_eq!(begin(&api, "").await.0["client_id"], CLIENT);
    assert_eq!(provider.reads(), 2);
    api.clock.advance(Duration::from_mins(2));
    begin(&api, "").await;
    assert_eq!(provider.reads(), 3);
    // While it cannot be read, what was known counts for a day.
    provider.set(|provider| provider.status = StatusCode::BAD_GATEWAY);
    api.clock.advance(Duration::from_hours(23));
    begin(&api, "").await;
    api.clock.advance(Duration::from_hours(1));
    assert_eq!(stranger(&api).get("/console/oidc/start").await.status, 503);
}

#[tokio::test]
async fn a_session_counts_on_every_node_with_the_same_settings_and_no_other() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    let session = enter(&api, &provider, &["works-a"]).await.session;
    let sees = async |api: &Api| {
        let browser = Browser { api, session: session.clone(), lang: "en" };
        browser.get("/console/w/ws-a").await.status.as_u16()
    };
    assert_eq!(sees(&provider.api().await).await, 200);
    assert_eq!(sees(&provider.api_with(|options| options.client_id = "other".into()).await).await, 303);
    assert_eq!(sees(&provider.api_with(|options| options.issuer.push('2')).await).await, 303);
    assert_eq!(sees(&Api::start().await).await, 303);
    // What a group grants is decided anew by each request.
    let less = provider.api_with(|options| options.grants.retain(|grant| grant.group != "works-a")).await;
    assert_eq!(sees(&less).await, 303);
}

#[tokio::test]
async fn signing_out_ends_the_session_at_the_provider_too() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    let browser = enter(&api, &provider, &["works-a"]).await;
    let out = browser.change("/console/sign-out", "").await;
    assert_eq!((out.status.as_u16(), cookie(&out, "keygate_session")), (200, None));
    let (_, rest) = out.text.split_once("content=\"0;url=").expect("a way on");
    let place = rest.split('"').next().expect("its end").replace("&#38;", "&");
    assert!(place.starts_with("http://127.0.0.1:") && place.contains("/end?"), "{place}");
    let told = fields(&place);
    assert_eq!(told["post_logout_redirect_uri"], "https://console.test/console/sign-in");
    assert_eq!(told["client_id"], CLIENT);
    assert_eq!(told["id_token_hint"].split('.').count(), 3);
    // A token that no cookie can hold is not told, and everything else is the same.
    provider.say(json!({"realm": {"groups": ["works-a"]}, "picture": "x".repeat(3_000)}));
    let reply = attempt(&api, &provider).await;
    let large = Browser { session: cookie(&reply, "keygate_session").expect("a session"), ..stranger(&api) };
    assert!(large.session.len() < 4_000);
    let out = large.change("/console/sign-out", "").await;
    assert!(out.status == 200 && !out.text.contains("id_token_hint"), "{}", out.text);
    // Without such a place, or while the provider is away, the session ends here.
    provider
        .set(|provider| provider.document = Map::from_iter([("end_session_endpoint".into(), Value::Null)]));
    let own = provider.api().await;
    let out = enter(&own, &provider, &["works-a"]).await.change("/console/sign-out", "").await;
    assert_eq!((out.status.as_u16(), out.header("location")), (303, "/console/sign-in"));
    assert_eq!(cookie(&out, "keygate_session"), None);
}

#[tokio::test]
async fn a_gateway_without_a_provider_has_no_such_sign_in() {
    let api = Api::start().await;
    let form = stranger(&api).get("/console/sign-in").await.text;
    assert!(!form.contains("/console/oidc/"), "{form}");
    for uri in ["/console/oidc/start", "/console/oidc/callback?code=x&state=y"] {
        assert_eq!(stranger(&api).get(uri).await.status, 404, "{uri}");
    }
}

#[tokio::test]
async fn nobody_outside_says_who_they_are() {
    let provider = Provider::start().await;
    let api = provider.api().await;
    let person = enter(&api, &provider, &["runs-all"]).await;
    // The session is of the console: the API takes tokens alone.
    let request = Request::builder().uri("/apikeys").header("cookie", &person.session);
    assert_eq!(api.send(request.body(Body::empty()).expect("a request")).await.status, 401);
    assert!(api.clock.now().wall == NOW);
}
