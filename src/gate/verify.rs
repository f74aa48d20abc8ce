//! The steps for an application that asks by itself: it has the secret, and says what the secret must grant.

use super::{Denied, Gate, NamedEndUser, Permit};
use crate::policy::keys::authorize::{AuthorizationRequest, authorize};
use crate::policy::routing::route::Route;
use std::sync::Arc;

impl Gate {
    /// Steps 3 to 6 for a secret that does not come in a request. `route` stands for the call in records and metrics.
    pub fn verify(
        &self,
        secret: &[u8],
        asked: &AuthorizationRequest<'_>,
        route: &Arc<Route>,
    ) -> Result<Permit, Box<Denied>> {
        let found = self.find_secret(secret, asked.at);
        let presented = found.map_err(|denial| Denied::early(denial, Some(route)))?;
        match authorize(&presented.entry.key, asked) {
            Ok(()) => {
                let end_user = NamedEndUser::Nobody;
                Ok(Permit { presented, route: Arc::clone(route), end_user, rewritten: None })
            }
            Err(denial) => Err(Denied::of(denial, Some(Arc::clone(route)), presented.entry, None)),
        }
    }
}
