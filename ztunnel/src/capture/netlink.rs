//! rtnetlink messages: the rule and the route that bring an application's replies back to the daemon.
//!
//! In: a family. Out: bytes to send, and the answer's meaning. Which namespace they are sent in is decided by the
//! caller.

use std::io::{self, Read, Write};

use ebpf_common::PRESERVED_SOURCE_MARK;
use socket2::{Domain, Protocol, Socket, Type};

/// Routing table of the replies; Istio's node proxy uses the same number for the same purpose.
const TABLE: u8 = 100;
/// Before the main table (32766), after the local one (0).
const RULE_PRIORITY: u32 = 100;
/// Loopback is the first interface of every namespace.
const LOOPBACK: u32 = 1;

/// An address family of routing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Family {
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
}

/// What is added to or removed from a pod's routing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Entry {
    /// `ip rule add fwmark 0x111 lookup 100`.
    Rule,
    /// `ip route add local default dev lo table 100`.
    Route,
}

/// Adds the entry, or finds that it is there.
pub(super) fn add(entry: Entry, family: Family) -> io::Result<()> {
    let kind = match entry {
        Entry::Rule => libc::RTM_NEWRULE,
        Entry::Route => libc::RTM_NEWROUTE,
    };
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    tolerate(libc::EEXIST, request(&message(kind, flags, entry, family)))
}

/// Removes the entry, or finds that it is not there.
pub(super) fn remove(entry: Entry, family: Family) -> io::Result<()> {
    let (kind, absent) = match entry {
        Entry::Rule => (libc::RTM_DELRULE, libc::ENOENT),
        Entry::Route => (libc::RTM_DELROUTE, libc::ESRCH),
    };
    tolerate(absent, request(&message(kind, 0, entry, family)))
}

/// Sends one message and waits for the kernel's acknowledgement, which comes before send() returns.
fn request(message: &[u8]) -> io::Result<()> {
    let route = Protocol::from(libc::NETLINK_ROUTE);
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(route))?;
    socket.write_all(message)?;
    let mut answer = [0; 512];
    let length = socket.read(&mut answer)?;
    acknowledged(&answer[..length])
}

/// Reads an acknowledgement: a message header, then an error number, zero for success.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind.map(i32::from), code) {
        (Some(libc::NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(libc::NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no netlink acknowledgement")),
    }
}

fn tolerate(code: i32, result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(code) => Ok(()),
        other => other,
    }
}

fn message(kind: u16, flags: libc::c_int, entry: Entry, family: Family) -> Vec<u8> {
    let family = match family {
        Family::Inet => libc::AF_INET,
        Family::Inet6 => libc::AF_INET6,
    } as u8;
    let body = match entry {
        Entry::Rule => rule(family),
        Entry::Route => route(family),
    };
    let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend(((16 + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port: one request on a socket of its own needs neither.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// struct fib_rule_hdr: family, lengths of destination and source, tos, table, two reserved, action, flags.
fn rule(family: u8) -> Vec<u8> {
    const FR_ACT_TO_TBL: u8 = 1;
    const FRA_PRIORITY: u16 = 6;
    const FRA_FWMARK: u16 = 10;
    let mut body = vec![family, 0, 0, 0, TABLE, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    attribute(&mut body, FRA_PRIORITY, RULE_PRIORITY);
    attribute(&mut body, FRA_FWMARK, PRESERVED_SOURCE_MARK);
    body
}

/// struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
fn route(family: u8) -> Vec<u8> {
    let mut body = vec![
        family,
        0,
        0,
        0,
        TABLE,
        libc::RTPROT_STATIC,
        libc::RT_SCOPE_HOST,
        libc::RTN_LOCAL,
        0,
        0,
        0,
        0,
    ];
    attribute(&mut body, libc::RTA_OIF, LOOPBACK);
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: u32) {
    body.extend(8_u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_its_own_length_and_asks_for_an_acknowledgement() {
        for entry in [Entry::Rule, Entry::Route] {
            let bytes = message(libc::RTM_NEWRULE, libc::NLM_F_CREATE, entry, Family::Inet6);
            assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
            let flags = i32::from(u16::from_ne_bytes(bytes[6..8].try_into().unwrap()));
            assert_eq!(flags, libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE);
            assert_eq!(i32::from(bytes[16]), libc::AF_INET6);
        }
    }

    #[test]
    fn an_answer_is_success_an_error_number_or_refused_as_malformed() {
        let answer = |kind: i32, code: i32| {
            let mut bytes = vec![0; 36];
            bytes[4..6].copy_from_slice(&(kind as u16).to_ne_bytes());
            bytes[16..20].copy_from_slice(&code.to_ne_bytes());
            acknowledged(&bytes).map_err(|error| error.raw_os_error())
        };
        assert_eq!(answer(libc::NLMSG_ERROR, 0), Ok(()));
        assert_eq!(answer(libc::NLMSG_ERROR, -libc::EPERM), Err(Some(libc::EPERM)));
        assert_eq!(answer(libc::NLMSG_DONE, 0), Err(None));
        assert!(acknowledged(&[0; 7]).is_err());
    }
}
