//! Compiles what a real istiod was given and compares with what it sent.
//!
//! Every difference that is meant stands in [`DIFFERENCES`], with its reason.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::PathBuf,
};

use prost::Message;
use proto::{
    discovery::DeltaDiscoveryResponse,
    security::{Authorization, Rule},
    workload::{Address, Service, address::Type, service::Visibility},
};

use super::{
    MeshConfig, Resources, compile,
    status::{Condition, statuses},
};
use crate::manifests::{Folder, Severity};

/// Where we differ from istiod on purpose.
struct Difference {
    case: &'static str,
    resource: &'static str,
    reason: &'static str,
    change: Change,
}

/// What makes ours of istiod's.
enum Change {
    Edit(fn(&mut Address)),
    /// We do not send it.
    Left,
}

const CHANCE: &str = "istiod takes one of two equally old services by chance, we the first by name";
const EXPORT: &str = "istiod ignores exportTo; to its own namespace or to none, we honour it";

const DIFFERENCES: [Difference; 6] = [
    Difference {
        case: "04-external",
        resource: "ext/dup.example.com",
        reason: CHANCE,
        change: Change::Edit(|address| service(address).canonical = true),
    },
    Difference {
        case: "04-external",
        resource: "vm/dup.example.com",
        reason: CHANCE,
        change: Change::Edit(|address| service(address).canonical = false),
    },
    Difference {
        case: "04-external",
        resource: "Kubernetes/networking.istio.io/ServiceEntry/ext/static/2001:db8::10",
        reason: "the network of one endpoint is not that of those after it",
        change: Change::Edit(|address| {
            if let Some(Type::Workload(workload)) = &mut address.r#type {
                workload.network.clear();
            }
        }),
    },
    Difference {
        case: "04-external",
        resource: "private/private.example.com",
        reason: EXPORT,
        change: Change::Edit(|address| {
            let service = service(address);
            service.visibility = Visibility::Namespace.into();
            service.canonical = false;
        }),
    },
    Difference {
        case: "04-external",
        resource: "private/nowhere.example.com",
        reason: EXPORT,
        change: Change::Left,
    },
    Difference {
        case: "04-external",
        resource: "Kubernetes/networking.istio.io/ServiceEntry/private/nowhere/nowhere.example.com",
        reason: EXPORT,
        change: Change::Left,
    },
];

