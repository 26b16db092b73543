//! What the answer to a question consists of.
//!
//! In: workloads, hops, the judgement of policies. Out: values to serialize; their field names are what `meshctl` reads.

use std::{fmt::Display, net::SocketAddr, sync::Arc};

use mesh::{
    identity::Spiffe,
    policy::{self, Connection, DryRunVerdict, Grounds},
    store::{Service, Snapshot, Workload},
    telemetry::Reason,
};
use serde::Serialize;

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct Explanation {
    pub(super) from: String,
    pub(super) to: SocketAddr,
    /// What it comes to.
    pub(super) outcome: Outcome,
    /// The one word that log and metrics would have for a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
    /// The whole in a sentence.
    pub(super) summary: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<Party>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hop: Option<Hop>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Outcome {
    /// It is carried, and the destination's policies allow it.
    Allowed,
    /// The destination's policies deny it.
    Denied,
    /// There is no way to the destination.
    NoRoute,
    /// It is carried, and whether it is allowed is not decided by a node daemon.
    Forwarded,
}

#[derive(Debug, Serialize)]
pub(super) struct Party {
    pub(super) uid: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) identity: Option<String>,
}

/// Where it goes next.
#[derive(Debug, Serialize)]
pub(super) struct Hop {
    /// `passthrough`, `plain`, `direct`, `waypoint`, `across`, `unresolved`.
    pub(super) kind: &'static str,
    /// What is dialed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dial: Option<SocketAddr>,
    /// The name to resolve first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<Arc<str>>,
    /// The tunnel's `:authority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) authority: Option<String>,
    /// The identities any of which must be found there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) expect: Vec<String>,
    /// The destination, or its waypoint, or what stands for it on another network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) workload: Option<Party>,
    /// The service that was dialed, `<namespace>/<hostname>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<Arc<str>>,
}

/// What the destination's policies say.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Verdict {
    pub(super) allowed: bool,
    pub(super) sentence: String,
    /// The policy that decided, `<namespace>/<name>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<Arc<str>>,
    /// Its rule that matched, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rule: Option<usize>,
    /// What policies in dry-run mode would have decided.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) dry_run: Vec<String>,
}

impl Party {
    pub(super) fn of(workload: &Workload) -> Self {
        Self {
            uid: workload.uid.clone(),
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            identity: workload.identity().map(ToString::to_string),
        }
    }
}

impl Hop {
    pub(super) fn empty() -> Self {
        Self {
            kind: "",
            dial: None,
            host: None,
            authority: None,
            expect: Vec::new(),
            workload: None,
            service: None,
        }
    }

    pub(super) fn clear(kind: &'static str, dial: SocketAddr, service: Option<&Service>) -> Self {
        Self { kind, dial: Some(dial), service: service.map(|s| s.key.clone()), ..Self::empty() }
    }

    pub(super) fn tunnel(
        kind: &'static str,
        dial: SocketAddr,
        authority: impl Display,
        expect: &[Spiffe],
        workload: &Workload,
        service: Option<&Service>,
    ) -> Self {
        Self {
            authority: Some(authority.to_string()),
            expect: expect.iter().map(ToString::to_string).collect(),
            workload: Some(Party::of(workload)),
            ..Self::clear(kind, dial, service)
        }
    }
}

/// The verdict of the policies of `to`, and the reason if they deny.
pub(super) fn judge(
    snapshot: &Snapshot,
    to: &Workload,
    connection: &Connection<'_>,
) -> (Verdict, Option<Reason>) {
    let (policies, destination) = (snapshot.policies(), to.policy_destination());
    let dry_run =
        policy::dry_run(policies, destination, connection).into_iter().map(|one| {
            match one.verdict {
                DryRunVerdict::Deny { rule } => {
                    format!("{} would deny by its rule {rule}", one.policy)
                }
                DryRunVerdict::Allow { rule } => {
                    format!("{} would allow by its rule {rule}", one.policy)
                }
                DryRunVerdict::NoAllow => format!("{} would not allow", one.policy),
            }
        });
    let dry_run = dry_run.collect();
    match policy::authorize(policies, destination, connection) {
        Ok(permit) => {
            let (sentence, policy, rule) = grounds(permit.grounds());
            (Verdict { allowed: true, sentence, policy, rule, dry_run }, None)
        }
        Err(denied) => {
            let reason = Reason::from(&denied);
            let sentence = denied.to_string();
            let (policy, rule) = (denied.policy().cloned(), denied.rule());
            (Verdict { allowed: false, sentence, policy, rule, dry_run }, Some(reason))
        }
    }
}

fn grounds(grounds: &Grounds) -> (String, Option<Arc<str>>, Option<usize>) {
    match grounds {
        Grounds::Allowed { policy, rule } => {
            let sentence =
                format!("policy {policy} allows this connection: its rule {rule} matches");
            (sentence, Some(policy.clone()), Some(*rule))
        }
        Grounds::Unrestricted => {
            ("no policy restricts who may connect to the destination".to_owned(), None, None)
        }
        Grounds::Originated => ("the destination's node decides".to_owned(), None, None),
    }
}
