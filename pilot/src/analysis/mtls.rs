//! PeerAuthentications that refuse what they should not, or nothing.
//!
//! In: PeerAuthentications, and the pods they select. Out: findings.

use std::collections::BTreeMap;

use super::{
    Code, Findings,
    view::{View, some_of},
};
use crate::{
    compile::peer_authentication::Modes,
    manifests::{MtlsMode, Object, PeerAuthentication, Selector},
};

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    let mut policies: Vec<_> = view.manifests.peer_authentications.iter().collect();
    policies.sort_by_key(|policy| policy.meta.seniority());
    let mut scopes: BTreeMap<(&str, Option<String>), &Object<PeerAuthentication>> = BTreeMap::new();
    for policy in policies {
        let selector = Selector::labels(policy.spec.selector.as_ref());
        let scope = (&*policy.meta.namespace, selector.map(|labels| format!("{labels:?}")));
        match scopes.get(&scope) {
            Some(first) => {
                let reason = format!("{} is of the same scope", first.meta.title());
                findings.add(Code::SeveralModes, &policy.meta, "spec", reason);
            }
            None => {
                scopes.insert(scope, policy);
                outside(view, policy, findings);
                ports(view, policy, findings);
            }
        }
        disable(policy, findings);
    }
    plain_clients(view, findings);
}

fn is_strict(policy: &PeerAuthentication) -> bool {
    let ports = policy.port_level_mtls.iter().flatten();
    let mut modes = policy.mtls.iter().chain(ports.map(|(_, mtls)| mtls));
    modes.any(|mtls| mtls.mode == MtlsMode::Strict)
}

/// Whoever asks for STRICT believes that pods are in the mesh. Those of the whole mesh's policy may be anything.
fn outside(view: &View<'_>, policy: &Object<PeerAuthentication>, findings: &mut Findings) {
    if !is_strict(&policy.spec) || *policy.meta.namespace == *view.config.root_namespace {
        return;
    }
    let pods = view.policed(&policy.meta.namespace, policy.spec.selector.as_ref());
    let out = pods.iter().filter(|pod| !view.is_in_mesh(pod) && !pod.spec.host_network);
    let out: Vec<_> = out.map(|pod| pod.meta.name.to_string()).collect();
    if !out.is_empty() {
        let reason = format!("nothing refuses plain text to {}", some_of(&out));
        findings.add(Code::StrictOutside, &policy.meta, "spec.mtls", reason);
    }
}

/// Ports are the container's.
fn ports(view: &View<'_>, policy: &Object<PeerAuthentication>, findings: &mut Findings) {
    let pods = view.policed(&policy.meta.namespace, policy.spec.selector.as_ref());
    let mut of_services = Vec::new();
    let mut of_pods = Vec::new();
    for pod in &pods {
        for (_, pairs) in view.registry.leading_to(pod) {
            of_services.extend(pairs.iter().map(|pair| pair.0));
            of_pods.extend(pairs.iter().map(|pair| pair.1));
        }
        of_pods.extend(pod.spec.named_ports.iter().map(|(_, number)| *number));
    }
    for (port, _) in policy.spec.port_level_mtls.iter().flatten() {
        let Ok(number) = u16::try_from(port.0) else { continue };
        if of_services.contains(&number) && !of_pods.contains(&number) {
            let field = format!("spec.portLevelMtls.{number}");
            let reason = format!("{number} is a port of a Service; a pod's own is meant");
            findings.add(Code::OtherSidesPort, &policy.meta, &field, reason);
        }
    }
}

fn disable(policy: &Object<PeerAuthentication>, findings: &mut Findings) {
    let ports = policy.spec.port_level_mtls.iter().flatten();
    let ports = ports.map(|(port, mtls)| (format!("spec.portLevelMtls.{}", port.0), mtls.mode));
    let own = policy.spec.mtls.iter().map(|mtls| ("spec.mtls".to_owned(), mtls.mode));
    for (field, mode) in own.chain(ports) {
        if mode == MtlsMode::Disable {
            let reason = "tunnels are taken, and plain text as well";
            findings.add(Code::DisableIsPermissive, &policy.meta, &field, reason);
        }
    }
}

/// Pods of one namespace are likely to talk to each other.
fn plain_clients(view: &View<'_>, findings: &mut Findings) {
    let modes = Modes::of(&view.manifests.peer_authentications, view.config);
    for policy in &view.manifests.peer_authentications {
        let own = &*policy.meta.namespace;
        if own == view.config.root_namespace.as_str() || !is_strict(&policy.spec) {
            continue;
        }
        let guarded = view.policed(own, policy.spec.selector.as_ref());
        let strict = guarded
            .iter()
            .any(|pod| view.is_in_mesh(pod) && modes.policy_for(own, &pod.meta.labels).is_some());
        let beside = view.policed(own, None);
        let plain = beside.iter().filter(|pod| !view.is_in_mesh(pod));
        let plain: Vec<_> = plain.map(|pod| pod.meta.name.to_string()).collect();
        if strict && !plain.is_empty() {
            findings.add(Code::PlainClients, &policy.meta, "spec", some_of(&plain));
        }
    }
}
