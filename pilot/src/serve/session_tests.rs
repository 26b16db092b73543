//! What is sent after which event.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Instant, SystemTime},
};

use proto::discovery::DeltaDiscoveryRequest;

use super::{
    session::{Audience, BOTH_TYPES, Event, Protocol, Push, Session, Unserved},
    state::State,
    types::Type,
    view::View,
    wire::Request,
};
use crate::{
    compile::{Compiled, MeshConfig, Resource, Resources, Snapshot},
    manifests::Manifests,
};

const ADDRESS: Type = Type::Address;
const POLICY: Type = Type::Authorization;

/// Resources such as `a=1`.
pub(crate) fn resources(text: &str) -> Resources {
    let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
    let pairs = pairs.map(|(name, content)| {
        let hash = content.parse().unwrap();
        (Arc::from(name), Resource { encoded: content.into(), hash })
    });
    pairs.collect()
}

/// A state of nothing but these.
pub(crate) fn state(previous: Option<&State>, compiled: Compiled) -> Arc<State> {
    let snapshot = Snapshot::of(Manifests::default(), &MeshConfig::default());
    Arc::new(State::after(previous, Arc::new(snapshot), compiled, SystemTime::UNIX_EPOCH))
}

/// What a daemon has of a state of resources such as `a=1`.
fn view(previous: Option<&Arc<View>>, addresses: &str, policies: &str) -> Arc<View> {
    let compiled = Compiled {
        addresses: resources(addresses),
        authorizations: resources(policies),
        ..Compiled::default()
    };
    let previous = previous.map(|view| &*view.state);
    Arc::new(View::of_daemon(state(previous, compiled)))
}

fn session() -> Session {
    Session::new(Audience::Daemon, Protocol::Delta, "")
}

