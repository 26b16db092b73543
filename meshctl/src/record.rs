//! Subscribes as a client of a control plane would, and writes down what it is sent.
//!
//! In: the server, and as whom. Out: the files that [`crate::replay`] plays, so normalised that two recordings of one state
//! are equal. It acknowledges everything and looks at nothing it does not need for the next subscription.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use mesh::xds::{Roots, ServerConfig, TlsVersions, Token};
use pilot::proto_json;
use proto::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    envoy::envoy::config::core::v3::Node,
    google::{Any, Struct, Value, value::Kind},
};
use serde_json::Value as Json;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use crate::recording::{Recording, TYPES, word};

/// What a ztunnel takes, too.
const LARGEST_RESPONSE: usize = 200 << 20;

/// What to record.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder for the files; it is made if it is not there.
    folder: PathBuf,
    /// The server, such as `https://istiod.istio-system.svc:15012`.
    #[arg(long)]
    from: String,
    /// As whom: `ztunnel/NODE` or `waypoint/NAMESPACE/NAME`.
    #[arg(long = "as")]
    client: Client,
    /// What the files are called. By default `ztunnel`, or the waypoint's name.
    #[arg(long)]
    name: Option<String>,
    /// The client's address, by which the server may know it.
    #[arg(long, default_value = "1.1.1.1")]
    ip: IpAddr,
    /// The client's pod. By default `ztunnel-NODE`, or the waypoint's name.
    #[arg(long)]
    pod: Option<String>,
    /// Roots of the server's certificate: a PEM file, or `SYSTEM`.
    #[arg(long, default_value = "./var/run/secrets/istio/root-cert.pem")]
    root: String,
    /// Bearer token (file).
    #[arg(long)]
    token: Option<PathBuf>,
    /// A name that the server's certificate may bear in the place of the address's.
    #[arg(long)]
    server_name: Option<String>,
    /// Cluster of the client.
    #[arg(long, default_value = "Kubernetes")]
    cluster: String,
    /// Network of the client.
    #[arg(long, default_value = "")]
    network: String,
    /// End when nothing has come for so many seconds; by default on Ctrl-C.
    #[arg(long, value_parser = seconds)]
    quiet: Option<Duration>,
}

/// A client of the control plane.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Client {
    Ztunnel { node: String },
    Waypoint { namespace: String, name: String },
}

impl FromStr for Client {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            ["ztunnel", node] if !node.is_empty() => Ok(Self::Ztunnel { node: (*node).into() }),
            ["waypoint", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::Waypoint { namespace: (*namespace).into(), name: (*name).into() })
            }
            _ => Err("expected ztunnel/NODE or waypoint/NAMESPACE/NAME"),
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    let seconds: f64 = number.parse().map_err(|_| "expected seconds, such as 2s".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Records until nothing comes, or until it is interrupted.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut recorder = Recorder::new(arguments.client.types());
    let interrupted = tokio::signal::ctrl_c();
    tokio::select! {
        followed = follow(arguments, &mut recorder) => followed?,
        waited = interrupted => waited.context("waiting for Ctrl-C")?,
    }
    let Recorder { mut recording, .. } = recorder;
    recording.normalise();
    fs::create_dir_all(&arguments.folder)
        .with_context(|| format!("making {}", arguments.folder.display()))?;
    let name = arguments.name.clone().unwrap_or_else(|| arguments.client.recording());
    recording.write(&arguments.folder, &name)?;
    for (url, responses) in &recording.responses {
        let (word, resources) = (word(url), recording.resources(url).len());
        println!("{word}: {resources} resources in {} responses", responses.len());
    }
    Ok(ExitCode::SUCCESS)
}

async fn follow(arguments: &Arguments, recorder: &mut Recorder) -> Result<()> {
    let (requests, mut responses) = open(arguments).await?;
    let mut node = Some(arguments.node());
    for mut request in recorder.begin() {
        request.node = node.take();
        requests.send(request).await.context("the server has closed the stream")?;
    }
    loop {
        let next = responses.message();
        let response = match arguments.quiet {
            None => next.await,
            Some(limit) => match timeout(limit, next).await {
                Ok(next) => next,
                Err(_) => return Ok(()),
            },
        };
        let Some(response) = response.context("reading the stream")? else {
            bail!("the server has closed the stream");
        };
        for request in recorder.take(response)? {
            requests.send(request).await.context("the server has closed the stream")?;
        }
    }
}

async fn open(
    arguments: &Arguments,
) -> Result<(mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>)> {
    let server = ServerConfig {
        address: arguments.from.clone(),
        roots: Roots::from_setting(&arguments.root),
        versions: TlsVersions::Only13,
        further_name: arguments.server_name.clone(),
        token: arguments.token.clone().map(Token::File),
        cluster_id: arguments.cluster.clone(),
        headers: Vec::new(),
    };
    let channel = server.endpoint()?.connect().await;
    let channel = channel.with_context(|| format!("connecting to {}", arguments.from))?;
    // More than the requests of one step wait only while the server does not read.
    let (requests, waiting) = mpsc::channel(TYPES.len());
    let mut call = Request::new(ReceiverStream::new(waiting));
    for (name, value) in server.headers()? {
        call.metadata_mut().insert(name, value);
    }
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(LARGEST_RESPONSE);
    let responses = client.delta_aggregated_resources(call).await.context("opening the stream")?;
    Ok((requests, responses.into_inner()))
}

impl Client {
    /// What the files are called.
    fn recording(&self) -> String {
        match self {
            Self::Ztunnel { .. } => "ztunnel".to_owned(),
            Self::Waypoint { name, .. } => name.clone(),
        }
    }

