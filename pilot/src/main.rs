//! `pilot`: serves a folder of manifests, or those of an API server, to the mesh; or checks a folder.

#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, HashSet},
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::SystemTime,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh::identity::Spiffe;
use mesh::telemetry::{LogConfig, LogFormat, Metrics, record_build, start_log};
use pilot::{
    analysis::{Severity, analyze, with_problems},
    ca::{CertificateAuthority, RotationStep, revoke, rotate},
    compile::MeshConfig,
    crds, deploy,
    manifests::{self, Folder},
    offline::{self, Audience, Type},
    serve::{self, ManifestSource, NodeTokens, ServeConfig},
    settings::Mesh,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// The control plane: manifests in, configuration and certificates out.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves a folder of manifests or those of an API server, and again what changes in them.
    Serve(Box<Serve>),
    /// Checks a folder of manifests and lists everything that is wrong with it.
    Validate {
        /// The folder.
        folder: PathBuf,
        #[command(flatten)]
        mesh: Mesh,
    },
    /// Prints what a client would be sent for a folder of manifests: JSON by resource name, as protobuf's mapping has it.
    Compile {
        /// The folder, with pods, nodes and statuses as an API server would hold them.
        folder: PathBuf,
        /// `ztunnel`, or `waypoint/NAMESPACE/NAME` of a Gateway.
        #[arg(long = "for", value_name = "CLIENT")]
        audience: Audience,
        /// Resources of this type only; without it, those of each type the client takes, by type.
        #[arg(long = "type", value_name = "TYPE")]
        of: Option<TypeName>,
        #[command(flatten)]
        mesh: Mesh,
    },
    /// Prints the definitions of Istio's kinds, for `kubectl apply --server-side -f -`.
    Crds,
    /// Prints the token by which a node proves who it is, and makes it if there is none.
    NodeToken {
        /// The node's name, as in spec.nodeName of its pods.
        node: String,
        /// The folder of the root's key and the nodes' tokens.
        #[arg(long)]
        data: PathBuf,
    },
    /// Takes certificates back: writes the list that nodes are to be given (CRL_PATH), and prints where it is.
    Revoke {
        /// A serial number as /config_dump shows it, or in hexadecimal after 0x.
        #[arg(long = "serial")]
        serials: Vec<String>,
        /// A name, such as spiffe://cluster.local/ns/shop/sa/web: all certificates issued for it that are still valid.
        #[arg(long = "identity")]
        identities: Vec<Spiffe>,
        /// The folder of the root's key and the nodes' tokens.
        #[arg(long)]
        data: PathBuf,
        /// The folder of an authority that others have made, as `serve` has it.
        #[arg(long)]
        cacerts: Option<PathBuf>,
    },
    /// Replaces the root while the mesh runs: `begin` trusts a new one, `switch` signs with it, `finish` trusts the old
    /// one no more. Between two steps, wait until every node has renewed its certificates.
    RotateRoot {
        /// The step.
        step: Step,
        /// The folder of the root's key and the nodes' tokens.
        #[arg(long)]
        data: PathBuf,
        /// Subject of a new certificate.
        #[arg(long, default_value = "cluster.local")]
        trust_domain: String,
    },
    /// Prints the certificate by which pilot and the mesh's workloads are known, and makes it if there is none.
    RootCert {
        /// The folder of the root's key and the nodes' tokens.
        #[arg(long)]
        data: PathBuf,
        /// Subject of a new certificate.
        #[arg(long, default_value = "cluster.local")]
        trust_domain: String,
    },
}

/// A type of resource.
#[derive(Clone, Copy, ValueEnum)]
enum TypeName {
    Address,
    Authorization,
    Listener,
    Cluster,
    Endpoint,
    Route,
    Extension,
}

impl TypeName {
    fn is(self) -> Type {
        match self {
            Self::Address => Type::Address,
            Self::Authorization => Type::Authorization,
            Self::Listener => Type::Listener,
            Self::Cluster => Type::Cluster,
            Self::Endpoint => Type::Endpoint,
            Self::Route => Type::Route,
            Self::Extension => Type::Extension,
        }
    }
}

