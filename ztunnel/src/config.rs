//! The daemon's settings, read once.
//!
//! In: a lookup of environment variables (Istio's names where Istio has one; ours begin with `AQUIFER_`).
//! Out: a validated [`Config`], or every [`ConfigError`] at once. Each part receives its own section.

mod identity;
mod limits;
mod mode;
mod sockets;
mod values;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU16, NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use serde::Serialize;

pub use self::{
    identity::IdentitySection,
    limits::LimitSection,
    mode::{HostSection, HostWorkload, Mode},
    sockets::SocketSection,
};
use crate::dns::DnsSection;

/// All settings of the daemon.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Whom it serves.
    pub mode: Mode,
    /// Who this daemon is.
    pub node: NodeConfig,
    /// Where configuration and certificates come from.
    pub control_plane: ControlPlaneConfig,
    /// How peers are known, and this node's pods to them.
    pub identity: IdentitySection,
    /// How traffic is captured.
    pub capture: CaptureSection,
    /// Where pods are announced.
    pub pods: PodSources,
    /// DNS queries.
    pub dns: DnsSection,
    /// Tunnels and connections.
    pub tunnels: TunnelSection,
    /// Sockets in pods.
    pub sockets: SocketSection,
    /// What one pod may use.
    pub limits: LimitSection,
    /// Where the daemon answers its operators.
    pub listen: ListenSection,
    /// Data threads. `ZTUNNEL_WORKER_THREADS`: a number, `50%` of the CPUs, or 0 for all. Default one per CPU, at most
    /// `ZTUNNEL_RESOURCE_CPU_LIMIT` or `ZTUNNEL_CPU_LIMIT`, and `ZTUNNEL_RESOURCE_CPU_REQUEST` even if that is more.
    pub threads: NonZeroUsize,
    /// Log decisions of policy at info, not debug. `AUTHZ_POLICY_INFO_LOGGING`, default false.
    pub policy_decisions_at_info: bool,
    /// How long running connections may go on after SIGTERM. `CONNECTION_TERMINATION_DEADLINE`, or five seconds
    /// less than `TERMINATION_GRACE_PERIOD_SECONDS` (one less if that is 10 s or below), default 5 s.
    pub drain_limit: Duration,
}

/// Who this daemon is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// Kubernetes node. `NODE_NAME`, default the host's name.
    pub name: String,
    /// Pod of the daemon itself. `POD_NAME`, default `ztunnel-<node>`.
    pub pod_name: String,
    /// Its namespace. `POD_NAMESPACE`, default `istio-system`.
    pub pod_namespace: String,
    /// Who it is to the mesh, if `POD_NAME`, `POD_NAMESPACE` and `SERVICE_ACCOUNT` are all set. Then its metrics are
    /// served in tunnels as well, in shared mode.
    pub workload: Option<HostWorkload>,
    /// The mesh's root namespace, whose policies are for everyone. `AQUIFER_ROOT_NAMESPACE`, default `istio-system`.
    pub root_namespace: String,
    /// Address reported to the control plane. `INSTANCE_IP`, default 1.1.1.1, as Istio's.
    pub instance_ip: IpAddr,
    /// Network of the node's pods. `NETWORK`, default empty.
    pub network: String,
    /// Cluster. `ISTIO_META_CLUSTER_ID` or `CLUSTER_ID`, default `Kubernetes`.
    pub cluster: String,
    /// Trust domain assumed until a workload's record names one. `TRUST_DOMAIN`, default `cluster.local`.
    pub trust_domain: String,
    /// Version told to the control plane and to `istio_build`. `ISTIO_META_ISTIO_VERSION`, default `unknown`.
    pub istio_version: String,
    /// Further node metadata: every `ISTIO_META_<KEY>`, and every `ISTIO_METAJSON_<KEY>` as JSON.
    pub metadata: BTreeMap<String, serde_json::Value>,
}

