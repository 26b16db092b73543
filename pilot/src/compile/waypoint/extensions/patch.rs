//! EnvoyFilters: what users change in a waypoint's configuration once it is made.
//!
//! In: the EnvoyFilters that name the waypoint's Gateway, and its configuration. Out: the configuration with their
//! patches, in order: of requests' and connections' filters, virtual hosts and routes, and further clusters. What a
//! patch matches is looked for among the chains for inbound traffic, which all of a waypoint's are.

use prost::Message;
use proto::{
    envoy::envoy::config::{
        cluster::v3::Cluster,
        listener::v3::{Filter, Listener, filter},
        route::v3::{Route, VirtualHost},
    },
    envoy::envoy::extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier,
    },
};
use serde_json::Value;

use super::super::{
    Context, WaypointConfig,
    message::any,
    policy::{Place, Targeted},
};
use super::merge::{merge, read};
use crate::manifests::{
    TargetRef,
    extensions::{
        ConfigPatch, EnvoyFilter, FilterMatch, ListenerMatch, PatchContext, PatchOperation,
        RouteConfigurationMatch,
    },
};

/// The filter that knows of requests.
const MANAGER: &str = "envoy.filters.network.http_connection_manager";
/// The listener that has the chains of services.
const SERVICES: &str = "main_internal";

impl Targeted for EnvoyFilter {
    fn targets(&self) -> impl Iterator<Item = &TargetRef> {
        self.target_refs.iter()
    }
}

/// Applies every patch that is for this waypoint.
pub(crate) fn apply(context: &Context<'_>, config: &mut WaypointConfig) {
    let place = Place::of(context, None);
    let mut filters: Vec<_> = place.select(&context.manifests.envoy_filters).collect();
    filters.sort_by_key(|one| {
        let in_root = *one.meta.namespace == *place.root_namespace;
        (one.spec.priority, !in_root, one.meta.seniority())
    });
    let patches = filters.into_iter().flat_map(|one| &one.spec.config_patches);
    for patch in patches.filter(|patch| is_inbound(patch)) {
        apply_one(patch, config);
    }
}

fn is_inbound(patch: &ConfigPatch) -> bool {
    match patch.r#match.as_ref().map_or(PatchContext::Any, |one| one.context) {
        PatchContext::Any | PatchContext::SidecarInbound => true,
        PatchContext::SidecarOutbound | PatchContext::Gateway | PatchContext::Waypoint => false,
    }
}

fn apply_one(patch: &ConfigPatch, config: &mut WaypointConfig) {
    let Some((operation, value)) = patch.patch.as_ref().map(|one| (one.operation, &one.value))
    else {
        return;
    };
    let listener = patch.r#match.as_ref().and_then(|one| one.listener.as_ref());
    let routes = patch.r#match.as_ref().and_then(|one| one.route_configuration.as_ref());
    match patch.apply_to.as_str() {
        "CLUSTER" if operation == PatchOperation::Add => {
            let Some(new) = value.as_ref().and_then(read::<Cluster>) else { return };
            if !new.name.is_empty() && config.clusters.iter().all(|one| one.name != new.name) {
                config.clusters.push(new);
            }
        }
        "NETWORK_FILTER" => {
            for filters in chains(config, listener) {
                let name = listener.and_then(filter_of).map(|one| one.name.as_str());
                change(filters, name, operation, value.as_ref(), |filter| &filter.name);
            }
        }
        "HTTP_FILTER" => managers(config, listener, |manager| {
            let sub = listener.and_then(filter_of).and_then(|one| one.sub_filter.as_ref());
            let name = sub.map(|sub| sub.name.as_str());
            let filters = &mut manager.http_filters;
            change(filters, name, operation, value.as_ref(), |filter: &HttpFilter| &filter.name);
        }),
        "VIRTUAL_HOST" if operation == PatchOperation::Merge => {
            virtual_hosts(config, routes, |host| merge_into(host, value.as_ref()));
        }
        "HTTP_ROUTE" if operation == PatchOperation::Merge => {
            virtual_hosts(config, routes, |host| {
                for route in host.routes.iter_mut().filter(|route| is_route(routes, route)) {
                    merge_into(route, value.as_ref());
                }
            });
        }
        // Of the rest istiod applies nothing to waypoints.
        _ => {}
    }
}

fn filter_of(listener: &ListenerMatch) -> Option<&FilterMatch> {
    listener.filter_chain.as_ref()?.filter.as_ref()
}

