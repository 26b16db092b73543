//! Every service that there is, of whatever source, and what is behind it.
//!
//! In: Services, ServiceEntries, pods, EndpointSlices and WorkloadEntries. Out: a [`Registry`] of [`Host`]s that can be
//! found by name, with their [`Endpoint`]s. Knows nothing of who is to receive them.

mod allocate;
mod change;
mod endpoint;
mod enrolled;
mod host;
mod protocol;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use proto::workload::Locality;

use self::{
    allocate::Allocated,
    endpoint::{is_of_families, locality_of_node},
};
pub(crate) use self::{
    endpoint::{Endpoint, Health, Member, Vm, locality_of},
    enrolled::{Enrolled, Marks, is_enrolled, is_native},
    host::{Host, Origin, Port, Resolution, Visibility},
    protocol::Protocol,
};
use super::{MeshConfig, mesh_config, selector::Selectors};
use crate::manifests::{
    Labels, Manifests, Meta, Object, Pod, PodState, Service, ServiceKind,
    networking::{ServiceEntry, WorkloadEntry},
};

/// The label of a workload whose addresses belong to another network than the mesh's own.
const NETWORK_LABEL: &str = "topology.istio.io/network";

/// Ports of a host, each with the endpoint's port that it leads to.
pub(crate) type PortPairs = Vec<(u16, u16)>;

/// Hosts of ServiceEntries with the addresses given to them, by `namespace/name`.
type Allocations = HashMap<String, Vec<(Arc<str>, IpAddr)>>;

/// Services without a selector, by the pods that their slices name.
type Listing = HashMap<Box<str>, Vec<(Arc<Host>, Member)>>;

/// All services.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    fixed: Arc<Fixed>,
    /// By the host's index. Of each host: what slices name, its pods by name, what entries say.
    members: Vec<Arc<Vec<Member>>>,
    marks: Marks,
}

/// What a pod that comes or goes does not change, but for pods that slices name.
#[derive(Debug)]
struct Fixed {
    hosts: Vec<Arc<Host>>,
    by_name: HashMap<Box<str>, Vec<Arc<Host>>>,
    selectors: Selectors<Arc<Host>>,
    listing: Listing,
    vms: Vec<Arc<Vm>>,
    nodes: HashMap<Box<str>, Arc<Locality>>,
    namespaces: HashMap<Box<str>, Labels>,
    network: Box<str>,
    allocated: Allocations,
}

impl Registry {
    pub(crate) fn of(manifests: &Manifests, config: &MeshConfig) -> Self {
        let namespaces = manifests.namespaces.iter();
        let namespaces = namespaces
            .map(|namespace| ((&*namespace.meta.name).into(), namespace.meta.labels.clone()));
        let namespaces: HashMap<Box<str>, Labels> = namespaces.collect();
        let (hosts, allocated) = hosts(manifests, config, &namespaces);
        let mut by_name: HashMap<Box<str>, Vec<Arc<Host>>> = HashMap::new();
        for host in &hosts {
            by_name.entry((&*host.hostname).into()).or_default().push(Arc::clone(host));
        }
        for same in by_name.values_mut() {
            same.sort_by(|a, b| {
                (!a.canonical, &a.meta.namespace).cmp(&(!b.canonical, &b.meta.namespace))
            });
        }
        let selecting = hosts.iter().filter(|host| !host.selector().is_empty());
        let selectors = Selectors::new(
            selecting.map(|host| (&*host.meta.namespace, host.selector(), Arc::clone(host))),
        );
        let nodes = manifests
            .nodes
            .iter()
            .map(|node| ((&*node.meta.name).into(), Arc::new(locality_of_node(&node.meta.labels))));
        let mut members = vec![Vec::new(); hosts.len()];
        let fixed = Fixed {
            listing: listing(&hosts, manifests, &mut members),
            hosts,
            by_name,
            selectors,
            vms: manifests.workload_entries.iter().map(vm).collect(),
            nodes: nodes.collect(),
            network: local_network(&namespaces, config),
            namespaces,
            allocated,
        };
        fixed.add_pods(manifests, &mut members);
        fixed.add_entries(&mut members);
        Self {
            fixed: Arc::new(fixed),
            members: members.into_iter().map(Arc::new).collect(),
            marks: Marks::of(manifests),
        }
    }