/// Where configuration and certificates come from.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlaneConfig {
    /// xDS server. `XDS_ADDRESS`, default `https://istiod.istio-system.svc:15012`; a missing scheme means https. Empty
    /// if it is set to nothing: then there is none.
    pub xds_address: String,
    /// Further headers for it: every `XDS_HEADER_<NAME>`.
    #[serde(skip)]
    pub xds_headers: Vec<(String, String)>,
    /// A file of workloads, services and policies in the form of the dump. `LOCAL_XDS_PATH`; it comes before
    /// `LOCAL_XDS`.
    pub local_xds_path: Option<PathBuf>,
    /// The same as text. `LOCAL_XDS`.
    pub local_xds: Option<String>,
    /// Roots of the xDS server's certificate: PEM file, PEM text or `SYSTEM`. `XDS_ROOT_CA`.
    pub xds_root: PathBuf,
    /// A further name accepted in its certificate. `ALT_XDS_HOSTNAME`.
    pub xds_alt_hostname: Option<String>,
    /// Whether single addresses are asked for when somebody needs them, instead of all there are. `XDS_ON_DEMAND`,
    /// default false.
    pub on_demand: bool,
    /// Further headers for the certificate service: every `CA_HEADER_<NAME>`.
    #[serde(skip)]
    pub ca_headers: Vec<(String, String)>,
    /// Certificate service. `CA_ADDRESS`, default the xDS address.
    pub ca_address: String,
    /// Whether certificates come from a root in this process's memory, and not from the certificate service. Nobody outside
    /// knows that root: for trying out what happens on one node. `FAKE_CA`, default false.
    pub own_authority: bool,
    /// Roots of the certificate service's own certificate: PEM file, PEM text or `SYSTEM`. `CA_ROOT_CA`.
    pub ca_root: PathBuf,
    /// A further name accepted in its certificate. `ALT_CA_HOSTNAME`.
    pub ca_alt_hostname: Option<String>,
    /// Bearer token: a file, read anew for each call, or the token itself. `AUTH_TOKEN`, default
    /// `./var/run/secrets/tokens/istio-token`.
    #[serde(skip)]
    pub token_file: PathBuf,
    /// Lifetime asked for in certificates. `SECRET_TTL`, default 24 h.
    pub certificate_lifetime: Duration,
}

/// How traffic is captured.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaptureSection {
    /// Directory of a mounted bpffs; maps and links are pinned below it, in `aquifer/v3`. `AQUIFER_PIN_DIR`, default
    /// `/sys/fs/bpf`.
    pub pin_dir: PathBuf,
    /// cgroup v2 directory whose processes are looked at. `AQUIFER_CGROUP`, default the mounted hierarchy's root.
    pub cgroup: Option<PathBuf>,
    /// Sources whose inbound connections are not captured (kubelet probes). `AQUIFER_EXEMPT`, comma list of
    /// CIDRs, default Istio's probe addresses 169.254.7.127/32 and fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128; in
    /// dedicated mode also what comes from the next link, 169.254.0.0/16 and fe80::/10.
    pub exempt: Vec<IpNet>,
}

/// Where pods are announced.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSources {
    /// One JSON file per pod. `AQUIFER_POD_DIR`, default `/var/lib/aquifer/pods`.
    pub directory: PathBuf,
    /// Unix socket that takes `add` and `remove`. `AQUIFER_POD_SOCKET`, default `/run/aquifer/pods.sock`.
    pub socket: PathBuf,
    /// Istio's node agent (ZDS). `INPOD_UDS`; not used when unset.
    pub node_agent: Option<PathBuf>,
}

