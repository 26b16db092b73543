//! What policies in dry-run mode would have decided.
//!
//! In: what [`authorize`](super::authorize()) takes. Out: one line per policy that has something to report, for the caller
//! to count and log. Decides nothing.

use std::sync::Arc;

use super::{Action, Connection, Destination, Policies};

/// What one dry-run policy would have done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DryRun {
    /// `<namespace>/<name>`.
    pub policy: Arc<str>,
    /// What it would have done.
    pub verdict: DryRunVerdict,
}

/// What a dry-run policy would have done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DryRunVerdict {
    /// It would have denied.
    Deny {
        /// By which of its rules, counted from 1.
        rule: usize,
    },
    /// It would have allowed.
    Allow {
        /// By which of its rules, counted from 1.
        rule: usize,
    },
    /// It would not have allowed: were it enforced, another policy would have to.
    NoAllow,
}

impl DryRunVerdict {
    /// The rule that matched, counted from 1.
    pub fn rule(self) -> Option<usize> {
        match self {
            Self::Deny { rule } | Self::Allow { rule } => Some(rule),
            Self::NoAllow => None,
        }
    }
}

/// What the dry-run policies of a workload would have decided. A DENY that does not match has nothing to report.
pub fn dry_run(
    policies: &Policies,
    to: Destination<'_>,
    connection: &Connection<'_>,
) -> Vec<DryRun> {
    policies
        .dry_runs(to)
        .filter_map(|policy| {
            let verdict = match (policy.action, policy.matching_rule(connection)) {
                (Action::Deny, Some(rule)) => DryRunVerdict::Deny { rule },
                (Action::Deny, None) => return None,
                (Action::Allow, Some(rule)) => DryRunVerdict::Allow { rule },
                (Action::Allow, None) => DryRunVerdict::NoAllow,
            };
            Some(DryRun { policy: policy.key.clone(), verdict })
        })
        .collect()
}
