//! Whether a connection that could not be made is tried at another endpoint.
//!
//! In: the reason of a failure before any byte of the application was sent. Out: what it says about the endpoint.

use mesh::telemetry::Reason;

/// What a failure says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Blame {
    /// This endpoint does not work: another may, and this one is remembered for it.
    Endpoint,
    /// This endpoint is busy by our own count: another may have room.
    Busy,
    /// Another endpoint would say the same, or must not be asked.
    Nobody,
}

/// What a failure says about the endpoint. Nothing of the application's was sent, so a second try repeats nothing.
pub(super) fn blame(reason: Reason) -> Blame {
    match reason {
        // Nobody is there, or nobody answers in time.
        Reason::DialRefused
        | Reason::DialTimeout
        | Reason::DialFailed
        | Reason::NetworkPolicySuspected
        | Reason::TlsFailed
        | Reason::TlsTimeout
        | Reason::TlsRefused
        | Reason::Http2Failed
        | Reason::TunnelTimeout
        | Reason::TunnelReset
        | Reason::TunnelLost
        | Reason::PeerMisbehaved
        // Somebody else is there, such as the next owner of a pod's address. Whoever is asked next must prove that it is
        // the expected one too.
        | Reason::WrongPeer
        | Reason::NoPeerCertificate
        | Reason::CertificateUntrusted
        | Reason::CertificateExpired
        | Reason::CertificateRevoked
        | Reason::TrustDomainUntrusted
        | Reason::CertificateInvalid
        // Its node cannot reach its application.
        | Reason::TunnelUnavailable => Blame::Endpoint,
        Reason::ConnectionLimit => Blame::Busy,
        // A policy said no. Endpoints of a service have the same ones, and asking around for one that has not heard of
        // them would be a way past them.
        Reason::TunnelDenied
        | Reason::PolicyDeny
        | Reason::PolicyNoAllow
        | Reason::PolicyMissing
        | Reason::PolicyInvalid
        | Reason::PolicyChanged
        // The request is at fault.
        | Reason::TunnelBadRequest
        | Reason::TunnelRefused
        | Reason::ConnectMethod
        | Reason::ConnectAuthority
        | Reason::ConnectNotThisPod
        | Reason::ConnectUnknownHost
        | Reason::DaemonPort
        // There is no way, whichever endpoint is chosen.
        | Reason::UnknownSource
        | Reason::UnknownDestination
        | Reason::UnknownServicePort
        | Reason::NoHealthyEndpoint
        | Reason::WaypointUnresolved
        | Reason::OtherNetwork
        | Reason::GatewayUnresolved
        | Reason::OwnPort
        | Reason::RateLimit
        | Reason::LookupTimeout
        | Reason::PodConnectionLimit
        | Reason::PodTunnelLimit
        // It is this side's.
        | Reason::CertificateUnavailable
        | Reason::OutOfResources
        | Reason::PodRemoved
        | Reason::Shutdown
        // The connection was made.
        | Reason::PeerStalled
        | Reason::PeerGaveUp
        | Reason::SocksRequest
        | Reason::ApplicationReset
        | Reason::ConnectionFailed => Blame::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_policy_is_not_tried_elsewhere() {
        for reason in [Reason::TunnelDenied, Reason::PolicyMissing, Reason::TunnelBadRequest] {
            assert_eq!(blame(reason), Blame::Nobody, "{reason}");
        }
    }

    #[test]
    fn what_this_side_lacks_is_not_blamed_on_the_endpoint() {
        for reason in [Reason::CertificateUnavailable, Reason::OutOfResources] {
            assert_eq!(blame(reason), Blame::Nobody, "{reason}");
        }
    }

    #[test]
    fn an_endpoint_that_refuses_or_is_silent_or_somebody_else_is_passed_over() {
        for reason in [Reason::DialRefused, Reason::NetworkPolicySuspected, Reason::WrongPeer] {
            assert_eq!(blame(reason), Blame::Endpoint, "{reason}");
        }
    }
}
