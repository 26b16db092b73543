//! A running pilot, and a daemon that listens to it.

use std::{
    collections::{BTreeSet, HashMap},
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

/// Far more than anything here takes, on a machine that does much else.
const LONG: Duration = Duration::from_secs(60);

/// Ended when dropped.
pub(crate) struct Pilot {
    process: Child,
    data: tempfile::TempDir,
    /// By what is served there: `tls`, `plain`, `debug`, `webhook`.
    addresses: HashMap<String, String>,
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Pilot {
    pub(crate) fn start(kubeconfig: &Path) -> Self {
        Self::start_with(kubeconfig, &[])
    }

    pub(crate) fn start_with(kubeconfig: &Path, arguments: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_pilot"))
            .args(["serve", "--listen-tls", "127.0.0.1:0", "--listen-plain", "127.0.0.1:0"])
            .args(["--listen-debug", "127.0.0.1:0", "--log", "info", "--kubernetes"])
            .args(["--listen-webhook", "127.0.0.1:0"])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--data")
            .arg(data.path())
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut addresses = HashMap::new();
        while addresses.len() < 4 {
            let line = lines.next().expect("pilot says where it listens").unwrap();
            let value = |key: &str| {
                let (_, rest) = line.split_once(key)?;
                Some(rest.split(['"', '\t', ' ']).find(|word| !word.is_empty())?.to_owned())
            };
            if let (Some(what), Some(address)) = (value("what="), value("address=")) {
                addresses.insert(what, address);
            }
        }
        // A pipe that nobody empties would stop pilot.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| println!("{line}")));
        Self { process, data, addresses }
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.process.wait().unwrap().success());
    }

    pub(crate) fn address(&self, what: &str) -> &str {
        &self.addresses[what]
    }

    /// By which it is known.
    pub(crate) fn root(&self) -> String {
        std::fs::read_to_string(self.data.path().join("root-cert.pem")).unwrap()
    }

    pub(crate) async fn debug(&self, path: &str) -> String {
        let mut tcp = TcpStream::connect(&self.addresses["debug"]).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: pilot\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Asks until the answer has `text`: the page tells nobody that it has changed.
    pub(crate) async fn debug_has(&self, path: &str, text: &str) -> String {
        let begun = Instant::now();
        loop {
            let answer = self.debug(path).await;
            if answer.contains(text) {
                return answer;
            }
            assert!(begun.elapsed() < LONG, "{path} has no {text}: {answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A daemon's stream, and the names of the resources that it holds.
pub(crate) struct Daemon {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    pub(crate) held: BTreeSet<String>,
}

impl Daemon {
    pub(crate) async fn connect(pilot: &Pilot) -> Self {
        let address = format!("http://{}", pilot.addresses["plain"]);
        let mut client = AggregatedDiscoveryServiceClient::connect(address).await.unwrap();
        let (requests, outgoing) = mpsc::channel(16);
        for type_url in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
            let type_url = type_url.into();
            let first = DeltaDiscoveryRequest { type_url, ..DeltaDiscoveryRequest::default() };
            requests.send(first).await.unwrap();
        }
        let call = Request::new(ReceiverStream::new(outgoing));
        let responses = client.delta_aggregated_resources(call).await.unwrap().into_inner();
        Self { requests, responses, held: BTreeSet::new() }
    }

    /// Takes what comes until it holds what is wanted.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&BTreeSet<String>) -> bool) {
        while !wanted(&self.held) {
            let response = tokio::time::timeout(LONG, self.responses.message()).await;
            let held = &self.held;
            let response = response.unwrap_or_else(|_| panic!("in time, holding {held:?}"));
            let response = response.unwrap().expect("a response");
            self.held.extend(response.resources.into_iter().map(|one| one.name));
            for name in response.removed_resources {
                self.held.remove(&name);
            }
            let answer = DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..DeltaDiscoveryRequest::default()
            };
            self.requests.send(answer).await.unwrap();
        }
    }
}