    /// The service of that name in that namespace.
    pub(crate) fn find(&self, namespace: &str, hostname: &str) -> Option<&Arc<Host>> {
        let mut same = self.fixed.by_name.get(hostname)?.iter();
        same.find(|host| *host.meta.namespace == *namespace)
    }

    /// The services of that name, the canonical one first.
    pub(crate) fn by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Host>> {
        self.fixed.by_name.get(hostname).into_iter().flatten()
    }

    /// All of them, sorted by namespace and name of the object they come from.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.fixed.hosts.iter()
    }

    /// What is behind a service: of all its ports, the unhealthy and terminating included.
    pub(crate) fn endpoints(&self, host: &Host) -> Vec<Endpoint> {
        self.members(host).iter().filter_map(|member| self.endpoint(host, member)).collect()
    }

    /// What is behind a service, as it was written.
    pub(crate) fn members(&self, host: &Host) -> &[Member] {
        self.members.get(host.index).map_or(&[], |members| members.as_slice())
    }

    /// The services that a pod is behind, each with the ports that lead to it.
    pub(crate) fn leading_to(&self, pod: &Object<Pod>) -> Vec<(&Arc<Host>, PortPairs)> {
        let Object { meta, spec: _ } = pod;
        let selecting = self.selecting(&meta.namespace, &meta.labels);
        let mut leading: Vec<_> =
            selecting.map(|host| (host, endpoint::pod_ports(host, &pod.spec))).collect();
        let listing = self.fixed.listing.get(pod_key(&meta.namespace, &meta.name).as_str());
        let listing = listing.into_iter().flatten();
        leading.extend(listing.map(|(host, member)| (host, member.ports(host))));
        leading
    }

    /// The services whose selector has these labels.
    pub(crate) fn selecting<'a>(
        &'a self,
        namespace: &str,
        labels: &Labels,
    ) -> impl Iterator<Item = &'a Arc<Host>> {
        self.fixed.selectors.matching(namespace, labels)
    }

    /// All WorkloadEntries.
    pub(crate) fn vms(&self) -> &[Arc<Vm>] {
        &self.fixed.vms
    }

    /// Where the mesh's own addresses mean something; empty if networks have no names.
    pub(crate) fn network(&self) -> &str {
        &self.fixed.network
    }

    /// The addresses given to the hosts of a ServiceEntry, also if another entry has a host before it.
    pub(crate) fn allocated(&self, entry: &Meta) -> &[(Arc<str>, IpAddr)] {
        let key = format!("{}/{}", entry.namespace, entry.name);
        self.fixed.allocated.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Who sees a ServiceEntry by the mesh's rules alone.
    pub(crate) fn visibility_by_mesh(&self, host: &Host, config: &MeshConfig) -> Visibility {
        visibility(self.namespace(&host.meta.namespace), config)
    }

    /// Whether node agents mark pods.
    pub(crate) fn marks(&self) -> Marks {
        self.marks
    }

    /// What is behind a service in other networks, as WorkloadEntries and ServiceEntries say.
    pub(crate) fn foreign(&self, host: &Host) -> Vec<Endpoint> {
        let members = self.members(host).iter().filter(|member| match member {
            Member::Entry(_) | Member::Inline(..) | Member::Name(_) => true,
            Member::Pod(_) | Member::Listed(..) | Member::Foreign(..) => false,
        });
        let mut endpoints: Vec<_> =
            members.filter_map(|member| self.endpoint(host, member)).collect();
        endpoints.retain(|endpoint| *endpoint.network != *self.fixed.network);
        endpoints
    }

    /// Where a node is.
    pub(crate) fn locality_of_node(&self, node: &str) -> Option<&Arc<Locality>> {
        self.fixed.nodes.get(node)
    }

    /// The labels of a namespace, if it is there.
    pub(crate) fn namespace(&self, name: &str) -> Option<&Labels> {
        self.fixed.namespaces.get(name)
    }

    fn endpoint(&self, host: &Host, member: &Member) -> Option<Endpoint> {
        match member {
            Member::Pod(pod) => self.pod(host, pod, member, &pod.spec.addresses),
            Member::Listed(pod, slice, i) => {
                self.pod(host, pod, member, &slice.spec.endpoints[*i].addresses)
            }
            Member::Foreign(slice, i) => {
                let endpoint = &slice.spec.endpoints[*i];
                let health = match (endpoint.terminating, endpoint.ready) {
                    (true, _) => Health::Terminating,
                    (false, true) => Health::Healthy,
                    (false, false) => Health::Unhealthy,
                };
                Some(Endpoint {
                    addresses: endpoint.addresses.clone(),
                    health,
                    ..self.plain(host, member, &slice.meta)
                })
            }
            Member::Entry(vm) => {
                self.entry(host, member, &vm.object.meta, &vm.object.spec, &vm.object.spec.address)
            }
            Member::Inline(entry, i) => {
                let endpoint = &entry.spec.endpoints[*i];
                self.entry(host, member, &entry.meta, endpoint, &endpoint.address)
            }
            Member::Name(entry) => {
                self.entry(host, member, &entry.meta, &WorkloadEntry::default(), &host.hostname)
            }
        }
    }

    fn pod(
        &self,
        host: &Host,
        pod: &Object<Pod>,
        member: &Member,
        addresses: &[IpAddr],
    ) -> Option<Endpoint> {
        let Object { meta, spec } = pod;
        let families = |ip: &IpAddr| host.service().is_none_or(|svc| is_of_families(svc, *ip));
        let addresses: Vec<_> = addresses.iter().copied().filter(families).collect();
        if addresses.is_empty() {
            return None;
        }
        let namespace = self.namespace(&meta.namespace);
        let enrolled = is_enrolled(meta, spec, namespace, self.marks);
        let plain = self.plain(host, member, meta);
        Some(Endpoint {
            addresses,
            locality: self.fixed.nodes.get(&*spec.node).cloned().unwrap_or(plain.locality),
            health: Health::of_pod(spec),
            tunnel: enrolled != Enrolled::No,
            service_account: spec.service_account.clone(),
            node: spec.node.clone(),
            ..plain
        })
    }

    fn entry(
        &self,
        host: &Host,
        member: &Member,
        meta: &Meta,
        entry: &WorkloadEntry,
        address: &str,
    ) -> Option<Endpoint> {
        let plain = self.plain(host, member, meta);
        let ip = address.parse::<IpAddr>().ok();
        let hostname = (ip.is_none() && !address.is_empty()).then(|| address.into());
        if address.starts_with("unix://") {
            return None;
        }
        Some(Endpoint {
            addresses: ip.into_iter().collect(),
            hostname,
            locality: Arc::new(locality_of(&entry.locality)),
            weight: entry.weight.max(1),
            network: if entry.network.is_empty() {
                plain.network
            } else {
                entry.network.as_str().into()
            },
            tunnel: is_native(member.labels()),
            service_account: entry.service_account.as_str().into(),
            ..plain
        })
    }

    /// What is common to all.
    fn plain(&self, host: &Host, member: &Member, meta: &Meta) -> Endpoint {
        let labels = member.labels();
        let (canonical_name, canonical_revision) = canonical(labels, &meta.name);
        let network = labels.get(NETWORK_LABEL).map_or(&*self.fixed.network, String::as_str);
        Endpoint {
            addresses: Vec::new(),
            hostname: None,
            ports: member.ports(host),
            locality: Arc::default(),
            weight: 1,
            health: Health::Healthy,
            network: network.into(),
            tunnel: false,
            workload: (&*meta.name).into(),
            namespace: Arc::clone(&meta.namespace),
            canonical_name: canonical_name.into(),
            canonical_revision: canonical_revision.into(),
            service_account: "".into(),
            node: "".into(),
            member: member.clone(),
        }
    }
}

