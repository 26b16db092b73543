//! Random sequences of changes to a folder, good and bad ones, against a compile from nothing.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use super::{Compiled, MeshConfig, compile, compile_in, incremental::follow, world::World};
use crate::manifests::{Folder, Manifests, Severity};

/// Each file's contents: good forms first, then those that cannot be taken.
const FILES: [(&str, &[&str], &[&str]); 6] = [
    (
        "policy",
        &[
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: p}\nspec: {action: DENY, rules: [{to: [{operation: {ports: ['80']}}]}]}\n",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: p}\nspec: {rules: [{from: [{source: {namespaces: [shop]}}]}]}\n",
        ],
        &[
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: p}\nspec: {rules: [{to: [{operation: {ports: [no]}}]}]}\n",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: p}\nspec: {rules: 7}\n",
        ],
    ),
    (
        "mode",
        &[
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {namespace: shop, name: m}\nspec: {mtls: {mode: PERMISSIVE}}\n",
        ],
        &[
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {namespace: shop, name: m}\nspec: {mtls: {mode: WHATEVER}}\n",
        ],
    ),
    (
        "service",
        &[
            "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: web}\nspec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80}]}\n",
            "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: web}\nspec: {clusterIP: 10.1.0.2, selector: {app: web}, ports: [{port: 81}]}\n",
        ],
        &[
            "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: web}\nspec: {clusterIP: none, ports: [{port: 80}]}\n",
            ": [",
            "",
        ],
    ),
    (
        "twin",
        &[
            "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: twin}\nspec: {clusterIP: 10.1.0.1, ports: [{port: 80}]}\n",
        ],
        &["apiVersion: v1\nkind: Servise\nmetadata: {namespace: shop, name: twin}\n"],
    ),
    (
        "entry",
        &[
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {namespace: shop, name: out}\nspec: {hosts: [a.example.com], resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {namespace: shop, name: same}\nspec: {hosts: [a.example.com], resolution: STATIC, endpoints: [{address: 192.0.2.1}], ports: [{number: 80, name: http, protocol: HTTP}]}\n",
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {namespace: shop, name: same}\nspec: {hosts: [a.example.com], resolution: STATIC, endpoints: [{address: 192.0.2.1}], ports: [{number: 80, name: http, protocol: HTTP}]}\n",
        ],
        &[
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {namespace: shop, name: out}\nspec: {resolution: MAGIC}\n",
        ],
    ),
    (
        "pod",
        &[
            "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: web-0, labels: {app: web, istio.io/dataplane-mode: ambient}}\nspec: {nodeName: n, containers: []}\nstatus: {podIP: 10.0.0.1}\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: web-0, labels: {app: other}}\nspec: {nodeName: n, containers: []}\nstatus: {podIP: 10.0.0.1}\n",
        ],
        &[
            "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: web-0}\nspec: {containers: []}\nstatus: {podIP: here}\n",
        ],
    ),
];

/// Marsaglia's xorshift: the same sequences in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(sides).unwrap()).unwrap()
    }
}

fn load(folder: &mut Folder, touched: &HashSet<PathBuf>) -> Option<Compiled> {
    let manifests = read(folder, touched)?;
    Some(compile(&manifests, &MeshConfig::default()))
}

fn read(folder: &mut Folder, touched: &HashSet<PathBuf>) -> Option<Manifests> {
    folder.refresh(touched).ok()?;
    Some(folder.load("istio-system").0)
}

/// What is compiled and what it is compiled from.
struct Compilation {
    manifests: Manifests,
    world: World,
    compiled: Compiled,
}

impl Compilation {
    fn of(manifests: Manifests) -> Self {
        let world = World::of(&manifests, &MeshConfig::default());
        let compiled = compile_in(&manifests, &world);
        Self { manifests, world, compiled }
    }

    fn after(&self, manifests: &Manifests) -> Option<Self> {
        let (world, compiled) = follow(&self.manifests, &self.world, &self.compiled, manifests)?;
        Some(Self { manifests: manifests.clone(), world, compiled })
    }

