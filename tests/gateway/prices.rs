//! Prices from published tables, and from the config file.

use crate::installation::{Installation, says};
use serde_json::{Value, json};

const TABLE: &str = r#"{
    "sample_spec": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0},
    "gpt-4o": {"input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05, "litellm_provider": "openai"},
    "dall-e-3": {"input_cost_per_pixel": 3.8e-08, "litellm_provider": "openai"}
}"#;

#[test]
fn a_published_table_is_imported_or_printed_for_the_admin_api() {
    let here = Installation::new();
    here.write("table.json", TABLE);
    let told = here.command(&["prices", "import", "table.json"]);
    assert_eq!((told.code, told.stdout.as_str()), (Some(0), ""), "{told:?}");
    says(&told.stderr, &["imported 1 prices; left out, as they have no price of tokens: 1"]);
    let expected = json!([{"model": "gpt-4o", "input": "2.5", "cached": "2.5", "cache_write": "2.5", "output": "10",
        "reasoning": "10", "tiers": []}]);
    let printed: Value =
        serde_json::from_str(&here.done(&["prices", "import", "table.json", "--print"])).expect("JSON");
    assert_eq!(printed, json!({"prices": expected}));
    let mut gateway = here.start();
    assert_eq!(gateway.managed("GET", "/prices", None)["prices"], expected);
    gateway.managed("PUT", "/prices", Some(&printed));
    assert!(gateway.stop().success());

    here.write("bad.json", &TABLE.replace("2.5e-06", "-2.5e-06").replace("1e-05", "\"free\""));
    let refused = here.fails(1, &["prices", "import", "bad.json"]);
    says(&refused, &["bad.json: gpt-4o: input_cost_per_token: must not be negative"]);
    says(&here.fails(1, &["prices", "import", "table.json", "--provider", "x"]), &["of the provider \"x\""]);
    says(&here.fails(1, &["prices", "import", "none.json"]), &["none.json: "]);
}
