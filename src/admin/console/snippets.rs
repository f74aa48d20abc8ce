//! Ready lines that use a new secret.

/// A piece of code and what it is.
pub(super) struct Snippet {
    pub(super) id: &'static str,
    pub(super) label: &'static str,
    pub(super) text: String,
}

/// How clients use `secret`. The address of the proxy is not known here: it is what clients call the gateway.
pub(super) fn snippets(secret: &str) -> Vec<Snippet> {
    const GATEWAY: &str = "https://GATEWAY";
    let snippet = |id, label, text| Snippet { id, label, text };
    vec![
        snippet("s-curl", "curl", format!("curl -i -H 'Authorization: Bearer {secret}' {GATEWAY}/PATH")),
        snippet(
            "s-env",
            "env",
            format!(
                "export OPENAI_API_KEY='{secret}'\nexport OPENAI_BASE_URL='{GATEWAY}/v1'\n\
                 export ANTHROPIC_API_KEY='{secret}'\nexport ANTHROPIC_BASE_URL='{GATEWAY}'"
            ),
        ),
        snippet(
            "s-py-openai",
            "Python: openai",
            format!(
                "from openai import OpenAI\n\nclient = OpenAI(api_key=\"{secret}\", base_url=\"{GATEWAY}/v1\")"
            ),
        ),
        snippet(
            "s-py-anthropic",
            "Python: anthropic",
            format!(
                "from anthropic import Anthropic\n\nclient = Anthropic(auth_token=\"{secret}\", base_url=\"{GATEWAY}\")"
            ),
        ),
        snippet(
            "s-js-openai",
            "JavaScript: openai",
            format!(
                "import OpenAI from \"openai\";\n\nconst client = new OpenAI({{ apiKey: \"{secret}\", baseURL: \"{GATEWAY}/v1\" }});"
            ),
        ),
        snippet(
            "s-js-anthropic",
            "JavaScript: @anthropic-ai/sdk",
            format!(
                "import Anthropic from \"@anthropic-ai/sdk\";\n\nconst client = new Anthropic({{ authToken: \"{secret}\", baseURL: \"{GATEWAY}\" }});"
            ),
        ),
    ]
}
