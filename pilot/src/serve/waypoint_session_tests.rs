//! What a waypoint is sent after which event, by delta.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use proto::discovery::DeltaDiscoveryRequest;

use super::{
    session::{Audience, NEW_ENDPOINTS, Protocol, Session},
    session_tests::{answer, handle, pushes, resources, settle, shown, state},
    types::Type,
    view::{Configuration, View},
};
use crate::compile::Compiled;

/// What a waypoint has: clusters, assignments and listeners such as `a=1`.
pub(super) fn view(clusters: &str, assignments: &str, listeners: &str) -> Arc<View> {
    let configuration = Configuration::of(BTreeMap::from([
        (Type::Cluster.type_url(), resources(clusters)),
        (Type::Endpoint.type_url(), resources(assignments)),
        (Type::Listener.type_url(), resources(listeners)),
    ]));
    let state = state(None, Compiled::default());
    Arc::new(View::of_waypoint(state, Some(Arc::new(configuration)), Arc::default()))
}

fn request(of: Type, wanted: &[&str], unwanted: &[&str]) -> DeltaDiscoveryRequest {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    DeltaDiscoveryRequest {
        type_url: of.type_url().to_owned(),
        resource_names_subscribe: names(wanted),
        resource_names_unsubscribe: names(unwanted),
        ..DeltaDiscoveryRequest::default()
    }
}

fn ask(session: &mut Session, of: Type, wanted: &[&str], unwanted: &[&str]) {
    handle(session, request(of, wanted, unwanted), Instant::now()).unwrap();
}

fn returns(session: &mut Session, of: Type, wanted: &[&str], held: &[(&str, &str)]) {
    let held = held.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
    let initial_resource_versions = held.collect::<HashMap<_, _>>();
    let request = DeltaDiscoveryRequest { initial_resource_versions, ..request(of, wanted, &[]) };
    handle(session, request, Instant::now()).unwrap();
}

fn session() -> Session {
    Session::new(Audience::Waypoint, Protocol::Delta, "")
}

/// An Envoy that has everything of `view`.
fn settled(view: &Arc<View>, assignments: &[&str]) -> Session {
    let mut session = session();
    ask(&mut session, Type::Cluster, &[], &[]);
    settle(&mut session, view);
    ask(&mut session, Type::Endpoint, assignments, &[]);
    ask(&mut session, Type::Listener, &[], &[]);
    settle(&mut session, view);
    session
}

fn sent(session: &mut Session, current: &Arc<View>) -> Vec<String> {
    pushes(session, current).iter().map(shown).collect()
}

#[test]
fn an_envoy_asks_for_clusters_then_for_what_is_behind_them_then_for_listeners() {
    let current = view("a=1 b=1 tunnel=1", "a=1 b=1", "main=1");
    let mut session = session();
    ask(&mut session, Type::Cluster, &[], &[]);
    assert_eq!(settle(&mut session, &current), ["cds +a,b,tunnel -"]);
    ask(&mut session, Type::Endpoint, &["a", "b"], &[]);
    assert_eq!(settle(&mut session, &current), ["eds +a,b -"]);
    ask(&mut session, Type::Listener, &[], &[]);
    assert_eq!(settle(&mut session, &current), ["lds +main -"]);
    assert_eq!(settle(&mut session, &current), [""; 0]);
}

#[test]
fn a_listener_waits_for_the_endpoints_of_new_clusters() {
    let mut session = settled(&view("a=1", "a=1", "main=1"), &["a"]);
    let current = view("a=1 b=1", "a=1 b=1", "main=2");
    let cluster = pushes(&mut session, &current);
    assert_eq!(cluster.iter().map(shown).collect::<Vec<_>>(), ["cds +b -"]);
    answer(&mut session, &cluster[0], None);
    assert_eq!(sent(&mut session, &current), [""; 0]);
    assert!(session.poll_timeout().is_some());
    ask(&mut session, Type::Endpoint, &["b"], &[]);
    assert_eq!(settle(&mut session, &current), ["eds +b -", "lds +main -"]);
}

