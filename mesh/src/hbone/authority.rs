//! What the far end of a tunnel must reach: the `:authority` of CONNECT.
//!
//! In: foreign text. Out: an [`Authority`], or the [`BadAuthority`] that says what is wrong with it. It resolves nothing
//! and knows no default port: RFC 9110 §9.3.6 demands one in every CONNECT.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    str::FromStr,
};

/// Longest host name, in bytes (RFC 1035 §2.3.4).
const MAX_HOST_BYTES: usize = 253;

/// What the far end of a tunnel must reach (RFC 9113 §8.5). Not what is dialed: a waypoint is dialed at its own address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Authority {
    /// `10.0.0.1:80` or `[fd00::1]:80`.
    Address(SocketAddr),
    /// `web.shop.svc.cluster.local:80`.
    Host {
        /// The name of a service.
        name: HostName,
        /// The service's port, not the workload's.
        port: u16,
    },
}

/// A DNS name: letters, digits, `-`, `_` and `.`, at most 253 bytes. [`HostName::parse`] is the only way in.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct HostName(Box<str>);

/// Why a text is no authority.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadAuthority {
    /// The request has none.
    #[error("the request has no authority")]
    Missing,
    /// There is no `:port` at the end.
    #[error("`{authority}` has no port")]
    NoPort {
        /// The text as given.
        authority: String,
    },
    /// What follows the last colon is not a port.
    #[error("`{port}` in `{authority}` is not a port between 1 and 65535")]
    Port {
        /// The text as given.
        authority: String,
        /// The part that should be the port.
        port: String,
    },
    /// What stands in brackets is not an IPv6 address.
    #[error("`{host}` in `{authority}` is not an IPv6 address")]
    Ipv6 {
        /// The text as given.
        authority: String,
        /// The part in brackets.
        host: String,
    },
    /// The host is neither an IPv4 address nor a DNS name.
    #[error("`{host}` is neither an address nor a host name")]
    Host {
        /// The part that should be the host.
        host: String,
    },
}

impl Authority {
    /// Reads `IPv4:port`, `[IPv6]:port` or `host:port`. An IPv4-mapped IPv6 address becomes the IPv4 address.
    ///
    /// # Errors
    /// [`BadAuthority`] names the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, BadAuthority> {
        if text.is_empty() {
            return Err(BadAuthority::Missing);
        }
        let no_port = || BadAuthority::NoPort { authority: text.into() };
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(no_port)?;
                (Host::Bracketed(host), after.strip_prefix(':').ok_or_else(no_port)?)
            }
            None => {
                let (host, port) = text.rsplit_once(':').ok_or_else(no_port)?;
                (Host::Bare(host), port)
            }
        };
        let port = parse_port(port)
            .ok_or_else(|| BadAuthority::Port { authority: text.into(), port: port.into() })?;
        match host {
            Host::Bracketed(host) => {
                let ip: Ipv6Addr = host.parse().map_err(|_| BadAuthority::Ipv6 {
                    authority: text.into(),
                    host: host.into(),
                })?;
                Ok(Self::Address(SocketAddr::new(IpAddr::V6(ip).to_canonical(), port)))
            }
            Host::Bare(host) => match host.parse::<Ipv4Addr>() {
                Ok(ip) => Ok(Self::Address(SocketAddr::new(ip.into(), port))),
                Err(_) => Ok(Self::Host { name: HostName::parse(host)?, port }),
            },
        }
    }

    /// The port, which every authority has.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(addr) => addr.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl HostName {
    /// Checks that `name` is a DNS name and not an address.
    ///
    /// # Errors
    /// [`BadAuthority::Host`] when it is not.
    pub fn parse(name: &str) -> Result<Self, BadAuthority> {
        let bad = || BadAuthority::Host { host: name.into() };
        if name.len() > MAX_HOST_BYTES || name.parse::<Ipv4Addr>().is_ok() {
            return Err(bad());
        }
        let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        let mut labels = name.strip_suffix('.').unwrap_or(name).split('.');
        if labels.all(|label| !label.is_empty() && label.bytes().all(allowed)) {
            Ok(Self(name.into()))
        } else {
            Err(bad())
        }
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

enum Host<'a> {
    Bracketed(&'a str),
    Bare(&'a str),
}

/// Digits only: `u16::from_str` would take a sign.
fn parse_port(text: &str) -> Option<u16> {
    if !text.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().map(NonZeroU16::get)
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Authority {
    type Err = BadAuthority;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl From<SocketAddr> for Authority {
    fn from(addr: SocketAddr) -> Self {
        Self::Address(addr)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: &str) {
        let found = match Authority::parse(text) {
            Ok(Authority::Address(addr)) => format!("address {addr}"),
            Ok(Authority::Host { name, port }) => format!("host {name} port {port}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn an_address_or_a_name_with_a_port_is_an_authority() {
        check("10.0.0.1:80", "address 10.0.0.1:80");
        check("[fd00::1]:80", "address [fd00::1]:80");
        check("[::ffff:10.0.0.1]:80", "address 10.0.0.1:80");
        check("web.shop.svc:8080", "host web.shop.svc port 8080");
        check("web.shop.svc.:8080", "host web.shop.svc. port 8080");
    }

    #[test]
    fn a_port_is_mandatory() {
        check("", "the request has no authority");
        check("10.0.0.1", "`10.0.0.1` has no port");
        check("[fd00::1]", "`[fd00::1]` has no port");
        check("[fd00::1", "`[fd00::1` has no port");
        check("web", "`web` has no port");
    }

    #[test]
    fn a_port_is_a_number_of_sixteen_bits() {
        for port in ["", "0", "+80", "65536", "http", "99999999999999999999"] {
            check(
                &format!("web:{port}"),
                &format!("`{port}` in `web:{port}` is not a port between 1 and 65535"),
            );
        }
    }

    #[test]
    fn a_host_is_an_address_or_a_name() {
        check("fd00::1:80", "`fd00::1` is neither an address nor a host name");
        check("user@web:80", "`user@web` is neither an address nor a host name");
        check(":80", "`` is neither an address nor a host name");
        check("a..b:80", "`a..b` is neither an address nor a host name");
        check("[web]:80", "`web` in `[web]:80` is not an IPv6 address");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_then_stays_the_same(text in "\\PC*") {
            if let Ok(authority) = Authority::parse(&text) {
                prop_assert_eq!(Authority::parse(&authority.to_string()), Ok(authority));
            }
        }

        #[test]
        fn every_address_survives_a_round_trip(ip: IpAddr, port in 1..=u16::MAX) {
            let authority = Authority::Address(SocketAddr::new(ip.to_canonical(), port));
            prop_assert_eq!(Authority::parse(&authority.to_string()), Ok(authority));
        }

        #[test]
        fn every_authority_can_be_sent(text in "[a-z0-9._:\\[\\]-]{1,24}:[0-9]{1,5}") {
            if let Ok(authority) = Authority::parse(&text) {
                prop_assert!(authority.to_string().parse::<http::uri::Authority>().is_ok(), "{}", authority);
            }
        }
    }
}
