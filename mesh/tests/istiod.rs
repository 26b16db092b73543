//! Everything that a real istiod was recorded to send can be decoded, and is found where it belongs.
//!
//! In: `../shared/fixtures/istiod/<case>/*.pb`, delta responses with their lengths as varints before them.

use std::{fs, path::PathBuf, sync::Arc};

use mesh::store::{
    GatewayTarget, IpFamilies, LoadBalancingMode, RoutingScope, Snapshot, Store, TunnelProtocol,
    Update,
};
use prost::Message;
use proto::{discovery::DeltaDiscoveryResponse, security::Authorization, workload::Address};

fn recorded(case: &str, file: &str) -> Vec<DeltaDiscoveryResponse> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/fixtures/istiod")
        .join(case)
        .join(file);
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut rest = &bytes[..];
    let mut responses = Vec::new();
    while !rest.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest);
        responses.push(response.expect("recordings are whole"));
    }
    responses
}

fn updates(responses: Vec<DeltaDiscoveryResponse>) -> impl Iterator<Item = Update> {
    responses.into_iter().flat_map(|response| response.resources).map(|resource| {
        let any = resource.resource.expect("a resource");
        let update = match any.type_url.as_str() {
            proto::ADDRESS_TYPE => Address::decode(&*any.value).expect("an Address").try_into(),
            proto::AUTHORIZATION_TYPE => {
                let policy = Authorization::decode(&*any.value).expect("an Authorization");
                policy.try_into().map(Update::Policy)
            }
            other => panic!("{other}"),
        };
        update.unwrap_or_else(|error| panic!("{}: {error}", resource.name))
    })
}

fn snapshot(case: &str) -> Arc<Snapshot> {
    let store = Store::new();
    store.apply(updates(recorded(case, "ztunnel.address.pb")));
    store.apply(updates(recorded(case, "ztunnel.authorization.pb")));
    store.load()
}

fn check(case: &str, workloads: usize, services: usize, policies: usize) {
    let snapshot = snapshot(case);
    let found =
        (snapshot.workloads().count(), snapshot.services().count(), snapshot.policies().len());
    assert_eq!(found, (workloads, services, policies), "{case}");
}

#[test]
fn every_recorded_resource_is_decoded() {
    check("01-basic", 20, 15, 0);
    check("02-l4-policy", 20, 3, 18);
    check("03-traffic-distribution", 11, 30, 0);
    check("04-external", 30, 27, 0);
    check("05-waypoint-simple", 19, 21, 0);
    check("06-httproute", 17, 16, 0);
    check("07-virtualservice", 35, 25, 0);
    check("08-l7-authz", 15, 13, 1);
    check("09-telemetry", 9, 8, 0);
    check("10-egress", 15, 12, 0);
    check("11-multinetwork", 18, 9, 0);
    check("12-extensions", 6, 5, 0);
}

#[test]
fn every_name_is_the_one_that_a_removal_uses() {
    for case in ["01-basic", "02-l4-policy", "04-external", "11-multinetwork"] {
        let store = Store::new();
        let mut removals = Vec::new();
        for (file, removal) in [
            ("ztunnel.address.pb", Update::RemoveAddress as fn(String) -> Update),
            ("ztunnel.authorization.pb", Update::RemovePolicy),
        ] {
            let responses = recorded(case, file);
            let names = responses.iter().flat_map(|response| &response.resources);
            removals.extend(names.map(|resource| removal(resource.name.clone())));
            store.apply(updates(responses));
        }
        store.apply(removals);
        let left = store.load();
        assert_eq!(left.workloads().count() + left.services().count(), 0, "{case}");
        assert!(left.policies().is_empty(), "{case}");
    }
}

#[test]
fn a_recorded_waypoint_is_found_from_the_service_it_guards() {
    let snapshot = snapshot("05-waypoint-simple");
    let service = snapshot.service("orders/single.orders.svc.cluster.local").unwrap();
    let waypoint = service.waypoint.as_ref().unwrap();
    let key = "orders/waypoint.orders.svc.cluster.local";
    assert_eq!(waypoint.target, GatewayTarget::Host { key: key.into() });
    assert_eq!(waypoint.hbone_port, 15008);
    let guard = snapshot.service(key).unwrap();
    assert_eq!(guard.load_balancing.mode, LoadBalancingMode::Failover);
    assert_eq!(
        &*guard.load_balancing.preferences,
        [RoutingScope::Network, RoutingScope::Region, RoutingScope::Zone]
    );
    let mut endpoints: Vec<&str> =
        snapshot.endpoints(guard).unwrap().iter().map(|one| &*one.name).collect();
    endpoints.sort_unstable();
    assert_eq!(endpoints, ["waypoint-5f7c9d8b6-aw0x", "waypoint-5f7c9d8b6-bw1x"]);
}

#[test]
fn a_recorded_pod_is_found_by_address_by_name_and_by_uid() {
    let snapshot = snapshot("05-waypoint-simple");
    let by_uid = snapshot.workload("Kubernetes//Pod/edge/e-wl").unwrap();
    let by_name = snapshot.workload_of("edge", "e-wl", "default").unwrap();
    let by_address = snapshot.workload_by_address("", "10.244.2.30".parse().unwrap()).unwrap();
    assert!(Arc::ptr_eq(by_uid, by_name) && Arc::ptr_eq(by_uid, by_address));
    assert_eq!(by_uid.tunnel_protocol, TunnelProtocol::Hbone);
    assert_eq!(by_uid.identity().unwrap().as_str(), "spiffe://cluster.local/ns/edge/sa/default");
    let membership = by_uid.membership("edge/e.edge.svc.cluster.local").unwrap();
    assert_eq!(membership.target_port(81).unwrap().get(), 8081);
}

#[test]
fn a_recorded_service_is_found_by_either_family() {
    let snapshot = snapshot("05-waypoint-simple");
    for ip in ["10.96.1.14", "fd00:10:96::114"] {
        let service = snapshot.service_by_address("", ip.parse().unwrap(), "any").unwrap();
        assert_eq!(&*service.key, "orders/dual.orders.svc.cluster.local");
        assert_eq!(service.ip_families, IpFamilies::Any);
    }
}

#[test]
fn a_recorded_host_of_several_namespaces_is_the_clients_own_first() {
    let snapshot = snapshot("04-external");
    let found = |client: &str| &*snapshot.service_by_host("api.example.com", client).unwrap().key;
    assert_eq!(found("owned"), "owned/api.example.com");
    assert_ne!(found("vm"), "owned/api.example.com");
}
