//! The host itself in the place of a pod (`PROXY_MODE=dedicated`): its addresses, as the kernel tells them.
//!
//! In: /proc/net. Out: every address of the host but those of loopback. Who the host is comes from the settings.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The host's addresses. Those that reach only the next link come last.
///
/// # Errors
/// The system's, if /proc cannot be read.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut found = ipv4(&fs::read_to_string("/proc/net/fib_trie")?);
    match fs::read_to_string("/proc/net/if_inet6") {
        Ok(text) => found.extend(ipv6(&text)),
        // IPv6 is switched off.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    found.sort_by_key(is_link_local);
    Ok(found)
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// A local address is a leaf `|-- 10.0.0.1` whose next line says `/32 host LOCAL`.
fn ipv4(fib_trie: &str) -> Vec<IpAddr> {
    let mut found: Vec<Ipv4Addr> = Vec::new();
    let mut leaf = None;
    for line in fib_trie.lines().map(str::trim_start) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.trim().parse().ok();
        } else if line.starts_with("/32 host LOCAL")
            && let Some(address) = leaf
            && !Ipv4Addr::is_loopback(&address)
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found.into_iter().map(IpAddr::V4).collect()
}

/// Lines of address, interface, prefix, scope, flags and name.
fn ipv6(if_inet6: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let hex = line.split_whitespace().next()?;
        let address = Ipv6Addr::from_bits(u128::from_str_radix(hex, 16).ok()?);
        (hex.len() == 32 && !address.is_loopback()).then_some(IpAddr::V6(address))
    };
    if_inet6.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ipv4_addresses_are_found_once_and_without_loopback() {
        let text = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 10.1.0.2
        /32 link UNICAST
Local:
        +-- 10.1.0.0/24 2 0 2
           |-- 10.1.0.2
              /32 host LOCAL
           |-- 10.1.0.255
              /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 10.1.0.2
        /32 host LOCAL
";
        assert_eq!(ipv4(text), [IpAddr::from([10, 1, 0, 2])]);
        assert_eq!(ipv4("|-- nonsense\n/32 host LOCAL\n"), [] as [IpAddr; 0]);
    }

    #[test]
    fn ipv6_addresses_are_read_from_their_digits() {
        let text = "\
00000000000000000000000000000001 01 80 10 80       lo
fe800000000000000858 02 40 20 80     eth0
fd770000000000000000000000000009 02 40 00 80     eth0
";
        assert_eq!(ipv6(text), ["fd77::9".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn this_host_has_no_loopback_address_among_its_addresses() {
        assert!(addresses().unwrap().iter().all(|ip| !ip.is_loopback()));
    }
}
