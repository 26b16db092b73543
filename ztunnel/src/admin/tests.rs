//! The three ports, asked over loopback.

use std::{io::Read, net::SocketAddr, sync::Arc, time::Duration};

use mesh::{
    identity::{Identities, IdentityConfig, LocalCa},
    store::Store,
    telemetry::{LogConfig, LogHandle, Metrics, start_log},
    xds::XdsStatus,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::*;

/// Far more than any answer takes.
const LIMIT: Duration = Duration::from_secs(10);

struct Fixture {
    handles: Arc<Handles>,
    admin: SocketAddr,
    stats: SocketAddr,
    readiness: SocketAddr,
    state: ReadyTask,
    stop: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
}

/// The process has one log and one set of metrics.
fn process() -> (LogHandle, Metrics) {
    static PROCESS: std::sync::OnceLock<(LogHandle, Metrics)> = std::sync::OnceLock::new();
    let start = || (start_log(&LogConfig::default()).unwrap(), Metrics::install().unwrap());
    PROCESS.get_or_init(start).clone()
}

fn pod() -> PodStatus {
    PodStatus {
        uid: PodUid::parse("uid-web").unwrap(),
        namespace: "shop".into(),
        name: "web".into(),
        service_account: "web".into(),
        state: PodState::Up,
        is_daemon: false,
    }
}

fn daemon() -> PodStatus {
    PodStatus { uid: PodUid::parse("ztunnel").unwrap(), is_daemon: true, ..pod() }
}

impl Fixture {
    fn start() -> Self {
        let (log, metrics) = process();
        let serves = std::thread::current().id();
        let readiness = Readiness::new();
        let state = readiness.task("state manager");
        let source = Arc::new(LocalCa::new("cluster.local").unwrap());
        let handles = Arc::new(Handles {
            network: "".into(),
            store: Store::new(),
            identities: Identities::start(source, IdentityConfig::default()),
            certificate_metrics: CertificateMetrics::default(),
            balance: crate::balance::Balance::new(crate::balance::DefaultLimits::default()),
            connections: ConnectionTable::new(),
            pods: Box::new(|| vec![pod(), daemon()]),
            xds: watch::channel(XdsStatus::default()).1,
            log,
            metrics,
            capture_counters: Box::new(move || {
                // Metrics are made while the thread that serves goes on.
                assert_ne!(std::thread::current().id(), serves);
                vec![("captured", 7)]
            }),
            runtimes: vec![tokio::runtime::Handle::current().metrics()],
            readiness,
            drain: CancellationToken::new(),
            config: serde_json::json!({ "network": "" }),
            istio_version: "unknown".into(),
        });
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let servers = Servers::bind(&Addresses { admin: any, stats: any, readiness: any }).unwrap();
        let [admin, stats, readiness] =
            [servers.admin_address(), servers.stats_address(), servers.readiness_address()]
                .map(Result::unwrap);
        let stop = CancellationToken::new();
        let serving = tokio::spawn(servers.serve(Arc::clone(&handles), stop.clone()));
        Self { handles, admin, stats, readiness, state, stop, serving }
    }
}

/// Sends one request; the status and the body of its answer.
async fn ask(to: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let exchange = async {
        let mut tcp = TcpStream::connect(to).await.unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: ztunnel\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = timeout(LIMIT, exchange).await.expect("an answer within the limit");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Sends `head`; the head and the body of the answer, which may be no text.
async fn raw(to: SocketAddr, head: String) -> (String, Vec<u8>) {
    let exchange = async {
        let mut tcp = TcpStream::connect(to).await.unwrap();
        tcp.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let mut answer = timeout(LIMIT, exchange).await.expect("an answer within the limit");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let body = answer.split_off(end);
    (String::from_utf8(answer).unwrap().to_lowercase(), body)
}

async fn json(to: SocketAddr, path: &str) -> Value {
    let (status, body) = ask(to, "GET", path).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn readiness_names_what_is_pending() {
    let fixture = Fixture::start();
    let pending = ask(fixture.readiness, "GET", "/healthz/ready").await;
    assert_eq!(pending, (500, "not ready, pending: state manager\n".into()));
    fixture.state.ready();
    assert_eq!(ask(fixture.readiness, "GET", "/healthz/ready").await, (200, "ready\n".into()));
}

#[tokio::test]
async fn the_dump_has_istios_keys() {
    let fixture = Fixture::start();
    let dump = json(fixture.admin, "/config_dump").await;
    let keys: Vec<&str> = dump.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "capture",
        "certificates",
        "config",
        "policies",
        "rejectedPolicies",
        "services",
        "stagedServices",
        "staticConfig",
        "version",
        "workloadState",
        "workloads",
        "xds",
    ];
    assert_eq!(keys, expected);
    let state = &dump["workloadState"]["uid-web"];
    assert_eq!((&state["state"], &state["info"]["serviceAccount"]), (&"Up".into(), &"web".into()));
}

#[tokio::test]
async fn open_connections_are_listed_in_both_places() {
    let fixture = Fixture::start();
    let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
    let listed = fixture.handles.connections.open(OpenConnection {
        pod: pod().uid,
        direction: Direction::Outbound,
        source: at(4000),
        original_destination: at(80),
        actual_destination: at(15008),
        protocol: Protocol::Hbone,
        peer: None,
    });
    let connections = json(fixture.admin, "/connections").await;
    assert_eq!(connections[0]["originalDestination"], "10.0.0.1:80");
    let dump = json(fixture.admin, "/config_dump").await;
    let outbound = &dump["workloadState"]["uid-web"]["connections"]["outbound"][0];
    assert_eq!(outbound["originalDst"], "10.0.0.1:80");
    assert_eq!(outbound["protocol"], "HBONE");
    drop(listed);
    assert_eq!(json(fixture.admin, "/connections").await, serde_json::json!([]));
}

#[tokio::test]
async fn metrics_are_served_under_both_names_with_the_captures_counters() {
    let fixture = Fixture::start();
    for path in ["/metrics", "/stats/prometheus"] {
        let (status, body) = ask(fixture.stats, "GET", path).await;
        assert_eq!(status, 200);
        assert!(body.contains("aquifer_capture_total{event=\"captured\"} 7"), "{body}");
        for metric in [
            "process_open_fds",
            "workload_manager_active_proxy_count 1",
            "workload_manager_pending_proxy_count 0",
            "tokio_num_workers 1",
            "tokio_worker_park_total{worker=\"0\"}",
        ] {
            assert!(body.contains(metric), "no {metric} in {body}");
        }
    }
}

#[tokio::test]
async fn who_accepts_openmetrics_gets_it_and_who_accepts_gzip_gets_that() {
    let fixture = Fixture::start();
    let ask = |headers| raw(fixture.stats, format!("GET /metrics HTTP/1.0\r\n{headers}\r\n"));
    let (head, body) =
        ask("accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n").await;
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    assert!(body.ends_with(b"# EOF\n"));
    let ask = |headers| raw(fixture.admin, format!("GET /config_dump HTTP/1.0\r\n{headers}\r\n"));
    let (head, packed) = ask("accept-encoding: deflate, gzip\r\n").await;
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let mut plain = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut plain).unwrap();
    assert!(plain.contains("workloadState"), "{plain}");
    let (head, _) = ask("accept-encoding: gzip;q=0\r\n").await;
    assert!(!head.contains("content-encoding"), "{head}");
}

#[tokio::test]
async fn a_processor_profile_is_taken_one_at_a_time() {
    let fixture = Fixture::start();
    let page = "/debug/pprof/profile?seconds=1&frequency=500";
    let ask = || raw(fixture.admin, format!("GET {page} HTTP/1.0\r\n\r\n"));
    let (one, other) = tokio::join!(ask(), ask());
    let (taken, refused) = if one.0.contains(" 200 ") { (one, other) } else { (other, one) };
    assert!(refused.0.contains(" 409 "), "{}", refused.0);
    assert!(taken.0.contains(" 200 "), "{}", taken.0);
    let mut profile = Vec::new();
    flate2::read::GzDecoder::new(&taken.1[..]).read_to_end(&mut profile).unwrap();
    let unit = b"nanoseconds";
    assert!(profile.windows(unit.len()).any(|window| window == unit));
}

#[tokio::test]
async fn the_log_level_changes_by_post_and_only_to_what_can_be_read() {
    let fixture = Fixture::start();
    let ask = |method, path| ask(fixture.admin, method, path);
    assert_eq!(ask("GET", "/logging").await.0, 405);
    assert_eq!(ask("POST", "/logging?reset").await.1, "current log level is info\n");
    let (status, body) = ask("POST", "/logging?level=a=b=c").await;
    assert_eq!((status, body.as_str()), (400, "`a=b=c` are no log filter directives\n"));
    let (_, body) = ask("POST", "/logging?level=mesh::xds=debug").await;
    assert!(body.contains("mesh::xds=debug"), "{body}");
    ask("POST", "/logging?reset").await;
}

#[tokio::test]
async fn explain_answers_or_says_what_is_wrong_with_the_question() {
    let fixture = Fixture::start();
    let (status, body) = ask(fixture.admin, "GET", "/explain?from=shop%2Fweb&to=10.0.0.1").await;
    assert_eq!(status, 400);
    assert!(body.contains("`to` must be ADDRESS:PORT"), "{body}");
    let answer = json(fixture.admin, "/explain?from=outside&to=10.0.0.1:80").await;
    assert_eq!(answer["outcome"], "forwarded");
}

#[tokio::test]
async fn quitting_drains_and_stopping_ends_the_servers() {
    let fixture = Fixture::start();
    assert_eq!(ask(fixture.admin, "GET", "/quitquitquit").await.0, 405);
    assert!(!fixture.handles.drain.is_cancelled());
    assert_eq!(ask(fixture.admin, "POST", "/quitquitquit").await.0, 200);
    assert!(fixture.handles.drain.is_cancelled());
    let idle = TcpStream::connect(fixture.admin).await.unwrap();
    fixture.stop.cancel();
    timeout(LIMIT, fixture.serving).await.expect("an end within the limit").unwrap().unwrap();
    drop(idle);
}

#[tokio::test]
async fn a_client_that_sends_half_a_head_is_cut_off() {
    let fixture = Fixture::start();
    let mut tcp = TcpStream::connect(fixture.readiness).await.unwrap();
    tcp.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost:").await.unwrap();
    let mut rest = Vec::new();
    timeout(LIMIT, tcp.read_to_end(&mut rest)).await.expect("cut within the limit").unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains("200"));
}

#[test]
fn administration_beyond_loopback_is_refused() {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let refused = Servers::bind(&Addresses { admin: any, stats: any, readiness: any }).unwrap_err();
    assert_eq!(refused.to_string(), "administration listens on loopback only, not on 0.0.0.0:0");
}