    /// The types that such a client subscribes to.
    fn types(&self) -> &'static [&'static str] {
        match self {
            Self::Ztunnel { .. } => &["address", "authorization"],
            Self::Waypoint { .. } => &["cds", "eds", "lds", "ecds", "nds", "workload"],
        }
    }
}

impl Arguments {
    /// Who asks, as such a client says it.
    fn node(&self) -> Node {
        let mut metadata = BTreeMap::from([
            ("CLUSTER_ID", text(&self.cluster)),
            ("INSTANCE_IPS", text(&self.ip.to_string())),
        ]);
        if !self.network.is_empty() {
            metadata.insert("NETWORK", text(&self.network));
        }
        let (kind, pod, namespace) = match &self.client {
            Client::Ztunnel { node } => {
                metadata.insert("NODE_NAME", text(node));
                ("ztunnel", format!("ztunnel-{node}"), "istio-system".to_owned())
            }
            Client::Waypoint { namespace, name } => {
                let labels = [
                    ("gateway.networking.k8s.io/gateway-name", text(name)),
                    ("gateway.istio.io/managed", text("istio.io-mesh-controller")),
                ];
                metadata.insert("LABELS", object(labels));
                metadata.insert("SERVICE_ACCOUNT", text(name));
                metadata.insert("WORKLOAD_NAME", text(name));
                ("waypoint", name.clone(), namespace.clone())
            }
        };
        let pod = self.pod.clone().unwrap_or(pod);
        metadata.insert("NAME", text(&pod));
        metadata.insert("NAMESPACE", text(&namespace));
        let fields = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Node {
            id: format!("{kind}~{}~{pod}.{namespace}~{namespace}.svc.cluster.local", self.ip),
            metadata: Some(Struct { fields }),
            ..Node::default()
        }
    }
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}

/// What was sent so far, and what to say next. Does no I/O.
struct Recorder {
    types: &'static [&'static str],
    recording: Recording,
    /// By type URL, the names subscribed to where a type wants names.
    named: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Recorder {
    fn new(types: &'static [&'static str]) -> Self {
        Self { types, recording: Recording::default(), named: BTreeMap::new() }
    }

    /// The first requests: to everything, of each type that can be asked for so.
    fn begin(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for word in self.types {
            let url = url(word);
            let is_named = matches!(*word, "eds" | "ecds");
            // Recorders of ECDS leave no file where no listener refers to one.
            if *word != "ecds" {
                self.recording.responses.entry(url.to_owned()).or_default();
            }
            if is_named {
                self.named.insert(url, BTreeSet::new());
            } else {
                requests
                    .push(DeltaDiscoveryRequest { type_url: url.to_owned(), ..Default::default() });
            }
        }
        requests
    }

    /// A response came: its acknowledgement, and the subscription to what it refers to.
    fn take(&mut self, response: DeltaDiscoveryResponse) -> Result<Vec<DeltaDiscoveryRequest>> {
        let url = response.type_url.clone();
        ensure!(TYPES.iter().any(|(_, known)| *known == url), "the server sent a {url} unasked");
        let mut requests = vec![DeltaDiscoveryRequest {
            type_url: url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        }];
        let wanted = references(&url, &response.resources)?;
        self.recording.responses.entry(url).or_default().push(response);
        if let Some((type_url, names)) = wanted
            && let Some(held) = self.named.get_mut(type_url)
        {
            let new: Vec<String> = names.difference(held).cloned().collect();
            held.extend(new.iter().cloned());
            if !new.is_empty() {
                let type_url = type_url.to_owned();
                let resource_names_subscribe = new;
                requests.push(DeltaDiscoveryRequest {
                    type_url,
                    resource_names_subscribe,
                    ..Default::default()
                });
            }
        }
        Ok(requests)
    }
}

fn url(wanted: &str) -> &'static str {
    let of_word = TYPES.iter().find(|(word, _)| *word == wanted);
    of_word.map(|(_, url)| *url).expect("words are those of TYPES")
}

/// The resources of another type that these refer to by name: endpoints of clusters, configurations of filters.
fn references(
    type_url: &str,
    resources: &[Resource],
) -> Result<Option<(&'static str, BTreeSet<String>)>> {
    let mut names = BTreeSet::new();
    let wanted = match word(type_url) {
        "cds" => "eds",
        "lds" => "ecds",
        _ => return Ok(None),
    };
    for resource in resources {
        let any = resource.resource.as_ref();
        let any = any.with_context(|| format!("{} carries no resource", resource.name))?;
        let json =
            proto_json::from_any(&Any { type_url: any.type_url.clone(), value: any.value.clone() })
                .with_context(|| resource.name.clone())?;
        match wanted {
            "eds" if json["type"] == "EDS" => {
                let service = json["eds_cluster_config"]["service_name"].as_str();
                names.insert(service.unwrap_or(&resource.name).to_owned());
            }
            "ecds" => discovered(&json, &mut names),
            _ => {}
        }
    }
    Ok(Some((url(wanted), names)))
}

/// The names of what is configured elsewhere: wherever `config_discovery` stands beside a name.
fn discovered(json: &Json, names: &mut BTreeSet<String>) {
    match json {
        Json::Object(fields) => {
            if let (Some(_), Some(Json::String(name))) =
                (fields.get("config_discovery"), fields.get("name"))
            {
                names.insert(name.clone());
            }
            fields.values().for_each(|value| discovered(value, names));
        }
        Json::Array(values) => values.iter().for_each(|value| discovered(value, names)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}
