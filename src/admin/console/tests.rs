//! The console without a browser: who sees and changes what. `tests/console` has the browser.

mod oidc;
mod provider;

use crate::admin::Role;
use crate::admin::tests::{Api, ApiReply, NOW, workspace};
use crate::store::{EndUserAdmission, EndUsers as _, Store as _};
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use std::time::Duration;

/// Every URL of the console that shows something; `{id}` is a key.
const PAGES: [&str; 20] = [
    "/console/workspaces",
    "/console/workspaces/new",
    "/console/workspaces/{workspace}",
    "/console/plans",
    "/console/plans/new",
    "/console/plans/default",
    "/console/prices",
    "/console/prices/edit",
    "/console/audit",
    "/console/node",
    "/console/w/{workspace}",
    "/console/w/{workspace}/keys",
    "/console/w/{workspace}/keys/new",
    "/console/w/{workspace}/keys/{id}",
    "/console/w/{workspace}/keys/{id}/edit",
    "/console/w/{workspace}/keys/{id}/requests",
    "/console/w/{workspace}/usage",
    "/console/w/{workspace}/budgets",
    "/console/w/{workspace}/end-users",
    "/console/w/{workspace}/audit",
];

/// Every URL that changes something, and a form that it accepts.
const CHANGES: [(&str, &str); 20] = [
    ("/console/sign-out", ""),
    ("/console/workspaces/new", "id=new&plan_id=default"),
    ("/console/workspaces/{workspace}", "name=changed&plan_id=default"),
    (
        "/console/workspaces/{workspace}/grants",
        "limit=end_user_quota&amount=5&reason=r&until=2099-01-01T00%3A00",
    ),
    ("/console/workspaces/{workspace}/grants/{grant}/delete", ""),
    ("/console/workspaces/{workspace}/delete", "name={workspace}&force=1"),
    ("/console/plans/new", "id=made&api_ops_rate_limit=5&end_user_quota=5"),
    ("/console/plans/default", "api_ops_rate_limit=77&end_user_quota=5&deleted_keys_days=3"),
    ("/console/plans/default/delete", ""),
    (
        "/console/prices",
        "prices=%5B%7B%22model%22%3A%22m%22%2C%22input%22%3A%221%22%2C%22output%22%3A%222%22%7D%5D",
    ),
    ("/console/prices/edit", "was=&model=n&input=1&output=2"),
    ("/console/prices/delete", "was=m"),
    ("/console/node/reload", ""),
    ("/console/w/{workspace}/keys/new", "name=made&type=service&scopes=app"),
    ("/console/w/{workspace}/keys/{id}/edit", "name=changed&scopes=app&rate_limit=1"),
    ("/console/w/{workspace}/keys/{id}/active", "is_active=false"),
    ("/console/w/{workspace}/keys/{id}/regenerate", "grace=0"),
    ("/console/w/{workspace}/keys/{id}/delete", "name=key+of+{workspace}"),
    ("/console/w/{workspace}/keys/{id}/restore", ""),
    ("/console/w/{workspace}/end-users/{user}/delete", ""),
];

/// What a workspace has.
struct Things {
    workspace: &'static str,
    key: String,
    user: String,
}

/// A browser with its cookies.
struct Browser<'a> {
    api: &'a Api,
    session: String,
    lang: &'static str,
}

impl Things {
    async fn of(api: &Api, owner: &'static str) -> Self {
        let key = api.key(&api.token(owner, Role::Admin), &format!("key of {owner}")).await;
        let admitted = api.store.admit_end_user(&workspace(owner), &format!("person of {owner}"), NOW).await;
        let EndUserAdmission::Admitted(user) = admitted.expect("a store") else { panic!("the plan is full") };
        Self { workspace: owner, key: key["id"].as_str().expect("an id").to_owned(), user: user.to_string() }
    }

    fn placed(&self, text: &str) -> String {
        text.replace("{workspace}", self.workspace)
            .replace("{id}", &self.key)
            .replace("{user}", &self.user)
            .replace("{grant}", &self.user)
    }

    /// What the owner reads of itself with the API.
    async fn read(&self, api: &Api) -> Vec<String> {
        let token = api.token(self.workspace, Role::Admin);
        let mut all = Vec::new();
        for uri in ["/apikeys?is_active=any&pagesize=100", "/endusers", "/audit?pagesize=100"] {
            all.push(api.call(&token, "GET", uri, Value::Null).await.data().to_string());
        }
        let uri = format!("/workspaces/{}", self.workspace);
        all.push(api.call(&token, "GET", &uri, Value::Null).await.data().to_string());
        all
    }
}

