//! An API server with its etcd, of this test alone.

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client, Config, Error,
    api::{DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

/// Of tokens for the API server itself.
const DEFAULT_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// The documents of a file.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    use serde::Deserialize;
    let all = serde_yaml_ng::Deserializer::from_str(text);
    all.map(|one| Value::deserialize(one).unwrap()).filter(|one| !one.is_null()).collect()
}

/// Ended when dropped; also by the kernel's closing its standard input, should the test be killed.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    process: Option<Child>,
    address: SocketAddr,
    client: Option<Client>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

/// Where `cargo xtask kube-apiserver` puts it. Without it a test says so and is skipped, except in CI.
fn program() -> Option<PathBuf> {
    let tools = env::var_os("AQUIFER_TOOLS").unwrap_or_else(|| "/var/cache/aquifer/tools".into());
    let program = Path::new(&tools).join("bin/kube-apiserver");
    if program.is_file() {
        return Some(program);
    }
    let missing = "there is no API server: run `cargo xtask kube-apiserver`";
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
    eprintln!("skipped: {missing}");
    None
}

impl Server {
    pub(crate) async fn start() -> Option<Self> {
        program()?;
        let mut server = Self {
            dir: tempfile::tempdir().unwrap(),
            process: None,
            address: ([127, 0, 0, 1], 0).into(),
            client: None,
        };
        server.start_at(None).await;
        Some(server)
    }

    /// Starts it on what it knew, at an address of before or at any that is free.
    pub(crate) async fn start_at(&mut self, address: Option<SocketAddr>) {
        assert!(self.process.is_none(), "stopped before");
        let port = address.map_or(0, |address| address.port());
        let mut process = Command::new(program().unwrap())
            .arg(self.dir.path())
            .arg(format!("--secure-port={port}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(self.dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        let Some(address) = line.strip_prefix("ready ") else { panic!("{line}{}", log()) };
        self.address = address.trim().parse().unwrap();
        self.process = Some(process);
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        self.client = Some(Client::try_from(config).unwrap());
    }

    /// Ends it, and says where it was.
    pub(crate) fn stop(&mut self) -> SocketAddr {
        let mut process = self.process.take().expect("started before");
        process.kill().unwrap();
        process.wait().unwrap();
        self.address
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// The kubeconfig of a pilot that may do what its manifest says, and no more.
    pub(crate) async fn kubeconfig_of_pilot(&self) -> PathBuf {
        let istio_system = json!({"name": "istio-system"});
        self.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": istio_system}))
            .await;
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("rbac.yaml");
        for document in documents(&std::fs::read_to_string(manifest).unwrap()) {
            self.apply(document).await;
        }
        let token = self.token("istio-system", "pilot", None, DEFAULT_AUDIENCE).await;
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let users = text.lines().find(|line| line.starts_with("users:")).unwrap();
        let users_of_pilot = format!("users: [{{name: admin, user: {{token: {token}}}}}]");
        let path = self.dir.path().join("kubeconfig-of-pilot");
        std::fs::write(&path, text.replace(users, &users_of_pilot)).unwrap();
        path
    }

    pub(crate) async fn create_namespace(&self, name: &str) {
        let metadata = json!({"name": name});
        self.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})).await;
    }

