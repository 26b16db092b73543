//! Reads the mesh's settings from their ConfigMap.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, de::DeserializeOwned};

use super::{MeshConfig, Network};
use crate::manifests::{ConfigMap, Duration, Manifests, Object, Problem, Severity, is_dns_name};

/// The ConfigMap's name.
const NAME: &str = "istio";
/// Its key for [`MeshConfig`].
const MESH: &str = "mesh";
/// Its key for the networks.
const NETWORKS: &str = "meshNetworks";

/// What stands under [`NETWORKS`].
#[derive(Default, Deserialize)]
#[serde(default)]
struct Networks {
    networks: BTreeMap<String, Network>,
}

/// Whether the ConfigMap says what pilot is also told when it starts.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Given {
    trust_domain: Option<String>,
    root_namespace: Option<String>,
}

impl MeshConfig {
    /// What the folder says beyond `self`, which is what pilot was started with. With an error among the problems the
    /// result is not to be served.
    #[must_use]
    pub fn with_settings_of(&self, manifests: &Manifests) -> (Self, Vec<Problem>) {
        let mut maps = manifests.config_maps.iter().map(AsRef::as_ref);
        let map =
            maps.find(|map| *map.meta.name == *NAME && *map.meta.namespace == *self.root_namespace);
        let Some(map) = map else { return (self.clone(), Vec::new()) };
        let mut source = Source { map, problems: Vec::new() };
        let mut config = self.clone();
        if let Some(read) = source.read::<Self>(MESH) {
            // It has been read whole: reading a part of it cannot fail.
            let text = map.spec.data.get(MESH).map_or("", String::as_str);
            let given: Given = serde_yaml_ng::from_str(text).unwrap_or_default();
            config = Self {
                cluster_id: self.cluster_id.clone(),
                cluster_domain: self.cluster_domain.clone(),
                network: self.network.clone(),
                multi_network: self.multi_network,
                keys: Arc::clone(&self.keys),
                trust_domain: given.trust_domain.unwrap_or_else(|| self.trust_domain.clone()),
                root_namespace: given.root_namespace.unwrap_or_else(|| self.root_namespace.clone()),
                ..read
            };
        }
        config.networks = source.read::<Networks>(NETWORKS).unwrap_or_default().networks;
        source.check(self, &config);
        (config, source.problems)
    }
}

struct Source<'a> {
    map: &'a Object<ConfigMap>,
    problems: Vec<Problem>,
}

impl Source<'_> {
    /// Decodes one key; nothing if it is absent, blank or wrong.
    fn read<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let text = self.map.spec.data.get(key).filter(|text| !text.trim().is_empty())?;
        let mut unknown = Vec::new();
        let mut ignored = |path: serde_ignored::Path<'_>| unknown.push(path.to_string());
        let deserializer = serde_yaml_ng::Deserializer::from_str(text);
        let deserializer = serde_ignored::Deserializer::new(deserializer, &mut ignored);
        match serde_path_to_error::deserialize(deserializer) {
            Ok(read) => {
                for field in unknown {
                    // Steps through an Option stand there as `?`.
                    let field = field.replace(".?", "");
                    self.warning(&format!("{key}.{field}"), "not known to this version: ignored");
                }
                Some(read)
            }
            Err(error) => {
                let field = format!("{key}.{}", error.path());
                self.error(&field, error.into_inner().to_string());
                None
            }
        }
    }

    fn check(&mut self, base: &MeshConfig, config: &MeshConfig) {
        if config.trust_domain != base.trust_domain {
            let reason = format!(
                "`{}`, but pilot was started with {} and issues certificates for it",
                config.trust_domain, base.trust_domain
            );
            self.error("mesh.trustDomain", reason);
        }
        if !is_dns_name(&config.root_namespace) || config.root_namespace.contains('.') {
            self.error(
                "mesh.rootNamespace",
                format!("`{}` is no DNS label", config.root_namespace),
            );
        }
        for (i, alias) in config.trust_domain_aliases.iter().enumerate() {
            if alias.is_empty() || alias.contains(['/', '*']) {
                let field = format!("mesh.trustDomainAliases[{i}]");
                self.error(&field, format!("`{alias}` is no trust domain"));
            }
        }
        let longest = Duration(std::time::Duration::from_secs(3600));
        if config.connect_timeout == Duration::default() || config.connect_timeout > longest {
            self.error(
                "mesh.connectTimeout",
                format!("{}: between 1ms and 1h", config.connect_timeout),
            );
        }
        self.check_providers(config);
        self.check_default_providers(config);
        for (name, network) in &config.networks {
            for (i, gateway) in network.gateways.iter().enumerate() {
                let field = format!("meshNetworks.networks.{name}.gateways[{i}]");
                if gateway.address.is_empty() == gateway.registry_service_name.is_empty() {
                    self.error(&field, "one of address and registryServiceName");
                }
                if !is_port(gateway.port) {
                    self.error(
                        &format!("{field}.port"),
                        format!("{} is no port (1 to 65535)", gateway.port),
                    );
                }
            }
        }
    }

    fn check_providers(&mut self, config: &MeshConfig) {
        let mut names = HashSet::new();
        for (i, provider) in config.extension_providers.iter().enumerate() {
            let field = format!("mesh.extensionProviders[{i}]");
            if !names.insert(&provider.name) {
                self.error(
                    &format!("{field}.name"),
                    format!("there already is a provider `{}`", provider.name),
                );
            }
            if let Some((service, port)) = provider.kind.service() {
                if service.is_empty() {
                    self.error(&format!("{field}.service"), "missing");
                }
                if !is_port(port) {
                    self.error(&format!("{field}.port"), format!("{port} is no port (1 to 65535)"));
                }
            }
            if let Some(reason) = provider.kind.authorizer_fault() {
                self.error(&field, reason);
            }
        }
    }

    fn check_default_providers(&mut self, config: &MeshConfig) {
        let defaults = &config.default_providers;
        for (field, names) in [
            ("tracing", &defaults.tracing),
            ("metrics", &defaults.metrics),
            ("accessLogging", &defaults.access_logging),
        ] {
            for name in names.iter().filter(|name| config.provider(name).is_none()) {
                self.error(
                    &format!("mesh.defaultProviders.{field}"),
                    format!("there is no extension provider `{name}`"),
                );
            }
        }
    }

    fn error(&mut self, field: &str, reason: impl Into<String>) {
        self.push(Severity::Error, field, reason.into());
    }

    fn warning(&mut self, field: &str, reason: impl Into<String>) {
        self.push(Severity::Warning, field, reason.into());
    }

    fn push(&mut self, severity: Severity, field: &str, reason: String) {
        self.problems.push(Problem {
            place: self.map.meta.place.clone(),
            severity,
            object: self.map.meta.title(),
            field: format!("data.{field}"),
            reason,
        });
    }
}

fn is_port(port: u32) -> bool {
    u16::try_from(port).is_ok_and(|port| port > 0)
}
