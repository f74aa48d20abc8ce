//! Credentials for the backend: which one a request gets, by the workspace or the metadata of its key.
//!
//! Must not know: where a credential comes from. Clients never see one.

use crate::model::id::WorkspaceId;
use crate::model::key::KeyDetails;
use http::{HeaderName, HeaderValue};

/// One credential of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamCredential {
    /// The workspace whose requests get it; none: any.
    pub workspace: Option<WorkspaceId>,
    /// An entry of the key's metadata and the value that it must have.
    pub metadata: Option<(Box<str>, Box<str>)>,
    /// The field that carries it.
    pub header: HeaderName,
    /// The value of the field. It is marked as sensitive.
    pub value: HeaderValue,
}

impl UpstreamCredential {
    /// Whether a request with this key gets it. A request without a key gets only what all get.
    pub fn is_for(&self, key: Option<(&WorkspaceId, &KeyDetails)>) -> bool {
        let is_of = |id: &WorkspaceId| key.is_some_and(|(workspace, _)| workspace == id);
        let has = |(name, value): &(Box<str>, Box<str>)| {
            key.is_some_and(|(_, details)| details.metadata(name) == Some(&**value))
        };
        self.workspace.as_ref().is_none_or(is_of) && self.metadata.as_ref().is_none_or(has)
    }
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
            metadata: tier.map(|tier| ("tier".into(), tier.into())),
            header: http::header::AUTHORIZATION,
            value: HeaderValue::from_static("x"),
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
}
