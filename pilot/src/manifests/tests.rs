//! What is refused, where, and why.

use std::{collections::HashSet, fs, os::unix::fs::symlink, path::Path, sync::Arc};

use super::{Folder, Manifests, document::read_file};

/// Everything said about a file, as the user sees it.
fn problems(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let resources = read_file(&Arc::from(Path::new("f.yaml")), text, &mut problems);
    let (manifests, across) = Manifests::gather(&resources);
    problems.extend(across);
    problems.extend(manifests.check_root("istio-system"));
    problems.sort();
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn every_problem_of_a_file_is_listed_with_its_line() {
    let text = "\
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  lables: {}
spec:
  contaners: []
  containers:
  - name: c
    image: x
    prots: []
---
apiVersion: v1
kind: Service
metadata: {name: Web, namespace: shop}
---
kind: Pod
---
apiVersion: v1
kind: Podd
---
a: [
---
apiVersion: v1
kind: Service
metadata:
  name: s
spec:
  ports:
  - port: eighty
";
    assert_eq!(
        problems(text),
        [
            "f.yaml:6: error: Pod shop/web: metadata.lables: unknown field",
            "f.yaml:8: error: Pod shop/web: spec.contaners: unknown field",
            "f.yaml:12: error: Pod shop/web: spec.containers[0].prots: unknown field",
            "f.yaml:16: error: Service shop/Web: metadata.name: `Web` is no DNS name",
            "f.yaml:18: error: Pod: apiVersion: missing",
            "f.yaml:21: error: Podd: kind: there is no kind Podd in v1",
            "f.yaml:24: error: did not find expected node content",
            "f.yaml:31: error: Service default/s: spec.ports[0].port: invalid type: string \"eighty\", expected i32",
        ]
    );
}

#[test]
fn a_file_without_a_document_is_refused() {
    for text in ["", "\n", "# a comment\n", "---\n", "---\n# a comment\n---\n", "null\n"] {
        assert_eq!(problems(text), ["f.yaml:1: error: empty: remove the file if that is meant"]);
    }
    let marked = format!("---\n# a comment\n---\n{NAMESPACE}---\n").replace("NAME", "a");
    assert_eq!(problems(&marked), [""; 0]);
}

#[test]
fn a_list_is_taken_apart() {
    let text = "\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: a}
- apiVersion: v1
  kind: Namespace
  metadata:
    name: b
    nmae: c
";
    assert_eq!(problems(text), ["f.yaml:11: error: Namespace b: metadata.nmae: unknown field"]);
    let nested = "\
# first
---
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: List
    items:
    - {apiVersion: v1, kind: Namespace, metadata: {name: a}}
    - apiVersion: v1
      kind: Namespace
      metadata: {name: b, nmae: c}
  - kind: Pod
";
    assert_eq!(
        problems(nested),
        [
            "f.yaml:12: error: Namespace b: metadata.nmae: unknown field",
            "f.yaml:13: error: Pod: apiVersion: missing",
        ]
    );
    let json =
        "{\n\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n{\"kind\": \"Pod\"}]}\n";
    assert_eq!(problems(json), ["f.yaml:1: error: Pod: apiVersion: missing"]);
}

#[test]
fn a_long_list_takes_no_longer_than_its_items() {
    let item = |i: usize| {
        format!(
            "- apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: n{i}\n    labels: {{}}\n"
        )
    };
    let items: String = (0..10_000).map(item).collect();
    let begun = std::time::Instant::now();
    assert_eq!(problems(&format!("apiVersion: v1\nkind: List\nitems:\n{items}")), [""; 0]);
    // A pass over the whole text for each item took minutes.
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn what_contradicts_another_object_is_refused() {
    let pod = |name: &str, host: bool| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n\
             spec: {{hostNetwork: {host}, containers: []}}\nstatus: {{podIP: 10.0.0.1}}\n"
        )
    };
    let service = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: 10.1.0.1, ports: [{{port: 80}}]}}\n"
        )
    };
    for (text, expected) in [
        (
            pod("a", false) + &pod("b", false),
            "f.yaml:8: error: Pod default/b: status.podIPs: 10.0.0.1 is the address of Pod default/a at f.yaml:2",
        ),
        (
            pod("a", false) + &pod("a", false),
            "f.yaml:8: error: Pod default/a: metadata.name: there already is one at f.yaml:2",
        ),
        (
            service("a") + &service("b"),
            "f.yaml:7: error: Service default/b: spec.clusterIPs: 10.1.0.1 is the address of Service default/a at f.yaml:2",
        ),
    ] {
        assert_eq!(problems(&text), [expected]);
    }
    assert_eq!(problems(&(pod("a", true) + &pod("b", true))), [""; 0]);
}

