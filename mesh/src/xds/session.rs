//! Decides what to say on a delta xDS stream.
//!
//! In: that a stream is open, and the server's responses. Out: requests to send, updates to apply, what was rejected
//! and why. Does no I/O and keeps no clock; what it holds outlives streams, so that a new one resumes.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::Message;
use proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    envoy::{envoy::config::core::v3::Node, google::rpc::Status},
};
use serde::Serialize;

use super::{Named, faults::Fault, names};
use crate::{
    policy::{Policy, Rejected as RejectedPolicy},
    store::Update,
};

/// Rejected resources that a NACK spells out.
const SPELLED_OUT: usize = 20;
/// Rejected resources that are remembered for operators, of each type.
const REMEMBERED: usize = 1000;
/// What istiod receives, as every Go server unless told otherwise: 4 MiB, less some for what is not counted here.
const LARGEST_REQUEST: usize = (4 << 20) - 4096;

/// The resource types a node subscribes to, in the order of subscription: policies come first, so that a workload
/// does not arrive before the policy it names.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ResourceType {
    /// Policies.
    Authorization,
    /// Workloads and services.
    Address,
}

impl ResourceType {
    /// Both, in the order of subscription.
    pub const ALL: [Self; 2] = [Self::Authorization, Self::Address];

    /// Its name on the wire.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Authorization => AUTHORIZATION_TYPE,
            Self::Address => ADDRESS_TYPE,
        }
    }

    fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource_type| resource_type.type_url() == type_url)
    }

    fn decode(self, name: &str, bytes: &[u8]) -> Result<Update, Fault> {
        match self {
            Self::Authorization => {
                let policy = proto::security::Authorization::decode(bytes)?;
                let policy = Policy::try_from(policy)?;
                // It is removed by the resource's name: under another it would stay for ever.
                if *policy.key != *name {
                    return Err(Fault::OtherName { found: policy.key.to_string() });
                }
                Ok(Update::Policy(policy))
            }
            Self::Address => Ok(proto::workload::Address::decode(bytes)?.try_into()?),
        }
    }

    fn removal(self, name: String) -> Update {
        match self {
            Self::Authorization => Update::RemovePolicy(name),
            Self::Address => Update::RemoveAddress(name),
        }
    }
}

/// How much of the addresses a node wants.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Scope {
    /// All there are.
    #[default]
    Everything,
    /// What it asks for, and what runs on the node itself.
    OnDemand,
}

/// The client's side of the protocol, across streams.
pub struct Session {
    node: Node,
    scope: Scope,
    /// Where policies for everyone are.
    root_namespace: Box<str>,
    /// Types whose versions were more than a request can carry, so that the next response names everything.
    anew: [bool; ResourceType::ALL.len()],
    /// What was rejected and has not been accepted or removed since.
    faulty: [BTreeMap<Box<str>, Rejected>; ResourceType::ALL.len()],
    /// Version of each resource that was accepted and not removed, by type and name. What was rejected is not here:
    /// the server would not send it again.
    versions: [HashMap<Box<str>, Box<str>>; ResourceType::ALL.len()],
    /// Policies of which no version was accepted. They deny, so the server has to be asked whether they are still there.
    rejected_policies: HashSet<Box<str>>,
}

/// What a response led to.
#[derive(Debug)]
pub struct Handled {
    /// The type, unless the node has not subscribed to it.
    pub resource_type: Option<ResourceType>,
    /// Resources applied.
    pub accepted: usize,
    /// Resources removed.
    pub removed: usize,
    /// Resources that were not applied.
    pub rejected: Vec<Rejected>,
    /// The ACK or NACK to send.
    pub reply: DeltaDiscoveryRequest,
    /// What a node that asks for single addresses may have asked for, and got.
    pub named: Vec<Named>,
    /// Names of what there is none of.
    pub absent: Vec<String>,
}

/// A resource that was not applied, and why.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// The field that is wrong, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong with it.
    pub reason: String,
}

impl Session {
    /// A session that holds nothing, of a mesh whose root namespace is Istio's.
    pub fn new(node: Node, scope: Scope) -> Self {
        Self {
            node,
            scope,
            root_namespace: "istio-system".into(),
            anew: Default::default(),
            faulty: Default::default(),
            versions: Default::default(),
            rejected_policies: HashSet::new(),
        }
    }

    /// Policies for everyone are in this namespace: there, one of which the scope cannot be read reaches all.
    #[must_use]
    pub fn with_root_namespace(mut self, name: &str) -> Self {
        self.root_namespace = name.into();
        self
    }

