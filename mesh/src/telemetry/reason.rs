//! Why a connection was refused, failed or cut: one word for the log, the metrics, the command line and the dashboard.
//!
//! In: the errors of the other modules, by `From`. Out: a [`Reason`]. It counts and logs nothing itself.

use std::fmt;

/// Defines [`Reason`] from one row per reason, so that no reason lacks a word, a flag or a description.
macro_rules! reasons {
    ($( #[doc = $describe:literal] $variant:ident $word:literal $flag:ident; )+) => {
        /// Why a connection was refused, failed or cut. One variant for each thing an operator would do differently.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum Reason {
            $( #[doc = $describe] $variant, )+
        }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &[Self] = &[$( Self::$variant, )+];

            /// The word that stands for it everywhere, such as `dial_timeout`.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }

            /// What happened, as a sentence.
            pub fn describe(self) -> &'static str {
                match self { $( Self::$variant => $describe.trim_ascii(), )+ }
            }

            /// Istio's coarser word for it, the label `response_flags`.
            pub const fn response_flag(self) -> ResponseFlag {
                match self { $( Self::$variant => ResponseFlag::$flag, )+ }
            }
        }
    };
}

reasons! {
    /// A DENY policy matched.
    PolicyDeny "policy_deny" Deny;
    /// ALLOW policies apply to the destination, and none of them matched.
    PolicyNoAllow "policy_no_allow" Deny;
    /// A policy that the destination names has not arrived, so nothing is let in.
    PolicyMissing "policy_missing" Deny;
    /// A policy that applies to the destination cannot be understood, so nothing is let in.
    PolicyInvalid "policy_invalid" Deny;
    /// A changed policy denies a connection that was open.
    PolicyChanged "policy_changed" Deny;

    /// The control plane has not described the workload that connects.
    UnknownSource "unknown_source" Connect;
    /// The control plane has not described the workload that was connected to on this node.
    UnknownDestination "unknown_destination" Connect;
    /// The control plane did not answer in time what the destination is.
    LookupTimeout "lookup_timeout" Connect;
    /// The service has no such port.
    UnknownServicePort "unknown_service_port" Connect;
    /// No endpoint of the service is healthy and reachable.
    NoHealthyEndpoint "no_healthy_endpoint" Connect;
    /// The destination has a waypoint, and the waypoint's address or endpoints are not known.
    WaypointUnresolved "waypoint_unresolved" Connect;
    /// The destination is on another network and cannot be reached there.
    OtherNetwork "other_network" Connect;
    /// The gateway of the destination's network is not known, or has no endpoint to use.
    GatewayUnresolved "gateway_unresolved" Connect;
    /// The destination is a port of the mesh's own.
    OwnPort "own_port" Connect;
    /// The destination is the daemon itself, of which only the metrics port can be reached.
    DaemonPort "daemon_port" Connect;

    /// The destination has as many connections from this node as it may.
    ConnectionLimit "connection_limit" Connect;
    /// The source makes new connections faster than it may.
    RateLimit "rate_limit" Connect;

    /// The next hop refused the TCP connection.
    DialRefused "dial_refused" Connect;
    /// The next hop did not answer the TCP connection in time.
    DialTimeout "dial_timeout" Connect;
    /// The TCP connection to the next hop failed.
    DialFailed "dial_failed" Connect;
    /// The tunnel port did not answer in time: a NetworkPolicy may block port 15008.
    NetworkPolicySuspected "network_policy_suspected" NetworkPolicy;

    /// The peer's certificate is valid and names another identity than the expected one.
    WrongPeer "wrong_peer" TlsFailure;
    /// The peer presented no certificate.
    NoPeerCertificate "no_peer_certificate" TlsFailure;
    /// The peer's certificate was not issued by a trusted root, or by one that is not trusted any more.
    CertificateUntrusted "certificate_untrusted" TlsFailure;
    /// The peer's certificate is expired or not valid yet.
    CertificateExpired "certificate_expired" TlsFailure;
    /// A certificate of the peer's chain is on a revocation list.
    CertificateRevoked "certificate_revoked" CertificateRevoked;
    /// The peer's certificate names a workload of a trust domain that is not trusted.
    TrustDomainUntrusted "trust_domain_untrusted" TlsFailure;
    /// The peer's certificate names no workload, or is not for this use.
    CertificateInvalid "certificate_invalid" TlsFailure;
    /// The peer refused the TLS handshake, for example this side's certificate.
    TlsRefused "tls_refused" TlsFailure;
    /// The TLS handshake failed.
    TlsFailed "tls_failed" TlsFailure;
    /// The TLS handshake did not end in time.
    TlsTimeout "tls_timeout" TlsFailure;
    /// This side has no certificate for the workload's identity.
    CertificateUnavailable "certificate_unavailable" IdentityError;

    /// The HTTP/2 connection inside TLS could not be set up.
    Http2Failed "http2_failed" Http2HandshakeFailure;
    /// The destination's policy refused the tunnel (401).
    TunnelDenied "tunnel_denied" Connect;
    /// The destination called the tunnel's request bad (400).
    TunnelBadRequest "tunnel_bad_request" Connect;
    /// The destination could not reach its application (503).
    TunnelUnavailable "tunnel_unavailable" Connect;
    /// The destination answered the tunnel's request with an unexpected status.
    TunnelRefused "tunnel_refused" Connect;
    /// The destination did not answer the tunnel's request in time.
    TunnelTimeout "tunnel_timeout" Connect;
    /// The peer reset the tunnelled stream.
    TunnelReset "tunnel_reset" Connect;
    /// The connection that carries the tunnel was lost.
    TunnelLost "tunnel_lost" Connect;

    /// The peer sent another method than CONNECT.
    ConnectMethod "connect_method" Connect;
    /// The authority of the peer's CONNECT is malformed or lacks a port.
    ConnectAuthority "connect_authority" Connect;
    /// The peer's CONNECT names an address that is not this pod's.
    ConnectNotThisPod "connect_not_this_pod" Connect;
    /// The peer's CONNECT names a host or a port of it that is not known here.
    ConnectUnknownHost "connect_unknown_host" Connect;
    /// The peer stopped reading or answering.
    PeerStalled "peer_stalled" Connect;
    /// The peer broke the rules of HTTP/2 or its limits.
    PeerMisbehaved "peer_misbehaved" Connect;
    /// The peer has given up too many requests before they were answered, and may make no more for a while.
    PeerGaveUp "peer_gave_up" Connect;

    /// The application's SOCKS5 request is malformed, or for something else than a connection.
    SocksRequest "socks_request" Connect;
    /// The application on this node reset the connection.
    ApplicationReset "application_reset" Connect;
    /// Reading or writing an established connection failed.
    ConnectionFailed "connection_failed" Connect;
    /// The pod was removed.
    PodRemoved "pod_removed" Connect;
    /// The daemon is shutting down.
    Shutdown "shutdown" Connect;
    /// The pod has as many connections open as one pod may have.
    PodConnectionLimit "pod_connection_limit" Connect;
    /// The pod has as many tunnels open as one pod may have.
    PodTunnelLimit "pod_tunnel_limit" Connect;
    /// This side ran out of file descriptors, ports or memory.
    OutOfResources "out_of_resources" Connect;
}

