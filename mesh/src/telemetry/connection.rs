//! One connection's numbers and its line in the access log.
//!
//! In: a [`Connection`] when it is known, bytes while it lives, how it ended. Out: `istio_tcp_*` and
//! `aquifer_denials_total`, and exactly one line with target `access`. Metric handles are resolved once for each set
//! of labels and thread; a byte count is one addition.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use foldhash::HashMap;
use metrics::{Counter, Gauge, Label, counter, gauge};

use super::{Reason, Reporter, ResponseFlag, Traffic, access_log, cap::CAP, duration};

/// Label sets whose handles one thread keeps. Past it the thread forgets all of them: they are found again in the
/// registry, which costs a few microseconds each.
const KEPT_LABEL_SETS: usize = 4096;

/// What is known of a connection when it is accepted for forwarding.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who, to whom, how.
    pub traffic: Traffic,
    /// Where it comes from.
    pub source: SocketAddr,
    /// What is dialed, or the pod's own tunnel port for an inbound one.
    pub destination: SocketAddr,
    /// The `:authority` of its tunnel.
    pub hbone_authority: Option<Arc<str>>,
    /// The id that the records of both nodes share (W3C Trace Context), where one is known.
    pub trace: Option<u128>,
}

/// Why a connection did not end well: the reason and the sentence that names the particulars.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Which kind.
    pub reason: Reason,
    /// The particulars: policy and field, address, certificate.
    pub error: String,
}

impl Failure {
    /// Takes the sentence from an error and its sources.
    pub fn new(reason: Reason, error: &dyn std::error::Error) -> Self {
        Self { reason, error: chain(error) }
    }
}

/// The traffic metrics of one thread. Not shared, so that finding a handle takes no lock.
#[derive(Default)]
pub struct TrafficMetrics {
    series: RefCell<HashMap<Traffic, Rc<Series>>>,
    sockets: [OnceCell<Gauge>; 2],
}

/// The handles of one set of labels.
struct Series {
    /// What the labels say: the connection's own ends, or `other` past the cap.
    traffic: Traffic,
    opened: Counter,
    received: Counter,
    sent: Counter,
    closed_well: Counter,
}

/// A connection in progress. Dropped without [`finish`](Self::finish) it counts as cut by shutdown.
pub struct ConnectionMetrics {
    /// Boxed: tasks move it about, and each place it has been in counts for as long as they live.
    connection: Box<Connection>,
    series: Rc<Series>,
    started: Instant,
    received_bytes: Cell<u64>,
    sent_bytes: Cell<u64>,
    finished: bool,
}

/// An accepted socket, counted in `istio_tcp_sockets_open` until it is dropped.
pub struct OpenSocket(Gauge);

impl TrafficMetrics {
    /// Metrics for the calling thread.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts the connection as opened.
    pub fn open(&self, connection: Connection) -> ConnectionMetrics {
        self.open_since(connection, Instant::now())
    }

    /// Counts a connection as opened that was accepted before its next hop was known.
    pub fn open_since(&self, connection: Connection, started: Instant) -> ConnectionMetrics {
        let series = self.series(&connection.traffic);
        series.opened.increment(1);
        let opened = ConnectionMetrics {
            connection: Box::new(connection),
            series,
            started,
            received_bytes: Cell::new(0),
            sent_bytes: Cell::new(0),
            finished: false,
        };
        access_log::opened(&opened.connection);
        opened
    }

    /// Counts an accepted socket until the guard is dropped.
    pub fn socket(&self, reporter: Reporter) -> OpenSocket {
        let slot = match reporter {
            Reporter::Source => 0,
            Reporter::Destination => 1,
        };
        let open = || gauge!("istio_tcp_sockets_open", "reporter" => reporter.as_str());
        let gauge = self.sockets[slot].get_or_init(open).clone();
        gauge.increment(1.0);
        OpenSocket(gauge)
    }

    fn series(&self, traffic: &Traffic) -> Rc<Series> {
        let mut series = self.series.borrow_mut();
        if let Some(known) = series.get(traffic) {
            return Rc::clone(known);
        }
        if series.len() >= KEPT_LABEL_SETS {
            series.clear();
        }
        let labelled = if CAP.admits(traffic) { traffic.clone() } else { traffic.capped() };
        let fresh = Rc::new(Series::register(labelled));
        series.insert(traffic.clone(), Rc::clone(&fresh));
        fresh
    }
}

