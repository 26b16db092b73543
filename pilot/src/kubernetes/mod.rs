//! An API server of Kubernetes as a source of manifests, beside a folder.
//!
//! In: a kubeconfig, or the surroundings of a pod. Out: `Source`, which holds what the server said last of every
//! kind that is served and says when that has changed; and its writer, which writes statuses back and runs waypoints.
//! Decides nothing about the mesh.

mod bundle;
mod definitions;
mod link;
mod objects;
mod once;
mod raw;
mod seen;
mod source;
mod watch;
mod writing;

pub(crate) use bundle::keep as keep_bundle;
pub use once::{OnceError, once};
pub(crate) use source::Source;
pub(crate) use writing::Served;

use std::path::{Path, PathBuf};

use kube::{
    Client, Config,
    config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

/// Why there is no API server to talk to. One that does not answer is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A kubeconfig cannot be used.
    #[error("reading the kubeconfig {path}")]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// There is neither a kubeconfig nor a pod's service account.
    #[error("looking for an API server")]
    Infer {
        /// What was found instead.
        source: InferConfigError,
    },
    /// The certificates or the address cannot be used.
    #[error("preparing to talk to the API server")]
    Client {
        /// What is wrong with them.
        source: kube::Error,
    },
}

/// A client of the API server that a kubeconfig names; without one, that of `$KUBECONFIG` or of the pod.
///
/// # Errors
/// [`ConnectError`] if there is none to talk to.
pub(crate) async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let config = match kubeconfig {
        Some(path) => {
            let failed = |source| ConnectError::Kubeconfig { path: path.to_owned(), source };
            let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)?
        }
        None => Config::infer().await.map_err(|source| ConnectError::Infer { source })?,
    };
    Client::try_from(config).map_err(|source| ConnectError::Client { source })
}
