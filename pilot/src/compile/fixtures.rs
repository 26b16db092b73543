//! Compiles what a real istiod was given and compares with what it sent.
//!
//! Every difference that is meant stands in [`DIFFERENCES`], with its reason.

use std::{collections::BTreeMap, collections::HashSet, fs, path::PathBuf};

use prost::Message;
use proto::{
    discovery::DeltaDiscoveryResponse,
    security::{Authorization, Rule},
    workload::{Address, IpFamilies, TunnelProtocol, address::Type},
};

use super::{MeshConfig, Resources, compile};
use crate::manifests::{Folder, Severity};

/// Where we differ from istiod on purpose.
struct Difference {
    case: &'static str,
    resource: &'static str,
    reason: &'static str,
    /// Makes ours of istiod's.
    change: fn(&mut Address),
}

const DIFFERENCES: [Difference; 2] = [
    Difference {
        case: "01-basic",
        resource: "data/redis-headless.data.svc.cluster.local",
        reason: "no API server has written a family into a headless service of a folder, and any of \
                 its pods' is fine",
        change: |address| {
            if let Some(Type::Service(service)) = &mut address.r#type {
                service.ip_families = IpFamilies::Automatic.into();
            }
        },
    },
    Difference {
        case: "02-l4-policy",
        resource: "Kubernetes//Pod/plain/noambient-0",
        reason: "no node agent writes annotations on the pods of a folder: the label of their \
                 namespace counts",
        change: |address| {
            if let Some(Type::Workload(workload)) = &mut address.r#type {
                workload.tunnel_protocol = TunnelProtocol::Hbone.into();
            }
        },
    },
];

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
    let mut folder = Folder::new(fixture(case));
    folder.refresh(&HashSet::new()).unwrap();
    let config = MeshConfig::default();
    let (manifests, problems) = folder.load(&config.root_namespace);
    let errors: Vec<_> = problems.iter().filter(|p| p.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let compiled = compile(&manifests, &config);

    let mut expected: BTreeMap<String, Address> = recorded(case, "ztunnel.address.pb");
    for difference in DIFFERENCES.iter().filter(|difference| difference.case == case) {
        let address = expected.get_mut(difference.resource).unwrap();
        let before = address.clone();
        (difference.change)(address);
        assert_ne!(*address, before, "istiod does the same, though {}", difference.reason);
    }
    compare(&expected, &ours(&compiled.addresses));

    let expected = recorded(case, "ztunnel.authorization.pb").into_iter();
    let expected: BTreeMap<_, _> =
        expected.map(|(name, policy)| (name, canonical(policy))).collect();
    let ours = ours(&compiled.authorizations).into_iter();
    compare(&expected, &ours.map(|(name, policy)| (name, canonical(policy))).collect());
}

fn compare<T: PartialEq + std::fmt::Debug>(
    istiod: &BTreeMap<String, T>,
    ours: &BTreeMap<String, T>,
) {
    for (name, expected) in istiod {
        assert_eq!(ours.get(name), Some(expected), "{name}");
    }
    let more: Vec<_> = ours.keys().filter(|name| !istiod.contains_key(*name)).collect();
    assert!(more.is_empty(), "istiod does not send {more:?}");
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