/// A step of the root's replacement.
#[derive(Clone, Copy, ValueEnum)]
enum Step {
    Begin,
    Switch,
    Finish,
}

#[derive(Args)]
struct Serve {
    /// The folder of manifests, read with all folders below it.
    #[arg(long, required_unless_present = "kubernetes", conflicts_with = "kubernetes")]
    folder: Option<PathBuf>,
    /// Takes manifests from an API server in place of a folder.
    #[arg(long)]
    kubernetes: bool,
    /// How to reach the API server; else $KUBECONFIG or the pod's service account says.
    #[arg(long, requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// Runs the waypoints that Gateways ask for, with this image: Deployment, Service and ServiceAccount of each are applied.
    /// Without it somebody else runs them.
    #[arg(long, env = "AQUIFER_WAYPOINT_IMAGE", requires = "kubernetes")]
    waypoint_image: Option<String>,
    /// Where those waypoints find pilot: host and port.
    #[arg(long, default_value = "istiod.istio-system.svc:15012")]
    waypoint_ca_address: String,
    /// The annotation `istio.io/rev` of those waypoints.
    #[arg(long, env = "REVISION", default_value = "default")]
    revision: String,
    /// The folder of the root's key and the nodes' tokens.
    #[arg(long)]
    data: PathBuf,
    /// A folder with ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem, as Istio's Secret `cacerts` has them: signs
    /// in place of a root of our own. Without it they may be in the folder of --data.
    #[arg(long)]
    cacerts: Option<PathBuf>,
    /// Where nodes connect: discovery and certificates over TLS.
    #[arg(long, default_value = "[::]:15012")]
    listen_tls: SocketAddr,
    /// Where processes of this machine connect without TLS.
    #[arg(long, default_value = "127.0.0.1:15010")]
    listen_plain: SocketAddr,
    /// Where /metrics, /ready and the pages below /debug are.
    #[arg(long, default_value = "127.0.0.1:15014")]
    listen_debug: SocketAddr,
    /// Where an API server asks whether an object may be stored (/validate), with --kubernetes.
    #[arg(long, default_value = "[::]:15017")]
    listen_webhook: SocketAddr,
    /// Service accounts of node daemons, as namespace/name: they get certificates in the names of their node's pods.
    /// Without any, `ztunnel` of the root namespace.
    #[arg(long = "node-account", env = "CA_TRUSTED_NODE_ACCOUNTS", value_delimiter = ',')]
    node_accounts: Vec<String>,
    /// A DNS name or address by which nodes reach pilot, besides the usual ones.
    #[arg(long = "san")]
    sans: Vec<String>,
    #[command(flatten)]
    mesh: Mesh,
    /// Which messages are logged, such as `info,pilot=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,
    /// `json`, or anything else for plain lines.
    #[arg(long, env = "LOG_FORMAT", default_value = "plain")]
    log_format: String,
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Serve(arguments) => serve(*arguments)?,
        Command::Validate { folder, mesh } => return validate(folder, &mesh.into()),
        Command::Compile { folder, audience, of, mesh } => {
            return print_compiled(folder, &audience, of, mesh.into());
        }
        Command::Crds => {
            for definition in crds::all() {
                print!("---\n{}", serde_yaml_ng::to_string(&definition)?);
            }
        }
        Command::NodeToken { node, data } => println!("{}", NodeTokens::new(&data).issue(&node)?),
        Command::Revoke { serials, identities, data, cacerts } => {
            let done = revoke(&data, cacerts.as_deref(), &serials, &identities, SystemTime::now())?;
            println!("{} more revoked: {}", done.added, done.list.display());
        }
        Command::RotateRoot { step, data, trust_domain } => {
            let step = match step {
                Step::Begin => RotationStep::Begin,
                Step::Switch => RotationStep::Switch,
                Step::Finish => RotationStep::Finish,
            };
            rotate(&data, step, &trust_domain, SystemTime::now())?;
        }
        Command::RootCert { data, trust_domain } => {
            print!("{}", CertificateAuthority::open(&data, &trust_domain)?.root_pem());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn validate(folder: PathBuf, base: &MeshConfig) -> anyhow::Result<ExitCode> {
    let mut folder = Folder::new(folder);
    folder.refresh(&HashSet::new())?;
    let (manifests, mut problems) = folder.load(&base.root_namespace);
    let (config, of_config) = base.with_settings_of(&manifests);
    problems.extend(of_config);
    let findings = with_problems(analyze(&manifests, &config), &problems);
    for finding in &findings {
        println!("{finding}");
    }
    let count = |severity| findings.iter().filter(|one| one.code.severity() == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    println!(
        "{} pods, {} services, {} authorization policies, {} peer authentications: {errors} errors, {warnings} warnings",
        manifests.pods.len(),
        manifests.services.len(),
        manifests.authorization_policies.len(),
        manifests.peer_authentications.len(),
    );
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is wrong with the folder goes to standard error, and what of it can be compiled is.
fn print_compiled(
    folder: PathBuf,
    audience: &Audience,
    of: Option<TypeName>,
    base: MeshConfig,
) -> anyhow::Result<ExitCode> {
    let mut folder = Folder::new(folder);
    folder.refresh(&HashSet::new())?;
    let (manifests, mut problems) = folder.load(&base.root_namespace);
    let (config, of_config) = base.with_settings_of(&manifests);
    problems.extend(of_config);
    for problem in &problems {
        eprintln!("{problem}");
    }
    let mut all = offline::resources(&manifests, &config, audience)?;
    let mut out = io::stdout().lock();
    match of {
        Some(of) => serde_json::to_writer_pretty(
            &mut out,
            &all.remove(&of.is()).with_context(|| format!("{audience} takes no such type"))?,
        )?,
        None => {
            let by_type: BTreeMap<_, _> =
                all.iter().map(|(of, resources)| (of.name(), resources)).collect();
            serde_json::to_writer_pretty(&mut out, &by_type)?;
        }
    }
    writeln!(out)?;
    let is_good = problems.iter().all(|problem| problem.severity != manifests::Severity::Error);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[tokio::main]
async fn serve(arguments: Serve) -> anyhow::Result<()> {
    let format = if arguments.log_format == "json" { LogFormat::Json } else { LogFormat::Plain };
    let log = start_log(&LogConfig { format, filter: arguments.log })?;
    let metrics = Metrics::install()?;
    record_build("pilot", env!("CARGO_PKG_VERSION"));
    let config = ServeConfig {
        manifests: match arguments.folder {
            Some(folder) => ManifestSource::Folder(folder),
            None => ManifestSource::Kubernetes {
                kubeconfig: arguments.kubeconfig,
                waypoints: arguments.waypoint_image.map(|image| deploy::Settings {
                    image,
                    ca_address: arguments.waypoint_ca_address,
                    revision: arguments.revision,
                }),
            },
        },
        data: arguments.data,
        cacerts: arguments.cacerts,
        listen_tls: arguments.listen_tls,
        listen_plain: arguments.listen_plain,
        listen_debug: arguments.listen_debug,
        listen_webhook: arguments.listen_webhook,
        node_accounts: match arguments.node_accounts {
            none if none.is_empty() => vec![format!("{}/ztunnel", arguments.mesh.root_namespace)],
            some => some,
        },
        names: arguments.sans,
        mesh: arguments.mesh.into(),
    };
    let stop = CancellationToken::new();
    stop_on_signal(stop.clone())?;
    let served = serve::run(config, metrics, stop).await;
    log.flush();
    Ok(served?)
}

fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM: stopping"),
            _ = interrupt.recv() => info!("SIGINT: stopping"),
        }
        stop.cancel();
    });
    Ok(())
}