fn service(address: &mut Address) -> &mut Service {
    match &mut address.r#type {
        Some(Type::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

fn fixture(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/istiod").join(case)
}

fn recorded<T: Message + Default>(case: &str, file: &str) -> BTreeMap<String, T> {
    let bytes = fs::read(fixture(case).join(file)).unwrap();
    let mut rest = bytes.as_slice();
    let mut resources = BTreeMap::new();
    while !rest.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap();
        for resource in response.resources {
            let any = resource.resource.unwrap();
            resources.insert(resource.name, T::decode(any.value.as_slice()).unwrap());
        }
    }
    resources
}

fn ours<T: Message + Default>(resources: &Resources) -> BTreeMap<String, T> {
    let decoded = resources.iter();
    decoded
        .map(|(name, one)| (name.to_string(), T::decode(one.encoded.as_slice()).unwrap()))
        .collect()
}

/// Clauses are ANDed: neither their order nor a repetition means anything, and istiod has both where it merges a
/// PeerAuthentication with its parent.
fn canonical(mut policy: Authorization) -> Authorization {
    for Rule { clauses } in &mut policy.rules {
        clauses.sort_by_key(Message::encode_to_vec);
        clauses.dedup();
    }
    policy
}

fn check(case: &str) {
    check_with(case, &MeshConfig::default(), &["ztunnel"]);
}

fn check_with(case: &str, config: &MeshConfig, clients: &[&str]) {
    let mut folder = Folder::new(fixture(case));
    folder.refresh(&HashSet::new()).unwrap();
    let (manifests, problems) = folder.load(&config.root_namespace);
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    // Whether what routes say can be meant is a waypoint's question.
    let errors: Vec<_> =
        errors.filter(|problem| !problem.object.starts_with("VirtualService")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let (config, _) = config.with_settings_of(&manifests);
    let compiled = compile(&manifests, &config);
    for client in clients {
        let file = format!("{client}.address.pb");
        let mut expected: BTreeMap<String, Address> = recorded(case, &file);
        for difference in DIFFERENCES.iter().filter(|difference| difference.case == case) {
            let mut address = expected.remove(difference.resource).unwrap();
            let Change::Edit(edit) = difference.change else { continue };
            let before = address.clone();
            edit(&mut address);
            assert_ne!(address, before, "istiod does the same, though {}", difference.reason);
            expected.insert(difference.resource.to_owned(), address);
        }
        compare(&expected, &ours(&compiled.addresses));

        let file = format!("{client}.authorization.pb");
        let expected = recorded(case, &file).into_iter();
        let expected: BTreeMap<_, _> =
            expected.map(|(name, policy)| (name, canonical(policy))).collect();
        let ours = ours(&compiled.authorizations).into_iter();
        compare(&expected, &ours.map(|(name, policy)| (name, canonical(policy))).collect());
    }
}

fn compare<T: PartialEq + std::fmt::Debug>(
    istiod: &BTreeMap<String, T>,
    ours: &BTreeMap<String, T>,
) {
    let mut different = Vec::new();
    for (name, expected) in istiod {
        if ours.get(name) != Some(expected) {
            different.push(format!("{name}\n  {expected:?}\n  {:?}", ours.get(name)));
        }
    }
    let more = ours.keys().filter(|name| !istiod.contains_key(*name));
    different.extend(more.map(|name| format!("{name}: istiod does not send it")));
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn istiod_sends_the_same_for_pods_and_services() {
    check("01-basic");
}

#[test]
fn istiod_sends_the_same_for_layer_4_policies() {
    check("02-l4-policy");
}

#[test]
fn istiod_sends_the_same_for_traffic_distribution() {
    check("03-traffic-distribution");
}

#[test]
fn istiod_sends_the_same_for_service_entries_and_workload_entries() {
    check("04-external");
}

#[test]
fn istiod_sends_the_same_for_waypoints_of_every_kind() {
    check("05-waypoint-simple");
}

#[test]
fn istiod_sends_the_same_under_gateway_api_routes() {
    check("06-httproute");
}

#[test]
fn istiod_sends_the_same_under_virtual_services() {
    check("07-virtualservice");
}

#[test]
fn istiod_sends_the_same_under_layer_7_policies() {
    check("08-l7-authz");
}

#[test]
fn istiod_sends_the_same_under_telemetry() {
    check("09-telemetry");
}

#[test]
fn istiod_sends_the_same_for_an_egress_waypoint() {
    check("10-egress");
}

#[test]
fn istiod_sends_the_same_to_the_clients_of_several_networks() {
    let config = MeshConfig { multi_network: true, ..MeshConfig::default() };
    check_with("11-multinetwork", &config, &["ztunnel", "ztunnel-net2"]);
}

#[test]
fn istiod_sends_the_same_under_extensions() {
    check("12-extensions");
}

/// Of each ServiceEntry whose `exportTo` we honour, what istiod's status says otherwise.
const EXPORTED: [&str; 2] = ["private/only-here", "private/nowhere"];

/// Conditions as (kind, status, reason, message), in no order.
fn conditions(status: &serde_json::Value, of: &str) -> BTreeSet<[String; 4]> {
    let all = status["conditions"].as_array().into_iter().flatten();
    let ours = all.filter(|one| one["type"].as_str().is_some_and(|kind| kind.starts_with(of)));
    ours.map(|one| {
        ["type", "status", "reason", "message"].map(|key| one[key].as_str().unwrap().to_owned())
    })
    .collect()
}

fn condition(condition: &Condition) -> [String; 4] {
    let status = if condition.holds { "True" } else { "False" };
    [condition.kind, status, condition.reason, &condition.message].map(str::to_owned)
}

#[test]
fn istiod_writes_the_same_into_statuses_of_services_and_service_entries() {
    for case in fs::read_dir(fixture("")).unwrap() {
        let case = case.unwrap().file_name().into_string().unwrap();
        if case == "README.md" {
            continue;
        }
        let mut folder = Folder::new(fixture(&case));
        folder.refresh(&HashSet::new()).unwrap();
        let (manifests, _) = folder.load("istio-system");
        let (config, _) = MeshConfig::default().with_settings_of(&manifests);
        let ours = statuses(&manifests, &config);

        let recorded = fs::read(fixture(&case).join("status.json")).unwrap();
        let recorded: serde_json::Value = serde_json::from_slice(&recorded).unwrap();
        let of = |kind: &str| recorded[kind].as_object().cloned().unwrap_or_default();
        let expected: BTreeMap<_, _> = of("Service")
            .into_iter()
            .map(|(name, status)| (name, conditions(&status, "istio.io/")))
            .collect();
        let services = ours.services.into_iter();
        let services: BTreeMap<_, BTreeSet<_>> =
            services.map(|(name, all)| (name, all.iter().map(condition).collect())).collect();
        assert_eq!(services, expected, "{case}");

        let entries = of("ServiceEntry");
        let names: BTreeSet<_> = entries.keys().chain(ours.entries.keys()).collect();
        for name in names {
            let status =
                entries.get(name).unwrap_or_else(|| panic!("{case}: {name}: not by istiod"));
            let own = ours.entries.get(name).unwrap_or_else(|| panic!("{case}: {name}: missing"));
            let addresses = status["addresses"].as_array().into_iter().flatten();
            let addresses: Vec<(String, std::net::IpAddr)> = addresses
                .map(|one| {
                    let value = one["value"].as_str().unwrap().parse().unwrap();
                    (one["host"].as_str().unwrap().to_owned(), value)
                })
                .collect();
            assert_eq!(own.addresses, addresses, "{case}: {name}");
            let own: BTreeSet<_> = own.conditions.iter().map(condition).collect();
            let same = own == conditions(status, "istio.io/");
            assert_eq!(same, !EXPORTED.contains(&name.as_str()), "{case}: {name}: {own:?}");
        }
    }
}
