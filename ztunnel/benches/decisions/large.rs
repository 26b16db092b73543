//! What it takes to know a large mesh: 100,000 workloads, 10,000 services.

use std::time::Instant;

use mesh::store::{Store, Update};
use prost::Message as _;
use proto::workload::{
    Address, Locality, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload, address,
};

use crate::row::Row;

const WORKLOADS: u32 = 100_000;
const SERVICES: u32 = 10_000;

/// Decodes and applies everything as one push.
pub(crate) fn load() -> Vec<Row> {
    let before = resident_megabytes();
    let store = Store::new();
    // Each message is gone before the next is made, so that what stays is the store.
    store.apply(wire().map(|message| update(&message)));
    let after = resident_megabytes();
    drop(store);

    let messages: Vec<Vec<u8>> = wire().collect();
    let store = Store::new();
    let begun = Instant::now();
    store.apply(messages.iter().map(|message| update(message)));
    let took = begun.elapsed().as_millis();
    assert_eq!(store.load().workloads().count(), WORKLOADS as usize);
    let what = "load 100,000 workloads and 10,000 services";
    vec![
        Row::once(what, format!("{took} ms"), "≤ 3 s"),
        Row::once("hold them", format!("{} MB", after - before), "≤ 150 MB"),
    ]
}

fn update(message: &[u8]) -> Update {
    let address = Address::decode(message).expect("encoded here");
    Update::try_from(address).expect("well formed")
}

fn wire() -> impl Iterator<Item = Vec<u8>> {
    let services = (0..SERVICES).map(service).map(address::Type::Service);
    let workloads = (0..WORKLOADS).map(workload).map(address::Type::Workload);
    services.chain(workloads).map(|one| Address { r#type: Some(one) }.encode_to_vec())
}

fn hostname(service: u32) -> String {
    format!("service-{service}.many.svc.cluster.local")
}

fn service(at: u32) -> Service {
    let [_, high, middle, low] = at.to_be_bytes();
    Service {
        name: format!("service-{at}"),
        namespace: "many".into(),
        hostname: hostname(at),
        addresses: vec![NetworkAddress {
            address: vec![10, high, middle, low],
            ..Default::default()
        }],
        ports: vec![Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        ..Default::default()
    }
}

fn workload(at: u32) -> Workload {
    let [_, high, middle, low] = at.to_be_bytes();
    let service = at % SERVICES;
    let key = format!("many/{}", hostname(service));
    let port = Port { service_port: 80, target_port: 8080, app_protocol: 0 };
    Workload {
        uid: format!("Kubernetes//Pod/many/app-{service}-7f9c6d5b48-{at}"),
        name: format!("app-{service}-7f9c6d5b48-{at}"),
        namespace: "many".into(),
        addresses: vec![vec![100, high, middle, low]],
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        service_account: format!("app-{service}"),
        node: format!("node-{}", at % 1000),
        canonical_name: format!("app-{service}"),
        canonical_revision: "latest".into(),
        workload_name: format!("app-{service}"),
        services: [(key, PortList { ports: vec![port] })].into(),
        locality: Some(Locality {
            region: "eu-central".into(),
            zone: format!("eu-central-{}", at % 3),
            subzone: String::new(),
        }),
        ..Default::default()
    }
}

fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("Linux tells it");
    kilobytes.trim().parse::<u64>().expect("a number") / 1000
}
