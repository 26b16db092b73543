//! Whether the daemon serves pods, or the host that it runs on.
//!
//! In: environment variables. Out: a [`Mode`].

use std::str::FromStr;

use ipnet::IpNet;
use serde::Serialize;

use super::Reader;

/// Whom the daemon serves. `PROXY_MODE`, default `shared`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// The pods of a node.
    Shared,
    /// The processes of the host that it runs on, such as a virtual machine.
    Dedicated(HostSection),
}

/// The host in dedicated mode.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostSection {
    /// Who it is: `namespace/name/service account`. `PROXY_WORKLOAD_INFO`.
    pub workload: HostWorkload,
    /// Ports of the host to which connections are not captured, beside those of metrics and readiness.
    /// `AQUIFER_EXCLUDE_INBOUND_PORTS`, default 22.
    pub inbound_ports: Vec<u16>,
    /// Ports of others to which its connections are not captured. `AQUIFER_EXCLUDE_OUTBOUND_PORTS`, default none.
    pub outbound_ports: Vec<u16>,
    /// Destinations to which its connections are not captured. `AQUIFER_EXCLUDE_OUTBOUND_CIDRS`, default
    /// 169.254.0.0/16: the cloud's metadata.
    pub destinations: Vec<IpNet>,
}

/// The names of the workload that a host is, or the daemon itself.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostWorkload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
}

impl FromStr for HostWorkload {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        let [namespace, name, service_account] = parts[..] else {
            return Err("expected namespace/name/service-account");
        };
        if [namespace, name, service_account].contains(&"") {
            return Err("no part may be empty");
        }
        let own = str::to_owned;
        Ok(Self {
            namespace: own(namespace),
            name: own(name),
            service_account: own(service_account),
        })
    }
}

impl Reader<'_> {
    pub(super) fn mode(&mut self) -> Mode {
        match self.text("PROXY_MODE", "shared").as_str() {
            "shared" => Mode::Shared,
            "dedicated" => {
                if self.optional("PROXY_WORKLOAD_INFO").is_none() {
                    self.refuse("PROXY_WORKLOAD_INFO", "", "dedicated mode needs it");
                }
                Mode::Dedicated(HostSection {
                    workload: self.parsed("PROXY_WORKLOAD_INFO", HostWorkload::default()),
                    inbound_ports: self.list("AQUIFER_EXCLUDE_INBOUND_PORTS", "22"),
                    outbound_ports: self.list("AQUIFER_EXCLUDE_OUTBOUND_PORTS", ""),
                    destinations: self.list("AQUIFER_EXCLUDE_OUTBOUND_CIDRS", "169.254.0.0/16"),
                })
            }
            other => {
                self.refuse("PROXY_MODE", other, "expected `shared` or `dedicated`");
                Mode::Shared
            }
        }
    }

    /// The daemon's own pod. Defaults name nobody.
    pub(super) fn own_workload(&self) -> Option<HostWorkload> {
        Some(HostWorkload {
            namespace: self.optional("POD_NAMESPACE")?,
            name: self.optional("POD_NAME")?,
            service_account: self.optional("SERVICE_ACCOUNT")?,
        })
    }

    /// Whether the daemon is to serve its host.
    pub(super) fn is_dedicated(&self) -> bool {
        self.optional("PROXY_MODE").as_deref() == Some("dedicated")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;

    #[test]
    fn the_daemon_is_a_workload_once_all_three_names_are_set() {
        let all = [("POD_NAME", "z-1"), ("POD_NAMESPACE", "mesh"), ("SERVICE_ACCOUNT", "z")];
        let workload = |settings: &[(&str, &str)]| read(settings).unwrap().node.workload;
        assert_eq!(workload(&all), Some("mesh/z-1/z".parse().unwrap()));
        assert_eq!(workload(&all[..2]), None);
        assert_eq!(workload(&all[1..]), None);
    }
}
