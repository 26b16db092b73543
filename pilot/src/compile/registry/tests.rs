use std::sync::Arc;

use super::*;
use crate::manifests::read_text;

fn registry(text: &str) -> Registry {
    let mut problems = Vec::new();
    let file = Arc::from(std::path::Path::new("mesh.yaml"));
    let resources = read_text(&file, text, &mut problems);
    assert!(problems.is_empty(), "{problems:#?}");
    let (manifests, problems) = Manifests::gather(&resources);
    assert!(problems.is_empty(), "{problems:#?}");
    Registry::of(&manifests, &MeshConfig::default())
}

fn entry(namespace: &str, name: &str, created: &str, host: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{namespace: {namespace}, name: {name}, creationTimestamp: '2026-01-01T00:00:{created}Z'}}
spec: {{hosts: [{host}], ports: [{{number: 80, name: http, protocol: HTTP}}], {spec}}}
"
    )
}

/// Each endpoint as `workload address ports`.
fn endpoints(registry: &Registry, namespace: &str, hostname: &str) -> Vec<String> {
    let host = registry.find(namespace, hostname).unwrap();
    let all = registry.endpoints(host).into_iter().map(|endpoint| {
        let ips = endpoint.addresses.iter().map(ToString::to_string);
        let at = ips.chain(endpoint.hostname.map(String::from)).collect::<Vec<_>>().join(",");
        format!("{} {at} {:?}", endpoint.workload, endpoint.ports)
    });
    all.collect()
}

#[test]
fn an_address_is_allocated_by_the_hosts_name_alone() {
    let one = entry("a", "one", "01", "one.example.com", "resolution: DNS");
    let two = entry("a", "two", "02", "two.example.com", "resolution: DNS");
    let alone = registry(&two);
    let both = registry(&(one + &two));
    let of = |registry: &Registry| registry.find("a", "two.example.com").unwrap().addresses.clone();
    assert_eq!(of(&alone), of(&both));
    let [v4, v6] = of(&alone)[..] else { panic!("one of each family") };
    assert!("240.240.0.0/16".parse::<ipnet::IpNet>().unwrap().contains(&v4));
    assert!("2001:2::/48".parse::<ipnet::IpNet>().unwrap().contains(&v6));
}

#[test]
fn an_address_in_a_status_is_kept_and_given_to_nobody_else() {
    let plain = entry("a", "one", "01", "one.example.com", "resolution: DNS");
    let taken = registry(&plain).find("a", "one.example.com").unwrap().addresses[0].addr();
    let two = entry("a", "two", "02", "two.example.com", "resolution: DNS").trim().to_owned()
        + &format!("\nstatus: {{addresses: [{{host: two.example.com, value: {taken}}}]}}\n");
    let both = registry(&(plain + &two));
    let of = |host: &str| both.find("a", host).unwrap().addresses.clone();
    assert_eq!(of("two.example.com"), [ipnet::IpNet::from(taken)]);
    assert_ne!(of("one.example.com")[0].addr(), taken);
}

#[test]
fn no_address_is_allocated_where_none_would_be_used() {
    for (host, spec) in [
        ("none.example.com", "resolution: NONE"),
        ("'*.example.com'", "resolution: DNS"),
        ("own.example.com", "resolution: DNS, addresses: []"),
    ] {
        let registry = registry(&entry("a", "one", "01", host, spec));
        let host = registry.all().next().unwrap();
        let wanted = &*host.hostname == "own.example.com";
        assert_eq!(!host.addresses.is_empty(), wanted, "{}", host.hostname);
    }
}

#[test]
fn the_oldest_of_a_host_is_canonical_and_the_only_one_of_its_namespace() {
    let text = entry("a", "young", "03", "api.example.com", "resolution: DNS")
        + &entry("b", "old", "01", "api.example.com", "resolution: DNS")
        + &entry("b", "middle", "02", "api.example.com", "resolution: DNS");
    let registry = registry(&text);
    let same: Vec<_> = registry
        .by_hostname("api.example.com")
        .map(|host| (&*host.meta.name, host.canonical))
        .collect();
    assert_eq!(same, [("old", true), ("young", false)]);
}

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {namespace: a, name: web}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: named}, {name: tcp, port: 81}]
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: web-0, labels: {app: web}}
spec: {containers: [{name: app, ports: [{name: named, containerPort: 8080}]}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: ended, labels: {app: web}}
spec: {containers: [{name: app}]}
status: {phase: Succeeded, podIP: 10.0.0.2}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {namespace: a, name: vm, labels: {app: web}}
spec: {address: 203.0.113.1, ports: {named: 9090}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {namespace: a, name: outside}
spec:
  hosts: [db.example.com]
  resolution: DNS
  ports: [{number: 3306, name: db, protocol: TCP, targetPort: 13306}]
  endpoints: [{address: db1.example.net, ports: {db: 23306}}, {address: 192.0.2.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {namespace: a, name: itself}
spec:
  hosts: [itself.example.com]
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}]
";

#[test]
fn endpoints_are_pods_workload_entries_and_what_a_service_entry_names() {
    let registry = registry(SHOP);
    for (host, expected) in [
        // The Service has no IPv6.
        (
            "web.a.svc.cluster.local",
            vec!["web-0 10.0.0.1 [(80, 8080), (81, 81)]", "vm 203.0.113.1 [(80, 9090), (81, 81)]"],
        ),
        (
            "db.example.com",
            vec!["outside db1.example.net [(3306, 23306)]", "outside 192.0.2.1 [(3306, 13306)]"],
        ),
        ("itself.example.com", vec!["itself itself.example.com [(443, 443)]"]),
    ] {
        assert_eq!(endpoints(&registry, "a", host), expected, "{host}");
    }
}
