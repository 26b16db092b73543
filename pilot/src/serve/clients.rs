//! Who is connected, and what each has: for people, and for `meshctl status`.
//!
//! In: what happens on the streams. Out: a list that serializes. Decides nothing.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use metrics::{counter, gauge};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::{debug, info, warn};

use super::session::{Event, Push};
use crate::compile::ResourceType;

/// Every connected client.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    all: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    clients: BTreeMap<u64, Client>,
}

/// One stream.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Client {
    /// `node.id` of its first request.
    id: String,
    /// The node it proved to be, or says it is.
    node: String,
    address: Option<SocketAddr>,
    /// Whether it showed a node's token.
    authenticated: bool,
    connected_since: String,
    types: BTreeMap<&'static str, TypeStatus>,
}

/// How far a client is with one type.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct TypeStatus {
    sent: Option<Sent>,
    acked: Option<Acked>,
    /// The last refusal, if any.
    nack: Option<Nack>,
}

#[derive(Clone, Debug, Serialize)]
struct Sent {
    version: String,
    time: String,
    resources: usize,
    removed: usize,
}

#[derive(Clone, Debug, Serialize)]
struct Acked {
    version: String,
    time: String,
}

#[derive(Clone, Debug, Serialize)]
struct Nack {
    version: String,
    time: String,
    resources: Vec<String>,
    message: String,
}

/// Who a stream says it is.
#[derive(Clone, Debug)]
pub(crate) struct Identification {
    /// `node.id`.
    pub id: String,
    /// The node's name.
    pub node: String,
    pub address: Option<SocketAddr>,
    pub authenticated: bool,
}

/// One stream's place in the list; leaving is dropping it.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    clients: &'a Clients,
    key: u64,
    node: String,
}

impl Clients {
    /// Adds a stream that has identified itself.
    pub(crate) fn enter(&self, who: Identification) -> Entry<'_> {
        info!(node = who.node, id = who.id, address = ?who.address, "xds client connected");
        let node = who.node.clone();
        let mut inner = self.lock();
        inner.next += 1;
        let key = inner.next;
        let client = Client {
            id: who.id,
            node: who.node,
            address: who.address,
            authenticated: who.authenticated,
            connected_since: timestamp(SystemTime::now()),
            types: BTreeMap::new(),
        };
        inner.clients.insert(key, client);
        gauge!("pilot_xds").set(u32::try_from(inner.clients.len()).unwrap_or(u32::MAX));
        drop(inner);
        Entry { clients: self, key, node }
    }

    /// Everybody, in the order they came.
    pub(crate) fn list(&self) -> Vec<Client> {
        self.lock().clients.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while holding it; and if it did, a list for people is still a list.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry<'_> {
    /// Records what has been sent.
    pub(crate) fn sent(&self, push: &Push) {
        let (resources, removed) =
            (push.message.resources.len(), push.message.removed_resources.len());
        counter!("pilot_xds_pushes", "type" => push.of.name()).increment(1);
        debug!(node = self.node, r#type = push.of.name(), resources, removed, "pushed");
        self.update(push.of, |status| {
            status.sent = Some(Sent {
                version: push.message.system_version_info.clone(),
                time: timestamp(SystemTime::now()),
                resources,
                removed,
            });
        });
    }

    /// Records what a request meant.
    pub(crate) fn event(&self, event: Event) {
        match event {
            Event::Subscribed(_) | Event::Stale => {}
            Event::Acked(of) => self.update(of, |status| {
                status.acked = status.sent.as_ref().map(|sent| Acked {
                    version: sent.version.clone(),
                    time: timestamp(SystemTime::now()),
                });
            }),
            Event::Nacked { of, names, message } => {
                counter!("pilot_total_xds_rejects", "type" => of.name()).increment(1);
                warn!(node = self.node, r#type = of.name(), resources = ?names, message, "refused by client");
                self.update(of, |status| {
                    let version = status.sent.as_ref().map(|sent| sent.version.clone());
                    let version = version.unwrap_or_default();
                    let time = timestamp(SystemTime::now());
                    status.nack = Some(Nack { version, time, resources: names, message });
                });
            }
        }
    }

    fn update(&self, of: ResourceType, change: impl FnOnce(&mut TypeStatus)) {
        if let Some(client) = self.clients.lock().clients.get_mut(&self.key) {
            change(client.types.entry(of.name()).or_default());
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut inner = self.clients.lock();
        inner.clients.remove(&self.key);
        gauge!("pilot_xds").set(u32::try_from(inner.clients.len()).unwrap_or(u32::MAX));
        drop(inner);
        info!(node = self.node, "xds client gone");
    }
}

/// RFC 3339.
pub(crate) fn timestamp(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}
