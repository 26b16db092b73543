//! The settings as an operator writes them.

use super::*;

pub(super) fn read(settings: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
    let environment = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Config::read(&environment, "host-1", NonZeroUsize::new(2).unwrap())
}

pub(super) fn check_refused(name: &str, value: &str, reason: &str) {
    let errors: Vec<String> =
        read(&[(name, value)]).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(errors, [format!("{name}={value}: {reason}")]);
}

#[test]
fn defaults_are_istios() {
    let config = read(&[]).unwrap();
    assert_eq!(config.control_plane.ca_address, "https://istiod.istio-system.svc:15012");
    assert_eq!(config.node.pod_name, "ztunnel-host-1");
    assert_eq!(config.tunnels.connection_window_bytes.get(), 16 << 20);
    assert_eq!(config.drain_limit, Duration::from_secs(5));
}

#[test]
fn the_certificate_service_is_where_xds_is_and_https_is_assumed() {
    let config = read(&[("XDS_ADDRESS", "pilot:15012")]).unwrap();
    assert_eq!(config.control_plane.ca_address, "https://pilot:15012");
}

#[test]
fn data_threads_are_a_number_a_share_or_all_and_within_the_cpu_limit() {
    let threads = |settings: &[(&str, &str)]| read(settings).unwrap().threads.get();
    assert_eq!(threads(&[]), 2);
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "0")]), 2);
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "7")]), 7);
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "51%")]), 2);
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "50%")]), 1);
    assert_eq!(threads(&[("ZTUNNEL_CPU_LIMIT", "1")]), 1);
    assert_eq!(threads(&[("ZTUNNEL_CPU_LIMIT", "64")]), 2);
    assert_eq!(threads(&[("ZTUNNEL_CPU_LIMIT", "2"), ("ZTUNNEL_RESOURCE_CPU_LIMIT", "1")]), 1);
    let requested = ("ZTUNNEL_RESOURCE_CPU_REQUEST", "2");
    assert_eq!(threads(&[("ZTUNNEL_CPU_LIMIT", "1"), requested]), 2);
    assert_eq!(threads(&[requested]), 2);
}

#[test]
fn an_empty_address_disables_xds_and_not_the_certificate_service() {
    let plane = read(&[("XDS_ADDRESS", "")]).unwrap().control_plane;
    assert_eq!(plane.xds_address, "");
    assert_eq!(plane.ca_address, "https://istiod.istio-system.svc:15012");
}

#[test]
fn headers_and_metadata_are_taken_by_their_prefixes() {
    let config = read(&[
        ("XDS_HEADER_x-a", "1"),
        ("CA_HEADER_x-b", "2"),
        ("ISTIO_META_DNS_CAPTURE", "true"),
        ("ISTIO_METAJSON_LABELS", r#"{"app":"z"}"#),
    ])
    .unwrap();
    let (plane, metadata) = (config.control_plane, config.node.metadata);
    assert_eq!(plane.xds_headers, [("x-a".to_owned(), "1".to_owned())]);
    assert_eq!(plane.ca_headers, [("x-b".to_owned(), "2".to_owned())]);
    assert_eq!(metadata["DNS_CAPTURE"], "true");
    assert_eq!(metadata["LABELS"]["app"], "z");
    let error = read(&[("ISTIO_METAJSON_LABELS", "{")]).unwrap_err().remove(0).to_string();
    assert!(error.starts_with("ISTIO_METAJSON_=LABELS={: EOF"), "{error}");
}

#[test]
fn the_grace_period_bounds_the_drain() {
    let drain =
        |grace| read(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)]).unwrap().drain_limit.as_secs();
    assert_eq!([drain("30"), drain("11"), drain("10"), drain("1")], [25, 6, 9, 1]);
}

#[test]
fn bad_values_are_refused_by_name() {
    check_refused("ENABLE_PROXY", "false", "there is no daemon without its proxy");
    check_refused("ZTUNNEL_WORKER_THREADS", "-1", "invalid digit found in string");
    check_refused("ZTUNNEL_WORKER_THREADS", "0%", "a share of the CPUs is from 1% to 100%");
    check_refused("HTTP2_FRAME_SIZE", "16777216", "at most 16777215 is allowed");
    check_refused("SECRET_TTL", "1d", "expected a whole number and a unit: 500ms, 10s, 5m or 24h");
    check_refused(
        "AQUIFER_CONNECTION_RATE_PER_IDENTITY",
        "fast",
        "expected connections a second, or `a second:at once`, whole numbers from 1: 100 or 100:200",
    );
    check_refused("AQUIFER_EXEMPT", "10.0.0.0/40", "invalid IP address syntax");
    check_refused(
        "AQUIFER_ADMIN_ADDRESS",
        "0.0.0.0:15000",
        "administration listens on loopback only",
    );
}

#[test]
fn all_bad_values_are_told_at_once() {
    assert_eq!(read(&[("INSTANCE_IP", "x"), ("HTTP2_FRAME_SIZE", "0")]).unwrap_err().len(), 2);
}
