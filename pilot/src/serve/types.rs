//! The types of resources that clients subscribe to.

use crate::compile::{ResourceType, waypoint};

/// Type URL of a table of names.
const NAME_TABLE_TYPE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
/// Type URL of settings of proxies.
const PROXY_CONFIG_TYPE: &str = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig";
/// Type URL of workloads without services.
pub(crate) const WORKLOAD_TYPE: &str = "type.googleapis.com/istio.workload.Workload";

/// A type of resource, in the order in which news are sent: what is referred to comes before what refers to it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Type {
    /// Where a waypoint sends connections.
    Cluster,
    /// What is behind clusters.
    Endpoint,
    /// Certificates and roots that the user keeps in Secrets.
    Secret,
    /// Filters that listeners ask for by name.
    Extension,
    /// Where a waypoint takes connections.
    Listener,
    /// Routes by themselves: there are none, listeners hold theirs.
    Route,
    /// Policies of layer 4.
    Authorization,
    /// Workloads and services.
    Address,
    /// Workloads.
    Workload,
    /// Names of services, for proxies that answer DNS: an empty table.
    NameTable,
    /// Settings of proxies, which are never sent.
    ProxyConfig,
}

impl Type {
    /// All, in order.
    pub(crate) const ALL: [Self; 11] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Secret,
        Self::Extension,
        Self::Listener,
        Self::Route,
        Self::Authorization,
        Self::Address,
        Self::Workload,
        Self::NameTable,
        Self::ProxyConfig,
    ];

    /// The type of a URL.
    pub(crate) fn of_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|of| of.type_url() == type_url)
    }

    /// Its URL in xDS.
    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => waypoint::CLUSTER_TYPE,
            Self::Endpoint => waypoint::ASSIGNMENT_TYPE,
            Self::Secret => waypoint::SECRET_TYPE,
            Self::Extension => waypoint::EXTENSION_TYPE,
            Self::Listener => waypoint::LISTENER_TYPE,
            Self::Route => waypoint::ROUTE_TYPE,
            Self::Authorization => proto::AUTHORIZATION_TYPE,
            Self::Address => proto::ADDRESS_TYPE,
            Self::Workload => WORKLOAD_TYPE,
            Self::NameTable => NAME_TABLE_TYPE,
            Self::ProxyConfig => PROXY_CONFIG_TYPE,
        }
    }

    /// Its name in metrics and on pages: istiod's where it has one.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoint => "eds",
            Self::Secret => "sds",
            Self::Extension => "ecds",
            Self::Listener => "lds",
            Self::Route => "rds",
            Self::Authorization => "Authorization",
            Self::Address => "Address",
            Self::Workload => "Workload",
            Self::NameTable => "nds",
            Self::ProxyConfig => "pcds",
        }
    }

    /// What daemons are sent, too.
    pub(crate) fn of_daemons(self) -> Option<ResourceType> {
        match self {
            Self::Address | Self::Workload => Some(ResourceType::Address),
            Self::Authorization => Some(ResourceType::Authorization),
            Self::Cluster
            | Self::Endpoint
            | Self::Secret
            | Self::Extension
            | Self::Listener
            | Self::Route
            | Self::NameTable
            | Self::ProxyConfig => None,
        }
    }

    /// Whether only a waypoint is sent it.
    pub(crate) fn is_of_waypoints(self) -> bool {
        matches!(
            self,
            Self::Cluster
                | Self::Endpoint
                | Self::Secret
                | Self::Extension
                | Self::Listener
                | Self::Route
        )
    }

    /// Whether single ones of it are found by the addresses and services they belong to, not by their names alone.
    pub(crate) fn has_aliases(self) -> bool {
        matches!(self, Self::Address | Self::Workload)
    }

    /// Whether a client that asks for no names means all.
    pub(crate) fn has_wildcard(self) -> bool {
        !matches!(self, Self::Endpoint | Self::Secret | Self::Extension | Self::Route)
    }

    /// The type whose resources may still refer to those of this one when they are gone, so that these go last.
    pub(crate) fn is_needed_by(self) -> Option<Self> {
        match self {
            Self::Cluster | Self::Endpoint | Self::Secret | Self::Extension => Some(Self::Listener),
            Self::Authorization => Some(Self::Address),
            Self::Listener
            | Self::Route
            | Self::Address
            | Self::Workload
            | Self::NameTable
            | Self::ProxyConfig => None,
        }
    }
}
