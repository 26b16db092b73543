//! What `meshctl` says of folders of manifests.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

use std::{fs, path::Path, process::Command};

use serde_json::Value;

const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web, containers: []}
status: {podIP: 10.0.0.1}
";

const DENY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-get, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}
";

/// Exit code and standard output.
fn meshctl(arguments: &[&str], folder: &Path) -> (i32, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_meshctl")).args(arguments).arg(folder).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn analyze_fails_only_where_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("shop.yaml"), SHOP).unwrap();
    assert_eq!(
        meshctl(&["analyze"], dir.path()),
        (0, "0 errors, 0 warnings, 0 notes\n".to_owned())
    );

    fs::write(dir.path().join("deny.yaml"), DENY).unwrap();
    let (code, text) = meshctl(&["analyze"], dir.path());
    let file = dir.path().join("deny.yaml");
    let expected = format!(
        "{}:1: error AQ0302: AuthorizationPolicy shop/no-get: spec.rules[0]: methods: the rule refuses nothing\n",
        file.display()
    );
    assert!(code == 1 && text.starts_with(&expected), "{text}");
    assert!(text.ends_with("1 errors, 0 warnings, 0 notes\n"), "{text}");

    let (code, text) = meshctl(&["analyze", "--output", "json"], dir.path());
    let all: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &all[0]["code"], &all[0]["name"]), (1, &"AQ0302".into(), &"no-get".into()));

    let (code, _) = meshctl(&["analyze"], &dir.path().join("nowhere"));
    assert_eq!(code, 2);
}

#[test]
fn diff_names_what_would_change() {
    let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(before.path().join("shop.yaml"), SHOP).unwrap();
    fs::write(after.path().join("shop.yaml"), SHOP).unwrap();
    let against = before.path().to_str().unwrap();
    let diff =
        |more: &[&str]| meshctl(&[&["diff", "--against", against], more].concat(), after.path());
    assert_eq!(diff(&[]), (0, String::new()));

    let moved = SHOP.replace("10.0.0.1", "10.0.0.2");
    fs::write(after.path().join("shop.yaml"), moved).unwrap();
    fs::write(after.path().join("deny.yaml"), DENY).unwrap();
    let expected = r#"ztunnel
  ~ address Kubernetes//Pod/shop/web
      workload.addresses[0]: "CgAAAQ==" -> "CgAAAg=="
  + authorization shop/no-get
"#;
    assert_eq!(diff(&[]), (1, expected.to_owned()));
    let (code, text) = diff(&["--output", "json"]);
    let all: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &all[1]["change"], &all[1]["type"]),
        (1, &"added".into(), &"authorization".into())
    );
    assert_eq!(meshctl(&["diff", "--against", "/nowhere"], after.path()).0, 2);
}

#[test]
fn explain_config_names_the_objects_behind_a_resource() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("shop.yaml"), SHOP).unwrap();
    let folder = dir.path().to_str().unwrap();
    let explain = |more: &[&str]| {
        let arguments = ["explain", "config", "--for", "ztunnel", folder];
        let output = Command::new(env!("CARGO_BIN_EXE_meshctl"))
            .args(arguments)
            .args(more)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let expected = format!(
        "\
address Kubernetes//Pod/shop/web
    Pod shop/web is it: {folder}/shop.yaml:10
    Namespace shop says whether it is in the mesh: {folder}/shop.yaml:1
    Service shop/web leads to it: {folder}/shop.yaml:5
"
    );
    assert_eq!(explain(&["Pod/shop/web"]), (0, expected));
    assert_eq!(explain(&["nobody"]), (1, String::new()));
}
