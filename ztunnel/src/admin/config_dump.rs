//! The dump of what the daemon knows and does, as `istioctl ztunnel-config` reads it.
//!
//! In: [`Handles`]. Out: a [`ConfigDump`] to serialize. Field names and values are Istio's; `rejectedPolicies`,
//! `xds` and `capture` are ours.

mod certificates;
mod policies;
mod services;
mod workload_state;
mod workloads;

use std::{collections::BTreeMap, sync::Arc};

use mesh::{store::Snapshot, xds::XdsStatus};
use serde::{Serialize, Serializer};

use self::{certificates::Certificate, workload_state::WorkloadState};
use super::Handles;

/// The whole dump.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConfigDump<'a> {
    #[serde(serialize_with = "workloads")]
    workloads: Arc<Snapshot>,
    #[serde(serialize_with = "services")]
    services: Arc<Snapshot>,
    #[serde(serialize_with = "policies")]
    policies: Arc<Snapshot>,
    #[serde(serialize_with = "rejected_policies")]
    rejected_policies: Arc<Snapshot>,
    /// Istio's ztunnel keeps endpoints of services that have not arrived here. Ours are in the store: always empty.
    staged_services: BTreeMap<(), ()>,
    static_config: StaticConfig,
    version: Version<'a>,
    config: &'a serde_json::Value,
    certificates: Vec<Certificate>,
    workload_state: BTreeMap<String, WorkloadState>,
    xds: XdsStatus,
    capture: BTreeMap<&'static str, u64>,
}

/// Istio's ztunnel can be given workloads in a file. Ours cannot: always empty.
#[derive(Default, Serialize)]
struct StaticConfig {
    workloads: [(); 0],
    services: [(); 0],
    policies: [(); 0],
}

/// What is running.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Version<'a> {
    version: &'static str,
    git_revision: &'static str,
    rust_version: &'static str,
    build_profile: &'static str,
    build_status: &'static str,
    istio_version: &'a str,
    crypto_provider: &'static str,
}

impl<'a> ConfigDump<'a> {
    pub(super) fn of(handles: &'a Handles) -> Self {
        let snapshot = handles.store.load();
        Self {
            workloads: Arc::clone(&snapshot),
            services: Arc::clone(&snapshot),
            policies: Arc::clone(&snapshot),
            rejected_policies: snapshot,
            staged_services: BTreeMap::new(),
            static_config: StaticConfig::default(),
            version: Version::running(&handles.istio_version),
            config: &handles.config,
            certificates: certificates::all(&handles.identities),
            workload_state: workload_state::all(&(handles.pods)(), &handles.connections.list()),
            xds: handles.xds.borrow().clone(),
            capture: (handles.capture_counters)().into_iter().collect(),
        }
    }
}

impl<'a> Version<'a> {
    fn running(istio_version: &'a str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            git_revision: option_env!("AQUIFER_GIT_REVISION").unwrap_or("unknown"),
            rust_version: env!("CARGO_PKG_RUST_VERSION"),
            build_profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            build_status: option_env!("AQUIFER_BUILD_STATUS").unwrap_or("unknown"),
            istio_version,
            crypto_provider: "tls-aws-lc",
        }
    }
}

// Each is written one by one: a store of 100,000 workloads is not copied to be dumped.

fn workloads<S: Serializer>(snapshot: &Snapshot, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(snapshot.workloads().map(|workload| workloads::Workload::of(workload)))
}

fn services<S: Serializer>(snapshot: &Snapshot, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(snapshot.services().map(|service| services::Service::of(service, snapshot)))
}

fn policies<S: Serializer>(snapshot: &Snapshot, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(snapshot.policies().iter().map(|policy| policies::Policy::of(policy)))
}

fn rejected_policies<S: Serializer>(snapshot: &Snapshot, to: S) -> Result<S::Ok, S::Error> {
    let policies = snapshot.policies();
    to.collect_seq(policies.rejected().map(|rejected| policies::Rejected::of(rejected, policies)))
}

