//! What the client says, shown on single responses.

use prost::Message;
use proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    envoy::envoy::config::core::v3::Node,
    google::{Any, Struct, Value, value::Kind},
};

use super::{Handled, ResourceType, Scope, Session};
use crate::{policy::Reach, store::Update};

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
    let workload = proto::workload::Workload { uid: uid.into(), addresses, ..Default::default() };
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
    Session::new(Node { id: "ztunnel~test".into(), ..Node::default() }, Scope::Everything)
}

/// The two requests that begin a stream.
fn first(session: &mut Session) -> [DeltaDiscoveryRequest; 2] {
    session.connected(&[]).try_into().unwrap()
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
    let mut held: Vec<String> = held.map(|(name, version)| format!("{name}@{version}")).collect();
    held.sort();
    held
}

fn error(handled: &Handled) -> Option<&str> {
    handled.reply.error_detail.as_ref().map(|status| status.message.as_str())
}

#[test]
fn a_new_stream_subscribes_to_policies_first_and_to_everything() {
    let requests = session().connected(&[]);
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
    DeltaDiscoveryResponse { type_url: AUTHORIZATION_TYPE.into(), ..addresses(resources, removed) }
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
fn a_policy_is_kept_under_no_other_name_than_it_is_removed_by() {
    let mut session = session();
    let other = Resource { name: "shop/p".into(), ..policy("shop/q", 0) };
    let (updates, handled) = handle(&mut session, policies(vec![other], &[]));
    assert_eq!(updates, ["reject shop/p"]);
    let expected = "shop/p: holds the policy shop/q, which is another name";
    assert_eq!(error(&handled), Some(expected));
}

#[test]
fn a_rejected_policy_of_the_root_namespace_reaches_everyone_wherever_the_daemon_runs() {
    let reach = |session: &mut Session, name: &str| {
        let mut garbage = policy(name, 0);
        garbage.resource.as_mut().unwrap().value = vec![0xff; 3];
        let mut updates = Vec::new();
        session.response(policies(vec![garbage], &[]), |taken| updates.extend(taken));
        match updates.pop() {
            Some(Update::RejectPolicy(rejected)) => rejected.reach,
            other => panic!("{other:?}"),
        }
    };
    let namespace = Value { kind: Some(Kind::StringValue("daemons".into())) };
    let metadata = Struct { fields: [("NAMESPACE".to_owned(), namespace)].into() };
    let node = Node { metadata: Some(metadata), ..Node::default() };
    let mut session = Session::new(node, Scope::Everything);
    assert_eq!(reach(&mut session, "istio-system/p"), Reach::Everyone);
    assert_eq!(reach(&mut session, "daemons/p"), Reach::Namespace("daemons".into()));
    let mut session = session.with_root_namespace("mesh");
    assert_eq!(reach(&mut session, "mesh/p"), Reach::Everyone);
    assert_eq!(reach(&mut session, "istio-system/p"), Reach::Namespace("istio-system".into()));
}

#[test]
fn a_new_stream_asks_whether_a_rejected_policy_is_still_there() {
    let told = |session: &mut Session| {
        let [authorization, address] = first(session);
        assert!(address.initial_resource_versions.is_empty());
        let versions = authorization.initial_resource_versions;
        versions.into_iter().map(|(name, version)| name + "@" + &version).collect::<Vec<_>>()
    };
    let mut session = session();
    handle(&mut session, policies(vec![policy("shop/p", 9)], &[]));
    assert_eq!(told(&mut session), ["shop/p@"]);
    handle(&mut session, policies(vec![policy("shop/p", 0)], &[]));
    handle(&mut session, policies(vec![policy("shop/p", 9)], &[]));
    assert_eq!(told(&mut session), ["shop/p@1"], "the older version is held");
    handle(&mut session, policies(vec![policy("shop/q", 9)], &["shop/p"]));
    assert_eq!(told(&mut session), ["shop/q@"]);
    handle(&mut session, policies(vec![], &["shop/q"]));
    assert!(told(&mut session).is_empty());
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
    let [authorization, address] = first(&mut session);
    assert!(authorization.initial_resource_versions.is_empty());
    let versions = &address.initial_resource_versions;
    assert_eq!((versions.len(), &*versions["a"], &*versions["b"]), (2, "2", "7"));
}

/// A session that holds so many workloads that their versions do not fit into a request.
fn large() -> (Session, Vec<Resource>) {
    let resources: Vec<Resource> = (0..100_000)
        .map(|number| {
            let uid = format!("Kubernetes//Pod/namespace/deployment-7f9d4c5b6-{number:05}");
            workload(&uid, "0123456789abcdef")
        })
        .collect();
    let mut session = session();
    handle(&mut session, addresses(resources.clone(), &[]));
    (session, resources)
}

#[test]
fn versions_that_do_not_fit_into_a_request_are_not_told_and_the_answer_is_all_there_is() {
    let (mut session, mut resources) = large();
    let versions = session.held(ResourceType::Address);
    let bytes: usize = versions.map(|(name, version)| name.len() + version.len() + 8).sum();
    assert!(bytes > 4 << 20, "100,000 pods take {bytes} bytes");
    let [_, address] = first(&mut session);
    assert!(address.initial_resource_versions.is_empty());
    assert!(address.encoded_len() < 4 << 20);

    resources.truncate(50_000);
    resources[0] = bad_workload(&resources[0].name, "2");
    let (updates, handled) = handle(&mut session, addresses(resources, &[]));
    assert_eq!(updates.iter().filter(|update| update.starts_with("remove ")).count(), 50_000);
    assert_eq!((handled.accepted, handled.removed), (49_999, 50_000));
    assert_eq!(held(&session).len(), 50_000, "of the rejected one the older version is held");
    let [_, address] = first(&mut session);
    assert_eq!(address.initial_resource_versions.len(), 50_000);
    let (updates, _) = handle(&mut session, addresses(vec![], &[]));
    assert!(updates.is_empty(), "only an answer to no versions names everything");
}

fn on_demand() -> Session {
    Session::new(Node { id: "ztunnel~test".into(), ..Node::default() }, Scope::OnDemand)
}

#[test]
fn an_on_demand_stream_begins_with_nothing_but_all_policies() {
    let [authorization, address] = first(&mut on_demand());
    assert!(authorization.resource_names_subscribe.is_empty());
    assert_eq!(address.resource_names_subscribe, ["*"]);
    assert_eq!(address.resource_names_unsubscribe, ["*"]);
    assert!(address.initial_resource_versions.is_empty());
}

#[test]
fn an_on_demand_stream_resumes_with_what_is_held_and_what_is_pending() {
    let mut session = on_demand();
    handle(&mut session, addresses(vec![workload("a", "1"), bad_workload("b", "1")], &[]));
    let requests = session.connected(&["/10.0.0.9".to_owned()]);
    let versions = &requests[1].initial_resource_versions;
    assert_eq!((versions.len(), &*versions["a"], &*versions["/10.0.0.9"]), (2, "1", ""));
    session.forget("a");
    assert_eq!(session.connected(&[])[1].initial_resource_versions.len(), 0);
}

#[test]
fn on_demand_names_that_do_not_fit_into_a_request_are_asked_for_by_further_ones() {
    let mut session = on_demand();
    let (large, resources) = large();
    handle(&mut session, addresses(resources, &[]));
    let requests = session.connected(&[]);
    let told: usize = requests.iter().map(|request| request.initial_resource_versions.len()).sum();
    let asked = requests.iter().skip(2).map(|request| request.resource_names_subscribe.len());
    assert_eq!(told + asked.sum::<usize>(), large.held(ResourceType::Address).len());
    assert!(requests.len() > 2 && requests.iter().all(|request| request.encoded_len() < 4 << 20));
    assert!(requests.iter().skip(2).all(|request| request.node.is_none()));
}

#[test]
fn an_answer_names_what_it_may_have_been_asked_by() {
    let mut resource = workload("a", "1");
    resource.aliases = vec!["/10.0.0.1".into(), "/10.0.0.2".into()];
    let (_, handled) = handle(&mut on_demand(), addresses(vec![resource], &["/10.9.9.9"]));
    assert_eq!(&*handled.named[0].name, "a");
    assert_eq!(handled.named[0].aliases, ["/10.0.0.1", "/10.0.0.2"]);
    assert_eq!(handled.absent, ["/10.9.9.9"]);
    let (_, handled) = handle(&mut on_demand(), addresses(vec![workload("a", "1")], &[]));
    assert_eq!(handled.named[0].aliases, ["/10.0.0.1"], "aliases need not be sent");
}

#[test]
fn what_is_rejected_is_remembered_with_field_and_reason_until_it_is_right_or_gone() {
    let faulty = |session: &Session| {
        let faulty = session.faulty(ResourceType::Address);
        faulty.map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut session = session();
    handle(&mut session, addresses(vec![bad_workload("a", "1"), bad_workload("b", "1")], &[]));
    let reason = "addresses[0]: an address has 4 or 16 bytes, found 3";
    assert_eq!(faulty(&session), [format!("a: {reason}"), format!("b: {reason}")]);
    handle(&mut session, addresses(vec![workload("a", "2")], &["b"]));
    assert!(faulty(&session).is_empty());
}

#[test]
fn a_nack_is_short_however_long_names_are() {
    let resources = (0..25).map(|i| bad_workload(&format!("{i}{}", "ü".repeat(100_000)), "1"));
    let (_, handled) = handle(&mut session(), addresses(resources.collect(), &[]));
    let message = error(&handled).unwrap();
    assert!(message.len() < 20 * 1024 && message.contains("addresses[0]"), "{}", message.len());
}

#[test]
fn a_resource_without_content_or_of_another_type_is_rejected() {
    let mut empty = workload("a", "1");
    empty.resource = None;
    let mut other = workload("b", "1");
    other.resource.as_mut().unwrap().type_url = AUTHORIZATION_TYPE.into();
    let mut garbage = workload("c", "1");
    garbage.resource.as_mut().unwrap().value = vec![0xff; 3];
    let (updates, handled) = handle(&mut session(), addresses(vec![empty, other, garbage], &[]));
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
