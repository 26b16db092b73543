//! Decides what to say on a delta xDS stream.
//!
//! In: that a stream is open, and the server's responses. Out: requests to send, updates to apply, what was rejected
//! and why. Does no I/O and keeps no clock; what it holds outlives streams, so that a new one resumes.

use std::collections::{HashMap, HashSet};

use prost::Message;
use proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    envoy::{envoy::config::core::v3::Node, google::rpc::Status},
    google::value::Kind,
};

use crate::{
    policy::{Policy, Rejected as RejectedPolicy},
    store::{DecodeError, Update},
};

/// Rejected resources that a NACK spells out: its text travels in a header of bounded size.
const SPELLED_OUT: usize = 20;

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

    fn decode(self, bytes: &[u8]) -> Result<Update, Fault> {
        match self {
            Self::Authorization => {
                let policy = proto::security::Authorization::decode(bytes)?;
                Ok(Update::Policy(Policy::try_from(policy)?))
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

/// The client's side of the protocol, across streams.
pub struct Session {
    node: Node,
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
}

/// A resource that was not applied, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("carries no resource")]
    Empty,
    #[error("has type {found} in a response of another type")]
    OtherType { found: String },
    #[error("{0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("{0}")]
    Content(#[from] DecodeError),
}

impl Session {
    /// A session that holds nothing.
    pub fn new(node: Node) -> Self {
        Self { node, versions: Default::default(), rejected_policies: HashSet::new() }
    }

    /// A stream is open: the requests to begin it with. They subscribe to everything and tell what is held.
    pub fn connected(&self) -> [DeltaDiscoveryRequest; ResourceType::ALL.len()] {
        ResourceType::ALL.map(|resource_type| DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: resource_type.type_url().to_owned(),
            initial_resource_versions: self
                .held(resource_type)
                .chain(self.rejected(resource_type))
                .map(|(name, version)| (name.to_owned(), version.to_owned()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// A response came: passes its updates to `apply` (resources, then removals) and says what to answer.
    ///
    /// `apply` must take all of them. Each is decoded as it is taken, so that a large response is not held twice.
    pub fn response(
        &mut self,
        response: DeltaDiscoveryResponse,
        apply: impl FnOnce(&mut dyn Iterator<Item = Update>),
    ) -> Handled {
        let DeltaDiscoveryResponse { type_url, nonce, resources, removed_resources, .. } = response;
        let Some(resource_type) = ResourceType::of(&type_url) else {
            let reason = "this type was not subscribed to".to_owned();
            let rejected = vec![Rejected { name: type_url.clone(), reason }];
            let reply = reply(type_url, nonce, &rejected);
            return Handled { resource_type: None, accepted: 0, removed: 0, rejected, reply };
        };
        let removed = removed_resources.len();
        let root_namespace = root_namespace(&self.node).to_owned();
        let mut tally = Tally {
            resource_type,
            versions: &mut self.versions[resource_type as usize],
            rejected_policies: &mut self.rejected_policies,
            root_namespace,
            accepted: 0,
            rejected: Vec::new(),
        };
        let resources = resources.into_iter().map(Change::Set);
        let removals = removed_resources.into_iter().map(Change::Remove);
        apply(&mut resources.chain(removals).filter_map(|change| tally.update(change)));
        let Tally { accepted, rejected, .. } = tally;
        let reply = reply(type_url, nonce, &rejected);
        Handled { resource_type: Some(resource_type), accepted, removed, rejected, reply }
    }

    /// Names of policies of which no version is held, with a version that no server has: it sends them again, or says
    /// that they are gone.
    fn rejected(&self, resource_type: ResourceType) -> impl Iterator<Item = (&str, &str)> {
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
    rejected_policies: &'a mut HashSet<Box<str>>,
    root_namespace: String,
    accepted: usize,
    rejected: Vec<Rejected>,
}

impl Tally<'_> {
    fn update(&mut self, change: Change) -> Option<Update> {
        match change {
            Change::Set(resource) => match self.decode(&resource) {
                Ok(update) => {
                    self.accepted += 1;
                    self.rejected_policies.remove(resource.name.as_str());
                    self.versions.insert(resource.name.into(), resource.version.into());
                    Some(update)
                }
                Err(fault) => {
                    let reason = fault.to_string();
                    let update = self.reject(&resource, &reason);
                    self.rejected.push(Rejected { name: resource.name, reason });
                    update
                }
            },
            Change::Remove(name) => {
                self.versions.remove(name.as_str());
                if self.resource_type == ResourceType::Authorization {
                    self.rejected_policies.remove(name.as_str());
                }
                Some(self.resource_type.removal(name))
            }
        }
    }

    /// A workload that cannot be understood is as if it had not been sent; a policy denies where it would apply.
    fn reject(&mut self, resource: &Resource, reason: &str) -> Option<Update> {
        if self.resource_type != ResourceType::Authorization {
            return None;
        }
        if !self.versions.contains_key(resource.name.as_str()) {
            self.rejected_policies.insert(resource.name.as_str().into());
        }
        let bytes = resource.resource.as_ref().map_or(&[][..], |any| &any.value);
        let rejected = RejectedPolicy::of(&resource.name, bytes, reason, &self.root_namespace);
        Some(Update::RejectPolicy(rejected))
    }

    fn decode(&self, resource: &Resource) -> Result<Update, Fault> {
        let any = resource.resource.as_ref().ok_or(Fault::Empty)?;
        if any.type_url != self.resource_type.type_url() {
            return Err(Fault::OtherType { found: any.type_url.clone() });
        }
        self.resource_type.decode(&any.value)
    }
}

/// The namespace of the mesh's own components, which is the one of policies for everyone.
fn root_namespace(node: &Node) -> &str {
    let fields = node.metadata.as_ref().map(|metadata| &metadata.fields);
    match fields.and_then(|fields| fields.get("NAMESPACE")?.kind.as_ref()) {
        Some(Kind::StringValue(namespace)) => namespace,
        Some(_) | None => "istio-system",
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
    let spelled: Vec<String> = rejected
        .iter()
        .take(SPELLED_OUT)
        .map(|Rejected { name, reason }| format!("{name}: {reason}"))
        .collect();
    let mut text = spelled.join("; ");
    if let Some(rest) = rejected.len().checked_sub(SPELLED_OUT).filter(|rest| *rest > 0) {
        text.push_str(&format!("; and {rest} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use proto::google::Any;

    use super::*;

    fn workload(uid: &str, version: &str) -> Resource {
        let workload = proto::workload::Workload {
            uid: uid.into(),
            name: "web".into(),
            namespace: "shop".into(),
            addresses: vec![vec![10, 0, 0, 1]],
            ..Default::default()
        };
        resource(uid, version, workload)
    }

    /// Its address has three bytes.
    fn bad_workload(uid: &str, version: &str) -> Resource {
        let addresses = vec![vec![10, 0, 0]];
        let workload =
            proto::workload::Workload { uid: uid.into(), addresses, ..Default::default() };
        resource(uid, version, workload)
    }

    fn resource(name: &str, version: &str, workload: proto::workload::Workload) -> Resource {
        use proto::workload::{Address, address::Type};
        let value = Address { r#type: Some(Type::Workload(workload)) }.encode_to_vec();
        Resource {
            name: name.into(),
            version: version.into(),
            resource: Some(Any { type_url: ADDRESS_TYPE.into(), value }),
            ..Default::default()
        }
    }

    fn addresses(resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: ADDRESS_TYPE.into(),
            nonce: "n1".into(),
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    fn session() -> Session {
        Session::new(Node { id: "ztunnel~test".into(), ..Node::default() })
    }

    /// Handles `response`; the updates as words, then what is held afterwards.
    fn handle(session: &mut Session, response: DeltaDiscoveryResponse) -> (Vec<String>, Handled) {
        let mut updates = Vec::new();
        let handled = session.response(response, |taken| updates.extend(taken.map(|u| word(&u))));
        (updates, handled)
    }

    fn word(update: &Update) -> String {
        match update {
            Update::Workload(workload) => format!("workload {}", workload.uid),
            Update::Service(service) => format!("service {}", service.hostname),
            Update::RemoveAddress(name) => format!("remove {name}"),
            Update::Policy(policy) => format!("policy {}", policy.key),
            Update::RejectPolicy(rejected) => format!("reject {}", rejected.key),
            Update::RemovePolicy(name) => format!("remove policy {name}"),
        }
    }

    fn held(session: &Session) -> Vec<String> {
        let held = session.held(ResourceType::Address);
        let mut held: Vec<String> =
            held.map(|(name, version)| format!("{name}@{version}")).collect();
        held.sort();
        held
    }

    fn error(handled: &Handled) -> Option<&str> {
        handled.reply.error_detail.as_ref().map(|status| status.message.as_str())
    }

    #[test]
    fn a_new_stream_subscribes_to_policies_first_and_to_everything() {
        let requests = session().connected();
        let types: Vec<&str> = requests.iter().map(|request| request.type_url.as_str()).collect();
        assert_eq!(types, [AUTHORIZATION_TYPE, ADDRESS_TYPE]);
        for request in requests {
            assert_eq!(request.node.unwrap().id, "ztunnel~test");
            assert!(request.resource_names_subscribe.is_empty());
            assert!(request.initial_resource_versions.is_empty());
        }
    }

    #[test]
    fn a_good_response_is_applied_and_acknowledged_by_nonce_alone() {
        let mut session = session();
        let (updates, handled) = handle(&mut session, addresses(vec![workload("a", "1")], &[]));
        assert_eq!(updates, ["workload a"]);
        let ack = DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.into(),
            response_nonce: "n1".into(),
            ..Default::default()
        };
        assert_eq!(handled.reply, ack);
        assert_eq!(held(&session), ["a@1"]);
    }

    #[test]
    fn one_bad_resource_of_three_is_named_and_the_others_apply() {
        let mut session = session();
        let resources = vec![workload("a", "1"), bad_workload("b", "1"), workload("c", "1")];
        let (updates, handled) = handle(&mut session, addresses(resources, &[]));
        assert_eq!(updates, ["workload a", "workload c"]);
        let message = error(&handled).unwrap();
        assert!(message.starts_with("b: ") && message.contains("addresses"), "{message}");
        assert_eq!(held(&session), ["a@1", "c@1"], "b would not be sent again");
    }

    #[test]
    fn a_rejected_change_leaves_the_accepted_version() {
        let mut session = session();
        handle(&mut session, addresses(vec![workload("a", "1")], &[]));
        handle(&mut session, addresses(vec![bad_workload("a", "2")], &[]));
        assert_eq!(held(&session), ["a@1"]);
    }

    fn policies(resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: AUTHORIZATION_TYPE.into(),
            ..addresses(resources, removed)
        }
    }

    fn policy(name: &str, action: i32) -> Resource {
        let (namespace, own) = name.split_once('/').unwrap();
        let value = proto::security::Authorization {
            name: own.into(),
            namespace: namespace.into(),
            action,
            ..Default::default()
        }
        .encode_to_vec();
        Resource {
            name: name.into(),
            version: "1".into(),
            resource: Some(Any { type_url: AUTHORIZATION_TYPE.into(), value }),
            ..Default::default()
        }
    }

    #[test]
    fn a_rejected_policy_is_passed_on_as_rejected() {
        let mut session = session();
        let (updates, handled) = handle(&mut session, policies(vec![policy("shop/p", 9)], &[]));
        assert_eq!(updates, ["reject shop/p"]);
        assert_eq!(error(&handled), Some("shop/p: action: 9 is not a known value"));
        assert_eq!((handled.accepted, handled.rejected.len()), (0, 1));
    }

    #[test]
    fn a_new_stream_asks_whether_a_rejected_policy_is_still_there() {
        let told = |session: &Session| {
            let [authorization, address] = session.connected();
            assert!(address.initial_resource_versions.is_empty());
            let versions = authorization.initial_resource_versions;
            versions.into_iter().map(|(name, version)| name + "@" + &version).collect::<Vec<_>>()
        };
        let mut session = session();
        handle(&mut session, policies(vec![policy("shop/p", 9)], &[]));
        assert_eq!(told(&session), ["shop/p@"]);
        handle(&mut session, policies(vec![policy("shop/p", 0)], &[]));
        handle(&mut session, policies(vec![policy("shop/p", 9)], &[]));
        assert_eq!(told(&session), ["shop/p@1"], "the older version is held");
        handle(&mut session, policies(vec![policy("shop/q", 9)], &["shop/p"]));
        assert_eq!(told(&session), ["shop/q@"]);
        handle(&mut session, policies(vec![], &["shop/q"]));
        assert!(told(&session).is_empty());
    }

    #[test]
    fn removals_follow_resources_and_are_forgotten() {
        let mut session = session();
        handle(&mut session, addresses(vec![workload("a", "1")], &[]));
        let response = addresses(vec![workload("b", "1")], &["a", "never-seen"]);
        let (updates, handled) = handle(&mut session, response);
        assert_eq!(updates, ["workload b", "remove a", "remove never-seen"]);
        assert_eq!((handled.accepted, handled.removed), (1, 2));
        assert_eq!(held(&session), ["b@1"]);
    }

    #[test]
    fn a_new_stream_tells_every_version_held() {
        let mut session = session();
        handle(&mut session, addresses(vec![workload("a", "1"), workload("b", "7")], &[]));
        handle(&mut session, addresses(vec![workload("a", "2")], &[]));
        let [authorization, address] = session.connected();
        assert!(authorization.initial_resource_versions.is_empty());
        let versions = &address.initial_resource_versions;
        assert_eq!((versions.len(), &*versions["a"], &*versions["b"]), (2, "2", "7"));
    }

    #[test]
    fn a_resource_without_content_or_of_another_type_is_rejected() {
        let mut empty = workload("a", "1");
        empty.resource = None;
        let mut other = workload("b", "1");
        other.resource.as_mut().unwrap().type_url = AUTHORIZATION_TYPE.into();
        let mut garbage = workload("c", "1");
        garbage.resource.as_mut().unwrap().value = vec![0xff; 3];
        let (updates, handled) =
            handle(&mut session(), addresses(vec![empty, other, garbage], &[]));
        assert!(updates.is_empty());
        let message = error(&handled).unwrap();
        let expected = format!(
            "a: carries no resource; b: has type {AUTHORIZATION_TYPE} in a response of another type; c: "
        );
        assert!(message.starts_with(&expected), "{message}");
    }

    #[test]
    fn a_type_that_was_not_subscribed_to_is_rejected() {
        let mut response = addresses(vec![workload("a", "1")], &[]);
        response.type_url = "type.googleapis.com/other".into();
        let (updates, handled) = handle(&mut session(), response);
        assert!(updates.is_empty() && handled.resource_type.is_none());
        let expected = "type.googleapis.com/other: this type was not subscribed to";
        assert_eq!(error(&handled), Some(expected));
    }

    #[test]
    fn a_nack_spells_out_twenty_resources_and_counts_the_rest() {
        let resources = (0..25).map(|i| bad_workload(&format!("w{i}"), "1")).collect();
        let (_, handled) = handle(&mut session(), addresses(resources, &[]));
        let message = error(&handled).unwrap();
        assert!(message.contains("w19: ") && !message.contains("w20: "), "{message}");
        assert!(message.ends_with("; and 5 more"), "{message}");
        assert_eq!(handled.rejected.len(), 25);
    }

    proptest::proptest! {
        /// Foreign bytes are rejected or applied, never a panic, and what is held is what was applied.
        #[test]
        fn any_bytes_are_applied_or_named(
            resources in proptest::collection::vec(
                (proptest::string::string_regex("[a-c]{0,2}").unwrap(), proptest::collection::vec(0u8.., 0..64)),
                0..6,
            ),
            policies: bool,
        ) {
            let type_url = if policies { AUTHORIZATION_TYPE } else { ADDRESS_TYPE };
            let count = resources.len();
            let resources = resources.into_iter().map(|(name, value)| Resource {
                name,
                resource: Some(Any { type_url: type_url.into(), value }),
                ..Default::default()
            });
            let mut response = addresses(resources.collect(), &[]);
            response.type_url = type_url.into();
            let (updates, handled) = handle(&mut session(), response);
            let applied = updates.iter().filter(|update| !update.starts_with("reject ")).count();
            proptest::prop_assert_eq!(applied, handled.accepted);
            proptest::prop_assert_eq!(handled.accepted + handled.rejected.len(), count);
            proptest::prop_assert_eq!(handled.reply.error_detail.is_some(), handled.accepted < count);
        }
    }
}
