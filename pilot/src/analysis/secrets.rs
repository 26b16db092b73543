//! What policies, providers and certificates refer to and is not there.
//!
//! In: policies with targets or providers, and what names Secrets, ConfigMaps and ServiceAccounts. Out: findings. No
//! Secret is looked into.

use std::collections::HashSet;

use super::{
    Code, Findings,
    view::{View, is_among},
};
use crate::{
    compile::mesh_config::ProviderKind,
    manifests::{
        Action, Meta, TargetRef,
        gateway_api::BackendTlsPolicy,
        networking::{ClientTls, DestinationRule},
    },
};

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    targets(view, findings);
    providers(view, findings);
    secrets(view, findings);
    service_accounts(view, findings);
    for policy in &view.manifests.backend_tls_policies {
        check_tls_policy(view, &policy.meta, &policy.spec, findings);
    }
}

/// Every object that names targets, with them.
pub(super) fn targeting<'a>(view: &View<'a>) -> Vec<(&'a Meta, Vec<&'a TargetRef>)> {
    let all = view.manifests;
    let mut found: Vec<(&Meta, Vec<&TargetRef>)> = Vec::new();
    for one in &all.authorization_policies {
        let targets = one.spec.target_ref.iter().chain(one.spec.target_refs.iter().flatten());
        found.push((&one.meta, targets.collect()));
    }
    for one in &all.request_authentications {
        found.push((&one.meta, one.spec.target_ref.iter().chain(&one.spec.target_refs).collect()));
    }
    for one in &all.telemetries {
        found.push((&one.meta, one.spec.target_ref.iter().chain(&one.spec.target_refs).collect()));
    }
    for one in &all.wasm_plugins {
        found.push((&one.meta, one.spec.target_ref.iter().chain(&one.spec.target_refs).collect()));
    }
    for one in &all.traffic_extensions {
        found.push((&one.meta, one.spec.target_refs.iter().collect()));
    }
    for one in &all.envoy_filters {
        found.push((&one.meta, one.spec.target_refs.iter().collect()));
    }
    found
}

fn targets(view: &View<'_>, findings: &mut Findings) {
    for (meta, targets) in targeting(view) {
        for (i, target) in targets.into_iter().enumerate() {
            if view.targeted(target, &meta.namespace).is_none() {
                let field = format!("spec.targetRefs[{i}]");
                let namespace = &meta.namespace;
                let reason = format!("there is no {} {namespace}/{}", target.kind, target.name);
                findings.add(Code::NoTarget, meta, &field, reason);
            }
        }
    }
}

fn providers(view: &View<'_>, findings: &mut Findings) {
    for policy in &view.manifests.authorization_policies {
        if policy.spec.action != Action::Custom || !policy.spec.is_targeted() {
            continue;
        }
        let name = policy.spec.provider.as_ref().map_or("", |provider| &provider.name);
        let fault = provider_fault(view, name, |kind| {
            matches!(kind, ProviderKind::ExtAuthzGrpc(_) | ProviderKind::ExtAuthzHttp(_))
        });
        if let Some(reason) = fault {
            let reason = format!("{reason}: everything that matches is denied");
            findings.add(Code::NoProvider, &policy.meta, "spec.provider.name", reason);
        }
    }
    for telemetry in &view.manifests.telemetries {
        let spec = &telemetry.spec;
        let tracing = spec.tracing.iter().map(|one| ("tracing", &one.providers));
        let metrics = spec.metrics.iter().map(|one| ("metrics", &one.providers));
        let logging = spec.access_logging.iter().map(|one| ("accessLogging", &one.providers));
        for (list, providers) in tracing.chain(metrics).chain(logging) {
            for provider in providers {
                if let Some(reason) = provider_fault(view, &provider.name, |_| true) {
                    let field = format!("spec.{list}");
                    findings.add(Code::NoProvider, &telemetry.meta, &field, reason);
                }
            }
        }
    }
}

fn provider_fault(
    view: &View<'_>,
    name: &str,
    fits: impl Fn(&ProviderKind) -> bool,
) -> Option<String> {
    let Some(provider) = view.config.provider(name) else {
        return Some(format!("meshConfig has no extension provider `{name}`"));
    };
    if !fits(&provider.kind) {
        return Some(format!("extension provider `{name}` is of another kind"));
    }
    let (service, port) = provider.kind.service()?;
    let (namespace, hostname) = match service.split_once('/') {
        Some((namespace, hostname)) => (Some(namespace), hostname),
        None => (None, service),
    };
    let mut hosts = view.registry.by_hostname(hostname);
    let host = hosts.find(|host| namespace.is_none_or(|name| *host.meta.namespace == *name));
    match host {
        None => Some(format!("extension provider `{name}`: there is no host {hostname}")),
        Some(host) if u16::try_from(port).ok().and_then(|port| host.port(port)).is_none() => {
            Some(format!("extension provider `{name}`: {hostname} has no port {port}"))
        }
        Some(_) => None,
    }
}

