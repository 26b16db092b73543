//! What telemetry calls the two ends of a connection, and how a tunnel's request describes them (baggage).
//!
//! In: workloads, services, identities. Out: label sets and header values. Pure.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh::{
    identity::Spiffe,
    store::{Service, Workload, WorkloadType},
    telemetry::{Party, ServiceName, read_baggage},
};

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Tells whoever answers through a gateway from which network the connection comes.
pub const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

/// A workload as one end of a connection. `principal` is its identity where mutual TLS proved it.
pub fn party(workload: &Workload, principal: Option<&Spiffe>) -> Party {
    Party {
        workload: known(&workload.workload_name),
        namespace: known(&workload.namespace),
        canonical_name: known(&workload.canonical_name),
        canonical_revision: known(&workload.canonical_revision),
        cluster: known(&workload.cluster),
        region: known(&workload.locality.region),
        zone: known(&workload.locality.zone),
        principal: principal.cloned(),
    }
}

/// A peer of which only the certificate and the baggage of its tunnel tell.
pub fn stranger(headers: &HeaderMap, principal: Option<&Spiffe>) -> Party {
    let lines = headers.get_all(BAGGAGE).iter().filter_map(|line| line.to_str().ok());
    let said = read_baggage(lines);
    let namespace = said.namespace.or_else(|| principal.map(|name| name.namespace().into()));
    Party { namespace, principal: principal.cloned(), ..said }
}

/// Whether the peer's address is a gateway's: the connection comes from another network than `own`.
pub fn is_from_other_network(headers: &HeaderMap, own: &str) -> bool {
    let network = headers.get(FORWARDED_NETWORK);
    network.is_some_and(|network| !network.as_bytes().eq_ignore_ascii_case(own.as_bytes()))
}

/// A service as telemetry names it.
pub fn service_name(service: &Service) -> ServiceName {
    ServiceName {
        hostname: service.hostname.clone(),
        namespace: service.namespace.clone(),
        name: service.name.clone(),
    }
}

/// The headers of a CONNECT for `source`, whose application connected from `client`, as Istio's ztunnel does.
/// `trace` is random, and nothing of what the application sent.
pub fn request_headers(
    source: &Workload,
    client: SocketAddr,
    service: Option<&Service>,
    trace: Trace,
) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert(BAGGAGE, baggage(source));
    let forwarded = match service {
        Some(service) => format!("for=\"{client}\";host={}", service.hostname),
        None => format!("for=\"{client}\""),
    };
    headers.insert(http::header::FORWARDED, value(&forwarded));
    headers.insert(TRACEPARENT, value(&trace.to_string()));
    headers
}

/// The headers of a 200 answer: who answered.
pub fn answer_headers(destination: &Workload) -> HeaderMap {
    HeaderMap::from_iter([(BAGGAGE, baggage(destination))])
}

/// The service the client dialed, as the first `forwarded` header says it.
pub fn dialed_host(headers: &HeaderMap) -> Option<&str> {
    let forwarded = headers.get(http::header::FORWARDED)?.to_str().ok()?;
    let host = forwarded.split(';').find_map(|part| part.trim().strip_prefix("host="))?;
    Some(host.trim_matches('"')).filter(|host| !host.is_empty())
}

/// What a `traceparent` looks like, and its length.
const TRACEPARENT_FORM: &str = "00-00000000000000000000000000000000-0000000000000000-00";
const TRACEPARENT_BYTES: usize = TRACEPARENT_FORM.len();

/// The random id of one connection (W3C Trace Context), not sampled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Trace {
    /// Names the connection.
    pub trace: u128,
    /// Names this node's part of it.
    pub span: u64,
}

impl Trace {
    /// A fresh one.
    pub fn random() -> Self {
        Self { trace: rand::random(), span: rand::random() }
    }

    /// The one that a request carries. One that is absent or invalid is none: the caller makes its own.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(TRACEPARENT)?.to_str().ok()?;
        let lower_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let valid = text.len() == TRACEPARENT_BYTES
            && text.bytes().zip(TRACEPARENT_FORM.bytes()).all(|(found, form)| match form {
                b'-' => found == b'-',
                _ => lower_hex(found),
            });
        if !valid || text.starts_with("ff") {
            return None;
        }
        let trace = u128::from_str_radix(&text[3..35], 16).ok()?;
        let span = u64::from_str_radix(&text[36..52], 16).ok()?;
        (trace != 0 && span != 0).then_some(Self { trace, span })
    }

    /// The number that names the connection on both nodes.
    pub fn id(self) -> u128 {
        self.trace.max(1)
    }
}

