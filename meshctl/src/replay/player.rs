//! Decides what a recorded control plane says on one stream.
//!
//! In: the recording of the client and its requests. Out: responses, and what there is to tell about the client. Does no
//! I/O. It behaves as istiod was seen to (istiod-observed.md), oddities included, so that a client that trips over
//! one does so here.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
};

use prost::Message;
use proto::{
    ADDRESS_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    google::value::Kind,
    workload::{self, NetworkAddress, address},
};

use crate::recording::{Recording, word};

/// One stream.
#[derive(Debug)]
pub(super) struct Player {
    recording: Arc<Recording>,
    node: String,
    watches: BTreeMap<String, Watch>,
    sent: u64,
}

/// What the client has of one type.
#[derive(Debug, Default)]
struct Watch {
    scope: Scope,
    /// Versions of what it holds.
    held: BTreeMap<String, String>,
    /// Responses that wait for the answer to the one before.
    queue: VecDeque<DeltaDiscoveryResponse>,
    outstanding: Option<String>,
}

/// What the client wants of one type.
#[derive(Debug, Default)]
enum Scope {
    #[default]
    Everything,
    /// Only these names, and what belongs to the client's own node.
    Named(BTreeSet<String>),
}

/// Something to tell about a client.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Event {
    Subscribed { type_url: String, names: usize, held: usize },
    Asked { type_url: String, names: Vec<String> },
    Dropped { type_url: String, names: Vec<String> },
    Acknowledged { type_url: String, nonce: String },
    Rejected { type_url: String, nonce: String, message: String },
    Stale { type_url: String, nonce: String },
}

impl Player {
    pub(super) fn new(recording: Arc<Recording>) -> Self {
        Self { recording, node: String::new(), watches: BTreeMap::new(), sent: 0 }
    }

    /// A request came: what is sent because of it, and what there is to tell.
    pub(super) fn request(
        &mut self,
        request: DeltaDiscoveryRequest,
    ) -> (Vec<DeltaDiscoveryResponse>, Vec<Event>) {
        if let Some(node) = &request.node {
            let name = node.metadata.as_ref().and_then(|data| data.fields.get("NODE_NAME"));
            if let Some(Kind::StringValue(name)) = name.and_then(|value| value.kind.as_ref()) {
                self.node.clone_from(name);
            }
        }
        let type_url = request.type_url.clone();
        let events = match self.watches.get(&type_url) {
            None => vec![self.subscribe(request)],
            Some(_) => self.change(request),
        };
        (self.next(&type_url).into_iter().collect(), events)
    }

    /// The recording is another one: what is sent because of it.
    pub(super) fn replace(&mut self, recording: Arc<Recording>) -> Vec<DeltaDiscoveryResponse> {
        self.recording = recording;
        let types: Vec<String> = self.watches.keys().cloned().collect();
        for type_url in &types {
            let watch = self.watches.get_mut(type_url).expect("keys were just taken");
            let resources = self.recording.resources(type_url);
            let wanted = match &watch.scope {
                Scope::Everything => resources.values().map(|one| (*one).clone()).collect(),
                Scope::Named(names) => {
                    names.iter().flat_map(|name| found(&self.recording, name)).collect()
                }
            };
            let gone = watch.held.keys().filter(|name| !resources.contains_key(name.as_str()));
            let gone = gone.cloned().collect();
            watch.enqueue(type_url, wanted, gone, Empty::Unsaid);
        }
        types.iter().filter_map(|type_url| self.next(type_url)).collect()
    }

    /// Whether the client has answered everything that there is for it.
    pub(super) fn is_done(&self) -> bool {
        let is_done = |type_url| {
            let watch: Option<&Watch> = self.watches.get(type_url);
            watch.is_some_and(|watch| watch.queue.is_empty() && watch.outstanding.is_none())
        };
        self.recording.responses.iter().all(|(url, sent)| sent.is_empty() || is_done(url))
    }