#[test]
fn a_pod_is_refused_for_a_service_account_that_cannot_be_one() {
    let account = |name: &str| {
        problems(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  serviceAccountName: '{name}'\n  \
             containers: []\n"
        ))
    };
    for good in ["", "web", "web.v1"] {
        assert_eq!(account(good), [""; 0], "{good}");
    }
    for bad in ["Web", "web/sa", "web shop", "-"] {
        let reason = format!("`{bad}` is no DNS name");
        assert_eq!(
            account(bad),
            [format!("f.yaml:5: error: Pod default/web: spec.serviceAccountName: {reason}")]
        );
    }
}

#[test]
fn an_endpoint_without_its_pod_is_reported() {
    let text = "\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {containers: []}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: web}}
- {addresses: [10.0.0.2], targetRef: {kind: Pod, name: gone}}
- {addresses: [10.0.0.3]}
";
    assert_eq!(
        problems(text),
        [
            "f.yaml:11: warning: EndpointSlice shop/web-1: endpoints[1].targetRef: there is no Pod shop/gone: ignored"
        ]
    );
}

#[test]
fn a_service_is_refused_for_its_ports_and_addresses() {
    let service = |spec: &str| {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {spec}\n");
        let all = problems(&text);
        all.into_iter()
            .map(|problem| {
                problem.trim_start_matches("f.yaml:4: error: Service default/s: spec.").to_owned()
            })
            .collect::<Vec<_>>()
    };
    for (spec, expected) in [
        ("{ports: [{port: 0}]}", vec!["ports[0].port: 0 is no port (1 to 65535)"]),
        ("{ports: [{port: 70000}]}", vec!["ports[0].port: 70000 is no port (1 to 65535)"]),
        (
            "{ports: [{name: a, port: 80}, {name: b, port: 80}]}",
            vec!["ports[1].port: 80 is there twice"],
        ),
        ("{ports: [{name: a, port: 80}, {name: b, port: 80, protocol: UDP}]}", vec![]),
        (
            "{ports: [{name: a, port: 80}, {name: a, port: 81}]}",
            vec!["ports[1].name: `a` is there twice"],
        ),
        (
            "{clusterIP: 10.0.0.256, ports: [{port: 80}]}",
            vec!["clusterIP: `10.0.0.256` is no IP address"],
        ),
        ("{clusterIP: None}", vec![]),
        ("{}", vec!["ports: a service with an address needs at least one port"]),
    ] {
        assert_eq!(service(spec), expected, "{spec}");
    }
}

#[test]
fn whoever_asks_for_a_waypoint_that_nobody_declared_is_told() {
    let labelled = |labels: &str| {
        problems(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {{{labels}}}\n"
        ))
    };
    assert_eq!(
        labelled("istio.io/use-waypoint: wp"),
        [
            "f.yaml:1: warning: Namespace shop: metadata.labels: istio.io/use-waypoint: there is no Gateway \
             shop/wp: reached without a waypoint"
        ]
    );
    assert_eq!(labelled("istio.io/use-waypoint: none"), [""; 0]);
    assert_eq!(
        labelled("istio.io/use-waypoint: ''")[0],
        "f.yaml:5: error: Namespace shop: metadata.labels: istio.io/use-waypoint: `` is no DNS name"
    );
}

