//! Takes tunnels out of use whose workload has gone from its address, so that whoever gets the address next gets none of
//! its traffic.
//!
//! In: changes of the store. Out: pools without such tunnels. What is open in them goes on to its own end: it began when
//! the workload was there.

use std::rc::Rc;

use mesh::{hbone::PoolKey, store::Snapshot};

use super::thread::DataThread;

/// Looks at all tunnels of a thread after each change of workloads.
pub(super) async fn retire_stale(thread: Rc<DataThread>) {
    let store = &thread.node.store;
    let mut changes = store.subscribe();
    let mut looked_at = store.load();
    while changes.changed().await.is_ok() {
        let snapshot = store.load();
        let is_same = snapshot.same_workloads(&looked_at);
        looked_at = snapshot.clone();
        if is_same {
            continue;
        }
        thread.for_each_pool(|pool| pool.retire(|key| is_stale(&snapshot, key)));
    }
}

/// Whether the workload that was dialed is no longer where it was. One without addresses was found by its name, which
/// only tells that it is there.
fn is_stale(snapshot: &Snapshot, key: &PoolKey) -> bool {
    let Some(uid) = &key.workload else { return false };
    match snapshot.workload(uid) {
        Some(workload) => {
            !workload.addresses.is_empty() && !workload.addresses.contains(&key.dial.ip())
        }
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh::{
        identity::Spiffe,
        store::{Store, Update},
    };
    use proto::workload::Workload;

    use super::*;

    #[test]
    fn a_tunnel_is_stale_when_its_workload_is_gone_or_has_moved() {
        let store = Store::new();
        let workload = |uid: &str, addresses: &[[u8; 4]]| {
            let addresses = addresses.iter().map(|ip| ip.to_vec()).collect();
            let wire = Workload { uid: uid.into(), addresses, ..Workload::default() };
            Update::Workload(wire.try_into().unwrap())
        };
        store.apply([
            workload("here", &[[10, 0, 0, 1]]),
            workload("moved", &[[10, 0, 0, 3]]),
            workload("named", &[]),
        ]);
        let snapshot = store.load();
        let name = |account| Spiffe::new("cluster.local", "shop", account).unwrap();
        for (uid, expected) in [
            (Some("here"), false),
            (Some("moved"), true),
            (Some("gone"), true),
            (Some("named"), false),
            (None, false),
        ] {
            let key = PoolKey {
                source: name("web"),
                expected: Arc::new([name("cart")]),
                dial: ([10, 0, 0, 1], 15008).into(),
                workload: uid.map(Into::into),
            };
            assert_eq!(is_stale(&snapshot, &key), expected, "{uid:?}");
        }
    }
}
