//! What the parts of the analysis look things up in.
//!
//! In: [`Manifests`] and the mesh's settings. Out: a [`View`]: hosts, waypoints, pods by namespace, subsets. The answers
//! are those of the compiler where it has them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    compile::{
        MeshConfig,
        attachment::{Refusal, Waypoints},
        registry::{Enrolled, Host, Origin, Registry, is_enrolled},
        waypoint::{
            destination_rule::{Rules, Side},
            routes::full_name,
        },
    },
    manifests::{
        Labels, Manifests, Meta, Object, Pod, PodState, Selector, TargetRef,
        gateway_api::{GATEWAY_GROUP, Gateway},
    },
};

/// The input, and what follows from it.
pub(super) struct View<'a> {
    pub(super) manifests: &'a Manifests,
    pub(super) config: &'a MeshConfig,
    pub(super) registry: Registry,
    pub(super) waypoints: Waypoints,
    /// By namespace and name.
    gateways: HashMap<(&'a str, &'a str), &'a Object<Gateway>>,
    /// Those that have not ended, by namespace.
    pods: HashMap<&'a str, Vec<&'a Object<Pod>>>,
    /// DestinationRules as clients of a namespace see them.
    rules: HashMap<&'a str, Rules<'a>>,
}

impl<'a> View<'a> {
    pub(super) fn of(manifests: &'a Manifests, config: &'a MeshConfig) -> Self {
        let registry = Registry::of(manifests, config);
        let waypoints = Waypoints::of(manifests, &registry, config);
        let gateways = manifests.gateways.iter();
        let gateways =
            gateways.map(|one| ((&*one.meta.namespace, &*one.meta.name), &**one)).collect();
        let mut pods: HashMap<&str, Vec<&Object<Pod>>> = HashMap::new();
        for pod in manifests.pods.iter().filter(|pod| pod.spec.state != PodState::Ended) {
            pods.entry(&pod.meta.namespace).or_default().push(pod);
        }
        let of_gateways = manifests.gateways.iter().map(|one| &*one.meta.namespace);
        let of_services = manifests.virtual_services.iter().map(|one| &*one.meta.namespace);
        let clients: BTreeSet<&str> = of_gateways.chain(of_services).collect();
        let nobody = Labels::new();
        let rules = clients.into_iter();
        let rules = rules.map(|client| (client, Rules::of(manifests, config, client, &nobody)));
        Self { rules: rules.collect(), manifests, config, registry, waypoints, gateways, pods }
    }

    /// Whether the input holds pods at all.
    pub(super) fn has_pods(&self) -> bool {
        !self.pods.is_empty()
    }

    /// The full name of a host as an object of `namespace` says it.
    pub(super) fn full_name(&self, host: &str, namespace: &str) -> String {
        full_name(host, namespace, &self.config.cluster_domain).into_owned()
    }

    /// The host that an object of `namespace` means.
    pub(super) fn named(&self, host: &str, namespace: &str) -> Option<&Arc<Host>> {
        let hostname = self.full_name(host, namespace);
        self.registry
            .find(namespace, &hostname)
            .or_else(|| self.registry.by_hostname(&hostname).next())
    }

    /// The hosts that a name, perhaps with a leading `*`, stands for.
    pub(super) fn matching(&self, hostname: &str) -> Vec<&Arc<Host>> {
        match hostname.strip_prefix('*') {
            Some(suffix) => {
                self.registry.all().filter(|host| host.hostname.ends_with(suffix)).collect()
            }
            None => self.registry.by_hostname(hostname).collect(),
        }
    }

    /// The hosts of a Service.
    pub(super) fn of_service(&self, namespace: &str, name: &str) -> Vec<&Arc<Host>> {
        let hostname = format!("{name}.{namespace}.svc.{}", self.config.cluster_domain);
        self.registry.find(namespace, &hostname).into_iter().collect()
    }

    /// The hosts of a ServiceEntry.
    pub(super) fn of_entry(&self, namespace: &str, name: &str) -> Vec<&Arc<Host>> {
        let own = |host: &&Arc<Host>| {
            matches!(host.origin, Origin::Entry(_))
                && *host.meta.namespace == *namespace
                && *host.meta.name == *name
        };
        self.registry.all().filter(own).collect()
    }

