//! A stock Envoy in a pod, as either end of tunnels.
//!
//! In: a certificate and what the tunnels lead to. Out: a running Envoy, its counters and its administration. It is a witness
//! that is not of our making: what it and our daemon understand of each other, others will.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::binaries;
use crate::pod::Pod;
use crate::process::Process;

/// Where its administration listens, in its pod.
const ADMIN_PORT: u16 = 9901;
/// The port of tunnels.
const HBONE_PORT: u16 = 15008;

/// Who an Envoy is, and whom it trusts.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Its chain, in PEM.
    pub chain: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
    /// The roots it trusts, in PEM.
    pub roots: PathBuf,
}

/// An Envoy that runs in a pod.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    pod: Pod,
}

impl Envoy {
    /// Starts one that takes each connection to `127.0.0.1:PORT` into a tunnel to pod `to`, and there to that port.
    /// The tunnel's peer must be `identity`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn client(
        pod: &Pod,
        certificate: &Certificate,
        to: &Pod,
        identity: &str,
        ports: &[u16],
    ) -> Result<Envoy> {
        let listeners: Vec<Value> =
            ports.iter().map(|port| into_tunnel(*port, &format!("{}:{port}", to.ip4()))).collect();
        let mut tls = tls(certificate);
        tls["validation_context"]["match_typed_subject_alt_names"] =
            json!([{ "san_type": "URI", "matcher": { "exact": identity } }]);
        let transport = json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": tls,
            },
        });
        let mut tunnel = cluster("tunnel", &to.ip4().to_string(), HBONE_PORT);
        tunnel["transport_socket"] = transport;
        tunnel["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        });
        Envoy::start(pod, &listeners, &[tunnel], ports)
    }

    /// Starts one that accepts tunnels at `pod`'s own port of tunnels and lets each CONNECT to one of `ports` at the pod's
    /// addresses through to its application. It takes `streams` on a tunnel.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn server(
        pod: &Pod,
        certificate: &Certificate,
        ports: &[u16],
        streams: u32,
    ) -> Result<Envoy> {
        let clusters: Vec<Value> = ports
            .iter()
            .map(|port| cluster(&format!("application-{port}"), "127.0.0.1", *port))
            .collect();
        let hosts = ports.iter().map(|port| {
            let domains = [format!("{}:{port}", pod.ip4()), format!("[{}]:{port}", pod.ip6())];
            host(&format!("application-{port}"), &domains)
        });
        let filter = out_of_tunnels(&hosts.collect::<Vec<_>>(), streams);
        Envoy::start(pod, &[tunnels(certificate, &filter)], &clusters, &[HBONE_PORT])
    }

    /// Starts one that stands between two networks: it accepts tunnels at `pod`'s own port of tunnels and takes each CONNECT
    /// to one of `authorities` to the port of tunnels of pod `to`, whatever comes inside.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn gateway(
        pod: &Pod,
        certificate: &Certificate,
        authorities: &[String],
        to: &Pod,
    ) -> Result<Envoy> {
        let beyond = cluster("beyond", &to.ip4().to_string(), HBONE_PORT);
        let filter = out_of_tunnels(&[host("beyond", authorities)], 100);
        Envoy::start(pod, &[tunnels(certificate, &filter)], &[beyond], &[HBONE_PORT])
    }

    fn start(pod: &Pod, listeners: &[Value], clusters: &[Value], ports: &[u16]) -> Result<Envoy> {
        let config = json!({
            "admin": { "address": address("127.0.0.1", ADMIN_PORT) },
            "static_resources": { "listeners": listeners, "clusters": clusters },
        });
        let path = pod.folder("envoy")?.join("envoy.json");
        fs::write(&path, serde_json::to_string_pretty(&config)?)
            .with_context(|| format!("writing {}", path.display()))?;
        let program = binaries::envoy()?.display().to_string();
        let path = path.display().to_string();
        let words = [&*program, "--config-path", &path, "--concurrency", "1"];
        // No hot restart: its sockets would be the same for all Envoys of the machine.
        let rest =
            ["--disable-hot-restart", "--log-level", "warning", "--file-flush-interval-msec"];
        let mut process = pod.spawn("envoy", &[&words[..], &rest[..], &["50"]].concat())?;
        for port in ports {
            process.wait_listening(*port)?;
        }
        Ok(Envoy { process, pod: pod.clone() })
    }

    /// The sum of its counters whose names end with `name`.
    ///
    /// # Errors
    /// If its administration does not answer.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let stats = self.ask("GET", "/stats")?;
        let counts = stats.lines().filter_map(|line| line.split_once(": "));
        let counts = counts.filter(|(found, _)| found.ends_with(name));
        Ok(counts.filter_map(|(_, count)| count.parse::<u64>().ok()).sum())
    }

    /// Has it end each tunnel with GOAWAY at the next answer in it.
    ///
    /// # Errors
    /// If its administration does not answer.
    pub fn drain(&self) -> Result<()> {
        self.ask("POST", "/healthcheck/fail").map(drop)
    }

    /// Ends the draining.
    ///
    /// # Errors
    /// If its administration does not answer.
    pub fn stop_draining(&self) -> Result<()> {
        self.ask("POST", "/healthcheck/ok").map(drop)
    }

    /// Kills it (-9).
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// What it has said so far, a line for each connection that ended among it.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn log(&self) -> Result<String> {
        self.process.log()
    }

    fn ask(&self, method: &str, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{ADMIN_PORT}{path}");
        let said =
            self.pod.ask(&["curl", "-sS", "--fail", "--max-time", "10", "-X", method, &url])?;
        ensure!(!said.is_empty(), "Envoy answered {path} with nothing");
        Ok(said)
    }
}

