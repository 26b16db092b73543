//! Reads the user's resources.
//!
//! In: a folder of YAML files. Out: [`Manifests`], the resources this version serves, checked one by one and against
//! each other, and every [`Problem`] found on the way. Compiles nothing and watches nothing.

mod across;
pub(crate) mod attribute;
mod core;
mod document;
mod folder;
mod kinds;
mod limits;
mod lines;
mod problem;
mod security;
mod security_check;
mod use_waypoint;

pub use across::Manifests;
pub use core::{
    Endpoint, EndpointSlice, Namespace, Node, Pod, PodState, Service, ServiceKind, ServicePort,
    SlicePort, TargetPort,
};
pub(crate) use document::is_dns_name;
#[cfg(test)]
pub(crate) use document::read_file as read_text;
pub use folder::{Folder, FolderError};
pub use problem::{Place, Problem, Severity};
pub use security::{
    Action, AuthorizationPolicy, Condition, From, Mtls, MtlsMode, Operation, PeerAuthentication,
    PortKey, Provider, Rule, Selector, Source, TargetRef, To, Values,
};

pub use use_waypoint::UseWaypoint;

use std::{collections::BTreeMap, sync::Arc};

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// One resource: who it is, where it stands, and what it says.
#[derive(Debug)]
pub struct Object<T> {
    /// Who it is.
    pub meta: Meta,
    /// What it says.
    pub spec: T,
}

/// Who a resource is and where it stands.
#[derive(Clone, Debug)]
pub struct Meta {
    /// The kind, such as `Pod`.
    pub kind: &'static str,
    /// The namespace; empty for a kind that has none.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// `metadata.creationTimestamp` in RFC 3339, empty if absent: decides which of two equals wins.
    pub created: Box<str>,
    /// Where it was read.
    pub place: Place,
}

impl Meta {
    /// `Pod shop/web`, as problems name it.
    pub fn title(&self) -> String {
        if self.namespace.is_empty() {
            format!("{} {}", self.kind, self.name)
        } else {
            format!("{} {}/{}", self.kind, self.namespace, self.name)
        }
    }

    /// The order in which the first of equals wins: age, then name, then namespace.
    pub fn seniority(&self) -> (bool, &str, &str, &str) {
        // An object without a date is younger than any with one: a folder's objects have no age.
        (self.created.is_empty(), &self.created, &self.name, &self.namespace)
    }
}

/// One resource of any kind that is served.
#[derive(Clone, Debug)]
pub enum Resource {
    /// `v1 Namespace`.
    Namespace(Arc<Object<Namespace>>),
    /// `v1 Node`.
    Node(Arc<Object<Node>>),
    /// `v1 Pod`.
    Pod(Arc<Object<Pod>>),
    /// `v1 Service`.
    Service(Arc<Object<Service>>),
    /// `v1 ServiceAccount`.
    ServiceAccount(Arc<Object<()>>),
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice(Arc<Object<EndpointSlice>>),
    /// `security.istio.io AuthorizationPolicy`.
    AuthorizationPolicy(Arc<Object<AuthorizationPolicy>>),
    /// `security.istio.io PeerAuthentication`.
    PeerAuthentication(Arc<Object<PeerAuthentication>>),
}

impl Resource {
    /// Who it is.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Namespace(object) => &object.meta,
            Self::Node(object) => &object.meta,
            Self::Pod(object) => &object.meta,
            Self::Service(object) => &object.meta,
            Self::ServiceAccount(object) => &object.meta,
            Self::EndpointSlice(object) => &object.meta,
            Self::AuthorizationPolicy(object) => &object.meta,
            Self::PeerAuthentication(object) => &object.meta,
        }
    }
}

#[cfg(test)]
mod tests;
