//! What the statuses of Services and ServiceEntries are to say.
//!
//! In: [`Manifests`] and the mesh's settings. Out: conditions and allocated addresses by `namespace/name`; an object of
//! which there is nothing to say is left out. Writes nothing.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    MeshConfig,
    attachment::{Attachment, Refusal},
    registry::{Host, Origin, Visibility},
    world::World,
};
use crate::manifests::Manifests;

/// One condition of a status.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Condition {
    /// What it is about.
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// In one word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What of a ServiceEntry's status is ours.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EntryStatus {
    /// Hosts, each with an address given to it.
    pub addresses: Vec<(String, IpAddr)>,
    /// The conditions.
    pub conditions: Vec<Condition>,
}

/// What the statuses of all Services and ServiceEntries are to say.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Statuses {
    /// Conditions of Services.
    pub services: BTreeMap<String, Vec<Condition>>,
    /// Statuses of ServiceEntries.
    pub entries: BTreeMap<String, EntryStatus>,
    /// The waypoints of Services, as `namespace/name` of their Gateways.
    pub service_waypoints: BTreeMap<String, String>,
    /// Those of ServiceEntries.
    pub entry_waypoints: BTreeMap<String, String>,
}

/// Says what the statuses of Services and ServiceEntries are to say.
pub fn statuses(manifests: &Manifests, config: &MeshConfig) -> Statuses {
    let world = World::of(manifests, config);
    let mut statuses = Statuses::default();
    for host in world.registry.all() {
        let key = format!("{}/{}", host.meta.namespace, host.meta.name);
        let attached = world.waypoints.of_host(host);
        if let Ok(Some(attachment)) = &attached {
            let waypoints = match &host.origin {
                Origin::Kubernetes(_) => &mut statuses.service_waypoints,
                Origin::Entry(_) => &mut statuses.entry_waypoints,
            };
            waypoints.insert(key.clone(), attachment.gateway.clone());
        }
        let mut bound = bound(attached);
        match &host.origin {
            Origin::Kubernetes(_) => {
                if !bound.is_empty() {
                    statuses.services.insert(key, bound);
                }
            }
            Origin::Entry(_) => {
                bound.extend(missing(host, &bound));
                bound.extend(visible(host, &world));
                // Of an entry with several hosts, all say the same but for wildcards.
                let conditions = &mut statuses.entries.entry(key).or_default().conditions;
                conditions.extend(bound);
                conditions.sort();
                conditions.dedup();
            }
        }
    }
    for entry in &manifests.service_entries {
        let given = world.registry.allocated(&entry.meta);
        if !given.is_empty() {
            let key = format!("{}/{}", entry.meta.namespace, entry.meta.name);
            let given = given.iter().map(|(host, ip)| (host.to_string(), *ip));
            statuses.entries.entry(key).or_default().addresses = given.collect();
        }
    }
    statuses.entries.retain(|_, status| *status != EntryStatus::default());
    statuses
}

/// Whether it has the waypoint that it asks for.
fn bound(attached: Result<Option<Attachment>, Refusal>) -> Vec<Condition> {
    const KIND: &str = "istio.io/WaypointBound";
    let refused = |refusal: &Refusal| Condition {
        kind: KIND,
        holds: false,
        reason: refusal.reason(),
        message: refusal.message(),
    };
    match attached {
        Ok(None) => Vec::new(),
        // The first waypoint stays bound.
        Ok(Some(Attachment { canary: Some(refusal), .. })) | Err(refusal) => {
            vec![refused(&refusal)]
        }
        Ok(Some(attachment)) => {
            let mut message = format!("Successfully attached to waypoint {}", attachment.gateway);
            if attachment.ingress {
                message.push_str(". Ingress traffic will traverse the waypoint");
            }
            vec![Condition { kind: KIND, holds: true, reason: "WaypointAccepted", message }]
        }
    }
}

/// A daemon cannot resolve a wildcard: only a waypoint can.
fn missing(host: &Host, bound: &[Condition]) -> Option<Condition> {
    let needed = host.is_wildcard() && !bound.iter().any(|condition| condition.holds);
    needed.then(|| Condition {
        kind: "istio.io/WaypointMissing",
        holds: true,
        reason: "NoWaypointForWildcardService",
        message: "ServiceEntry will not apply until it is bound to a valid waypoint.".to_owned(),
    })
}

/// Said where the mesh has rules for it, or the entry itself.
fn visible(host: &Host, world: &World) -> Option<Condition> {
    let of_mesh = world.registry.visibility_by_mesh(host, &world.config);
    if world.config.service_entry_visibility.policies.is_empty() && of_mesh == host.visibility {
        return None;
    }
    let (reason, message) = match host.visibility {
        Visibility::Namespace if of_mesh == Visibility::Public => (
            "Namespace",
            "ServiceEntry is visible only within its own namespace (NAMESPACE), per exportTo.",
        ),
        Visibility::Public => ("Public", "ServiceEntry is visible to the entire mesh (PUBLIC)."),
        Visibility::Namespace => (
            "Namespace",
            "ServiceEntry is visible only within its own namespace (NAMESPACE), per mesh serviceEntryVisibility.",
        ),
        Visibility::Nobody => return None,
    };
    Some(Condition {
        kind: "istio.io/VisibilityApplied",
        holds: true,
        reason,
        message: message.to_owned(),
    })
}
