//! What each part of a waypoint's configuration comes from.
//!
//! In: a [`Context`]. Out: [`Origin`]s for chains and their routes, clusters, assignments and extensions, by the names
//! that they have in the configuration. What is the same for every waypoint (its outer listeners, tunnels) comes from
//! its Gateway.

use proto::envoy::envoy::config::route::v3::{Route, route_match::PathSpecifier};

use super::{
    ChainKind, Context, chains, clusters, context::inbound_cluster, policy::Place, routes,
    telemetry,
};
use crate::{
    compile::{
        origins::{Origin, Source},
        registry::{Host, Member, Port},
    },
    manifests::Meta,
};

const MAIN: &str = "main_internal";

/// All of them.
pub(super) fn origins(context: &Context<'_>) -> Vec<Origin> {
    let mut origins = Vec::new();
    let gateway = Source::of(&context.gateway.meta, "is the waypoint");
    origins.push(Origin {
        of: "listener",
        name: MAIN.to_owned(),
        part: String::new(),
        sources: vec![gateway],
    });
    for host in &context.hosts {
        for port in chains::served(host) {
            for kind in chains::kinds(context, port) {
                add_chain(context, host, port, *kind, &mut origins);
            }
        }
    }
    add_clusters(context, &mut origins);
    origins
}

fn add_chain(
    context: &Context<'_>,
    host: &Host,
    port: &Port,
    kind: ChainKind,
    origins: &mut Vec<Origin>,
) {
    let chain = inbound_cluster(host, port, kind, "");
    let mut sources = vec![Source::of(&host.meta, "is the host")];
    let place = Place::of(context, Some(host));
    let mut add = |meta: &Meta, role| sources.push(Source::of(meta, role));
    let manifests = context.manifests;
    for one in place.select(&manifests.authorization_policies) {
        add(&one.meta, "says who may do what");
    }
    if kind == ChainKind::Http {
        for one in place.select(&manifests.request_authentications) {
            add(&one.meta, "says whose tokens count");
        }
    }
    for one in place.select(&manifests.wasm_plugins) {
        add(&one.meta, "is code in it");
    }
    for one in place.select(&manifests.traffic_extensions) {
        add(&one.meta, "is code in it");
    }
    for one in telemetry::objects(context, Some(host)) {
        add(&one.meta, "says what is told of it");
    }
    if kind == ChainKind::Tcp {
        for meta in routes::origins_of_connections(context, host) {
            add(meta, "says where connections go");
        }
    }
    let part = format!("chain {chain}");
    origins.push(Origin { of: "listener", name: MAIN.to_owned(), part, sources });
    if kind == ChainKind::Http {
        for (i, (route, meta)) in routes::origins(context, host, port).into_iter().enumerate() {
            origins.push(Origin {
                of: "listener",
                name: MAIN.to_owned(),
                part: format!("chain {chain}, route {i} {}", described(&route)),
                sources: vec![Source::of(meta, "is it")],
            });
        }
    }
}

/// Its name, and the path it is for.
fn described(route: &Route) -> String {
    let path = route.r#match.as_ref().and_then(|matched| matched.path_specifier.as_ref());
    let path = match path {
        Some(PathSpecifier::Prefix(path)) => format!("{path}*"),
        Some(PathSpecifier::PathSeparatedPrefix(path)) => format!("{path}/*"),
        Some(PathSpecifier::Path(path)) => path.clone(),
        Some(PathSpecifier::SafeRegex(matcher)) => matcher.regex.clone(),
        Some(PathSpecifier::ConnectMatcher(_) | PathSpecifier::PathMatchPolicy(_)) | None => {
            String::new()
        }
    };
    if route.name.is_empty() { path } else { format!("{} {path}", route.name) }
}

fn add_clusters(context: &Context<'_>, origins: &mut Vec<Origin>) {
    for to in clusters::destinations(context) {
        let mut sources = vec![Source::of(&to.host.meta, "is the host")];
        let traffic = context.rules.traffic(to.host, to.port, to.subset, to.side());
        let rules = traffic.origin.into_iter().chain(traffic.tls_origin);
        sources.extend(rules.map(|meta| Source::of(meta, "says how to connect")));
        let name = to.name();
        let part = String::new();
        origins.push(Origin { of: "cluster", name: name.clone(), part: part.clone(), sources });
        let members = context.registry.members(to.host).iter();
        let mut sources: Vec<_> =
            members.map(|member| Source::of(meta_of(member), "is behind it")).collect();
        sources.dedup();
        origins.push(Origin { of: "endpoint", name, part, sources });
    }
}

fn meta_of(member: &Member) -> &Meta {
    match member {
        Member::Pod(pod) | Member::Listed(pod, ..) => &pod.meta,
        Member::Foreign(slice, _) => &slice.meta,
        Member::Entry(vm) => &vm.object.meta,
        Member::Inline(entry, _) | Member::Name(entry) => &entry.meta,
    }
}
