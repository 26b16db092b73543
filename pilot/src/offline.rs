//! What a client would be sent, as JSON: for people, and for comparing.
//!
//! In: the user's resources, the mesh's settings, and which client. Out: resources by their names, sorted, each with its
//! type as `@type`. Knows the pods of a folder as the API server would hold them, and connects to nothing.

use std::{collections::BTreeMap, fmt, str::FromStr};

use anyhow::{Context as _, Result};
use proto::google::Any;
use serde_json::Value;

use crate::{
    compile::{self, MeshConfig, ResourceType, compile, waypoint},
    manifests::Manifests,
    proto_json,
};

/// A client of the control plane.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Audience {
    /// A node's daemon: all are sent the same.
    Ztunnel,
    /// A waypoint, or a gateway between networks, by its Gateway.
    Waypoint {
        /// The Gateway's namespace.
        namespace: String,
        /// The Gateway's name.
        name: String,
    },
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ztunnel => f.write_str("ztunnel"),
            Self::Waypoint { namespace, name } => write!(f, "waypoint/{namespace}/{name}"),
        }
    }
}

impl FromStr for Audience {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split('/').collect();
        match parts.as_slice() {
            ["ztunnel"] => Ok(Self::Ztunnel),
            ["waypoint", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::Waypoint { namespace: (*namespace).into(), name: (*name).into() })
            }
            _ => Err("expected `ztunnel` or `waypoint/NAMESPACE/NAME`".to_owned()),
        }
    }
}

/// A type of resource.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Type {
    /// Workloads and services.
    Address,
    /// Policies of layer 4.
    Authorization,
    /// Listeners, with the routes in them.
    Listener,
    /// Clusters.
    Cluster,
    /// What is behind clusters.
    Endpoint,
    /// Routes by themselves: a waypoint's are in its listeners.
    Route,
    /// Filters that listeners ask for by name.
    Extension,
}

impl Type {
    /// As it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Authorization => "authorization",
            Self::Listener => "listener",
            Self::Cluster => "cluster",
            Self::Endpoint => "endpoint",
            Self::Route => "route",
            Self::Extension => "extension",
        }
    }
}

/// Resources in JSON by name.
pub type Resources = BTreeMap<String, Value>;

/// All that the client would be sent, by type.
///
/// # Errors
/// If there is no such waypoint, or a message holds one of a type that is not described.
pub fn resources(
    manifests: &Manifests,
    config: &MeshConfig,
    audience: &Audience,
) -> Result<BTreeMap<Type, Resources>> {
    let compiled = compile(manifests, config);
    let mut all = BTreeMap::new();
    for (of, kind) in
        [(Type::Address, ResourceType::Address), (Type::Authorization, ResourceType::Authorization)]
    {
        all.insert(of, json(kind.type_url(), compiled.resources(kind))?);
    }
    let Audience::Waypoint { namespace, name } = audience else { return Ok(all) };
    let sent = waypoint::of_gateway(manifests, config, namespace, name);
    let sent = sent.with_context(|| {
        format!("there is no Gateway {namespace}/{name} that is a waypoint and has a pod")
    })?;
    for (type_url, resources) in sent.resources() {
        let of = match type_url {
            waypoint::LISTENER_TYPE => Type::Listener,
            waypoint::CLUSTER_TYPE => Type::Cluster,
            waypoint::ASSIGNMENT_TYPE => Type::Endpoint,
            _ => Type::Extension,
        };
        all.insert(of, json(type_url, &resources)?);
    }
    all.insert(Type::Route, Resources::new());
    Ok(all)
}

fn json(type_url: &str, resources: &compile::Resources) -> Result<Resources> {
    let mut all = Resources::new();
    for (name, resource) in resources {
        let any = Any { type_url: type_url.to_owned(), value: resource.encoded.clone() };
        let value = proto_json::from_any(&any).with_context(|| name.to_string())?;
        all.insert(name.to_string(), value);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_is_a_daemon_or_a_waypoint() {
        let waypoint =
            Audience::Waypoint { namespace: "shop".to_owned(), name: "front".to_owned() };
        for (text, expected) in [
            ("ztunnel", Some(Audience::Ztunnel)),
            ("waypoint/shop/front", Some(waypoint)),
            ("waypoint/shop", None),
            ("waypoint//front", None),
            ("waypoint/shop/front/x", None),
            ("gateway", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
