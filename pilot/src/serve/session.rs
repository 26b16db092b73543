//! What to send to one client, and when.
//!
//! In: the client's requests, its current [`View`] and the time. Out: the responses to send. One response of a type is
//! under way at a time; when its answer comes, the newest state follows, whatever was in between. What is referred to
//! is sent before what refers to it, and removed after it: a daemon refuses what a missing policy guards, and a
//! waypoint what is routed to a missing cluster. No I/O, no clock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use proto::google::Any;

use super::{
    subscription::{Due, Subscription},
    types::Type,
    view::{Found, View},
};

/// How long an Address subscription waits for the Authorization subscription, which a daemon sends at the same time, and
/// the removal of clusters for the subscription to listeners, which an Envoy that returns does.
pub(crate) const BOTH_TYPES: Duration = Duration::from_millis(100);
/// How long listeners wait for a waypoint to ask for the endpoints of its new clusters.
pub(crate) const NEW_ENDPOINTS: Duration = Duration::from_secs(1);

/// The state of one client's stream.
#[derive(Debug)]
pub(crate) struct Session {
    audience: Audience,
    protocol: Protocol,
    /// Whose workloads the client gets unasked if it asks for single ones.
    node: String,
    subscriptions: BTreeMap<Type, Subscription>,
    /// Until when one type waits for the subscription to another.
    hold_until: Option<Instant>,
    /// Until when listeners wait for the endpoints of new clusters.
    endpoints_until: Option<Instant>,
    responses: u64,
}

/// Who is served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Audience {
    /// A node's daemon, or whoever else takes workloads and policies only.
    Daemon,
    /// A waypoint, or a gateway between networks.
    Waypoint,
}

/// How resources travel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Protocol {
    /// Those that changed.
    Delta,
    /// All of a type.
    Sotw,
}

/// What a client asks for in one request, whatever the protocol.
#[derive(Debug, Default)]
pub(crate) struct Ask {
    pub type_url: String,
    /// Names that it wants from here on.
    pub wanted: Vec<String>,
    /// Names that it no longer wants.
    pub unwanted: Vec<String>,
    /// What it had when it connected: name and version.
    pub held: HashMap<String, String>,
    /// Which response this is the answer to, if to any.
    pub nonce: String,
    /// Why that response was refused.
    pub error: Option<String>,
}

/// What a request meant.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Event {
    /// A type is wanted from here on.
    Subscribed(Type),
    /// The last response was taken.
    Acked(Type),
    /// The last response was refused, in part or whole.
    Nacked {
        of: Type,
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
    #[error(
        "resources of type `{type_url}` are for waypoints, whose node id is of the form waypoint~ADDRESS~POD.NAMESPACE~DOMAIN"
    )]
    NotWaypoint { type_url: String },
}

/// A response.
#[derive(Debug)]
pub(crate) struct Push {
    pub of: Type,
    /// Equal for equal content of all of the type.
    pub version: String,
    pub nonce: String,
    pub resources: Vec<Sent>,
    /// What the client is to forget; nothing where a response has all there is.
    pub removed: Vec<String>,
    /// When what it brings was written, if the client has had something before.
    pub written: Option<SystemTime>,
}

/// A resource in a response.
#[derive(Debug)]
pub(crate) struct Sent {
    pub name: String,
    pub version: String,
    /// What else it is found by, for a client that looks things up.
    pub aliases: Vec<String>,
    pub resource: Any,
}

