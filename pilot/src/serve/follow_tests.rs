//! What a waypoint has in which state of the mesh, and who is none.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use proto::envoy::envoy::config::core::v3::Node;
use tokio::sync::{Semaphore, watch};
use tonic::{Code, Status};

use super::{
    follow::{Newest, Waypoint, follow},
    state::State,
    types::Type,
    view::View,
};
use crate::{
    callers::{self, Caller},
    compile::{
        Compiled, MeshConfig, Snapshot,
        waypoint::tests::{manifests, node},
    },
    manifests::Manifests,
};

const SECRETS: &str = "
apiVersion: v1
kind: Secret
metadata: {name: pair, namespace: shop}
stringData: {tls.crt: CHAIN, tls.key: PRIVATE, ca.crt: ROOTS}
---
apiVersion: v1
kind: Secret
metadata: {name: half, namespace: shop}
stringData: {tls.crt: CHAIN}
---
apiVersion: v1
kind: Secret
metadata: {name: theirs, namespace: other}
stringData: {tls.crt: CHAIN, tls.key: PRIVATE}
";

fn state(previous: Option<&State>, manifests: Manifests) -> Arc<State> {
    let snapshot = Arc::new(Snapshot::of(manifests, &MeshConfig::default()));
    Arc::new(State::after(previous, snapshot, Compiled::default(), SystemTime::UNIX_EPOCH))
}

struct Rig {
    states: watch::Sender<Option<Arc<State>>>,
    newest: Newest,
}

/// A waypoint that says it is `node`, for which `caller` calls.
fn rig(node: Node, caller: Option<Caller>, manifests: Manifests) -> Rig {
    let (states, receiver) = watch::channel(Some(state(None, manifests)));
    let waypoint = Waypoint { node, caller };
    let newest = follow(waypoint, receiver, Arc::new(Semaphore::new(1)));
    Rig { states, newest }
}

impl Rig {
    /// The next view.
    async fn next(&mut self) -> Result<Arc<View>, Status> {
        let changed = tokio::time::timeout(Duration::from_secs(20), self.newest.changed()).await;
        changed.unwrap().unwrap();
        self.newest.borrow_and_update().clone().unwrap()
    }
}

fn names(view: &View, of: Type) -> Vec<String> {
    view.all(of).map(|(name, _)| name.to_string()).collect()
}

#[tokio::test]
async fn a_waypoint_has_what_its_gateway_is_compiled_to() {
    let mut rig = rig(node(), None, manifests(""));
    let view = rig.next().await.unwrap();
    assert!(names(&view, Type::Listener).contains(&"main_internal".to_owned()));
    assert_eq!(
        names(&view, Type::Endpoint),
        [
            "inbound-vip|80|http|web.shop.svc.cluster.local",
            "inbound-vip|90|tcp|web.shop.svc.cluster.local"
        ]
    );
}

#[tokio::test]
async fn two_of_a_kind_share_one_compilation_and_others_have_their_own() {
    let current = state(None, manifests(""));
    let (_states, receiver) = watch::channel(Some(current));
    let second = Node {
        id: "waypoint~10.1.0.3~wp-2.shop~shop.svc.cluster.local".into(),
        metadata: Some(labels()),
        ..Node::default()
    };
    let other = Node {
        locality: Some(proto::envoy::envoy::config::core::v3::Locality {
            region: "elsewhere".into(),
            ..Default::default()
        }),
        ..second.clone()
    };
    let mut views = Vec::new();
    let first = Node { id: "waypoint~10.1.0.4~wp-3.shop~x".into(), ..second.clone() };
    for node in [first, second, other] {
        let waypoint = Waypoint { node, caller: None };
        let newest = follow(waypoint, receiver.clone(), Arc::new(Semaphore::new(1)));
        let mut rig = Rig { states: watch::channel(None).0, newest };
        views.push(rig.next().await.unwrap().waypoint.clone().unwrap());
    }
    assert!(Arc::ptr_eq(&views[0], &views[1]));
    assert!(!Arc::ptr_eq(&views[0], &views[2]));
}

/// What a pod says of its Gateway that the mesh does not know yet.
fn labels() -> proto::google::Struct {
    use proto::google::{Struct, Value, value::Kind};
    let text = Value { kind: Some(Kind::StringValue("wp".into())) };
    let labels =
        Struct { fields: [("gateway.networking.k8s.io/gateway-name".to_owned(), text)].into() };
    Struct {
        fields: [("LABELS".to_owned(), Value { kind: Some(Kind::StructValue(labels)) })].into(),
    }
}

