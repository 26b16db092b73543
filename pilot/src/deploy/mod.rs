//! What has to run for a Gateway that asks for a waypoint.
//!
//! In: the Gateway, its class, ConfigMaps with what users want otherwise, and what is common to the installation. Out:
//! the objects to apply: ServiceAccount, Deployment, Service, and those for scaling and disruption if they are asked
//! for. Names, labels, ports and container are those of Istio's own waypoints, so that whatever selects or scrapes these
//! finds ours as well. No I/O.

mod overlay;
mod template;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

pub use template::{Installation, Settings};

use crate::manifests::{ConfigMap, Manifests, Object, gateway_api::Gateway};

/// ConfigMaps of the root namespace with this label change the waypoints of a class.
const DEFAULTS_FOR_CLASS: &str = "gateway.istio.io/defaults-for-class";

/// Why a Gateway's objects cannot be made; they stay as they are.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeployError {
    /// `spec.infrastructure.parametersRef` names what is not there.
    #[error("spec.infrastructure.parametersRef: there is no ConfigMap {namespace}/{name}")]
    NoParameters {
        /// The Gateway's namespace.
        namespace: String,
        /// The ConfigMap's name.
        name: String,
    },
    /// `spec.infrastructure.parametersRef` is not a ConfigMap.
    #[error("spec.infrastructure.parametersRef: only a ConfigMap is read, not {kind}")]
    Parameters {
        /// What it is.
        kind: String,
    },
    /// What a ConfigMap asks for cannot be read.
    #[error("ConfigMap {object}: data.{key}: {reason}")]
    Overlay {
        /// `namespace/name`.
        object: String,
        /// Which part.
        key: String,
        /// Why not.
        reason: String,
    },
}

/// The objects of a Gateway, to be applied in this order.
///
/// None if it is not ours to run: its class is another, or `spec.addresses` says where it is already.
///
/// # Errors
/// [`DeployError`] names the ConfigMap and field that cannot be followed.
pub fn objects(
    manifests: &Manifests,
    gateway: &Object<Gateway>,
    installation: &Installation,
) -> Result<Vec<Value>, DeployError> {
    let Some(role) = template::Role::of(manifests, gateway) else { return Ok(Vec::new()) };
    let addresses = &gateway.spec.addresses;
    let is_name = addresses.iter().any(|one| one.r#type.as_deref() == Some("Hostname"));
    if is_name || addresses.len() > 1 {
        return Ok(Vec::new());
    }
    let overlays = overlays(manifests, gateway, installation)?;
    let names = template::Names::of(gateway);
    let mut objects = Vec::new();
    for part in template::PARTS {
        let mut wanted = Vec::new();
        for config_map in &overlays {
            if let Some(text) = config_map.spec.data.get(part.key) {
                wanted.push(read(config_map, part.key, text)?);
            }
        }
        if part.only_on_demand && wanted.is_empty() {
            continue;
        }
        let mut object = template::object(part.key, gateway, role, &names, installation);
        let identity = identity_of(&object);
        for overlay in wanted {
            overlay::apply(&mut object, &overlay);
        }
        // Another name would be another object, which nobody would remove again.
        overlay::apply(&mut object, &identity);
        objects.push(object);
    }
    Ok(objects)
}

fn identity_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    json!({
        "apiVersion": object["apiVersion"],
        "kind": object["kind"],
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
    })
}

/// What users want otherwise: first for all of the class, then for this one.
fn overlays<'a>(
    manifests: &'a Manifests,
    gateway: &Object<Gateway>,
    installation: &Installation,
) -> Result<Vec<&'a Object<ConfigMap>>, DeployError> {
    let class = &gateway.spec.gateway_class_name;
    let of_class = manifests.config_maps.iter().filter(|one| {
        *one.meta.namespace == *installation.root_namespace
            && one.meta.labels.get(DEFAULTS_FOR_CLASS) == Some(class)
    });
    let of_class = of_class.min_by(|a, b| a.meta.seniority().cmp(&b.meta.seniority()));
    let mut overlays: Vec<_> = of_class.map(AsRef::as_ref).into_iter().collect();
    let infrastructure = gateway.spec.infrastructure.as_ref();
    if let Some(named) = infrastructure.and_then(|one| one.parameters_ref.as_ref()) {
        if named.kind != "ConfigMap" {
            return Err(DeployError::Parameters { kind: named.kind.clone() });
        }
        let namespace = &gateway.meta.namespace;
        let own = manifests
            .config_maps
            .iter()
            .find(|one| one.meta.namespace == *namespace && *one.meta.name == *named.name);
        let own = own.ok_or_else(|| DeployError::NoParameters {
            namespace: namespace.to_string(),
            name: named.name.clone(),
        })?;
        overlays.push(own);
    }
    Ok(overlays)
}

fn read(config_map: &Object<ConfigMap>, key: &str, text: &str) -> Result<Value, DeployError> {
    let failed = |reason: String| DeployError::Overlay {
        object: format!("{}/{}", config_map.meta.namespace, config_map.meta.name),
        key: key.to_owned(),
        reason,
    };
    let value: Value = serde_yaml_ng::from_str(text).map_err(|error| failed(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(failed("is no mapping".to_owned())) }
}