    fn subscribe(&mut self, request: DeltaDiscoveryRequest) -> Event {
        let DeltaDiscoveryRequest { type_url, initial_resource_versions, .. } = request;
        let mut watch = Watch::default();
        let (subscribe, unsubscribe) =
            (request.resource_names_subscribe, request.resource_names_unsubscribe);
        let event = Event::Subscribed {
            type_url: type_url.clone(),
            names: subscribe.len(),
            held: initial_resource_versions.len(),
        };
        let explicit = !subscribe.is_empty() && !subscribe.iter().any(|name| name == "*");
        let on_demand = unsubscribe.iter().any(|name| name == "*");
        watch.held = initial_resource_versions.into_iter().collect();
        let recorded = self.recording.responses.get(&type_url);
        if on_demand || (explicit && has_aliases(&type_url)) {
            let mut names: BTreeSet<String> = watch.held.keys().cloned().collect();
            names.extend(subscribe.into_iter().filter(|name| name != "*"));
            let own = self.own(&type_url);
            names.extend(own.iter().map(|resource| resource.name.clone()));
            let asked: Vec<String> = names.iter().cloned().collect();
            watch.scope = Scope::Named(names);
            watch.answer(&self.recording, &type_url, &asked, Empty::Said);
        } else if watch.held.is_empty() {
            watch.queue = recorded.into_iter().flatten().cloned().collect();
            if recorded.is_none() {
                watch.enqueue(&type_url, Vec::new(), Vec::new(), Empty::Said);
            }
        } else {
            let resources = self.recording.resources(&type_url);
            let gone = watch.held.keys().filter(|name| !resources.contains_key(name.as_str()));
            let gone = gone.cloned().collect();
            let all = resources.into_values().cloned().collect();
            watch.enqueue(&type_url, all, gone, Empty::Said);
        }
        self.watches.insert(type_url, watch);
        event
    }

    /// What runs on the client's own node: an on-demand client gets it unasked.
    fn own(&self, type_url: &str) -> Vec<Resource> {
        let resources = self.recording.resources(type_url).into_values();
        let is_own = |resource: &&Resource| {
            matches!(content(resource), Some(address::Type::Workload(workload))
                if !workload.node.is_empty() && workload.node == self.node)
        };
        resources.filter(is_own).cloned().collect()
    }

    fn change(&mut self, request: DeltaDiscoveryRequest) -> Vec<Event> {
        let DeltaDiscoveryRequest { type_url, response_nonce, error_detail, .. } = request;
        let (subscribe, unsubscribe) =
            (request.resource_names_subscribe, request.resource_names_unsubscribe);
        let watch = self.watches.get_mut(&type_url).expect("the caller has looked");
        let mut events = Vec::new();
        if !response_nonce.is_empty() {
            let (type_url, nonce) = (type_url.clone(), response_nonce);
            if watch.outstanding.as_ref() == Some(&nonce) {
                watch.outstanding = None;
                events.push(match error_detail {
                    None => Event::Acknowledged { type_url, nonce },
                    Some(detail) => Event::Rejected { type_url, nonce, message: detail.message },
                });
            } else {
                events.push(Event::Stale { type_url, nonce });
            }
        }
        if !unsubscribe.is_empty() {
            events.push(Event::Dropped { type_url: type_url.clone(), names: unsubscribe.clone() });
        }
        if !subscribe.is_empty() {
            events.push(Event::Asked { type_url: type_url.clone(), names: subscribe.clone() });
        }
        if subscribe.is_empty() && !unsubscribe.is_empty() {
            // istiod takes a request that only unsubscribes for one that wants nothing at all.
            if let Scope::Named(names) = &mut watch.scope {
                let every = std::mem::take(names).into_iter().collect();
                watch.enqueue(&type_url, Vec::new(), every, Empty::Unsaid);
            }
        } else if !subscribe.is_empty() {
            if let Scope::Named(names) = &mut watch.scope {
                names.retain(|name| !unsubscribe.contains(name));
                names.extend(subscribe.iter().cloned());
            }
            for name in &unsubscribe {
                watch.held.remove(name);
            }
            watch.answer(&self.recording, &type_url, &subscribe, Empty::Unsaid);
        }
        events
    }

    /// The next response of a type, unless the client owes an answer to the last.
    fn next(&mut self, type_url: &str) -> Option<DeltaDiscoveryResponse> {
        let watch = self.watches.get_mut(type_url)?;
        if watch.outstanding.is_some() {
            return None;
        }
        let mut response = watch.queue.pop_front()?;
        self.sent += 1;
        response.nonce = format!("nonce-{}", self.sent);
        watch.outstanding = Some(response.nonce.clone());
        for resource in &response.resources {
            watch.held.insert(resource.name.clone(), resource.version.clone());
        }
        for name in &response.removed_resources {
            watch.held.remove(name);
        }
        Some(response)
    }
}

/// Whether a response that brings nothing is sent.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Empty {
    Said,
    Unsaid,
}

