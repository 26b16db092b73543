//! What a waypoint counts, logs and traces.
//!
//! In: the Telemetry resources and the mesh's defaults. Out: access logs, tracing and the filters that count. Of several
//! resources the more special one wins, setting by setting: the root namespace's, the waypoint's, the service's
//! namespace's, then those that name the Gateway or the service.

mod log_format;
mod logs;
mod metrics;
mod tags;
mod tracing;

use proto::envoy::envoy::{
    config::{
        accesslog::v3::AccessLog, core::v3::GrpcService, core::v3::grpc_service,
        listener::v3::Filter,
    },
    extensions::filters::network::http_connection_manager::v3::{
        HttpFilter, http_connection_manager::Tracing,
    },
};

use super::{
    ChainKind, Context,
    message::{filter, http_filter},
    policy::{Place, ProviderCluster, Targeted},
};
use crate::{
    compile::registry::Host,
    manifests::{
        Manifests, Object, Selector, TargetRef,
        telemetry::{self as written, WorkloadMode},
    },
};

/// What is seen of requests and connections to one host.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    /// Of requests.
    pub http_logs: Vec<AccessLog>,
    /// Of connections.
    pub tcp_logs: Vec<AccessLog>,
    /// Of requests.
    pub tracing: Option<Tracing>,
    /// Whether the identifier of a request says if it is traced.
    pub samples_by_request_id: bool,
    /// Count requests.
    pub http_stats: Vec<HttpFilter>,
    /// Count connections.
    pub tcp_stats: Vec<Filter>,
}

/// Access logs of what no chain of a service sees.
#[derive(Debug, Default)]
pub(crate) struct AroundLogs {
    /// Connections that no chain takes.
    pub unmatched: Vec<AccessLog>,
    /// Tunnels that could not be opened.
    pub failed: Vec<AccessLog>,
    /// Tunnels that were refused.
    pub refused: Vec<AccessLog>,
}

impl Targeted for written::Telemetry {
    fn targets(&self) -> impl Iterator<Item = &TargetRef> {
        self.target_ref.iter().chain(&self.target_refs)
    }
}

/// For one host, or for pods that are reached directly.
pub(crate) fn telemetry(context: &Context<'_>, host: Option<&Host>) -> Telemetry {
    let levels = levels(context, host);
    let traced = tracing::Traced::of(&levels, context.config);
    let mut stats = Vec::new();
    if context.client.has_istio_extensions() {
        stats = metrics::configs(&levels, context.config);
    }
    let logged = logs::Logged::of(&levels, context.config);
    Telemetry {
        http_logs: logged.logs(context, ChainKind::Http, None),
        tcp_logs: logged.logs(context, ChainKind::Tcp, None),
        tracing: traced.tracing(context),
        samples_by_request_id: traced.samples_by_request_id(),
        http_stats: stats.iter().map(|one| http_filter(metrics::STATS, one.clone())).collect(),
        tcp_stats: stats.into_iter().map(|one| filter(metrics::STATS, one)).collect(),
    }
}

/// For the listeners around those of services.
pub(crate) fn around(context: &Context<'_>) -> AroundLogs {
    let levels = levels(context, None);
    let logged = logs::Logged::of(&levels, context.config);
    AroundLogs {
        unmatched: logged.logs(context, ChainKind::Tcp, Some(logs::with_flag("NR"))),
        failed: logged.logs(context, ChainKind::Tcp, Some(logs::with_flag("UF"))),
        refused: logged.logs(context, ChainKind::Http, Some(logs::with_error_status())),
    }
}

/// The resources that count for a host, the most general one first.
fn levels<'a>(context: &Context<'a>, host: Option<&Host>) -> Vec<&'a written::Telemetry> {
    objects(context, host).into_iter().map(|one| &one.spec).collect()
}

/// Those resources themselves.
pub(super) fn objects<'a>(
    context: &Context<'a>,
    host: Option<&Host>,
) -> Vec<&'a Object<written::Telemetry>> {
    let place = Place::of(context, host);
    let manifests: &'a Manifests = context.manifests;
    let all = &manifests.telemetries;
    let mut namespaces = vec![place.root_namespace];
    let service = place.service.map(|service| service.namespace);
    for namespace in std::iter::once(place.namespace).chain(service) {
        if !namespaces.contains(&namespace) {
            namespaces.push(namespace);
        }
    }
    let general = namespaces.into_iter().filter_map(|namespace| {
        let own = all.iter().map(AsRef::as_ref).filter(|one: &&Object<written::Telemetry>| {
            *one.meta.namespace == *namespace
                && one.spec.targets().next().is_none()
                && Selector::labels(one.spec.selector.as_ref()).is_none()
        });
        own.min_by_key(|one| one.meta.seniority())
    });
    let mut levels: Vec<_> = general.collect();
    // What names the service is more special than what names its waypoint.
    let directly = Place { service: None, ..place };
    for (place, excluding) in [(directly, false), (place, true)] {
        let mut special: Vec<_> = place.select(all).collect();
        if excluding {
            let gateways: Vec<_> = directly.select(all).map(|one| &one.meta.place).collect();
            special.retain(|one| !gateways.contains(&&one.meta.place));
        }
        // The oldest counts most: it is merged last.
        special.sort_by(|a, b| b.meta.seniority().cmp(&a.meta.seniority()));
        levels.extend(special);
    }
    levels
}

/// Whether something counts on the side of the server, which is where a waypoint stands.
fn is_of_servers(mode: Option<WorkloadMode>) -> bool {
    match mode {
        Some(WorkloadMode::Client) => false,
        Some(WorkloadMode::Server | WorkloadMode::ClientAndServer) | None => true,
    }
}

/// A provider that is reached by gRPC.
fn by_grpc(to: ProviderCluster) -> GrpcService {
    let target = grpc_service::EnvoyGrpc {
        cluster_name: to.cluster,
        authority: to.host,
        ..grpc_service::EnvoyGrpc::default()
    };
    GrpcService {
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)),
        ..GrpcService::default()
    }
}
