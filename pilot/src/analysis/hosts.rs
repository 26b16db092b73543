//! Hosts that cannot be reached, or that are reached in the place of others.
//!
//! In: Services, ServiceEntries, WorkloadEntries, and the hosts that rules are for. Out: findings.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{Code, Findings, view::View};
use crate::{
    compile::registry::{Host, Member, Origin, Protocol, Resolution},
    manifests::{Meta, TargetPort},
};

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    for host in view.registry.all() {
        // An API server gives its own Service its endpoints.
        if (&*host.meta.namespace, &*host.meta.name) != ("default", "kubernetes") {
            endpoints(view, host, findings);
        }
        if let Origin::Entry(_) = host.origin {
            entry(view, host, findings);
        }
    }
    rules_for_nobody(view, findings);
    taken(view, findings);
    shared_addresses(view, findings);
}

/// What is behind a host.
fn endpoints(view: &View<'_>, host: &Host, findings: &mut Findings) {
    let members = view.registry.members(host);
    let expected = match host.resolution {
        Resolution::Endpoints | Resolution::Headless => true,
        Resolution::Dns | Resolution::DnsRoundRobin => true,
        Resolution::DynamicDns | Resolution::Passthrough => false,
    };
    let known = match &host.origin {
        Origin::Kubernetes(_) => view.has_pods(),
        Origin::Entry(entry) => entry.spec.workload_selector.is_none() || view.has_pods(),
    };
    if members.is_empty() && expected && known {
        let (field, reason) = match &host.origin {
            Origin::Kubernetes(service) if service.spec.selector.is_empty() => {
                ("spec.selector", "there is none, and no EndpointSlice of the Service")
            }
            Origin::Kubernetes(_) => ("spec.selector", "no pod of the namespace has these labels"),
            Origin::Entry(entry) if entry.spec.workload_selector.is_some() => {
                ("spec.workloadSelector", "no pod or WorkloadEntry has these labels")
            }
            Origin::Entry(_) => ("spec.endpoints", "there are none"),
        };
        return findings.add(Code::NoEndpoints, &host.meta, field, reason);
    }
    if members.is_empty() || !view.has_pods() {
        return;
    }
    for (i, port) in host.ports.iter().enumerate() {
        let TargetPort::Name(name) = &port.target else { continue };
        let listed = members.iter().any(|member| matches!(member, Member::Foreign(..)));
        let leads =
            |member: &Member| member.ports(host).iter().any(|(of_host, _)| *of_host == port.number);
        if !listed && !members.iter().any(leads) {
            let field = format!("spec.ports[{i}].targetPort");
            let reason = format!("no pod behind it has a container port named `{name}`");
            findings.add(Code::NoTargetPort, &host.meta, &field, reason);
        }
    }
}

/// What only ServiceEntries can be.
fn entry(view: &View<'_>, host: &Host, findings: &mut Findings) {
    if host.is_wildcard() && view.guard(host).is_none() {
        let reason = format!("{}: daemons cannot resolve it", host.hostname);
        findings.add(Code::WildcardWithoutWaypoint, &host.meta, "spec.hosts", reason);
    }
    if host.resolution == Resolution::DynamicDns {
        for (i, port) in host.ports.iter().enumerate() {
            if !(port.protocol.is_http() || port.protocol.is_tls()) {
                let field = format!("spec.ports[{i}].protocol");
                let reason = "of a connection whose name is not seen, no name can be resolved";
                findings.add(Code::WildcardTcp, &host.meta, &field, reason);
            }
        }
    }
    let named = host
        .export_to
        .iter()
        .filter(|to| !matches!(to.as_str(), "." | "*" | "~") && **to != *host.meta.namespace);
    let named: Vec<_> = named.cloned().collect();
    if !named.is_empty() && !host.export_to.iter().any(|to| to == "*" || to == "~") {
        let reason = format!("{}: every namespace sees it", named.join(", "));
        findings.add(Code::PartialExport, &host.meta, "spec.exportTo", reason);
    }
}