impl Series {
    fn register(traffic: Traffic) -> Self {
        let labels = traffic.labels(ResponseFlag::None);
        Self {
            traffic,
            opened: counter!("istio_tcp_connections_opened_total", labels.iter()),
            received: counter!("istio_tcp_received_bytes_total", labels.iter()),
            sent: counter!("istio_tcp_sent_bytes_total", labels.iter()),
            closed_well: counter!("istio_tcp_connections_closed_total", labels.iter()),
        }
    }
}

impl ConnectionMetrics {
    /// Counts bytes that came from the connection's initiator.
    pub fn received(&self, bytes: u64) {
        self.series.received.increment(bytes);
        self.received_bytes.set(self.received_bytes.get() + bytes);
    }

    /// Counts bytes that went towards the connection's initiator.
    pub fn sent(&self, bytes: u64) {
        if self.sent_bytes.get() == 0 {
            duration::first_byte(self.connection.traffic.reporter, self.started.elapsed());
        }
        self.series.sent.increment(bytes);
        self.sent_bytes.set(self.sent_bytes.get() + bytes);
    }

    /// The connection as it was opened.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Counts the connection as closed, and as failed if it failed, and writes its line.
    pub fn finish(mut self, result: Result<(), Failure>) {
        self.close(result.as_ref().err());
    }

    fn close(&mut self, failure: Option<&Failure>) {
        self.finished = true;
        match failure {
            None => self.series.closed_well.increment(1),
            Some(failure) => {
                let traffic = &self.series.traffic;
                let labels = traffic.labels(failure.reason.response_flag());
                counter!("istio_tcp_connections_closed_total", labels.iter()).increment(1);
                counter!("istio_tcp_connections_failed_total", labels.iter()).increment(1);
                count_failure(traffic.reporter, failure.reason, &parties(traffic));
            }
        }
        let (bytes_sent, bytes_recv) = self.bytes_as_logged();
        let ended =
            access_log::Ended { bytes_sent, bytes_recv, lasted: self.started.elapsed(), failure };
        access_log::complete(&self.connection, &ended);
    }

    /// (sent, received) by the side this node serves: the initiator outbound, the acceptor inbound.
    fn bytes_as_logged(&self) -> (u64, u64) {
        let (from_initiator, to_initiator) = (self.received_bytes.get(), self.sent_bytes.get());
        match self.connection.traffic.reporter {
            Reporter::Source => (from_initiator, to_initiator),
            Reporter::Destination => (to_initiator, from_initiator),
        }
    }
}

