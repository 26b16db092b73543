//! What policies are attached to.
//!
//! In: the targets that a policy names, and the chain that a filter is for. Out: whether the policy counts there. A
//! policy without targets never does: it is the daemons' at layer 4.

use std::sync::Arc;

use crate::{
    compile::{
        registry::{Host, Origin},
        waypoint::Context,
    },
    manifests::{AuthorizationPolicy, Object, RequestAuthentication, TargetRef},
};

/// The group of Gateways and their classes.
pub(crate) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// The group of ServiceEntries.
pub(crate) const NETWORKING_GROUP: &str = "networking.istio.io";

/// Where a chain stands: what a target can name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub root_namespace: &'a str,
    /// The waypoint's namespace.
    pub namespace: &'a str,
    /// The waypoint's Gateway.
    pub gateway: &'a str,
    pub gateway_class: &'a str,
    /// Whom the chain is for, if not for pods directly.
    pub service: Option<Served<'a>>,
}

/// The object that a chain's host comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served<'a> {
    /// Whether it is a ServiceEntry, and no Service.
    pub is_entry: bool,
    pub namespace: &'a str,
    pub name: &'a str,
}

/// A resource with targets.
pub(crate) trait Targeted {
    /// What it names.
    fn targets(&self) -> impl Iterator<Item = &TargetRef>;
}

impl<'a> Place<'a> {
    /// Of the chain of one host, or of pods that are reached directly.
    pub(crate) fn of(context: &'a Context<'_>, host: Option<&'a Host>) -> Self {
        Self {
            root_namespace: &context.config.root_namespace,
            namespace: &context.gateway.meta.namespace,
            gateway: &context.gateway.meta.name,
            gateway_class: &context.gateway.spec.gateway_class_name,
            service: host.map(|host| Served {
                is_entry: matches!(host.origin, Origin::Entry(_)),
                namespace: &host.meta.namespace,
                name: &host.meta.name,
            }),
        }
    }

    /// Those of `all` that count here.
    pub(crate) fn select<'b, T: Targeted>(
        &self,
        all: &'b [Arc<Object<T>>],
    ) -> impl Iterator<Item = &'b Object<T>> {
        all.iter().map(AsRef::as_ref).filter(|object| {
            object.spec.targets().any(|target| self.is(target, &object.meta.namespace))
        })
    }

    /// Whether a target of a policy in `namespace` is this place.
    fn is(&self, target: &TargetRef, namespace: &str) -> bool {
        // A policy of one namespace says nothing about another's resources.
        if target.namespace.as_ref().is_some_and(|other| !other.is_empty() && other != namespace) {
            return false;
        }
        let group = target.group.as_deref().unwrap_or_default();
        match (group, target.kind.as_str()) {
            (GATEWAY_GROUP, "Gateway") => {
                namespace == self.namespace && target.name == self.gateway
            }
            (GATEWAY_GROUP, "GatewayClass") => {
                namespace == self.root_namespace && target.name == self.gateway_class
            }
            ("" | "core", "Service") => self.serves(false, namespace, &target.name),
            (NETWORKING_GROUP, "ServiceEntry") => self.serves(true, namespace, &target.name),
            _ => false,
        }
    }

    fn serves(&self, is_entry: bool, namespace: &str, name: &str) -> bool {
        self.service.is_some_and(|service| {
            service.is_entry == is_entry && service.namespace == namespace && service.name == name
        })
    }
}

impl Targeted for AuthorizationPolicy {
    fn targets(&self) -> impl Iterator<Item = &TargetRef> {
        self.target_ref.iter().chain(self.target_refs.iter().flatten())
    }
}

impl Targeted for RequestAuthentication {
    fn targets(&self) -> impl Iterator<Item = &TargetRef> {
        self.target_ref.iter().chain(&self.target_refs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place<'_> = Place {
        root_namespace: "istio-system",
        namespace: "shop",
        gateway: "wp",
        gateway_class: "istio-waypoint",
        service: Some(Served { is_entry: false, namespace: "data", name: "redis" }),
    };

    fn target(text: &str) -> TargetRef {
        let mut parts = text.split(' ').map(str::to_owned);
        TargetRef {
            group: parts.next().map(|group| if group == "-" { String::new() } else { group }),
            kind: parts.next().unwrap(),
            name: parts.next().unwrap(),
            namespace: parts.next(),
        }
    }

    #[test]
    fn a_target_is_a_gateway_its_class_or_the_service_of_the_chain() {
        for (namespace, text, expected) in [
            ("shop", "gateway.networking.k8s.io Gateway wp", true),
            ("shop", "gateway.networking.k8s.io Gateway other", false),
            ("data", "gateway.networking.k8s.io Gateway wp", false),
            ("shop", "networking.istio.io Gateway wp", false),
            ("istio-system", "gateway.networking.k8s.io GatewayClass istio-waypoint", true),
            ("shop", "gateway.networking.k8s.io GatewayClass istio-waypoint", false),
            ("data", "- Service redis", true),
            ("shop", "- Service redis", false),
            ("data", "- Service web", false),
            ("data", "networking.istio.io ServiceEntry redis", false),
            ("data", "- Service redis data", true),
            ("data", "- Service redis shop", false),
        ] {
            assert_eq!(PLACE.is(&target(text), namespace), expected, "{namespace}: {text}");
        }
        let directly = Place { service: None, ..PLACE };
        assert!(!directly.is(&target("- Service redis"), "data"));
    }
}
