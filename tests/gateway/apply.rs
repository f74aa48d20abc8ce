//! `keygate apply`: what it shows, what it changes, and what happens to secrets when it is interrupted.

use crate::installation::{Installation, mode, says};
use crate::support::{Gateway, Request};
use serde_json::{Value, json};

const FILES: &str = "
plans:
- {id: gold, api_ops_rate_limit: 20, end_user_quota: 3, limits: [{count: requests, per: month, max: 900}]}
workspaces:
- {id: acme, name: Acme, plan_id: gold}
keys:
- {external_id: a, workspace_id: acme, name: first, scopes: [rag, app], rate_limit: 5, allowed_ips: [127.0.0.0/8],
   expires_at: 2100-01-01T00:00:00Z, metadata: {team: data}, description: null}
- {external_id: b, name: second, type: app, resource_id: r}
";

fn status(gateway: &Gateway, secret: &str) -> u16 {
    gateway.call(&Request::get("/v1/app/x").bearer(secret)).status
}

/// The secrets of a file, by `external_id`.
fn secrets(place: &Installation, file: &str) -> Vec<(String, String)> {
    let text = place.read(file);
    let of = |value: &Value| value.as_str().expect("text").to_owned();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.map(|line| (of(&line["external_id"]), of(&line["api_key"]))).collect()
}

/// What a command says that is refused after it has shown what it would do.
fn refused(place: &Installation, code: i32, args: &[&str]) -> String {
    let output = place.command(args);
    assert_eq!(output.code, Some(code), "{output:?}");
    output.stderr
}

fn key(place: &Installation, workspace: &str, external: &str) -> Value {
    let found =
        place.done(&["keys", "list", "--all", "--json", "--workspace", workspace, "--external-id", external]);
    serde_json::from_str(&found).unwrap_or_else(|error| panic!("{error}: {found}"))
}

#[test]
fn files_are_applied_once_and_the_second_run_changes_nothing() {
    let place = Installation::new();
    let gateway = place.start();
    place.write("files/all.yaml", FILES);
    let dry = place.command(&["apply", "-f", "files", "--dry-run"]);
    assert_eq!(dry.code, Some(2), "{dry:?}");
    says(&dry.stdout, &["+ plan gold", "+ workspace acme", "+ key acme/a", "+ key default/b", "4 to create"]);
    let unsure = place.command(&["apply", "-f", "files", "--secrets-out", "s"]);
    assert_eq!(unsure.code, Some(64));
    says(&unsure.stderr, &["say --yes"]);
    let homeless = place.command(&["apply", "-f", "files", "--yes"]);
    assert_eq!(homeless.code, Some(64));
    says(&homeless.stderr, &["2 keys get a secret", "--secrets-out"]);
    assert_eq!(place.command(&["plans", "get", "gold"]).code, Some(1), "nothing was changed");

    place.done(&["apply", "-f", "files", "--yes", "--secrets-out", "s"]);
    assert_eq!(mode(&place.path("s")), 0o600);
    let made = secrets(&place, "s");
    assert_eq!(made.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(made.iter().all(|(_, secret)| status(&gateway, secret) == 200));
    let first = key(&place, "acme", "a");
    assert_eq!(first["metadata"], json!({"team": "data", "apply.owner": "apply"}));

    assert_eq!(place.done(&["apply", "-f", "files", "--yes"]), "nothing to change");
    assert_eq!(place.done(&["apply", "-f", "files", "--dry-run"]), "nothing to change");
    assert_eq!(key(&place, "acme", "a")["updated_at"], first["updated_at"], "not even a write");
}

#[test]
fn drift_is_shown_and_undone_and_only_keys_of_the_owner_are_pruned() {
    let place = Installation::new();
    let _gateway = place.start();
    place.write("f.yaml", FILES);
    place.done(&["apply", "-f", "f.yaml", "--yes", "--secrets-out", "s"]);
    let id = key(&place, "acme", "a")["id"].as_str().expect("an id").to_owned();
    place.done(&["keys", "update", &id, "--workspace", "acme", "--rate-limit", "7", "--external-id", "a"]);
    place.done(&["plans", "set", "gold", "--end-user-quota", "9"]);
    let dry = place.command(&["apply", "-f", "f.yaml", "--dry-run"]);
    assert_eq!(dry.code, Some(2));
    says(
        &dry.stdout,
        &["~ plan gold\n    end_user_quota: 9 -> 3", "~ key acme/a\n    rate_limit: 7 -> 5", "2 to change"],
    );
    let dry = place.command(&["apply", "-f", "f.yaml", "--dry-run", "--json"]);
    let lines: Vec<Value> =
        dry.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[1]["fields"], json!({"rate_limit": {"before": 7, "after": 5}}));
    place.done(&["apply", "-f", "f.yaml", "--yes"]);
    assert_eq!(key(&place, "acme", "a")["rate_limit"], 5);

    // What never changes is refused, and nothing else is done either.
    place.write(
        "g.yaml",
        FILES.replace("resource_id: r", "resource_id: q").replace("rate_limit: 5", "rate_limit: 6"),
    );
    says(
        &place.fails(1, &["apply", "-f", "g.yaml", "--yes"]),
        &["key default/b: resource_id: cannot be changed"],
    );
    assert_eq!(key(&place, "acme", "a")["rate_limit"], 5);
    says(
        &place.fails(1, &["apply", "-f", "f.yaml", "--yes", "--owner", "other"]),
        &["belongs to the owner apply"],
    );

    // One that people made stays, and so does one of another owner.
    place.make_key(&["--name", "by hand", "--external-id", "h", "--workspace", "acme", "--rate-limit", "5"]);
    place.write(
        "o.yaml",
        "keys: [{external_id: o, workspace_id: acme, name: o, scopes: [app], rate_limit: 5}]",
    );
    place.done(&["apply", "-f", "o.yaml", "--yes", "--owner", "other", "--secrets-out", "o"]);
    place.write("f.yaml", FILES.split("keys:").next().expect("a part"));
    assert_eq!(place.done(&["apply", "-f", "f.yaml", "--yes"]), "nothing to change");
    let pruned = place.done(&["apply", "-f", "f.yaml", "--yes", "--prune"]);
    says(&pruned, &["- key acme/a", "- key default/b", "2 to delete"]);
    let left = place.done(&["keys", "list", "--workspace", "acme", "--json"]);
    assert_eq!(left.lines().count(), 2, "{left}");
}

