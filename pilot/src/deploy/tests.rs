//! Against what a real istiod had deployed, and against what users ask for.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Value, json};

use super::{DeployError, Installation, objects};
use crate::manifests::{Manifests, read_text};

fn manifests(text: &str) -> Manifests {
    let resources = read_text(&Arc::from(Path::new("f.yaml")), text, &mut Vec::new());
    Manifests::gather(&resources).0
}

fn installation() -> Installation {
    Installation {
        image: "registry.example/proxy:1".into(),
        ca_address: "istiod.istio-system.svc:15012".into(),
        cluster_id: "Kubernetes".into(),
        trust_domain: "cluster.local".into(),
        cluster_domain: "cluster.local".into(),
        network: String::new(),
        proxy_config: json!({}),
        root_namespace: "istio-system".into(),
        revision: "default".into(),
    }
}

fn of(text: &str) -> Result<Vec<Value>, DeployError> {
    let manifests = manifests(text);
    objects(&manifests, &manifests.gateways[0], &installation())
}

const WAYPOINT: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// An object of the recorded input, as plain data.
fn recorded<'a>(
    documents: &'a [Value],
    kind: &str,
    namespace: &str,
    name: &str,
) -> Option<&'a Value> {
    documents.iter().find(|one| {
        one["kind"] == kind
            && one["metadata"]["namespace"] == namespace
            && one["metadata"]["name"].as_str().is_some_and(|own| {
                own == name || kind == "Pod" && own.starts_with(&format!("{name}-"))
            })
    })
}

#[test]
fn services_accounts_and_pods_are_those_of_the_recorded_meshes() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/istiod");
    let mut compared = 0;
    for case in fs::read_dir(cases).unwrap() {
        let Ok(text) = fs::read_to_string(case.unwrap().path().join("input.yaml")) else {
            continue;
        };
        let documents: Vec<Value> = text
            .split("\n---\n")
            .map(|document| serde_yaml_ng::from_str(document).unwrap())
            .collect();
        let manifests = manifests(&text);
        for gateway in &manifests.gateways {
            let made = objects(&manifests, gateway, &installation()).unwrap();
            let (namespace, name) = (&*gateway.meta.namespace, &*gateway.meta.name);
            let [account, deployment, service] = &*made else { continue };
            let Some(theirs) = recorded(&documents, "Service", namespace, name) else { continue };
            let subset = |ours: &Value, theirs: &Value, what: &str| {
                let all = theirs.as_object().into_iter().flatten();
                for (key, value) in all.filter(|(key, _)| *key != "pod-template-hash") {
                    assert_eq!(&ours[key], value, "{namespace}/{name}: {what}: {key}");
                }
            };
            subset(&service["metadata"]["labels"], &theirs["metadata"]["labels"], "label");
            assert_eq!(service["spec"]["selector"], theirs["spec"]["selector"]);
            assert_eq!(service["spec"]["ports"], theirs["spec"]["ports"], "{namespace}/{name}");
            if let Some(theirs) = recorded(&documents, "ServiceAccount", namespace, name) {
                subset(&account["metadata"]["labels"], &theirs["metadata"]["labels"], "label");
            }
            if let Some(theirs) = recorded(&documents, "Pod", namespace, name) {
                let template = &deployment["spec"]["template"];
                subset(&template["metadata"]["labels"], &theirs["metadata"]["labels"], "label");
                let account = &theirs["spec"]["serviceAccountName"];
                assert_eq!(&template["spec"]["serviceAccountName"], account);
            }
            compared += 1;
        }
    }
    assert!(compared >= 10, "{compared}");
}