impl Session {
    /// Of a client that has just connected.
    pub(crate) fn new(audience: Audience, protocol: Protocol, node: &str) -> Self {
        Self {
            audience,
            protocol,
            node: node.to_owned(),
            subscriptions: BTreeMap::new(),
            hold_until: None,
            endpoints_until: None,
            responses: 0,
        }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// [`Unserved`] if it asks for something else.
    pub(crate) fn handle(&mut self, ask: Ask, now: Instant) -> Result<Event, Unserved> {
        let Some(of) = Type::of_url(&ask.type_url) else {
            return Err(Unserved::Type { type_url: ask.type_url });
        };
        if of.is_of_waypoints() && self.audience != Audience::Waypoint {
            return Err(Unserved::NotWaypoint { type_url: ask.type_url });
        }
        let Some(subscription) = self.subscriptions.get_mut(&of) else {
            self.subscribe(of, ask, now);
            return Ok(Event::Subscribed(of));
        };
        let answered = subscription.answered(&ask.nonce);
        subscription.ask(ask.wanted);
        subscription.give_up(&ask.unwanted, &self.node);
        let Some(answered) = answered else { return Ok(Event::Stale) };
        Ok(match ask.error {
            None => Event::Acked(of),
            Some(message) => {
                let named = answered.names.iter().filter(|name| message.contains(&***name));
                let names = named.map(ToString::to_string).collect();
                Event::Nacked { of, names, message }
            }
        })
    }

    fn subscribe(&mut self, of: Type, ask: Ask, now: Instant) {
        let mut subscription = Subscription::new(of);
        subscription.begin(ask.wanted, ask.held);
        subscription.give_up(&ask.unwanted, &self.node);
        self.subscriptions.insert(of, subscription);
        let has = |of| self.subscriptions.contains_key(&of);
        let lacks = (of == Type::Address && !has(Type::Authorization))
            || (of == Type::Cluster && !has(Type::Listener));
        if lacks {
            self.hold_until = Some(now + BOTH_TYPES);
        } else if matches!(of, Type::Authorization | Type::Listener) {
            self.hold_until = None;
        }
    }

    /// Whether the client asks for something by more than its name, which takes an index.
    pub(crate) fn looks_up(&self) -> bool {
        self.subscriptions.values().any(Subscription::looks_up)
    }

    /// What a client has asked for of a type, if anything.
    pub(crate) fn subscription(&self, of: Type) -> Option<&Subscription> {
        self.subscriptions.get(&of)
    }

    /// The next moment to ask [`Session::next`] again, if nothing happens before.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.hold_until.into_iter().chain(self.endpoints_until).min()
    }

    /// The next response to send; to be called until there is none.
    pub(crate) fn next(&mut self, view: &Arc<View>, now: Instant) -> Option<Push> {
        self.hold_until.take_if(|until| *until <= now);
        self.endpoints_until.take_if(|until| *until <= now);
        let mut types = Type::ALL.into_iter();
        types.find_map(|of| self.news(of, view, now)).or_else(|| {
            let mut types = Type::ALL.into_iter();
            types.find_map(|of| self.removals(of, view))
        })
    }

    /// What is new of a type; what is gone, too, if nothing can refer to it.
    fn news(&mut self, of: Type, view: &Arc<View>, now: Instant) -> Option<Push> {
        let subscription = self.subscriptions.get(&of)?;
        let is_blocked = subscription.is_under_way() && of.is_needed_by().is_none();
        if of == Type::ProxyConfig
            || is_blocked
            || !subscription.is_behind(view)
            || self.waits(of, view)
        {
            return None;
        }
        let mut due = subscription.due(view, &self.node);
        let mut later = BTreeSet::new();
        if of.is_needed_by().is_some() {
            later.clone_from(&due.removed);
        }
        let has_news = due.updated.len() + due.absent.len() + due.removed.len() > later.len();
        // The first response to a wildcard is sent even if it says nothing: the client waits for it.
        let is_first = subscription.is_first() && of.has_wildcard();
        if (is_first || has_news) && subscription.is_under_way() {
            return None;
        }
        let subscription = self.subscriptions.get_mut(&of)?;
        subscription.settle(view, &due, &later);
        due.removed.retain(|name| !later.contains(name));
        if !is_first && !has_news {
            return None;
        }
        if of == Type::Cluster {
            self.follow_clusters(&due, now);
        }
        self.push(of, view, &due)
    }

    /// An Envoy that is told of a cluster waits for its endpoints, also if it had them before.
    fn follow_clusters(&mut self, due: &Due, now: Instant) {
        if due.updated.is_empty() {
            return;
        }
        self.endpoints_until = Some(now + NEW_ENDPOINTS);
        if let Some(endpoints) = self.subscriptions.get_mut(&Type::Endpoint) {
            endpoints.repeat(due.updated.iter());
        }
    }

