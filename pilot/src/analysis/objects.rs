//! Objects that select nothing, mean nothing, or lack a name.
//!
//! In: selectors, labels, and the kinds that an ambient mesh does not follow. Out: findings.

use super::{Code, Findings, view::View};
use crate::manifests::{Labels, Meta, Selector};

const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    without_effect(view, findings);
    selectors(view, findings);
    identities(view, findings);
    let namespaces = view.manifests.namespaces.iter().map(|one| &one.meta);
    for meta in namespaces.chain(view.manifests.pods.iter().map(|one| &one.meta)) {
        let mode = meta.labels.get(DATAPLANE_MODE).map_or("none", String::as_str);
        if !matches!(mode, "ambient" | "none") {
            let reason = format!("{DATAPLANE_MODE}: `{mode}` is neither ambient nor none");
            findings.add(Code::UnknownValue, meta, "metadata.labels", reason);
        }
    }
}

/// Kinds for sidecars, for classic gateways, and for the registration of machines.
fn without_effect(view: &View<'_>, findings: &mut Findings) {
    let all = view.manifests;
    let kinds: [(&str, Vec<&Meta>); 4] = [
        ("there are no sidecars", all.sidecars.iter().map(|one| &one.meta).collect()),
        (
            "waypoints are Gateways of gateway.networking.k8s.io",
            all.istio_gateways.iter().map(|one| &one.meta).collect(),
        ),
        (
            "proxies are set up by meshConfig",
            all.proxy_configs.iter().map(|one| &one.meta).collect(),
        ),
        (
            "machines are not registered by themselves: write a WorkloadEntry",
            all.workload_groups.iter().map(|one| &one.meta).collect(),
        ),
    ];
    for (reason, metas) in kinds {
        for meta in metas {
            findings.add(Code::NoEffect, meta, "", reason);
        }
    }
    for filter in all.envoy_filters.iter().filter(|one| one.spec.target_refs.is_empty()) {
        let reason = "without targetRefs it changes no waypoint";
        findings.add(Code::NoEffect, &filter.meta, "spec.targetRefs", reason);
    }
}

fn selectors(view: &View<'_>, findings: &mut Findings) {
    if !view.has_pods() {
        return;
    }
    let all = view.manifests;
    let policies = all.authorization_policies.iter();
    let policies = policies.map(|one| (&one.meta, one.spec.selector.as_ref()));
    let modes = all.peer_authentications.iter();
    let modes = modes.map(|one| (&one.meta, one.spec.selector.as_ref()));
    for (meta, selector) in policies.chain(modes) {
        let Some(labels) = Selector::labels(selector) else { continue };
        let of_entry = |labels: &Labels| {
            view.registry.vms().iter().any(|vm| {
                let near = vm.object.meta.namespace == meta.namespace;
                near && labels.iter().all(|(key, value)| vm.labels.get(key) == Some(value))
            })
        };
        if view.selected(&meta.namespace, labels).is_empty() && !of_entry(labels) {
            let text: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let reason = format!("no pod has {}", text.join(","));
            findings.add(Code::SelectsNothing, meta, "spec.selector.matchLabels", reason);
        }
    }
}

/// What takes tunnels is known by its account.
fn identities(view: &View<'_>, findings: &mut Findings) {
    for entry in &view.manifests.workload_entries {
        if entry.spec.service_account.is_empty() {
            let reason = "missing: no policy can name it";
            findings.add(Code::NoIdentity, &entry.meta, "spec.serviceAccount", reason);
        }
    }
}
