//! What a cluster shall consist of, as values.
//!
//! In: calls of the person who writes a test. Out: specifications that `cluster` builds and `manifests` writes as YAML.
//! Nothing here touches the machine.

/// Whether the pods of a namespace are in the mesh.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dataplane {
    /// `istio.io/dataplane-mode: ambient`: captured and given identities.
    Ambient,
    /// No label: left alone.
    Outside,
}

/// A Kubernetes namespace.
#[derive(Clone, Debug)]
pub struct NamespaceSpec {
    /// Its name.
    pub name: String,
    /// Whether its pods are in the mesh.
    pub dataplane: Dataplane,
}

/// A pod.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name, also the value of its label `app`.
    pub name: String,
    /// The node it runs on: `a`, `b` …
    pub node: String,
    /// Its service account; its own name unless set.
    pub service_account: String,
    /// Its labels besides `app`.
    pub labels: Vec<(String, String)>,
}

impl PodSpec {
    /// Pod `namespace/name` on node `node`, with a service account of its own name.
    ///
    /// # Panics
    /// If `path` has no slash.
    pub fn new(path: &str, node: &str) -> PodSpec {
        let (namespace, name) = path.split_once('/').expect("a pod is written namespace/name");
        PodSpec {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            service_account: name.to_owned(),
            labels: Vec::new(),
        }
    }

    /// With another label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> PodSpec {
        self.labels.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As the pod of Gateway `gateway`, a waypoint: nothing of it is captured.
    #[must_use]
    pub fn waypoint(self, gateway: &str) -> PodSpec {
        self.label("gateway.networking.k8s.io/gateway-name", gateway)
            .label("gateway.istio.io/managed", "istio.io-mesh-controller")
            .label("istio.io/dataplane-mode", "none")
    }

    /// With another service account.
    #[must_use]
    pub fn service_account(self, service_account: &str) -> PodSpec {
        PodSpec { service_account: service_account.to_owned(), ..self }
    }

    /// `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A service in front of the pods whose label `app` has its name.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name, and the `app` it selects.
    pub name: String,
    /// What is spoken, service port and target port.
    pub ports: Vec<(&'static str, u16, u16)>,
    /// The waypoint that it asks for.
    pub waypoint: Option<String>,
}

impl ServiceSpec {
    /// Service `namespace/name`.
    ///
    /// # Panics
    /// If `path` has no slash.
    pub fn new(path: &str) -> ServiceSpec {
        let (namespace, name) = path.split_once('/').expect("a service is written namespace/name");
        ServiceSpec {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ports: Vec::new(),
            waypoint: None,
        }
    }

    /// With port `port`, which leads to `target_port` of its pods.
    #[must_use]
    pub fn port(mut self, port: u16, target_port: u16) -> ServiceSpec {
        self.ports.push(("tcp", port, target_port));
        self
    }

    /// With port `port`, which speaks HTTP and leads to `target_port` of its pods.
    #[must_use]
    pub fn http_port(mut self, port: u16, target_port: u16) -> ServiceSpec {
        self.ports.push(("http", port, target_port));
        self
    }

    /// Guarded by the waypoint of Gateway `gateway`, of its own namespace.
    #[must_use]
    pub fn guarded_by(self, gateway: &str) -> ServiceSpec {
        ServiceSpec { waypoint: Some(gateway.to_owned()), ..self }
    }

    /// `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