/// Tunnels and connections.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelSection {
    /// HTTP/2 window of a stream, in bytes (RFC 9113 §6.5.2). `HTTP2_STREAM_WINDOW_SIZE`, default 4 MiB.
    pub stream_window_bytes: NonZeroU32,
    /// HTTP/2 window of a connection, in bytes. `HTTP2_CONNECTION_WINDOW_SIZE`, default 16 MiB.
    pub connection_window_bytes: NonZeroU32,
    /// Largest frame announced, in bytes. `HTTP2_FRAME_SIZE`, default 1 MiB, at most 2^24 - 1.
    pub frame_bytes: NonZeroU32,
    /// Streams on one tunnel before another is dialed. `POOL_MAX_STREAMS_PER_CONNECTION`, default 100.
    pub streams_per_tunnel: NonZeroU32,
    /// An unused tunnel is closed after this long. `POOL_UNUSED_RELEASE_TIMEOUT`, default 5 min.
    pub idle_limit: Duration,
    /// Whether tunnels' answers describe the destination and requests' descriptions of the source are read, for
    /// telemetry. `ENABLE_RESPONSE_BAGGAGE`, default true.
    pub baggage: bool,
    /// Whether an application that wants a PROXY protocol header is dialed on the loopback address, and not at the
    /// pod's as the client. `LOCALHOST_APP_TUNNEL`, default true.
    pub announce_on_loopback: bool,
}

/// Where the daemon answers its operators.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenSection {
    /// Administration; loopback only. `AQUIFER_ADMIN_ADDRESS`, default 127.0.0.1:15000.
    pub admin: SocketAddr,
    /// Metrics. `AQUIFER_STATS_ADDRESS`, default 0.0.0.0:15020.
    pub stats: SocketAddr,
    /// Readiness. `AQUIFER_READINESS_ADDRESS`, default 0.0.0.0:15021.
    pub readiness: SocketAddr,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{name}={value}: {reason}")]
pub struct ConfigError {
    /// The environment variable.
    pub name: &'static str,
    /// What it says.
    pub value: String,
    /// Why that cannot be used.
    pub reason: String,
}

impl Config {
    /// Reads the settings.
    ///
    /// # Errors
    /// Every setting that cannot be used, not only the first.
    pub fn read(
        environment: &BTreeMap<String, String>,
        host_name: &str,
        cpus: NonZeroUsize,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut from = Reader { environment, errors: Vec::new() };
        let config = Self {
            mode: from.mode(),
            node: from.node(host_name),
            control_plane: from.control_plane(),
            identity: from.identity(),
            capture: from.capture(),
            pods: from.pods(),
            dns: from.dns(),
            tunnels: from.tunnels(),
            sockets: from.sockets(),
            limits: from.limits(),
            listen: from.listen(),
            threads: from.threads(cpus),
            policy_decisions_at_info: from.parsed("AUTHZ_POLICY_INFO_LOGGING", false),
            drain_limit: from.drain_limit(),
        };
        if !from.parsed("ENABLE_PROXY", true) {
            from.refuse("ENABLE_PROXY", false, "there is no daemon without its proxy");
        }
        if from.errors.is_empty() { Ok(config) } else { Err(from.errors) }
    }
}

