//! What is read from the ConfigMap, and what is refused.

use std::{path::Path, sync::Arc};

use super::{
    AccessLogEncoding, DefaultProviders, MeshConfig, Normalization, ProviderKind, Scope,
    ServiceScope, Visibility,
};
use crate::manifests::{Labels, Manifests, Severity, read_text};

fn manifests(mesh: &str, networks: &str) -> Manifests {
    let indented = |text: &str| {
        let lines = text.lines().map(|line| format!("    {line}\n"));
        lines.collect::<String>()
    };
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio\n  namespace: istio-system\n\
         data:\n  mesh: |\n{}  meshNetworks: |\n{}",
        indented(mesh),
        indented(networks)
    );
    let mut problems = Vec::new();
    let resources = read_text(&Arc::from(Path::new("mesh.yaml")), &text, &mut problems);
    assert!(problems.is_empty(), "{problems:#?}");
    Manifests::gather(&resources).0
}

fn read(mesh: &str) -> (MeshConfig, Vec<String>) {
    let (config, problems) =
        MeshConfig::default().with_settings_of(&manifests(mesh, "networks: {}"));
    let texts = problems.iter().map(|one| {
        let severity = if one.severity == Severity::Error { "error" } else { "warning" };
        format!("{severity}: {}: {}", one.field, one.reason)
    });
    (config, texts.collect())
}

#[test]
fn what_is_absent_has_istios_default() {
    let (config, problems) =
        read("trustDomain: cluster.local\ndefaultProviders: {metrics: [prometheus]}");
    assert_eq!(config.provider("prometheus").unwrap().kind, ProviderKind::Prometheus);
    let config = MeshConfig { default_providers: DefaultProviders::default(), ..config };
    assert_eq!(problems, [""; 0]);
    assert_eq!(config, MeshConfig::default());
    assert_eq!(config.connect_timeout.0.as_secs(), 10);
    assert_eq!(config.hbone_idle_timeout.0.as_secs(), 3600);
    assert_eq!(config.locality_lb_setting.enabled, Some(true));
    assert_eq!(config.default_service_export_to, ["*"]);
    assert_eq!(config.path_normalization.normalization, Normalization::Default);
}

#[test]
fn what_pilot_was_started_with_stands_unless_the_mesh_says_otherwise() {
    let base = MeshConfig {
        cluster_id: "east".into(),
        trust_domain: "td.example".into(),
        cluster_domain: "example".into(),
        network: "n1".into(),
        ..MeshConfig::default()
    };
    let (config, problems) =
        base.with_settings_of(&manifests("rootNamespace: mesh-root", "networks: {}"));
    assert_eq!(problems, []);
    assert_eq!(config, MeshConfig { root_namespace: "mesh-root".into(), ..base.clone() });

    let (_, problems) = base.with_settings_of(&manifests("trustDomain: other", ""));
    let reasons: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        reasons,
        [
            "mesh.yaml:1: error: ConfigMap istio-system/istio: data.mesh.trustDomain: `other`, but pilot was started \
          with td.example and issues certificates for it"
        ]
    );
}

#[test]
fn settings_are_read_in_istios_words() {
    let (config, problems) = read(
        "trustDomainAliases: [old.example]
connectTimeout: 2.5s
accessLogFile: /dev/stdout
accessLogEncoding: JSON
enableTracing: true
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
h2UpgradePolicy: UPGRADE
pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}
defaultHttpRetryPolicy: {attempts: 0}
discoverySelectors:
- matchLabels: {mesh: 'yes'}
serviceScopeConfigs:
- servicesSelector:
    matchExpressions: [{key: istio.io/global, operator: In, values: ['true']}]
  scope: GLOBAL
serviceEntryVisibility:
  policies:
  - visibility: NAMESPACE
    matchingRules: [{namespaceSelector: {matchLabels: {se: own}}}]
defaultConfig:
  proxyHeaders: {server: {disabled: true}, preserveHttp1HeaderCase: true}
  tracing: {sampling: 20}
extensionProviders:
- name: prom
  prometheus: {}
- name: log
  envoyFileAccessLog: {path: /dev/stderr, logFormat: {labels: {code: '%RESPONSE_CODE%'}}}
defaultProviders: {metrics: [prom], accessLogging: [log]}",
    );
    assert_eq!(problems, [""; 0]);
    assert_eq!(config.trust_domains().collect::<Vec<_>>(), ["cluster.local", "old.example"]);
    assert_eq!(config.connect_timeout.0.as_millis(), 2500);
    assert_eq!(config.access_log_encoding, AccessLogEncoding::Json);
    assert_eq!(config.service_entry_visibility.policies[0].visibility, Visibility::Namespace);
    assert_eq!(config.service_scope_configs[0].scope, Scope::Global);
    assert_eq!(config.default_config.tracing.as_ref().unwrap().sampling, Some(20.0));
    assert_eq!(config.provider("prom").unwrap().kind, ProviderKind::Prometheus);
    assert!(config.provider("nobody").is_none());
}

