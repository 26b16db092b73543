//! Who may send what to a host.
//!
//! In: the policies and extensions attached to a waypoint or to the host. Out: the filters that decide, in the order
//! in which they stand in a chain.

mod attached;
mod ext_authz;
mod jwt;
mod matcher;
mod rbac;
mod rule;
#[cfg(test)]
mod rule_tests;
mod wire;

pub(crate) use attached::{Place, Targeted};
pub(crate) use ext_authz::ProviderCluster;

use std::collections::BTreeSet;

use proto::envoy::envoy::{
    config::listener::v3::Filter,
    extensions::filters::network::http_connection_manager::v3::HttpFilter,
};

use super::{
    ChainKind, Context, extensions,
    message::{filter, http_filter},
};
use crate::{
    compile::registry::{Host, Port},
    manifests::{Action, AuthorizationPolicy, Object, extensions::PluginPhase},
};

/// Filters of requests by their place in a chain.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    /// Before all that decides: CUSTOM policies, extensions, tokens, extensions, policies.
    pub before: Vec<HttpFilter>,
    /// After what routes ask for (faults, CORS): extensions that count, and those without a place.
    pub after: Vec<HttpFilter>,
}

/// For requests to one port of a host, or to pods directly.
pub(crate) fn http_filters(
    context: &Context<'_>,
    host: Option<&Host>,
    port: Option<&Port>,
) -> Filters {
    let place = Place::of(context, host);
    let policies = Policies::of(context, &place);
    let extensions = extensions::http(context, &place, port);
    let find = |service: &str, port| provider_cluster(context, service, port);
    let (config, kind) = (context.config, ChainKind::Http);
    let named = |(name, config): (&str, _)| http_filter(name, config);

    let custom = ext_authz::filters(&policies.custom, config, kind, &find);
    let mut before: Vec<_> = custom.into_iter().map(named).collect();
    before.extend(extensions.of(PluginPhase::Authn));
    let trusting: Vec<_> = place.select(&context.manifests.request_authentications).collect();
    let tokens = jwt::filter(&trusting, &context.config.keys);
    before.extend(tokens.map(|tokens| http_filter(jwt::JWT_AUTHN, tokens)));
    before.extend(extensions.of(PluginPhase::Authz));
    before.extend(rbac::filters(&policies.own, config, kind).into_iter().map(named));
    let after =
        extensions.of(PluginPhase::Stats).chain(extensions.of(PluginPhase::Unspecified)).collect();
    Filters { before, after }
}

/// For connections to one port of a host, or to pods directly.
pub(crate) fn network_filters(
    context: &Context<'_>,
    host: Option<&Host>,
    port: Option<&Port>,
) -> Vec<Filter> {
    let place = Place::of(context, host);
    let policies = Policies::of(context, &place);
    let extensions = extensions::network(context, &place, port);
    let find = |service: &str, port| provider_cluster(context, service, port);
    let (config, kind) = (context.config, ChainKind::Tcp);
    let named = |(name, config): (&str, _)| filter(name, config);

    let custom = ext_authz::filters(&policies.custom, config, kind, &find);
    let mut filters: Vec<_> = custom.into_iter().map(named).collect();
    filters.extend(extensions.of(PluginPhase::Authn).chain(extensions.of(PluginPhase::Authz)));
    filters.extend(rbac::filters(&policies.own, config, kind).into_iter().map(named));
    filters
        .extend(extensions.of(PluginPhase::Stats).chain(extensions.of(PluginPhase::Unspecified)));
    filters
}

/// The AuthorizationPolicies of a place, by who decides.
struct Policies<'a> {
    /// Another service.
    custom: Vec<&'a Object<AuthorizationPolicy>>,
    /// The proxy.
    own: Vec<&'a Object<AuthorizationPolicy>>,
}

impl<'a> Policies<'a> {
    fn of(context: &Context<'a>, place: &Place<'_>) -> Self {
        let all = place.select(&context.manifests.authorization_policies);
        let (custom, own): (Vec<_>, _) =
            all.partition(|policy| policy.spec.action == Action::Custom);
        // Nobody is asked about a policy under trial.
        let custom = custom.into_iter().filter(|policy| !policy.spec.dry_run).collect();
        Self { custom, own }
    }
}

/// Where a provider's service is: `host`, or `namespace/host`.
pub(crate) fn provider_cluster(
    context: &Context<'_>,
    service: &str,
    port: u32,
) -> Option<ProviderCluster> {
    let host = provider_host(context, service)?;
    host.port(u16::try_from(port).ok()?)?;
    Some(ProviderCluster {
        host: host.hostname.to_string(),
        cluster: format!("outbound|{port}||{}", host.hostname),
    })
}

fn provider_host<'a>(context: &Context<'a>, service: &str) -> Option<&'a Host> {
    let (namespace, hostname) = match service.split_once('/') {
        Some((namespace, hostname)) => (Some(namespace), hostname),
        None => (None, service),
    };
    let mut hosts = context.registry.by_hostname(hostname);
    hosts.find(|host| namespace.is_none_or(|name| *host.meta.namespace == *name)).map(AsRef::as_ref)
}

/// The services that the mesh's providers are: namespace and host name.
pub(crate) fn referenced(context: &Context<'_>) -> BTreeSet<(String, String)> {
    let services = context.config.extension_providers.iter().filter_map(|one| one.kind.service());
    let hosts = services.filter_map(|(service, _)| provider_host(context, service));
    hosts.map(|host| (host.meta.namespace.to_string(), host.hostname.to_string())).collect()
}