    /// What waypoints are told of.
    fn endpoints(&self) -> Vec<String> {
        let registry = &self.world.registry;
        registry.all().map(|host| format!("{:?}", registry.endpoints(host))).collect()
    }
}

fn same(one: &Compiled, other: &Compiled) {
    assert_eq!(one.addresses, other.addresses);
    assert_eq!(one.authorizations, other.authorizations);
    assert_eq!(one.identities, other.identities);
}

fn write(dir: &Path, name: &str, text: &str) -> HashSet<PathBuf> {
    let path = dir.join(format!("{name}.yaml"));
    fs::write(&path, text).unwrap();
    HashSet::from([path])
}

#[test]
fn whatever_changed_before_a_good_folder_compiles_as_from_nothing_and_a_bad_one_never_opens() {
    for seed in 1..=100 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let dir = tempfile::tempdir().unwrap();
        // One that is always there: an empty folder is an error of its own.
        write(dir.path(), "namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
        let mut folder = Folder::new(dir.path());
        // What each file holds now, and which good form it had last.
        let mut bad: BTreeMap<&str, bool> = BTreeMap::new();
        for _ in 0..40 {
            let (name, good, wrong) = FILES[dice.below(FILES.len())];
            let touched = match dice.below(4) {
                0 => {
                    let path = dir.path().join(format!("{name}.yaml"));
                    fs::remove_file(&path).ok();
                    bad.remove(name);
                    HashSet::from([path])
                }
                1 | 2 => {
                    bad.insert(name, false);
                    write(dir.path(), name, good[dice.below(good.len())])
                }
                _ => {
                    bad.insert(name, true);
                    write(dir.path(), name, wrong[dice.below(wrong.len())])
                }
            };
            let compiled = load(&mut folder, &touched).unwrap();
            // A policy whose file is there counts in some form, and never in none.
            assert_eq!(
                compiled.authorizations.contains_key("shop/p"),
                bad.contains_key("policy"),
                "seed {seed}"
            );
            if bad.values().all(|bad| !bad) {
                let fresh = load(&mut Folder::new(dir.path()), &HashSet::new()).unwrap();
                same(&compiled, &fresh);
            }
        }
    }
}

/// Pods that come, go, and change what they are selected by, where they are and whether they are ready.
const PODS: [&str; 6] = [
    "labels: {app: web}}\nspec: {nodeName: n, containers: []}\nstatus: {podIP: 10.0.0.IP}\n",
    "labels: {app: web}}\nspec: {nodeName: m, containers: []}\nstatus: {podIP: 10.0.0.IP, phase: Running}\n",
    "labels: {app: other, istio.io/dataplane-mode: none}}\nspec: {nodeName: n, containers: []}\nstatus: {podIP: 10.0.0.IP}\n",
    "labels: {app: web}}\nspec: {nodeName: n, serviceAccountName: a, containers: []}\nstatus: {phase: Succeeded, podIP: 10.0.0.IP}\n",
    "labels: {gateway.networking.k8s.io/gateway-name: waypoint}}\nspec: {nodeName: n, containers: []}\nstatus: {podIP: 10.0.0.IP, phase: Running, conditions: [{type: Ready, status: 'True'}]}\n",
    "annotations: {ambient.istio.io/redirection: enabled}}\nspec: {nodeName: n, containers: []}\nstatus: {podIP: 10.0.0.IP}\n",
];
/// What is behind them, and does not change.
const AROUND: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: shop}
spec: {clusterIP: 10.1.0.9, selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{port: 15008}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: listed, namespace: shop}
spec: {clusterIP: 10.1.0.2, ports: [{port: 80, name: http}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: listed-1, namespace: shop, labels: {kubernetes.io/service-name: listed}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.3], targetRef: {kind: Pod, namespace: shop, name: pod-3}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: p}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {ports: ['80']}}]}]}
";

