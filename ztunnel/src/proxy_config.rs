//! Istio's proxyConfig: settings that come by a file of the mesh or in one variable, below the environment's own.
//!
//! In: the environment and the text of the mesh's file, where there is one. Out: the environment with what they add. A
//! variable that is set wins over `PROXY_CONFIG`, which wins over the file's `defaultConfig`. What the variables mean is
//! [`Config`](crate::config::Config)'s.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Where Istio's manifests mount the mesh's settings, relative to the working directory.
pub const MESH_FILE: &str = "./etc/istio/config/mesh";

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// A proxyConfig that cannot be read.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("{origin}: {reason}")]
pub struct BadProxyConfig {
    /// The variable or file.
    pub origin: &'static str,
    /// The field, line and what is wrong there.
    pub reason: String,
}

/// Istio's MeshConfig as far as it is for the daemon. Its other fields are the control plane's.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    root_namespace: Option<String>,
    default_config: ProxyConfig,
}

/// Istio's ProxyConfig as far as a node's proxy has a use for it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProxyConfig {
    discovery_address: Option<String>,
    proxy_admin_port: Option<u16>,
    stats_port: Option<u16>,
    concurrency: Option<u16>,
    proxy_metadata: BTreeMap<String, Scalar>,
}

/// Values of metadata are texts, which YAML takes for other things when they are not quoted.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
}

/// Adds what the mesh's file and `PROXY_CONFIG` say to the environment.
///
/// # Errors
/// [`BadProxyConfig`] names which of the two cannot be read.
pub fn layered(
    environment: Environment,
    mesh: Option<&str>,
) -> Result<Environment, BadProxyConfig> {
    let mut layered = Environment::new();
    if let Some(text) = mesh {
        let mesh: Option<MeshConfig> = read(MESH_FILE, text)?;
        let MeshConfig { root_namespace, default_config } = mesh.unwrap_or_default();
        default_config.write(&mut layered);
        // An empty one is none, as everywhere in Istio's settings.
        if let Some(name) = root_namespace.filter(|name| !name.is_empty()) {
            layered.insert("AQUIFER_ROOT_NAMESPACE".to_owned(), name);
        }
    }
    if let Some(text) = environment.get("PROXY_CONFIG") {
        let proxy: Option<ProxyConfig> = read("PROXY_CONFIG", text)?;
        proxy.unwrap_or_default().write(&mut layered);
    }
    // A variable that is set to nothing is as if it were not set, but for the one that then means something.
    let is_said = |(name, value): &(String, String)| !value.is_empty() || name == "XDS_ADDRESS";
    layered.extend(environment.into_iter().filter(is_said));
    Ok(layered)
}

/// JSON is YAML. An empty text is no settings.
fn read<T: for<'a> Deserialize<'a>>(
    origin: &'static str,
    text: &str,
) -> Result<Option<T>, BadProxyConfig> {
    serde_yaml_ng::from_str(text)
        .map_err(|error| BadProxyConfig { origin, reason: error.to_string() })
}

impl ProxyConfig {
    fn write(self, to: &mut Environment) {
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                to.insert(name.to_owned(), value);
            }
        };
        set("XDS_ADDRESS", self.discovery_address);
        set("AQUIFER_ADMIN_ADDRESS", self.proxy_admin_port.map(|port| format!("127.0.0.1:{port}")));
        set("AQUIFER_STATS_ADDRESS", self.stats_port.map(|port| format!("0.0.0.0:{port}")));
        set("ZTUNNEL_WORKER_THREADS", self.concurrency.map(|threads| threads.to_string()));
        for (key, value) in self.proxy_metadata {
            let name = match key.strip_prefix("ISTIO_META_") {
                Some(_) => key,
                None => format!("ISTIO_META_{key}"),
            };
            set(&name, Some(value.text()));
        }
    }
}

impl Scalar {
    fn text(self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::Text(value) => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(environment: &[(&str, &str)], mesh: Option<&str>, expected: &[(&str, &str)]) {
        let own = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let mut found = layered(own(environment), mesh).unwrap();
        found.remove("PROXY_CONFIG");
        assert_eq!(found, own(expected));
    }

    const MESH: &str = "
rootNamespace: mesh
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  concurrency: 2
  tracing: {}
  proxyMetadata:
    DNS_CAPTURE: true
    ISTIO_META_CLUSTER_ID: east
";

    #[test]
    fn the_mesh_file_gives_defaults() {
        let expected = [
            ("AQUIFER_ROOT_NAMESPACE", "mesh"),
            ("XDS_ADDRESS", "istiod.istio-system.svc:15012"),
            ("ZTUNNEL_WORKER_THREADS", "2"),
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("ISTIO_META_CLUSTER_ID", "east"),
        ];
        check(&[], Some(MESH), &expected);
    }

    #[test]
    fn proxy_config_wins_over_the_file_and_the_environment_over_both() {
        let proxy = r#"{"concurrency":4,"proxyAdminPort":16000,"statsPort":16020,"proxyMetadata":{"CLUSTER_ID":"west"}}"#;
        let expected = [
            ("AQUIFER_ROOT_NAMESPACE", "mesh"),
            ("XDS_ADDRESS", "pilot:15012"),
            ("ZTUNNEL_WORKER_THREADS", "4"),
            ("AQUIFER_ADMIN_ADDRESS", "127.0.0.1:16000"),
            ("AQUIFER_STATS_ADDRESS", "0.0.0.0:16020"),
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("ISTIO_META_CLUSTER_ID", "west"),
        ];
        check(&[("PROXY_CONFIG", proxy), ("XDS_ADDRESS", "pilot:15012")], Some(MESH), &expected);
    }

    #[test]
    fn empty_texts_say_nothing() {
        check(&[("PROXY_CONFIG", "")], Some(""), &[]);
        check(&[("NETWORK", "")], Some("defaultConfig: {}"), &[]);
        check(&[], Some("rootNamespace: ''"), &[]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let refused = |proxy: &str| {
            let environment = [("PROXY_CONFIG".to_owned(), proxy.to_owned())].into();
            layered(environment, None).unwrap_err().to_string()
        };
        let error = refused("concurrency: -1");
        assert!(error.starts_with("PROXY_CONFIG: concurrency: invalid type"), "{error}");
        assert!(refused("{").starts_with("PROXY_CONFIG: "), "{error}");
        let error = layered(Environment::new(), Some("defaultConfig: 1")).unwrap_err();
        assert_eq!(error.origin, MESH_FILE);
    }
}
