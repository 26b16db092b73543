//! Pods, WorkloadEntries, endpoints of ServiceEntries and hand-written endpoints, as workloads.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use proto::workload::{
    AppProtocol, Locality, NetworkMode, Port, PortList, TunnelProtocol, Workload, WorkloadStatus,
    WorkloadType,
};

use super::{
    registry::{
        Enrolled, Host, Member, PortPairs, Visibility, Vm, can_be_reached, canonical, is_enrolled,
        is_named_by_itself, is_native, locality_of,
    },
    world::World,
};
use crate::manifests::{
    EndpointSlice, Labels, Manifests, Meta, Object, Pod, PodState,
    networking::{ServiceEntry, WorkloadEntry},
};

impl World {
    /// The messages of all workloads that are no pods.
    pub(super) fn foreign_workloads(&self, manifests: &Manifests) -> Vec<Workload> {
        let mut workloads = Vec::new();
        for slice in &manifests.endpoint_slices {
            workloads.extend(self.slice(slice));
        }
        workloads.extend(self.registry.vms().iter().map(|vm| self.vm(vm)));
        for entry in &manifests.service_entries {
            workloads.extend(self.entry(entry));
        }
        if self.config.multi_network {
            // What is in another network is reached through its gateway, not by its address.
            workloads.retain(|workload| workload.network == self.registry.network());
        }
        workloads.extend(self.networks.compile(&self.config));
        workloads
    }

    /// The message of a pod; none if it cannot be reached.
    pub(super) fn pod(&self, pod: &Object<Pod>) -> Option<Workload> {
        if !can_be_reached(pod) {
            return None;
        }
        let Object { meta, spec } = pod;
        let namespace = self.registry.namespace(&meta.namespace);
        let enrolled = is_enrolled(meta, spec, namespace, self.registry.marks());
        let mut limits = spec.limits;
        if let Some(of_namespace) = self.limits.get(&*meta.namespace) {
            limits.connection_rate = limits.connection_rate.or(of_namespace.connection_rate);
        }
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
        let locality = self.registry.locality_of_node(&spec.node);
        Some(Workload {
            uid: self.uid_of(meta),
            addresses: spec.addresses.iter().map(|ip| octets(*ip)).collect(),
            tunnel_protocol: tunnel.into(),
            waypoint: self.waypoints.of_workload(&meta.namespace, &meta.labels),
            service_account: spec.service_account.to_string(),
            node: spec.node.to_string(),
            native_tunnel: enrolled == Enrolled::Native,
            application_tunnel: self.waypoints.tunnel_of(meta),
            services: services(self.registry.leading_to(pod)),
            authorization_policies: self.policies_of(&meta.namespace, &meta.labels),
            status: status.into(),
            locality: locality.and_then(|locality| stated(locality)),
            network_mode: network_mode.into(),
            extensions: limits.extension().into_iter().collect(),
            ..self.named(meta, &meta.labels)
        })
    }

    /// The name of a pod's message.
    pub(super) fn uid_of(&self, pod: &Meta) -> String {
        format!("{}//Pod/{}/{}", self.config.cluster_id, pod.namespace, pod.name)
    }

    fn vm(&self, vm: &Arc<Vm>) -> Workload {
        let Object { meta, spec } = &*vm.object;
        let hosts = self.registry.selecting(&meta.namespace, &vm.labels);
        let member = Member::Entry(Arc::clone(vm));
        let services = services(hosts.map(|host| (host, member.ports(host))));
        Workload {
            uid: format!(
                "{}/networking.istio.io/WorkloadEntry/{}/{}",
                self.config.cluster_id, meta.namespace, meta.name
            ),
            waypoint: self.waypoints.of_workload(&meta.namespace, &meta.labels),
            services,
            ..self.written(meta, &vm.labels, spec, &spec.address)
        }
    }

    /// The endpoints of a ServiceEntry, if it has a host that no other has taken.
    fn entry(&self, entry: &Arc<Object<ServiceEntry>>) -> Vec<Workload> {
        let names = entry.spec.hosts.iter();
        let hosts = names.filter_map(|name| self.registry.find(&entry.meta.namespace, name));
        let hosts: Vec<&Arc<Host>> = hosts
            .filter(|host| host.is_of(entry) && host.visibility != Visibility::Nobody)
            .collect();
        if hosts.is_empty() {
            return Vec::new();
        }
        let mut workloads: Vec<_> = (0..entry.spec.endpoints.len())
            .filter(|i| !entry.spec.endpoints[*i].address.starts_with("unix://"))
            .map(|i| {
                let member = Member::Inline(Arc::clone(entry), i);
                let endpoint = &entry.spec.endpoints[i];
                self.of_entry(entry, &member, endpoint, &endpoint.address, &hosts)
            })
            .collect();
        if is_named_by_itself(entry) {
            let member = Member::Name(Arc::clone(entry));
            let nothing = WorkloadEntry::default();
            workloads.extend(hosts.iter().map(|host| {
                self.of_entry(entry, &member, &nothing, &host.hostname, std::slice::from_ref(host))
            }));
        }
        workloads
    }