/// Istio's `response_flags`: how a connection ended, coarsely.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ResponseFlag {
    /// It ended well.
    None,
    /// A policy said no.
    Deny,
    /// It could not be made, or broke.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// The HTTP/2 handshake failed.
    Http2HandshakeFailure,
    /// A NetworkPolicy probably dropped it.
    NetworkPolicy,
    /// There is no certificate to use.
    IdentityError,
    /// A certificate has been taken back.
    CertificateRevoked,
}

impl ResponseFlag {
    /// The word Istio uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::Http2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertificateRevoked => "CERT_REVOKED",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_word_is_snake_case_and_stands_for_one_reason() {
        let mut words = BTreeSet::new();
        for reason in Reason::ALL {
            let word = reason.as_str();
            assert!(
                word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{word}"
            );
            assert!(words.insert(word), "{word} twice");
        }
    }

    #[test]
    fn every_description_is_a_sentence() {
        for reason in Reason::ALL {
            let sentence = reason.describe();
            assert!(
                sentence.starts_with(char::is_uppercase) && sentence.ends_with('.'),
                "{sentence}"
            );
        }
    }

    #[test]
    fn no_reason_claims_a_good_end() {
        for reason in Reason::ALL {
            assert_ne!(reason.response_flag(), ResponseFlag::None, "{reason}");
        }
    }
}
