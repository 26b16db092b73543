//! Who asks for a configuration, and what it is able to do.
//!
//! In: the node that an Envoy says it is, and the pods there are. Out: a [`Client`]: the pod that it is, with its
//! addresses and where it stands, and what its Envoy was built with. What a pod's resource says counts before what
//! the client says of itself.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use proto::{
    envoy::envoy::config::core::v3::Node,
    google::{Struct, Value, value::Kind},
    workload::Locality,
};

use crate::{
    compile::{MeshConfig, registry::Registry},
    manifests::{Labels, Manifests, Object, Pod},
};

/// The first version whose proxies take hashable texts as filter state.
const HASHABLE_TEXT: [u32; 3] = [1, 29, 2];

/// A proxy that asks for its configuration.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Client {
    /// The namespace of its pod.
    pub namespace: String,
    /// Its pod.
    pub name: String,
    /// Its addresses: of which families its listeners and endpoints are.
    pub addresses: Vec<IpAddr>,
    /// Labels of its pod: which Gateway it belongs to.
    pub labels: Labels,
    /// Where its addresses mean something; empty if networks have no names.
    pub network: String,
    /// The cluster it is in.
    pub cluster_id: String,
    /// Where it stands.
    pub locality: Locality,
    /// The node it is on; empty if that is not known.
    pub node: String,
    /// Version of Istio that it says it is of; none is the newest.
    pub version: Option<[u32; 3]>,
    /// What it was built with.
    pub build: Build,
    /// When idle connections end, if it was told so.
    pub idle_timeout: Option<Duration>,
    /// Whether it takes HTTP/1.0.
    pub http_10: bool,
}

/// What an Envoy was built with.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Build {
    /// With Istio's extensions.
    #[default]
    Istio,
    /// Without.
    Stock,
}

/// Why a node is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It has another form.
    #[error("node id `{id}` is not of the form type~address~pod.namespace~domain")]
    Id {
        /// What it is.
        id: String,
    },
    /// Nothing tells how it is reached.
    #[error("node `{id}` has no IP address")]
    NoAddress {
        /// Which one.
        id: String,
    },
}

