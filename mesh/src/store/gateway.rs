//! References to waypoints and network gateways.
//!
//! In: `istio.workload.GatewayAddress`. Out: a [`GatewayAddress`]. Whether what it refers to exists is the snapshot's.

use std::{fmt, net::IpAddr, sync::Arc};

use proto::workload::{self as wire_workload, gateway_address::Destination};

use super::{DecodeError, keys};
use crate::wire::{self, Fault};

/// The port tunnels are accepted on, unless a gateway says another.
pub const HBONE_PORT: u16 = 15008;

/// Where a waypoint or network gateway is.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct GatewayAddress {
    /// By what it is named.
    pub target: GatewayTarget,
    /// The port its tunnels are accepted on.
    pub hbone_port: u16,
}

/// By what a gateway is named.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum GatewayTarget {
    /// The address of a workload or service.
    Address {
        /// The network the address belongs to.
        network: Arc<str>,
        /// The address.
        ip: IpAddr,
    },
    /// A service, or a workload with this host name.
    Host {
        /// `<namespace>/<hostname>`.
        key: Arc<str>,
    },
}

impl fmt::Display for GatewayTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { network, ip } => write!(f, "{network}/{ip}"),
            Self::Host { key } => f.write_str(key),
        }
    }
}

/// One of several waypoints that share a service's traffic.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct WeightedWaypoint {
    /// Where it is.
    pub gateway: GatewayAddress,
    /// Its share, relative to the sum of all.
    pub weight: u32,
}

impl TryFrom<&wire_workload::GatewayAddress> for GatewayAddress {
    type Error = DecodeError;

    fn try_from(wire: &wire_workload::GatewayAddress) -> Result<Self, DecodeError> {
        let target = match &wire.destination {
            Some(Destination::Address(address)) => GatewayTarget::Address {
                network: address.network.as_str().into(),
                ip: wire::ip(&address.address)
                    .map_err(|fault| DecodeError::new("address.address", fault))?,
            },
            Some(Destination::Hostname(host)) => {
                let hostname = wire::required(&host.hostname)
                    .map_err(|fault| DecodeError::new("hostname.hostname", fault))?;
                GatewayTarget::Host { key: keys::namespaced(&host.namespace, hostname) }
            }
            None => return Err(DecodeError::new("destination", Fault::Unset)),
        };
        let hbone_port = match wire::port(wire.hbone_mtls_port) {
            Ok(0) => HBONE_PORT,
            Ok(port) => port,
            Err(fault) => return Err(DecodeError::new("hbone_mtls_port", fault)),
        };
        Ok(Self { target, hbone_port })
    }
}

/// Decodes a reference that may be absent.
pub(super) fn optional(
    field: &str,
    wire: Option<&wire_workload::GatewayAddress>,
) -> Result<Option<GatewayAddress>, DecodeError> {
    wire.map(|gateway| GatewayAddress::try_from(gateway).map_err(|error| error.within(field)))
        .transpose()
}