fn subscription(of: Type, held: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    let held = held.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
    DeltaDiscoveryRequest {
        type_url: of.type_url().to_owned(),
        initial_resource_versions: held.collect::<HashMap<_, _>>(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// Hands a request in, whatever the protocol.
pub(crate) fn handle(
    session: &mut Session,
    request: impl Request,
    now: Instant,
) -> Result<Event, Unserved> {
    match request.ask(session) {
        Some(ask) => session.handle(ask, now),
        None => Ok(Event::Stale),
    }
}

fn subscribed(types: &[Type]) -> Session {
    let mut session = session();
    for of in types {
        handle(&mut session, subscription(*of, &[]), Instant::now()).unwrap();
    }
    session
}

/// Everything to send, as `Address +a,b -c`.
fn sent(session: &mut Session, current: &Arc<View>) -> Vec<String> {
    pushes(session, current).iter().map(shown).collect()
}

/// Everything to send before an answer comes.
pub(crate) fn pushes(session: &mut Session, current: &Arc<View>) -> Vec<Push> {
    std::iter::from_fn(|| session.next(current, Instant::now())).collect()
}

/// `Address +a,b -c`.
pub(crate) fn shown(push: &Push) -> String {
    let names: Vec<_> = push.resources.iter().map(|one| one.name.as_str()).collect();
    format!("{} +{} -{}", push.of.name(), names.join(","), push.removed.join(","))
}

/// Takes or refuses a response by delta.
pub(crate) fn answer(session: &mut Session, push: &Push, error: Option<&str>) -> Event {
    let error_detail = error.map(|message| proto::envoy::google::rpc::Status {
        message: message.to_owned(),
        ..Default::default()
    });
    let request = DeltaDiscoveryRequest {
        type_url: push.of.type_url().to_owned(),
        response_nonce: push.nonce.clone(),
        error_detail,
        ..DeltaDiscoveryRequest::default()
    };
    handle(session, request, Instant::now()).unwrap()
}

/// Sends everything and takes it, until there is nothing more.
pub(crate) fn settle(session: &mut Session, current: &Arc<View>) -> Vec<String> {
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
    let first = view(None, "a=1 b=1", "p=1");
    assert_eq!(settle(&mut session, &first), ["Authorization +p -", "Address +a,b -"]);
    let second = view(Some(&first), "a=2 b=1", "p=1 q=1");
    assert_eq!(settle(&mut session, &second), ["Authorization +q -", "Address +a -"]);
}

#[test]
fn policies_go_after_the_workloads_that_named_them() {
    let mut session = subscribed(&[ADDRESS, POLICY]);
    let first = view(None, "a=1", "p=1 q=1");
    settle(&mut session, &first);
    let second = view(Some(&first), "a=2", "q=2");
    assert_eq!(
        settle(&mut session, &second),
        ["Authorization +q -", "Address +a -", "Authorization + -p"]
    );
    let third = view(Some(&second), "a=2", "");
    assert_eq!(settle(&mut session, &third), ["Authorization + -q"]);
}

#[test]
fn a_policy_that_returns_before_it_was_removed_stays() {
    let mut session = subscribed(&[ADDRESS, POLICY]);
    let first = view(None, "a=1", "p=1");
    settle(&mut session, &first);
    let second = view(Some(&first), "a=2", "");
    let under_way = pushes(&mut session, &second);
    assert_eq!(
        under_way.iter().map(shown).collect::<Vec<_>>(),
        ["Address +a -", "Authorization + -p"]
    );
    let third = view(Some(&second), "a=2", "p=1");
    for push in &under_way {
        answer(&mut session, push, None);
    }
    assert_eq!(settle(&mut session, &third), ["Authorization +p -"]);
}

#[test]
fn a_response_is_under_way_until_it_is_answered_and_then_the_newest_follows() {
    let mut session = subscribed(&[POLICY, ADDRESS]);
    let mut current = view(None, "a=1", "");
    let first = pushes(&mut session, &current);
    assert_eq!(first.len(), 2);
    for version in 2..5 {
        current = view(Some(&current), &format!("a={version} b={version}"), "");
        assert_eq!(sent(&mut session, &current), [""; 0], "version {version}");
    }
    current = view(Some(&current), "b=9", "");
    answer(&mut session, &first[1], None);
    assert_eq!(sent(&mut session, &current), ["Address +b -a"]);
}

#[test]
fn what_the_client_had_before_is_not_sent_again() {
    let current = view(None, "a=1 b=2 c=3", "p=1");
    let mut session = session();
    let versions = [("a", "0000000000000001"), ("b", "00000000000000ff"), ("gone", "1")];
    handle(&mut session, subscription(POLICY, &[("p", ""), ("old", "")]), Instant::now()).unwrap();
    handle(&mut session, subscription(ADDRESS, &versions), Instant::now()).unwrap();
    // A policy has no version: it is sent in any case.
    assert_eq!(
        settle(&mut session, &current),
        ["Authorization +p -", "Address +b,c -gone", "Authorization + -old"]
    );
}

#[test]
fn the_first_response_is_sent_even_if_there_is_nothing() {
    let mut session = subscribed(&[POLICY, ADDRESS]);
    assert_eq!(settle(&mut session, &view(None, "", "")), ["Authorization + -", "Address + -"]);
}

#[test]
fn addresses_wait_a_moment_for_the_other_subscription() {
    let start = Instant::now();
    let current = view(None, "a=1", "p=1");
    let mut session = session();
    handle(&mut session, subscription(ADDRESS, &[]), start).unwrap();
    assert!(session.next(&current, start).is_none());
    assert_eq!(session.poll_timeout(), Some(start + BOTH_TYPES));
    assert_eq!(shown(&session.next(&current, start + BOTH_TYPES).unwrap()), "Address +a -");
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn a_refusal_names_its_resources_and_ends_the_wait() {
    let mut session = subscribed(&[ADDRESS, POLICY]);
    let first = view(None, "a=1 b=1", "");
    let push = pushes(&mut session, &first).pop().unwrap();
    assert_eq!(
        answer(&mut session, &push, Some("b: no such thing")),
        Event::Nacked { of: ADDRESS, names: vec!["b".into()], message: "b: no such thing".into() }
    );
    assert_eq!(answer(&mut session, &push, None), Event::Stale);
    let second = view(Some(&first), "a=1 b=2", "");
    assert_eq!(shown(&pushes(&mut session, &second).pop().unwrap()), "Address +b -");
}

#[test]
fn other_types_are_not_served() {
    for (type_url, unserved) in [
        ("x", Unserved::Type { type_url: "x".into() }),
        (
            Type::Listener.type_url(),
            Unserved::NotWaypoint { type_url: Type::Listener.type_url().into() },
        ),
    ] {
        let request =
            DeltaDiscoveryRequest { type_url: type_url.into(), ..DeltaDiscoveryRequest::default() };
        assert_eq!(handle(&mut session(), request, Instant::now()), Err(unserved));
    }
}

#[test]
fn digests_tell_equal_content() {
    let (one, other) = (view(None, "a=1", "p=1"), view(None, "a=1", "p=2"));
    assert_eq!(one.digest(ADDRESS), other.digest(ADDRESS));
    assert_ne!(one.digest(POLICY), other.digest(POLICY));
    assert!(one.state.is_news());
    assert!(!view(Some(&one), "a=1", "p=1").state.is_news());
}
