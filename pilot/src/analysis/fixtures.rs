//! What is found in the inputs that a real istiod was given, which mean most of what looks wrong in them: exactly these
//! findings, so that there is no false alarm. Each has its reason.

use std::{collections::HashSet, path::PathBuf};

use super::{analyze, with_problems};
use crate::{compile::MeshConfig, manifests::Folder};

/// Code, object, field, and why it is right.
type Expected = (&'static str, &'static str, &'static str, &'static str);

fn check(case: &str, expected: &[Expected]) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/istiod");
    let mut folder = Folder::new(folder.join(case));
    folder.refresh(&HashSet::new()).unwrap();
    let (manifests, mut problems) = folder.load("istio-system");
    let base = MeshConfig { multi_network: case == "11-multinetwork", ..MeshConfig::default() };
    let (config, of_config) = base.with_settings_of(&manifests);
    problems.extend(of_config);
    let found = with_problems(analyze(&manifests, &config), &problems);
    let found: Vec<_> =
        found.iter().map(|one| (one.code.id(), one.object.as_str(), one.field.as_str())).collect();
    let expected: Vec<_> = expected.iter().map(|one| (one.0, one.1, one.2)).collect();
    assert_eq!(found, expected, "{case}");
}

#[test]
fn pods_and_services() {
    check(
        "01-basic",
        &[("AQ0201", "Service shop/empty", "spec.selector", "its selector is app=nothing")],
    );
}

#[test]
fn policies_of_layer_4() {
    let none = "no waypoint stands before the namespace";
    let deny = "what is left of the rule never matches (istiod-observed 5)";
    let wide = "an attribute of the same clause is left and matches alone";
    let account = "the account is invented";
    let as_permissive = "tunnels are taken in any mode";
    let allow = "a rule that needs the request is dropped whole";
    check(
        "02-l4-policy",
        &[
            ("AQ0609", "Gateway bank/wp", "metadata.name", "only a policy names it"),
            (
                "AQ0309",
                "AuthorizationPolicy bank/service-accounts",
                "spec.rules[0].from[0].source.serviceAccounts[0]",
                account,
            ),
            (
                "AQ0309",
                "AuthorizationPolicy bank/service-accounts",
                "spec.rules[0].from[1].source.notServiceAccounts[0]",
                account,
            ),
            ("AQ0302", "AuthorizationPolicy bank/service-account-condition", "spec.rules[0]", deny),
            ("AQ0302", "AuthorizationPolicy bank/remote-ip", "spec.rules[0]", deny),
            ("AQ0303", "AuthorizationPolicy bank/remote-ip", "spec.rules[1]", wide),
            ("AQ0302", "AuthorizationPolicy bank/remote-ip", "spec.rules[2]", deny),
            ("AQ0301", "AuthorizationPolicy web/l7-allow", "spec.rules[0]", allow),
            ("AQ0301", "AuthorizationPolicy web/l7-allow", "spec.rules[1]", allow),
            ("AQ0301", "AuthorizationPolicy web/l7-allow", "spec.rules[2]", allow),
            ("AQ0301", "AuthorizationPolicy web/l7-allow", "spec.rules[3]", allow),
            ("AQ0301", "AuthorizationPolicy web/l7-allow", "spec.rules[4]", allow),
            ("AQ0301", "AuthorizationPolicy web/l7-allow", "spec.rules[5]", allow),
            ("AQ0301", "AuthorizationPolicy web/l7-allow", "spec.rules[6]", allow),
            ("AQ0302", "AuthorizationPolicy web/l7-deny", "spec.rules[0]", deny),
            ("AQ0303", "AuthorizationPolicy web/l7-deny", "spec.rules[1]", wide),
            ("AQ0302", "AuthorizationPolicy web/l7-deny", "spec.rules[2]", deny),
            ("AQ0303", "AuthorizationPolicy web/l7-deny", "spec.rules[3]", wide),
            ("AQ0302", "AuthorizationPolicy web/l7-deny", "spec.rules[4]", deny),
            ("AQ0302", "AuthorizationPolicy web/l7-deny", "spec.rules[5]", deny),
            ("AQ0302", "AuthorizationPolicy web/sni-and-experimental", "spec.rules[0]", deny),
            ("AQ0302", "AuthorizationPolicy web/sni-and-experimental", "spec.rules[1]", deny),
            ("AQ0308", "AuthorizationPolicy lab/deny-nothing", "spec.rules", "DENY without rules"),
            ("AQ0304", "AuthorizationPolicy lab/audit", "spec.action", none),
            ("AQ0304", "AuthorizationPolicy lab/custom", "spec.action", none),
            (
                "AQ0002",
                "AuthorizationPolicy lab/dry-run",
                "metadata.annotations",
                "not sent (istiod-observed 6)",
            ),
            ("AQ0601", "AuthorizationPolicy bank/svc-target", "spec.targetRefs[0]", none),
            (
                "AQ0109",
                "AuthorizationPolicy bank/missing-target",
                "spec.targetRefs[0]",
                "bank/nowhere is not there",
            ),
            (
                "AQ0505",
                "PeerAuthentication bank/vault-ports",
                "spec.portLevelMtls.9091",
                as_permissive,
            ),
            ("AQ0505", "PeerAuthentication bank/audit-open", "spec.mtls", as_permissive),
            ("AQ0505", "PeerAuthentication plain/default", "spec.mtls", as_permissive),
            (
                "AQ0505",
                "PeerAuthentication lab/lab-c-inherit-ports",
                "spec.portLevelMtls.7002",
                as_permissive,
            ),
        ],
    );
}

