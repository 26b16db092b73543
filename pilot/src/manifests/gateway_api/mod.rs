//! The kinds of `gateway.networking.k8s.io` as the user writes them: fields, names and defaults are the Gateway API's.
//! What they mean is the compiler's question.
#![expect(
    missing_docs,
    reason = "the fields are those of the Gateway API's reference, by the same names"
)]

mod gateway;
mod policy;
mod route;

pub use gateway::*;
pub use policy::*;
pub use route::*;

use serde::{Deserialize, Serialize};

pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// What a route is attached to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentReference {
    /// Absent: the Gateway API's; empty: Kubernetes' own.
    pub group: Option<String>,
    /// `Gateway` if absent.
    pub kind: Option<String>,
    /// The route's if absent.
    pub namespace: Option<String>,
    pub name: String,
    pub section_name: Option<String>,
    pub port: Option<u16>,
}

/// Where a route leads.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendObjectReference {
    /// Kubernetes' own if absent.
    pub group: Option<String>,
    /// `Service` if absent.
    pub kind: Option<String>,
    pub name: String,
    /// The route's if absent.
    pub namespace: Option<String>,
    pub port: Option<u16>,
}

/// A part of a route's traffic.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub name: String,
    pub namespace: Option<String>,
    pub port: Option<u16>,
    /// 1 if absent.
    pub weight: Option<u32>,
}

/// An object of the same namespace.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalObjectReference {
    pub group: String,
    pub kind: String,
    pub name: String,
}

/// An object of any namespace.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub name: String,
    pub namespace: Option<String>,
}

impl ParentReference {
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or(GATEWAY_GROUP)
    }

    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("Gateway")
    }
}

impl BackendObjectReference {
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or_default()
    }

    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("Service")
    }
}

impl BackendRef {
    /// Without its weight.
    pub fn reference(&self) -> BackendObjectReference {
        BackendObjectReference {
            group: self.group.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            port: self.port,
        }
    }
}
