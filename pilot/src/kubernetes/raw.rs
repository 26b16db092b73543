//! An object as the API server sends it, for the watcher to handle and our own decoder to read.
//!
//! In: JSON. Out: [`Raw`]. Nothing of it can be wrong here: one bad object must not spoil a list.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope, Resource};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An object of any kind.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    /// What the watcher reads: name, namespace and version.
    metadata: ObjectMeta,
    /// All of it.
    pub value: Value,
}

impl Raw {
    /// Namespace and name, which tell it from others of its kind.
    pub(super) fn name(&self) -> (Box<str>, Box<str>) {
        let part = |part: &Option<String>| part.as_deref().unwrap_or_default().into();
        (part(&self.metadata.namespace), part(&self.metadata.name))
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let text = |key: &str| Some(value.get("metadata")?.get(key)?.as_str()?.to_owned());
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        // Who set which field is often longer than the fields.
        if let Some(all) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            all.remove("managedFields");
        }
        Ok(Self { metadata, value })
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        (&*of.kind).into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        (&*of.group).into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        (&*of.version).into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        (&*of.plural).into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