#[test]
fn traffic_distribution() {
    check("03-traffic-distribution", &[]);
}

#[test]
fn hosts_outside() {
    let wildcard = "no waypoint: only one resolves names below a wildcard";
    check(
        "04-external",
        &[
            (
                "AQ0201",
                "ServiceEntry ext/static-none-endpoints",
                "spec.endpoints",
                "STATIC without endpoints",
            ),
            ("AQ0204", "ServiceEntry ext/wild-none", "spec.hosts", wildcard),
            ("AQ0204", "ServiceEntry ext/wild-dynamic", "spec.hosts", wildcard),
            (
                "AQ0209",
                "ServiceEntry private/to-two",
                "spec.exportTo",
                "all namespaces see it (istiod-observed 9)",
            ),
            (
                "AQ0205",
                "ServiceEntry ext/same-host-2",
                "spec.hosts[0]",
                "pruned (istiod-observed 11)",
            ),
            (
                "AQ0205",
                "ServiceEntry ext/shadow-k8s",
                "spec.hosts[0]",
                "pruned (istiod-observed 11)",
            ),
            (
                "AQ0202",
                "Service vm/vm-svc",
                "spec.ports[1].targetPort",
                "no WorkloadEntry has a port `otherport`",
            ),
            ("AQ0703", "WorkloadEntry vm/vm-net", "spec.serviceAccount", "it has none"),
            ("AQ0703", "WorkloadEntry vm/vm-lonely", "spec.serviceAccount", "it has none"),
            ("AQ0701", "WorkloadGroup vm/group", "", "machines are not registered"),
        ],
    );
}

#[test]
fn waypoints() {
    check(
        "05-waypoint-simple",
        &[
            ("AQ0604", "Namespace pending", "metadata.labels", "pending/late has no pod"),
            ("AQ0201", "Service orders/empty", "spec.selector", "nothing has its labels"),
            (
                "AQ0605",
                "Service billing/via-denied",
                "metadata.labels",
                "orders/waypoint is for its own namespace",
            ),
            (
                "AQ0101",
                "Service billing/via-missing",
                "metadata.labels",
                "billing/nowhere is not there",
            ),
            (
                "AQ0606",
                "Service edge/e-svc-to-wl",
                "metadata.labels",
                "edge/wl-waypoint is for workloads",
            ),
            ("AQ0201", "Service pending/late", "spec.selector", "the waypoint has no pod"),
        ],
    );
}

#[test]
fn routes_of_the_gateway_api() {
    check(
        "06-httproute",
        &[
            (
                "AQ0414",
                "HTTPRoute store/retry",
                "spec.rules[3].sessionPersistence",
                "ignored (istiod-observed 16)",
            ),
            (
                "AQ0102",
                "HTTPRoute store/errors-missing",
                "spec.rules[0].backendRefs[0]",
                "store/nowhere is not there",
            ),
            (
                "AQ0103",
                "HTTPRoute store/errors-missing",
                "spec.rules[1].backendRefs[0].port",
                "the Service has no port 8888",
            ),
            ("AQ0409", "HTTPRoute store/errors-kind", "spec.rules[0].backendRefs[0]", "a Bucket"),
            (
                "AQ0410",
                "HTTPRoute store/errors-kind",
                "spec.rules[1].backendRefs",
                "a weight of 0 alone",
            ),
            (
                "AQ0104",
                "HTTPRoute store/no-such-parent",
                "spec.parentRefs[0]",
                "store/nowhere is not there",
            ),
            (
                "AQ0414",
                "HTTPRoute store/port-81",
                "spec.parentRefs[0].sectionName",
                "ignored (istiod-observed 14)",
            ),
            (
                "AQ0407",
                "HTTPRoute consumer/consumer-route",
                "spec.parentRefs[0]",
                "of neither namespace that counts",
            ),
        ],
    );
}

