//! What is filled in, refused and ignored when workloads and services are decoded.

use proto::workload as wire;

use super::*;

fn check_workload(workload: wire::Workload, expected: &str) {
    let found = match Workload::try_from(workload) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    };
    assert_eq!(found, expected);
}

fn check_service(service: wire::Service, expected: &str) {
    let found = match Service::try_from(service) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    };
    assert_eq!(found, expected);
}

fn workload() -> wire::Workload {
    wire::Workload { uid: "u".into(), namespace: "shop".into(), ..Default::default() }
}

fn service() -> wire::Service {
    wire::Service { hostname: "h".into(), namespace: "shop".into(), ..Default::default() }
}

fn ports(service_port: u32, target_port: u32) -> Vec<wire::Port> {
    vec![wire::Port { service_port, target_port, app_protocol: 99 }]
}

#[test]
fn defaults_are_filled_in() {
    let found = Workload::try_from(workload()).unwrap();
    assert_eq!(found.identity().unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!((&*found.cluster, found.capacity), ("Kubernetes", 1));
    assert_eq!((found.health, found.network_mode), (Health::Healthy, NetworkMode::Standard));
    let found = Service::try_from(service()).unwrap();
    assert_eq!((&*found.key, found.load_balancing.mode), ("shop/h", LoadBalancingMode::Any));
    let gateway = wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Address(wire::NetworkAddress {
            address: vec![10, 0, 0, 1],
            ..Default::default()
        })),
        hbone_mtls_port: 0,
    };
    assert_eq!(GatewayAddress::try_from(&gateway).unwrap().hbone_port, HBONE_PORT);
}

#[test]
fn an_identity_has_the_trust_domain_of_its_record() {
    let record = wire::Workload {
        trust_domain: "td.example".into(),
        service_account: "web".into(),
        ..workload()
    };
    let found = Workload::try_from(record).unwrap();
    assert_eq!(found.identity().unwrap().as_str(), "spiffe://td.example/ns/shop/sa/web");
}

#[test]
fn sidecar_mutual_tls_is_plain_tcp() {
    let legacy = i32::from(wire::TunnelProtocol::LegacyIstioMtls);
    let found = Workload::try_from(wire::Workload { tunnel_protocol: legacy, ..workload() });
    assert_eq!(found.unwrap().tunnel_protocol, TunnelProtocol::None);
}

#[test]
fn a_workload_without_a_uid_is_refused() {
    check_workload(wire::Workload { uid: String::new(), ..workload() }, "uid: is empty");
}

#[test]
fn an_identity_that_cannot_be_is_refused_where_tunnels_lead_and_nobody_elsewhere() {
    let nameless = |tunnel_protocol| wire::Workload {
        namespace: "not/a/namespace".into(),
        tunnel_protocol,
        ..workload()
    };
    let refusal = "identity: `spiffe://cluster.local/ns/not/a/namespace/sa/default` is not of the form \
                   spiffe://<trust domain>/ns/<namespace>/sa/<service account>";
    check_workload(nameless(1), refusal);
    assert_eq!(Workload::try_from(nameless(0)).unwrap().identity(), None);
}

#[test]
fn unknown_values_are_refused_where_they_decide_how_traffic_is_carried() {
    let unknown = |field: &str| format!("{field}: 9 is not a known value");
    check_workload(
        wire::Workload { tunnel_protocol: 9, ..workload() },
        &unknown("tunnel_protocol"),
    );
    check_workload(wire::Workload { network_mode: 9, ..workload() }, &unknown("network_mode"));
    check_workload(wire::Workload { status: 9, ..workload() }, &unknown("status"));
    let tunnel = wire::ApplicationTunnel { protocol: 9, port: 0 };
    let tunnelled = wire::Workload { application_tunnel: Some(tunnel), ..workload() };
    check_workload(tunnelled, &unknown("application_tunnel.protocol"));
    check_service(wire::Service { ip_families: 9, ..service() }, &unknown("ip_families"));
    for (balancing, field) in [
        (wire::LoadBalancing { mode: 9, ..Default::default() }, "mode"),
        (wire::LoadBalancing { health_policy: 9, ..Default::default() }, "health_policy"),
        (
            wire::LoadBalancing { routing_preference: vec![1, 9], ..Default::default() },
            "routing_preference[1]",
        ),
    ] {
        let balanced = wire::Service { load_balancing: Some(balancing), ..service() };
        check_service(balanced, &unknown(&format!("load_balancing.{field}")));
    }
}

#[test]
fn unknown_values_that_only_describe_are_ignored() {
    let found = Workload::try_from(wire::Workload { workload_type: 9, ..workload() }).unwrap();
    assert_eq!(found.workload_type, WorkloadType::Pod);
    let found = wire::Service { visibility: 9, ports: ports(80, 8080), ..service() };
    let found = Service::try_from(found).unwrap();
    assert_eq!(found.visibility, Visibility::Public);
    assert_eq!(found.ports[0].app_protocol, AppProtocol::Unknown);
}

#[test]
fn a_bad_address_or_port_is_refused_by_its_path() {
    let addresses = vec![vec![10, 0, 0, 1], vec![1, 2]];
    check_workload(
        wire::Workload { addresses, ..workload() },
        "addresses[1]: an address has 4 or 16 bytes, found 2",
    );
    let services = [("shop/h".to_owned(), wire::PortList { ports: ports(80, 70_000) })].into();
    check_workload(
        wire::Workload { services, ..workload() },
        "services[shop/h].ports[0]: a port is at most 65535, found 70000",
    );
    check_workload(
        wire::Workload { waypoint: Some(wire::GatewayAddress::default()), ..workload() },
        "waypoint.destination: has no value",
    );
    check_service(
        wire::Service { weighted_waypoints: vec![Default::default()], ..service() },
        "weighted_waypoints[0].destination: has no value",
    );
    check_service(
        wire::Service { ports: ports(65_536, 0), ..service() },
        "ports[0]: a port is at most 65535, found 65536",
    );
    let address =
        wire::NetworkAddress { address: vec![10, 0, 0, 0], length: Some(33), ..Default::default() };
    check_service(
        wire::Service { addresses: vec![address], ..service() },
        "addresses[0]: a prefix of 10.0.0.0 has at most 32 bits, found 33",
    );
}

#[test]
fn a_service_without_a_host_name_is_refused() {
    check_service(wire::Service { hostname: String::new(), ..service() }, "hostname: is empty");
}

#[test]
fn a_subject_alt_name_that_is_no_workloads_name_admits_nobody_and_is_kept_to_be_shown() {
    let names = vec!["spiffe://td/ns/a/sa/b".into(), "dns.example".into()];
    let found = Service::try_from(wire::Service { subject_alt_names: names, ..service() }).unwrap();
    assert_eq!(found.identities.len(), 1);
    assert_eq!(found.subject_alt_names.len(), 2);
}