impl Fixed {
    fn selecting_pod(&self, pod: &Object<Pod>) -> impl Iterator<Item = &Arc<Host>> {
        self.selectors.matching(&pod.meta.namespace, &pod.meta.labels)
    }

    fn add_pods(&self, manifests: &Manifests, members: &mut [Vec<Member>]) {
        let listed: Vec<_> = members.iter().map(Vec::len).collect();
        for pod in manifests.pods.iter().filter(|pod| can_be_reached(pod)) {
            for host in self.selecting_pod(pod) {
                members[host.index].push(Member::Pod(Arc::clone(pod)));
            }
        }
        // Whatever the order in which they came, it is the same in the end.
        for (members, listed) in members.iter_mut().zip(listed) {
            members[listed..].sort_by(|a, b| a.order().cmp(&b.order()));
        }
    }

    fn add_entries(&self, members: &mut [Vec<Member>]) {
        for vm in &self.vms {
            let namespace = &vm.object.meta.namespace;
            for host in self.selectors.matching(namespace, &vm.labels) {
                members[host.index].push(Member::Entry(Arc::clone(vm)));
            }
        }
        for host in &self.hosts {
            let Origin::Entry(entry) = &host.origin else { continue };
            let members = &mut members[host.index];
            let inline = 0..entry.spec.endpoints.len();
            members.extend(inline.map(|i| Member::Inline(Arc::clone(entry), i)));
            if is_named_by_itself(entry) {
                members.push(Member::Name(Arc::clone(entry)));
            }
        }
    }
}

