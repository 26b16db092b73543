//! The binary on a folder: what a daemon gets from it, and when.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mesh::identity::{
    CaClient, CaError, CertificateSource, Identities, IdentityConfig, Roots, ServerConfig, Spiffe,
    TlsVersions, Token,
};
use proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig},
};

const PILOT: &str = env!("CARGO_BIN_EXE_pilot");
/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(20);

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node-a, serviceAccountName: web, containers: []}
status: {phase: Running, podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {nodeName: node-b, serviceAccountName: cart, containers: []}
status: {phase: Running, podIP: 10.0.0.2}
";
const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {namespaces: [shop]}}]}]}
";
const WEB: &str = "Kubernetes//Pod/shop/web";
const CART: &str = "Kubernetes//Pod/shop/cart";

/// A running pilot, ended when dropped.
struct Pilot {
    process: Child,
    dir: tempfile::TempDir,
    /// By what is served there: `tls`, `plain`, `debug`.
    addresses: HashMap<String, String>,
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Pilot {
    fn start(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mesh")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join("mesh").join(name), text).unwrap();
        }
        Self::start_in(dir)
    }

    fn start_in(dir: tempfile::TempDir) -> Self {
        let mut process = Command::new(PILOT)
            .args(["serve", "--listen-tls", "127.0.0.1:0", "--listen-plain", "127.0.0.1:0"])
            .args(["--listen-debug", "127.0.0.1:0", "--log", "info"])
            .arg("--folder")
            .arg(dir.path().join("mesh"))
            .arg("--data")
            .arg(dir.path().join("data"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut addresses = HashMap::new();
        while addresses.len() < 3 {
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
        Self { process, dir, addresses }
    }

    fn write(&self, name: &str, text: &str) {
        // As most editors and every careful program do.
        let path = self.dir.path().join("mesh").join(name);
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join("mesh").join(name)).unwrap();
    }

    /// Processor time used, in hundredths of a second.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        // proc_pid_stat(5): utime and stime are fields 14 and 15, and the name is field 2.
        after_name
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap())
            .sum()
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn token(&self, node: &str) -> String {
        said(Command::new(PILOT).args(["node-token", node, "--data"]).arg(self.data()))
    }

    fn root(&self) -> String {
        said(Command::new(PILOT).args(["root-cert", "--data"]).arg(self.data()))
    }

    fn ca(&self, token: &str) -> CaClient {
        CaClient::new(ServerConfig {
            address: format!("https://{}", self.addresses["tls"]),
            roots: Roots::Pem(self.root()),
            versions: TlsVersions::Only13,
            further_name: Some("localhost".into()),
            token: Some(Token::Literal(token.into())),
            cluster_id: "Kubernetes".into(),
            headers: Vec::new(),
        })
    }

    async fn debug(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut tcp = tokio::net::TcpStream::connect(&self.addresses["debug"]).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: pilot\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Asks until the answer has `text`.
    async fn debug_has(&self, path: &str, text: &str) -> String {
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

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A daemon's stream.
struct Daemon {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Daemon {
    async fn connect(pilot: &Pilot, held: &BTreeMap<String, String>) -> Self {
        let channel = Channel::from_shared(format!("http://{}", pilot.addresses["plain"])).unwrap();
        Self::open(channel.connect().await.unwrap(), None, held).await.unwrap()
    }

    async fn connect_tls(pilot: &Pilot, token: Option<&str>) -> Result<Self, Status> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pilot.root()));
        let channel = Channel::from_shared(format!("https://{}", pilot.addresses["tls"])).unwrap();
        let channel = channel.tls_config(tls.domain_name("localhost")).unwrap();
        Self::open(channel.connect().await.unwrap(), token, &BTreeMap::new()).await
    }

    async fn open(
        channel: Channel,
        token: Option<&str>,
        held: &BTreeMap<String, String>,
    ) -> Result<Self, Status> {
        Self::subscribe(channel, token, held, &[ADDRESS_TYPE, AUTHORIZATION_TYPE]).await
    }

    async fn subscribe(
        channel: Channel,
        token: Option<&str>,
        held: &BTreeMap<String, String>,
        types: &[&str],
    ) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        for &type_url in types {
            let of_type = held.iter().filter(|_| type_url == ADDRESS_TYPE);
            let first = DeltaDiscoveryRequest {
                type_url: type_url.into(),
                initial_resource_versions: of_type.map(|(k, v)| (k.clone(), v.clone())).collect(),
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(first).await.unwrap();
        }
        let mut call = Request::new(ReceiverStream::new(outgoing));
        if let Some(token) = token {
            call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(call).await?.into_inner();
        Ok(Self { requests, responses })
    }

    /// The next response, answered.
    async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.next_answered(None).await
    }

    async fn next_answered(&mut self, error: Option<&str>) -> DeltaDiscoveryResponse {
        let response = tokio::time::timeout(LONG, self.responses.message()).await;
        let response = response.expect("a response in time").unwrap().expect("a response");
        let error_detail = error.map(|message| proto::envoy::google::rpc::Status {
            message: message.into(),
            ..Default::default()
        });
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(answer).await.unwrap();
        response
    }
}

/// `Address +a,b -c`.
fn shown(response: &DeltaDiscoveryResponse) -> String {
    let names: Vec<_> = response.resources.iter().map(|one| one.name.as_str()).collect();
    let (_, kind) = response.type_url.rsplit_once('.').unwrap();
    format!("{kind} +{} -{}", names.join(","), response.removed_resources.join(","))
}

#[tokio::test]
async fn an_edit_reaches_the_daemon_at_once_and_alone() {
    let pilot = Pilot::start(&[("shop.yaml", SHOP)]);
    let mut daemon = Daemon::connect(&pilot, &BTreeMap::new()).await;
    assert_eq!(shown(&daemon.next().await), "Authorization + -");
    let first = daemon.next().await;
    assert_eq!(shown(&first), format!("Address +{CART},{WEB} -"));

    let begun = Instant::now();
    pilot.write("policy.yaml", POLICY);
    assert_eq!(shown(&daemon.next().await), "Authorization +shop/web -");
    assert_eq!(shown(&daemon.next().await), format!("Address +{WEB} -"));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());

    pilot.remove("policy.yaml");
    assert_eq!(shown(&daemon.next().await), format!("Address +{WEB} -"));
    assert_eq!(shown(&daemon.next().await), "Authorization + -shop/web");

    pilot.write(
        "shop.yaml",
        SHOP.split("---\napiVersion: v1\nkind: Pod\nmetadata: {name: cart").next().unwrap(),
    );
    assert_eq!(shown(&daemon.next().await), format!("Address + -{CART}"));
}

#[tokio::test]
async fn what_has_an_error_keeps_its_last_good_form_and_the_rest_goes_on() {
    let pilot = Pilot::start(&[("shop.yaml", SHOP)]);
    let mut daemon = Daemon::connect(&pilot, &BTreeMap::new()).await;
    daemon.next().await;
    daemon.next().await;
    let bad = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, lables: {}}\n";
    let (_, pods) = SHOP.split_once("---").unwrap();
    pilot.write("shop.yaml", &format!("{bad}---{pods}").replace("10.0.0.1", "10.0.0.9"));
    let config = pilot.debug_has("/debug/config", "unknown field").await;
    assert!(config.contains("\"line\": 4") && config.contains("metadata.lables"), "{config}");
    assert!(pilot.debug("/metrics").await.contains("aquifer_pilot_config_errors 1\n"));
    // Had the namespace gone with its label, the other pod's record would have come along.
    assert_eq!(shown(&daemon.next().await), format!("Address +{WEB} -"));
    // A policy that never was good refuses where it would apply.
    pilot.write("policy.yaml", &POLICY.replace("[shop]", "7"));
    let pushed = daemon.next().await;
    assert_eq!(shown(&pushed), "Authorization +shop/web -");
    let value = &pushed.resources[0].resource.as_ref().unwrap().value;
    let policy: proto::security::Authorization = prost::Message::decode(value.as_slice()).unwrap();
    assert_eq!(policy.action(), proto::security::Action::Deny);
    assert_eq!(policy.rules, [proto::security::Rule::default()]);
}