/// The filters of each chain that is matched.
fn chains<'a>(
    config: &'a mut WaypointConfig,
    wanted: Option<&'a ListenerMatch>,
) -> impl Iterator<Item = &'a mut Vec<Filter>> {
    let listeners = config.listeners.iter_mut().filter(move |listener: &&mut Listener| {
        wanted.is_none_or(|wanted| wanted.name.is_empty() || wanted.name == listener.name)
    });
    let name = wanted.and_then(|wanted| wanted.filter_chain.as_ref()).map(|one| one.name.as_str());
    let chains = listeners.flat_map(|listener| &mut listener.filter_chains);
    chains
        .filter(move |chain| name.is_none_or(|name| name.is_empty() || name == chain.name))
        .map(|chain| &mut chain.filters)
}

/// Changes the filter of each chain that knows of requests.
fn managers(
    config: &mut WaypointConfig,
    wanted: Option<&ListenerMatch>,
    mut change: impl FnMut(&mut HttpConnectionManager),
) {
    for filters in chains(config, wanted) {
        for filter in filters.iter_mut().filter(|filter| filter.name == MANAGER) {
            let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type else {
                continue;
            };
            let Ok(mut manager) = HttpConnectionManager::decode(&*config.value) else { continue };
            change(&mut manager);
            *config = any(&manager);
        }
    }
}

fn virtual_hosts(
    config: &mut WaypointConfig,
    wanted: Option<&RouteConfigurationMatch>,
    mut change: impl FnMut(&mut VirtualHost),
) {
    let services = ListenerMatch { name: SERVICES.to_owned(), ..ListenerMatch::default() };
    let host_name = wanted.and_then(|wanted| wanted.vhost.as_ref()).map(|host| &host.name);
    managers(config, Some(&services), |manager| {
        let Some(RouteSpecifier::RouteConfig(routes)) = &mut manager.route_specifier else {
            return;
        };
        if wanted.is_some_and(|wanted| !wanted.name.is_empty() && wanted.name != routes.name) {
            return;
        }
        for host in &mut routes.virtual_hosts {
            if host_name.is_none_or(|name| name.is_empty() || *name == host.name) {
                change(host);
            }
        }
    });
}

/// Whether a route is matched. One that sends nobody anywhere takes nothing about where to.
fn is_route(wanted: Option<&RouteConfigurationMatch>, route: &Route) -> bool {
    use proto::envoy::envoy::config::route::v3::route::Action;
    let wanted = wanted.and_then(|wanted| wanted.vhost.as_ref()?.route.as_ref());
    let Some(wanted) = wanted else { return true };
    let action = match &route.action {
        Some(Action::Route(_)) => "ROUTE",
        Some(Action::Redirect(_)) => "REDIRECT",
        Some(Action::DirectResponse(_)) => "DIRECT_RESPONSE",
        Some(Action::FilterAction(_) | Action::NonForwardingAction(_)) | None => "",
    };
    (wanted.name.is_empty() || wanted.name == route.name)
        && matches!(wanted.action.as_str(), "" | "ANY") | (wanted.action == action)
}

/// A list of filters after one operation on those called `name`.
fn change<M: Message + Default + prost::Name + Clone>(
    filters: &mut Vec<M>,
    name: Option<&str>,
    operation: PatchOperation,
    value: Option<&Value>,
    name_of: impl Fn(&M) -> &str,
) {
    let name = name.filter(|name| !name.is_empty());
    let found = filters.iter().position(|filter| Some(name_of(filter)) == name);
    // What is to stand beside another filter has no place in a chain without it.
    if name.is_some() && found.is_none() {
        return;
    }
    let new = value.and_then(read::<M>);
    match (operation, new) {
        (PatchOperation::InsertFirst, Some(new)) => filters.insert(0, new),
        (PatchOperation::InsertBefore, Some(new)) => filters.insert(found.unwrap_or(0), new),
        (PatchOperation::InsertAfter, Some(new)) => {
            filters.insert(found.map_or(filters.len(), |i| i + 1), new);
        }
        (PatchOperation::Add, Some(new)) => filters.push(new),
        (PatchOperation::Replace, Some(new)) => {
            if let Some(i) = found {
                filters[i] = new;
            }
        }
        (PatchOperation::Remove, _) => {
            if let Some(i) = found {
                filters.remove(i);
            }
        }
        (PatchOperation::Merge, _) => {
            if let Some(i) = found {
                merge_into(&mut filters[i], value);
            }
        }
        _ => {}
    }
}

fn merge_into<M: Message + Default + prost::Name>(message: &mut M, patch: Option<&Value>) {
    if let Some(merged) = patch.and_then(|patch| merge(message, patch)) {
        *message = merged;
    }
}
