//! Why capture failed: one variant for each thing an operator would do differently.

use std::{io, path::PathBuf};

use super::{preflight::Missing, reply_routing::RoutingError};

/// Why capture could not be set up, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The machine or the daemon's privileges do not suffice; everything that is missing.
    #[error("capture is not possible here: {}", listed(missing))]
    Unsupported {
        /// What is missing, never empty.
        missing: Vec<Missing>,
    },
    /// The kernel refused the programs or maps.
    #[error("loading the kernel programs")]
    Load {
        /// What aya says.
        source: Box<aya::EbpfError>,
    },
    /// The kernel refused one program.
    #[error("loading the kernel program {program}")]
    Program {
        /// The program's name in the object.
        program: &'static str,
        /// What aya says, with the verifier's log.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object has no such program or map: it was built from other sources than the daemon.
    #[error("the embedded kernel programs have no {name}: run `cargo xtask ebpf` and build again")]
    Object {
        /// The name looked for.
        name: &'static str,
    },
    /// A map could not be read or written.
    #[error("accessing the map {map}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// What aya says.
        source: aya::maps::MapError,
    },
    /// A program could not be attached or updated.
    #[error("attaching {pin}")]
    Attach {
        /// Where its link is pinned.
        pin: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A directory or a pin could not be read, made or removed.
    #[error("accessing {path}")]
    Path {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pod's routing could not be changed.
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// A namespace found by its link cannot be used.
    #[error("cleaning a pod's namespace")]
    Netns {
        /// What is wrong with it.
        source: super::netns::NetnsError,
    },
    /// The pod has no address, so nothing could be captured.
    #[error("the pod has no address")]
    NoAddress,
    /// The pod's listeners are missing, or more than the maps can tell apart.
    #[error(
        "{outbound} outbound, {plaintext} plaintext and {hbone} tunnel listeners given, need the same number of each, 1 to 65535"
    )]
    Listeners {
        /// How many for captured outbound connections.
        outbound: usize,
        /// How many for plaintext.
        plaintext: usize,
        /// How many for tunnels.
        hbone: usize,
    },
}

fn listed(missing: &[Missing]) -> String {
    missing.iter().map(Missing::to_string).collect::<Vec<_>>().join("; ")
}
