//! The OpenAPI document matches the API: no call, parameter or field more or less.

use super::*;
use crate::admin::input::{
    CreateKeyInput, CreatePlanInput, FieldError, ImportBody, PutCredentialInput, UpdateKeyInput,
    UpdatePlanInput, UpdateWorkspaceInput, read_grace_period, read_lookup, read_prices,
};
use serde_json::Map;
use std::collections::BTreeSet;

fn document() -> Value {
    openapi()
}

/// (method, path, operation) of every call in the document.
pub(super) fn operations() -> Vec<(String, String, Value)> {
    let document = document();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("a path") {
            all.push((method.to_uppercase(), path.clone(), operation.clone()));
        }
    }
    all
}

#[test]
fn the_openapi_document_matches_its_snapshot() {
    insta::assert_json_snapshot!("openapi", document());
}

#[test]
fn every_url_comes_from_the_list_the_document_is_made_of() {
    let source = include_str!("../router.rs");
    for way_around in [".route(", ".nest(", ".route_service(", ".nest_service("] {
        assert!(!source.contains(way_around), "{way_around} makes a URL that the document does not know");
    }
    assert_eq!(source.matches(".merge(").count(), 1, "only the documentation pages are not described");
}

#[tokio::test]
async fn every_call_of_the_document_is_answered_by_a_handler() {
    let api = Api::start().await;
    for (method, path, _) in operations() {
        let reply = api
            .call(
                "",
                &method,
                &path.replace("{id}", "x").replace("{grant_id}", "x").replace("{credential_id}", "x"),
                Value::Null,
            )
            .await;
        assert!(!matches!(reply.status.as_u16(), 404 | 405), "{method} {path}: {}", reply.text);
    }
}

#[tokio::test]
async fn every_documented_parameter_is_read_and_no_other() {
    let api = Api::start().await;
    let token = api.token("-", Role::Platform);
    for (method, path, operation) in operations() {
        if ["/metrics", "/healthz", "/openapi.json"].contains(&path.as_str()) {
            continue;
        }
        let documented: BTreeSet<String> = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|p| p["in"] == "query")
            .map(|p| p["name"].as_str().expect("a name").to_owned())
            .collect();
        for name in documented.iter().map(String::as_str).chain(["nonsense"]) {
            let id = "0198a000-0000-7000-8000-000000000000";
            let path = path.replace("{id}", id).replace("{grant_id}", id).replace("{credential_id}", id);
            let uri = format!("{}?{name}=%00", path.replace("{name}", "app"));
            let mut request = request(&token, &method, &uri, &Value::Null);
            request.headers_mut().insert("x-workspace-id", "ws-a".parse().expect("a header"));
            api.store
                .ensure_workspace(
                    &workspace("ws-a"),
                    &"default".parse().expect("a plan"),
                    &Actor::keygate(),
                    NOW,
                )
                .await
                .expect("a workspace");
            let reply = api.send(request).await;
            let unknown = reply.text.contains("is not known here");
            assert_eq!(unknown, name == "nonsense", "{method} {uri}: {}", reply.text);
        }
    }
}

