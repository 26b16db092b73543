//! What an API server has, looked at once.
//!
//! In: a kubeconfig. Out: manifests and problems, as soon as every kind has been listed. Follows nothing.

use std::{path::Path, time::Duration};

use tokio::time::timeout;

use super::{ConnectError, Source, connect};
use crate::manifests::{Manifests, Problem};

/// Lists of a hundred thousand pods take seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Why an API server could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OnceError {
    /// There is none to talk to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It does not answer, or not all.
    #[error("{missing}")]
    Silent {
        /// What has not been listed.
        missing: String,
    },
}

/// Everything that an API server has.
///
/// # Errors
/// [`OnceError`] if there is no server, or it has not listed everything within a minute.
pub async fn once(
    kubeconfig: Option<&Path>,
    root_namespace: &str,
) -> Result<(Manifests, Vec<Problem>), OnceError> {
    let source = Source::start(connect(kubeconfig).await?, None);
    let whole = async {
        loop {
            if let Some(loaded) = source.load(root_namespace) {
                return loaded;
            }
            source.changed().await;
        }
    };
    timeout(LIMIT, whole).await.map_err(|_| OnceError::Silent { missing: source.missing() })
}