fn address(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

/// One endpoint.
fn cluster(name: &str, host: &str, port: u16) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(host, port) } }] }],
        },
    })
}

/// HBONE speaks TLS 1.3 and HTTP/2 and nothing else; Envoy's own default as a client ends at 1.2.
fn tls(certificate: &Certificate) -> Value {
    json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "alpn_protocols": ["h2"],
        "tls_certificates": [{
            "certificate_chain": { "filename": certificate.chain },
            "private_key": { "filename": certificate.key },
        }],
        "validation_context": { "trusted_ca": { "filename": certificate.roots } },
    })
}

/// A listener that takes connections to `port` into a tunnel, to `authority`. Its log has the answer's `baggage`.
fn into_tunnel(port: u16, authority: &str) -> Value {
    json!({
        "name": format!("to-{port}"),
        "address": address("127.0.0.1", port),
        "filter_chains": [{ "filters": [{
            "name": "tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "tunnel",
                "cluster": "tunnel",
                "tunneling_config": { "hostname": authority, "propagate_response_headers": true },
                "access_log": [access_log(
                    "ended: %RESPONSE_FLAGS% answer: \
                     %FILTER_STATE(envoy.tcp_proxy.propagate_response_headers)%\n",
                )],
            },
        }] }],
    })
}

/// A listener of tunnels.
fn tunnels(certificate: &Certificate, filter: &Value) -> Value {
    json!({
        "name": "tunnels",
        "address": address("0.0.0.0", HBONE_PORT),
        "filter_chains": [{
            "transport_socket": {
                "name": "tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "require_client_certificate": true,
                    "common_tls_context": tls(certificate),
                },
            },
            "filters": [filter],
        }],
    })
}

/// Sends each CONNECT to one of `domains` to a cluster.
fn host(cluster: &str, domains: &[String]) -> Value {
    json!({
        "name": cluster,
        "domains": domains,
        "routes": [{
            "match": { "connect_matcher": {} },
            "route": {
                "cluster": cluster,
                "timeout": "0s",
                "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
            },
        }],
    })
}

/// The filter that ends tunnels and sends each CONNECT where its host says.
fn out_of_tunnels(hosts: &[Value], streams: u32) -> Value {
    json!({
        "name": "http",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "tunnels",
            "codec_type": "HTTP2",
            "http2_protocol_options": { "allow_connect": true, "max_concurrent_streams": streams },
            "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
            "stream_idle_timeout": "0s",
            "route_config": { "virtual_hosts": hosts },
            "http_filters": [
                {
                    "name": "health",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck",
                        // Its presence lets the administration drain tunnels; no request is one of health.
                        "pass_through_mode": false,
                        "headers": [{ "name": ":path", "string_match": { "exact": "/health" } }],
                    },
                },
                {
                    "name": "router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    },
                },
            ],
            "access_log": [access_log(
                "CONNECT %REQ(:AUTHORITY)% %RESPONSE_CODE% from %DOWNSTREAM_PEER_URI_SAN% \
                 baggage: %REQ(BAGGAGE)% forwarded: %REQ(FORWARDED)% ended: %RESPONSE_FLAGS%\n",
            )],
        },
    })
}

fn access_log(format: &str) -> Value {
    json!({
        "name": "stdout",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": { "text_format_source": { "inline_string": format } },
        },
    })
}