    /// Whether something has to be there before news of a type.
    fn waits(&self, of: Type, view: &Arc<View>) -> bool {
        match of {
            Type::Address => self.hold_until.is_some() || self.is_behind(Type::Authorization, view),
            Type::Listener => {
                let clusters = self.subscriptions.get(&Type::Cluster);
                clusters.is_some_and(|one| one.is_behind(view) || one.is_under_way())
                    || (self.endpoints_until.is_some() && self.lacks_endpoints(view))
            }
            Type::Route => self.is_behind(Type::Listener, view),
            Type::Cluster
            | Type::Endpoint
            | Type::Secret
            | Type::Extension
            | Type::Authorization
            | Type::Workload
            | Type::NameTable
            | Type::ProxyConfig => false,
        }
    }

    fn is_behind(&self, of: Type, view: &Arc<View>) -> bool {
        self.subscriptions.get(&of).is_some_and(|subscription| subscription.is_behind(view))
    }

    /// Whether there are clusters whose endpoints have not been asked for, or not been sent.
    fn lacks_endpoints(&self, view: &Arc<View>) -> bool {
        let mut assignments = view.all(Type::Endpoint);
        match self.subscriptions.get(&Type::Endpoint) {
            None => assignments.next().is_some(),
            Some(endpoints) => {
                endpoints.is_behind(view)
                    || assignments
                        .any(|(name, _)| !endpoints.wants_all() && !endpoints.names_it(name))
            }
        }
    }

    /// What is gone and no longer referred to.
    fn removals(&mut self, of: Type, view: &Arc<View>) -> Option<Push> {
        let by = of.is_needed_by()?;
        let subscription = self.subscriptions.get(&of)?;
        if subscription.obsolete().is_empty() || subscription.is_under_way() {
            return None;
        }
        let is_in_use = match self.subscriptions.get(&by) {
            // A daemon has taken a response when it reads the next one; an Envoy has not.
            Some(by) => by.is_behind(view) || (of.is_of_waypoints() && by.is_under_way()),
            None => of.is_of_waypoints() && self.hold_until.is_some(),
        };
        if is_in_use {
            return None;
        }
        let gone = self.subscriptions.get_mut(&of)?.take_obsolete();
        let removed = gone.keys().cloned().collect();
        self.push(of, view, &Due { removed, ..Due::default() })
    }

    fn push(&mut self, of: Type, view: &View, due: &Due) -> Option<Push> {
        let subscription = self.subscriptions.get_mut(&of)?;
        let looks_up = subscription.looks_up();
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        match self.protocol {
            Protocol::Delta => {
                let updated =
                    due.updated.iter().filter_map(|name| Some((name, view.find(of, name)?)));
                resources
                    .extend(updated.map(|(name, found)| sent(of, view, name, &found, looks_up)));
                removed.extend(due.removed.iter().chain(&due.absent).map(ToString::to_string));
            }
            Protocol::Sotw if subscription.wants_all() => {
                let all = view.all(of);
                resources.extend(all.map(|(name, found)| sent(of, view, name, &found, false)));
                for (name, gone) in subscription.obsolete() {
                    let kept = Found { encoded: &gone.encoded, hash: gone.hash };
                    resources.push(sent(of, view, name, &kept, false));
                }
            }
            Protocol::Sotw => {
                let asked = subscription.names().flat_map(|name| subscription.find(view, name));
                let asked: BTreeSet<_> = asked.collect();
                let found = asked.iter().filter_map(|name| Some((name, view.find(of, name)?)));
                resources.extend(found.map(|(name, found)| sent(of, view, name, &found, false)));
                // There is no way to say that something is not there.
                if resources.is_empty() || due.updated.is_empty() {
                    return None;
                }
            }
        }
        let written = subscription.nonce().is_some().then_some(view.state.at);
        self.responses += 1;
        let nonce = self.responses.to_string();
        let names = resources.iter().map(|one| one.name.as_str().into()).collect();
        subscription.sent(&nonce, names);
        let version = view.digest(of);
        Some(Push { of, version, nonce, resources, removed, written })
    }
}

fn sent(of: Type, view: &View, name: &str, found: &Found<'_>, looks_up: bool) -> Sent {
    Sent {
        name: name.to_owned(),
        // Policies carry no version, as istiod's carry none.
        version: if of == Type::Authorization { String::new() } else { found.version() },
        aliases: if looks_up { view.index().aliases(name).to_vec() } else { Vec::new() },
        resource: Any { type_url: of.type_url().to_owned(), value: found.encoded.to_vec() },
    }
}
