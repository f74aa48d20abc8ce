//! The files: YAML with `plans`, `workspaces` and `keys`, whose items have the fields of the admin API.

use crate::admin::input::{
    CreateKeyInput, CreatePlanInput, FieldError, UpdatePlanInput, UpdateWorkspaceInput,
};
use crate::cli::Failure;
use crate::cli::keys::told;
use crate::clock::Timestamp;
use crate::fileio;
use crate::model::id::WorkspaceId;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest file, in bytes.
const FILE_MAX: u64 = 16 << 20;

/// What the files say.
#[derive(Debug, Default)]
pub(super) struct Desired {
    /// By id.
    pub(super) plans: BTreeMap<String, Map<String, Value>>,
    /// By id.
    pub(super) workspaces: BTreeMap<String, Map<String, Value>>,
    /// By workspace and `external_id`, which are not among the fields.
    pub(super) keys: BTreeMap<(String, String), Map<String, Value>>,
}

/// Mistakes, each with its place.
struct Mistakes(Vec<String>);

/// Reads all files as one set, and reports every mistake at once.
pub(super) fn read(places: &[PathBuf]) -> Result<Desired, Failure> {
    let mut desired = Desired::default();
    let mut mistakes = Mistakes(Vec::new());
    for place in places {
        let files = if place.is_dir() { files_of(place)? } else { vec![place.clone()] };
        if files.is_empty() {
            return Err(Failure::Usage(format!("{}: has no .yaml or .yml file", place.display())));
        }
        for file in files {
            let bytes = fileio::read_up_to(&file, FILE_MAX).and_then(fileio::text_of);
            let text = bytes.map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))?;
            document(&file, &text, &mut desired, &mut mistakes);
        }
    }
    if mistakes.0.is_empty() { Ok(desired) } else { Err(Failure::Usage(mistakes.0.join("\n"))) }
}

/// The YAML files of a folder, in the order of their names.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let why = |error: std::io::Error| Failure::Failed(format!("{}: {error}", folder.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(why)? {
        let path = entry.map_err(why)?.path();
        if path.extension().is_some_and(|end| end == "yaml" || end == "yml") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a file, which may have several documents.
fn document(file: &Path, text: &str, desired: &mut Desired, mistakes: &mut Mistakes) {
    let name = file.display();
    for part in serde_yaml::Deserializer::from_str(text) {
        // Read as YAML first, which refuses a name that is there twice.
        let value = match serde_yaml::Value::deserialize(part) {
            Ok(serde_yaml::Value::Null) => continue,
            Ok(value) => value,
            Err(error) => {
                mistakes.0.push(format!("{name}: {error}"));
                return;
            }
        };
        let Ok(Value::Object(sections)) = serde_json::to_value(&value) else {
            mistakes.0.push(format!("{name}: must be a mapping of plans, workspaces and keys"));
            return;
        };
        for (section, items) in sections {
            let Value::Array(items) = items else {
                mistakes.0.push(format!("{name}: {section}: must be a list"));
                continue;
            };
            for (at, item) in items.into_iter().enumerate() {
                let place = format!("{name}: {section}[{at}]");
                let added = match item {
                    Value::Object(fields) => add(desired, &section, fields),
                    _ => Err("must be a mapping of fields".to_owned()),
                };
                if let Err(why) = added {
                    mistakes.0.push(format!("{place}: {why}"));
                }
            }
        }
    }
}

