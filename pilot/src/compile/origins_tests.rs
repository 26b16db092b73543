//! Every resource has an origin, and no origin names a resource that is not sent.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
};

use super::{MeshConfig, Origin, of_daemons, waypoint::origins_of_gateway};
use crate::{
    manifests::{Folder, Manifests},
    offline::{self, Audience, Type},
};

fn read(case: &str) -> (Manifests, MeshConfig) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/istiod");
    let mut folder = Folder::new(folder.join(case));
    folder.refresh(&HashSet::new()).unwrap();
    let (manifests, _) = folder.load("istio-system");
    let base = MeshConfig { multi_network: case == "11-multinetwork", ..MeshConfig::default() };
    let (config, _) = base.with_settings_of(&manifests);
    (manifests, config)
}

fn by_type(origins: &[Origin]) -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut all: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for origin in origins {
        assert!(!origin.sources.is_empty() || origin.of == "endpoint", "{origin:?}");
        all.entry(origin.of).or_default().insert(origin.name.clone());
    }
    all
}

const CASES: [&str; 12] = [
    "01-basic",
    "02-l4-policy",
    "03-traffic-distribution",
    "04-external",
    "05-waypoint-simple",
    "06-httproute",
    "07-virtualservice",
    "08-l7-authz",
    "09-telemetry",
    "10-egress",
    "11-multinetwork",
    "12-extensions",
];

#[test]
fn every_resource_of_daemons_has_an_origin() {
    for case in CASES {
        let (manifests, config) = read(case);
        let origins = by_type(&of_daemons(&manifests, &config));
        let sent = offline::resources(&manifests, &config, &Audience::Ztunnel).unwrap();
        for (of, resources) in sent {
            let names: BTreeSet<String> = resources.into_keys().collect();
            let own = origins.get(of.name()).cloned().unwrap_or_default();
            assert_eq!(own, names, "{case} {}", of.name());
        }
    }
}

#[test]
fn every_cluster_of_a_host_has_an_origin() {
    for case in CASES {
        let (manifests, config) = read(case);
        for gateway in &manifests.gateways {
            let (namespace, name) = (&*gateway.meta.namespace, &*gateway.meta.name);
            let Some(origins) = origins_of_gateway(&manifests, &config, namespace, name) else {
                continue;
            };
            let audience =
                Audience::Waypoint { namespace: namespace.to_owned(), name: name.to_owned() };
            let sent = offline::resources(&manifests, &config, &audience).unwrap();
            let origins = by_type(&origins);
            for (of, is_of_host) in [(Type::Cluster, true), (Type::Endpoint, false)] {
                let own = origins.get(of.name()).cloned().unwrap_or_default();
                // Tunnels, and what an EnvoyFilter adds, are no host's.
                let of_hosts = sent[&of].keys().filter(|name| name.contains('|'));
                let names: BTreeSet<String> = of_hosts.cloned().collect();
                assert!(names.is_subset(&own), "{case} {name}: {:?}", names.difference(&own));
                assert!(!is_of_host || own == names, "{case} {name}: {:?}", own.difference(&names));
            }
        }
    }
}

/// The objects of the parts of a waypoint's listener that have `text`.
fn sources(case: &str, gateway: [&str; 2], text: &str) -> Vec<String> {
    let (manifests, config) = read(case);
    let origins = origins_of_gateway(&manifests, &config, gateway[0], gateway[1]).unwrap();
    let parts = origins.iter().filter(|origin| origin.part.contains(text));
    let sources = parts.flat_map(|origin| &origin.sources);
    let titles = sources.map(|one| format!("{} {}/{}", one.kind, one.namespace, one.name));
    titles.collect()
}

#[test]
fn a_route_comes_from_its_own_object() {
    assert_eq!(
        sources("06-httproute", ["store", "waypoint"], "route 0 store.retry.0"),
        ["HTTPRoute store/retry"]
    );
    let chain = "chain inbound-vip|80|http|web.app.svc.cluster.local, route 0 ";
    let own = sources("07-virtualservice", ["app", "waypoint"], chain);
    assert_eq!(own, ["VirtualService app/web"]);
}