/// Slices count for Services that have no selector: those of the others say what their pods say themselves. Says which
/// pods are behind which of those Services, missing ones included.
fn listing(hosts: &[Arc<Host>], manifests: &Manifests, members: &mut [Vec<Member>]) -> Listing {
    let by_service: HashMap<(&str, &str), &Arc<Host>> = hosts
        .iter()
        .filter(|host| host.service().is_some_and(|service| service.selector.is_empty()))
        .map(|host| ((&*host.meta.namespace, &*host.meta.name), host))
        .collect();
    let mut listing = Listing::new();
    let mut found = Vec::new();
    for slice in &manifests.endpoint_slices {
        let service = slice.spec.service.as_deref();
        let host = service.and_then(|name| by_service.get(&(&*slice.meta.namespace, name)));
        let Some(host) = host else { continue };
        for (i, endpoint) in slice.spec.endpoints.iter().enumerate() {
            let key = endpoint.pod.as_ref().map(|(namespace, name)| pod_key(namespace, name));
            if let Some(key) = &key {
                listing.entry(key.as_str().into()).or_default();
            }
            found.push((*host, key, Arc::clone(slice), i));
        }
    }
    if found.is_empty() {
        return listing;
    }
    let pods = manifests.pods.iter().filter(|pod| can_be_reached(pod));
    let pods: HashMap<String, &Arc<Object<Pod>>> = pods
        .map(|pod| (pod_key(&pod.meta.namespace, &pod.meta.name), pod))
        .filter(|(key, _)| listing.contains_key(key.as_str()))
        .collect();
    for (host, key, slice, i) in found {
        let Some(key) = key else {
            members[host.index].push(Member::Foreign(slice, i));
            continue;
        };
        let Some(pod) = pods.get(&key) else { continue };
        let member = Member::Listed(Arc::clone(pod), slice, i);
        members[host.index].push(member.clone());
        listing.entry(key.into()).or_default().push((Arc::clone(host), member));
    }
    listing
}

/// Whether DNS is asked for the hosts of an entry themselves.
pub(crate) fn is_named_by_itself(entry: &Object<ServiceEntry>) -> bool {
    use crate::manifests::networking::Resolution;
    let spec = &entry.spec;
    let resolved = match spec.resolution {
        Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns => true,
        Resolution::None | Resolution::Static => false,
    };
    resolved && spec.endpoints.is_empty() && spec.workload_selector.is_none()
}

/// Neither a pod that has ended takes a connection, nor one without an address.
pub(crate) fn can_be_reached(pod: &Object<Pod>) -> bool {
    pod.spec.state != PodState::Ended && !pod.spec.addresses.is_empty()
}

/// The names by which a workload is known to people.
pub(crate) fn canonical<'a>(labels: &'a Labels, name: &'a str) -> (&'a str, &'a str) {
    let first = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key)).map(String::as_str);
    let canonical = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
    let revision = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
    (first(&canonical).unwrap_or(name), first(&revision).unwrap_or("latest"))
}