impl std::fmt::Display for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // All zeros is invalid (Trace Context §3.2.2.3).
        write!(f, "00-{:032x}-{:016x}-00", self.id(), self.span.max(1))
    }
}

fn baggage(workload: &Workload) -> HeaderValue {
    let kind = match workload.workload_type {
        WorkloadType::Deployment => "k8s.deployment.name",
        WorkloadType::CronJob => "k8s.cronjob.name",
        WorkloadType::Pod => "k8s.pod.name",
        WorkloadType::Job => "k8s.job.name",
    };
    let fields = [
        ("k8s.cluster.name", &workload.cluster),
        ("k8s.namespace.name", &workload.namespace),
        (kind, &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    let mut text = String::with_capacity(192);
    for (key, field) in fields.into_iter().filter(|(_, field)| !field.is_empty()) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push('=');
        text.push_str(field);
    }
    value(&text)
}

/// Names come from the control plane and may hold what a header cannot; such a header stays empty.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn known(text: &Arc<str>) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload::try_from(proto::workload::Workload {
            uid: "Kubernetes//Pod/shop/web-1".into(),
            name: "web-1".into(),
            namespace: "shop".into(),
            workload_name: "web".into(),
            workload_type: proto::workload::WorkloadType::Pod.into(),
            canonical_name: "web".into(),
            canonical_revision: "v2".into(),
            cluster_id: "Kubernetes".into(),
            ..Default::default()
        })
        .unwrap()
    }

    #[test]
    fn a_request_names_its_source_its_client_and_the_service() {
        let client = "[fd00::1]:40000".parse().unwrap();
        let headers = request_headers(&workload(), client, None, Trace { trace: 1, span: 2 });
        assert_eq!(
            headers["baggage"],
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=web,service.name=web,service.version=v2"
        );
        assert_eq!(headers["forwarded"], "for=\"[fd00::1]:40000\"");
        assert_eq!(
            headers["traceparent"],
            "00-00000000000000000000000000000001-0000000000000002-00"
        );
    }

    #[test]
    fn baggage_comes_back_as_a_party() {
        let found = stranger(&answer_headers(&workload()), None);
        let expected = party(&workload(), None);
        assert_eq!(found, expected);
    }

    #[test]
    fn odd_baggage_leaves_gaps_and_the_certificate_gives_the_namespace() {
        let mut headers = HeaderMap::new();
        headers.append(BAGGAGE, value("k8s.pod.name=,service.name=web,nonsense,=,a=b=c"));
        let name = Spiffe::parse("spiffe://td/ns/shop/sa/web").unwrap();
        let found = stranger(&headers, Some(&name));
        assert_eq!((found.workload, found.canonical_name.as_deref()), (None, Some("web")));
        assert_eq!(found.namespace.as_deref(), Some("shop"));
    }

    #[test]
    fn the_dialed_host_is_read_with_and_without_quotes() {
        let check = |text: &'static str, expected: Option<&str>| {
            let headers =
                HeaderMap::from_iter([(http::header::FORWARDED, HeaderValue::from_static(text))]);
            assert_eq!(dialed_host(&headers), expected, "{text}");
        };
        check(
            "for=\"10.0.0.1:5\";host=cart.shop.svc.cluster.local",
            Some("cart.shop.svc.cluster.local"),
        );
        check("for=x; host=\"cart\"", Some("cart"));
        check("for=x;host=", None);
        check("for=x", None);
    }

    #[test]
    fn a_trace_comes_back_as_it_was_written_and_an_invalid_one_not_at_all() {
        let read = |text: &str| Trace::of(&HeaderMap::from_iter([(TRACEPARENT, value(text))]));
        let trace = Trace { trace: 0xabc, span: 7 };
        assert_eq!(read(&trace.to_string()), Some(trace));
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(read(good).is_some());
        for bad in [
            "",
            &good[..54],
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c+b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(Trace::of(&HeaderMap::new()), None);
    }

    #[test]
    fn another_network_is_told_by_its_name_whatever_its_case() {
        let from = |network: &str| HeaderMap::from_iter([(FORWARDED_NETWORK, value(network))]);
        assert!(is_from_other_network(&from("far"), "near"));
        assert!(!is_from_other_network(&from("NEAR"), "near"));
        assert!(!is_from_other_network(&HeaderMap::new(), "near"));
    }
}