fn is_empty(text: &&str) -> bool {
    text.is_empty()
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use mesh::store::{Store, Update};
    use proto::{
        security::{
            Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match::MatchType,
        },
        workload::{
            self as wire, GatewayAddress, Locality, NamespacedHostname, NetworkAddress, Port,
            PortList, TunnelProtocol, WorkloadType, gateway_address::Destination,
        },
    };
    use serde_json::{Value, json};

    use super::*;

    fn snapshot(updates: impl IntoIterator<Item = Update>) -> Arc<Snapshot> {
        let store = Store::new();
        store.apply(updates);
        store.load()
    }

    fn workload() -> wire::Workload {
        let ports = vec![Port { service_port: 80, target_port: 8080, ..Default::default() }];
        wire::Workload {
            uid: "Kubernetes//Pod/shop/cart-1".into(),
            name: "cart-1".into(),
            namespace: "shop".into(),
            addresses: vec![vec![10, 0, 0, 2]],
            tunnel_protocol: TunnelProtocol::Hbone.into(),
            service_account: "cart".into(),
            node: "node-b".into(),
            canonical_name: "cart".into(),
            canonical_revision: "v1".into(),
            workload_name: "cart".into(),
            workload_type: WorkloadType::Pod.into(),
            locality: Some(Locality {
                region: "r".into(),
                zone: "z".into(),
                subzone: String::new(),
            }),
            authorization_policies: vec!["shop/allow-web".into()],
            waypoint: Some(GatewayAddress {
                destination: Some(Destination::Hostname(NamespacedHostname {
                    namespace: "shop".into(),
                    hostname: "waypoint.shop.svc.cluster.local".into(),
                })),
                hbone_mtls_port: 15008,
            }),
            services: [("shop/cart.shop.svc.cluster.local".to_owned(), PortList { ports })].into(),
            ..Default::default()
        }
    }

    fn service() -> wire::Service {
        wire::Service {
            name: "cart".into(),
            namespace: "shop".into(),
            hostname: "cart.shop.svc.cluster.local".into(),
            addresses: vec![NetworkAddress { address: vec![10, 1, 0, 2], ..Default::default() }],
            ports: vec![Port { service_port: 80, target_port: 8080, ..Default::default() }],
            canonical: true,
            ..Default::default()
        }
    }

    fn check<T: Serialize>(found: T, expected: Value) {
        let found = serde_json::to_value(found).unwrap();
        assert_eq!(found, expected, "found {found:#}\nexpected {expected:#}");
    }

    #[test]
    fn a_workload_has_istios_keys_and_leaves_defaults_out() {
        let workload = mesh::store::Workload::try_from(workload()).unwrap();
        check(
            workloads::Workload::of(&workload),
            json!({
                "workloadIps": ["10.0.0.2"],
                "waypoint": {
                    "destination": "shop/waypoint.shop.svc.cluster.local",
                    "hboneMtlsPort": 15008,
                },
                "protocol": "HBONE",
                "networkMode": "Standard",
                "uid": "Kubernetes//Pod/shop/cart-1",
                "name": "cart-1",
                "namespace": "shop",
                "trustDomain": "cluster.local",
                "serviceAccount": "cart",
                "workloadName": "cart",
                "workloadType": "pod",
                "canonicalName": "cart",
                "canonicalRevision": "v1",
                "node": "node-b",
                "authorizationPolicies": ["shop/allow-web"],
                "status": "Healthy",
                "clusterId": "Kubernetes",
                "locality": {"region": "r", "zone": "z"},
                "services": ["shop/cart.shop.svc.cluster.local"],
                "capacity": 1,
            }),
        );
    }

    #[test]
    fn a_service_shows_addresses_ports_and_endpoints() {
        let updates = [
            Update::Workload(workload().try_into().unwrap()),
            Update::Service(service().try_into().unwrap()),
        ];
        let snapshot = snapshot(updates);
        let service = snapshot.services().next().unwrap();
        check(
            services::Service::of(service, &snapshot),
            json!({
                "name": "cart",
                "namespace": "shop",
                "hostname": "cart.shop.svc.cluster.local",
                "vips": ["/10.1.0.2"],
                "ports": {"80": 8080},
                "endpoints": {"Kubernetes//Pod/shop/cart-1": {
                    "workloadUid": "Kubernetes//Pod/shop/cart-1",
                    "port": {"80": 8080},
                    "status": "Healthy",
                }},
                "subjectAltNames": [],
                "canonical": true,
                "visibility": "Public",
            }),
        );
    }

    #[test]
    fn a_rejected_policy_is_shown_with_its_fault_and_what_is_in_force() {
        let held =
            Authorization { name: "a".into(), namespace: "shop".into(), ..Default::default() };
        let bad = |name: &str| {
            let wire = Authorization { action: 9, ..held.clone() };
            let bytes = prost::Message::encode_to_vec(&wire);
            Update::RejectPolicy(mesh::policy::Rejected::of(name, &bytes, "action: 9", "root"))
        };
        let updates =
            [Update::Policy(held.clone().try_into().unwrap()), bad("shop/a"), bad("shop/b")];
        let snapshot = snapshot(updates);
        let policies = snapshot.policies();
        let shown: Vec<_> =
            policies.rejected().map(|one| policies::Rejected::of(one, policies)).collect();
        check(
            shown,
            json!([
                {"policy": "shop/a", "appliesTo": "everyone", "error": "action: 9", "inForce": "older version"},
                {"policy": "shop/b", "appliesTo": "everyone", "error": "action: 9", "inForce": "denial"},
            ]),
        );
    }

    #[test]
    fn a_policy_is_rules_of_clauses_of_matches() {
        let principal = MatchType::Exact("cluster.local/ns/shop/sa/web".into());
        let matched = Match {
            principals: vec![StringMatch { match_type: Some(principal) }],
            not_namespaces: vec![StringMatch { match_type: Some(MatchType::Presence(())) }],
            destination_ports: vec![8080],
            ..Default::default()
        };
        let policy = Authorization {
            name: "allow-web".into(),
            namespace: "shop".into(),
            scope: Scope::WorkloadSelector.into(),
            action: Action::Allow.into(),
            rules: vec![Rule { clauses: vec![Clause { matches: vec![matched] }] }],
            ..Default::default()
        };
        let policy = mesh::policy::Policy::try_from(policy).unwrap();
        check(
            policies::Policy::of(&policy),
            json!({
                "name": "allow-web",
                "namespace": "shop",
                "scope": "WorkloadSelector",
                "action": "Allow",
                "rules": [[[{
                    "notNamespaces": [{"Presence": []}],
                    "principals": [{"Exact": "cluster.local/ns/shop/sa/web"}],
                    "destinationPorts": [8080],
                }]]],
                "dryRun": false,
            }),
        );
    }
}