/// All hosts, without those that another of the same namespace and name stands before: a Service before a
/// ServiceEntry, the older ServiceEntry before the younger.
fn hosts(
    manifests: &Manifests,
    config: &MeshConfig,
    namespaces: &HashMap<Box<str>, Labels>,
) -> (Vec<Arc<Host>>, Allocations) {
    let services = manifests.services.iter();
    let services = services.filter(|service| service.spec.kind == ServiceKind::Cluster);
    let services = services
        .map(|service: &Arc<Object<Service>>| Host::of_service(service, &config.cluster_domain));
    let mut entries: Vec<_> = manifests.service_entries.iter().collect();
    entries.sort_by(|a, b| a.meta.seniority().cmp(&b.meta.seniority()));
    let mut allocated = Allocated::of(entries.iter().map(|entry| &***entry));
    let mut allocations = Allocations::new();
    let mut taken = HashSet::new();
    let mut first: HashMap<Arc<str>, usize> = HashMap::new();
    let mut hosts: Vec<Host> = Vec::new();
    let of_entries = entries.into_iter().flat_map(|entry| {
        let names = entry.spec.hosts.iter();
        names.map(move |name| (entry, Host::of_entry(entry, name)))
    });
    let all = services.map(|host| (None, host));
    for (entry, mut host) in all.chain(of_entries.map(|(entry, host)| (Some(entry), host))) {
        if let Some(entry) = entry {
            let given = allocated.addresses(entry, &host.hostname);
            let key = format!("{}/{}", host.meta.namespace, host.meta.name);
            let held = given.iter().map(|net| (Arc::clone(&host.hostname), net.addr()));
            allocations.entry(key).or_default().extend(held);
            host.addresses.extend(given);
            let mesh = visibility(namespaces.get(&*host.meta.namespace), config);
            host.visibility = mesh.max(exported(&host, config));
        }
        if !taken.insert((Arc::clone(&host.meta.namespace), Arc::clone(&host.hostname))) {
            continue;
        }
        if host.visibility == Visibility::Public {
            first.entry(Arc::clone(&host.hostname)).or_insert(hosts.len());
        }
        hosts.push(host);
    }
    for index in first.into_values() {
        hosts[index].canonical = true;
    }
    hosts.sort_by(|a, b| {
        let key = |host: &Host| {
            (
                Arc::clone(&host.meta.namespace),
                Arc::clone(&host.meta.name),
                Arc::clone(&host.hostname),
            )
        };
        key(a).cmp(&key(b))
    });
    for (index, host) in hosts.iter_mut().enumerate() {
        host.index = index;
    }
    (hosts.into_iter().map(Arc::new).collect(), allocations)
}

fn vm(object: &Arc<Object<WorkloadEntry>>) -> Arc<Vm> {
    let mut labels: BTreeMap<_, _> = object.meta.labels.clone();
    labels.extend(object.spec.labels.clone());
    Arc::new(Vm { object: Arc::clone(object), labels })
}

fn pod_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Who sees the ServiceEntries of a namespace: the first rule that takes it says so.
fn visibility(namespace: Option<&Labels>, config: &MeshConfig) -> Visibility {
    const NONE: &Labels = &Labels::new();
    let labels = namespace.unwrap_or(NONE);
    let mut policies = config.service_entry_visibility.policies.iter();
    let policy = policies.find(|policy| {
        policy.matching_rules.iter().any(|rule| {
            rule.namespace_selector.as_ref().is_none_or(|selector| selector.matches(labels))
        })
    });
    match policy.map(|policy| policy.visibility) {
        Some(mesh_config::Visibility::Namespace) => Visibility::Namespace,
        Some(mesh_config::Visibility::None) => Visibility::Nobody,
        Some(mesh_config::Visibility::Public) | None => Visibility::Public,
    }
}

/// Who sees a ServiceEntry by its own `exportTo`. Daemons cannot be told of other namespaces one by one: an entry
/// for some of them is seen by all.
fn exported(host: &Host, config: &MeshConfig) -> Visibility {
    let default = &config.default_service_export_to;
    let to = if host.export_to.is_empty() { default } else { &host.export_to };
    if to.iter().any(|one| one == "~") {
        Visibility::Nobody
    } else if !to.is_empty() && to.iter().all(|one| one == "." || *one == *host.meta.namespace) {
        Visibility::Namespace
    } else {
        Visibility::Public
    }
}

/// The setting, or else what the root namespace is labelled with.
fn local_network(namespaces: &HashMap<Box<str>, Labels>, config: &MeshConfig) -> Box<str> {
    if !config.network.is_empty() {
        return config.network.as_str().into();
    }
    let labels = namespaces.get(config.root_namespace.as_str());
    labels.and_then(|labels| labels.get(NETWORK_LABEL)).map_or("", String::as_str).into()
}
