//! Pods and hand-written endpoints, as workloads.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use proto::workload::{
    Locality, NetworkMode, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
};

use super::{
    MeshConfig,
    attachment::Waypoints,
    authorization::Policies,
    peer_authentication::Modes,
    registry::{Enrolled, is_enrolled},
    service::{Services, slice_ports},
};
use crate::manifests::{EndpointSlice, Labels, Manifests, Namespace, Object, Pod, PodState};

/// Everything a workload is made of.
pub(crate) struct Workloads<'a> {
    pub manifests: &'a Manifests,
    pub config: &'a MeshConfig,
    pub policies: &'a Policies,
    pub modes: &'a Modes,
    pub services: &'a Services<'a>,
    pub waypoints: &'a Waypoints<'a>,
}

impl Workloads<'_> {
    /// The messages, in no order.
    pub(crate) fn compile(&self) -> impl Iterator<Item = Workload> {
        let nodes = self.manifests.nodes.iter();
        let nodes: HashMap<&str, Locality> = nodes
            .filter_map(|node| Some((&*node.meta.name, locality(&node.meta.labels)?)))
            .collect();
        let namespaces = self.manifests.namespaces.iter();
        let namespaces: HashMap<&str, &Object<Namespace>> =
            namespaces.map(|namespace| (&*namespace.meta.name, &**namespace)).collect();
        let pods = self.manifests.pods.iter().filter(|pod| {
            // Neither takes a connection, and an ended pod's address may be another's.
            pod.spec.state != PodState::Ended && !pod.spec.addresses.is_empty()
        });
        let pods = pods.map(move |pod| {
            let namespace = namespaces.get(&*pod.meta.namespace).copied();
            let labels = namespace.map(|namespace| &namespace.meta.labels);
            let enrolled = is_enrolled(&pod.meta, &pod.spec, labels);
            let mut limits = pod.spec.limits;
            if let Some(namespace) = namespace {
                limits.connection_rate =
                    limits.connection_rate.or(namespace.spec.limits.connection_rate);
            }
            Workload {
                extensions: limits.extension().into_iter().collect(),
                ..self.pod(pod, enrolled, nodes.get(&*pod.spec.node).cloned())
            }
        });
        let slices = self.manifests.endpoint_slices.iter();
        pods.chain(slices.flat_map(|slice| self.slice(slice)))
    }

    fn pod(&self, pod: &Object<Pod>, enrolled: Enrolled, locality: Option<Locality>) -> Workload {
        let Object { meta, spec } = pod;
        let first = |keys: &[&str]| keys.iter().find_map(|key| meta.labels.get(*key)).cloned();
        let canonical_name =
            first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
        let canonical_revision =
            first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
        let mut policies: Vec<_> = self.policies.selecting(&meta.namespace, &meta.labels);
        policies.extend(self.modes.policy_for(&meta.namespace, &meta.labels));
        let services = self.services.leading_to(&meta.namespace, &meta.name, &meta.labels, spec);
        let status = match spec.state {
            PodState::Ready => WorkloadStatus::Healthy,
            PodState::NotReady | PodState::Terminating | PodState::Ended => {
                WorkloadStatus::Unhealthy
            }
        };
        let tunnel = match enrolled {
            Enrolled::No => TunnelProtocol::None,
            Enrolled::Captured | Enrolled::Native => TunnelProtocol::Hbone,
        };
        let network_mode =
            if spec.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard };
        Workload {
            uid: format!("{}//Pod/{}/{}", self.config.cluster_id, meta.namespace, meta.name),
            name: meta.name.to_string(),
            namespace: meta.namespace.to_string(),
            addresses: spec.addresses.iter().map(|ip| octets(*ip)).collect(),
            network: self.config.network.clone(),
            tunnel_protocol: tunnel.into(),
            trust_domain: self.trust_domain(),
            waypoint: self.waypoints.of_pod(&spec.waypoint),
            service_account: spec.service_account.to_string(),
            node: spec.node.to_string(),
            canonical_name: canonical_name.unwrap_or_else(|| meta.name.to_string()),
            canonical_revision: canonical_revision.unwrap_or_else(|| "latest".to_owned()),
            workload_type: WorkloadType::Pod.into(),
            workload_name: meta.name.to_string(),
            native_tunnel: enrolled == Enrolled::Native,
            services: services.collect(),
            authorization_policies: policies,
            status: status.into(),
            cluster_id: self.config.cluster_id.clone(),
            locality,
            network_mode: network_mode.into(),
            ..Workload::default()
        }
    }

    /// Endpoints that no pod stands behind. Nothing is known of them but their address, which may be anybody's: they
    /// are found through their service only, as pods on the host's network are.
    fn slice(&self, slice: &Arc<Object<EndpointSlice>>) -> Vec<Workload> {
        let Object { meta, spec } = &**slice;
        let service = spec.service.as_deref();
        let Some(service) = service.and_then(|name| self.services.find(&meta.namespace, name))
        else {
            return Vec::new();
        };
        let ports = slice_ports(&service.spec, &spec.ports);
        let foreign = spec.endpoints.iter().filter(|endpoint| endpoint.pod.is_none());
        foreign
            .filter_map(|endpoint| {
                let first = endpoint.addresses.first()?;
                let status = if endpoint.ready {
                    WorkloadStatus::Healthy
                } else {
                    WorkloadStatus::Unhealthy
                };
                Some(Workload {
                    uid: format!(
                        "{}/discovery.k8s.io/EndpointSlice/{}/{}/{first}",
                        self.config.cluster_id, meta.namespace, meta.name
                    ),
                    name: meta.name.to_string(),
                    namespace: meta.namespace.to_string(),
                    addresses: endpoint.addresses.iter().map(|ip| octets(*ip)).collect(),
                    network: self.config.network.clone(),
                    trust_domain: self.trust_domain(),
                    services: [(self.services.key(service), ports.clone())].into(),
                    status: status.into(),
                    cluster_id: self.config.cluster_id.clone(),
                    network_mode: NetworkMode::HostNetwork.into(),
                    ..Workload::default()
                })
            })
            .collect()
    }

    /// The default is left out, as Istio does.
    fn trust_domain(&self) -> String {
        match self.config.trust_domain.as_str() {
            "cluster.local" => String::new(),
            other => other.to_owned(),
        }
    }
}

fn locality(labels: &Labels) -> Option<Locality> {
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let locality = Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    };
    (locality != Locality::default()).then_some(locality)
}

/// An address as the wire has it: 4 or 16 bytes.
pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}
