//! A stock Envoy as a waypoint under our control plane.
//!
//! In: who it is, where pilot is, and a token. Out: a running Envoy that has its listeners, clusters and endpoints by
//! discovery and its certificate by SDS, all from pilot; nothing about the mesh stands in its own configuration.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::binaries;
use crate::cluster::Cluster;
use crate::control::TLS_PORT;
use crate::pod::Pod;
use crate::process::Process;

/// Where its administration listens, in its pod.
const ADMIN_PORT: u16 = 9901;
/// The port of tunnels.
const HBONE_PORT: u16 = 15008;

/// A waypoint to be started.
#[derive(Clone, Debug)]
pub struct WaypointSpec {
    /// The pod's name and namespace, as pilot knows them.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's address.
    pub address: String,
    /// By what pilot believes it: the token of its node.
    pub token: String,
    /// How resources travel.
    pub protocol: Protocol,
    /// Where pilot is.
    pub pilot: Pilot,
}

/// How resources travel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// Those that changed.
    Delta,
    /// All of a type.
    Sotw,
}

/// Where pilot is.
#[derive(Clone, Debug)]
pub enum Pilot {
    /// In the same pod, without TLS.
    Here {
        /// Its port.
        port: u16,
    },
    /// Elsewhere.
    Tls {
        /// Its address.
        address: String,
        /// The root of its certificate.
        roots: PathBuf,
    },
}

/// A waypoint that runs in a pod.
#[derive(Debug)]
pub struct Waypoint {
    process: Process,
    pod: Pod,
}

impl Waypoint {
    /// Starts the waypoint of a cluster in its pod `path`, and waits until it takes tunnels.
    ///
    /// # Errors
    /// If it does not.
    pub fn of(cluster: &Cluster, path: &str) -> Result<Waypoint> {
        let (pod, control) = (cluster.pod(path)?, cluster.control()?);
        let token = control.node_token(&pod.node_name())?;
        let spec = WaypointSpec {
            name: pod.spec().name.clone(),
            namespace: pod.spec().namespace.clone(),
            address: pod.ip4().to_string(),
            token: fs::read_to_string(token).context("reading the node's token")?,
            protocol: Protocol::Delta,
            pilot: Pilot::Tls {
                address: cluster.plan().control_ip4().to_string(),
                roots: control.root_certificate(),
            },
        };
        let mut waypoint = Waypoint::start(pod, &spec)?;
        waypoint.process.wait_listening(HBONE_PORT)?;
        Ok(waypoint)
    }

    /// Starts it. It serves when it has been sent everything.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(pod: &Pod, spec: &WaypointSpec) -> Result<Waypoint> {
        let path = pod.folder("waypoint")?.join(format!("{}.json", spec.name));
        fs::write(&path, serde_json::to_string_pretty(&bootstrap(spec))?)
            .with_context(|| format!("writing {}", path.display()))?;
        let program = binaries::envoy()?.display().to_string();
        let path = path.display().to_string();
        let words = [&*program, "--config-path", &path, "--concurrency", "1"];
        // No hot restart: its sockets would be the same for all Envoys of the machine.
        let rest = ["--disable-hot-restart", "--log-level", "warning"];
        let mut process = pod.spawn("waypoint", &[&words[..], &rest[..]].concat())?;
        process.wait_listening(ADMIN_PORT)?;
        Ok(Waypoint { process, pod: pod.clone() })
    }

    /// All that is in force, or about to be.
    ///
    /// # Errors
    /// If its administration does not answer.
    pub fn config(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask("/config_dump?include_eds")?)?)
    }

    /// Its counters of what it has refused, as far as it has refused anything.
    ///
    /// # Errors
    /// If its administration does not answer.
    pub fn rejected(&self) -> Result<Vec<String>> {
        let stats = self.ask("/stats")?;
        let counts = stats.lines().filter_map(|line| line.split_once(": "));
        let refused =
            counts.filter(|(name, count)| name.ends_with("update_rejected") && *count != "0");
        Ok(refused.map(|(name, count)| format!("{name}: {count}")).collect())
    }

    fn ask(&self, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{ADMIN_PORT}{path}");
        let said = self.pod.ask(&["curl", "-sS", "--fail", "--max-time", "10", &url])?;
        ensure!(!said.is_empty(), "Envoy answered {path} with nothing");
        Ok(said)
    }
}

/// As an injector would write it for a waypoint's proxy.
fn bootstrap(spec: &WaypointSpec) -> Value {
    let WaypointSpec { name, namespace, address, token, protocol, pilot } = spec;
    let by_grpc = |cluster: &str| {
        json!({
            "envoy_grpc": { "cluster_name": cluster },
            "initial_metadata": [{ "key": "authorization", "value": format!("Bearer {token}") }],
        })
    };
    let from_ads = json!({
        "ads": {},
        "resource_api_version": "V3",
        // Without its clusters it must not open.
        "initial_fetch_timeout": "0s",
    });
    json!({
        "node": {
            "id": format!("waypoint~{address}~{name}.{namespace}~{namespace}.svc.cluster.local"),
            "cluster": format!("{name}.{namespace}"),
            // Envoy wants one for clusters that prefer near endpoints; pilot goes by the pod's node.
            "locality": { "region": "unknown" },
            "metadata": { "NAMESPACE": namespace, "CLUSTER_ID": "Kubernetes" },
        },
        "admin": { "address": socket("127.0.0.1", ADMIN_PORT) },
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            },
        }],
        "dynamic_resources": {
            "ads_config": {
                "api_type": match protocol {
                    Protocol::Delta => "DELTA_GRPC",
                    Protocol::Sotw => "GRPC",
                },
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [by_grpc("xds-grpc")],
            },
            "cds_config": from_ads,
            "lds_config": from_ads,
        },
        "static_resources": {
            "clusters": [
                control_plane("xds-grpc", pilot, None),
                // What pilot sends of secrets has no place for a token: it is added on the way.
                control_plane("sds-grpc", pilot, Some(token)),
            ],
        },
    })
}

/// Pilot as a cluster; each request to it shows the token, if there is one.
fn control_plane(name: &str, pilot: &Pilot, token: Option<&str>) -> Value {
    let (address, port) = match pilot {
        Pilot::Here { port } => ("127.0.0.1", *port),
        Pilot::Tls { address, .. } => (address.as_str(), TLS_PORT),
    };
    let mut http = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    });
    if let Some(token) = token {
        http["http_filters"] = json!([
            {
                "name": "token",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
                    "mutations": { "request_mutations": [{ "append": {
                        "header": { "key": "authorization", "value": format!("Bearer {token}") },
                        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                    } }] },
                },
            },
            {
                "name": "codec",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
                },
            },
        ]);
    }
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(address, port) } }] }],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http,
        },
    });
    if let Pilot::Tls { roots, .. } = pilot {
        cluster["transport_socket"] = json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {
                    "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" },
                    "alpn_protocols": ["h2"],
                    "validation_context": {
                        "trusted_ca": { "filename": roots },
                        "match_typed_subject_alt_names": [
                            { "san_type": "IP_ADDRESS", "matcher": { "exact": address } },
                        ],
                    },
                },
            },
        });
    }
    cluster
}

fn socket(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}
