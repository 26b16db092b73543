//! Reads the user's resources.
//!
//! In: a folder of YAML files. Out: [`Manifests`], the resources this version serves, checked one by one and against
//! each other, and every [`Problem`] found on the way. Compiles nothing and watches nothing.

mod across;
mod admission;
mod attachment_check;
#[cfg(test)]
mod attachment_check_tests;
pub(crate) mod attribute;
mod core;
mod custom;
mod decode;
mod destination_rule_check;
mod document;
mod duration;
mod envoy_filter_check;
pub mod extensions;
mod folder;
pub mod gateway_api;
mod http_check;
mod http_names;
mod http_rule_check;
mod kinds;
mod limits;
mod lines;
pub mod networking;
mod problem;
mod resource;
mod route_check;
mod security;
mod security_check;
mod stand_in;
pub mod telemetry;
mod use_waypoint;
mod virtual_service_check;

pub(crate) use admission::review;
pub use core::{
    ConfigMap, Endpoint, EndpointSlice, Namespace, Node, NodeAddress, Pod, PodState, Secret,
    Service, ServiceKind, ServicePort, SlicePort, TargetPort,
};
pub(crate) use document::is_dns_name;
#[cfg(test)]
pub(crate) use document::read_file as read_text;
pub(crate) use document::read_object;
pub use duration::Duration;
pub use folder::{Folder, FolderError};
pub(crate) use http_names::{claim, grpc_code, is_authority};

pub use problem::{Place, Problem, Severity};
pub use resource::{Kind, Manifests, Resource, ServiceAccount};
pub use security::{
    Action, AuthorizationPolicy, ClaimToHeader, Condition, From, JwtHeader, JwtRule, Mtls,
    MtlsMode, Operation, PeerAuthentication, PortKey, Provider, RequestAuthentication, Rule,
    Selector, Source, TargetRef, To, Values,
};

pub(crate) use stand_in::stand_in;
pub use use_waypoint::UseWaypoint;

use std::{collections::BTreeMap, sync::Arc};

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// One resource: who it is, where it stands, and what it says.
#[derive(Clone, Debug)]
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
    /// `metadata.generation`, 0 if absent.
    pub generation: i64,
    /// Its labels.
    pub labels: Labels,
    /// Its annotations, those of Istio and the Gateway API only.
    pub annotations: Labels,
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

#[cfg(test)]
mod route_check_tests;
#[cfg(test)]
mod tests;
