//! The pods of this node as the dump shows them, with their connections.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::SystemTime,
};

use serde::Serialize;

use crate::admin::{Direction, OpenConnection, PodState, PodStatus};

#[derive(Serialize)]
pub(super) struct WorkloadState {
    state: PodState,
    connections: Connections,
    info: WorkloadInfo,
}

#[derive(Default, Serialize)]
struct Connections {
    inbound: Vec<Connection>,
    outbound: Vec<Connection>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    src: SocketAddr,
    original_dst: SocketAddr,
    actual_dst: SocketAddr,
    protocol: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadInfo {
    name: String,
    namespace: String,
    service_account: String,
}

/// The state of each pod, by its uid.
pub(super) fn all(
    pods: &[PodStatus],
    open: &[(SystemTime, OpenConnection)],
) -> BTreeMap<String, WorkloadState> {
    let mut by_pod: HashMap<&str, Connections> = HashMap::new();
    for (_, connection) in open {
        let connections = by_pod.entry(connection.pod.as_str()).or_default();
        let side = match connection.direction {
            Direction::Inbound => &mut connections.inbound,
            Direction::Outbound => &mut connections.outbound,
        };
        side.push(Connection {
            src: connection.source,
            original_dst: connection.original_destination,
            actual_dst: connection.actual_destination,
            protocol: connection.protocol.as_str(),
        });
    }
    let mut states = BTreeMap::new();
    for pod in pods {
        let connections = by_pod.remove(pod.uid.as_str()).unwrap_or_default();
        let info = WorkloadInfo {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
        };
        let state = WorkloadState { state: pod.state, connections, info };
        states.insert(pod.uid.as_str().to_owned(), state);
    }
    states
}
