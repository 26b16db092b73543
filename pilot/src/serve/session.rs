//! What to send to one client, and when.
//!
//! In: the client's requests, the current [`State`] and the time. Out: the responses to send. One response of a type
//! is under way at a time; when its answer comes, the newest state follows, whatever was in between. A policy is sent
//! before the workloads that name it and removed after them, because a daemon refuses what a missing policy guards.
//! No I/O, no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Sent},
    google::Any,
};

use super::state::{Changes, State};
use crate::compile::{Resource, ResourceType};

/// How long an Address subscription waits for the Authorization subscription, which a daemon sends at the same time.
pub(crate) const BOTH_TYPES: Duration = Duration::from_millis(100);

/// The state of one client's stream.
#[derive(Debug, Default)]
pub(crate) struct Session {
    address: Subscription,
    authorization: Subscription,
    /// Until when the first Address response waits for the other subscription.
    hold_until: Option<Instant>,
    responses: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    held: Option<Held>,
    under_way: Option<UnderWay>,
}

/// What the client has.
#[derive(Debug)]
enum Held {
    /// What it said it had when it connected: name and version.
    Claimed(BTreeMap<String, String>),
    /// Everything of a state, and what that state no longer has.
    State { state: Arc<State>, obsolete: BTreeSet<Arc<str>> },
}

#[derive(Debug)]
struct UnderWay {
    nonce: String,
    names: Vec<Arc<str>>,
}

/// What a request meant.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Event {
    /// A type is wanted from here on.
    Subscribed(ResourceType),
    /// The last response was taken.
    Acked(ResourceType),
    /// The last response was refused, in part or whole.
    Nacked {
        of: ResourceType,
        /// The resources it was about, as far as the message says.
        names: Vec<String>,
        message: String,
    },
    /// An answer to an older response, or nothing new.
    Stale,
}

/// Why a request cannot be served.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unserved {
    #[error("resources of type `{type_url}` are not served")]
    Type { type_url: String },
    #[error("only everything can be subscribed to, not single names (XDS_ON_DEMAND)")]
    OnDemand,
}

/// A response and what it brings, for the record.
#[derive(Debug)]
pub(crate) struct Push {
    pub of: ResourceType,
    pub message: DeltaDiscoveryResponse,
}

impl Session {
    /// Takes a request.
    ///
    /// # Errors
    /// [`Unserved`] if it asks for something else.
    pub(crate) fn handle(
        &mut self,
        request: DeltaDiscoveryRequest,
        now: Instant,
    ) -> Result<Event, Unserved> {
        let of = ResourceType::ALL.into_iter().find(|of| of.type_url() == request.type_url);
        let Some(of) = of else { return Err(Unserved::Type { type_url: request.type_url }) };
        if self.of(of).held.is_none() {
            return self.subscribe(of, request, now);
        }
        let subscription = self.of(of);
        let answered = subscription.under_way.take_if(|sent| sent.nonce == request.response_nonce);
        let Some(answered) = answered else { return Ok(Event::Stale) };
        Ok(match request.error_detail {
            None => Event::Acked(of),
            Some(error) => {
                let named = answered.names.iter().filter(|name| error.message.contains(&***name));
                let names = named.map(ToString::to_string).collect();
                Event::Nacked { of, names, message: error.message }
            }
        })
    }

    fn subscribe(
        &mut self,
        of: ResourceType,
        request: DeltaDiscoveryRequest,
        now: Instant,
    ) -> Result<Event, Unserved> {
        let wanted = request.resource_names_subscribe;
        let unwanted = request.resource_names_unsubscribe;
        let all = wanted.is_empty() || wanted.iter().any(|name| name == "*");
        if !all || unwanted.iter().any(|name| name == "*") {
            return Err(Unserved::OnDemand);
        }
        let claimed = request.initial_resource_versions.into_iter().collect();
        self.of(of).held = Some(Held::Claimed(claimed));
        self.hold_until = match of {
            ResourceType::Address if self.authorization.held.is_none() => Some(now + BOTH_TYPES),
            ResourceType::Address | ResourceType::Authorization => None,
        };
        Ok(Event::Subscribed(of))
    }

