//! The lines of the access log: target `access`, the fields and names of Istio's ztunnel, and the reason.
//!
//! In: a connection and how it ended. Out: one `tracing` event.

use std::{net::SocketAddr, time::Duration};

use super::{Connection, Failure, Reporter};
use crate::identity::Spiffe;

/// How a connection ended, as its line tells it.
pub(super) struct Ended<'a> {
    /// Sent by the side this node serves.
    pub(super) bytes_sent: u64,
    /// Received by the side this node serves.
    pub(super) bytes_recv: u64,
    pub(super) lasted: Duration,
    pub(super) failure: Option<&'a Failure>,
}

/// A connection that was opened for forwarding has ended.
pub(super) fn complete(connection: &Connection, ended: &Ended<'_>) {
    // The level is part of a callsite, so a good and a bad end have one each.
    macro_rules! line {
        ($level:ident $(, $($failure:tt)+)?) => {{
            let Connection { traffic, source, destination, hbone_authority, trace } = connection;
            tracing::$level!(
                target: "access",
                {
                    src.addr = %source,
                    src.workload = traffic.source.workload.as_deref(),
                    src.namespace = traffic.source.namespace.as_deref(),
                    src.identity = traffic.proven(&traffic.source).map(Spiffe::as_str),
                    src.cluster = traffic.source.cluster.as_deref(),
                    dst.addr = %destination,
                    dst.hbone_addr = hbone_authority.as_deref().map(display),
                    dst.service = traffic.service.as_ref().map(|service| &*service.hostname),
                    dst.workload = traffic.destination.workload.as_deref(),
                    dst.namespace = traffic.destination.namespace.as_deref(),
                    dst.identity = traffic.proven(&traffic.destination).map(Spiffe::as_str),
                    dst.cluster = traffic.destination.cluster.as_deref(),
                    trace.id = trace.map(hex),
                    direction = traffic.reporter.direction(),
                    bytes_sent = ended.bytes_sent,
                    bytes_recv = ended.bytes_recv,
                    duration = format!("{}ms", ended.lasted.as_millis()),
                    $($($failure)+,)?
                },
                "connection complete"
            )
        }};
    }
    match ended.failure {
        None => line!(info),
        Some(failure) => line!(error, reason = failure.reason.as_str(), error = failure.error),
    }
}

/// A connection is opened for forwarding.
pub(super) fn opened(connection: &Connection) {
    let Connection { traffic, source, destination, hbone_authority, trace } = connection;
    tracing::debug!(
        target: "access",
        {
            src.addr = %source,
            src.workload = traffic.source.workload.as_deref(),
            src.namespace = traffic.source.namespace.as_deref(),
            dst.addr = %destination,
            dst.hbone_addr = hbone_authority.as_deref().map(display),
            dst.service = traffic.service.as_ref().map(|service| &*service.hostname),
            dst.workload = traffic.destination.workload.as_deref(),
            dst.namespace = traffic.destination.namespace.as_deref(),
            trace.id = trace.map(hex),
            direction = traffic.reporter.direction(),
        },
        "connection opened"
    );
}

/// A connection failed before anything about its ends was known.
pub(super) fn failed(
    reporter: Reporter,
    source: SocketAddr,
    destination: SocketAddr,
    failure: &Failure,
) {
    tracing::warn!(
        target: "access",
        {
            src.addr = %source,
            dst.addr = %destination,
            direction = reporter.direction(),
            reason = failure.reason.as_str(),
            error = failure.error,
        },
        "connection failed"
    );
}

/// A trace's id, as headers have it.
fn hex(trace: u128) -> String {
    // In halves: 128 bits are divided by a function.
    format!("{:016x}{:016x}", (trace >> 64) as u64, trace as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{
        LogFormat, Party, Reason, Security, ServiceName, Traffic, log::tests::logged,
    };

    fn party(name: &str) -> Party {
        Party {
            workload: Some(name.into()),
            namespace: Some("shop".into()),
            cluster: Some("Kubernetes".into()),
            principal: Some(Spiffe::new("cluster.local", "shop", name).unwrap()),
            ..Party::default()
        }
    }

    fn connection(security: Security) -> Connection {
        let service = ServiceName {
            hostname: "cart.shop.svc.cluster.local".into(),
            namespace: "shop".into(),
            name: "cart".into(),
        };
        Connection {
            traffic: Traffic {
                reporter: Reporter::Source,
                source: party("web"),
                destination: party("cart"),
                service: Some(service),
                security,
            },
            source: "10.0.0.1:4000".parse().unwrap(),
            destination: "10.0.0.2:15008".parse().unwrap(),
            hbone_authority: Some("10.0.0.2:8080".into()),
            trace: Some(0xabc),
        }
    }

    /// The line of a connection that ended with `failure`, without its time.
    fn line(security: Security, failure: Option<&Failure>) -> String {
        let ended =
            Ended { bytes_sent: 1, bytes_recv: 2, lasted: Duration::from_millis(7), failure };
        let lines = logged(LogFormat::Plain, "info", |_| complete(&connection(security), &ended));
        lines[0].split_once('\t').unwrap().1.to_owned()
    }

    #[test]
    fn a_good_end_is_one_line_at_info_with_all_that_is_known() {
        let expected = "info\taccess\tconnection complete\t\
            src.addr=10.0.0.1:4000 src.workload=\"web\" src.namespace=\"shop\" \
            src.identity=\"spiffe://cluster.local/ns/shop/sa/web\" src.cluster=\"Kubernetes\" \
            dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 \
            dst.service=\"cart.shop.svc.cluster.local\" dst.workload=\"cart\" dst.namespace=\"shop\" \
            dst.identity=\"spiffe://cluster.local/ns/shop/sa/cart\" dst.cluster=\"Kubernetes\" \
            trace.id=\"00000000000000000000000000000abc\" \
            direction=\"outbound\" bytes_sent=1 bytes_recv=2 duration=\"7ms\"";
        assert_eq!(line(Security::MutualTls, None), expected);
    }

    #[test]
    fn in_json_identities_are_plain_strings() {
        let ended =
            Ended { bytes_sent: 1, bytes_recv: 2, lasted: Duration::from_millis(7), failure: None };
        let lines = logged(LogFormat::Json, "info", |_| {
            complete(&connection(Security::MutualTls), &ended);
        });
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["src.identity"], "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(line["dst.identity"], "spiffe://cluster.local/ns/shop/sa/cart");
    }

    #[test]
    fn a_bad_end_is_an_error_with_its_reason() {
        let failure = Failure { reason: Reason::DialRefused, error: "dialing 10.0.0.2:80".into() };
        let line = line(Security::Plaintext, Some(&failure));
        assert!(line.starts_with("error\taccess\tconnection complete\t"), "{line}");
        let end = "duration=\"7ms\" reason=\"dial_refused\" error=\"dialing 10.0.0.2:80\"";
        assert!(line.ends_with(end), "{line}");
    }

    #[test]
    fn identities_appear_with_mutual_tls_only() {
        let line = line(Security::Plaintext, None);
        assert!(!line.contains("identity"), "{line}");
    }
}