    /// A stream is open: the requests to begin it with. They tell what is held, and what has been asked for and not
    /// answered yet.
    pub fn connected(&mut self, pending: &[String]) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = vec![self.subscribe(ResourceType::Authorization)];
        match self.scope {
            Scope::Everything => requests.push(self.subscribe(ResourceType::Address)),
            Scope::OnDemand => requests.extend(self.subscribe_on_demand(pending)),
        }
        requests
    }

    /// Subscribes to everything of a type. If the versions held do not fit into a request, it tells none, and what
    /// the answer does not name is removed: a trimmed list would leave behind what is gone.
    fn subscribe(&mut self, resource_type: ResourceType) -> DeltaDiscoveryRequest {
        let mut request = self.first(resource_type);
        request.initial_resource_versions = self
            .held(resource_type)
            .chain(self.unheld_policies(resource_type))
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .collect();
        let anew = request.encoded_len() > LARGEST_REQUEST;
        if anew {
            request.initial_resource_versions.clear();
        }
        self.anew[resource_type as usize] = anew;
        request
    }

    /// Subscribes to nothing but what runs on the node, what is held and what is pending. What does not fit into the
    /// first request is subscribed to by further ones.
    fn subscribe_on_demand(&self, pending: &[String]) -> Vec<DeltaDiscoveryRequest> {
        let mut first = self.first(ResourceType::Address);
        first.resource_names_subscribe = vec!["*".to_owned()];
        first.resource_names_unsubscribe = vec!["*".to_owned()];
        let pending = pending.iter().map(|name| (name.as_str(), ""));
        let (mut room, mut further) = (LARGEST_REQUEST - first.encoded_len(), Vec::new());
        for (name, version) in self.held(ResourceType::Address).chain(pending) {
            // Tag and length of the entry, and of its two fields.
            let size = name.len() + version.len() + 16;
            if size <= room {
                room -= size;
                first.initial_resource_versions.insert(name.to_owned(), version.to_owned());
            } else {
                further.push(name.to_owned());
            }
        }
        let mut requests = vec![first];
        requests.extend(ask(further));
        requests
    }

    fn first(&self, resource_type: ResourceType) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: resource_type.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Forgets that an address is held: it is about to be given up.
    pub fn forget(&mut self, name: &str) {
        self.versions[ResourceType::Address as usize].remove(name);
        self.faulty[ResourceType::Address as usize].remove(name);
    }

    /// A response came: passes its updates to `apply` (resources, then removals) and says what to answer.
    ///
    /// `apply` must take all of them. Each is decoded as it is taken, so that a large response is not held twice.
    pub fn response(
        &mut self,
        response: DeltaDiscoveryResponse,
        apply: impl FnOnce(&mut dyn Iterator<Item = Update>),
    ) -> Handled {
        let DeltaDiscoveryResponse { type_url, nonce, resources, mut removed_resources, .. } =
            response;
        let Some(resource_type) = ResourceType::of(&type_url) else {
            return not_subscribed(type_url, nonce);
        };
        if std::mem::take(&mut self.anew[resource_type as usize]) {
            self.remove_unnamed(resource_type, &resources, &mut removed_resources);
        }
        let removed = removed_resources.len();
        let asks = self.scope == Scope::OnDemand && resource_type == ResourceType::Address;
        let absent = if asks { removed_resources.clone() } else { Vec::new() };
        let mut tally = Tally {
            resource_type,
            versions: &mut self.versions[resource_type as usize],
            faulty: &mut self.faulty[resource_type as usize],
            rejected_policies: &mut self.rejected_policies,
            root_namespace: &self.root_namespace,
            accepted: 0,
            rejected: Vec::new(),
            named: asks.then(Vec::new),
        };
        let resources = resources.into_iter().map(Change::Set);
        let removals = removed_resources.into_iter().map(Change::Remove);
        apply(&mut resources.chain(removals).filter_map(|change| tally.update(change)));
        let Tally { accepted, rejected, named, .. } = tally;
        let reply = reply(type_url, nonce, &rejected);
        let (resource_type, named) = (Some(resource_type), named.unwrap_or_default());
        Handled { resource_type, accepted, removed, rejected, reply, named, absent }
    }

    /// The type was begun anew: what is held and not among `resources` is gone.
    fn remove_unnamed(
        &self,
        resource_type: ResourceType,
        resources: &[Resource],
        removed: &mut Vec<String>,
    ) {
        let named: HashSet<&str> = resources.iter().map(|one| one.name.as_str()).collect();
        let held = self.held(resource_type).chain(self.unheld_policies(resource_type));
        let gone = held.map(|(name, _)| name).filter(|name| !named.contains(name));
        removed.extend(gone.map(str::to_owned));
    }

    /// Names of policies of which no version is held, with a version that no server has: it sends them again, or says
    /// that they are gone.
    fn unheld_policies(&self, resource_type: ResourceType) -> impl Iterator<Item = (&str, &str)> {
        let rejected = match resource_type {
            ResourceType::Authorization => Some(&self.rejected_policies),
            ResourceType::Address => None,
        };
        rejected.into_iter().flatten().map(|name| (&**name, ""))
    }

    /// Name and version of every resource held.
    pub fn held(&self, resource_type: ResourceType) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.versions[resource_type as usize].iter().map(|(name, version)| (&**name, &**version))
    }

    /// What was rejected and has not been accepted or removed since, by name; at most a thousand.
    pub fn faulty(&self, resource_type: ResourceType) -> impl ExactSizeIterator<Item = &Rejected> {
        self.faulty[resource_type as usize].values()
    }
}

