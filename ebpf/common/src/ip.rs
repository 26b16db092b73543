//! One form for every address: 16 bytes, IPv4 in its mapped form.
//!
//! In: addresses as sockets and packets have them. Out: [`Ip`], the same for AF_INET, AF_INET6 and mapped, so that
//! one key layout serves all three.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address as four words in network byte order; IPv4 is `::ffff:a.b.c.d`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ip(pub [u32; 4]);

impl Ip {
    /// The third word of every mapped IPv4 address.
    const MAPPED: u32 = 0x0000_ffff_u32.to_be();

    /// Maps an IPv4 address, given in network byte order.
    #[inline(always)]
    pub const fn from_v4_be(address: u32) -> Self {
        Self([0, 0, Self::MAPPED, address])
    }

    /// Whether this is IPv4, mapped or not.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }

    /// Whether this is 127.0.0.0/8 or ::1.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return self.0[3] & 0xff00_0000_u32.to_be() == 0x7f00_0000_u32.to_be();
        }
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
    }

    /// Whether this is 0.0.0.0 or ::, which connect() takes for "this host".
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[3] == 0 && (self.is_v4() || (self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0))
    }

    /// Whether this is fe80::/10, which means nothing without an interface.
    #[inline(always)]
    pub const fn is_link_local_v6(&self) -> bool {
        self.0[0] & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
    }

    /// Compares word by word: the derived comparison may become a call to `memcmp`, which BPF has not.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.0[0] == other.0[0]
            && self.0[1] == other.0[1]
            && self.0[2] == other.0[2]
            && self.0[3] == other.0[3]
    }
}

impl From<IpAddr> for Ip {
    fn from(address: IpAddr) -> Self {
        let bytes = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Ip> for IpAddr {
    /// Gives mapped addresses as IPv4.
    fn from(ip: Ip) -> Self {
        if ip.is_v4() {
            return Self::V4(Ipv4Addr::from_bits(u32::from_be(ip.0[3])));
        }
        let high = u64::from(u32::from_be(ip.0[0])) << 32 | u64::from(u32::from_be(ip.0[1]));
        let low = u64::from(u32::from_be(ip.0[2])) << 32 | u64::from(u32::from_be(ip.0[3]));
        Self::V6(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ip {
        Ip::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn an_address_survives_the_round_trip_and_mapped_becomes_ipv4() {
        for (text, back) in [
            ("10.1.2.3", "10.1.2.3"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("fd77:1:2:3:4:5:6:7", "fd77:1:2:3:4:5:6:7"),
            ("::1", "::1"),
            ("0.0.0.0", "0.0.0.0"),
        ] {
            assert_eq!(IpAddr::from(ip(text)), back.parse::<IpAddr>().unwrap(), "{text}");
        }
    }

    #[test]
    fn this_host_is_recognised_in_every_form() {
        for text in ["127.0.0.1", "127.9.9.9", "::ffff:127.0.0.1", "::1"] {
            assert!(ip(text).is_loopback(), "{text}");
        }
        for text in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
            assert!(ip(text).is_unspecified(), "{text}");
            assert!(!ip(text).is_loopback(), "{text}");
        }
        for text in ["10.0.0.1", "::2", "1::1", "128.0.0.1", "fd00::"] {
            assert!(!ip(text).is_loopback() && !ip(text).is_unspecified(), "{text}");
        }
    }

    #[test]
    fn link_local_is_fe80_with_ten_bits() {
        for (text, expected) in
            [("fe80::1", true), ("febf::1", true), ("fec0::1", false), ("169.254.1.1", false)]
        {
            assert_eq!(ip(text).is_link_local_v6(), expected, "{text}");
        }
    }
}
