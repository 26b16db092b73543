//! What a waypoint is sent after which event, by state of the world.

use std::{sync::Arc, time::Instant};

use proto::discovery::DiscoveryRequest;

use super::{
    session::{Audience, Event, Protocol, Push, Session},
    session_tests::{handle, pushes, shown},
    types::Type,
    view::View,
    waypoint_session_tests::view,
};

/// A request that answers `nonce` and asks for `names`.
fn ask(session: &mut Session, of: Type, names: &[&str], nonce: &str) -> Event {
    let request = DiscoveryRequest {
        type_url: of.type_url().to_owned(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    };
    handle(session, request, Instant::now()).unwrap()
}

fn session() -> Session {
    Session::new(Audience::Waypoint, Protocol::Sotw, "")
}

/// Sends everything; takes it, with the names that are asked for.
fn settle(session: &mut Session, current: &Arc<View>, assignments: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let pushes = pushes(session, current);
        if pushes.is_empty() {
            return all;
        }
        for push in &pushes {
            let names = if push.of == Type::Endpoint { assignments } else { &[] };
            assert_eq!(ask(session, push.of, names, &push.nonce), Event::Acked(push.of));
        }
        all.extend(pushes.iter().map(shown));
    }
}

fn settled(current: &Arc<View>, assignments: &[&str]) -> Session {
    let mut session = session();
    ask(&mut session, Type::Cluster, &[], "");
    settle(&mut session, current, &[]);
    ask(&mut session, Type::Endpoint, assignments, "");
    ask(&mut session, Type::Listener, &[], "");
    settle(&mut session, current, assignments);
    session
}

#[test]
fn a_type_is_sent_whole_when_anything_of_it_changes_and_not_otherwise() {
    let mut session = settled(&view("a=1 b=1", "a=1 b=1", "main=1"), &["a", "b"]);
    let current = view("a=1 b=1", "a=1 b=2", "main=1");
    assert_eq!(settle(&mut session, &current, &["a", "b"]), ["eds +a,b -"]);
    let current = view("a=1 b=1", "a=1 b=2", "main=2");
    assert_eq!(settle(&mut session, &current, &["a", "b"]), ["lds +main -"]);
    let current = view("a=1 b=2", "a=1 b=2", "main=2");
    assert_eq!(settle(&mut session, &current, &["a", "b"]), ["cds +a,b -", "eds +a,b -"]);
}

#[test]
fn a_cluster_that_is_gone_is_kept_until_the_listener_has_been_replaced() {
    let mut session = settled(&view("a=1 b=1", "a=1 b=1", "main=1"), &["a", "b"]);
    let current = view("a=1 c=1", "a=1 c=1", "main=2");
    let clusters = pushes(&mut session, &current);
    assert_eq!(clusters.iter().map(shown).collect::<Vec<_>>(), ["cds +a,c,b -"]);
    ask(&mut session, Type::Cluster, &[], &clusters[0].nonce);
    let before = endpoint_nonce(&session);
    ask(&mut session, Type::Endpoint, &["a", "b", "c"], &before);
    assert_eq!(
        settle(&mut session, &current, &["a", "c"]),
        ["eds +a,c -", "lds +main -", "cds +a,c -"]
    );
}

fn endpoint_nonce(session: &Session) -> String {
    session.subscription(Type::Endpoint).and_then(|one| one.nonce()).unwrap().to_owned()
}

#[test]
fn names_that_are_added_are_answered_although_nothing_changed() {
    let current = view("", "a=1 b=1", "");
    let mut session = session();
    ask(&mut session, Type::Endpoint, &["a"], "");
    assert_eq!(settle(&mut session, &current, &["a"]), ["eds +a -"]);
    let nonce = endpoint_nonce(&session);
    assert_eq!(ask(&mut session, Type::Endpoint, &["a", "b"], &nonce), Event::Stale);
    assert_eq!(settle(&mut session, &current, &["a", "b"]), ["eds +a,b -"]);
    let nonce = endpoint_nonce(&session);
    ask(&mut session, Type::Endpoint, &["b"], &nonce);
    assert_eq!(settle(&mut session, &current, &["b"]), [""; 0]);
    assert_eq!(settle(&mut session, &view("", "a=2 b=1", ""), &["b"]), [""; 0]);
}

#[test]
fn an_answer_to_an_older_response_means_nothing() {
    let current = view("a=1", "a=1", "main=1");
    let mut session = settled(&current, &["a"]);
    let last = endpoint_nonce(&session);
    for stale in ["0", "", "x"] {
        assert_eq!(ask(&mut session, Type::Endpoint, &["a", "b", "c"], stale), Event::Stale);
    }
    assert_eq!(pushes(&mut session, &current).len(), 0);
    assert_eq!(endpoint_nonce(&session), last);
}

#[test]
fn the_version_is_that_of_the_content() {
    let version = |current: &Arc<View>| {
        let mut session = session();
        ask(&mut session, Type::Cluster, &[], "");
        let push: Push = pushes(&mut session, current).remove(0);
        push.version
    };
    let one = version(&view("a=1", "", ""));
    assert_eq!(one, version(&view("a=1", "b=1", "")));
    assert_ne!(one, version(&view("a=2", "", "")));
    assert!(!one.is_empty());
}

#[test]
fn what_was_refused_is_not_sent_again_until_it_changes() {
    let mut session = settled(&view("a=1", "a=1", "main=1"), &["a"]);
    let refused = view("a=1", "a=1", "main=2");
    let listener = pushes(&mut session, &refused).remove(0);
    let request = DiscoveryRequest {
        type_url: Type::Listener.type_url().to_owned(),
        response_nonce: listener.nonce.clone(),
        error_detail: Some(proto::envoy::google::rpc::Status {
            message: "main: no such filter".into(),
            ..Default::default()
        }),
        ..DiscoveryRequest::default()
    };
    assert_eq!(
        handle(&mut session, request, Instant::now()).unwrap(),
        Event::Nacked {
            of: Type::Listener,
            names: vec!["main".into()],
            message: "main: no such filter".into()
        }
    );
    assert_eq!(pushes(&mut session, &refused).len(), 0);
    let current = view("a=1", "a=1", "main=3");
    assert_eq!(settle(&mut session, &current, &["a"]), ["lds +main -"]);
}

#[test]
fn a_client_that_names_some_no_longer_means_all() {
    let current = view("a=1 b=1", "", "");
    let mut session = session();
    ask(&mut session, Type::Cluster, &[], "");
    let all = pushes(&mut session, &current).remove(0);
    assert_eq!(shown(&all), "cds +a,b -");
    ask(&mut session, Type::Cluster, &["b"], &all.nonce);
    let one = pushes(&mut session, &current).remove(0);
    assert_eq!(shown(&one), "cds +b -");
}
