//! Turns what went wrong on a connection's path into the one [`Reason`] and the sentence that are recorded.

use std::{io, net::SocketAddr};

use mesh::{
    hbone::{Abort, Ended, Outcome, StreamError},
    telemetry::{Failure, Reason},
};

/// Dialing `to` failed.
pub(super) fn dial(to: SocketAddr, error: &io::Error) -> Failure {
    Failure { reason: dial_reason(error), error: format!("dialing {to}: {error}") }
}

fn dial_reason(error: &io::Error) -> Reason {
    if matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    ) {
        return Reason::OutOfResources;
    }
    #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum that grows")]
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::DialRefused,
        io::ErrorKind::TimedOut => Reason::DialTimeout,
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => Reason::OutOfResources,
        _ => Reason::DialFailed,
    }
}

/// A tunnel's stream ended before it was answered.
pub(super) fn stream(error: &StreamError) -> Failure {
    Failure::new(Reason::from(error), error)
}

/// How a copied connection ended. `cut` is the sentence of the order that ended it, where one did.
pub(super) fn outcome(outcome: &Outcome, cut: Option<String>) -> Result<(), Failure> {
    match &outcome.ended {
        Ended::Finished { .. } => Ok(()),
        Ended::Tcp { side, source } => {
            let reason = match source.kind() == io::ErrorKind::ConnectionReset {
                true => Reason::ApplicationReset,
                false => Reason::ConnectionFailed,
            };
            Err(Failure {
                reason,
                error: format!("the {side:?} connection ended: {source}").to_lowercase(),
            })
        }
        Ended::Stream { source } => Err(stream(source)),
        Ended::Aborted { why } => Err(Failure {
            reason: abort_reason(*why),
            error: cut.unwrap_or_else(|| "cut by the daemon".to_owned()),
        }),
    }
}

fn abort_reason(why: Abort) -> Reason {
    match why {
        Abort::PolicyChanged => Reason::PolicyChanged,
        Abort::PodRemoved => Reason::PodRemoved,
        Abort::Shutdown => Reason::Shutdown,
    }
}