impl Client {
    /// Reads a node, and looks up its pod.
    ///
    /// # Errors
    /// If its id has not the form of a proxy's, or it has no address.
    pub(crate) fn of(
        node: &Node,
        manifests: &Manifests,
        registry: &Registry,
    ) -> Result<Self, ClientError> {
        let wrong = || ClientError::Id { id: node.id.clone() };
        let [_, address, of_pod, _] =
            <[&str; 4]>::try_from(node.id.split('~').collect::<Vec<_>>()).map_err(|_| wrong())?;
        let (name, namespace) = of_pod.rsplit_once('.').ok_or_else(wrong)?;
        let metadata = node.metadata.as_ref();
        let text =
            |key: &str| metadata.and_then(|metadata| text(metadata, key)).unwrap_or_default();
        let namespace = match text("NAMESPACE") {
            "" => namespace,
            namespace => namespace,
        };
        let listed = text("INSTANCE_IPS").split(',').filter_map(|ip| ip.trim().parse().ok());
        let mut addresses: Vec<IpAddr> = listed.collect();
        if addresses.is_empty() {
            addresses.extend(address.parse::<IpAddr>().ok());
        }
        let pods = manifests.pods.iter();
        let pod = pods
            .filter(|pod| *pod.meta.namespace == *namespace)
            .find(|pod| *pod.meta.name == *name);
        if addresses.is_empty() {
            addresses.extend(pod.iter().flat_map(|pod| &pod.spec.addresses));
        }
        if addresses.is_empty() {
            return Err(ClientError::NoAddress { id: node.id.clone() });
        }
        let idle_timeout = crate::manifests::Duration::parse(text("IDLE_TIMEOUT"));
        let mut client = Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            addresses,
            labels: metadata.map(labels).unwrap_or_default(),
            network: text("NETWORK").to_owned(),
            cluster_id: text("CLUSTER_ID").to_owned(),
            locality: node.locality.as_ref().map(locality).unwrap_or_default(),
            node: text("NODE_NAME").to_owned(),
            version: version(text("ISTIO_VERSION")),
            build: build(node),
            idle_timeout: idle_timeout.map(|idle| idle.0),
            http_10: text("HTTP10") == "1",
        };
        if let Some(pod) = pod {
            client.apply(pod, registry);
        }
        Ok(client)
    }

    /// The first pod of a Gateway, as if it were an Envoy of Istio's.
    pub(crate) fn of_gateway(
        manifests: &Manifests,
        config: &MeshConfig,
        registry: &Registry,
        namespace: &str,
        name: &str,
    ) -> Option<Self> {
        let pod = manifests.pods.iter().find(|pod| {
            let of = pod.meta.labels.get("gateway.networking.k8s.io/gateway-name");
            *pod.meta.namespace == *namespace && of.is_some_and(|of| of == name)
        })?;
        let mut client = Self {
            namespace: namespace.to_owned(),
            name: pod.meta.name.to_string(),
            addresses: pod.spec.addresses.clone(),
            cluster_id: config.cluster_id.clone(),
            ..Self::default()
        };
        client.apply(pod, registry);
        Some(client)
    }

    /// What is known of its pod.
    pub(crate) fn apply(&mut self, pod: &Object<Pod>, registry: &Registry) {
        self.labels = pod.meta.labels.clone();
        self.node = pod.spec.node.to_string();
        if let Some(locality) = registry.locality_of_node(&pod.spec.node) {
            self.locality = Locality::clone(locality);
        }
        if self.network.is_empty() {
            self.network = registry.network().to_owned();
        }
    }

    /// The addresses that stand for all of its own, one for each family.
    pub(in crate::compile) fn wildcards(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.has_ipv4().then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let v6 = self.has_ipv6().then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        v4.into_iter().chain(v6)
    }

    /// Whether it has an IPv4 address.
    pub(super) fn has_ipv4(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv4)
    }

    /// Whether it has an IPv6 address.
    pub(super) fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }

    /// Whether it can reach an address.
    pub(super) fn reaches(&self, ip: IpAddr) -> bool {
        if ip.is_ipv4() { self.has_ipv4() } else { self.has_ipv6() }
    }

    /// Whether it takes filters that only Istio's Envoy has: they serve telemetry.
    pub(crate) fn has_istio_extensions(&self) -> bool {
        self.build == Build::Istio
    }

    /// Whether a program beside it fetches what it cannot fetch itself: an Envoy of Istio's has one.
    pub(crate) fn has_agent(&self) -> bool {
        self.build == Build::Istio
    }

    /// What texts that a connection is remembered by are made with.
    pub(crate) fn text_factory(&self) -> &'static str {
        match self.build {
            Build::Stock => "envoy.hashable_string",
            Build::Istio if self.version.is_some_and(|version| version < HASHABLE_TEXT) => {
                "envoy.string"
            }
            Build::Istio => "istio.hashable_string",
        }
    }
}

/// Envoy tells all that it was built with, or, if it is asked not to, nothing.
fn build(node: &Node) -> Build {
    let mut extensions = node.extensions.iter();
    if node.extensions.is_empty() || extensions.any(|one| one.name.starts_with("istio.")) {
        Build::Istio
    } else {
        Build::Stock
    }
}

fn text<'a>(metadata: &'a Struct, key: &str) -> Option<&'a str> {
    if let Kind::StringValue(text) = metadata.fields.get(key)?.kind.as_ref()? {
        Some(text)
    } else {
        None
    }
}

fn labels(metadata: &Struct) -> Labels {
    let labels = metadata.fields.get("LABELS").and_then(|labels| labels.kind.as_ref());
    let Some(Kind::StructValue(labels)) = labels else { return Labels::new() };
    let text = |value: &Value| match &value.kind {
        Some(Kind::StringValue(text)) => Some(text.clone()),
        _ => None,
    };
    let labels = labels.fields.iter();
    labels.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

fn locality(of: &proto::envoy::envoy::config::core::v3::Locality) -> Locality {
    Locality { region: of.region.clone(), zone: of.zone.clone(), subzone: of.sub_zone.clone() }
}

/// `1.29.2` or `1.30-dev` and the like.
fn version(text: &str) -> Option<[u32; 3]> {
    let numbers = text.split(['-', '+']).next()?;
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    let major = parts.next()??;
    let minor = parts.next()??;
    Some([major, minor, parts.next().flatten().unwrap_or(u32::MAX)])
}