impl<'a> Browser<'a> {
    /// Signs in with a token.
    async fn enter(api: &'a Api, token: &str) -> Self {
        let mut browser = Self { api, session: String::new(), lang: "en" };
        let reply = browser.post("/console/sign-in", &format!("token={token}&next=")).await;
        assert_eq!(reply.status, 303, "{}", reply.text);
        let cookie = reply.header("set-cookie");
        for attribute in ["; HttpOnly", "; SameSite=Strict", "; Path=/console"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        assert!(!cookie.contains(token));
        cookie.split(';').next().expect("a pair").clone_into(&mut browser.session);
        browser
    }

    fn request(&self, method: &str, uri: &str) -> axum::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "console.test")
            .header("accept-language", self.lang)
            .header("cookie", &self.session)
    }

    async fn get(&self, uri: &str) -> ApiReply {
        self.api.send(self.request("GET", uri).body(Body::empty()).expect("a request")).await
    }

    /// Sends a form from a page of this server.
    async fn post(&self, uri: &str, form: &str) -> ApiReply {
        self.post_from("same-origin", uri, form).await
    }

    async fn post_from(&self, site: &str, uri: &str, form: &str) -> ApiReply {
        let request = self
            .request("POST", uri)
            .header("sec-fetch-site", site)
            .header("content-type", "application/x-www-form-urlencoded");
        self.api.send(request.body(Body::from(form.to_owned())).expect("a request")).await
    }

    /// Sends a form with the token of the session.
    async fn change(&self, uri: &str, form: &str) -> ApiReply {
        self.post(uri, &format!("{form}&form_token={}", self.form_token().await)).await
    }

    async fn form_token(&self) -> String {
        let page = self.get("/console/elsewhere").await.text;
        let (_, after) = page.split_once("name=\"form_token\" value=\"").expect("a form");
        after.split('"').next().expect("its end").to_owned()
    }
}

#[test]
fn every_url_is_in_these_lists() {
    let source = include_str!("mod.rs");
    let routes = source.split(".route(\"").skip(1).filter_map(|rest| {
        let (path, handlers) = rest.split_once('"')?;
        Some((
            path.replace("plans/{id}", "plans/default").replace("workspaces/{id}", "workspaces/{workspace}"),
            handlers,
        ))
    });
    // What needs no session, or shows nothing of a workspace.
    let open = [
        "/console",
        "/console/",
        "/console/assets/{name}",
        "/console/sign-in",
        "/console/sign-in/{code}",
        "/console/oidc/start",
        "/console/oidc/callback",
        "/console/preferences",
        "/console/go",
        "/console/{*elsewhere}",
    ];
    for (path, handlers) in routes {
        let path = path.replace("end-users/{id}", "end-users/{user}");
        let (gets, posts) = (
            handlers.lines().next().is_some_and(|line| line.contains("get(")),
            handlers.lines().next().is_some_and(|line| line.contains("post(")),
        );
        assert!(gets || posts, "{path}");
        assert!(!gets || open.contains(&&*path) || PAGES.contains(&&*path), "{path} is in no list of pages");
        assert!(
            !posts || open.contains(&&*path) || CHANGES.iter().any(|(known, _)| *known == path),
            "{path} is in no list of changes"
        );
    }
}

