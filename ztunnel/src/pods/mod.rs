//! Which pods this daemon serves, and where it learns of them.
//!
//! Sources: the [`folder`] of records that survives restarts, the Unix [`socket`] that adds and removes, and Istio's
//! node agent ([`zds`]). All of them speak to one [`PodTable`].

use std::{fs::File, io, net::IpAddr, path::PathBuf};

use crate::capture::{CaptureError, NetnsError};

pub mod folder;
pub mod host;
pub mod record;
pub mod socket;
#[cfg(test)]
mod stand_in;
pub mod zds;

pub use record::{CaptureOptions, DnsCapture, PodRecord, PodUid, SourceAddress, WithoutDaemon};

/// A pod as a source announces it, its network namespace open.
#[derive(Debug)]
pub struct Announced {
    /// The pod's unique name.
    pub uid: PodUid,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's service account.
    pub service_account: String,
    /// The pod's network namespace.
    pub netns: File,
    /// The pod's addresses; empty: the ones its default routes use.
    pub ips: Vec<IpAddr>,
    /// How its traffic is captured.
    pub capture: CaptureOptions,
}

impl Announced {
    /// Opens what a record names.
    ///
    /// # Errors
    /// [`AddError::Netns`] if the namespace cannot be opened.
    pub fn open(record: &PodRecord) -> Result<Self, AddError> {
        let netns = File::open(&record.netns)
            .map_err(|source| AddError::Netns { path: record.netns.clone(), source })?;
        Ok(Self {
            uid: record.uid.clone(),
            namespace: record.namespace.clone(),
            name: record.name.clone(),
            service_account: record.service_account.clone(),
            netns,
            ips: record.ips.clone(),
            capture: record.capture.clone(),
        })
    }
}

/// The pods being served. A second implementation stands in the sources' tests.
pub trait PodTable {
    /// Serves a pod; when this returns, its traffic is captured. What was announced before is replaced, without a gap if
    /// the network namespace is the same.
    ///
    /// # Errors
    /// [`AddError`]: the pod is not served. What an earlier daemon captured of it stays captured, and so refused.
    /// Whether it is among those waiting then is the table's decision.
    fn add(&self, pod: Announced) -> Result<(), AddError>;

    /// Ends serving a pod: its connections are closed and its capture is taken away. An unknown pod is no error.
    fn remove(&self, uid: &PodUid);

    /// The pods being served.
    fn uids(&self) -> Vec<PodUid>;

    /// The pods that were announced and could not be served, and that are tried again until they are removed.
    fn waiting(&self) -> Vec<PodUid>;
}

/// Why a pod is not served.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Its network namespace cannot be opened.
    #[error("opening the network namespace {path}: {source}", path = path.display())]
    Netns {
        /// The file named.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is no network namespace, or may not be entered.
    #[error("entering the network namespace")]
    Enter {
        /// What is wrong with it.
        source: NetnsError,
    },
    /// The namespace is the daemon's own, or the host's.
    #[error("the network namespace is the daemon's own")]
    OwnNetns,
    /// The daemon itself is known by the name.
    #[error("the uid {uid} stands for the daemon itself")]
    DaemonUid {
        /// The name.
        uid: PodUid,
    },
    /// Another pod is served in the namespace.
    #[error("the network namespace is that of pod {other}")]
    SharedNetns {
        /// The other pod.
        other: PodUid,
    },
    /// Its addresses cannot be found.
    #[error("looking for the pod's addresses: {source}")]
    Addresses {
        /// The system's reason.
        source: io::Error,
    },
    /// It has no address to capture.
    #[error("the network namespace has no address with a default route, and none was given")]
    NoAddress,
    /// Two addresses of one family.
    #[error("more than one {family} address: {first} and {second}")]
    TwoAddresses {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The first.
        first: IpAddr,
        /// The second.
        second: IpAddr,
    },
    /// A listener could not be opened in the pod.
    #[error("listening in the pod: {source}")]
    Listen {
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel refused the capture.
    #[error("capturing the pod: {source}")]
    Capture {
        /// The capture's reason.
        source: CaptureError,
    },
    /// A data thread does not run.
    #[error("{reason}")]
    Thread {
        /// Which.
        reason: String,
    },
    /// The record could not be kept.
    #[error("keeping the record {path}: {source}", path = path.display())]
    Record {
        /// Its file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The daemon is shutting down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}
