//! The endpoints that connections of this node's pods have failed to, as `/aquifer/endpoints` shows them.
//!
//! In: what the node has learnt. Out: values to serialize.

use std::{net::IpAddr, sync::Arc, time::Instant};

use serde::Serialize;

use super::Handles;
use crate::balance::{Endpoint, Standing};

/// One address of a workload.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    uid: Arc<str>,
    ip: IpAddr,
    /// In a row.
    failures: u32,
    open_connections: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ejected_for_seconds: Option<u64>,
}

pub(super) fn shown(handles: &Handles) -> Vec<Shown> {
    let one = |(endpoint, standing): (Endpoint, Standing)| Shown {
        failures: standing.failures,
        open_connections: handles.balance.open_to(&endpoint.uid),
        ejected_for_seconds: standing.ejected_for.map(|left| left.as_secs()),
        uid: endpoint.uid,
        ip: endpoint.ip,
    };
    handles.balance.standings(Instant::now()).into_iter().map(one).collect()
}
