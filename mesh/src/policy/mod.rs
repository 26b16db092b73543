//! Who may talk to whom, on what the tunnel shows: identities, addresses, ports.
//!
//! In: [`Policies`], the [`Destination`] and a [`Connection`]. Out: a [`Permit`], or [`Denied`] with the sentence for the
//! user. Pure: nothing here waits, locks, logs or reads a clock, and the caller re-asks when the policies change.

mod authorize;
mod candidates;
mod changes;
mod decode;
mod dry_run;
mod matching;
mod nearest;
mod policies;
#[cfg(test)]
mod reference;
mod rejected;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use ipnet::IpNet;

pub use self::{
    authorize::{Connection, Denied, Destination, Grounds, Permit, authorize, originated},
    changes::{Change, Concern, ReachOfChange},
    dry_run::{DryRun, DryRunVerdict, dry_run},
    nearest::NearestMiss,
    policies::Policies,
    rejected::{Reach, Rejected},
};
pub use crate::wire::DecodeError;

/// One compiled policy. It matches a connection if any of its rules does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    /// `<namespace>/<name>`: its name in xDS and in [`Destination::policies`].
    pub key: Arc<str>,
    /// The Kubernetes namespace it is in.
    pub namespace: Arc<str>,
    /// Its name within the namespace.
    pub name: Box<str>,
    /// Which workloads it applies to.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Whether it decides or only reports.
    pub mode: Mode,
    /// Alternatives. Without any, the policy never matches.
    pub rules: Box<[Rule]>,
}

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scope {
    /// Every workload.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads that name it.
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// The connection is allowed unless something denies it; where ALLOW policies apply and none matches, it is denied.
    Allow,
    /// The connection is denied.
    Deny,
}

/// Whether a policy decides or only reports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// It decides.
    Enforce,
    /// It only reports what it would have decided.
    DryRun,
}

/// One alternative of a policy. It matches if all of its clauses do; without any, it matches everything.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Conditions that must all hold.
    pub clauses: Box<[Clause]>,
}

/// One condition of a rule. It holds if any of its matches does; without any, it holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Clause {
    /// Alternatives.
    pub matches: Box<[Match]>,
}

/// One alternative of a clause. It holds if all of its fields do; with every field empty it never holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Match {
    /// The namespace of the peer's identity, empty without one.
    pub namespaces: Field<StringMatch>,
    /// The namespace and service account of the peer's identity, in whatever trust domain.
    pub service_accounts: Field<ServiceAccount>,
    /// The peer's identity without `spiffe://`.
    pub principals: Field<StringMatch>,
    /// The address the connection comes from.
    pub source_ips: Field<IpNet>,
    /// The address of the destination.
    pub destination_ips: Field<IpNet>,
    /// The port of the destination.
    pub destination_ports: Field<u16>,
}

/// Values wanted and values excluded. An empty list asks for nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Field<T> {
    /// One of these must match, if there is any.
    pub any_of: Box<[T]>,
    /// None of these may match.
    pub none_of: Box<[T]>,
}

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self { any_of: Box::default(), none_of: Box::default() }
    }
}

/// How a text is compared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StringMatch {
    /// It is this.
    Exact(Box<str>),
    /// It begins with this.
    Prefix(Box<str>),
    /// It ends with this.
    Suffix(Box<str>),
    /// It is not empty.
    Presence,
}

/// A service account of a namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceAccount {
    /// The Kubernetes namespace.
    pub namespace: Box<str>,
    /// The Kubernetes service account.
    pub name: Box<str>,
}