/// VirtualServices and DestinationRules for hosts that are not there.
fn rules_for_nobody(view: &View<'_>, findings: &mut Findings) {
    // A host below a wildcard that is there is there.
    let is_there = |host: &str, namespace: &str| {
        let hostname = view.full_name(host, namespace);
        !view.matching(&hostname).is_empty()
            || view.registry.all().any(|known| {
                let suffix = known.hostname.strip_prefix('*');
                suffix.is_some_and(|suffix| hostname.ends_with(suffix))
            })
    };
    for service in &view.manifests.virtual_services {
        let gateways = &service.spec.gateways;
        if !gateways.is_empty() && !gateways.iter().any(|gateway| gateway == "mesh") {
            continue;
        }
        for (i, host) in service.spec.hosts.iter().enumerate() {
            if !is_there(host, &service.meta.namespace) {
                let reason = nobody(&view.full_name(host, &service.meta.namespace));
                let field = format!("spec.hosts[{i}]");
                findings.add(Code::NoSuchHost, &service.meta, &field, reason);
            }
        }
    }
    for rule in &view.manifests.destination_rules {
        if !is_there(&rule.spec.host, &rule.meta.namespace) {
            let reason = nobody(&view.full_name(&rule.spec.host, &rule.meta.namespace));
            findings.add(Code::NoSuchHost, &rule.meta, "spec.host", reason);
        }
    }
}

fn nobody(hostname: &str) -> String {
    format!("no Service or ServiceEntry has the host {hostname}")
}

/// Hosts that the registry has from another object of the namespace.
fn taken(view: &View<'_>, findings: &mut Findings) {
    for entry in &view.manifests.service_entries {
        for (i, hostname) in entry.spec.hosts.iter().enumerate() {
            let namespace = &entry.meta.namespace;
            let first = view.registry.find(namespace, hostname);
            if let Some(first) = first.filter(|first| !first.is_of(entry)) {
                let field = format!("spec.hosts[{i}]");
                let reason = format!("{hostname} is the host of {}", first.meta.title());
                findings.add(Code::HostTaken, &entry.meta, &field, reason);
            }
        }
    }
}

/// Of two hosts with one address, a connection to it can mean only one. Services and pods are looked at when they are
/// read.
fn shared_addresses(view: &View<'_>, findings: &mut Findings) {
    let mut owners: HashMap<IpAddr, &Meta> = HashMap::new();
    let services = view.registry.all().filter(|host| matches!(host.origin, Origin::Kubernetes(_)));
    for host in services {
        for ip in host.ips() {
            owners.entry(ip).or_insert(&host.meta);
        }
    }
    for pod in view.manifests.pods.iter().filter(|pod| !pod.spec.host_network) {
        for ip in &pod.spec.addresses {
            owners.entry(*ip).or_insert(&pod.meta);
        }
    }
    let entries = view.registry.all().filter(|host| matches!(host.origin, Origin::Entry(_)));
    for host in entries {
        check_addresses(&mut owners, host, findings);
    }
    for entry in &view.manifests.workload_entries {
        let Ok(ip) = entry.spec.address.parse::<IpAddr>() else { continue };
        // Endpoints of other networks may have the addresses of this one.
        if !entry.spec.network.is_empty() && entry.spec.network != view.registry.network() {
            continue;
        }
        match owners.get(&ip) {
            Some(first) => {
                let reason = format!("{ip} is the address of {}", first.title());
                findings.add(Code::SharedAddress, &entry.meta, "spec.address", reason);
            }
            None => {
                owners.insert(ip, &entry.meta);
            }
        }
    }
}

fn check_addresses<'a>(
    owners: &mut HashMap<IpAddr, &'a Meta>,
    host: &'a Arc<Host>,
    findings: &mut Findings,
) {
    for ip in host.ips() {
        match owners.get(&ip) {
            // The hosts of one entry may share its address.
            Some(first)
                if first.name == host.meta.name && first.namespace == host.meta.namespace => {}
            Some(first) => {
                let reason = format!("{ip} is the address of {}", first.title());
                findings.add(Code::SharedAddress, &host.meta, "spec.addresses", reason);
            }
            None => {
                owners.insert(ip, &host.meta);
            }
        }
    }
}

/// Whether connections to a port are looked into.
pub(super) fn is_of_requests(protocol: Protocol) -> bool {
    protocol.is_http() || protocol == Protocol::Unknown
}