impl Drop for ConnectionMetrics {
    fn drop(&mut self) {
        if !self.finished {
            let error = "cut while the daemon was shutting down".to_owned();
            self.close(Some(&Failure { reason: Reason::Shutdown, error }));
        }
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Records a connection that failed before anything about its ends was known: one line, one count, no traffic metric.
pub fn refused(reporter: Reporter, source: SocketAddr, destination: SocketAddr, failure: &Failure) {
    count_failure(reporter, failure.reason, &[]);
    access_log::failed(reporter, source, destination, failure);
}

/// Policy's refusals and all other failures are two counters: the first is policy at work, the second is trouble.
fn count_failure(reporter: Reporter, reason: Reason, parties: &[Label]) {
    let mut labels = vec![
        Label::from_static_parts("reporter", reporter.as_str()),
        Label::from_static_parts("reason", reason.as_str()),
        Label::from_static_parts("response_flags", reason.response_flag().as_str()),
    ];
    labels.extend_from_slice(parties);
    if reason == Reason::CertificateRevoked {
        let reporter = reporter.as_str();
        counter!("istio_crl_policy_rejections_total", "reporter" => reporter).increment(1);
    }
    if reason.response_flag() == ResponseFlag::Deny {
        counter!("aquifer_denials_total", labels).increment(1);
    } else {
        counter!("aquifer_failures_total", labels).increment(1);
    }
}

/// The labels of `traffic` that tell whose connection it was, for counters that carry no more.
fn parties(traffic: &Traffic) -> Vec<Label> {
    const WANTED: &[&str] = &[
        "source_workload",
        "source_workload_namespace",
        "destination_service",
        "destination_workload",
        "destination_workload_namespace",
    ];
    let mut labels = traffic.labels(ResponseFlag::None);
    labels.retain(|label| WANTED.contains(&label.key()));
    labels
}

/// `error` and what caused it, as one sentence.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::telemetry::{Party, Security};

    fn connection(reporter: Reporter) -> Connection {
        let party = |name: &str| Party { workload: Some(name.into()), ..Party::default() };
        let traffic = Traffic {
            reporter,
            source: party("web"),
            destination: party("cart"),
            service: None,
            security: Security::Plaintext,
        };
        Connection {
            traffic,
            source: "10.0.0.1:4000".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
            hbone_authority: None,
            trace: None,
        }
    }

    /// Runs `act` and returns the samples as `name{flag-or-reason} value`.
    fn samples(act: impl FnOnce(&TrafficMetrics)) -> Vec<String> {
        let recorder = PrometheusBuilder::new().build_recorder();
        let prometheus = recorder.handle();
        metrics::with_local_recorder(&recorder, || act(&TrafficMetrics::new()));
        let text = prometheus.render();
        // How long it took is `duration`'s.
        let timed = |line: &str| line.starts_with("aquifer_first_byte");
        let samples =
            text.lines().filter(|line| !line.is_empty() && !line.starts_with('#') && !timed(line));
        let mut short: Vec<String> = samples.map(shorten).collect();
        short.sort();
        short
    }

    fn shorten(sample: &str) -> String {
        let (name, rest) = sample.split_once('{').unwrap();
        let (labels, value) = rest.rsplit_once("} ").unwrap();
        let wanted =
            |label: &&str| label.starts_with("response_flags") || label.starts_with("reason=");
        let labels: Vec<&str> = labels.split(',').filter(wanted).collect();
        format!("{name}{{{}}} {value}", labels.join(","))
    }

    #[test]
    fn a_connection_that_ends_well_counts_once_as_opened_and_closed() {
        let samples = samples(|metrics| {
            let connection = metrics.open(connection(Reporter::Source));
            connection.received(5);
            connection.received(6);
            connection.sent(100);
            connection.finish(Ok(()));
        });
        let expected = [
            "istio_tcp_connections_closed_total{response_flags=\"-\"} 1",
            "istio_tcp_connections_opened_total{response_flags=\"-\"} 1",
            "istio_tcp_received_bytes_total{response_flags=\"-\"} 11",
            "istio_tcp_sent_bytes_total{response_flags=\"-\"} 100",
        ];
        assert_eq!(samples, expected);
    }

    #[test]
    fn a_denied_connection_counts_as_failed_and_as_a_denial_by_reason() {
        let samples = samples(|metrics| {
            let error = "explicitly denied by: shop/no-web".to_owned();
            let failure = Failure { reason: Reason::PolicyDeny, error };
            metrics.open(connection(Reporter::Destination)).finish(Err(failure));
        });
        let denials = "aquifer_denials_total{reason=\"policy_deny\",response_flags=\"DENY\"} 1";
        assert!(samples.contains(&denials.to_owned()), "{samples:?}");
        let failed = "istio_tcp_connections_failed_total{response_flags=\"DENY\"} 1";
        assert!(samples.contains(&failed.to_owned()), "{samples:?}");
        let closed = "istio_tcp_connections_closed_total{response_flags=\"DENY\"} 1";
        assert!(samples.contains(&closed.to_owned()), "{samples:?}");
    }

    #[test]
    fn a_dropped_connection_is_closed_by_shutdown() {
        let samples = samples(|metrics| drop(metrics.open(connection(Reporter::Source))));
        let failures = "aquifer_failures_total{reason=\"shutdown\",response_flags=\"CONNECT\"} 1";
        assert!(samples.contains(&failures.to_owned()), "{samples:?}");
    }

    #[test]
    fn an_early_failure_has_no_traffic_metric() {
        let samples = samples(|_| {
            let failure = Failure { reason: Reason::UnknownSource, error: "no such pod".into() };
            let addr = "10.0.0.1:1".parse().unwrap();
            refused(Reporter::Source, addr, addr, &failure);
        });
        assert_eq!(
            samples,
            ["aquifer_failures_total{reason=\"unknown_source\",response_flags=\"CONNECT\"} 1"]
        );
    }

    #[test]
    fn the_log_counts_bytes_as_the_local_side_sent_them() {
        samples(|metrics| {
            for (reporter, sent_and_received) in
                [(Reporter::Source, (1, 2)), (Reporter::Destination, (2, 1))]
            {
                let connection = metrics.open(connection(reporter));
                connection.received(1);
                connection.sent(2);
                assert_eq!(connection.bytes_as_logged(), sent_and_received);
            }
        });
    }

    #[test]
    fn an_open_socket_is_counted_until_it_is_dropped() {
        let samples = samples(|metrics| {
            let _first = metrics.socket(Reporter::Source);
            drop(metrics.socket(Reporter::Source));
            std::mem::forget(metrics.socket(Reporter::Source));
        });
        assert_eq!(samples, ["istio_tcp_sockets_open{} 1"]);
    }
}