#[test]
fn annotations_and_infrastructure_are_followed() {
    let named = WAYPOINT.replace(
        "labels: {istio",
        "annotations: {gateway.istio.io/name-override: other, gateway.istio.io/service-account: sa, \
         networking.istio.io/service-type: NodePort}, labels: {istio",
    );
    let made = of(&named).unwrap();
    let names: Vec<_> = made.iter().map(|one| one["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["sa", "other", "other"]);
    assert_eq!(made[1]["spec"]["template"]["spec"]["serviceAccountName"], "sa");
    assert_eq!(made[2]["spec"]["type"], "NodePort");
    assert_eq!(made[0]["metadata"]["labels"]["istio.io/waypoint-for"], "all");

    let own =
        format!("{WAYPOINT}  infrastructure: {{labels: {{team: a}}, annotations: {{note: b}}}}\n");
    let made = of(&own).unwrap();
    for object in &made {
        assert_eq!(object["metadata"]["labels"]["team"], "a");
        assert_eq!(object["metadata"]["labels"]["istio.io/waypoint-for"], Value::Null);
        assert_eq!(object["metadata"]["annotations"]["note"], "b");
    }
    assert_eq!(made[1]["spec"]["template"]["metadata"]["labels"]["team"], "a");
}

#[test]
fn config_maps_of_the_class_and_then_of_the_gateway_change_what_is_made() {
    let text = format!(
        "{WAYPOINT}  infrastructure: {{parametersRef: {{group: '', kind: ConfigMap, name: own}}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: all, namespace: istio-system, labels: {{gateway.istio.io/defaults-for-class: istio-waypoint}}}}
data:
  deployment: |
    metadata: {{name: stolen}}
    spec: {{replicas: 2}}
  horizontalPodAutoscaler: |
    spec: {{minReplicas: 2, maxReplicas: 5}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: own, namespace: shop}}
data:
  deployment: |
    spec:
      replicas: 3
      template: {{spec: {{containers: [{{name: istio-proxy, resources: {{limits: {{cpu: '4'}}}}}}]}}}}
"
    );
    let made = of(&text).unwrap();
    let kinds: Vec<_> = made.iter().map(|one| one["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ServiceAccount", "Deployment", "Service", "HorizontalPodAutoscaler"]);
    assert_eq!(made[1]["metadata"]["name"], "waypoint");
    assert_eq!(made[1]["spec"]["replicas"], 3);
    let container = &made[1]["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"], json!({"cpu": "4", "memory": "1Gi"}));
    assert_eq!(container["image"], "registry.example/proxy:1");
    assert_eq!(made[3]["spec"]["maxReplicas"], 5);
    assert_eq!(made[3]["spec"]["scaleTargetRef"]["name"], "waypoint");
}

#[test]
fn what_cannot_be_followed_is_named() {
    let with =
        |infrastructure: &str| of(&format!("{WAYPOINT}  infrastructure: {infrastructure}\n"));
    assert_eq!(
        with("{parametersRef: {group: '', kind: ConfigMap, name: none}}").unwrap_err().to_string(),
        "spec.infrastructure.parametersRef: there is no ConfigMap shop/none"
    );
    assert_eq!(
        with("{parametersRef: {group: x, kind: Widget, name: none}}").unwrap_err().to_string(),
        "spec.infrastructure.parametersRef: only a ConfigMap is read, not Widget"
    );
    let bad = format!(
        "{WAYPOINT}  infrastructure: {{parametersRef: {{group: '', kind: ConfigMap, name: own}}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: own, namespace: shop}}
data: {{service: '7'}}
"
    );
    assert_eq!(
        of(&bad).unwrap_err().to_string(),
        "ConfigMap shop/own: data.service: is no mapping"
    );
}

#[test]
fn what_is_not_ours_to_run_is_left_alone() {
    for (from, to) in [
        ("istio-waypoint", "somebody-elses"),
        ("istio-waypoint", "istio-remote"),
        ("listeners:", "addresses: [{type: Hostname, value: w.example.com}]\n  listeners:"),
        ("listeners:", "addresses: [{value: 10.0.0.1}, {value: 10.0.0.2}]\n  listeners:"),
    ] {
        assert_eq!(of(&WAYPOINT.replace(from, to)), Ok(Vec::new()), "{to}");
    }
    assert_eq!(
        of(&WAYPOINT.replace("listeners:", "addresses: [{value: 10.0.0.1}]\n  listeners:"))
            .unwrap()
            .len(),
        3
    );
}
