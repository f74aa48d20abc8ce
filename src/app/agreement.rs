//! The peppers of this installation, and the store's check that its digests were made with them.

use super::{StartError, peppers};
use crate::config::Config;
use crate::policy::keys::secret::Peppers;
use crate::store::{Store, StoreError};
use std::path::PathBuf;
use std::sync::Arc;

/// The peppers of this installation, and their file if it was just created.
pub(super) struct OwnPeppers {
    pub(super) peppers: Arc<Peppers>,
    new_file: Option<PathBuf>,
}

/// The peppers from the environment or from their file, which a first start creates.
pub(super) fn own_peppers(config: &Config, inline: Option<&str>) -> Result<OwnPeppers, StartError> {
    if let Some(text) = inline {
        return Ok(OwnPeppers { peppers: Arc::new(Peppers::parse(text)?), new_file: None });
    }
    let kept = peppers(&config.secrets.pepper_file)?;
    let new_file = kept.is_new.then(|| config.secrets.pepper_file.clone());
    Ok(OwnPeppers { peppers: Arc::new(kept.value), new_file })
}

/// Has the store check that its digests were made with these peppers.
pub(super) async fn agree(own: &OwnPeppers, store: &dyn Store) -> Result<(), StartError> {
    let agreed = store.agree_on_peppers(&own.peppers.checks()).await;
    let Some(path) = &own.new_file else { return Ok(agreed?) };
    match agreed {
        Ok(()) => {
            let path = path.display();
            tracing::info!(
                "made {path}: without this file no key of this database can be used, so keep a copy"
            );
            Ok(())
        }
        // It will be tried again with the same file.
        Err(error) if error.is_transient() => Err(error.into()),
        Err(error) => {
            // The right pepper file is somewhere else; a new one in its place would only hide that.
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(%error, path = %path.display(), "cannot remove new pepper file");
            }
            if matches!(error, StoreError::WrongPepper(_)) {
                return Err(StartError::PeppersGone { path: path.clone() });
            }
            Err(error.into())
        }
    }
}

/// The peppers, checked by the store.
pub async fn agreed_peppers(
    config: &Config,
    inline: Option<&str>,
    store: &dyn Store,
) -> Result<Arc<Peppers>, StartError> {
    let own = own_peppers(config, inline)?;
    agree(&own, store).await?;
    Ok(own.peppers)
}
