//! The two protocols of discovery: requests to what they ask, responses from what is sent.
//!
//! In: requests of either. Out: [`Ask`], and responses of either. By delta a client says which names it wants more and
//! less, and gets what changed; by state of the world it says all that it wants, and gets all of a type.

use std::collections::HashSet;

use proto::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        Resource,
    },
    envoy::envoy::config::core::v3::Node,
};

use super::{
    session::{Ask, Protocol, Push, Session},
    subscription::Subscription,
    types::Type,
};

/// A request of one of the protocols.
pub(crate) trait Request: Send + 'static {
    /// What it is answered with.
    type Response: Send + 'static;
    /// The protocol.
    const PROTOCOL: Protocol;

    /// Who asks; only a stream's first request says so.
    fn node(&self) -> Option<&Node>;

    /// What it asks for; nothing if it is the answer to a response that another one has followed.
    fn ask(self, session: &Session) -> Option<Ask>;

    /// A response.
    fn response(push: Push) -> Self::Response;
}

impl Request for DeltaDiscoveryRequest {
    type Response = DeltaDiscoveryResponse;
    const PROTOCOL: Protocol = Protocol::Delta;

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn ask(self, _: &Session) -> Option<Ask> {
        Some(Ask {
            type_url: self.type_url,
            wanted: self.resource_names_subscribe,
            unwanted: self.resource_names_unsubscribe,
            held: self.initial_resource_versions,
            nonce: self.response_nonce,
            error: self.error_detail.map(|error| error.message),
        })
    }

    fn response(push: Push) -> DeltaDiscoveryResponse {
        let resources = push.resources.into_iter().map(|one| Resource {
            name: one.name,
            version: one.version,
            aliases: one.aliases,
            resource: Some(one.resource),
            ..Resource::default()
        });
        DeltaDiscoveryResponse {
            system_version_info: push.version,
            resources: resources.collect(),
            type_url: push.of.type_url().to_owned(),
            nonce: push.nonce,
            removed_resources: push.removed,
            ..DeltaDiscoveryResponse::default()
        }
    }
}

impl Request for DiscoveryRequest {
    type Response = DiscoveryResponse;
    const PROTOCOL: Protocol = Protocol::Sotw;

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn ask(self, session: &Session) -> Option<Ask> {
        let error = self.error_detail.map(|error| error.message);
        let before = Type::of_url(&self.type_url).and_then(|of| session.subscription(of));
        let mut ask =
            Ask { type_url: self.type_url, nonce: self.response_nonce, error, ..Ask::default() };
        let Some(before) = before else {
            ask.wanted = self.resource_names;
            return Some(ask);
        };
        // The answer to the last response says everything that this one would.
        if before.nonce().is_some_and(|last| last != ask.nonce) {
            return None;
        }
        (ask.wanted, ask.unwanted) = difference(before, self.resource_names);
        Some(ask)
    }

    fn response(push: Push) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: push.version,
            resources: push.resources.into_iter().map(|one| one.resource).collect(),
            type_url: push.of.type_url().to_owned(),
            nonce: push.nonce,
            ..DiscoveryResponse::default()
        }
    }
}

/// What is wanted more and less than before. A client that has not named any goes on meaning all by no names.
fn difference(before: &Subscription, names: Vec<String>) -> (Vec<String>, Vec<String>) {
    let meant_all = before.wants_all();
    let given: HashSet<&str> = names.iter().map(String::as_str).collect();
    let means_all = given.contains("*") || (meant_all && names.is_empty());
    let dropped = before.names().filter(|name| !given.contains(&***name));
    let mut unwanted: Vec<_> = dropped.map(ToString::to_string).collect();
    if meant_all && !means_all {
        unwanted.push("*".to_owned());
    }
    let is_new = |name: &String| match name.as_str() {
        "*" => !meant_all,
        name => !before.names_it(name),
    };
    (names.into_iter().filter(is_new).collect(), unwanted)
}
