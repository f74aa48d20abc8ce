//! Any bytes as a presented secret and as a file of peppers: `cargo +nightly fuzz run --fuzz-dir tests/fuzz secret`.

#![no_main]

use keygate::policy::keys::secret::{Peppers, SECRET_MAX, Secret, SecretShape, shape};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &[u8]| {
    for prefix in ["sk", "", "a-b"] {
        secret(raw, prefix);
    }
    if let Ok(text) = std::str::from_utf8(raw) {
        peppers(text);
    }
});

fn secret(raw: &[u8], prefix: &str) {
    let possible = shape(raw, prefix) != SecretShape::Impossible;
    if possible {
        assert!(!raw.is_empty() && raw.len() <= SECRET_MAX && raw.iter().all(u8::is_ascii_graphic));
    }
    let Ok(text) = std::str::from_utf8(raw) else { return };
    let imported = Secret::import(text.to_owned(), prefix);
    assert_eq!(imported.is_some(), possible);
    if let Some(secret) = imported {
        assert_eq!(secret.expose(), text);
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        // The hint of a foreign secret shows at most a quarter of it, that of ours at most the prefix and 4 + 4 characters.
        let shown = secret.hint(prefix).chars().count() - 1;
        assert!(shown <= text.len() / 4 || (shape(raw, prefix) == SecretShape::Ours && shown == text.len() - 28));
    }
}

fn peppers(text: &str) {
    let Ok(peppers) = Peppers::parse(text) else { return };
    let versions: Vec<u32> = peppers.iter().map(|p| p.version()).collect();
    assert_eq!(versions.first(), Some(&peppers.current().version()));
    assert!(versions.is_sorted_by(|newer, older| newer > older), "newest first, each once");
    // The digest of a secret depends only on the secret and the pepper.
    assert_eq!(peppers.current().digest(b"sk"), peppers.clone().current().digest(b"sk"));
}
