//! Which kinds exist, and which of them this version serves.
//!
//! In: `apiVersion` and `kind` of a document. Out: a [`Verdict`]. A kind that exists elsewhere (a Deployment, a
//! Gateway) may lie in the same folder and is passed over; one that exists nowhere is a mistake.

/// A kind that is served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    ServiceAccount,
    EndpointSlice,
    AuthorizationPolicy,
    PeerAuthentication,
}

impl Kind {
    /// Whether its objects live in namespaces.
    pub(crate) fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }
}

/// What to do with a document.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Served(Kind),
    NotServed,
    Wrong(String),
}

const SERVED: [(&str, &[&str], Kind); 8] = [
    ("Namespace", &["v1"], Kind::Namespace),
    ("Node", &["v1"], Kind::Node),
    ("Pod", &["v1"], Kind::Pod),
    ("Service", &["v1"], Kind::Service),
    ("ServiceAccount", &["v1"], Kind::ServiceAccount),
    ("EndpointSlice", &["discovery.k8s.io/v1"], Kind::EndpointSlice),
    (
        "AuthorizationPolicy",
        &["security.istio.io/v1", "security.istio.io/v1beta1"],
        Kind::AuthorizationPolicy,
    ),
    (
        "PeerAuthentication",
        &["security.istio.io/v1", "security.istio.io/v1beta1"],
        Kind::PeerAuthentication,
    ),
];

/// The kinds of the groups that a mesh's folder is made of, without those that are served. A kind of such a group
/// that is not here is misspelt; any other group belongs to somebody else.
const KNOWN: [(&str, &[&str]); 9] = [
    (
        "",
        &[
            "Binding",
            "ConfigMap",
            "Endpoints",
            "Event",
            "LimitRange",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "Secret",
        ],
    ),
    ("apps", &["ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"]),
    ("batch", &["CronJob", "Job"]),
    ("discovery.k8s.io", &[]),
    ("security.istio.io", &["RequestAuthentication"]),
    (
        "networking.istio.io",
        &[
            "DestinationRule",
            "EnvoyFilter",
            "Gateway",
            "ProxyConfig",
            "ServiceEntry",
            "Sidecar",
            "VirtualService",
            "WorkloadEntry",
            "WorkloadGroup",
        ],
    ),
    ("telemetry.istio.io", &["Telemetry"]),
    ("extensions.istio.io", &["TrafficExtension", "WasmPlugin"]),
    (
        "gateway.networking.k8s.io",
        &[
            "BackendTLSPolicy",
            "GRPCRoute",
            "Gateway",
            "GatewayClass",
            "HTTPRoute",
            "ListenerSet",
            "ReferenceGrant",
            "TCPRoute",
            "TLSRoute",
            "UDPRoute",
        ],
    ),
];

/// Says what a document of this version and kind is.
pub(crate) fn judge(api_version: &str, kind: &str) -> Verdict {
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    if let Some((_, versions, served)) = SERVED.iter().find(|(name, versions, _)| {
        *name == kind && versions.iter().any(|version| group_of(version) == group)
    }) {
        return if versions.contains(&api_version) {
            Verdict::Served(*served)
        } else {
            Verdict::Wrong(format!(
                "{kind} is read as {}, not as {api_version}",
                versions.join(" or ")
            ))
        };
    }
    match KNOWN.iter().find(|(name, _)| *name == group) {
        Some((_, kinds)) if !kinds.contains(&kind) => {
            Verdict::Wrong(format!("there is no kind {kind} in {api_version}{}", hint(kind)))
        }
        Some(_) | None => Verdict::NotServed,
    }
}

fn group_of(api_version: &str) -> &str {
    api_version.rsplit_once('/').map_or("", |(group, _)| group)
}

fn hint(kind: &str) -> String {
    match SERVED.iter().find(|(name, ..)| name.eq_ignore_ascii_case(kind)) {
        Some((name, versions, _)) => format!(" ({name} is of {})", versions.join(" or ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_served_passed_over_or_wrong() {
        for (api_version, kind, expected) in [
            ("v1", "Pod", Verdict::Served(Kind::Pod)),
            (
                "security.istio.io/v1beta1",
                "PeerAuthentication",
                Verdict::Served(Kind::PeerAuthentication),
            ),
            ("networking.istio.io/v1", "VirtualService", Verdict::NotServed),
            ("gateway.networking.k8s.io/v1", "Gateway", Verdict::NotServed),
            ("apps/v1", "Deployment", Verdict::NotServed),
            ("example.com/v1", "Pod", Verdict::NotServed),
            ("v1", "Podd", Verdict::Wrong("there is no kind Podd in v1".into())),
            ("v2", "Pod", Verdict::Wrong("Pod is read as v1, not as v2".into())),
            (
                "apps/v1",
                "Pod",
                Verdict::Wrong("there is no kind Pod in apps/v1 (Pod is of v1)".into()),
            ),
            (
                "v1",
                "service",
                Verdict::Wrong("there is no kind service in v1 (Service is of v1)".into()),
            ),
        ] {
            assert_eq!(judge(api_version, kind), expected, "{api_version} {kind}");
        }
    }
}
