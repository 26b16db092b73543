//! What we tell users about their objects: the `status` of each.
//!
//! In: the user's resources. Out: the status of every object that has one, as it stands in Kubernetes, without the times
//! of transitions. Writes nothing and remembers nothing: whoever writes a status compares it with the one before.

mod condition;
#[cfg(test)]
mod fixtures;
mod gateways;
mod policies;
mod routes;
mod services;

use std::{collections::BTreeMap, sync::Arc};

pub(crate) use gateways::Class;

use serde_json::Value;

use crate::{
    compile::{self, MeshConfig, registry::Registry},
    manifests::{Kind, Manifests, Meta},
};

/// Kind, namespace and name of an object.
pub type Key = (Kind, Arc<str>, Arc<str>);

/// Statuses by object.
pub type Statuses = BTreeMap<Key, Value>;

/// The statuses of all objects that have one.
pub fn all(manifests: &Manifests, config: &MeshConfig) -> Statuses {
    let registry = Registry::of(manifests, config);
    let mut statuses = Statuses::new();
    gateways::add(manifests, config, &registry, &mut statuses);
    routes::add(manifests, config, &registry, &mut statuses);
    let of_services = compile::status::statuses(manifests, config);
    services::add(&of_services, &mut statuses);
    policies::add(manifests, config, &of_services, &mut statuses);
    statuses
}

fn put(statuses: &mut Statuses, kind: Kind, meta: &Meta, status: Value) {
    statuses.insert((kind, Arc::clone(&meta.namespace), Arc::clone(&meta.name)), status);
}