#[test]
fn what_follows_from_changed_pods_is_what_is_compiled_from_nothing() {
    let mut followed = 0;
    for seed in 1..=60 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "around", AROUND);
        let mut folder = Folder::new(dir.path());
        let mut last = Compilation::of(read(&mut folder, &HashSet::new()).unwrap());
        for _ in 0..30 {
            let mut touched = HashSet::new();
            for _ in 0..=dice.below(2) {
                let pod = dice.below(5);
                let name = format!("pod-{pod}");
                if dice.below(4) == 0 {
                    let path = dir.path().join(format!("{name}.yaml"));
                    fs::remove_file(&path).ok();
                    touched.insert(path);
                } else {
                    let text = PODS[dice.below(PODS.len())]
                        .replace("IP}", &format!("{pod}}}"))
                        .replace("IP,", &format!("{pod},"));
                    let head = "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: ";
                    touched.extend(write(dir.path(), &name, &format!("{head}{name}, {text}")));
                }
            }
            let manifests = read(&mut folder, &touched).unwrap();
            let after = last.after(&manifests);
            let fresh = Compilation::of(manifests);
            if let Some(after) = after {
                followed += 1;
                same(&after.compiled, &fresh.compiled);
                assert_eq!(after.endpoints(), fresh.endpoints(), "seed {seed}");
                last = after;
            } else {
                last = fresh;
            }
        }
    }
    // The others change a waypoint's readiness, the marks of node agents, or a pod that a slice names.
    assert!(followed > 600, "{followed} of 1800");
}

#[test]
fn a_resource_that_cannot_be_taken_keeps_its_last_good_form_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let service = |port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: web}}\nspec: {{clusterIP: 10.1.0.1, ports: [{{port: {port}}}]}}\n"
        )
    };
    let both = |port: &str, host: &str| {
        format!(
            "{}---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{namespace: shop, name: e}}\nspec: {{hosts: [{host}], resolution: DNS, ports: [{{number: 80, name: a, protocol: HTTP}}]}}\n",
            service(port)
        )
    };
    let mut folder = Folder::new(dir.path());
    let mut keys = |text: &str| -> Vec<String> {
        let touched = write(dir.path(), "mesh", text);
        let compiled = load(&mut folder, &touched).unwrap();
        let hosts = compiled.addresses.keys().filter(|key| key.starts_with("shop/"));
        hosts.map(ToString::to_string).collect()
    };
    const WEB: &str = "shop/web.shop.svc.cluster.local";
    for (text, expected) in [
        (both("99999", "one.example.com"), vec!["shop/one.example.com"]),
        (both("80", "one.example.com"), vec!["shop/one.example.com", WEB]),
        (both("99999", "two.example.com"), vec!["shop/two.example.com", WEB]),
        // What is unreadable may be either.
        (format!("{}---\n: [\n", service("81")), vec!["shop/two.example.com", WEB]),
        (String::new(), vec!["shop/two.example.com", WEB]),
        (service("82"), vec![WEB]),
    ] {
        assert_eq!(keys(&text), expected, "{text}");
    }
}

#[test]
fn a_policy_that_was_never_good_denies_where_it_would_apply() {
    let dir = tempfile::tempdir().unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: web-0, labels: {app: web}}\nspec: {containers: []}\nstatus: {podIP: 10.0.0.1}\n";
    write(dir.path(), "pod", pod);
    for (spec, selected) in [
        (
            "{selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {ports: [no]}}]}]}",
            true,
        ),
        ("{selector: {matchLabels: {app: web}}, action: MAYBE}", true),
        ("{rules: 7}", false),
    ] {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{namespace: shop, name: p}}\nspec: {spec}\n"
        );
        write(dir.path(), "policy", &text);
        let mut folder = Folder::new(dir.path());
        let compiled = load(&mut folder, &HashSet::new()).unwrap();
        assert!(folder.load("istio-system").1.iter().any(|one| one.severity == Severity::Error));
        let policy = &compiled.authorizations["shop/p"];
        let policy: proto::security::Authorization =
            prost::Message::decode(policy.encoded.as_slice()).unwrap();
        assert_eq!(policy.action(), proto::security::Action::Deny, "{spec}");
        // A rule without clauses matches everything.
        assert_eq!(policy.rules, [proto::security::Rule::default()], "{spec}");
        let expected = if selected {
            proto::security::Scope::WorkloadSelector
        } else {
            proto::security::Scope::Namespace
        };
        assert_eq!(policy.scope(), expected, "{spec}");
    }
}