#[test]
fn a_key_whose_secret_was_never_written_gets_a_new_one() {
    let place = Installation::new();
    let gateway = place.start();
    place.write("f.yaml", "keys: [{external_id: a, name: a, scopes: [app], metadata: {team: data}}]");
    // What a run leaves that dies between making the key and writing its secret.
    let metadata = json!({"team": "data", "apply.owner": "apply", "apply.secret": "pending"});
    let fields = json!({"metadata": metadata}).to_string();
    let (id, lost) =
        place.make_key(&["--name", "a", "--scopes", "app", "--external-id", "a", "--fields", &fields]);
    let dry = place.command(&["apply", "-f", "f.yaml", "--dry-run"]);
    assert_eq!(dry.code, Some(2));
    says(&dry.stdout, &["! key default/a: its secret may never have been written", "1 to get a new secret"]);
    place.done(&["apply", "-f", "f.yaml", "--yes", "--secrets-out", "s"]);
    let made = secrets(&place, "s");
    assert_eq!((status(&gateway, &lost), status(&gateway, &made[0].1)), (401, 200));
    let key = key(&place, "default", "a");
    assert_eq!(
        (&key["id"], &key["metadata"]),
        (&json!(id), &json!({"team": "data", "apply.owner": "apply"}))
    );
    assert_eq!(place.done(&["apply", "-f", "f.yaml", "--yes"]), "nothing to change");
    // A file of secrets is never overwritten, and without a place for them no key is made.
    place.write("f.yaml", "keys: [{external_id: b, name: b, scopes: [app]}]");
    says(
        &refused(&place, 64, &["apply", "-f", "f.yaml", "--yes", "--secrets-out", "s"]),
        &["s is there already"],
    );
    says(&refused(&place, 1, &["apply", "-f", "f.yaml", "--yes", "--secrets-out", "no/s"]), &["no/s: "]);
    assert_eq!(place.done(&["keys", "list", "--json", "--external-id", "b"]), "");
    assert_eq!(secrets(&place, "s"), made);
}

#[test]
fn secrets_can_be_manifests_of_kubernetes() {
    let place = Installation::new();
    let gateway = place.start();
    place.write(
        "f.yaml",
        "keys: [{external_id: Team/A, name: a, scopes: [app]}, {external_id: b, name: b, scopes: [app]}]",
    );
    let args = ["--secrets-format", "kubernetes", "--secrets-namespace", "apps", "--secrets-out", "s.yaml"];
    place.done(&[&["apply", "-f", "f.yaml", "--yes"][..], &args].concat());
    let text = place.read("s.yaml");
    let manifests: Vec<Value> = text
        .split("---\n")
        .filter(|part| !part.is_empty())
        .map(|part| serde_yaml::from_str(part).expect("YAML"))
        .collect();
    assert_eq!(manifests.len(), 2);
    let first = &manifests[0];
    assert_eq!(
        (&first["apiVersion"], &first["kind"], &first["type"]),
        (&json!("v1"), &json!("Secret"), &json!("Opaque"))
    );
    assert_eq!(first["metadata"]["name"], "keygate-default-team-a");
    assert_eq!(first["metadata"]["namespace"], "apps");
    assert_eq!(status(&gateway, first["stringData"]["api_key"].as_str().expect("a secret")), 200);
}