    fn of_entry(
        &self,
        entry: &Object<ServiceEntry>,
        member: &Member,
        endpoint: &WorkloadEntry,
        address: &str,
        hosts: &[&Arc<Host>],
    ) -> Workload {
        let meta = &entry.meta;
        let hosts = hosts.iter().map(|host| (*host, member.ports(host)));
        Workload {
            uid: format!(
                "{}/networking.istio.io/ServiceEntry/{}/{}/{address}",
                self.config.cluster_id, meta.namespace, meta.name
            ),
            waypoint: self.waypoints.of_workload(&meta.namespace, &meta.labels),
            services: services(hosts),
            ..self.written(meta, member.labels(), endpoint, address)
        }
    }

    /// What a WorkloadEntry says, be it an object of its own or not.
    fn written(
        &self,
        meta: &Meta,
        labels: &Labels,
        entry: &WorkloadEntry,
        address: &str,
    ) -> Workload {
        let ip = address.parse::<IpAddr>().ok();
        let native = is_native(labels);
        let tunnel = if native { TunnelProtocol::Hbone } else { TunnelProtocol::None };
        let named = self.named(meta, labels);
        Workload {
            addresses: ip.map(octets).into_iter().collect(),
            hostname: if ip.is_none() { address.to_owned() } else { String::new() },
            network: if entry.network.is_empty() { named.network } else { entry.network.clone() },
            tunnel_protocol: tunnel.into(),
            service_account: entry.service_account.clone(),
            native_tunnel: native,
            authorization_policies: self.policies_of(&meta.namespace, labels),
            locality: stated(&locality_of(&entry.locality)),
            capacity: (entry.weight > 0).then_some(entry.weight),
            ..named
        }
    }

    /// Endpoints that no pod stands behind. Nothing is known of them but their address, which may be anybody's: they
    /// are found through their service only, as pods on the host's network are.
    fn slice(&self, slice: &Arc<Object<EndpointSlice>>) -> Vec<Workload> {
        let Object { meta, spec } = &**slice;
        let Some(service) = spec.service.as_deref() else { return Vec::new() };
        let hostname = format!("{service}.{}.svc.{}", meta.namespace, self.config.cluster_domain);
        let Some(host) = self.registry.find(&meta.namespace, &hostname) else { return Vec::new() };
        let foreign = spec.endpoints.iter().enumerate().filter(|(_, one)| one.pod.is_none());
        let workloads = foreign.filter_map(|(i, endpoint)| {
            let first = endpoint.addresses.first()?;
            let status =
                if endpoint.ready { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy };
            let ports = Member::Foreign(Arc::clone(slice), i).ports(host);
            Some(Workload {
                uid: format!(
                    "{}/discovery.k8s.io/EndpointSlice/{}/{}/{first}",
                    self.config.cluster_id, meta.namespace, meta.name
                ),
                name: meta.name.to_string(),
                namespace: meta.namespace.to_string(),
                addresses: endpoint.addresses.iter().map(|ip| octets(*ip)).collect(),
                network: self.registry.network().to_owned(),
                trust_domain: self.trust_domain(),
                services: services([(host, ports)]),
                status: status.into(),
                cluster_id: self.config.cluster_id.clone(),
                network_mode: NetworkMode::HostNetwork.into(),
                ..Workload::default()
            })
        });
        workloads.collect()
    }

    /// What the object itself says of a workload.
    fn named(&self, meta: &Meta, labels: &Labels) -> Workload {
        let (canonical_name, canonical_revision) = canonical(labels, &meta.name);
        Workload {
            name: meta.name.to_string(),
            namespace: meta.namespace.to_string(),
            network: self.registry.network().to_owned(),
            trust_domain: self.trust_domain(),
            canonical_name: canonical_name.to_owned(),
            canonical_revision: canonical_revision.to_owned(),
            workload_type: WorkloadType::Pod.into(),
            workload_name: meta.name.to_string(),
            cluster_id: self.config.cluster_id.clone(),
            ..Workload::default()
        }
    }

    fn policies_of(&self, namespace: &str, labels: &Labels) -> Vec<String> {
        let mut policies = self.policies.selecting(namespace, labels);
        policies.extend(self.modes.policy_for(namespace, labels));
        policies
    }

    /// The default is left out, as Istio does.
    fn trust_domain(&self) -> String {
        match self.config.trust_domain.as_str() {
            "cluster.local" => String::new(),
            other => other.to_owned(),
        }
    }
}

fn services<'a>(
    hosts: impl IntoIterator<Item = (&'a Arc<Host>, PortPairs)>,
) -> BTreeMap<String, PortList> {
    let hosts = hosts.into_iter().filter(|(host, _)| host.visibility != Visibility::Nobody);
    let services = hosts.map(|(host, pairs)| {
        let ports = pairs.into_iter().map(|(service_port, target_port)| Port {
            service_port: service_port.into(),
            target_port: target_port.into(),
            app_protocol: AppProtocol::Unknown.into(),
        });
        (host.key(), PortList { ports: ports.collect() })
    });
    services.collect()
}

fn stated(locality: &Locality) -> Option<Locality> {
    (*locality != Locality::default()).then(|| locality.clone())
}

/// An address as the wire has it: 4 or 16 bytes.
pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}