#[test]
fn networks_are_read_from_their_own_key() {
    let networks = "networks:
  west:
    endpoints: [{fromRegistry: west}]
    gateways: [{address: 192.0.2.1, port: 15443}, {port: 0}]";
    let (config, problems) = MeshConfig::default().with_settings_of(&manifests("", networks));
    assert_eq!(config.networks["west"].gateways[0].port, 15443);
    let fields: Vec<_> = problems.iter().map(|one| one.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "data.meshNetworks.networks.west.gateways[1]",
            "data.meshNetworks.networks.west.gateways[1].port"
        ]
    );
}

#[test]
fn what_cannot_be_meant_is_refused_by_field_and_reason() {
    for (mesh, expected) in [
        (
            "connectTimeout: soon",
            "error: data.mesh.connectTimeout: `soon` is no duration such as 250ms, 1.5s or 1h",
        ),
        ("connectTimeout: 0s", "error: data.mesh.connectTimeout: 0s: between 1ms and 1h"),
        (
            "thriftConfig: {rateLimitUrl: a}",
            "warning: data.mesh.thriftConfig: not known to this version: ignored",
        ),
        (
            "defaultConfig: {tracing: {zipkin: {adress: a}}}",
            "warning: data.mesh.defaultConfig.tracing.zipkin.adress: not known to this version: ignored",
        ),
        (
            "trustDomainAliases: ['a/b']",
            "error: data.mesh.trustDomainAliases[0]: `a/b` is no trust domain",
        ),
        ("rootNamespace: A_B", "error: data.mesh.rootNamespace: `A_B` is no DNS label"),
        (
            "extensionProviders: [{name: a, envoyExtAuthzGrpc: {service: a.b}}]",
            "error: data.mesh.extensionProviders[0].port: 0 is no port (1 to 65535)",
        ),
        (
            "extensionProviders: [{name: a, envoyExtAuthzGrpc: {service: a.b, port: 1, statusOnError: abc}}]",
            "error: data.mesh.extensionProviders[0]: statusOnError: `abc` is no HTTP status",
        ),
        (
            "extensionProviders: [{name: a, envoyExtAuthzHttp: {service: a.b, port: 1, pathPrefix: b}}]",
            "error: data.mesh.extensionProviders[0]: pathPrefix: `b` does not begin with `/`",
        ),
        (
            "extensionProviders: [{name: a, prometheus: {}}, {name: a, sds: {}}]",
            "error: data.mesh.extensionProviders[1].name: there already is a provider `a`",
        ),
        (
            "defaultProviders: {tracing: [zip]}",
            "error: data.mesh.defaultProviders.tracing: there is no extension provider `zip`",
        ),
    ] {
        assert_eq!(read(mesh).1, [expected], "{mesh}");
    }
    // A provider of no kind or of two is refused where it stands.
    for (mesh, reason) in [
        ("extensionProviders: [{name: a}]", "has no kind"),
        ("extensionProviders: [{name: a, prometheus: {}, sds: {}}]", "is of two kinds"),
    ] {
        let (_, problems) = read(mesh);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with("error: data.mesh.extensionProviders[0]: "),
            "{problems:?}"
        );
        assert!(problems[0].contains(reason), "{problems:?}");
    }
}

#[test]
fn a_scope_takes_what_both_its_selectors_take() {
    let (config, _) = read(
        "serviceScopeConfigs:
- namespaceSelector: {matchLabels: {a: b}}
  servicesSelector: {matchLabels: {c: d}}
  scope: GLOBAL",
    );
    let scope: &ServiceScope = &config.service_scope_configs[0];
    let labels = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
    assert!(scope.matches(&labels("a", "b"), &labels("c", "d")));
    assert!(!scope.matches(&labels("a", "b"), &labels("c", "x")));
    assert!(!scope.matches(&labels("a", "x"), &labels("c", "d")));
}
