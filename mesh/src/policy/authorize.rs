//! Decides whether a connection may be made.
//!
//! In: [`Policies`], the [`Destination`] and a [`Connection`]. Out: a [`Permit`], without which nothing is forwarded, or
//! why there is none.

use std::{net::SocketAddr, sync::Arc};

use super::{Action, NearestMiss, Policies, nearest::EXAMINED};
use crate::identity::Spiffe;

/// What policies look at in a connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Whom the peer's certificate names; none on a plaintext connection.
    pub peer: Option<&'a Spiffe>,
    /// Where the connection, or the tunnel that carries it, comes from.
    pub source: SocketAddr,
    /// The workload's address and the port the application listens on.
    pub destination: SocketAddr,
}

/// What decides which policies apply to a workload.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// The workload's namespace.
    pub namespace: &'a str,
    /// The policies the workload names, as `<namespace>/<name>`.
    pub policies: &'a [Arc<str>],
}

/// Leave to forward one connection. Made by [`authorize`], and by [`originated`] for what our own side begins.
#[derive(Debug)]
pub struct Permit {
    grounds: Grounds,
}

/// Why a connection may be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Grounds {
    /// No ALLOW policy applies to the destination, and nothing denies.
    Unrestricted,
    /// An ALLOW policy matched.
    Allowed {
        /// `<namespace>/<name>`.
        policy: Arc<str>,
        /// Which of its rules, counted from 1.
        rule: usize,
    },
    /// The source is ours, and the destination's side decides.
    Originated,
}

/// Why a connection may not be made. Its text is the sentence for the user.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Denied {
    /// A DENY policy matched.
    #[error("policy {policy} denies this connection: its rule {rule} matches")]
    ByDeny {
        /// `<namespace>/<name>`.
        policy: Arc<str>,
        /// Which of its rules, counted from 1.
        rule: usize,
    },
    /// The workload names a policy that is not here. What it would say is unknown, so nothing is allowed.
    #[error(
        "policy {policy} applies to the destination and has not arrived, so nothing is allowed"
    )]
    Missing {
        /// `<namespace>/<name>`.
        policy: Arc<str>,
    },
    /// A policy that would apply to the workload was sent and cannot be understood, and no older version of it is held.
    #[error(
        "policy {policy} applies to the destination and cannot be understood ({fault}), so nothing is allowed"
    )]
    Invalid {
        /// `<namespace>/<name>`.
        policy: Arc<str>,
        /// The field and what is wrong with it.
        fault: Arc<str>,
    },
    /// ALLOW policies apply and none matched.
    #[error("no policy allows this connection: {nearest}")]
    NoAllow {
        /// The rule that came nearest to allowing it.
        nearest: NearestMiss,
    },
}

impl Denied {
    /// The policy that decided, `<namespace>/<name>`; none where no policy matched.
    pub fn policy(&self) -> Option<&Arc<str>> {
        match self {
            Self::ByDeny { policy, .. }
            | Self::Invalid { policy, .. }
            | Self::Missing { policy } => Some(policy),
            Self::NoAllow { .. } => None,
        }
    }

    /// Its rule that matched, counted from 1.
    pub fn rule(&self) -> Option<usize> {
        match self {
            Self::ByDeny { rule, .. } => Some(*rule),
            Self::Invalid { .. } | Self::Missing { .. } | Self::NoAllow { .. } => None,
        }
    }
}

impl Permit {
    /// Why the connection may be made.
    pub fn grounds(&self) -> &Grounds {
        &self.grounds
    }
}

/// Leave to forward what a workload of this side began: its policy is enforced where it arrives.
pub fn originated() -> Permit {
    Permit { grounds: Grounds::Originated }
}

/// Decides whether a connection to a workload may be made.
///
/// A DENY that matches comes first, since it holds whatever else arrives; then a policy that cannot be understood and a
/// named one that is missing, since they might deny or restrict; then the ALLOW policies. Dry-run policies decide nothing: [`dry_run`](super::dry_run()) reports
/// on them.
///
/// # Errors
/// [`Denied`] names the policy, and for a missed ALLOW the rule and field that came nearest.
pub fn authorize(
    policies: &Policies,
    to: Destination<'_>,
    connection: &Connection<'_>,
) -> Result<Permit, Denied> {
    if let Some((policy, rule)) = policies.first_match(Action::Deny, to, connection) {
        return Err(Denied::ByDeny { policy: policy.key.clone(), rule });
    }
    if let Some(rejected) = policies.invalid(to) {
        let (policy, fault) = (rejected.key.clone(), rejected.fault.clone());
        return Err(Denied::Invalid { policy, fault });
    }
    if let Some(policy) = policies.missing(to).next() {
        return Err(Denied::Missing { policy: policy.clone() });
    }
    if let Some((policy, rule)) = policies.first_match(Action::Allow, to, connection) {
        return Ok(Permit { grounds: Grounds::Allowed { policy: policy.key.clone(), rule } });
    }
    let nearest = NearestMiss::among(policies.allowing(to, connection, EXAMINED), connection);
    match nearest {
        Some(nearest) => Err(Denied::NoAllow { nearest }),
        None => Ok(Permit { grounds: Grounds::Unrestricted }),
    }
}
