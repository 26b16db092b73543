//! The objects of a waypoint as nobody has asked for otherwise.

use serde_json::{Map, Value, json};

use crate::{
    compile::MeshConfig,
    manifests::{Labels, Manifests, Object, gateway_api::Gateway},
    status::Class,
};

/// What a user says of all waypoints.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The image of the proxy.
    pub image: String,
    /// Where the proxy gets certificates and configuration: host and port.
    pub ca_address: String,
    /// The revision of the control plane (`istio.io/rev`).
    pub revision: String,
}

/// What all waypoints of an installation have in common.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The image of the proxy.
    pub image: String,
    /// Where the proxy gets certificates and configuration: host and port.
    pub ca_address: String,
    /// The name of the cluster.
    pub cluster_id: String,
    /// What the mesh is called.
    pub trust_domain: String,
    /// Below which Services have their names.
    pub cluster_domain: String,
    /// The network of the cluster; empty if networks have no names.
    pub network: String,
    /// `meshConfig.defaultConfig`, in JSON.
    pub proxy_config: Value,
    /// The namespace of the control plane's own objects.
    pub root_namespace: String,
    /// The revision of the control plane.
    pub revision: String,
}

impl Installation {
    /// Of a mesh.
    pub fn of(settings: &Settings, config: &MeshConfig) -> Self {
        let defaults = &config.default_config;
        let told = defaults.discovery_address.as_str();
        let address = if told.is_empty() { settings.ca_address.as_str() } else { told };
        let mut proxy_config = json!({"discoveryAddress": address});
        if !defaults.proxy_metadata.is_empty() {
            proxy_config["proxyMetadata"] = json!(defaults.proxy_metadata);
        }
        if let Some(concurrency) = defaults.concurrency {
            proxy_config["concurrency"] = concurrency.into();
        }
        Self {
            image: settings.image.clone(),
            ca_address: settings.ca_address.clone(),
            cluster_id: config.cluster_id.clone(),
            trust_domain: config.trust_domain.clone(),
            cluster_domain: config.cluster_domain.clone(),
            network: config.network.clone(),
            proxy_config,
            root_namespace: config.root_namespace.clone(),
            revision: settings.revision.clone(),
        }
    }
}

/// What a Gateway's proxies are for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    Waypoint,
    EastWest,
}

impl Role {
    /// None if its class is not ours to run.
    pub(super) fn of(manifests: &Manifests, gateway: &Object<Gateway>) -> Option<Self> {
        match Class::of(&gateway.spec.gateway_class_name, manifests)? {
            Class::Waypoint => Some(Self::Waypoint),
            Class::EastWest => Some(Self::EastWest),
            Class::Remote => None,
        }
    }

    fn managed_by(self) -> &'static str {
        match self {
            Self::Waypoint => "istio.io-mesh-controller",
            Self::EastWest => "istio.io-eastwest-controller",
        }
    }
}

/// A kind of object, by the key that changes it in a ConfigMap.
pub(super) struct Part {
    pub key: &'static str,
    /// Made only if somebody asks for it.
    pub only_on_demand: bool,
}

/// In the order in which they are applied.
pub(super) const PARTS: [Part; 5] = [
    Part { key: "serviceAccount", only_on_demand: false },
    Part { key: "deployment", only_on_demand: false },
    Part { key: "service", only_on_demand: false },
    Part { key: "horizontalPodAutoscaler", only_on_demand: true },
    Part { key: "podDisruptionBudget", only_on_demand: true },
];

const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
const GATEWAY_CLASS: &str = "gateway.networking.k8s.io/gateway-class-name";
const MANAGED: &str = "gateway.istio.io/managed";

/// What the objects are called.
pub(super) struct Names {
    /// Deployment, Service and what belongs to them.
    workload: String,
    service_account: String,
}

impl Names {
    /// As the Gateway, if its annotations do not say otherwise.
    pub(super) fn of(gateway: &Object<Gateway>) -> Self {
        let annotation = |key: &str| gateway.meta.annotations.get(key).cloned();
        let own = || gateway.meta.name.to_string();
        Self {
            workload: annotation("gateway.istio.io/name-override").unwrap_or_else(own),
            service_account: annotation("gateway.istio.io/service-account").unwrap_or_else(own),
        }
    }
}