#[tokio::test]
async fn a_change_gives_a_new_view() {
    let mut rig = rig(node(), None, manifests(""));
    rig.next().await.unwrap();
    let service = "
apiVersion: v1
kind: Service
metadata: {name: more, namespace: shop}
spec: {clusterIP: 10.96.0.11, ports: [{name: http, port: 80}]}
";
    rig.states.send_replace(Some(state(None, manifests(service))));
    let view = rig.next().await.unwrap();
    let more = "inbound-vip|80|http|more.shop.svc.cluster.local".to_owned();
    assert!(names(&view, Type::Cluster).contains(&more));
}

#[tokio::test]
async fn a_waypoint_whose_gateway_is_gone_keeps_what_it_had() {
    let mut rig = rig(node(), None, manifests(""));
    let before = rig.next().await.unwrap();
    let mut without = manifests("");
    without.gateways.clear();
    rig.states.send_replace(Some(state(None, without)));
    let kept = rig.next().await.unwrap();
    assert!(kept.is_kept && !before.is_kept);
    assert_eq!(names(&kept, Type::Cluster), names(&before, Type::Cluster));
    rig.states.send_replace(Some(state(None, manifests(""))));
    assert!(!rig.next().await.unwrap().is_kept);
}

#[tokio::test]
async fn whoever_is_no_waypoint_of_ours_is_told_so() {
    let of = |id: &str| Node { id: id.into(), ..Node::default() };
    for (id, code, message) in [
        (
            "waypoint~10.1.0.10~web-a.shop~d",
            Code::FailedPrecondition,
            "node `waypoint~10.1.0.10~web-a.shop~d` belongs to no Gateway of class istio-waypoint or istio-east-west",
        ),
        (
            "waypoint~wp-1",
            Code::InvalidArgument,
            "node id `waypoint~wp-1` is not of the form type~address~pod.namespace~domain",
        ),
    ] {
        let status = rig(of(id), None, manifests("")).next().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, message));
    }
}

fn on(node: &str) -> Caller {
    Caller::Node(node.to_owned())
}

fn account(namespace: &str, name: &str) -> Caller {
    Caller::Pod(callers::Pod {
        namespace: namespace.into(),
        service_account: name.into(),
        name: None,
        node: None,
    })
}

fn certified(namespace: &str, name: &str) -> Caller {
    Caller::Certified(mesh::identity::Spiffe::new("cluster.local", namespace, name).unwrap())
}

#[tokio::test]
async fn a_caller_gets_what_is_for_the_pods_it_speaks_for() {
    let unknown = Node {
        id: "waypoint~10.1.0.3~wp-2.shop~d".into(),
        metadata: Some(labels()),
        ..Node::default()
    };
    // What it says of itself in other words counts for nothing.
    let elsewhere = {
        use proto::google::{Value, value::Kind};
        let mut node = node();
        let text = Value { kind: Some(Kind::StringValue("shop".into())) };
        let fields = [("NAMESPACE".to_owned(), text)].into();
        node.metadata = Some(proto::google::Struct { fields });
        node.id = "waypoint~10.1.0.2~wp-1.other~d".into();
        node
    };
    for (node, caller, expected) in [
        (node(), on("node-a"), true),
        (node(), on("node-b"), false),
        (unknown.clone(), on("node-a"), false),
        (node(), account("shop", "wp"), true),
        (node(), account("shop", "web"), false),
        (node(), account("other", "wp"), false),
        (unknown.clone(), account("shop", "wp"), true),
        (elsewhere, account("other", "wp"), false),
        (node(), certified("shop", "wp"), true),
        (node(), certified("other", "wp"), false),
    ] {
        let shown = format!("{} for {}", caller, node.id);
        let view = rig(node, Some(caller), manifests("")).next().await;
        let denied = view.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied);
        assert_eq!((view.is_ok(), denied), (expected, !expected), "{shown}");
    }
}

#[tokio::test]
async fn secrets_are_for_who_has_proven_to_be_of_their_namespace() {
    let view = rig(node(), None, manifests(SECRETS)).next().await.unwrap();
    assert_eq!(names(&view, Type::Secret), [""; 0]);
    let view = rig(node(), Some(on("node-a")), manifests(SECRETS)).next().await.unwrap();
    assert_eq!(names(&view, Type::Secret), ["kubernetes://pair", "kubernetes://pair-cacert"]);
    let dump = super::dump::config(&view).unwrap().to_string();
    assert!(dump.contains("kubernetes://pair"));
    assert!(!dump.contains("PRIVATE") && !dump.contains("UFJJVkFURQ"), "{dump}");
}
