//! Which connections are judged again, which are cut, and with what sentence.

use std::{num::NonZeroU32, time::Duration};

use mesh::{
    policy::Policy,
    store::{Store, Update, Workload},
};
use proto::security::{
    Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match::MatchType,
};
use tokio_util::sync::CancellationToken;

use super::{super::awaited, *};
use crate::{
    capture::Netns,
    pods::{CaptureOptions, PodUid, SourceAddress},
    proxy::{PodLimits, Share},
};

/// A thread's connections and the store that they are judged by.
struct Bed {
    live: Rc<Live>,
    store: Arc<Store>,
    now: Instant,
}

type Order = (Registered, oneshot::Receiver<Cut>);

fn pod(name: &str) -> Arc<Pod> {
    Arc::new(Pod {
        uid: PodUid::parse(name).unwrap(),
        namespace: "shop".into(),
        name: name.into(),
        service_account: "default".into(),
        netns: Arc::new(Netns::open("/proc/self/ns/net".as_ref()).unwrap()),
        ips: vec![],
        capture: CaptureOptions::default(),
        source_address: SourceAddress::Client,
        only_port: None,
        share: Share::new(&PodLimits {
            connections: NonZeroU32::MIN,
            tunnels: NonZeroU32::MIN,
            buffer_bytes: 0,
        }),
        removed: CancellationToken::new(),
    })
}

