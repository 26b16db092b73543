//! What is sent after which event.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Instant, SystemTime},
};

use proto::discovery::DeltaDiscoveryRequest;

use super::{
    session::{BOTH_TYPES, Event, Push, Session, Unserved},
    state::State,
};
use crate::compile::{Compiled, Resource, ResourceType};

const ADDRESS: ResourceType = ResourceType::Address;
const POLICY: ResourceType = ResourceType::Authorization;

/// A state of resources such as `a=1`.
fn state(previous: Option<&Arc<State>>, addresses: &str, policies: &str) -> Arc<State> {
    let resources = |text: &str| {
        let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.map(|(name, content)| {
            let hash = content.parse().unwrap();
            (name.into(), Resource { encoded: content.into(), hash })
        });
        pairs.collect()
    };
    let compiled = Compiled {
        addresses: resources(addresses),
        authorizations: resources(policies),
        ..Compiled::default()
    };
    Arc::new(State::after(previous.map(Arc::as_ref), compiled, SystemTime::UNIX_EPOCH))
}

fn subscription(of: ResourceType, held: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    let held = held.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
    DeltaDiscoveryRequest {
        type_url: of.type_url().to_owned(),
        initial_resource_versions: held.collect::<HashMap<_, _>>(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn subscribed(types: &[ResourceType]) -> Session {
    let mut session = Session::default();
    for of in types {
        session.handle(subscription(*of, &[]), Instant::now()).unwrap();
    }
    session
}

/// Everything to send, as `Address +a,b -c`.
fn sent(session: &mut Session, current: &Arc<State>) -> Vec<String> {
    pushes(session, current).iter().map(shown).collect()
}

fn pushes(session: &mut Session, current: &Arc<State>) -> Vec<Push> {
    std::iter::from_fn(|| session.next(current, Instant::now())).collect()
}

fn shown(push: &Push) -> String {
    let names: Vec<_> = push.message.resources.iter().map(|one| one.name.as_str()).collect();
    format!("{} +{} -{}", push.of.name(), names.join(","), push.message.removed_resources.join(","))
}

fn answer(session: &mut Session, push: &Push, error: Option<&str>) -> Event {
    let error_detail = error.map(|message| proto::envoy::google::rpc::Status {
        message: message.to_owned(),
        ..Default::default()
    });
    let request = DeltaDiscoveryRequest {
        type_url: push.of.type_url().to_owned(),
        response_nonce: push.message.nonce.clone(),
        error_detail,
        ..DeltaDiscoveryRequest::default()
    };
    session.handle(request, Instant::now()).unwrap()
}

fn settle(session: &mut Session, current: &Arc<State>) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let pushes = pushes(session, current);
        if pushes.is_empty() {
            return all;
        }
        for push in &pushes {
            answer(session, push, None);
        }
        all.extend(pushes.iter().map(shown));
    }
}

#[test]
fn policies_come_before_the_workloads_that_name_them() {
    let mut session = subscribed(&[ADDRESS, POLICY]);
    let first = state(None, "a=1 b=1", "p=1");
    assert_eq!(settle(&mut session, &first), ["Authorization +p -", "Address +a,b -"]);
    let second = state(Some(&first), "a=2 b=1", "p=1 q=1");
    assert_eq!(settle(&mut session, &second), ["Authorization +q -", "Address +a -"]);
}

#[test]
fn policies_go_after_the_workloads_that_named_them() {
    let mut session = subscribed(&[ADDRESS, POLICY]);
    let first = state(None, "a=1", "p=1 q=1");
    settle(&mut session, &first);
    let second = state(Some(&first), "a=2", "q=2");
    assert_eq!(
        settle(&mut session, &second),
        ["Authorization +q -", "Address +a -", "Authorization + -p"]
    );
    let third = state(Some(&second), "a=2", "");
    assert_eq!(settle(&mut session, &third), ["Authorization + -q"]);
}

#[test]
fn a_policy_that_returns_before_it_was_removed_stays() {
    let mut session = subscribed(&[ADDRESS, POLICY]);
    let first = state(None, "a=1", "p=1");
    settle(&mut session, &first);
    let second = state(Some(&first), "a=2", "");
    let under_way = pushes(&mut session, &second);
    assert_eq!(
        under_way.iter().map(shown).collect::<Vec<_>>(),
        ["Address +a -", "Authorization + -p"]
    );
    let third = state(Some(&second), "a=2", "p=1");
    for push in &under_way {
        answer(&mut session, push, None);
    }
    assert_eq!(settle(&mut session, &third), ["Authorization +p -"]);
}

#[test]
fn a_response_is_under_way_until_it_is_answered_and_then_the_newest_follows() {
    let mut session = subscribed(&[POLICY, ADDRESS]);
    let mut current = state(None, "a=1", "");
    let first = pushes(&mut session, &current);
    assert_eq!(first.len(), 2);
    for version in 2..5 {
        current = state(Some(&current), &format!("a={version} b={version}"), "");
        assert_eq!(sent(&mut session, &current), [""; 0], "version {version}");
    }
    current = state(Some(&current), "b=9", "");
    answer(&mut session, &first[1], None);
    assert_eq!(sent(&mut session, &current), ["Address +b -a"]);
}

#[test]
fn what_the_client_had_before_is_not_sent_again() {
    let current = state(None, "a=1 b=2 c=3", "p=1");
    let mut session = Session::default();
    let versions = [("a", "0000000000000001"), ("b", "00000000000000ff"), ("gone", "1")];
    session.handle(subscription(POLICY, &[("p", ""), ("old", "")]), Instant::now()).unwrap();
    session.handle(subscription(ADDRESS, &versions), Instant::now()).unwrap();
    // A policy has no version: it is sent in any case.
    assert_eq!(
        settle(&mut session, &current),
        ["Authorization +p -", "Address +b,c -gone", "Authorization + -old"]
    );
}

#[test]
fn the_first_response_is_sent_even_if_there_is_nothing() {
    let mut session = subscribed(&[POLICY, ADDRESS]);
    assert_eq!(settle(&mut session, &state(None, "", "")), ["Authorization + -", "Address + -"]);
}

#[test]
fn addresses_wait_a_moment_for_the_other_subscription() {
    let start = Instant::now();
    let current = state(None, "a=1", "p=1");
    let mut session = Session::default();
    session.handle(subscription(ADDRESS, &[]), start).unwrap();
    assert!(session.next(&current, start).is_none());
    assert_eq!(session.poll_timeout(), Some(start + BOTH_TYPES));
    assert_eq!(shown(&session.next(&current, start + BOTH_TYPES).unwrap()), "Address +a -");
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn a_refusal_names_its_resources_and_ends_the_wait() {
    let mut session = subscribed(&[ADDRESS, POLICY]);
    let first = state(None, "a=1 b=1", "");
    let push = pushes(&mut session, &first).pop().unwrap();
    assert_eq!(
        answer(&mut session, &push, Some("b: no such thing")),
        Event::Nacked { of: ADDRESS, names: vec!["b".into()], message: "b: no such thing".into() }
    );
    assert_eq!(answer(&mut session, &push, None), Event::Stale);
    let second = state(Some(&first), "a=1 b=2", "");
    assert_eq!(shown(&pushes(&mut session, &second).pop().unwrap()), "Address +b -");
}

#[test]
fn single_names_and_other_types_are_not_served() {
    let mut request = subscription(ADDRESS, &[]);
    request.resource_names_subscribe = vec!["a".into()];
    assert_eq!(Session::default().handle(request.clone(), Instant::now()), Err(Unserved::OnDemand));
    request.resource_names_subscribe = vec!["*".into()];
    request.resource_names_unsubscribe = vec!["*".into()];
    assert_eq!(Session::default().handle(request, Instant::now()), Err(Unserved::OnDemand));
    let other = DeltaDiscoveryRequest { type_url: "x".into(), ..DeltaDiscoveryRequest::default() };
    let unserved = Unserved::Type { type_url: "x".into() };
    assert_eq!(Session::default().handle(other, Instant::now()), Err(unserved));
}

#[test]
fn digests_tell_equal_content() {
    let (one, other) = (state(None, "a=1", "p=1"), state(None, "a=1", "p=2"));
    assert_eq!(one.digest(ADDRESS), other.digest(ADDRESS));
    assert_ne!(one.digest(POLICY), other.digest(POLICY));
    assert!(one.is_news());
    assert!(!state(Some(&one), "a=1", "p=1").is_news());
}