    /// The next moment to ask [`Session::next`] again, if nothing happens before.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.hold_until
    }

    /// The next response to send; to be called until there is none.
    pub(crate) fn next(&mut self, current: &Arc<State>, now: Instant) -> Option<Push> {
        self.policies(current)
            .or_else(|| self.addresses(current, now))
            .or_else(|| self.obsolete_policies(current))
    }

    fn policies(&mut self, current: &Arc<State>) -> Option<Push> {
        if !self.authorization.is_behind(current) {
            return None;
        }
        let first = self.authorization.is_first();
        let mut changes = self.authorization.changes(current, ResourceType::Authorization);
        let is_needed = first || !changes.updated.is_empty();
        if is_needed && self.authorization.under_way.is_some() {
            return None;
        }
        let mut obsolete = BTreeSet::new();
        if !is_needed || self.address.is_behind(current) {
            std::mem::swap(&mut obsolete, &mut changes.removed);
        }
        self.authorization.held = Some(Held::State { state: Arc::clone(current), obsolete });
        self.push(ResourceType::Authorization, current, changes, first)
    }

    fn addresses(&mut self, current: &Arc<State>, now: Instant) -> Option<Push> {
        let free = self.address.is_behind(current) && self.address.under_way.is_none();
        let policies_first = self.authorization.is_behind(current);
        if !free || policies_first || self.hold_until.is_some_and(|until| now < until) {
            return None;
        }
        self.hold_until = None;
        let first = self.address.is_first();
        let changes = self.address.changes(current, ResourceType::Address);
        let obsolete = BTreeSet::new();
        self.address.held = Some(Held::State { state: Arc::clone(current), obsolete });
        self.push(ResourceType::Address, current, changes, first)
    }

    fn obsolete_policies(&mut self, current: &Arc<State>) -> Option<Push> {
        if self.address.is_behind(current) || self.authorization.under_way.is_some() {
            return None;
        }
        let Some(Held::State { obsolete, .. }) = &mut self.authorization.held else { return None };
        let removed = std::mem::take(obsolete);
        self.push(
            ResourceType::Authorization,
            current,
            Changes { updated: Vec::new(), removed },
            false,
        )
    }

    /// The first response is sent even if it says nothing: the client waits for it.
    fn push(
        &mut self,
        of: ResourceType,
        current: &State,
        changes: Changes,
        first: bool,
    ) -> Option<Push> {
        if !first && changes == Changes::default() {
            return None;
        }
        self.responses += 1;
        let nonce = self.responses.to_string();
        let resources = current.compiled.resources(of);
        let sent = changes.updated.iter().map(|name| sent(of, name, &resources[name]));
        let message = DeltaDiscoveryResponse {
            system_version_info: current.digest(of).to_owned(),
            resources: sent.collect(),
            type_url: of.type_url().to_owned(),
            nonce: nonce.clone(),
            removed_resources: changes.removed.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.of(of).under_way = Some(UnderWay { nonce, names: changes.updated });
        Some(Push { of, message })
    }

    fn of(&mut self, of: ResourceType) -> &mut Subscription {
        match of {
            ResourceType::Address => &mut self.address,
            ResourceType::Authorization => &mut self.authorization,
        }
    }
}

impl Subscription {
    /// Whether it is subscribed to and has not been sent everything of `current`.
    fn is_behind(&self, current: &State) -> bool {
        match &self.held {
            None => false,
            Some(Held::Claimed(_)) => true,
            Some(Held::State { state, .. }) => state.generation != current.generation,
        }
    }

    fn is_first(&self) -> bool {
        matches!(self.held, Some(Held::Claimed(_)))
    }

    /// What the client lacks of `current`, and what it has too many.
    fn changes(&self, current: &State, of: ResourceType) -> Changes {
        let resources = current.compiled.resources(of);
        match &self.held {
            None => Changes::default(),
            Some(Held::Claimed(claimed)) => {
                let lacks = resources.iter().filter(|(name, resource)| {
                    claimed.get(&***name).is_none_or(|version| *version != version_of(of, resource))
                        // A policy has no version to go by.
                        || of == ResourceType::Authorization
                });
                let surplus = claimed.keys().filter(|name| !resources.contains_key(name.as_str()));
                Changes {
                    updated: lacks.map(|(name, _)| Arc::clone(name)).collect(),
                    removed: surplus.map(|name| name.as_str().into()).collect(),
                }
            }
            Some(Held::State { state, obsolete }) => {
                let mut changes = current.changes_since(state, of);
                let still = obsolete.iter().filter(|name| !resources.contains_key(*name));
                changes.removed.extend(still.cloned());
                changes
            }
        }
    }
}

/// Policies carry no version, as istiod's carry none.
fn version_of(of: ResourceType, resource: &Resource) -> String {
    match of {
        ResourceType::Address => resource.version(),
        ResourceType::Authorization => String::new(),
    }
}

fn sent(of: ResourceType, name: &str, resource: &Resource) -> Sent {
    let any = Any { type_url: of.type_url().to_owned(), value: resource.encoded.clone() };
    Sent {
        name: name.to_owned(),
        version: version_of(of, resource),
        resource: Some(any),
        ..Sent::default()
    }
}
