//! Values that foreign messages carry as bytes and numbers: addresses, prefixes, ports, enums.
//!
//! In: fields of a protobuf message. Out: the typed value, or a [`DecodeError`] with the field's path and what is
//! wrong with it. Knows no message.

use std::{fmt::Display, net::IpAddr};

use ipnet::IpNet;

use crate::identity::SpiffeError;

/// Why a resource cannot be used: which field, and what is wrong with it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{path}: {fault}")]
pub struct DecodeError {
    path: String,
    fault: Fault,
}

/// What is wrong with a field.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// A required text has no character.
    #[error("is empty")]
    Empty,
    /// A `oneof` has no alternative set.
    #[error("has no value")]
    Unset,
    /// An address is neither IPv4 nor IPv6.
    #[error("an address has 4 or 16 bytes, found {bytes}")]
    AddressBytes {
        /// Length of what was found.
        bytes: usize,
    },
    /// A prefix is longer than its address.
    #[error("a prefix of {address} has at most {longest} bits, found {found}")]
    PrefixLength {
        /// The address before the slash.
        address: IpAddr,
        /// Bits in an address of this family.
        longest: u8,
        /// The length that was found.
        found: u32,
    },
    /// A number is no port.
    #[error("a port is at most 65535, found {found}")]
    Port {
        /// The number.
        found: u32,
    },
    /// An enum has a value that this version does not know and cannot ignore.
    #[error("{found} is not a known value")]
    EnumValue {
        /// The number.
        found: i32,
    },
    /// A message inside `Any` is of another type than expected, or cannot be read.
    #[error("is no google.protobuf.Struct")]
    NoStruct,
    /// A number counts nothing, or is none.
    #[error("must be a whole number from 1 to 4294967295")]
    NoCount,
    /// An identity cannot be written as a SPIFFE name.
    #[error(transparent)]
    Identity(#[from] SpiffeError),
}

impl DecodeError {
    /// A fault of the field `path`.
    pub(crate) fn new(path: impl Display, fault: Fault) -> Self {
        Self { path: path.to_string(), fault }
    }

    /// Puts the name of the enclosing field before the path.
    pub(crate) fn within(self, outer: impl Display) -> Self {
        Self { path: format!("{outer}.{}", self.path), fault: self.fault }
    }

    /// The field, from the outermost message inwards, such as `rules[0].clauses[1].matches[0].source_ips[2]`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong with it.
    pub fn fault(&self) -> &Fault {
        &self.fault
    }
}

/// An address of 4 or 16 bytes; an IPv4-mapped IPv6 address becomes IPv4.
pub(crate) fn ip(bytes: &[u8]) -> Result<IpAddr, Fault> {
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).expect("4 bytes: matched")),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).expect("16 bytes: matched")),
        found => return Err(Fault::AddressBytes { bytes: found }),
    };
    Ok(address.to_canonical())
}

/// An address with a prefix length, host bits cleared. A mapped IPv6 prefix of 96 bits or more becomes IPv4.
pub(crate) fn cidr(bytes: &[u8], length: u32) -> Result<IpNet, Fault> {
    const MAPPED_BITS: u32 = 96;
    let address = ip(bytes)?;
    let mapped = bytes.len() == 16 && address.is_ipv4();
    let (address, bits) = match length.checked_sub(MAPPED_BITS) {
        Some(bits) if mapped => (address, bits),
        None if mapped => {
            (IpAddr::from(<[u8; 16]>::try_from(bytes).expect("16 bytes: mapped")), length)
        }
        Some(_) | None => (address, length),
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    u8::try_from(bits)
        .ok()
        .and_then(|bits| IpNet::new(address, bits).ok())
        .map(|net| net.trunc())
        .ok_or(Fault::PrefixLength { address, longest, found: bits })
}

/// A port; 0 is left to the caller, for whom it may mean "none".
pub(crate) fn port(number: u32) -> Result<u16, Fault> {
    u16::try_from(number).map_err(|_| Fault::Port { found: number })
}

/// A text that must not be empty.
pub(crate) fn required(text: &str) -> Result<&str, Fault> {
    if text.is_empty() { Err(Fault::Empty) } else { Ok(text) }
}

/// Decodes each item of a repeated field; an error carries the item's index.
pub(crate) fn each<'a, T, U, C: FromIterator<U>>(
    field: &str,
    items: &'a [T],
    decode: impl Fn(&'a T) -> Result<U, Fault>,
) -> Result<C, DecodeError> {
    items
        .iter()
        .enumerate()
        .map(|(index, item)| {
            decode(item).map_err(|fault| DecodeError::new(format_args!("{field}[{index}]"), fault))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_cidr(address: &str, length: u32, expected: &str) {
        let bytes = match address.parse().unwrap() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let found = match cidr(&bytes, length) {
            Ok(net) => net.to_string(),
            Err(fault) => fault.to_string(),
        };
        assert_eq!(found, expected, "{address}/{length}");
    }

    #[test]
    fn host_bits_of_a_prefix_are_cleared() {
        check_cidr("10.1.2.3", 8, "10.0.0.0/8");
        check_cidr("10.1.2.3", 32, "10.1.2.3/32");
        check_cidr("10.1.2.3", 0, "0.0.0.0/0");
        check_cidr("2001:db8::1", 32, "2001:db8::/32");
    }

    #[test]
    fn a_mapped_prefix_is_an_ipv4_prefix() {
        check_cidr("::ffff:10.1.2.3", 104, "10.0.0.0/8");
        check_cidr("::ffff:10.1.2.3", 90, "::ffc0:0:0/90");
    }

    #[test]
    fn a_prefix_longer_than_its_address_is_refused() {
        check_cidr("10.0.0.0", 33, "a prefix of 10.0.0.0 has at most 32 bits, found 33");
        check_cidr("10.0.0.0", 288, "a prefix of 10.0.0.0 has at most 32 bits, found 288");
        check_cidr("::1", 129, "a prefix of ::1 has at most 128 bits, found 129");
    }

    #[test]
    fn an_address_of_another_length_is_refused() {
        for bytes in [0, 3, 5, 15, 17] {
            assert_eq!(ip(&vec![0; bytes]), Err(Fault::AddressBytes { bytes }));
        }
    }

    #[test]
    fn an_error_names_the_path_from_the_outside_in() {
        let error = each::<_, _, Vec<u16>>("destination_ports", &[80, 70_000], |p| port(*p))
            .unwrap_err()
            .within("matches[1]")
            .within("rules[0]");
        assert_eq!(
            error.to_string(),
            "rules[0].matches[1].destination_ports[1]: a port is at most 65535, found 70000"
        );
    }
}
