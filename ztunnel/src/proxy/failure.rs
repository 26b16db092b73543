//! Turns what went wrong on a connection's path into the one [`Reason`] and the sentence that are recorded.

use std::{io, net::SocketAddr};

use mesh::{
    hbone::{Ended, Outcome, Side, StreamError},
    telemetry::{Failure, Reason},
};

/// Dialing `to` failed.
pub(super) fn dial(to: SocketAddr, error: &io::Error) -> Failure {
    Failure { reason: Reason::of_dial(error), error: format!("dialing {to}: {error}") }
}

/// A tunnel's stream ended before it was answered.
pub(super) fn stream(error: &StreamError) -> Failure {
    Failure::new(Reason::from(error), error)
}

/// How a copied connection ended. `application` is the side that is an application of this node; `cut` is the sentence
/// of the order that ended it, where one did.
pub(super) fn outcome(
    outcome: &Outcome,
    application: Side,
    cut: Option<String>,
) -> Result<(), Failure> {
    match &outcome.ended {
        Ended::Finished { .. } => Ok(()),
        Ended::Tcp { side, source } => {
            let reset = source.kind() == io::ErrorKind::ConnectionReset;
            let (reason, who) = match *side == application {
                true if reset => (Reason::ApplicationReset, "application"),
                true => (Reason::ConnectionFailed, "application"),
                false => (Reason::ConnectionFailed, "other side"),
            };
            Err(Failure { reason, error: format!("the connection of the {who} ended: {source}") })
        }
        Ended::Stream { source } => Err(stream(source)),
        Ended::Aborted { why } => Err(Failure {
            reason: Reason::from(*why),
            error: cut.unwrap_or_else(|| Reason::from(*why).describe().to_owned()),
        }),
    }
}