/// The requests that subscribe to further names, none larger than a server takes.
pub(super) fn ask(names: Vec<String>) -> Vec<DeltaDiscoveryRequest> {
    let mut requests: Vec<DeltaDiscoveryRequest> = Vec::new();
    let mut room = 0;
    for name in names {
        // Tag and length, and the type's URL once.
        let size = name.len() + 8;
        match requests.last_mut() {
            Some(request) if size <= room => {
                room -= size;
                request.resource_names_subscribe.push(name);
            }
            Some(_) | None => {
                room = (LARGEST_REQUEST - ADDRESS_TYPE.len()).saturating_sub(size);
                requests.push(DeltaDiscoveryRequest {
                    type_url: ADDRESS_TYPE.to_owned(),
                    resource_names_subscribe: vec![name],
                    ..DeltaDiscoveryRequest::default()
                });
            }
        }
    }
    requests
}

fn not_subscribed(type_url: String, nonce: String) -> Handled {
    let reason = "this type was not subscribed to".to_owned();
    let rejected = vec![Rejected { name: type_url.clone(), field: None, reason }];
    let reply = reply(type_url, nonce, &rejected);
    Handled {
        resource_type: None,
        accepted: 0,
        removed: 0,
        rejected,
        reply,
        named: Vec::new(),
        absent: Vec::new(),
    }
}

/// What one entry of a response asks for.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum Change {
    Set(Resource),
    Remove(String),
}

/// The changes of one response as they are taken.
struct Tally<'a> {
    resource_type: ResourceType,
    versions: &'a mut HashMap<Box<str>, Box<str>>,
    faulty: &'a mut BTreeMap<Box<str>, Rejected>,
    rejected_policies: &'a mut HashSet<Box<str>>,
    root_namespace: &'a str,
    accepted: usize,
    rejected: Vec<Rejected>,
    /// Wanted only where single addresses are asked for.
    named: Option<Vec<Named>>,
}

impl Tally<'_> {
    fn update(&mut self, change: Change) -> Option<Update> {
        match change {
            Change::Set(resource) => match self.decode(&resource) {
                Ok(update) => {
                    self.accepted += 1;
                    self.rejected_policies.remove(resource.name.as_str());
                    self.faulty.remove(resource.name.as_str());
                    if let Some(named) = &mut self.named {
                        named.push(names::of(&resource, &update));
                    }
                    self.versions.insert(resource.name.into(), resource.version.into());
                    Some(update)
                }
                Err(fault) => self.reject(resource, &fault),
            },
            Change::Remove(name) => {
                self.versions.remove(name.as_str());
                self.faulty.remove(name.as_str());
                if self.resource_type == ResourceType::Authorization {
                    self.rejected_policies.remove(name.as_str());
                }
                Some(self.resource_type.removal(name))
            }
        }
    }

    /// A workload that cannot be understood is as if it had not been sent; a policy denies where it would apply.
    fn reject(&mut self, resource: Resource, fault: &Fault) -> Option<Update> {
        let rejected = fault.rejected(&resource.name);
        if self.faulty.len() < REMEMBERED || self.faulty.contains_key(resource.name.as_str()) {
            self.faulty.insert(resource.name.as_str().into(), rejected.clone());
        }
        self.rejected.push(rejected);
        if self.resource_type != ResourceType::Authorization {
            return None;
        }
        if !self.versions.contains_key(resource.name.as_str()) {
            self.rejected_policies.insert(resource.name.as_str().into());
        }
        let bytes = resource.resource.as_ref().map_or(&[][..], |any| &any.value);
        let reason = fault.to_string();
        let rejected = RejectedPolicy::of(&resource.name, bytes, &reason, self.root_namespace);
        Some(Update::RejectPolicy(rejected))
    }

    fn decode(&self, resource: &Resource) -> Result<Update, Fault> {
        let any = resource.resource.as_ref().ok_or(Fault::Empty)?;
        if any.type_url != self.resource_type.type_url() {
            return Err(Fault::OtherType { found: any.type_url.clone() });
        }
        self.resource_type.decode(&resource.name, &any.value)
    }
}

/// The ACK of a response, or its NACK if anything was rejected.
fn reply(type_url: String, response_nonce: String, rejected: &[Rejected]) -> DeltaDiscoveryRequest {
    let error_detail = (!rejected.is_empty())
        .then(|| Status { message: complaint(rejected), ..Status::default() });
    DeltaDiscoveryRequest { type_url, response_nonce, error_detail, ..Default::default() }
}

/// `name: reason; name: reason`, as the server's operator reads it.
pub(super) fn complaint(rejected: &[Rejected]) -> String {
    let spelled: Vec<String> = rejected.iter().take(SPELLED_OUT).map(ToString::to_string).collect();
    let mut text = spelled.join("; ");
    if let Some(rest) = rejected.len().checked_sub(SPELLED_OUT).filter(|rest| *rest > 0) {
        text.push_str(&format!("; and {rest} more"));
    }
    text
}
