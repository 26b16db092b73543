//! Plays what a control plane was recorded to send, to whoever subscribes.
//!
//! In: a folder of recordings and a listener. Out: the responses, by type URL; on the standard output what clients ask
//! for, acknowledge and reject. A changed folder is read again, and what changed in it sent.

mod player;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Identity, Server, ServerTlsConfig},
};

use crate::recording::{Recording, Recordings, Source};
use player::{Event, Player};

/// A changed file is noticed within this time.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How to play.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the recordings.
    folder: PathBuf,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:15010")]
    listen: SocketAddr,
    /// The recording for every client, by the first part of its files' names. By default a ztunnel gets `ztunnel`, and a
    /// waypoint that of its Gateway's name.
    #[arg(long)]
    client: Option<String>,
    /// Play the log (`*.churn.json`) response by response, not the resources.
    #[arg(long)]
    churn: bool,
    /// End when a client has answered everything: with 0 if it rejected nothing, else with 1.
    #[arg(long)]
    until_acked: bool,
    /// Certificate chain (PEM file), for TLS.
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM file).
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

/// How a client came out.
enum Verdict {
    /// It has answered everything.
    Done,
    /// It has rejected something.
    Rejected,
}

/// Serves until it is interrupted, or until a client is done if that is asked for.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (changes, recordings) = watch::channel(Arc::new(arguments.read()?));
    let mut server = Server::builder();
    if let (Some(certificate), Some(key)) = (&arguments.tls_cert, &arguments.tls_key) {
        let identity = Identity::from_pem(pem(certificate)?, pem(key)?);
        server = server
            .tls_config(ServerTlsConfig::new().identity(identity))
            .context("preparing TLS")?;
    }
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("listening on {}", arguments.listen))?;
    println!("listening on {}", listener.local_addr()?);
    // A full channel holds up the stream that has something to tell.
    let (verdicts, mut told) = mpsc::channel(1);
    let service = AggregatedDiscoveryServiceServer::new(Replay { recordings, verdicts });
    let serving = server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
    let verdict = async {
        let mut code = ExitCode::SUCCESS;
        while let Some(verdict) = told.recv().await {
            match verdict {
                Verdict::Rejected => code = ExitCode::FAILURE,
                Verdict::Done if arguments.until_acked => break,
                Verdict::Done => {}
            }
        }
        code
    };
    tokio::select! {
        served = serving => served.context("serving").map(|()| ExitCode::SUCCESS),
        code = verdict => Ok(code),
        () = follow(arguments, changes) => Ok(ExitCode::SUCCESS),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("waiting for Ctrl-C").map(|()| ExitCode::SUCCESS),
    }
}

impl Arguments {
    fn read(&self) -> Result<Recordings> {
        let source = if self.churn { Source::Churn } else { Source::Resources };
        let recordings = Recordings::read(&self.folder, source)?;
        match &self.client {
            Some(client) => recordings.only(client),
            None => Ok(recordings),
        }
    }
}

fn pem(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Reads the folder again whenever a file in it changed. What cannot be read is told, and what was read before stays.
async fn follow(arguments: &Arguments, changes: watch::Sender<Arc<Recordings>>) {
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = state(&arguments.folder);
    loop {
        look.tick().await;
        let found = state(&arguments.folder);
        if found == seen {
            continue;
        }
        seen = found;
        match arguments.read() {
            Ok(recordings) => {
                changes.send_if_modified(|held| {
                    let changed = **held != recordings;
                    *held = Arc::new(recordings);
                    changed
                });
            }
            Err(error) => eprintln!("meshctl: {error:#}; what was read before stays"),
        }
    }
}

/// Name, time and size of the files of a folder.
fn state(folder: &Path) -> Vec<(PathBuf, Option<SystemTime>, u64)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((entry.path(), metadata.modified().ok(), metadata.len()))
        })
        .collect();
    files.sort();
    files
}

struct Replay {
    recordings: watch::Receiver<Arc<Recordings>>,
    verdicts: mpsc::Sender<Verdict>,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Replay {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only delta discovery is played"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        // One response waits here while HTTP/2 sends the one before: the stream's task waits for room.
        let (responses, receiver) = mpsc::channel(1);
        let (recordings, verdicts) = (self.recordings.clone(), self.verdicts.clone());
        tokio::spawn(async move {
            let played = play(recordings, verdicts, request.into_inner(), &responses).await;
            if let Err(status) = played {
                println!("a stream ended: {}", status.message());
                // Nobody is there to be told if this fails.
                responses.try_send(Err(status)).ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

type Outgoing = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

/// Plays to one client until it goes.
async fn play(
    mut recordings: watch::Receiver<Arc<Recordings>>,
    verdicts: mpsc::Sender<Verdict>,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    responses: &Outgoing,
) -> Result<(), Status> {
    let Some(first) = requests.message().await? else { return Ok(()) };
    let id = first.node.as_ref().map(|node| node.id.clone()).unwrap_or_default();
    let mut player = Player::new(recording(&mut recordings, &id)?);
    let mut request = Some(first);
    loop {
        let sent = match request.take() {
            Some(request) => {
                let (sent, events) = player.request(request);
                for event in &events {
                    println!("{id}: {event}");
                }
                let is_rejected = |event: &Event| matches!(event, Event::Rejected { .. });
                if events.iter().any(is_rejected) {
                    // The receiver lives as long as the process.
                    verdicts.send(Verdict::Rejected).await.ok();
                }
                sent
            }
            None => player.replace(recording(&mut recordings, &id)?),
        };
        for response in sent {
            if responses.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
        if player.is_done() {
            verdicts.send(Verdict::Done).await.ok();
        }
        tokio::select! {
            next = requests.message() => match next? {
                Some(next) => request = Some(next),
                None => return Ok(()),
            },
            changed = recordings.changed() => if changed.is_err() {
                return Ok(());
            },
        }
    }
}

fn recording(
    recordings: &mut watch::Receiver<Arc<Recordings>>,
    id: &str,
) -> Result<Arc<Recording>, Status> {
    let recordings = recordings.borrow_and_update();
    let found = recordings.of(id).map(|(_, recording)| Arc::new(recording.clone()));
    found.ok_or_else(|| Status::not_found(format!("there is no recording for `{id}`")))
}