#[test]
fn a_policy_is_refused_for_what_means_nothing() {
    let policy = |spec: &str| {
        let head =
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n";
        let all = problems(&format!("{head}spec: {spec}\n"));
        let head = "f.yaml:4: error: AuthorizationPolicy default/p: spec.";
        all.into_iter()
            .map(|problem| problem.trim_start_matches(head).to_owned())
            .collect::<Vec<_>>()
    };
    for (spec, expected) in [
        ("{rules: [{}]}", vec![]),
        ("{ruels: [{}]}", vec!["ruels: unknown field"]),
        (
            "{action: DENY, provider: {name: x}}",
            vec!["provider: only action CUSTOM has a provider"],
        ),
        ("{rules: [{from: []}]}", vec!["rules[0].from: empty: leave it out or name a source"]),
        (
            "{rules: [{from: [{source: {}}]}]}",
            vec!["rules[0].from[0].source: empty: name at least one attribute"],
        ),
        (
            "{rules: [{from: [{source: {namespaces: ['']}}]}]}",
            vec!["rules[0].from[0].source.namespaces[0]: empty"],
        ),
        (
            "{rules: [{from: [{source: {principals: ['a*b']}}]}]}",
            vec!["rules[0].from[0].source.principals[0]: `a*b`: `*` can stand at one end only"],
        ),
        (
            "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}",
            vec![
                "rules[0].from[0].source.ipBlocks[0]: `10.0.0.0/33` is neither an IP address nor a CIDR block",
            ],
        ),
        (
            "{rules: [{to: [{operation: {ports: ['70000']}}]}]}",
            vec!["rules[0].to[0].operation.ports[0]: `70000` is no port (0 to 65535)"],
        ),
        (
            "{rules: [{when: [{key: source.ipp, values: [a]}]}]}",
            vec!["rules[0].when[0].key: there is no attribute `source.ipp`"],
        ),
        (
            "{rules: [{when: [{key: source.ip}]}]}",
            vec!["rules[0].when[0]: neither values nor notValues"],
        ),
    ] {
        assert_eq!(policy(spec), expected, "{spec}");
    }
    let source = "from: [{source: {principals: ['spiffe://a/ns/b/sa/c']}}]";
    let when = "when: [{key: source.principal, notValues: [x, 'spiffe://a/*']}]";
    assert_eq!(
        policy(&format!("{{rules: [{{{source}, {when}}}]}}")),
        [
            "f.yaml:4: warning: AuthorizationPolicy default/p: spec.rules[0].from[0].source.principals[0]: matches \
             nobody: write `a/ns/b/sa/c`",
            "f.yaml:4: warning: AuthorizationPolicy default/p: spec.rules[0].when[0].notValues[1]: matches nobody: \
             write `a/*`",
        ]
    );
    let warning = policy("{action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}");
    assert_eq!(
        warning,
        [
            "f.yaml:4: warning: AuthorizationPolicy default/p: spec.rules[0]: paths can only be enforced by a \
          waypoint: the rule may refuse nothing at layer 4"
        ]
    );
}

#[test]
fn a_policy_that_is_only_to_be_tried_is_said_to_do_nothing() {
    let policy = |value: &str| {
        problems(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  annotations:\n    \
             istio.io/dry-run: '{value}'\n"
        ))
    };
    assert_eq!(
        policy("true"),
        [
            "f.yaml:5: warning: AuthorizationPolicy default/p: metadata.annotations: istio.io/dry-run: true: the \
             policy is neither enforced nor tried"
        ]
    );
    assert_eq!(policy("false"), [""; 0]);
}

#[test]
fn a_port_level_mode_needs_a_selector() {
    let text = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p}
spec:
  portLevelMtls:
    80: {mode: STRIKT}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: q}
spec:
  portLevelMtls:
    80: {mode: STRICT}
";
    let found = problems(text);
    assert!(found[0].starts_with("f.yaml:6: error: PeerAuthentication default/p: spec.portLevelMtls.80.mode: unknown variant"), "{found:?}");
    assert_eq!(
        found[1],
        "f.yaml:12: error: PeerAuthentication default/q: spec.portLevelMtls: needs a selector with labels"
    );
}

#[test]
fn a_selector_has_no_effect_in_the_root_namespace() {
    let policy = |namespace: &str, spec: &str| {
        let head = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n";
        problems(&format!(
            "{head}metadata: {{name: p, namespace: {namespace}}}\nspec: {{mtls: {{mode: STRICT}}{spec}}}\n"
        ))
    };
    const SELECTOR: &str = ", selector: {matchLabels: {app: web}}";
    const PORTS: &str =
        ", selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: PERMISSIVE}}";
    for (namespace, spec, expected) in [
        ("istio-system", "", vec![]),
        ("shop", PORTS, vec![]),
        (
            "istio-system",
            SELECTOR,
            vec![
                "f.yaml:1: warning: PeerAuthentication istio-system/p: spec.selector: has no effect in the root \
                 namespace istio-system",
            ],
        ),
        (
            "istio-system",
            PORTS,
            vec![
                "f.yaml:1: error: PeerAuthentication istio-system/p: spec.portLevelMtls: has no effect in the root \
                 namespace istio-system",
            ],
        ),
    ] {
        assert_eq!(policy(namespace, spec), expected, "{namespace} {spec}");
    }
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: NAME}\n";

fn names(folder: &mut Folder) -> Vec<String> {
    folder.refresh(&HashSet::new()).unwrap();
    let (manifests, problems) = folder.load("istio-system");
    assert!(problems.is_empty(), "{problems:?}");
    manifests.namespaces.iter().map(|namespace| namespace.meta.name.to_string()).collect()
}

