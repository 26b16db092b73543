//! What policies in dry-run mode would have decided, counted and logged.
//!
//! In: a new inbound connection. Out: `aquifer_policy_dry_run_total` and a line with target `policy` for each policy that
//! has something to report. Decides nothing.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use mesh::{
    policy::{self, DryRun, DryRunVerdict},
    store::Snapshot,
};
use metrics::{Counter, counter};

use super::{Pod, live::Subject};

/// Policies that have a label of their own, on each thread. Further ones are counted together, as `other`.
const LABELLED_POLICIES: usize = 100;

/// The counters of one thread.
#[derive(Default)]
pub(super) struct DryRuns(RefCell<HashMap<Arc<str>, [Option<Counter>; 3]>>);

impl DryRuns {
    /// Reports what the dry-run policies of `pod` say of a connection.
    pub(super) fn report(&self, snapshot: &Snapshot, pod: &Pod, subject: &Subject) {
        let record = snapshot.workload_of(&pod.namespace, &pod.name, &pod.service_account);
        let Some(workload) = record else { return };
        let to = workload.policy_destination();
        for dry in policy::dry_run(snapshot.policies(), to, &subject.connection()) {
            self.count(&dry);
            let (_, action, verdict) = labels(dry.verdict);
            tracing::info!(
                target: "policy", policy = %dry.policy, action, verdict, rule = dry.verdict.rule(),
                source = %subject.source, peer = subject.peer.as_ref().map(|peer| peer.as_str()),
                destination = %subject.destination, "dry run"
            );
        }
    }

    fn count(&self, dry: &DryRun) {
        let mut counters = self.0.borrow_mut();
        let full = counters.len() >= LABELLED_POLICIES && !counters.contains_key(&dry.policy);
        let policy = if full { Arc::from("other") } else { dry.policy.clone() };
        let (slot, action, verdict) = labels(dry.verdict);
        let of_policy = counters.entry(policy.clone()).or_default();
        let register = || {
            let policy = policy.to_string();
            counter!("aquifer_policy_dry_run_total", "policy" => policy, "action" => action, "verdict" => verdict)
        };
        of_policy[slot].get_or_insert_with(register).increment(1);
    }
}

/// Where the counter is, and the labels `action` and `verdict`.
fn labels(verdict: DryRunVerdict) -> (usize, &'static str, &'static str) {
    match verdict {
        DryRunVerdict::Deny { .. } => (0, "DENY", "deny"),
        DryRunVerdict::Allow { .. } => (1, "ALLOW", "allow"),
        DryRunVerdict::NoAllow => (2, "ALLOW", "no_allow"),
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn dry_runs_are_counted_by_policy_action_and_verdict_up_to_a_limit() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let dry_runs = DryRuns::default();
            let report = |policy: String, verdict| {
                dry_runs.count(&DryRun { policy: policy.into(), verdict });
            };
            report("shop/a".into(), DryRunVerdict::Deny { rule: 1 });
            report("shop/a".into(), DryRunVerdict::Deny { rule: 2 });
            report("shop/a".into(), DryRunVerdict::NoAllow);
            for index in 0..LABELLED_POLICIES + 10 {
                report(format!("shop/many-{index}"), DryRunVerdict::Allow { rule: 1 });
            }
        });
        let text = handle.render();
        let has = |policy: &str, action: &str, verdict: &str, count: u32| {
            let line = format!(
                "aquifer_policy_dry_run_total{{policy=\"{policy}\",action=\"{action}\",verdict=\"{verdict}\"}} {count}"
            );
            assert!(text.contains(&line), "{line} in {text}");
        };
        has("shop/a", "DENY", "deny", 2);
        has("shop/a", "ALLOW", "no_allow", 1);
        has("shop/many-0", "ALLOW", "allow", 1);
        has("other", "ALLOW", "allow", 11);
    }
}
