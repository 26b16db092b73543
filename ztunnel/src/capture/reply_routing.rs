//! Routing inside a pod that lets the daemon connect to the application under the client's own address.
//!
//! In: the pod's namespace and families. Out: sysctls, a rule and a route for each family: what carries the mark of
//! such a connection is routed to loopback. Nothing outside of the pod is touched.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{
    netlink::{self, Entry, Family},
    netns::Netns,
};

/// Why a pod's routing could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// The namespace cannot be entered.
    #[error("entering the pod's network namespace")]
    Enter {
        /// The kernel's answer.
        source: io::Error,
    },
    /// A sysctl cannot be set.
    #[error("setting {path} in the pod")]
    Sysctl {
        /// The sysctl's file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused a rule or a route.
    #[error("changing the {what} for replies in the pod")]
    Route {
        /// Family and kind.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The accepted socket and its SYN-ACK inherit the mark, for both families.
const ACCEPT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";
/// Resets of closed ports carry the mark, IPv4.
const REFLECT: &str = "/proc/sys/net/ipv4/fwmark_reflect";
/// Resets of closed ports carry the mark, IPv6: without it a closed port shows as a timeout.
const REFLECT6: &str = "/proc/sys/net/ipv6/fwmark_reflect";

/// Sets the pod up; what is there already stays.
pub(super) fn install(netns: &Netns, ips: &[IpAddr]) -> Result<(), RoutingError> {
    netns
        .enter(|| {
            for family in families(ips) {
                for path in sysctls(family) {
                    set(Path::new(path), "1")?;
                }
                // The route first: a rule to an empty table would let marked packets leave the pod.
                for entry in [Entry::Route, Entry::Rule] {
                    netlink::add(entry, family)
                        .map_err(|source| route_error(entry, family, source))?;
                }
            }
            Ok(())
        })
        .map_err(|source| RoutingError::Enter { source })?
}

/// Takes everything of [`install`] away, for both families; the sysctls return to the kernel's default.
pub(super) fn remove(netns: &Netns) -> Result<(), RoutingError> {
    netns
        .enter(|| {
            let mut result = Ok(());
            for family in [Family::Inet, Family::Inet6] {
                for entry in [Entry::Rule, Entry::Route] {
                    let removed = match netlink::remove(entry, family) {
                        // A kernel without IPv6 has nothing to remove.
                        Err(error) if unsupported(&error) => Ok(()),
                        other => other.map_err(|source| route_error(entry, family, source)),
                    };
                    result = result.and(removed);
                }
                for path in sysctls(family).map(Path::new).filter(|path| path.exists()) {
                    result = result.and(set(path, "0"));
                }
            }
            result
        })
        .map_err(|source| RoutingError::Enter { source })?
}

fn families(ips: &[IpAddr]) -> impl Iterator<Item = Family> {
    let v4 = ips.iter().any(IpAddr::is_ipv4).then_some(Family::Inet);
    let v6 = ips.iter().any(IpAddr::is_ipv6).then_some(Family::Inet6);
    v4.into_iter().chain(v6)
}

fn sysctls(family: Family) -> impl Iterator<Item = &'static str> {
    match family {
        Family::Inet => [ACCEPT, REFLECT],
        Family::Inet6 => [ACCEPT, REFLECT6],
    }
    .into_iter()
}

/// Writes only a change: /proc/sys may be read-only where somebody else has set the pod up.
///
/// /proc/sys/net shows the namespace of the thread that opens it.
fn set(path: &Path, value: &str) -> Result<(), RoutingError> {
    let wrap = |source| RoutingError::Sysctl { path: path.to_owned(), source };
    if fs::read_to_string(path).map_err(wrap)?.trim() == value {
        return Ok(());
    }
    fs::write(path, value).map_err(wrap)
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

fn route_error(entry: Entry, family: Family, source: io::Error) -> RoutingError {
    let family = match family {
        Family::Inet => "IPv4",
        Family::Inet6 => "IPv6",
    };
    let entry = match entry {
        Entry::Rule => "rule",
        Entry::Route => "route",
    };
    RoutingError::Route { what: format!("{family} {entry}"), source }
}