#[tokio::test]
async fn a_file_that_is_being_written_again_takes_nothing_away() {
    let pilot = Pilot::start(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)]);
    let mut daemon = Daemon::connect(&pilot, &BTreeMap::new()).await;
    assert_eq!(shown(&daemon.next().await), "Authorization +shop/web -");
    daemon.next().await;
    let policy = pilot.dir.path().join("mesh/policy.yaml");
    fs::write(&policy, "").unwrap();
    pilot.debug_has("/debug/config", "empty: remove the file if that is meant").await;
    fs::write(&policy, POLICY.replace("[shop]", "[shop, data]")).unwrap();
    // Had the empty file been served, the policy would have been removed first.
    assert_eq!(shown(&daemon.next().await), "Authorization +shop/web -");
    fs::write(&policy, POLICY).unwrap();
    assert_eq!(shown(&daemon.next().await), "Authorization +shop/web -");
}

#[tokio::test]
async fn a_folder_that_was_never_good_is_not_served_as_an_empty_one() {
    let pilot = Pilot::start(&[("shop.yaml", "a: [")]);
    let held = BTreeMap::from([(WEB.to_owned(), "1".to_owned())]);
    let mut daemon = Daemon::connect(&pilot, &held).await;
    assert!(pilot.debug("/ready").await.starts_with("HTTP/1.1 503"));
    pilot.debug_has("/debug/clients", "\"errors\": 1").await;
    pilot.write("shop.yaml", SHOP);
    assert_eq!(shown(&daemon.next().await), "Authorization + -");
    assert_eq!(shown(&daemon.next().await), format!("Address +{CART},{WEB} -"));
    assert!(pilot.debug("/ready").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_stream_that_nothing_can_be_sent_on_costs_nothing() {
    let pilot = Pilot::start(&[("shop.yaml", "a: [")]);
    pilot.debug_has("/debug/clients", "\"errors\": 1").await;
    let channel = Channel::from_shared(format!("http://{}", pilot.addresses["plain"])).unwrap();
    let channel = channel.connect().await.unwrap();
    let held = BTreeMap::new();
    let mut daemon =
        Daemon::subscribe(channel, None, &held, &[ADDRESS_TYPE]).await.expect("a stream");
    pilot.debug_has("/debug/clients", "\"connectedSince\"").await;
    // Longer than the wait for the other subscription.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = pilot.ticks();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let used = pilot.ticks() - before;
    assert!(used < 20, "{used} hundredths of a second of 50");
    pilot.write("shop.yaml", SHOP);
    assert_eq!(shown(&daemon.next().await), format!("Address +{CART},{WEB} -"));
}

#[tokio::test]
async fn a_folder_without_manifests_is_not_served_as_an_empty_mesh() {
    let pilot = Pilot::start(&[("notes.txt", "")]);
    let config = pilot.debug_has("/debug/config", "holds no manifests\"").await;
    assert!(config.contains("\"published\": null"), "{config}");
    assert!(pilot.debug("/ready").await.starts_with("HTTP/1.1 503"));
    let mut daemon = Daemon::connect(&pilot, &BTreeMap::new()).await;
    pilot.write("shop.yaml", SHOP);
    assert_eq!(shown(&daemon.next().await), "Authorization + -");
    assert_eq!(shown(&daemon.next().await), format!("Address +{CART},{WEB} -"));
    pilot.remove("shop.yaml");
    pilot.debug_has("/debug/config", "holds no manifests\"").await;
    pilot.write("shop.yaml", &SHOP.replace("10.0.0.1", "10.0.0.9"));
    // Had the empty folder been served, both would have been removed first.
    assert_eq!(shown(&daemon.next().await), format!("Address +{WEB} -"));
}

#[tokio::test]
async fn a_daemon_that_returns_gets_what_changed_also_from_another_pilot() {
    let mut pilot = Pilot::start(&[("shop.yaml", SHOP)]);
    let mut daemon = Daemon::connect(&pilot, &BTreeMap::new()).await;
    daemon.next().await;
    let resources = daemon.next().await.resources.into_iter();
    let mut held: BTreeMap<_, _> = resources.map(|one| (one.name, one.version)).collect();
    held.insert("Kubernetes//Pod/shop/gone".into(), "1".into());
    pilot.process.kill().unwrap();
    pilot.process.wait().unwrap();
    let dir = std::mem::replace(&mut pilot.dir, tempfile::tempdir().unwrap());
    fs::write(dir.path().join("mesh/shop.yaml"), SHOP.replace("10.0.0.2", "10.0.0.9")).unwrap();
    let pilot = Pilot::start_in(dir);
    let mut daemon = Daemon::connect(&pilot, &held).await;
    daemon.next().await;
    assert_eq!(shown(&daemon.next().await), format!("Address +{CART} -Kubernetes//Pod/shop/gone"));
}

#[tokio::test]
async fn a_folder_that_is_replaced_is_followed() {
    let pilot = Pilot::start(&[("shop.yaml", SHOP)]);
    let mut daemon = Daemon::connect(&pilot, &BTreeMap::new()).await;
    daemon.next().await;
    daemon.next().await;
    let begun = Instant::now();
    let folder = pilot.dir.path().join("mesh");
    let replace = |name: &str, address: &str| {
        let next = pilot.dir.path().join(name);
        fs::create_dir(&next).unwrap();
        fs::write(next.join("shop.yaml"), SHOP.replace("10.0.0.1", address)).unwrap();
        next
    };
    let next = replace("next", "10.0.0.8");
    fs::rename(&folder, pilot.dir.path().join("old")).unwrap();
    pilot.debug_has("/debug/clients", "reading the folder").await;
    fs::rename(next, &folder).unwrap();
    assert_eq!(shown(&daemon.next().await), format!("Address +{WEB} -"));
    pilot.write("shop.yaml", &SHOP.replace("10.0.0.1", "10.0.0.7"));
    assert_eq!(shown(&daemon.next().await), format!("Address +{WEB} -"));

    fs::rename(&folder, pilot.dir.path().join("older")).unwrap();
    let real = replace("real", "10.0.0.6");
    std::os::unix::fs::symlink(real, &folder).unwrap();
    assert_eq!(shown(&daemon.next().await), format!("Address +{WEB} -"));
    pilot.write("shop.yaml", SHOP);
    assert_eq!(shown(&daemon.next().await), format!("Address +{WEB} -"));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_daemon_that_never_answers_holds_up_nobody() {
    let pilot = Pilot::start(&[("shop.yaml", SHOP)]);
    let mut silent = Daemon::connect(&pilot, &BTreeMap::new()).await;
    let mut daemon = Daemon::connect(&pilot, &BTreeMap::new()).await;
    daemon.next().await;
    daemon.next().await;
    for last in 3..20 {
        pilot.write("shop.yaml", &SHOP.replace("10.0.0.1", &format!("10.0.0.{last}")));
        assert_eq!(shown(&daemon.next().await), format!("Address +{WEB} -"));
    }
    // It finds what it was sent first, and then, in one response, all that came after.
    assert_eq!(shown(&silent.next().await), "Authorization + -");
    assert_eq!(shown(&silent.next().await), format!("Address +{CART},{WEB} -"));
    assert_eq!(shown(&silent.next().await), format!("Address +{WEB} -"));
    let none = tokio::time::timeout(Duration::from_millis(300), silent.next()).await;
    assert!(none.is_err(), "{none:?}");
}

#[tokio::test]
async fn a_refusal_is_kept_for_people_to_see() {
    let pilot = Pilot::start(&[("shop.yaml", SHOP)]);
    let mut daemon = Daemon::connect(&pilot, &BTreeMap::new()).await;
    daemon.next().await;
    daemon.next_answered(Some(&format!("{WEB}: addresses: 3 bytes"))).await;
    let syncz = pilot.debug_has("/debug/clients", "addresses: 3 bytes").await;
    let body: serde_json::Value =
        serde_json::from_str(syncz.split_once("\r\n\r\n").unwrap().1).unwrap();
    let types = &body["clients"][0]["types"];
    assert_eq!(types["Address"]["nack"]["resources"], serde_json::json!([WEB]));
    assert_eq!(types["Address"]["acked"], serde_json::Value::Null);
    assert_eq!(
        types["Authorization"]["acked"]["version"],
        body["published"]["types"]["Authorization"]["version"]
    );
}

#[tokio::test]
async fn over_tls_only_a_node_with_a_token_is_served() {
    let pilot = Pilot::start(&[("shop.yaml", SHOP)]);
    let token = pilot.token("node-a");
    for (shown, message) in
        [(None, "no token"), (Some("node-a:00"), "the token shown for node node-a is not valid")]
    {
        let status = Daemon::connect_tls(&pilot, shown).await.err().expect("a refusal");
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().starts_with(message), "{status}");
    }
    let mut daemon = Daemon::connect_tls(&pilot, Some(&token)).await.unwrap();
    assert_eq!(shown(&daemon.next().await), "Authorization + -");
    let syncz = pilot.debug("/debug/clients").await;
    assert!(syncz.contains("\"node\": \"node-a\""), "{syncz}");
}

#[tokio::test]
async fn a_token_that_is_revoked_ends_its_streams() {
    let pilot = Pilot::start(&[("shop.yaml", SHOP)]);
    let (token, other) = (pilot.token("node-a"), pilot.token("node-b"));
    let mut daemon = Daemon::connect_tls(&pilot, Some(&token)).await.unwrap();
    let mut kept = Daemon::connect_tls(&pilot, Some(&other)).await.unwrap();
    for _ in 0..2 {
        daemon.next().await;
        kept.next().await;
    }
    fs::remove_file(pilot.data().join("nodes/node-a.token")).unwrap();
    pilot.write("shop.yaml", &SHOP.replace("10.0.0.1", "10.0.0.9"));
    let ended = tokio::time::timeout(LONG, daemon.responses.message()).await.unwrap();
    let status = ended.expect_err("no response");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status.message(), "the token shown for node node-a is not valid");
    assert_eq!(shown(&kept.next().await), format!("Address +{WEB} -"));
}

#[tokio::test]
async fn a_node_gets_certificates_for_its_own_pods_only() {
    let pilot = Pilot::start(&[("shop.yaml", SHOP)]);
    pilot.debug_has("/ready", "ready").await;
    let token = pilot.token("node-a");
    let identities =
        Identities::start(std::sync::Arc::new(pilot.ca(&token)), IdentityConfig::default());
    let web = Spiffe::new("cluster.local", "shop", "web").unwrap();
    let credential = identities.credential(&web).await.unwrap();
    assert_eq!(credential.spiffe(), &web);

    let refused = |account: &'static str, trust_domain: &'static str, token: String| {
        let ca = pilot.ca(&token);
        async move {
            let who = Spiffe::new(trust_domain, "shop", account).unwrap();
            match ca.issue("not looked at".into(), &who, LONG).await {
                Err(CaError::Denied { message, .. }) => message,
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(
        refused("cart", "cluster.local", token.clone()).await,
        "no running pod on node node-a has the service account shop/cart"
    );
    assert_eq!(
        refused("web", "other.example", token.clone()).await,
        "spiffe://other.example/ns/shop/sa/web is not of trust domain cluster.local"
    );
    assert_eq!(
        refused("web", "cluster.local", format!("{token}0")).await,
        "the token shown for node node-a is not valid"
    );
    // What the folder says a moment later counts at once.
    pilot.write("shop.yaml", &SHOP.replace("nodeName: node-a", "nodeName: node-b"));
    pilot.debug_has("/debug/clients", "\"generation\": 2").await;
    assert_eq!(
        refused("web", "cluster.local", token).await,
        "no running pod on node node-a has the service account shop/web"
    );
}

#[tokio::test]
async fn pilot_ends_soon_after_sigterm_although_daemons_are_connected() {
    let mut pilot = Pilot::start(&[("shop.yaml", SHOP)]);
    let mut daemon = Daemon::connect(&pilot, &BTreeMap::new()).await;
    daemon.next().await;
    let id = pilot.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let ended = tokio::time::timeout(LONG, async {
        // What was under way comes before the end.
        while daemon.responses.message().await.is_ok_and(|message| message.is_some()) {}
    });
    ended.await.unwrap();
    assert!(pilot.process.wait().unwrap().success());
}

#[test]
fn validate_lists_everything_and_fails() {
    let dir = tempfile::tempdir().unwrap();
    let validate = |folder: &Path| {
        let output = Command::new(PILOT).arg("validate").arg(folder).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    fs::write(dir.path().join("a.yaml"), SHOP).unwrap();
    let (code, text) = validate(dir.path());
    assert_eq!((code, text.lines().count()), (Some(0), 1), "{text}");
    fs::write(dir.path().join("b.yaml"), "kind: Pod\n---\nb: [\n").unwrap();
    let (code, text) = validate(dir.path());
    assert_eq!((code, text.lines().count()), (Some(1), 3), "{text}");
    assert!(text.contains("b.yaml:1: error AQ0001: Pod: apiVersion: missing"), "{text}");
    let policy = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: mesh}\n\
                  spec: {selector: {matchLabels: {app: web}}}\n";
    fs::write(dir.path().join("b.yaml"), policy).unwrap();
    assert!(!validate(dir.path()).1.contains("root namespace"));
    let mut command = Command::new(PILOT);
    let output = command.args(["validate", "--root-namespace", "mesh"]).arg(dir.path());
    let text = String::from_utf8(output.output().unwrap().stdout).unwrap();
    assert!(text.contains("spec.selector: has no effect in the root namespace mesh"), "{text}");
}