#[tokio::test]
async fn signing_in_is_audited_and_ends_with_signing_out() {
    let api = Api::start().await;
    let stranger = Browser { api: &api, session: String::new(), lang: "en" };
    let asked = stranger.get("/console/w/ws-a/keys?search=x").await;
    assert_eq!(
        (asked.status.as_u16(), asked.header("location")),
        (303, "/console/sign-in?next=%2Fconsole%2Fw%2Fws-a%2Fkeys%3Fsearch%3Dx")
    );
    let token = api.token("ws-a", Role::Admin);
    let next = "%2Fconsole%2Fw%2Fws-a%2Fkeys";
    let form = format!("token={token}&next={next}");
    assert_eq!(stranger.post_from("cross-site", "/console/sign-in", &form).await.status, 403);
    let reply = stranger.post("/console/sign-in", &form).await;
    assert_eq!(reply.header("location"), "/console/w/ws-a/keys");
    let away =
        stranger.post("/console/sign-in", &format!("token={token}&next=https%3A%2F%2Fother.test")).await;
    assert_eq!(away.header("location"), "/console");

    let browser = Browser::enter(&api, &token).await;
    let page = browser.get("/console/w/ws-a/keys").await;
    assert!(page.status == 200 && page.text.contains("No keys yet"), "{}", page.text);
    let trail = api.call(&token, "GET", "/audit?action=console.sign_in", Value::Null).await.data();
    assert_eq!(
        (&trail["page"]["total"], &trail["items"][0]["subject"], &trail["items"][0]["workspace_id"]),
        (&json!(3), &json!("user-1"), &json!("ws-a"))
    );
    // A token of no workspace signs in to the platform.
    Browser::enter(&api, &api.token("-", Role::Platform)).await;
    let platform = api.token("-", Role::Platform);
    let trail = api.call(&platform, "GET", "/audit?action=console.sign_in", Value::Null).await.data();
    assert_eq!(trail["page"]["total"], 1);

    let out = browser.change("/console/sign-out", "").await;
    assert!(out.header("set-cookie").contains("Max-Age=0"), "{:?}", out.headers);
    // The session ends with its token, however long the browser keeps the cookie.
    api.clock.advance(Duration::from_hours(2));
    let over = browser.get("/console/w/ws-a/keys").await;
    assert!(over.status == 303 && over.header("location").ends_with("&over=1"), "{:?}", over.headers);
}

#[tokio::test]
async fn an_address_cannot_try_tokens_for_ever() {
    let api = Api::start().await;
    let stranger = Browser { api: &api, session: String::new(), lang: "zh" };
    for _ in 0..10 {
        let reply = stranger.post("/console/sign-in", "token=a.b.c").await;
        assert!(reply.status == 401 && reply.text.contains("管理令牌无效"), "{}", reply.text);
    }
    let good = format!("token={}", api.token("ws-a", Role::Admin));
    assert_eq!(stranger.post("/console/sign-in", &good).await.status, 429);
    api.clock.advance(Duration::from_mins(1));
    assert_eq!(stranger.post("/console/sign-in", &good).await.status, 303);
}

#[tokio::test]
async fn every_page_is_shown_in_both_languages_and_loads_nothing_from_elsewhere() {
    let api = Api::start().await;
    let things = Things::of(&api, "ws-a").await;
    let mut browser = Browser::enter(&api, &api.token("ws-a", Role::Platform)).await;
    for lang in ["en", "zh"] {
        browser.lang = lang;
        for uri in PAGES {
            let page = browser.get(&things.placed(uri)).await;
            assert_eq!(page.status, 200, "{uri}: {}", page.text);
            assert!(page.text.contains(&format!("<html lang=\"{lang}\"")), "{uri}");
            let policy = page.header("content-security-policy");
            assert!(
                policy.starts_with("default-src 'none'; script-src 'self'") && !policy.contains("unsafe")
            );
            assert_eq!(page.header("cache-control"), "no-store");
            for inline in [" style=", " onclick=", "<style", "<script>", "http://", "https://"] {
                assert!(!page.text.contains(inline), "{uri} has {inline}");
            }
        }
    }
    let page = browser.get("/console/w/ws-a").await.text;
    for (before, kind) in [
        ("rel=\"stylesheet\" href=\"", "text/css; charset=utf-8"),
        ("script src=\"", "text/javascript; charset=utf-8"),
    ] {
        let path =
            page.split_once(before).expect("an asset").1.split('"').next().expect("its end").to_owned();
        let asset = browser.get(&path).await;
        assert_eq!((asset.status.as_u16(), asset.header("content-type")), (200, kind), "{path}");
        assert!(asset.header("cache-control").contains("immutable"));
        assert_eq!(browser.get(&path.replace('.', "-")).await.status, 404);
    }
}

#[tokio::test]
async fn nothing_changes_without_the_form_of_this_session() {
    let api = Api::start().await;
    let things = Things::of(&api, "ws-a").await;
    let token = api.token("ws-a", Role::Platform);
    let browser = Browser::enter(&api, &token).await;
    let other = Browser::enter(&api, &token).await;
    let (own, foreign) = (browser.form_token().await, other.form_token().await);
    let before = things.read(&api).await;
    let stranger = Browser { api: &api, session: String::new(), lang: "en" };
    for (uri, form) in CHANGES {
        let (uri, form) = (things.placed(uri), things.placed(form));
        for (site, form_token) in
            [("same-origin", ""), ("same-origin", &*foreign), ("cross-site", &*own), ("none", &*own)]
        {
            let reply = browser.post_from(site, &uri, &format!("{form}&form_token={form_token}")).await;
            assert_eq!(reply.status, 403, "{uri} from {site}");
        }
        let reply = stranger.post(&uri, &format!("{form}&form_token={own}")).await;
        assert!(reply.header("location").starts_with("/console/sign-in"), "{uri}");
    }
    assert_eq!(things.read(&api).await, before);
}