fn secrets(view: &View<'_>, findings: &mut Findings) {
    if view.manifests.secrets.is_empty() {
        return;
    }
    let mut check = |meta: &Meta, field: &str, namespace: &str, name: &str| {
        let there = view.manifests.secrets.iter().map(|secret| &secret.meta);
        // The name may carry a scheme, and a file of roots has a Secret of its own.
        let name = name.trim_start_matches("kubernetes://");
        if !name.is_empty() && !is_among(there, namespace, name) {
            let reason = format!("there is no Secret {namespace}/{name}");
            findings.add(Code::NoSecret, meta, field, reason);
        }
    };
    for rule in &view.manifests.destination_rules {
        for (field, tls) in client_tls(&rule.spec) {
            check(&rule.meta, &field, &rule.meta.namespace, &tls.credential_name);
        }
    }
    for gateway in &view.manifests.gateways {
        for (i, listener) in gateway.spec.listeners.iter().enumerate() {
            let tls = listener.tls.iter().flat_map(|tls| &tls.certificate_refs).enumerate();
            for (j, reference) in tls {
                let field = format!("spec.listeners[{i}].tls.certificateRefs[{j}]");
                let namespace = reference.namespace.as_deref().unwrap_or(&gateway.meta.namespace);
                check(&gateway.meta, &field, namespace, &reference.name);
            }
        }
    }
    for plugin in &view.manifests.wasm_plugins {
        let name = &plugin.spec.image_pull_secret;
        check(&plugin.meta, "spec.imagePullSecret", &plugin.meta.namespace, name);
    }
}

/// Where a DestinationRule says how TLS is spoken.
pub(super) fn client_tls(rule: &DestinationRule) -> Vec<(String, &ClientTls)> {
    let mut all = Vec::new();
    let policies = std::iter::once(("spec.trafficPolicy".to_owned(), &rule.traffic_policy));
    let subsets = rule.subsets.iter().enumerate();
    let subsets = subsets
        .map(|(i, subset)| (format!("spec.subsets[{i}].trafficPolicy"), &subset.traffic_policy));
    for (field, policy) in policies.chain(subsets) {
        let Some(policy) = policy else { continue };
        all.extend(policy.tls.iter().map(|tls| (format!("{field}.tls"), tls)));
        for (i, port) in policy.port_level_settings.iter().enumerate() {
            let field = format!("{field}.portLevelSettings[{i}].tls");
            all.extend(port.tls.iter().map(|tls| (field.clone(), tls)));
        }
    }
    all
}

/// Kubernetes makes the account `default` by itself.
fn service_accounts(view: &View<'_>, findings: &mut Findings) {
    if view.manifests.service_accounts.is_empty() {
        return;
    }
    let there: HashSet<(&str, &str)> = view
        .manifests
        .service_accounts
        .iter()
        .map(|account| (&*account.meta.namespace, &*account.meta.name))
        .collect();
    for pod in &view.manifests.pods {
        let account = (&*pod.meta.namespace, &*pod.spec.service_account);
        if account.1 != "default" && !there.contains(&account) {
            let reason = format!("there is no ServiceAccount {}/{}", account.0, account.1);
            let field = "spec.serviceAccountName";
            findings.add(Code::NoServiceAccount, &pod.meta, field, reason);
        }
    }
}

fn check_tls_policy(
    view: &View<'_>,
    meta: &Meta,
    policy: &BackendTlsPolicy,
    findings: &mut Findings,
) {
    let namespace = &*meta.namespace;
    for (i, target) in policy.target_refs.iter().enumerate() {
        let hosts = match target.kind.as_str() {
            "ServiceEntry" => view.of_entry(namespace, &target.name),
            _ => view.of_service(namespace, &target.name),
        };
        let field = format!("spec.targetRefs[{i}]");
        if hosts.is_empty() {
            let reason = format!("there is no {} {namespace}/{}", target.kind, target.name);
            findings.add(Code::NoTarget, meta, &field, reason);
        } else if let Some(section) = &target.section_name
            && !hosts.iter().any(|host| host.ports.iter().any(|port| *port.name == **section))
        {
            let reason = format!("{} has no port named `{section}`", target.name);
            findings.add(Code::NoTarget, meta, &format!("{field}.sectionName"), reason);
        }
    }
    for (i, reference) in policy.validation.ca_certificate_refs.iter().enumerate() {
        let mut maps = view.manifests.config_maps.iter();
        let there = maps.any(|map| {
            *map.meta.namespace == *namespace
                && *map.meta.name == *reference.name
                && reference.kind == "ConfigMap"
                && map.spec.data.contains_key("ca.crt")
        });
        if !there {
            let field = format!("spec.validation.caCertificateRefs[{i}]");
            let reason = format!(
                "there is no ConfigMap {namespace}/{} with ca.crt: no certificate is believed",
                reference.name
            );
            findings.add(Code::NoRoots, meta, &field, reason);
        }
    }
}