#[test]
fn a_listener_does_not_wait_for_ever() {
    let mut session = settled(&view("a=1", "a=1", "main=1"), &["a"]);
    let current = view("a=1 b=1", "a=1 b=1", "main=2");
    let begun = Instant::now();
    let cluster = session.next(&current, begun).unwrap();
    answer(&mut session, &cluster, None);
    assert!(session.next(&current, begun).is_none());
    let listener = session.next(&current, begun + NEW_ENDPOINTS).unwrap();
    assert_eq!(shown(&listener), "lds +main -");
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn a_listener_that_refers_to_no_new_cluster_waits_for_nothing() {
    let mut session = settled(&view("a=1", "a=1", "main=1"), &["a"]);
    assert_eq!(sent(&mut session, &view("a=1", "a=1", "main=2")), ["lds +main -"]);
}

#[test]
fn a_cluster_goes_when_the_listener_that_knew_it_has_been_replaced() {
    let mut session = settled(&view("a=1 b=1", "a=1 b=1", "main=1"), &["a", "b"]);
    let current = view("a=1", "a=1", "main=2");
    let listener = pushes(&mut session, &current);
    assert_eq!(listener.iter().map(shown).collect::<Vec<_>>(), ["lds +main -"]);
    answer(&mut session, &listener[0], None);
    assert_eq!(sent(&mut session, &current), ["cds + -b", "eds + -b"]);
}

#[test]
fn a_cluster_that_changes_has_its_endpoints_sent_again() {
    let mut session = settled(&view("a=1 b=1", "a=1 b=1", "main=1"), &["a", "b"]);
    let current = view("a=2 b=1", "a=1 b=1", "main=1");
    assert_eq!(sent(&mut session, &current), ["cds +a -", "eds +a -"]);
}

#[test]
fn only_endpoints_that_changed_are_sent_also_while_clusters_are_under_way() {
    let mut session = settled(&view("a=1 b=1", "a=1 b=1", "main=1"), &["a", "b"]);
    assert_eq!(sent(&mut session, &view("a=2 b=1", "a=1 b=1", "main=1")), ["cds +a -", "eds +a -"]);
    // Neither has been answered.
    let current = view("a=3 b=1", "a=1 b=2", "main=1");
    assert_eq!(sent(&mut session, &current), [""; 0]);
    let mut session = settled(&view("a=1 b=1", "a=1 b=1", "main=1"), &["b"]);
    assert_eq!(sent(&mut session, &view("a=2 b=1", "a=1 b=1", "main=1")), ["cds +a -"]);
    assert_eq!(sent(&mut session, &current), ["eds +b -"]);
}

#[test]
fn what_is_not_there_is_said_to_be_absent() {
    let current = view("a=1", "a=1", "main=1");
    let mut session = settled(&current, &["a"]);
    for (of, expected) in [(Type::Route, "rds + -x"), (Type::Extension, "ecds + -x")] {
        ask(&mut session, of, &["x"], &[]);
        assert_eq!(settle(&mut session, &current), [expected]);
    }
    ask(&mut session, Type::Endpoint, &["c"], &[]);
    assert_eq!(settle(&mut session, &current), ["eds + -c"]);
    // What comes into being later is sent.
    let later = view("a=1 c=1", "a=1 c=1", "main=1");
    assert_eq!(settle(&mut session, &later), ["cds +c -", "eds +c -"]);
}

#[test]
fn what_is_no_longer_asked_for_is_not_sent() {
    let mut session = settled(&view("a=1 b=1", "a=1 b=1", "main=1"), &["a", "b"]);
    ask(&mut session, Type::Endpoint, &[], &["b"]);
    assert_eq!(sent(&mut session, &view("a=1 b=1", "a=2 b=2", "main=1")), ["eds +a -"]);
}

#[test]
fn names_that_are_asked_for_twice_are_answered_twice() {
    let current = view("a=1", "a=1", "main=1");
    let mut session = settled(&current, &["a"]);
    ask(&mut session, Type::Endpoint, &["a"], &[]);
    assert_eq!(settle(&mut session, &current), ["eds +a -"]);
}

#[test]
fn an_envoy_that_returns_gets_what_changed_and_all_endpoints() {
    let current = view("a=1 b=2", "a=1 b=1", "main=1");
    let mut session = session();
    let held = [("a", "0000000000000001"), ("b", "0000000000000001"), ("gone", "1")];
    returns(&mut session, Type::Cluster, &[], &held);
    // The listeners that it has may still refer to the cluster that is gone.
    assert_eq!(settle(&mut session, &current), ["cds +b -"]);
    returns(&mut session, Type::Endpoint, &["a", "b"], &[("a", "0000000000000001")]);
    returns(&mut session, Type::Listener, &[], &[("main", "0000000000000000")]);
    assert_eq!(settle(&mut session, &current), ["eds +a,b -", "lds +main -", "cds + -gone"]);
}

#[test]
fn what_was_refused_is_not_sent_again_until_it_changes() {
    let mut session = settled(&view("a=1", "a=1", "main=1"), &["a"]);
    let refused = view("a=1", "a=1", "main=2");
    let listener = pushes(&mut session, &refused).remove(0);
    answer(&mut session, &listener, Some("main: no such filter"));
    assert_eq!(sent(&mut session, &refused), [""; 0]);
    assert_eq!(sent(&mut session, &view("a=1", "a=1", "main=3")), ["lds +main -"]);
}

#[test]
fn an_agent_gets_an_empty_table_of_names_and_no_settings() {
    let current = view("", "", "");
    let mut session = session();
    ask(&mut session, Type::ProxyConfig, &[], &[]);
    assert_eq!(settle(&mut session, &current), [""; 0]);
    ask(&mut session, Type::NameTable, &[], &[]);
    let table = pushes(&mut session, &current).remove(0);
    assert_eq!((shown(&table).as_str(), &*table.resources[0].resource.value), ("nds + -", &[][..]));
}