/// Tries every URL of the console as somebody of the workspace `own`.
async fn sees_nothing_of(theirs: &Things, own: &'static str, browser: &Browser<'_>) {
    let before = theirs.read(browser.api).await;
    // Ids of the other workspace, under its name and under the own one.
    let mixed = Things { workspace: own, key: theirs.key.clone(), user: theirs.user.clone() };
    for (things, is_other) in [(theirs, true), (&mixed, false)] {
        for uri in PAGES {
            let page = browser.get(&things.placed(uri)).await;
            for secret in ["key of ", "person of "] {
                let secret = format!("{secret}{}", theirs.workspace);
                assert!(!page.text.contains(&secret), "{uri} shows {secret}");
            }
            let names_other = uri.contains("{id}") || is_other && uri.contains("{workspace}");
            assert!(!names_other || [403, 404].contains(&page.status.as_u16()), "{uri}: {}", page.status);
        }
        for (uri, form) in CHANGES.iter().skip(1) {
            let names_other =
                uri.contains("{id}") || uri.contains("{user}") || is_other && uri.contains("{workspace}");
            let reply = browser.change(&things.placed(uri), &things.placed(form)).await;
            assert!(!names_other || [403, 404].contains(&reply.status.as_u16()), "{uri}: {}", reply.text);
        }
    }
    assert_eq!(theirs.read(browser.api).await, before);
}

#[tokio::test]
async fn no_url_reaches_into_another_workspace() {
    let api = Api::start().await;
    let (theirs, own) = (Things::of(&api, "ws-a").await, Things::of(&api, "ws-b").await);
    for role in [Role::Viewer, Role::Admin] {
        let browser = Browser::enter(&api, &api.token("ws-b", role)).await;
        sees_nothing_of(&theirs, "ws-b", &browser).await;
    }
    assert!(own.read(&api).await[0].contains("key of ws-b"));
}

#[tokio::test]
async fn roles_are_those_of_the_api() {
    let api = Api::start().await;
    let things = Things::of(&api, "ws-a").await;
    let before = things.read(&api).await;
    let viewer = Browser::enter(&api, &api.token("ws-a", Role::Viewer)).await;
    let before = [before[0].clone(), before[1].clone(), before[3].clone()];
    for (uri, form) in CHANGES.iter().skip(1) {
        let reply = viewer.change(&things.placed(uri), &things.placed(form)).await;
        assert!([403, 404].contains(&reply.status.as_u16()), "{uri}: {} {}", reply.status, reply.text);
    }
    let page = viewer.get(&things.placed("/console/w/{workspace}/keys/{id}")).await.text;
    assert!(page.contains("key of ws-a") && !page.contains("/regenerate") && !page.contains("/edit"));
    let after = things.read(&api).await;
    assert_eq!([after[0].clone(), after[1].clone(), after[3].clone()], before);
    // Pages of the platform are not for an admin.
    let admin = Browser::enter(&api, &api.token("ws-a", Role::Admin)).await;
    for uri in PAGES.iter().filter(|uri| !uri.starts_with("/console/w/")) {
        let page = admin.get(&things.placed(uri)).await;
        assert_eq!(page.status, 403, "{uri}: {}", page.text);
    }
}