#[test]
fn bodies_have_the_fields_that_drafts_read() {
    let ws = workspace("ws-a");
    let document = document();
    type Read<'a> = Box<dyn Fn(&Map<String, Value>) -> Vec<FieldError> + 'a>;
    let readers: [(&str, Read<'_>); 11] = [
        ("KeyCreate", Box::new(|b| CreateKeyInput::read(b, &ws, NOW).err().unwrap_or_default())),
        ("KeyUpdate", Box::new(|b| UpdateKeyInput::read(b, None, NOW).err().unwrap_or_default())),
        ("KeyRegenerate", Box::new(|b| read_grace_period(b).err().unwrap_or_default())),
        ("KeyImport", Box::new(|b| ImportBody::read(b, "keys").err().unwrap_or_default())),
        ("EndUserImport", Box::new(|b| ImportBody::read(b, "end_users").err().unwrap_or_default())),
        ("KeyLookup", Box::new(|b| read_lookup(b).err().unwrap_or_default())),
        ("PlanCreate", Box::new(|b| CreatePlanInput::read(b).err().unwrap_or_default())),
        ("PlanUpdate", Box::new(|b| UpdatePlanInput::read(b).err().unwrap_or_default())),
        ("CredentialPut", Box::new(|b| PutCredentialInput::read(b).err().unwrap_or_default())),
        ("PricesReplace", Box::new(|b| read_prices(b).err().unwrap_or_default())),
        ("WorkspaceUpdate", Box::new(|b| UpdateWorkspaceInput::read(b).err().unwrap_or_default())),
    ];
    for (name, read) in readers {
        let schema = &document["components"]["schemas"][name];
        let properties = schema["properties"].as_object().expect(name).iter();
        let described: BTreeSet<&str> = properties
            .filter(|(_, rule)| rule["readOnly"].is_null())
            .map(|(field, _)| field.as_str())
            .collect();
        // A value that no rule allows: a field that is reported for its value is read, an unknown one is not.
        let body: Map<String, Value> =
            described.iter().map(|f| ((*f).to_owned(), json!({"a": {}}))).collect();
        let complaints = read(&body);
        // What is within a field is another object's.
        let is_own = |e: &&FieldError| e.message.contains("not known here") && !e.field.contains('.');
        let unread: Vec<_> = complaints.iter().filter(is_own).collect();
        assert!(unread.is_empty(), "{name}: {unread:?}");
        // A key's scopes are required only if its type implies none, which a schema cannot express.
        let least = if name == "KeyCreate" { json!({"scopes": []}) } else { json!({}) };
        let least = least.as_object().expect("an object");
        let required: BTreeSet<String> = read(least).into_iter().map(|e| e.field).collect();
        let described_required: BTreeSet<String> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|f| f.as_str().expect("a name").to_owned())
            .collect();
        assert_eq!(required, described_required, "{name}");
        // An arbitrary guess is answered with a described field.
        for guess in described.iter().map(|f| format!("{f}x")) {
            let complaints = read(&Map::from_iter([(guess.clone(), Value::Null)]));
            let hint = complaints.iter().find(|e| e.field == guess).expect("a complaint");
            let near = hint.message.trim_end_matches('?').rsplit(' ').next().unwrap_or_default();
            assert!(described.contains(near), "{name}: {guess} → {near}");
        }
    }
}

#[tokio::test]
async fn the_document_and_its_pages_need_nothing_from_elsewhere() {
    let api = Api::start().await;
    let served = api.call("", "GET", "/openapi.json", Value::Null).await;
    assert_eq!((served.header("content-type"), served.json()), ("application/json", document()));

    let redirect = api.call("", "GET", "/docs", Value::Null).await;
    assert_eq!((redirect.status.as_u16(), redirect.header("location")), (303, "/docs/"));
    let page = api.call("", "GET", "/docs/", Value::Null).await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").starts_with("default-src 'self'"));
    let mut loaded = 0;
    for attribute in page.text.split(['"', '\'']).filter(|t| t.ends_with(".js") || t.ends_with(".css")) {
        assert!(!attribute.contains("//"), "{attribute} is elsewhere");
        let uri = format!("/docs/{}", attribute.trim_start_matches("./"));
        let asset = api.call("", "GET", &uri, Value::Null).await;
        assert_eq!(asset.status, 200, "{uri}");
        if uri.ends_with("initializer.js") {
            assert!(
                asset.text.contains("/openapi.json") && asset.text.contains("\"validatorUrl\": \"none\"")
            );
        }
        loaded += 1;
    }
    assert!(loaded >= 4, "the page loads its scripts and styles");
    assert_eq!(api.call("", "GET", "/docs/none.js", Value::Null).await.verdict().2, "not_found");
}
