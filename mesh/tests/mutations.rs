//! Whatever a control plane sends, it is applied or refused by name, never a panic; what a newer one adds is survived.
//!
//! In: what a real istiod was recorded to send, changed at random places.

use std::{fs, path::PathBuf, sync::Arc};

use mesh::{
    store::{Store, Update},
    xds::{Handled, Scope, Session},
};
use proptest::{collection::vec, prelude::*, sample::Index};
use prost::Message;
use proto::{
    discovery::{DeltaDiscoveryResponse, Resource},
    envoy::envoy::config::core::v3::Node,
    security::Authorization,
    workload::{Address, address::Type},
};

const CASES: [&str; 4] = ["01-basic", "02-l4-policy", "04-external", "11-multinetwork"];

/// Every resource of the recordings, as a response for it alone.
fn recorded() -> Vec<DeltaDiscoveryResponse> {
    let mut all = Vec::new();
    for case in CASES {
        for file in ["ztunnel.address.pb", "ztunnel.authorization.pb"] {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("../../shared/fixtures/istiod")
                .join(case)
                .join(file);
            let bytes = fs::read(&path).expect("the recordings are beside the checkout");
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let whole = DeltaDiscoveryResponse::decode_length_delimited(&mut rest);
                let whole = whole.expect("recordings are whole");
                for resource in whole.resources {
                    let type_url = whole.type_url.clone();
                    let resources = vec![resource];
                    all.push(DeltaDiscoveryResponse { type_url, resources, ..Default::default() });
                }
            }
        }
    }
    all
}

fn session() -> Session {
    Session::new(Node::default(), Scope::OnDemand)
}

fn handle(store: &Store, response: DeltaDiscoveryResponse) -> Handled {
    session().response(response, |updates| store.apply(updates))
}

fn value(response: &mut DeltaDiscoveryResponse) -> &mut Vec<u8> {
    let any = response.resources[0].resource.as_mut();
    &mut any.expect("recorded resources have content").value
}

/// A change of encoded bytes.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    /// A part of the message once more, elsewhere.
    Copy(Index, Index, Index),
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Flip(at, with) => {
                let at = at.index(bytes.len());
                bytes[at] ^= with;
            }
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Insert(at, new) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Copy(from, to, at) => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let part = bytes[from.min(to)..from.max(to)].to_vec();
                let at = at.index(bytes.len());
                bytes.splice(at..at, part);
            }
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 1_u8..).prop_map(|(at, with)| Mutation::Flip(at, with)),
        at().prop_map(Mutation::Cut),
        (at(), vec(any::<u8>(), 1..12)).prop_map(|(at, new)| Mutation::Insert(at, new)),
        (at(), at(), at()).prop_map(|(from, to, at)| Mutation::Copy(from, to, at)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_mutated_resource_is_applied_or_refused_by_name(
        which in any::<Index>(),
        mutations in vec(mutation(), 1..4),
    ) {
        thread_local!(static RECORDED: Vec<DeltaDiscoveryResponse> = recorded());
        let mut response = RECORDED.with(|all| which.get(all).clone());
        let name = response.resources[0].name.clone();
        mutations.iter().for_each(|mutation| mutation.apply(value(&mut response)));
        let handled = handle(&Store::new(), response);
        prop_assert_eq!(handled.accepted + handled.rejected.len(), 1);
        if let [rejected] = &handled.rejected[..] {
            prop_assert_eq!(&rejected.name, &name);
            prop_assert!(!rejected.reason.is_empty());
            let told = handled.reply.error_detail.expect("a NACK").message;
            prop_assert!(told.starts_with(&name) && told.len() < 2048, "{}", told);
        }
    }
}

/// Field 2000 of several wire types: what a newer server might add anywhere.
fn newer_fields() -> Vec<u8> {
    let tag = |wire_type: u64| {
        let mut bytes = Vec::new();
        prost::encoding::encode_varint(2000 << 3 | wire_type, &mut bytes);
        bytes
    };
    let varint = [tag(0), vec![7]].concat();
    let fixed = [tag(1), vec![0; 8], tag(5), vec![0; 4]].concat();
    let text = [tag(2), vec![3], b"new".to_vec()].concat();
    [varint, fixed, text].concat()
}