struct Reader<'a> {
    environment: &'a BTreeMap<String, String>,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn node(&mut self, host_name: &str) -> NodeConfig {
        let name = self.text("NODE_NAME", host_name);
        let metadata = self.metadata();
        let cluster = self.text("CLUSTER_ID", "Kubernetes");
        NodeConfig {
            pod_name: self.text("POD_NAME", &format!("ztunnel-{name}")),
            pod_namespace: self.text("POD_NAMESPACE", "istio-system"),
            workload: self.own_workload(),
            root_namespace: self.text("AQUIFER_ROOT_NAMESPACE", "istio-system"),
            instance_ip: self.parsed("INSTANCE_IP", IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1))),
            network: self.text("NETWORK", ""),
            cluster: self.text("ISTIO_META_CLUSTER_ID", &cluster),
            trust_domain: self.text("TRUST_DOMAIN", "cluster.local"),
            istio_version: self.text("ISTIO_META_ISTIO_VERSION", "unknown"),
            metadata,
            name,
        }
    }

    fn control_plane(&mut self) -> ControlPlaneConfig {
        const ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
        const ISTIOD: &str = "https://istiod.istio-system.svc:15012";
        let is_disabled = self.environment.get("XDS_ADDRESS").is_some_and(String::is_empty);
        let server = self.url("XDS_ADDRESS", ISTIOD);
        ControlPlaneConfig {
            ca_address: self.url("CA_ADDRESS", &server),
            xds_address: if is_disabled { String::new() } else { server },
            xds_headers: self.prefixed("XDS_HEADER_"),
            ca_headers: self.prefixed("CA_HEADER_"),
            local_xds_path: self.optional("LOCAL_XDS_PATH").map(PathBuf::from),
            local_xds: self.optional("LOCAL_XDS"),
            on_demand: self.parsed("XDS_ON_DEMAND", false),
            xds_root: self.text("XDS_ROOT_CA", ROOT).into(),
            xds_alt_hostname: self.optional("ALT_XDS_HOSTNAME"),
            own_authority: self.parsed("FAKE_CA", false),
            ca_root: self.text("CA_ROOT_CA", ROOT).into(),
            ca_alt_hostname: self.optional("ALT_CA_HOSTNAME"),
            token_file: self.text("AUTH_TOKEN", "./var/run/secrets/tokens/istio-token").into(),
            certificate_lifetime: self.duration("SECRET_TTL", Duration::from_secs(86_400)),
        }
    }

    fn metadata(&mut self) -> BTreeMap<String, serde_json::Value> {
        let texts = self.prefixed("ISTIO_META_").into_iter();
        let mut metadata: BTreeMap<_, _> = texts.map(|(key, text)| (key, text.into())).collect();
        for (key, text) in self.prefixed("ISTIO_METAJSON_") {
            match serde_json::from_str(&text) {
                Ok(value) => drop(metadata.insert(key, value)),
                Err(error) => {
                    self.refuse("ISTIO_METAJSON_", format!("{key}={text}"), &error.to_string())
                }
            }
        }
        metadata
    }

    /// Every variable whose name begins so, by the rest of its name.
    fn prefixed(&self, prefix: &str) -> Vec<(String, String)> {
        let named = self.environment.iter();
        named
            .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone())))
            .filter(|(rest, _)| !rest.is_empty())
            .collect()
    }

    fn capture(&mut self) -> CaptureSection {
        const PROBES: &str = "169.254.7.127/32,fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128";
        const NEIGHBOURS: &str =
            "169.254.0.0/16,fe80::/10,fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128";
        let default = if self.is_dedicated() { NEIGHBOURS } else { PROBES };
        CaptureSection {
            exempt: self.list("AQUIFER_EXEMPT", default),
            pin_dir: self.text("AQUIFER_PIN_DIR", "/sys/fs/bpf").into(),
            cgroup: self.optional("AQUIFER_CGROUP").map(PathBuf::from),
        }
    }

    fn pods(&mut self) -> PodSources {
        PodSources {
            directory: self.text("AQUIFER_POD_DIR", "/var/lib/aquifer/pods").into(),
            socket: self.text("AQUIFER_POD_SOCKET", "/run/aquifer/pods.sock").into(),
            node_agent: self.optional("INPOD_UDS").map(PathBuf::from),
        }
    }

    fn dns(&mut self) -> DnsSection {
        let address = self.text("DNS_PROXY_ADDR", "localhost:15053");
        let port = address.rsplit_once(':').map_or("", |(_, port)| port).parse::<NonZeroU16>();
        let port = self.check("DNS_PROXY_ADDR", &address, port);
        DnsSection {
            capture: self.text("ISTIO_META_DNS_CAPTURE", "true") == "true",
            port: port.map_or(0, NonZeroU16::get),
            cluster_domain: self
                .text("CLUSTER_DOMAIN", "cluster.local")
                .trim_matches('.')
                .to_ascii_lowercase(),
            preferred_namespace: self.optional("PREFERED_SERVICE_NAMESPACE"),
            ipv6: self.parsed("IPV6_ENABLED", true),
            time_to_live: self.duration("AQUIFER_DNS_TTL", Duration::from_secs(30)),
        }
    }

    fn tunnels(&mut self) -> TunnelSection {
        let mib = |n: u32| NonZeroU32::new(n << 20).expect("n is a positive literal");
        let window_limit = (1 << 31) - 1;
        TunnelSection {
            stream_window_bytes: self.bounded("HTTP2_STREAM_WINDOW_SIZE", mib(4), window_limit),
            connection_window_bytes: self.bounded(
                "HTTP2_CONNECTION_WINDOW_SIZE",
                mib(16),
                window_limit,
            ),
            frame_bytes: self.bounded("HTTP2_FRAME_SIZE", mib(1), (1 << 24) - 1),
            streams_per_tunnel: self.bounded(
                "POOL_MAX_STREAMS_PER_CONNECTION",
                NonZeroU32::new(100).expect("100 is not 0"),
                window_limit,
            ),
            idle_limit: self.duration("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300)),
            baggage: self.parsed("ENABLE_RESPONSE_BAGGAGE", true),
            announce_on_loopback: self.parsed("LOCALHOST_APP_TUNNEL", true),
        }
    }

    fn listen(&mut self) -> ListenSection {
        let admin = self.parsed("AQUIFER_ADMIN_ADDRESS", SocketAddr::from(([127, 0, 0, 1], 15000)));
        if !admin.ip().is_loopback() {
            self.refuse("AQUIFER_ADMIN_ADDRESS", admin, "administration listens on loopback only");
        }
        ListenSection {
            admin,
            stats: self.parsed("AQUIFER_STATS_ADDRESS", SocketAddr::from(([0, 0, 0, 0], 15020))),
            readiness: self
                .parsed("AQUIFER_READINESS_ADDRESS", SocketAddr::from(([0, 0, 0, 0], 15021))),
        }
    }

    /// A number, a share of the CPUs rounded up, or 0 for all of them.
    fn threads(&mut self, cpus: NonZeroUsize) -> NonZeroUsize {
        const NAME: &str = "ZTUNNEL_WORKER_THREADS";
        let Some(value) = self.optional(NAME) else {
            let limit = self.parsed("ZTUNNEL_CPU_LIMIT", 0);
            let limit = self.parsed("ZTUNNEL_RESOURCE_CPU_LIMIT", limit);
            let quota: usize = match limit {
                0 => 0,
                limit => limit.max(self.parsed("ZTUNNEL_RESOURCE_CPU_REQUEST", 0)),
            };
            return NonZeroUsize::new(quota).map_or(cpus, |quota| quota.min(cpus));
        };
        let number = match value.strip_suffix('%') {
            Some(percent) => percent
                .parse::<usize>()
                .ok()
                .filter(|percent| (1..=100).contains(percent))
                .map(|percent| (cpus.get() * percent).div_ceil(100))
                .ok_or("a share of the CPUs is from 1% to 100%".to_owned()),
            None => value.parse().map_err(|error: std::num::ParseIntError| error.to_string()),
        };
        let number = self.check(NAME, &value, number).unwrap_or_default();
        NonZeroUsize::new(number).unwrap_or(cpus)
    }

    /// What the grace period leaves after five seconds for the shutdown itself, as Istio's ztunnel reckons.
    fn drain_limit(&mut self) -> Duration {
        const UNSET: u64 = 0;
        let seconds = match self.parsed("TERMINATION_GRACE_PERIOD_SECONDS", UNSET) {
            UNSET => 5,
            grace @ 1..=10 => (grace - 1).max(1),
            grace => grace - 5,
        };
        self.duration("CONNECTION_TERMINATION_DEADLINE", Duration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests;