impl Watch {
    /// Queues what names stand for: resources, those that belong to them, or that there is nothing.
    fn answer(&mut self, recording: &Recording, type_url: &str, names: &[String], empty: Empty) {
        let (mut resources, mut unknown) = (BTreeMap::new(), Vec::new());
        for name in names {
            let mut found = if has_aliases(type_url) {
                found(recording, name)
            } else {
                recording
                    .resources(type_url)
                    .get(name.as_str())
                    .map(|one| (*one).clone())
                    .into_iter()
                    .collect()
            };
            if found.is_empty() {
                unknown.push(name.clone());
            }
            for mut resource in found.drain(..) {
                if resource.aliases.is_empty() {
                    resource.aliases = aliases(&resource);
                }
                resources.insert(resource.name.clone(), resource);
            }
        }
        self.enqueue(type_url, resources.into_values().collect(), unknown, empty);
    }

    /// Queues resources that the client does not have in this version, and names of what is not there.
    fn enqueue(
        &mut self,
        type_url: &str,
        resources: Vec<Resource>,
        removed: Vec<String>,
        empty: Empty,
    ) {
        let is_new = |resource: &Resource| {
            resource.version.is_empty() || self.held.get(&resource.name) != Some(&resource.version)
        };
        let resources: Vec<Resource> = resources.into_iter().filter(is_new).collect();
        if empty == Empty::Unsaid && resources.is_empty() && removed.is_empty() {
            return;
        }
        self.queue.push_back(DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            resources,
            removed_resources: removed,
            ..Default::default()
        });
    }
}

/// The resources that a name stands for: its own, those at an address, and the endpoints of a service among them.
fn found(recording: &Recording, name: &str) -> Vec<Resource> {
    let all = recording.resources(ADDRESS_TYPE);
    let is_meant = |resource: &&&Resource| {
        resource.name == name || aliases(resource).iter().any(|alias| alias == name)
    };
    let mut found: Vec<Resource> =
        all.values().filter(is_meant).map(|one| (*one).clone()).collect();
    let is_service = |one: &Resource| matches!(content(one), Some(address::Type::Service(_)));
    let services: Vec<String> =
        found.iter().filter(|one| is_service(one)).map(|one| one.name.clone()).collect();
    let is_endpoint = |resource: &&&Resource| match content(resource) {
        Some(address::Type::Workload(workload)) => {
            services.iter().any(|service| workload.services.contains_key(service))
        }
        Some(address::Type::Service(_)) | None => false,
    };
    found.extend(all.values().filter(is_endpoint).map(|one| (*one).clone()));
    found
}

/// The addresses of a resource, as names.
fn aliases(resource: &Resource) -> Vec<String> {
    match content(resource) {
        Some(address::Type::Workload(workload)) => {
            let at = |bytes| ip(bytes).map(|ip| format!("{}/{ip}", workload.network));
            workload.addresses.iter().filter_map(|bytes| at(bytes)).collect()
        }
        Some(address::Type::Service(service)) => {
            service.addresses.iter().filter_map(network_address).collect()
        }
        None => Vec::new(),
    }
}

fn network_address(address: &NetworkAddress) -> Option<String> {
    let ip = ip(&address.address)?;
    Some(match address.length {
        Some(length) => format!("{}/{ip}/{length}", address.network),
        None => format!("{}/{ip}", address.network),
    })
}

fn ip(bytes: &[u8]) -> Option<std::net::IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from)).ok()
}

fn content(resource: &Resource) -> Option<address::Type> {
    let any = resource.resource.as_ref()?;
    if any.type_url != ADDRESS_TYPE {
        return None;
    }
    workload::Address::decode(&*any.value).ok()?.r#type
}

fn has_aliases(type_url: &str) -> bool {
    type_url == ADDRESS_TYPE
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subscribed { type_url, names, held } => {
                write!(f, "{}: subscribed to {names} names, {held} held", word(type_url))
            }
            Self::Asked { type_url, names } => {
                write!(f, "{}: asked for {}", word(type_url), names.join(", "))
            }
            Self::Dropped { type_url, names } => {
                write!(f, "{}: dropped {}", word(type_url), names.join(", "))
            }
            Self::Acknowledged { type_url, nonce } => write!(f, "{}: ACK {nonce}", word(type_url)),
            Self::Rejected { type_url, nonce, message } => {
                write!(f, "{}: NACK {nonce}: {message}", word(type_url))
            }
            Self::Stale { type_url, nonce } => {
                write!(f, "{}: answered {nonce}, which is not outstanding", word(type_url))
            }
        }
    }
}
