//! Labels that ask for a waypoint and do not get it, and waypoints that nobody gets.
//!
//! In: labels of Namespaces, Services, ServiceEntries, pods and WorkloadEntries, and the Gateways. Out: findings. Why a
//! host has no waypoint is asked of the compiler.

use std::collections::BTreeSet;

use super::{Code, Findings, view::View};
use crate::{
    compile::attachment::{Attachment, Refusal},
    manifests::{Meta, UseWaypoint, gateway_api::Gateway, is_dns_name},
};

const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
const CLASS: &str = "istio-waypoint";

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    missing(view, findings);
    refused(view, findings);
    workloads(view, findings);
    let used = used(view);
    for gateway in &view.manifests.gateways {
        if gateway.spec.gateway_class_name != CLASS {
            continue;
        }
        check_gateway(&gateway.meta, &gateway.spec, findings);
        let key = format!("{}/{}", gateway.meta.namespace, gateway.meta.name);
        if !used.contains(&key) {
            let reason = "no Namespace, Service, ServiceEntry or pod asks for it";
            findings.add(Code::IdleWaypoint, &gateway.meta, "metadata.name", reason);
        }
    }
}

/// Everything with labels that may ask for a waypoint, with the namespace in which it asks.
fn asking<'a>(view: &View<'a>) -> Vec<(&'a Meta, &'a str)> {
    let all = view.manifests;
    let namespaces = all.namespaces.iter().map(|one| (&one.meta, &*one.meta.name));
    let others = all.services.iter().map(|one| &one.meta);
    let others = others
        .chain(all.service_entries.iter().map(|one| &one.meta))
        .chain(all.pods.iter().map(|one| &one.meta))
        .chain(all.workload_entries.iter().map(|one| &one.meta));
    namespaces.chain(others.map(|meta| (meta, &*meta.namespace))).collect()
}

fn named(meta: &Meta, own: &str) -> Option<(Box<str>, Box<str>)> {
    match UseWaypoint::of(&meta.labels, own) {
        UseWaypoint::Named { namespace, name } => Some((namespace, name)),
        UseWaypoint::Inherit | UseWaypoint::Never => None,
    }
}

fn missing(view: &View<'_>, findings: &mut Findings) {
    for (meta, own) in asking(view) {
        let Some((namespace, name)) = named(meta, own) else { continue };
        // What is no name is a problem of its own.
        let is_name = is_dns_name(&name) && is_dns_name(&namespace);
        if is_name && view.gateway(&namespace, &name).is_none() {
            let reason = format!("there is no Gateway {namespace}/{name}: reached without one");
            findings.add(Code::NoWaypoint, meta, "metadata.labels", reason);
        }
    }
}

fn used(view: &View<'_>) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (meta, own) in asking(view) {
        if let Some((namespace, name)) = named(meta, own) {
            used.insert(format!("{namespace}/{name}"));
        }
        let canary = meta.labels.get("istio.io/use-waypoint-canary");
        let namespace = meta.labels.get("istio.io/use-waypoint-canary-namespace");
        if let Some(name) = canary {
            used.insert(format!("{}/{name}", namespace.map_or(own, String::as_str)));
        }
    }
    used
}

/// Hosts that ask and are refused. What a namespace asks for all of them is said once, of the namespace.
fn refused(view: &View<'_>, findings: &mut Findings) {
    let mut said = BTreeSet::new();
    for host in view.registry.all() {
        let refusal = match view.waypoints.of_host(host) {
            Ok(Some(Attachment { canary: Some(refusal), .. })) => {
                let field = "metadata.labels";
                findings.add(Code::BadCanary, &host.meta, field, refusal.message());
                continue;
            }
            Ok(_) => continue,
            Err(refusal) => refusal,
        };
        let (code, gateway) = match &refusal {
            Refusal::NotReady { gateway } => (Code::WaypointNotReady, gateway),
            Refusal::Denied { gateway } => (Code::WaypointDenied, gateway),
            Refusal::Unsupported { gateway } => (Code::WaypointForOthers, gateway),
            Refusal::CrossNamespace { gateway } => (Code::WaypointElsewhere, gateway),
            Refusal::CanaryWeight { .. } | Refusal::CanarySame { .. } => continue,
        };
        // That it is not there has been said; and without pods none can be ready.
        let is_there = view.gateway_named(gateway).is_some();
        if !is_there || (code == Code::WaypointNotReady && !view.has_pods()) {
            continue;
        }
        let own = named(&host.meta, &host.meta.namespace).is_some();
        let mut namespaces = view.manifests.namespaces.iter();
        let namespace = namespaces.find(|one| *one.meta.name == *host.meta.namespace);
        let meta = match namespace {
            Some(namespace) if !own => &namespace.meta,
            _ => &host.meta,
        };
        if said.insert((meta.title(), code)) {
            findings.add(code, meta, "metadata.labels", refusal.message());
        }
    }
}

/// Pods that ask by labels of their own: a namespace's label may be meant for services only.
fn workloads(view: &View<'_>, findings: &mut Findings) {
    let pods = view.manifests.pods.iter().map(|pod| &pod.meta);
    let entries = view.manifests.workload_entries.iter().map(|entry| &entry.meta);
    for meta in pods.chain(entries) {
        let Some((namespace, name)) = named(meta, &meta.namespace) else { continue };
        let Some(gateway) = view.gateway(&namespace, &name) else { continue };
        let types = gateway.meta.labels.get(WAYPOINT_FOR).map_or("service", String::as_str);
        if !matches!(types, "workload" | "all") {
            let reason = format!("{} is for `{types}`, not for pods", gateway.meta.title());
            findings.add(Code::WaypointForOthers, meta, "metadata.labels", reason);
        }
    }
}

fn check_gateway(meta: &Meta, spec: &Gateway, findings: &mut Findings) {
    let types = meta.labels.get(WAYPOINT_FOR).map(String::as_str);
    if let Some(types) = types
        && !matches!(types, "service" | "workload" | "all" | "none")
    {
        let reason = format!("{WAYPOINT_FOR}: `{types}` is none of service, workload, all, none");
        findings.add(Code::UnknownValue, meta, "metadata.labels", reason);
    }
    // Behind a daemon it is handed connections at another port.
    let handed = meta.annotations.contains_key("ambient.istio.io/waypoint-inbound-binding");
    let tunnels = spec.listeners.iter().any(|listener| listener.protocol == "HBONE");
    if !handed && !tunnels {
        let reason = "no listener has the protocol HBONE";
        findings.add(Code::NoTunnelListener, meta, "spec.listeners", reason);
    }
}