fn record(name: &str, named: &[&str]) -> Update {
    let wire = proto::workload::Workload {
        uid: format!("Kubernetes//Pod/shop/{name}"),
        name: name.into(),
        namespace: "shop".into(),
        authorization_policies: named.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    Update::Workload(Workload::try_from(wire).unwrap())
}

/// A policy with one rule per principal; `*` is a rule that matches everything.
fn policy(action: Action, key: &str, scope: Scope, principals: &[&str]) -> Update {
    let (namespace, name) = key.split_once('/').unwrap();
    let rule = |principal: &&str| match *principal {
        "*" => Rule::default(),
        exact => {
            let exact = StringMatch { match_type: Some(MatchType::Exact(exact.into())) };
            let matched = Match { principals: vec![exact], ..Default::default() };
            Rule { clauses: vec![Clause { matches: vec![matched] }] }
        }
    };
    let wire = Authorization {
        name: name.into(),
        namespace: namespace.into(),
        scope: scope.into(),
        action: action.into(),
        rules: principals.iter().map(rule).collect(),
        ..Default::default()
    };
    Update::Policy(Policy::try_from(wire).unwrap())
}

fn principal(account: &str) -> String {
    format!("cluster.local/ns/shop/sa/{account}")
}

fn subject(account: Option<&str>) -> Subject {
    let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
    let peer = account.map(|account| Spiffe::new("cluster.local", "shop", account).unwrap());
    Subject { peer, source: at(4000), destination: at(80) }
}

impl Bed {
    fn new(updates: impl IntoIterator<Item = Update>) -> Self {
        let bed = Self { live: Rc::default(), store: Store::new(), now: Instant::now() };
        bed.apply(updates);
        bed
    }

    /// Applies a batch and judges; how many connections were judged again.
    fn apply(&self, updates: impl IntoIterator<Item = Update>) -> usize {
        self.store.apply(updates);
        self.live.judge(&self.store.load(), self.now).count
    }

    /// A decided connection to a served pod.
    fn open(&self, pod: &Arc<Pod>, account: Option<&str>) -> Order {
        self.live.serve(pod, &self.store.load(), self.now);
        let (connection, order) = self.live.inbound(pod, subject(account));
        self.decide(&connection).unwrap();
        (connection, order)
    }

    fn decide(&self, connection: &Registered) -> Result<Permit, NotPermitted> {
        self.live.decide(connection, &self.store.load(), self.now)
    }
}

/// The sentence if the connection was cut.
fn cut(order: &mut Order) -> Option<String> {
    order.1.try_recv().ok().map(|cut| format!("{:?}: {}", cut.why, cut.error))
}

#[test]
fn a_denied_connection_is_cut_with_the_policy_and_the_rule_and_the_others_are_not_touched() {
    let bed = Bed::new([record("a", &[]), record("b", &[])]);
    let (a, b) = (pod("a"), pod("b"));
    let mut denied = bed.open(&a, Some("web"));
    let mut others = [bed.open(&a, Some("near")), bed.open(&a, None), bed.open(&b, Some("near"))];
    let (_outbound, mut outbound) = bed.live.outbound(&a);
    let deny = policy(Action::Deny, "shop/d", Scope::Namespace, &[&principal("web")]);
    assert_eq!(bed.apply([deny.clone()]), 1);
    let sentence = "PolicyChanged: policy shop/d denies this connection: its rule 1 matches";
    assert_eq!(cut(&mut denied).as_deref(), Some(sentence));
    assert!(others.iter_mut().all(|other| cut(other).is_none()));
    assert!(outbound.try_recv().is_err());
    assert_eq!(bed.apply([deny]), 0, "the same again is no change");
}

#[test]
fn a_policy_that_only_lets_more_in_is_no_reason_to_look() {
    let allow = |accounts: &[&str]| policy(Action::Allow, "shop/a", Scope::Namespace, accounts);
    let bed = Bed::new([record("a", &[]), allow(&["*"])]);
    let mut open = bed.open(&pod("a"), Some("web"));
    let wider = policy(Action::Allow, "shop/more", Scope::Namespace, &["*"]);
    assert_eq!(bed.apply([wider]), 0);
    let harmless = policy(Action::Deny, "shop/d", Scope::Namespace, &[&principal("near")]);
    assert_eq!(bed.apply([harmless]), 0);
    assert_eq!(bed.apply([Update::RemovePolicy("shop/d".into())]), 0);
    assert_eq!(bed.apply([allow(&[&principal("near")])]), 1, "the one it allowed");
    assert_eq!(cut(&mut open), None, "another policy allows it");
    assert_eq!(bed.apply([Update::RemovePolicy("shop/more".into())]), 1);
    let sentence = cut(&mut open).unwrap();
    assert!(sentence.starts_with("PolicyChanged: no policy allows this connection"), "{sentence}");
}

#[test]
fn the_first_allow_concerns_everyone_it_applies_to() {
    let bed = Bed::new([record("a", &[])]);
    let a = pod("a");
    let (mut web, mut near) = (bed.open(&a, Some("web")), bed.open(&a, Some("near")));
    let allow = policy(Action::Allow, "shop/a", Scope::Namespace, &[&principal("web")]);
    assert_eq!(bed.apply([allow]), 2);
    assert_eq!((cut(&mut web), cut(&mut near).is_some()), (None, true));
}

#[test]
fn a_policy_for_some_workloads_concerns_only_those_that_name_it() {
    let selected =
        |principals: &[&str]| policy(Action::Deny, "shop/d", Scope::WorkloadSelector, principals);
    let bed = Bed::new([record("a", &["shop/d"]), record("b", &[]), selected(&[])]);
    let (a, b) = (pod("a"), pod("b"));
    let (mut of_a, mut of_b) = (bed.open(&a, None), bed.open(&b, None));
    assert_eq!(bed.apply([selected(&["*"])]), 1);
    assert_eq!((cut(&mut of_a).is_some(), cut(&mut of_b)), (true, None));
}

/// The record of this moment counts, not the one when the connection was made.
#[test]
fn a_record_that_names_another_policy_concerns_its_connections() {
    let deny = policy(Action::Deny, "shop/d", Scope::WorkloadSelector, &["*"]);
    let bed = Bed::new([record("a", &[]), record("b", &[]), deny]);
    let (a, b) = (pod("a"), pod("b"));
    let (mut of_a, mut of_b) = (bed.open(&a, None), bed.open(&b, None));
    assert_eq!(bed.apply([record("b", &[])]), 0, "nothing that policy sees has changed");
    assert_eq!(bed.apply([record("a", &["shop/d"])]), 1);
    assert_eq!((cut(&mut of_a).is_some(), cut(&mut of_b)), (true, None));
    let uid = "Kubernetes//Pod/shop/b".to_owned();
    assert_eq!(bed.apply([Update::RemoveAddress(uid)]), 0);
    assert_eq!(cut(&mut of_b), None, "the last record counts on");
}

#[test]
fn a_change_between_registration_and_decision_is_seen_by_the_decision() {
    let bed = Bed::new([record("a", &[])]);
    let (connection, _order) = bed.live.inbound(&pod("a"), subject(None));
    let judged = bed.apply([policy(Action::Deny, "shop/d", Scope::Namespace, &["*"])]);
    assert_eq!(judged, 0, "it is not open");
    assert!(matches!(bed.decide(&connection), Err(NotPermitted::Denied(_))));
}

/// The thread may decide by a snapshot that it has not judged by; the next change may then undo what lies between.
#[test]
fn a_change_that_comes_and_goes_around_a_decision_is_not_missed() {
    let allow = || policy(Action::Allow, "shop/a", Scope::Namespace, &[&principal("web")]);
    let bed = Bed::new([record("a", &[]), allow()]);
    bed.store.apply([Update::RemovePolicy("shop/a".into())]);
    let mut open = bed.open(&pod("a"), Some("near"));
    assert_eq!(bed.apply([allow()]), 1);
    assert!(cut(&mut open).is_some());
}

#[test]
fn a_policy_named_moments_ago_is_pending_and_then_missing() {
    let mut bed = Bed::new([record("a", &["shop/late"])]);
    let a = pod("a");
    bed.live.serve(&a, &bed.store.load(), bed.now);
    let named = bed.now;
    let (connection, _order) = bed.live.inbound(&a, subject(None));
    match bed.decide(&connection) {
        Err(NotPermitted::Pending { until, .. }) => assert_eq!(until, named + awaited::LIMIT),
        other => panic!("{other:?}"),
    }
    bed.now = named + awaited::LIMIT;
    match bed.decide(&connection) {
        Err(NotPermitted::Denied(Denied::Missing { policy })) => assert_eq!(&*policy, "shop/late"),
        other => panic!("{other:?}"),
    }
    bed.apply([policy(Action::Deny, "shop/late", Scope::WorkloadSelector, &[])]);
    assert!(bed.decide(&connection).is_ok(), "it has arrived");
}

#[test]
fn open_connections_are_kept_while_a_policy_is_pending_and_then_judged() {
    let mut bed = Bed::new([record("a", &[])]);
    let a = pod("a");
    let (mut web, mut near) = (bed.open(&a, Some("web")), bed.open(&a, Some("near")));
    bed.apply([record("a", &["shop/late"])]);
    let deadline = bed.now + awaited::LIMIT;
    assert_eq!(bed.live.deadline(bed.now), Some(deadline));
    assert_eq!((cut(&mut web), cut(&mut near)), (None, None));
    let deny = |principals: &[&str]| {
        policy(Action::Deny, "shop/late", Scope::WorkloadSelector, principals)
    };
    bed.apply([deny(&[&principal("web")])]);
    assert_eq!((cut(&mut web).is_some(), cut(&mut near)), (true, None));
    assert_eq!(bed.live.deadline(bed.now), None);

    bed.apply([Update::RemovePolicy("shop/late".into())]);
    assert_eq!(cut(&mut near), None, "a policy that went away may come back");
    bed.now = bed.live.deadline(bed.now).unwrap();
    assert_eq!(bed.apply([]), 1);
    let sentence = cut(&mut near).unwrap();
    assert!(sentence.contains("policy shop/late applies to the destination and has not arrived"));
    assert_eq!(bed.live.deadline(bed.now), None, "there is nothing to wake for");
}

#[test]
fn a_rejected_policy_cuts_where_it_would_apply() {
    let bed = Bed::new([record("a", &[])]);
    let mut open = bed.open(&pod("a"), None);
    let wire =
        Authorization { action: 9, scope: 1, namespace: "shop".into(), ..Default::default() };
    let bytes = prost::Message::encode_to_vec(&wire);
    let rejected = mesh::policy::Rejected::of("shop/new", &bytes, "action: 9", "root");
    assert_eq!(bed.apply([Update::RejectPolicy(rejected)]), 1);
    assert!(cut(&mut open).unwrap().contains("shop/new applies to the destination and cannot be"));
}

#[test]
fn a_bounded_number_of_connections_waits_for_each_pod() {
    let (live, a, b) = (Rc::new(Live::default()), pod("a"), pod("b"));
    let held: Vec<Held> =
        std::iter::repeat_with(|| live.hold(&a).unwrap()).take(HELD_PER_POD).collect();
    assert!(live.hold(&a).is_none());
    assert!(live.hold(&b).is_some());
    drop(held);
    assert!(live.hold(&a).is_some());
}

#[test]
fn a_removed_pod_takes_only_its_own_connections() {
    let (live, a, b) = (Rc::new(Live::default()), pod("a"), pod("b"));
    let (_a, mut of_a) = live.inbound(&a, subject(None));
    let (_b, mut of_b) = live.outbound(&b);
    live.cut_pod(&a);
    assert_eq!(of_a.try_recv().unwrap().why, Abort::PodRemoved);
    assert!(of_b.try_recv().is_err());
}

#[test]
fn a_connection_that_comes_after_its_pods_removal_is_cut_at_once() {
    let (live, a) = (Rc::new(Live::default()), pod("a"));
    a.removed.cancel();
    let (_late, mut order) = live.outbound(&a);
    assert_eq!(order.try_recv().unwrap().why, Abort::PodRemoved);
}

/// Of 10,000 open connections a change judges those ten that it can concern.
#[test]
fn the_work_of_a_change_is_that_of_the_connections_it_can_concern() {
    const PODS: usize = 100;
    let names: Vec<String> = (0..PODS).map(|index| format!("pod-{index}")).collect();
    let bed = Bed::new(
        names
            .iter()
            .map(|name| record(name, &["shop/some"][..usize::from(name == "pod-7")]))
            .chain([policy(Action::Deny, "shop/some", Scope::WorkloadSelector, &[])]),
    );
    let mut open = Vec::new();
    for pod in names.iter().map(|name| pod(name)) {
        open.extend((0..100).map(|index| bed.open(&pod, Some(&format!("client-{}", index / 10)))));
    }
    assert_eq!(open.len(), 10_000);
    let client = principal("client-3");
    let began = Instant::now();
    let judged =
        bed.apply([policy(Action::Deny, "shop/some", Scope::WorkloadSelector, &[&client])]);
    let took = began.elapsed();
    assert_eq!(judged, 10);
    assert_eq!(open.iter_mut().filter_map(cut).count(), 10);
    println!("10 of {} connections judged in {took:?}", open.len());
    assert!(took < Duration::from_millis(50), "{took:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn empty_waits_for_the_last_connection() {
    let (live, a) = (Rc::new(Live::default()), pod("a"));
    let (first, _order) = live.outbound(&a);
    let (second, _order) = live.outbound(&a);
    drop(first);
    assert!(poll_once(live.empty()).is_none());
    drop(second);
    live.empty().await;
}

/// Polls once.
fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}
