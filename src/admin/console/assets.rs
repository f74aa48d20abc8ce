//! The stylesheet, the script and the icon, under names that contain a hash of their content, so that browsers may keep them for ever.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use sha2::{Digest as _, Sha256};
use std::sync::LazyLock;

/// A file of the console.
pub(super) struct Asset {
    /// Its path.
    pub(super) path: String,
    kind: &'static str,
    text: &'static str,
}

/// The files of the console.
pub(super) static STYLE: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("console", "css", "text/css; charset=utf-8", include_str!("assets/console.css"))
});
pub(super) static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("console", "js", "text/javascript; charset=utf-8", include_str!("assets/console.js"))
});
pub(super) static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon", "svg", "image/svg+xml", include_str!("assets/icon.svg")));

impl Asset {
    fn new(name: &str, ending: &str, kind: &'static str, text: &'static str) -> Self {
        let hash = hex::encode(&Sha256::digest(text)[..8]);
        Self { path: format!("/console/assets/{name}.{hash}.{ending}"), kind, text }
    }
}

/// Serves the file of this path.
pub(super) fn serve(path: &str) -> Response {
    let all = [&*STYLE, &*SCRIPT, &*ICON];
    let Some(found) = all.into_iter().find(|asset| asset.path == path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let fields =
        [(header::CONTENT_TYPE, found.kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")];
    (fields, found.text).into_response()
}
