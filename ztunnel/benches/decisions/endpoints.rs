//! A service of 10,000 endpoints: one of them changes, one of them is chosen.

use std::{hint::black_box, sync::Arc, time::Instant};

use mesh::store::{Store, Update};
use proto::workload::{
    Address, LoadBalancing, Locality, NetworkAddress, Port, PortList, Service, TunnelProtocol,
    Workload, address,
    load_balancing::{Mode, Scope},
};
use ztunnel::next_hop::{Experience, Outbound, next_hop};

use crate::row::Row;

const ENDPOINTS: u32 = 10_000;
const KEY: &str = "many/large.many.svc.cluster.local";

/// The capacity of one endpoint.
type Capacity = fn(u32) -> u32;

/// Half of the changes are of health, half come and go.
pub(crate) fn change() -> Vec<Row> {
    let modes =
        [(Mode::UnspecifiedMode, "without preference"), (Mode::Failover, "with preferences")];
    let row = |(mode, name): (Mode, &str)| {
        let store = mesh(mode, |_| 1);
        let times = (0..2000_u32).map(|at| {
            let mut workload = endpoint(at * 5 % ENDPOINTS, 1);
            workload.status = i32::from(at % 2 == 0);
            let change = match at % 4 {
                3 => Update::RemoveAddress(workload.uid),
                _ => update(address::Type::Workload(workload)),
            };
            // Somebody reads what was before, as connections do.
            let before = store.load();
            let begun = Instant::now();
            store.apply([change]);
            let took = begun.elapsed();
            drop(before);
            took
        });
        let what = format!("change one endpoint of 10,000, {name}");
        Row::times(&what, times.collect(), "< 200 µs")
    };
    modes.into_iter().map(row).collect()
}

/// Every mode, with equal and with unequal capacities.
pub(crate) fn pick() -> Vec<Row> {
    let modes =
        [(Mode::UnspecifiedMode, "any"), (Mode::Strict, "strict"), (Mode::Failover, "failover")];
    let capacities: [(Capacity, &str); 2] =
        [(|_| 1, "equal capacities"), (|at| 1 + at % 100, "unequal capacities")];
    let mut rows = Vec::new();
    for (mode, name) in modes {
        for (capacity, shares) in capacities {
            let store = mesh(mode, capacity);
            let snapshot = store.load();
            let source = Arc::clone(snapshot.workload("client").expect("added below"));
            let orig_dst = "10.0.0.1:80".parse().expect("an address");
            let outbound = Outbound { source: &source, orig_dst, network: "" };
            let what = format!("choose one endpoint of 10,000, {name}, {shares}");
            rows.push(Row::calls(&what, "< 1 µs", |pick| {
                let hop = next_hop(&snapshot, &outbound, &Experience::NONE, pick);
                drop(black_box(hop.expect("there are endpoints")));
            }));
        }
    }
    rows
}

fn mesh(mode: Mode, capacity: impl Fn(u32) -> u32) -> Arc<Store> {
    let store = Store::new();
    let client = Workload { uid: "client".into(), services: [].into(), ..endpoint(1, 1) };
    let endpoints = (0..ENDPOINTS).map(|at| endpoint(at, capacity(at)));
    let workloads = endpoints.chain([client]).map(address::Type::Workload);
    store.apply([address::Type::Service(service(mode))].into_iter().chain(workloads).map(update));
    store
}

fn update(one: address::Type) -> Update {
    Update::try_from(Address { r#type: Some(one) }).expect("well formed")
}

fn service(mode: Mode) -> Service {
    let (namespace, hostname) = KEY.split_once('/').expect("written above");
    let preferences: &[Scope] = match mode {
        Mode::Strict => &[Scope::Node],
        Mode::Failover => {
            &[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node]
        }
        Mode::UnspecifiedMode | Mode::Passthrough => &[],
    };
    Service {
        name: "large".into(),
        namespace: namespace.into(),
        hostname: hostname.into(),
        addresses: vec![NetworkAddress { address: vec![10, 0, 0, 1], ..Default::default() }],
        ports: vec![Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        load_balancing: Some(LoadBalancing {
            routing_preference: preferences.iter().map(|scope| i32::from(*scope)).collect(),
            mode: mode.into(),
            health_policy: 0,
        }),
        ..Default::default()
    }
}

fn endpoint(at: u32, capacity: u32) -> Workload {
    let [_, _, middle, low] = at.to_be_bytes();
    let port = Port { service_port: 80, target_port: 8080, app_protocol: 0 };
    Workload {
        uid: format!("Kubernetes//Pod/many/large-7f9c6d5b48-{at:05}"),
        name: format!("large-7f9c6d5b48-{at:05}"),
        namespace: "many".into(),
        addresses: vec![vec![100, 0, middle, low]],
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        service_account: "large".into(),
        node: format!("node-{}", at % 1000),
        services: [(KEY.to_owned(), PortList { ports: vec![port] })].into(),
        locality: Some(Locality {
            region: "eu-central".into(),
            zone: format!("eu-central-{}", at % 3),
            subzone: String::new(),
        }),
        capacity: Some(capacity),
        ..Default::default()
    }
}