#[test]
fn mistakes_of_files_are_told_at_once_and_change_nothing() {
    let place = Installation::new();
    place.write("f/a.yaml", "plans: [{id: p, api_ops_rate_limit: 0}]\nkeys: [{external_id: a, name: a}]\n");
    place.write("f/b.yml", "workspaces: {a: b}\n");
    let told = place.fails(64, &["apply", "-f", "f", "--yes"]);
    says(
        &told,
        &["f/a.yaml: plans[0]: api_ops_rate_limit: must be", "f/a.yaml: keys[0]: scopes: is required"],
    );
    says(&told, &["f/b.yml: workspaces: must be a list"]);
    says(&place.fails(1, &["apply", "-f", "missing.yaml", "--yes"]), &["missing.yaml: "]);
}

#[test]
fn a_key_may_be_made_disabled_and_enabled_later() {
    let place = Installation::new();
    let gateway = place.start();
    let file = |is_active: &str| {
        place.write(
            "f.yaml",
            format!("keys: [{{external_id: a, name: a, scopes: [app], is_active: {is_active}}}]"),
        );
    };
    file("false");
    place.done(&["apply", "-f", "f.yaml", "--yes", "--secrets-out", "s"]);
    let made = secrets(&place, "s");
    assert_eq!(
        (status(&gateway, &made[0].1), &key(&place, "default", "a")["is_active"]),
        (401, &json!(false))
    );
    assert_eq!(place.done(&["apply", "-f", "f.yaml", "--yes"]), "nothing to change");
    file("true");
    says(&place.done(&["apply", "-f", "f.yaml", "--yes"]), &["is_active: false -> true"]);
    assert_eq!(status(&gateway, &made[0].1), 200);
    file("null");
    assert_eq!(place.done(&["apply", "-f", "f.yaml", "--yes"]), "nothing to change");
}

#[test]
fn what_nothing_uses_is_pruned_when_asked_and_the_rest_stays_with_its_reason() {
    let place = Installation::with("[plans.ours]\nmanaged = true\n");
    let _gateway = place.start();
    place.write("f.yaml", FILES);
    place.done(&["apply", "-f", "f.yaml", "--yes", "--secrets-out", "s"]);
    let plan = ["--api-ops-rate-limit", "5", "--end-user-quota", "5"];
    place.done(&[&["plans", "set", "busy"][..], &plan].concat());
    place.done(&["workspaces", "create", "full", "--plan", "busy"]);
    place.make_key(&["--name", "by hand", "--workspace", "full", "--rate-limit", "5"]);
    place.write("f.yaml", "keys: []");
    says(&place.fails(64, &["apply", "-f", "f.yaml", "--yes", "--prune-empty"]), &["--prune"]);
    let kept = place.done(&["apply", "-f", "f.yaml", "--yes", "--prune"]);
    says(&kept, &["- key acme/a", "2 to delete"]);
    assert!(!kept.contains("workspace"), "{kept}");
    let done = place.command(&["apply", "-f", "f.yaml", "--yes", "--prune", "--prune-empty"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let reasons = [
        "- workspace acme",
        "- plan gold",
        "= workspace full stays: it has 1 keys and 0 end users",
        "= workspace default stays: calls that name no workspace use it",
        "= plan busy stays: 1 workspaces use it",
    ];
    says(&done.stdout, &reasons);
    // Only the gateway knows that the config file owns this one.
    says(&done.stderr, &["plan ours stays: The config file manages plan ours", "2 changes made"]);
    let plans = place.done(&["plans", "list", "--json"]);
    assert!(!plans.contains("gold") && plans.contains("ours") && plans.contains("busy"), "{plans}");
    assert!(!place.done(&["workspaces", "list", "--json"]).contains("acme"));
}

#[test]
fn a_request_with_an_idempotency_key_makes_one_key_however_often_it_is_sent() {
    let place = Installation::new();
    let gateway = place.start();
    let create = |name: &str, more: &[&str]| {
        let args = ["keys", "create", "--scopes", "app", "--name", name, "--idempotency-key", "order-7"];
        place.command(&[&args[..], more].concat())
    };
    let first = create("k", &[]);
    assert_eq!(status(&gateway, first.stdout.trim()), 200);
    let again = create("k", &[]);
    assert_eq!((again.code, again.stdout.as_str()), (Some(1), ""), "{again:?}");
    says(&again.stderr, &["an earlier call has made key", "keygate keys regenerate"]);
    let other = create("other", &[]);
    assert_eq!(other.code, Some(1));
    says(&other.stderr, &["(idempotency_key_reused)"]);
    assert_eq!(place.done(&["keys", "list", "--json"]).lines().count(), 1);
}
