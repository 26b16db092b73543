//! What one client is to have, in one state of the mesh.
//!
//! In: a [`State`], and for a waypoint what it was compiled to. Out: resources of any type by name, and how one view
//! differs from another. Clients of a kind share all of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use super::{
    lookup::Index,
    state::{Changes, Digest, State},
    types::Type,
};
use crate::compile::{Resource, Resources, waypoint::WaypointConfig};

/// The field of an Address that holds a workload, as it is encoded: number 1, delimited by its length.
const WORKLOAD_FIELD: u8 = 0x0a;

/// The table for DNS: it has no name and nothing in it.
static NAMES: LazyLock<Resources> =
    LazyLock::new(|| Resources::unit("".into(), Resource { encoded: Vec::new(), hash: 0 }));

/// What one client is to have: never changes.
#[derive(Debug)]
pub(crate) struct View {
    pub state: Arc<State>,
    /// What a waypoint has besides.
    pub waypoint: Option<Arc<Configuration>>,
    /// Of its own namespace; none for who has not proven to be of it.
    pub secrets: Arc<Resources>,
    /// Whether the waypoint's Gateway is gone, and it keeps what it had.
    pub is_kept: bool,
}

/// The resources of a waypoint, or of several that are sent the same.
#[derive(Debug)]
pub(crate) struct Configuration {
    resources: BTreeMap<&'static str, Resources>,
    digests: BTreeMap<&'static str, Digest>,
}

impl From<&WaypointConfig> for Configuration {
    fn from(config: &WaypointConfig) -> Self {
        Self::of(BTreeMap::from(config.resources()))
    }
}

impl Configuration {
    /// Of the resources of each type, by its URL.
    pub(crate) fn of(resources: BTreeMap<&'static str, Resources>) -> Self {
        let digests = resources.iter().map(|(of, all)| (*of, Digest::of(all))).collect();
        Self { resources, digests }
    }
}

/// A resource as it is sent.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    pub encoded: &'a [u8],
    pub hash: u64,
}

impl Found<'_> {
    /// The version that stands in xDS.
    pub(crate) fn version(&self) -> String {
        format!("{:016x}", self.hash)
    }
}

impl View {
    /// Of a daemon.
    pub(crate) fn of_daemon(state: Arc<State>) -> Self {
        Self::of_waypoint(state, None, Arc::default())
    }

    /// Of a waypoint.
    pub(crate) fn of_waypoint(
        state: Arc<State>,
        waypoint: Option<Arc<Configuration>>,
        secrets: Arc<Resources>,
    ) -> Self {
        Self { state, waypoint, secrets, is_kept: false }
    }

    /// The resources that those of a type are made of.
    fn resources(&self, of: Type) -> Option<&Resources> {
        match of {
            Type::Address | Type::Workload | Type::Authorization => {
                of.of_daemons().map(|of| self.state.compiled.resources(of))
            }
            Type::Cluster | Type::Endpoint | Type::Extension | Type::Listener | Type::Route => {
                self.waypoint.as_ref()?.resources.get(of.type_url())
            }
            Type::Secret => Some(&self.secrets),
            Type::NameTable => Some(&NAMES),
            Type::ProxyConfig => None,
        }
    }

    /// One resource.
    pub(crate) fn find(&self, of: Type, name: &str) -> Option<Found<'_>> {
        found(of, self.resources(of)?.get(name)?)
    }

    /// All resources of a type, by name.
    pub(crate) fn all(&self, of: Type) -> impl Iterator<Item = (&Arc<str>, Found<'_>)> {
        let resources = self.resources(of).into_iter().flatten();
        resources.filter_map(move |(name, resource)| Some((name, found(of, resource)?)))
    }

    /// The resource of a name that a client has written, and its name as it is kept.
    pub(crate) fn name(&self, of: Type, name: &str) -> Option<Arc<str>> {
        let (name, resource) = self.resources(of)?.get_key_value(name)?;
        found(of, resource).map(|_| Arc::clone(name))
    }

    /// What resources are found by besides their names.
    pub(crate) fn index(&self) -> &Index {
        self.state.index()
    }

    /// One word for all resources of a type: equal for equal content.
    pub(crate) fn digest(&self, of: Type) -> String {
        if let Some(of) = of.of_daemons() {
            return self.state.digest(of);
        }
        let known = self.waypoint.as_ref().and_then(|all| all.digests.get(of.type_url())).copied();
        let digest = known.or_else(|| self.resources(of).map(Digest::of));
        digest.map_or_else(String::new, |digest| digest.to_string())
    }

    /// How this view differs from `older`.
    pub(crate) fn changes_since(&self, older: &Self, of: Type) -> Changes {
        let none = Resources::new();
        match of.of_daemons() {
            Some(kind) => {
                let mut changes = self.state.changes_since(&older.state, kind);
                if of == Type::Workload {
                    changes.updated.retain(|name| self.find(of, name).is_some());
                    changes.removed.retain(|name| older.find(of, name).is_some());
                }
                changes
            }
            None if self.is_same(older, of) => Changes::default(),
            None => Changes::between(
                older.resources(of).unwrap_or(&none),
                self.resources(of).unwrap_or(&none),
            ),
        }
    }

    fn is_same(&self, older: &Self, of: Type) -> bool {
        match (&self.waypoint, &older.waypoint) {
            (Some(one), Some(other)) => of != Type::Secret && Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// A resource in the form of a type: a workload is sent without what makes an Address of it.
fn found(of: Type, resource: &Resource) -> Option<Found<'_>> {
    let hash = resource.hash;
    if of != Type::Workload {
        return Some(Found { encoded: &resource.encoded, hash });
    }
    let (field, mut rest) = resource.encoded.split_first()?;
    if *field != WORKLOAD_FIELD {
        return None;
    }
    let length = prost::encoding::decode_varint(&mut rest).ok()?;
    (u64::try_from(rest.len()) == Ok(length)).then_some(Found { encoded: rest, hash })
}