#[test]
fn a_folder_is_read_again_where_it_changed() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, name: &str| {
        fs::write(dir.path().join(path), NAMESPACE.replace("NAME", name)).unwrap();
    };
    fs::create_dir_all(dir.path().join("deep/er")).unwrap();
    write("a.yaml", "a");
    write("deep/er/b.yml", "b");
    write("notes.txt", "c");
    write(".hidden.yaml", "d");
    let mut folder = Folder::new(dir.path());
    assert_eq!(names(&mut folder), ["a", "b"]);
    assert!(!folder.refresh(&HashSet::new()).unwrap(), "nothing changed");
    write("a.yaml", "aa");
    fs::remove_file(dir.path().join("deep/er/b.yml")).unwrap();
    assert_eq!(names(&mut folder), ["aa"]);
    // The same size at the same instant: only the event tells.
    assert!(folder.refresh(&HashSet::from([dir.path().join("a.yaml")])).unwrap());
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    let error = folder.refresh(&HashSet::new()).unwrap_err();
    let expected = format!("the folder {} holds no manifests", dir.path().display());
    assert_eq!(error.to_string(), expected);
    assert_eq!(folder.load("istio-system").0.namespaces.len(), 1, "what was known stays known");
    fs::remove_dir_all(dir.path()).unwrap();
    let error = folder.refresh(&HashSet::new()).unwrap_err();
    assert!(error.to_string().starts_with("reading the folder /"), "{error}");
}

#[test]
fn a_mounted_config_map_is_read_through_its_links_once() {
    let dir = tempfile::tempdir().unwrap();
    let version = |name: &str| {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("n.yaml"), NAMESPACE.replace("NAME", &name[2..]))
            .unwrap();
    };
    version("..v1");
    symlink("..v1", dir.path().join("..data")).unwrap();
    symlink("..data/n.yaml", dir.path().join("n.yaml")).unwrap();
    symlink(".", dir.path().join("loop")).unwrap();
    let mut folder = Folder::new(dir.path());
    assert_eq!(names(&mut folder), ["v1"]);
    version("..v2");
    symlink("..v2", dir.path().join("..next")).unwrap();
    fs::rename(dir.path().join("..next"), dir.path().join("..data")).unwrap();
    assert_eq!(names(&mut folder), ["v2"]);
}

#[test]
fn a_link_that_leads_nowhere_is_no_withdrawal() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    let write = || fs::write(&real, NAMESPACE.replace("NAME", "a")).unwrap();
    write();
    symlink(&real, dir.path().join("a.yaml")).unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    let mut folder = Folder::new(dir.path());
    let mut look = || {
        let changed = folder.refresh(&HashSet::new()).unwrap();
        let all = folder.load("istio-system").1.into_iter();
        let all = all.map(|problem| problem.to_string());
        (changed, all.map(|text| text.rsplit('/').next().unwrap().to_owned()).collect::<Vec<_>>())
    };
    let endless =
        "loop:1: error: cannot be read: Too many levels of symbolic links (os error 40)".to_owned();
    assert_eq!(look(), (true, vec![endless.clone()]));
    assert_eq!(look(), (false, vec![endless]));
    fs::remove_file(dir.path().join("loop")).unwrap();
    fs::remove_file(&real).unwrap();
    let nowhere =
        "a.yaml:1: error: cannot be read: No such file or directory (os error 2)".to_owned();
    assert_eq!(look(), (true, vec![nowhere]));
    write();
    assert_eq!(names(&mut folder), ["a"]);
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), b"a: 1\nb: \xff\n").unwrap();
    let mut folder = Folder::new(dir.path());
    folder.refresh(&HashSet::new()).unwrap();
    let (_, problems) = folder.load("istio-system");
    assert!(problems[0].to_string().ends_with("a.yaml:2: error: not UTF-8"), "{problems:?}");
}

#[test]
fn limits_that_cannot_be_used_are_refused_and_those_without_effect_are_told() {
    let annotated = |kind: &str, annotation: &str| {
        problems(&format!(
            "apiVersion: v1\nkind: {kind}\nmetadata:\n  name: p\n  annotations:\n    {annotation}\nspec:\n  containers: []\n"
        ))
    };
    let found = annotated("Pod", "aquifer.io/max-connections: 'many'").join("\n");
    let expected = "f.yaml:5: error: Pod default/p: metadata.annotations: aquifer.io/max-connections: `many`: invalid digit found in string";
    assert_eq!(found, expected);
    let found = annotated("Pod", "aquifer.io/connection-rate: '5/s'").join("\n");
    assert!(
        found.contains("aquifer.io/connection-rate: `5/s`: expected connections a second"),
        "{found}"
    );
    let found = annotated("Namespace", "aquifer.io/max-connections: '5'").join("\n");
    assert!(found.contains("warning: Namespace p: metadata.annotations: aquifer.io/max-connections: has no effect here"), "{found}");
}
