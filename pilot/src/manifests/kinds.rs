//! Which kinds exist, and which of them this version serves.
//!
//! In: `apiVersion` and `kind` of a document. Out: a [`Verdict`]. A kind that exists elsewhere (a Deployment, a
//! Job) may lie in the same folder and is passed over; one that exists nowhere is a mistake.

use super::Kind;

/// What to do with a document.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Served(Kind),
    NotServed,
    Wrong(String),
}

/// The kinds of the groups that a mesh's folder is made of, without those that are served. A kind of such a group
/// that is not here is misspelt; any other group belongs to somebody else.
const KNOWN: [(&str, &[&str]); 9] = [
    (
        "",
        &[
            "Binding",
            "Endpoints",
            "Event",
            "LimitRange",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
        ],
    ),
    ("apps", &["ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"]),
    ("batch", &["CronJob", "Job"]),
    ("discovery.k8s.io", &[]),
    ("security.istio.io", &[]),
    ("networking.istio.io", &[]),
    ("telemetry.istio.io", &[]),
    ("extensions.istio.io", &[]),
    ("gateway.networking.k8s.io", &["ListenerSet", "UDPRoute"]),
];

/// Says what a document of this version and kind is.
pub(crate) fn judge(api_version: &str, kind: &str) -> Verdict {
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    if let Some((_, versions, served)) = Kind::ALL
        .iter()
        .map(|kind| (kind.name(), kind.versions(), *kind))
        .find(|(name, versions, _)| {
            *name == kind && versions.iter().any(|version| group_of(version) == group)
        })
    {
        return if versions.contains(&api_version) {
            Verdict::Served(served)
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

impl Kind {
    /// The kind of that name in a group, if it is served.
    pub(crate) fn named(group: &str, name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name && kind.group() == group)
    }

    /// Its group; empty for the oldest kinds of Kubernetes.
    pub(crate) fn group(self) -> &'static str {
        group_of(self.versions()[0])
    }

    /// Whether every API server has it; all others are defined by whoever installs them.
    pub(crate) fn is_builtin(self) -> bool {
        matches!(self.group(), "" | "discovery.k8s.io")
    }

    /// Whether traffic passes that one of them would have refused, if it is left out.
    pub(crate) fn is_closing(self) -> bool {
        matches!(self, Self::AuthorizationPolicy | Self::PeerAuthentication)
    }
}

fn group_of(api_version: &str) -> &str {
    api_version.rsplit_once('/').map_or("", |(group, _)| group)
}

fn hint(kind: &str) -> String {
    match Kind::ALL.iter().find(|served| served.name().eq_ignore_ascii_case(kind)) {
        Some(served) => format!(" ({} is of {})", served.name(), served.versions().join(" or ")),
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
            ("networking.istio.io/v1", "VirtualService", Verdict::Served(Kind::VirtualService)),
            ("gateway.networking.k8s.io/v1", "Gateway", Verdict::Served(Kind::Gateway)),
            ("networking.istio.io/v1", "Gateway", Verdict::Served(Kind::IstioGateway)),
            ("gateway.networking.k8s.io/v1", "UDPRoute", Verdict::NotServed),
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