#[tokio::test]
async fn a_key_lives_through_its_forms() {
    let api = Api::start().await;
    let token = api.token("ws-a", Role::Admin);
    let browser = Browser::enter(&api, &token).await;
    let form = "name=%3Cb%3Emine%3C%2Fb%3E&type=service&scopes=orders%3Aread+orders%3A*&rate_limit=101&limit_count_0=requests&limit_per_0=day&limit_max_0=0";
    let refused = browser.change("/console/w/ws-a/keys/new", form).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text.contains("&#60;b&#62;mine"), "what was typed stays, as text: {}", refused.text);
    let error = refused.text.split_once("id=\"e-limits\">").expect("a place for it").1;
    assert!(error.starts_with("1, max: must be a whole number"), "{}", &error[..80]);
    let refused = browser.change("/console/w/ws-a/keys/new", &form.replace("max_0=0", "max_0=")).await;
    assert!(refused.text.contains("rate_limit 101 is above"), "{}", refused.text);
    let form = form.replace("max_0=0", "max_0=1,000").replace("101", "100");
    let made = browser.change("/console/w/ws-a/keys/new", &form).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let secret =
        made.text.split_once("id=\"secret\">").expect("the secret").1.split('<').next().expect("its end");
    assert!(secret.starts_with("sk-service-"));
    let key = api.call(&token, "GET", "/apikeys", Value::Null).await.data()["items"][0].clone();
    assert_eq!(
        (&key["rate_limit"], &key["limits"]),
        (&json!(100), &json!([{"count": "requests", "per": "day", "max": 1000}]))
    );
    let here = format!("/console/w/ws-a/keys/{}", key["id"].as_str().expect("an id"));
    let page = browser.get(&here).await.text;
    assert!(!page.contains(secret) && page.contains("&#60;b&#62;mine"));

    let edit = "name=other&scopes=orders%3Aread&rate_limit=5&limit_max_0=&expires_at=2027-01-01T00%3A00&allowed_ips=10.0.0.0%2F8";
    assert_eq!(browser.change(&format!("{here}/edit"), edit).await.header("location"), here);
    let key = api.call(&token, "GET", "/apikeys", Value::Null).await.data()["items"][0].clone();
    assert_eq!(
        (&key["name"], &key["limits"], &key["allowed_ips"], &key["daily_request_limit"]),
        (&json!("other"), &json!([]), &json!(["10.0.0.0/8"]), &Value::Null)
    );
    let same = browser.get(&format!("{here}/edit")).await.text;
    assert!(same.contains("value=\"2027-01-01T00:00\"") && same.contains("10.0.0.0/8"));
    assert_eq!(browser.change(&format!("{here}/active"), "is_active=false").await.status, 303);
    assert!(browser.get("/console/w/ws-a/keys?state=disabled").await.text.contains("other"));
    let again = browser.change(&format!("{here}/regenerate"), "grace=3600").await;
    assert!(again.text.contains("2026-01-01 01:00:00 UTC") && !again.text.contains(secret), "{}", again.text);
    let wrong = browser.change(&format!("{here}/delete"), "name=another").await;
    assert!(wrong.status == 400 && wrong.text.contains("That is not its name"), "{}", wrong.text);
    assert_eq!(browser.change(&format!("{here}/delete"), "name=other").await.status, 303);
    assert_eq!(browser.get(&here).await.status, 404);
    assert!(browser.get("/console/w/ws-a/keys?state=deleted").await.text.contains("other"));
    assert_eq!(browser.change(&format!("{here}/restore"), "").await.header("location"), here);
    assert_eq!(browser.get(&here).await.status, 200);
}

#[tokio::test]
async fn the_list_of_keys_goes_on_where_it_stopped() {
    let api = Api::start().await;
    let token = api.token("ws-a", Role::Admin);
    for n in 0..60 {
        api.key(&token, &format!("key {n:02}")).await;
    }
    let browser = Browser::enter(&api, &token).await;
    let (mut uri, mut seen, mut pages) = ("/console/w/ws-a/keys?search=key".to_owned(), Vec::new(), 0);
    loop {
        let page = browser.get(&uri).await.text;
        pages += 1;
        let names = page.split("class=\"name\"").skip(1).filter_map(|row| row.split(['>', '<']).nth(1));
        seen.extend(names.map(str::to_owned));
        let Some((_, next)) = page.split_once("rel=\"next\" href=\"") else { break };
        uri = next.split('"').next().expect("its end").replace("&#38;", "&");
    }
    seen.sort_unstable();
    assert_eq!((pages, seen.len()), (3, 60));
    seen.dedup();
    assert_eq!(seen.len(), 60, "none twice");
}

#[tokio::test]
async fn a_code_signs_in_once_and_only_from_this_machine() {
    use axum::extract::ConnectInfo;
    use std::net::SocketAddr;
    use std::sync::Arc;
    let codes = Arc::new(crate::admin::SignInCodes::default());
    let given = Arc::clone(&codes);
    let api = Api::start_with(|deps| deps.sign_in_codes = Some(given)).await;
    let code = codes.issue(&api.token("ws-a", Role::Admin), NOW);
    let open = async |address: &str| {
        let peer: SocketAddr = address.parse().expect("an address");
        let request = Request::builder().uri(format!("/console/sign-in/{code}")).extension(ConnectInfo(peer));
        api.send(request.body(Body::empty()).expect("a request")).await
    };
    assert_eq!(open("192.0.2.1:1").await.status, 404);
    let reply = open("127.0.0.1:1").await;
    assert!(reply.status == 303 && reply.header("set-cookie").starts_with("keygate_session="));
    assert_eq!(open("127.0.0.1:1").await.status, 404);
}