#[test]
fn virtual_services() {
    let no_default = "every rule has a match";
    check(
        "07-virtualservice",
        &[
            (
                "AQ0106",
                "VirtualService app/web",
                "spec.http[6].route[0].destination.subset",
                "`missing` is meant to be missing",
            ),
            (
                "AQ0002",
                "VirtualService app/web",
                "spec.http[3].match[0].sourceLabels",
                "a waypoint does not know them",
            ),
            (
                "AQ0002",
                "VirtualService app/web",
                "spec.http[5].rewrite.authority",
                "the host is set twice",
            ),
            ("AQ0406", "VirtualService app/faults", "spec.http", no_default),
            ("AQ0406", "VirtualService app/retries", "spec.http", no_default),
            (
                "AQ0412",
                "VirtualService app/tcp",
                "spec.tcp[0].match[0].port",
                "the Service has no port 9999",
            ),
            (
                "AQ0408",
                "DestinationRule ext/web-private",
                "spec.exportTo",
                "to its own namespace, which has no waypoint",
            ),
        ],
    );
}

#[test]
fn policies_of_requests() {
    let tcp = "port 7000 is TCP (istiod-observed 19)";
    let nobody = "the account is invented";
    check(
        "08-l7-authz",
        &[
            ("AQ0305", "AuthorizationPolicy istio-system/class-wide", "spec.rules[0]", tcp),
            ("AQ0305", "AuthorizationPolicy api/gw-deny", "spec.rules[1]", tcp),
            (
                "AQ0309",
                "AuthorizationPolicy api/users-allow",
                "spec.rules[0].from[2].source.notServiceAccounts[0]",
                nobody,
            ),
            (
                "AQ0309",
                "AuthorizationPolicy api/users-allow",
                "spec.rules[0].from[2].source.serviceAccounts[1]",
                nobody,
            ),
            (
                "AQ0002",
                "AuthorizationPolicy api/users-allow",
                "spec.rules[0].from[0].source.principals[1]",
                "two wildcards",
            ),
            ("AQ0305", "AuthorizationPolicy api/users-deny-mixed", "spec.rules[0]", tcp),
            ("AQ0305", "AuthorizationPolicy api/users-deny-mixed", "spec.rules[2]", tcp),
            (
                "AQ0107",
                "AuthorizationPolicy api/ext-unknown",
                "spec.provider.name",
                "denies all (istiod-observed 20)",
            ),
            ("AQ0002", "AuthorizationPolicy api/dry", "metadata.annotations", "only counted"),
            (
                "AQ0301",
                "AuthorizationPolicy api/selector-ignored",
                "spec.rules[0]",
                "methods, and no target",
            ),
            (
                "AQ0306",
                "RequestAuthentication api/jwt-multi",
                "spec.jwtRules",
                "nothing asks for its tokens",
            ),
            ("AQ0307", "RequestAuthentication api/ns-ignored", "spec.targetRefs", "no target"),
        ],
    );
}

#[test]
fn telemetry() {
    check(
        "09-telemetry",
        &[
            (
                "AQ0307",
                "Telemetry app2/selector-ignored",
                "spec.selector",
                "a waypoint has no selectors",
            ),
            (
                "AQ0107",
                "Telemetry app2/bad-filter",
                "spec.accessLogging",
                "no-such is meant not to be there",
            ),
        ],
    );
}

#[test]
fn egress() {
    check(
        "10-egress",
        &[
            (
                "AQ0206",
                "ServiceEntry egress/wild",
                "spec.ports[2].protocol",
                "a chain without cluster (istiod-observed 23)",
            ),
            (
                "AQ0305",
                "AuthorizationPolicy egress/httpbin",
                "spec.rules[0]",
                "port 443 is HTTPS: nothing is seen of requests",
            ),
        ],
    );
}

#[test]
fn several_networks() {
    check("11-multinetwork", &[]);
}

#[test]
fn extensions() {
    let context = "waypoints take two contexts (istiod-observed 22)";
    check(
        "12-extensions",
        &[
            ("AQ0307", "WasmPlugin app/selector", "spec.targetRefs", "a selector, and no target"),
            (
                "AQ0002",
                "EnvoyFilter app/local-rate-limit",
                "spec.configPatches[2].match.context",
                context,
            ),
            (
                "AQ0002",
                "EnvoyFilter app/local-rate-limit",
                "spec.configPatches[3].match.context",
                context,
            ),
            (
                "AQ0002",
                "EnvoyFilter app/hcm-merge",
                "spec.configPatches[3].applyTo",
                "CLUSTER MERGE (istiod-observed 22)",
            ),
            (
                "AQ0701",
                "EnvoyFilter app/no-target",
                "spec.targetRefs",
                "no target (istiod-observed 22)",
            ),
            (
                "AQ0701",
                "EnvoyFilter istio-system/root",
                "spec.targetRefs",
                "no target (istiod-observed 22)",
            ),
        ],
    );
}
