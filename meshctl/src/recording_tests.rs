//! Recordings are what was read, and a log played in pieces of any size and order leads to the same state.

use std::collections::{BTreeMap, VecDeque};

use mesh::{
    store::{Found, Store},
    xds::{ResourceType, Scope, Session},
};
use proptest::{collection::vec, prelude::*};
use proto::envoy::envoy::config::core::v3::Node;

use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/istiod")
}

fn cases() -> Vec<PathBuf> {
    let entries = fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).collect()
}

/// What istiod's resources are in JSON was written by Go; these are the same words.
#[test]
fn what_is_written_is_what_was_read() {
    for case in cases() {
        let recordings = Recordings::read(&case, Source::Resources).unwrap();
        for (client, recording) in &recordings.clients {
            let folder = tempfile::tempdir().unwrap();
            recording.write(folder.path(), client).unwrap();
            for url in recording.responses.keys() {
                for form in ["json", "pb"] {
                    let name = format!("{client}.{}.{form}", word(url));
                    let found = fs::read(folder.path().join(&name)).unwrap();
                    let expected = fs::read(case.join(&name)).unwrap();
                    assert!(found == expected, "{}/{name}", case.display());
                }
            }
        }
    }
}

fn churn() -> Vec<DeltaDiscoveryResponse> {
    log(&fs::read(fixtures().join("01-basic/ztunnel.churn.json")).unwrap()).unwrap()
}

/// Everything that a snapshot says, in words.
fn state(store: &Store) -> Vec<String> {
    let snapshot = store.load();
    let mut state = Vec::new();
    for workload in snapshot.workloads() {
        state.push(format!("{workload:?}"));
        for ip in &workload.addresses {
            let found = match snapshot.by_address(&workload.network, *ip, "shop") {
                Some(Found::Workload(found)) => found.uid.to_string(),
                Some(Found::Service(found)) => found.key.to_string(),
                None => "nothing".to_owned(),
            };
            state.push(format!("{ip} is {found}"));
        }
    }
    for service in snapshot.services() {
        state.push(format!("{service:?}"));
        let endpoints = snapshot.endpoints(service).into_iter().flat_map(|all| all.iter());
        state.push(endpoints.map(|one| format!("{} ", one.uid)).collect());
    }
    state.extend(snapshot.policies().iter().map(|policy| format!("{policy:?}")));
    state
}

fn played(responses: impl IntoIterator<Item = DeltaDiscoveryResponse>) -> (Vec<String>, usize) {
    let (store, mut session) = (Store::new(), Session::new(Node::default(), Scope::Everything));
    for response in responses {
        let handled = session.response(response, |updates| store.apply(updates));
        assert!(handled.rejected.is_empty(), "{:?}", handled.rejected);
    }
    let held = ResourceType::ALL.map(|of| session.held(of).len());
    (state(&store), held.into_iter().sum())
}

/// One change of one resource, as a response of its own.
fn pieces(responses: Vec<DeltaDiscoveryResponse>) -> Vec<(String, DeltaDiscoveryResponse)> {
    let mut pieces = Vec::new();
    for response in responses {
        let of = |name: &str| {
            let type_url = response.type_url.clone();
            let piece = DeltaDiscoveryResponse { type_url, ..Default::default() };
            (format!("{} {name}", response.type_url), piece)
        };
        for resource in &response.resources {
            let (key, piece) = of(&resource.name);
            pieces
                .push((key, DeltaDiscoveryResponse { resources: vec![resource.clone()], ..piece }));
        }
        for name in &response.removed_resources {
            let (key, piece) = of(name);
            let removed_resources = vec![name.clone()];
            pieces.push((key, DeltaDiscoveryResponse { removed_resources, ..piece }));
        }
    }
    pieces
}

/// Changes of different resources in another order; those of one resource keep theirs.
fn shuffled(
    responses: Vec<DeltaDiscoveryResponse>,
    picks: &[usize],
) -> Vec<DeltaDiscoveryResponse> {
    let mut queues: BTreeMap<String, VecDeque<DeltaDiscoveryResponse>> = BTreeMap::new();
    for (key, piece) in pieces(responses) {
        queues.entry(key).or_default().push_back(piece);
    }
    let mut queues: Vec<_> = queues.into_values().collect();
    let (mut order, mut picks) = (Vec::new(), picks.iter().cycle());
    while !queues.is_empty() {
        let at = picks.next().expect("a cycle of at least one") % queues.len();
        order.extend(queues[at].pop_front());
        if queues[at].is_empty() {
            queues.swap_remove(at);
        }
    }
    order
}

/// Neighbours of one type put together again, in batches of these sizes.
fn batched(pieces: Vec<DeltaDiscoveryResponse>, sizes: &[usize]) -> Vec<DeltaDiscoveryResponse> {
    let mut batches: Vec<DeltaDiscoveryResponse> = Vec::new();
    let (mut room, mut sizes) = (0, sizes.iter().cycle());
    for piece in pieces {
        match batches.last_mut() {
            // Within a response resources come before removals.
            Some(last)
                if room > 0
                    && last.type_url == piece.type_url
                    && last.removed_resources.is_empty() =>
            {
                room -= 1;
                last.resources.extend(piece.resources);
                last.removed_resources.extend(piece.removed_resources);
            }
            Some(_) | None => {
                room = *sizes.next().expect("a cycle of at least one");
                batches.push(piece);
            }
        }
    }
    batches
}

#[test]
fn the_churn_leads_to_what_istiod_says_after_it() {
    let (state, held) = played(churn());
    assert_eq!(held, 34, "{state:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_churn_in_shuffled_pieces_leads_to_the_same_state(
        picks in vec(0_usize..1000, 1..200),
        sizes in vec(0_usize..9, 1..20),
    ) {
        let order = batched(shuffled(churn(), &picks), &sizes);
        prop_assert_eq!(played(order), played(churn()));
    }
}