/// The message in field `field` of `bytes`, with more appended to it.
fn with_newer_fields_inside(bytes: &[u8], field: u64) -> Vec<u8> {
    let mut rest = bytes;
    let key = prost::encoding::decode_varint(&mut rest).expect("a key");
    assert_eq!(key, field << 3 | 2, "the message is a field of its own");
    let length = prost::encoding::decode_varint(&mut rest).expect("a length");
    assert_eq!(usize::try_from(length).ok(), Some(rest.len()), "the only field");
    let inner = [rest, &newer_fields()].concat();
    let mut outer = Vec::new();
    prost::encoding::encode_varint(key, &mut outer);
    prost::encoding::encode_varint(inner.len() as u64, &mut outer);
    outer.extend(inner);
    outer
}

#[test]
fn fields_that_a_newer_server_adds_change_nothing() {
    for response in recorded() {
        let (plain, newer) = (Store::new(), Store::new());
        assert!(handle(&plain, response.clone()).rejected.is_empty());
        let mut with_more = response.clone();
        let bytes = value(&mut with_more);
        if response.type_url == proto::ADDRESS_TYPE {
            let field = match Address::decode(&**bytes).expect("an Address").r#type {
                Some(Type::Workload(_)) => 1,
                Some(Type::Service(_)) => 2,
                None => panic!("{} is nothing", response.resources[0].name),
            };
            *bytes = with_newer_fields_inside(bytes, field);
        }
        bytes.extend(newer_fields());
        let handled = handle(&newer, with_more);
        assert!(handled.rejected.is_empty(), "{:?}", handled.rejected);
        assert_eq!(words(&plain), words(&newer));
    }
}

fn words(store: &Arc<Store>) -> String {
    let snapshot = store.load();
    let workloads: Vec<_> = snapshot.workloads().collect();
    let services: Vec<_> = snapshot.services().collect();
    let policies: Vec<_> = snapshot.policies().iter().collect();
    format!("{workloads:?} {services:?} {policies:?}")
}

fn policy(wire: Authorization) -> DeltaDiscoveryResponse {
    let value = wire.encode_to_vec();
    let any = proto::google::Any { type_url: proto::AUTHORIZATION_TYPE.into(), value };
    let resource = Resource { name: "ns/p".into(), resource: Some(any), ..Default::default() };
    let type_url = proto::AUTHORIZATION_TYPE.into();
    DeltaDiscoveryResponse { type_url, resources: vec![resource], ..Default::default() }
}

#[test]
fn a_policy_of_a_newer_action_or_scope_denies_where_it_would_apply() {
    let wire = Authorization { name: "p".into(), namespace: "ns".into(), ..Default::default() };
    for (newer, field) in [
        (Authorization { action: 7, ..wire.clone() }, "action"),
        (Authorization { scope: 7, ..wire.clone() }, "scope"),
    ] {
        let store = Store::new();
        let handled = handle(&store, policy(newer));
        assert_eq!(handled.rejected[0].field.as_deref(), Some(field));
        let snapshot = store.load();
        let keys: Vec<_> = snapshot.policies().rejected().map(|one| one.key.to_string()).collect();
        assert_eq!(keys, ["ns/p"]);
    }
}

#[test]
fn a_removed_name_is_first_a_workloads_and_then_a_services() {
    let store = Store::new();
    let workload = proto::workload::Workload { uid: "ns/both".into(), ..Default::default() };
    let service = proto::workload::Service {
        namespace: "ns".into(),
        hostname: "both".into(),
        ..Default::default()
    };
    for one in [Type::Workload(workload), Type::Service(service)] {
        let update = Update::try_from(Address { r#type: Some(one) }).expect("a whole resource");
        store.apply([update]);
    }
    store.apply([Update::RemoveAddress("ns/both".into())]);
    assert!(
        store.load().workload("ns/both").is_none() && store.load().service("ns/both").is_some()
    );
    store.apply([Update::RemoveAddress("ns/both".into())]);
    assert!(store.load().service("ns/both").is_none());
}
