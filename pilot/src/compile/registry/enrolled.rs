//! Whether a pod takes tunnels.

use crate::manifests::{Labels, Manifests, Meta, Pod};

/// How a workload takes part in the mesh.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Enrolled {
    /// It does not.
    No,
    /// A daemon carries its traffic.
    Captured,
    /// It terminates tunnels itself.
    Native,
}

/// Whether node agents mark the pods that they have captured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Marks {
    /// They do: a pod without a mark is not captured.
    Written,
    /// There is none to write them, and what labels ask for is taken for done.
    Missing,
}

impl Marks {
    /// One pod that has been captured tells that there are agents.
    pub(super) fn of(manifests: &Manifests) -> Self {
        let any = manifests.pods.iter().any(|pod| is_marked(&pod.meta));
        if any { Self::Written } else { Self::Missing }
    }
}

/// Whether a node agent has captured this pod.
pub(crate) fn is_marked(meta: &Meta) -> bool {
    meta.annotations.get(REDIRECTION).is_some_and(|value| value == "enabled")
}

const REDIRECTION: &str = "ambient.istio.io/redirection";

/// A node agent writes an annotation once it has captured a pod. In a folder there may be none to write it, and the
/// intent of the labels counts as soon as nothing contradicts it.
pub(crate) fn is_enrolled(
    meta: &Meta,
    pod: &Pod,
    namespace: Option<&Labels>,
    marks: Marks,
) -> Enrolled {
    if is_native(&meta.labels) {
        return Enrolled::Native;
    }
    match meta.annotations.get(REDIRECTION).map(String::as_str) {
        Some("enabled") => return Enrolled::Captured,
        // `pending` and the like: known, and not captured.
        Some(_) => return Enrolled::No,
        None if marks == Marks::Written => return Enrolled::No,
        None => {}
    }
    let daemon = &*meta.namespace == "istio-system"
        && meta.labels.get("app").is_some_and(|app| app == "ztunnel");
    let excluded = pod.host_network
        || daemon
        || &*meta.namespace == "kube-system"
        || meta.annotations.contains_key("sidecar.istio.io/status");
    let wanted = match dataplane_mode(&meta.labels) {
        Some("ambient") => true,
        Some("none") => false,
        Some(_) | None => namespace.and_then(dataplane_mode) == Some("ambient"),
    };
    if wanted && !excluded { Enrolled::Captured } else { Enrolled::No }
}

/// Whether a workload's labels say that it takes tunnels by itself.
pub(crate) fn is_native(labels: &Labels) -> bool {
    let tunnels = labels.get("networking.istio.io/tunnel");
    tunnels.is_some_and(|list| list.split(',').any(|name| name == "http"))
}

/// Whether labels ask for the mesh, as a pod's or its namespace's do.
fn dataplane_mode(labels: &Labels) -> Option<&str> {
    labels.get("istio.io/dataplane-mode").map(String::as_str)
}