#[tokio::test]
async fn a_store_that_is_away_is_said_and_what_memory_has_is_shown() {
    let api = Api::start_with(|deps| {
        let checks =
            vec![crate::admin::ReadinessCheck { name: "store", ok: false, detail: "no answer".into() }];
        deps.readiness =
            std::sync::Arc::new(move || crate::admin::Readiness { ready: true, checks: checks.clone() });
    })
    .await;
    api.store.close().await;
    let browser = Browser::enter(&api, &api.token("ws-a", Role::Platform)).await;
    for uri in ["/console/w/ws-a", "/console/w/ws-a/keys", "/console/workspaces", "/console/plans"] {
        let page = browser.get(uri).await;
        assert_eq!(page.status, 503, "{uri}");
        for said in ["The database cannot be reached", "Keys in memory", "no answer"] {
            assert!(page.text.contains(said), "{uri}: {}", page.text);
        }
    }
    let node = browser.get("/console/node").await;
    assert!(node.status == 200 && node.text.contains("no answer"), "{}", node.text);
}

#[tokio::test]
async fn a_price_lives_through_its_form() {
    let api = Api::start().await;
    let token = api.token("ws-a", Role::Platform);
    let mut browser = Browser::enter(&api, &token).await;
    let prices = async || api.call(&token, "GET", "/prices", Value::Null).await.data()["prices"].clone();
    let save = "/console/prices/edit";
    let tier = "&above_0=&above_1=200,000&input_1=5&output_1=22.5";
    let made = browser.change(save, &format!("was=&model=gpt*&input=2.5&output=10&cached={tier}")).await;
    assert_eq!((made.status.as_u16(), made.header("location")), (303, "/console/prices"), "{}", made.text);
    let found = prices().await;
    assert_eq!((&found[0]["model"], &found[0]["cached"]), (&json!("gpt*"), &json!("2.5")));
    assert_eq!(
        (&found[0]["tiers"][0]["above"], &found[0]["tiers"][0]["output"]),
        (&json!(200_000), &json!("22.5"))
    );
    let list = browser.get("/console/prices").await.text;
    assert!(list.contains("href=\"/console/prices/edit?model=gpt%2A\""), "{list}");
    let form = browser.get("/console/prices/edit?model=gpt%2A").await.text;
    assert!(
        form.contains("name=\"above_0\" value=\"200000\"")
            && form.contains("name=\"output_0\" value=\"22.5\"")
    );
    assert_eq!(browser.get("/console/prices/edit?model=other").await.status, 404);
    // Mistakes are shown where they were typed, also those of the second row of tiers.
    let wrong = "was=&model=&input=x&output=1&above_1=5&input_1=y";
    let refused = browser.change(save, wrong).await;
    assert_eq!(refused.status, 400);
    for at in ["f-model", "f-input", "f-input_1"] {
        let (_, rest) = refused.text.split_once(&format!("id=\"{at}\"")).expect("a field");
        assert!(
            rest.split('>').next().is_some_and(|tag| tag.contains("aria-invalid")),
            "{at}: {}",
            refused.text
        );
    }
    assert!(refused.text.contains("name=\"input\" value=\"x\""), "what was typed stays");
    browser.lang = "zh";
    let refused = browser.change("/console/w/ws-a/keys/new", "name=&type=service&scopes=app").await;
    assert!(
        refused.text.contains("必须为 1 到 255 个字符") || refused.text.contains("必须填写"),
        "{}",
        refused.text
    );
    browser.lang = "en";
    let renamed = browser.change(save, "was=gpt*&model=gpt-5*&input=3&output=11&above_0=").await;
    assert_eq!(renamed.status, 303, "{}", renamed.text);
    let found = prices().await;
    assert_eq!(
        (found.as_array().map(Vec::len), &found[0]["model"], &found[0]["tiers"]),
        (Some(1), &json!("gpt-5*"), &json!([]))
    );
    assert_eq!(browser.change("/console/prices/delete", "was=gpt*").await.status, 404);
    assert_eq!(browser.change("/console/prices/delete", "was=gpt-5*").await.status, 303);
    assert_eq!(prices().await, json!([]));
}