fn add(desired: &mut Desired, section: &str, mut fields: Map<String, Value>) -> Result<(), String> {
    let as_text = |errors: Vec<FieldError>| told(&errors);
    match section {
        "plans" => {
            let id = text(&mut fields, "id")?;
            UpdatePlanInput::read(&fields).map_err(as_text)?;
            once(desired.plans.insert(id, fields).is_some(), "plan")
        }
        "workspaces" => {
            let id = text(&mut fields, "id")?;
            id.parse::<WorkspaceId>().map_err(|bad| format!("id: {bad}"))?;
            UpdateWorkspaceInput::read(&fields).map_err(as_text)?;
            once(desired.workspaces.insert(id, fields).is_some(), "workspace")
        }
        "keys" => {
            let workspace = match fields.get("workspace_id") {
                None | Some(Value::Null) => "default".to_owned(),
                Some(_) => text(&mut fields, "workspace_id")?,
            };
            let id: WorkspaceId = workspace.parse().map_err(|bad| format!("workspace_id: {bad}"))?;
            if let Some(own) = ["id", "api_key"].iter().find(|name| fields.contains_key(**name)) {
                return Err(format!("{own}: cannot be set here"));
            }
            // A key is made active, and disabled afterwards.
            let is_active = fields.remove("is_active").filter(|is_active| !is_active.is_null());
            if is_active.as_ref().is_some_and(|is_active| !is_active.is_boolean()) {
                return Err("is_active: must be true or false".into());
            }
            // An expiry that has passed may stay in a file.
            CreateKeyInput::read(&fields, &id, Timestamp::default()).map_err(as_text)?;
            let external = text(&mut fields, "external_id")?;
            if let Some(is_active) = is_active {
                fields.insert("is_active".into(), is_active);
            }
            for name in ["description", "limits", "allowed_ips", "metadata"] {
                if fields.get(name).is_some_and(Value::is_null) {
                    fields.insert(name.into(), empty(name));
                }
            }
            once(desired.keys.insert((workspace, external), fields).is_some(), "key")
        }
        _ => Err("is no section; known are plans, workspaces, keys".into()),
    }
}

/// What null means for a field that cannot be null.
fn empty(name: &str) -> Value {
    match name {
        "description" => json!(""),
        "metadata" => json!({}),
        _ => json!([]),
    }
}

fn once(is_there: bool, what: &str) -> Result<(), String> {
    if is_there { Err(format!("the files have this {what} twice")) } else { Ok(()) }
}

fn text(fields: &mut Map<String, Value>, name: &str) -> Result<String, String> {
    match fields.remove(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        None | Some(Value::Null) => Err(format!("{name}: is required")),
        Some(_) => Err(format!("{name}: must be text")),
    }
}

/// Whether a new plan has every field that it needs.
pub(super) fn check_new_plan(id: &str, fields: &Map<String, Value>) -> Result<(), String> {
    let mut whole = fields.clone();
    whole.insert("id".into(), json!(id));
    CreatePlanInput::read(&whole).map(|_| ()).map_err(|errors| told(&errors))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes_of(text: &str) -> Vec<String> {
        let (mut desired, mut mistakes) = (Desired::default(), Mistakes(Vec::new()));
        document(Path::new("f.yaml"), text, &mut desired, &mut mistakes);
        mistakes.0
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let text = "
plans:
  - {id: gold, api_ops_rate_limit: 0}
  - {api_ops_rate_limit: 5}
keys:
  - {name: a, external_id: x, scopes: [app], colour: red}
  - {name: a, external_id: x, scopes: [app]}
  - {name: b, external_id: x, scopes: [app]}
  - {name: d, external_id: y, scopes: [app], is_active: 1}
  - {name: c, scopes: [app]}
  - 7
gadgets: [{}]
";
        let told = mistakes_of(text);
        let expected = [
            "f.yaml: plans[0]: api_ops_rate_limit: must be",
            "f.yaml: plans[1]: id: is required",
            "f.yaml: keys[0]: colour: ",
            "f.yaml: keys[2]: the files have this key twice",
            "f.yaml: keys[3]: is_active: must be true or false",
            "f.yaml: keys[4]: external_id: is required",
            "f.yaml: keys[5]: must be a mapping of fields",
            "f.yaml: gadgets[0]: is no section",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for wanted in expected {
            assert!(told.iter().any(|line| line.starts_with(wanted)), "{wanted}: {told:#?}");
        }
        assert!(
            mistakes_of("plans: [{id: a, id: b}]")[0].contains("duplicate"),
            "a name that is there twice"
        );
    }

    #[test]
    fn several_documents_are_one_set() {
        let (mut desired, mut mistakes) = (Desired::default(), Mistakes(Vec::new()));
        let text = "workspaces: [{id: a}]\n---\n---\nkeys:\n- {name: n, external_id: x, workspace_id: a, scopes: []}\n";
        document(Path::new("f"), text, &mut desired, &mut mistakes);
        assert!(mistakes.0.is_empty(), "{:?}", mistakes.0);
        assert!(desired.workspaces.contains_key("a"));
        assert!(desired.keys.contains_key(&("a".to_owned(), "x".to_owned())));
    }
}
