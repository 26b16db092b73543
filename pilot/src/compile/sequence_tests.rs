//! Random sequences of changes to a folder, good and bad ones, against a compile from nothing.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use super::{Compiled, MeshConfig, compile};
use crate::manifests::{Folder, Severity};

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
    folder.refresh(touched).ok()?;
    let (manifests, _) = folder.load("istio-system");
    Some(compile(&manifests, &MeshConfig::default()))
}

fn same(one: &Compiled, other: &Compiled) {
    assert_eq!(one.addresses, other.addresses);
    assert_eq!(one.authorizations, other.authorizations);
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