    /// A definition of a kind, once the server has looked at it.
    pub(crate) async fn established(&self, name: &str) -> Value {
        let seen = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let of = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
                let found = self.get(of.0, of.1, "", name).await;
                if found["status"]["conditions"].to_string().contains("Established") {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        seen.await.expect("established in time")
    }

    /// A token of a service account, of a pod if one is named.
    pub(crate) async fn token(
        &self,
        namespace: &str,
        account: &str,
        pod: Option<&str>,
        audience: &str,
    ) -> String {
        let bound = pod.map(|name| BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(name.into()),
            uid: None,
        });
        let request = TokenRequest {
            metadata: ObjectMeta::default(),
            spec: TokenRequestSpec {
                audiences: vec![audience.into()],
                bound_object_ref: bound,
                expiration_seconds: Some(3600),
            },
            status: None,
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let made = accounts.create_token_request(account, &PostParams::default(), &request).await;
        made.unwrap().status.unwrap().token
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone().unwrap()
    }

    pub(crate) async fn apply(&self, object: Value) {
        self.try_apply(&object).await.unwrap_or_else(|error| panic!("{error}: {object}"));
    }

    /// Applies an object whose kind the server is about to have.
    pub(crate) async fn apply_when_served(&self, object: Value) {
        let tries = tokio::time::timeout(Duration::from_secs(20), async {
            // Nothing but asking tells: a definition is established before its kind is served.
            while let Err(error) = self.try_apply(&object).await {
                assert!(matches!(&error, Error::Api(status) if status.code == 404), "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        tries.await.expect("the kind is served in time");
    }

    pub(crate) async fn try_apply(&self, object: &Value) -> Result<(), Error> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kind = text(&object["kind"]);
        let namespace = text(&object["metadata"]["namespace"]);
        let api = self.api_of(&text(&object["apiVersion"]), &kind, &namespace);
        let name = text(&object["metadata"]["name"]);
        let how = PatchParams::apply("test").force();
        api.patch(&name, &how, &Patch::Apply(object)).await.map(|_| ())
    }

    pub(crate) async fn patch_status(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        status: Value,
    ) {
        let api = self.api("v1", "Pod", plural, namespace);
        let patch = Patch::Merge(status);
        api.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    pub(crate) async fn delete(
        &self,
        version: &str,
        kind: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        how: &DeleteParams,
    ) {
        self.api(version, kind, plural, namespace).delete(name, how).await.unwrap();
    }

    pub(crate) fn api_of(&self, version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let lower = kind.to_lowercase();
        let plural = match lower.strip_suffix('y') {
            Some(stem) if !lower.ends_with("way") => format!("{stem}ies"),
            Some(_) => format!("{lower}s"),
            None if lower.ends_with('s') => format!("{lower}es"),
            None => format!("{lower}s"),
        };
        self.api(version, kind, &plural, namespace)
    }

    /// What the server has of an object; null if it has none.
    pub(crate) async fn get(
        &self,
        version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Value {
        match self.api_of(version, kind, namespace).get_opt(name).await {
            Ok(found) => serde_json::to_value(found).unwrap(),
            Err(error) => panic!("{error}: {kind} {name}"),
        }
    }

    pub(crate) async fn list(&self, version: &str, kind: &str, namespace: &str) -> Vec<Value> {
        let all = self.api_of(version, kind, namespace).list(&ListParams::default()).await.unwrap();
        all.items.into_iter().map(|one| serde_json::to_value(one).unwrap()).collect()
    }

    /// Writes into the status of an object of the shop, as another controller does.
    pub(crate) async fn patch_status_of(&self, of: [&str; 3], status: Value) {
        let api = self.api_of(of[0], of[1], "shop");
        let how = PatchParams { field_manager: Some("other".into()), ..PatchParams::default() };
        api.patch_status(of[2], &how, &Patch::Strategic(status)).await.unwrap();
    }

    pub(crate) async fn delete_named(&self, of: [&str; 3]) {
        let api = self.api_of(of[0], of[1], "shop");
        api.delete(of[2], &DeleteParams::default()).await.unwrap();
    }

    fn api(&self, version: &str, kind: &str, plural: &str, namespace: &str) -> Api<DynamicObject> {
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        let of = GroupVersionKind::gvk(group, version, kind);
        let resource = ApiResource::from_gvk_with_plural(&of, plural);
        if namespace.is_empty() {
            Api::all_with(self.client(), &resource)
        } else {
            Api::namespaced_with(self.client(), namespace, &resource)
        }
    }
}