/// The object of a [`Part`].
pub(super) fn object(
    key: &str,
    gateway: &Object<Gateway>,
    role: Role,
    names: &Names,
    installation: &Installation,
) -> Value {
    let waypoint = Waypoint { gateway, role, names, installation };
    match key {
        "serviceAccount" => json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": waypoint.metadata(&names.service_account),
        }),
        "deployment" => waypoint.deployment(),
        "service" => waypoint.service(),
        "horizontalPodAutoscaler" => json!({
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": waypoint.metadata(&names.workload),
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": names.workload},
                "maxReplicas": 1,
            },
        }),
        _ => json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": waypoint.metadata(&names.workload),
            "spec": {"selector": {"matchLabels": waypoint.selector()}},
        }),
    }
}

struct Waypoint<'a> {
    gateway: &'a Object<Gateway>,
    role: Role,
    names: &'a Names,
    installation: &'a Installation,
}

impl Waypoint<'_> {
    fn selector(&self) -> Value {
        json!({GATEWAY_NAME: &*self.gateway.meta.name})
    }

    /// What `spec.infrastructure` says, or else the Gateway itself.
    fn given<'a>(
        &'a self,
        own: &'a Labels,
        infrastructure: Option<&'a Labels>,
    ) -> Map<String, Value> {
        let given = infrastructure.unwrap_or(own).iter();
        let given = given.filter(|(key, _)| !key.starts_with("gateway.networking.k8s.io/"));
        given.map(|(key, value)| (key.clone(), value.as_str().into())).collect()
    }

    fn labels(&self) -> Map<String, Value> {
        let infrastructure = self.gateway.spec.infrastructure.as_ref();
        let mut labels =
            self.given(&self.gateway.meta.labels, infrastructure.map(|one| &one.labels));
        labels.insert(GATEWAY_NAME.to_owned(), (&*self.gateway.meta.name).into());
        let class = self.gateway.spec.gateway_class_name.as_str();
        labels.insert(GATEWAY_CLASS.to_owned(), class.into());
        labels.insert(MANAGED.to_owned(), self.role.managed_by().into());
        labels.insert("istio.io/dataplane-mode".to_owned(), "none".into());
        if !self.installation.network.is_empty() {
            let network = self.installation.network.as_str();
            labels.insert("topology.istio.io/network".to_owned(), network.into());
        }
        labels
    }

    fn annotations(&self) -> Map<String, Value> {
        let infrastructure = self.gateway.spec.infrastructure.as_ref();
        let own = &self.gateway.meta.annotations;
        self.given(own, infrastructure.map(|one| &one.annotations))
    }

    fn metadata(&self, name: &str) -> Value {
        json!({
            "name": name,
            "namespace": &*self.gateway.meta.namespace,
            "labels": self.labels(),
            "annotations": self.annotations(),
        })
    }

    fn service(&self) -> Value {
        let mut metadata = self.metadata(&self.names.workload);
        let annotations = &mut metadata["annotations"];
        annotations["networking.istio.io/traffic-distribution"] = "PreferClose".into();
        let mut ports = vec![port("status-port", 15021, "tcp")];
        for listener in &self.gateway.spec.listeners {
            if ports.iter().all(|port| port["port"] != listener.port) {
                let protocol = listener.protocol.to_ascii_lowercase();
                ports.push(port(&listener.name, listener.port, &protocol));
            }
        }
        let asked = self.gateway.meta.annotations.get("networking.istio.io/service-type");
        let usual = match self.role {
            Role::Waypoint => "ClusterIP",
            Role::EastWest => "LoadBalancer",
        };
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "type": asked.map_or(usual, String::as_str),
                "ipFamilyPolicy": "PreferDualStack",
                "ports": ports,
                "selector": self.selector(),
            },
        })
    }

    fn deployment(&self) -> Value {
        let name = &self.names.workload;
        let mut labels = self.labels();
        for (key, value) in [
            ("sidecar.istio.io/inject", "false"),
            ("service.istio.io/canonical-name", name.as_str()),
            ("service.istio.io/canonical-revision", "latest"),
        ] {
            labels.insert(key.to_owned(), value.into());
        }
        let mut annotations = self.annotations();
        for (key, value) in [
            ("istio.io/rev", self.installation.revision.as_str()),
            ("prometheus.io/path", "/stats/prometheus"),
            ("prometheus.io/port", "15020"),
            ("prometheus.io/scrape", "true"),
        ] {
            annotations.insert(key.to_owned(), value.into());
        }
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": self.metadata(name),
            "spec": {
                "selector": {"matchLabels": self.selector()},
                "template": {
                    "metadata": {"labels": labels, "annotations": annotations},
                    "spec": {
                        "terminationGracePeriodSeconds": 2,
                        "serviceAccountName": self.names.service_account,
                        "containers": [self.container()],
                        "volumes": volumes(),
                    },
                },
            },
        })
    }

    fn container(&self) -> Value {
        let Installation { image, cluster_domain, .. } = self.installation;
        let account = &self.names.service_account;
        json!({
            "name": "istio-proxy",
            "image": image,
            "args": [
                "proxy", "waypoint",
                "--domain", format!("$(POD_NAMESPACE).svc.{cluster_domain}"),
                "--serviceCluster", format!("{account}.$(POD_NAMESPACE)"),
                "--proxyLogLevel", "warning",
                "--proxyComponentLogLevel", "misc:error",
                "--log_output_level", "default:info",
            ],
            "env": self.environment(),
            "ports": [
                {"name": "metrics", "containerPort": 15020, "protocol": "TCP"},
                {"name": "status-port", "containerPort": 15021, "protocol": "TCP"},
                {"name": "http-envoy-prom", "containerPort": 15090, "protocol": "TCP"},
            ],
            "startupProbe": probe(1, 30),
            "readinessProbe": probe(15, 4),
            "resources": {
                "requests": {"cpu": "100m", "memory": "128Mi"},
                "limits": {"cpu": "2", "memory": "1Gi"},
            },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": true,
                "runAsUser": 1337,
                "runAsGroup": 1337,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "workload-socket", "mountPath": "/var/run/secrets/workload-spiffe-uds"},
                {"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"},
                {"name": "istio-data", "mountPath": "/var/lib/istio/data"},
                {"name": "istio-envoy", "mountPath": "/etc/istio/proxy"},
                {"name": "istio-token", "mountPath": "/var/run/secrets/tokens"},
                {"name": "istio-podinfo", "mountPath": "/etc/istio/pod"},
            ],
        })
    }

    fn environment(&self) -> Vec<Value> {
        let all = self.installation;
        let namespace = &self.gateway.meta.namespace;
        let name = &self.names.workload;
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let resource = |name: &str, of: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": of}}});
        let value = |name: &str, value: &str| json!({"name": name, "value": value});
        let owner = format!("kubernetes://apis/apps/v1/namespaces/{namespace}/deployments/{name}");
        let mut environment = vec![
            field("ISTIO_META_SERVICE_ACCOUNT", "spec.serviceAccountName"),
            field("ISTIO_META_NODE_NAME", "spec.nodeName"),
            value("PILOT_CERT_PROVIDER", "istiod"),
            value("CA_ADDR", &all.ca_address),
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("INSTANCE_IP", "status.podIP"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            field("HOST_IP", "status.hostIP"),
            resource("ISTIO_CPU_LIMIT", "limits.cpu"),
            value("PROXY_CONFIG", &all.proxy_config.to_string()),
            resource("GOMEMLIMIT", "limits.memory"),
            value("ISTIO_META_CLUSTER_ID", &all.cluster_id),
            value("ISTIO_META_INTERCEPTION_MODE", "REDIRECT"),
            value("ISTIO_META_WORKLOAD_NAME", name),
            value("ISTIO_META_OWNER", &owner),
            value("ISTIO_META_MESH_ID", &all.trust_domain),
            value("TRUST_DOMAIN", &all.trust_domain),
        ];
        if !all.network.is_empty() {
            environment.push(value("ISTIO_META_NETWORK", &all.network));
            if self.role == Role::EastWest {
                environment.push(value("ISTIO_META_REQUESTED_NETWORK_VIEW", &all.network));
            }
        }
        environment
    }
}

fn port(name: &str, number: u16, protocol: &str) -> Value {
    json!({
        "name": name,
        "port": number,
        "targetPort": number,
        "protocol": "TCP",
        "appProtocol": protocol,
    })
}

fn probe(period: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": "/healthz/ready", "port": 15021, "scheme": "HTTP"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "successThreshold": 1,
        "timeoutSeconds": 1,
    })
}

fn volumes() -> Value {
    json!([
        {"name": "workload-socket", "emptyDir": {}},
        {"name": "istio-envoy", "emptyDir": {"medium": "Memory"}},
        {"name": "istio-data", "emptyDir": {"medium": "Memory"}},
        {"name": "istio-podinfo", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
        ]}},
        {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": {
            "path": "istio-token", "expirationSeconds": 43200, "audience": "istio-ca",
        }}]}},
        {"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}},
    ])
}
