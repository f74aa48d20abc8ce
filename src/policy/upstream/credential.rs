//! Credentials for the backend: which one a request gets, by the workspace or the metadata of its key.
//!
//! Must not know: where a credential comes from. Clients never see one.

use crate::model::credential::MetadataEntry;
use crate::model::id::WorkspaceId;
use crate::model::key::KeyDetails;
use http::{HeaderName, HeaderValue};
use zeroize::Zeroizing;

/// Longest secret, in bytes.
pub const CREDENTIAL_MAX: usize = 8 * 1024;

/// One credential of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamCredential {
    /// The workspace whose requests get it; none: any.
    pub workspace: Option<WorkspaceId>,
    /// An entry of the key's metadata and the value that it must have.
    pub metadata: Option<MetadataEntry>,
    /// The field that carries it.
    pub header: HeaderName,
    /// The value of the field. It is marked as sensitive. None: it cannot be decrypted, and its requests are refused.
    pub value: Option<HeaderValue>,
}

/// The workspace and the details of a request's key.
pub type KeyOfRequest<'k> = Option<(&'k WorkspaceId, &'k KeyDetails)>;

impl UpstreamCredential {
    /// Whether a request with this key gets it. A request without a key gets only what all get.
    pub fn is_for(&self, key: KeyOfRequest<'_>) -> bool {
        let is_of = |id: &WorkspaceId| key.is_some_and(|(workspace, _)| workspace == id);
        let has = |entry: &MetadataEntry| {
            key.is_some_and(|(_, details)| details.metadata(&entry.name) == Some(&*entry.value))
        };
        self.workspace.as_ref().is_none_or(is_of) && self.metadata.as_ref().is_none_or(has)
    }
}

/// The value of the field that carries `secret`; none unless it consists of visible ASCII characters and spaces.
pub fn field_value(scheme: Option<&str>, secret: &str) -> Option<HeaderValue> {
    let text =
        Zeroizing::new(scheme.map_or_else(|| secret.to_owned(), |scheme| format!("{scheme} {secret}")));
    let is_plain = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    let fits = is_plain && !secret.is_empty() && secret.len() <= CREDENTIAL_MAX;
    let mut value = HeaderValue::from_str(&text).ok().filter(|_| fits)?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether `text` is the name of an authentication scheme.
pub fn is_scheme(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_for_the_keys_that_meet_all_its_conditions() {
        let [one, other]: [WorkspaceId; 2] = ["one", "other"].map(|id| id.parse().expect("an id"));
        let details = |tier: &str| KeyDetails {
            created_by: "ada".into(),
            metadata: [("tier".into(), tier.into())].into(),
        };
        let credential = |workspace: Option<&WorkspaceId>, tier: Option<&str>| UpstreamCredential {
            workspace: workspace.cloned(),
            metadata: tier.map(|tier| MetadataEntry { name: "tier".into(), value: tier.into() }),
            header: http::header::AUTHORIZATION,
            value: Some(HeaderValue::from_static("x")),
        };
        let (gold, silver) = (details("gold"), details("silver"));
        for (credential, fits) in [
            (credential(None, None), [true, true, true, true]),
            (credential(Some(&one), None), [true, true, false, false]),
            (credential(None, Some("gold")), [true, false, true, false]),
            (credential(Some(&one), Some("gold")), [true, false, false, false]),
        ] {
            let keys = [(&one, &gold), (&one, &silver), (&other, &gold)].map(Some).into_iter().chain([None]);
            for (key, fits) in keys.zip(fits) {
                assert_eq!(credential.is_for(key), fits, "{credential:?} {key:?}");
            }
        }
    }

    #[test]
    fn a_secret_is_one_line_of_visible_characters() {
        assert_eq!(field_value(Some("Bearer"), "a b").expect("fits"), "Bearer a b");
        assert_eq!(field_value(None, "x").expect("fits"), "x");
        for secret in ["", "a\nb", "ä", "a\tb", &"x".repeat(CREDENTIAL_MAX + 1)] {
            assert!(field_value(None, secret).is_none(), "{} bytes", secret.len());
        }
    }
}