    /// The Gateway of that name.
    pub(super) fn gateway(&self, namespace: &str, name: &str) -> Option<&'a Object<Gateway>> {
        self.gateways.get(&(namespace, name)).copied()
    }

    /// The Gateway of a waypoint, named as `namespace/name`.
    pub(super) fn gateway_named(&self, key: &str) -> Option<&'a Object<Gateway>> {
        let (namespace, name) = key.split_once('/')?;
        self.gateway(namespace, name)
    }

    /// The waypoint before a host: also one that is not ready yet.
    pub(super) fn guard(&self, host: &Host) -> Option<&'a Object<Gateway>> {
        match self.waypoints.of_host(host) {
            Ok(attachment) => self.gateway_named(&attachment?.gateway),
            Err(Refusal::NotReady { gateway }) => self.gateway_named(&gateway),
            Err(_) => None,
        }
    }

    /// All that a policy of `namespace` with this target counts for; nothing if there is no such target.
    pub(super) fn targeted(&self, target: &TargetRef, namespace: &str) -> Option<Targeted<'_>> {
        let group = target.group.as_deref().unwrap_or_default();
        match (group, target.kind.as_str()) {
            ("" | "core", "Service") => {
                let there = self.manifests.services.iter();
                is_among(there.map(|one| &one.meta), namespace, &target.name)
                    .then(|| Targeted::Hosts(self.of_service(namespace, &target.name)))
            }
            ("networking.istio.io", "ServiceEntry") => {
                let there = self.manifests.service_entries.iter();
                is_among(there.map(|one| &one.meta), namespace, &target.name)
                    .then(|| Targeted::Hosts(self.of_entry(namespace, &target.name)))
            }
            (GATEWAY_GROUP, "Gateway") => {
                let gateway = self.gateway(namespace, &target.name)?;
                let own = |host: &&Arc<Host>| {
                    self.guard(host).is_some_and(|guard| std::ptr::eq(guard, gateway))
                };
                Some(Targeted::Waypoint(self.registry.all().filter(own).collect()))
            }
            (GATEWAY_GROUP, "GatewayClass") => {
                let known = target.name == "istio-waypoint"
                    && namespace == self.config.root_namespace.as_str();
                let own = |host: &&Arc<Host>| self.guard(host).is_some();
                known.then(|| Targeted::Waypoint(self.registry.all().filter(own).collect()))
            }
            // What can be no target is a problem of its own.
            _ => Some(Targeted::Waypoint(Vec::new())),
        }
    }

    /// The subsets of a host that a route of `client` may name.
    pub(super) fn has_subset(&self, host: &Host, subset: &str, client: &str) -> bool {
        let has = |client: &str| {
            self.rules.get(client).is_some_and(|rules| {
                [Side::Inbound, Side::Outbound].into_iter().any(|side| {
                    rules.subsets(host, side).iter().any(|candidate| candidate.name == subset)
                })
            })
        };
        // Rules for single clients are not looked into.
        let selecting = self.manifests.destination_rules.iter().any(|rule| {
            rule.spec.workload_selector.is_some()
                && *rule.meta.namespace == *client
                && rule.spec.subsets.iter().any(|candidate| candidate.name == subset)
        });
        has(client) || selecting
    }

    /// The pods that a selector of `namespace` has; in the root namespace those of all.
    pub(super) fn selected(&self, namespace: &str, labels: &Labels) -> Vec<&'a Object<Pod>> {
        let everywhere = namespace == self.config.root_namespace.as_str();
        let namespaces = self.pods.iter().filter(|(own, _)| everywhere || **own == namespace);
        let pods = namespaces.flat_map(|(_, pods)| pods).copied();
        pods.filter(|pod| labels.iter().all(|(key, value)| pod.meta.labels.get(key) == Some(value)))
            .collect()
    }

    /// The same for a policy, whose missing selector selects all.
    pub(super) fn policed(
        &self,
        namespace: &str,
        selector: Option<&Selector>,
    ) -> Vec<&'a Object<Pod>> {
        const ALL: &Labels = &Labels::new();
        self.selected(namespace, Selector::labels(selector).unwrap_or(ALL))
    }

    /// Whether a pod takes tunnels, or is none of those that could be enrolled: a proxy of the mesh itself.
    pub(super) fn is_in_mesh(&self, pod: &Object<Pod>) -> bool {
        if pod.meta.labels.contains_key("gateway.networking.k8s.io/gateway-name") {
            return true;
        }
        let namespace = self.registry.namespace(&pod.meta.namespace);
        is_enrolled(&pod.meta, &pod.spec, namespace, self.registry.marks()) != Enrolled::No
    }
}

/// What a policy counts for.
pub(super) enum Targeted<'a> {
    /// Hosts of a Service or ServiceEntry.
    Hosts(Vec<&'a Arc<Host>>),
    /// All hosts of waypoints.
    Waypoint(Vec<&'a Arc<Host>>),
}

impl<'a> Targeted<'a> {
    pub(super) fn hosts(&self) -> &[&'a Arc<Host>] {
        match self {
            Self::Hosts(hosts) | Self::Waypoint(hosts) => hosts,
        }
    }
}

/// Whether there is an object of that name.
pub(super) fn is_among<'m>(
    mut all: impl Iterator<Item = &'m Meta>,
    namespace: &str,
    name: &str,
) -> bool {
    all.any(|meta| *meta.namespace == *namespace && *meta.name == *name)
}

/// The first names of a list, for people.
pub(super) fn some_of(names: &[String]) -> String {
    match names {
        [] | [_] | [_, _] | [_, _, _] => names.join(", "),
        [first, second, third, rest @ ..] => {
            format!("{first}, {second}, {third} and {} more", rest.len())
        }
    }
}
